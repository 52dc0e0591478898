"""Do the masks matter, or only how much each layer keeps?"""

from prunus import methods
from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.lab.contrast.definitions.weights import ONE_ROUND

_MADE = {
    "SNIP": arm("SNIP, weights", "snip"),
    "SynFlow": arm("SynFlow, 100 rounds", "synflow"),
    "ticket": arm("weights rewound", "magnitude", schedule=ONE_ROUND, on="initialized", training="twice"),
}
_EDITED = tuple(
    arm(f"{name}, {how}", methods.ablated(made.recipe, without), training=made.training)
    for name, made in _MADE.items()
    if made.recipe is not None
    for without, how in (("shuffle", "shuffled"), ("reinit", "weights drawn anew"), ("invert", "inverted"))
)

contrast = Contrast(
    name="ablation",
    title="What is in a mask",
    section="7.4, references 48 and 60",
    question="Do masks still work when they are shuffled in each layer, or the weights are drawn anew?",
    arms=(*_MADE.values(), *_EDITED),
    claims=(
        *(
            Claim(
                id=f"{name}-{how.split()[0]}",
                text=f"{name} loses nothing when its {'masks are' if how == 'shuffled' else ''} {how}".replace(
                    "  ", " "
                ),
                left=f"{name}, {how}",
                right=_MADE[name].name,
                margin=-0.5,
                survey="Frankle et al. 2021, Su et al. 2020: masks from before training do not lose",
            )
            for name in ("SNIP", "SynFlow")
            for how in ("shuffled", "weights drawn anew")
        ),
        *(
            Claim(
                id=f"ticket-{how.split()[0]}",
                text=f"a winning ticket is better than the same {how}",
                left="weights rewound",
                right=f"ticket, {how}",
                survey="Frankle & Carbin 2019: tickets lose when drawn anew",
            )
            for how in ("shuffled", "weights drawn anew")
        ),
        *(
            Claim(
                id=f"{name}-order",
                text=f"{name} keeps the right weights: the inverted order is worse",
                left=_MADE[name].name,
                right=f"{name}, inverted",
            )
            for name in _MADE
        ),
    ),
)
