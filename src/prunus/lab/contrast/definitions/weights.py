"""Scores on initial against scores on trained weights."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.schedule import Rounds

ONE_ROUND = Rounds(per_round=0.9999)

contrast = Contrast(
    name="weights",
    title="Initialized and pretrained weights",
    section="7.4, figure 9",
    question="Does a criterion made for initial weights choose better on trained ones?",
    arms=(
        arm("SNIP, weights", "snip"),
        arm("SNIP, trained", "snip", on="pretrained", training="full"),
        arm("SNIP, trained and rewound", "snip", schedule=ONE_ROUND, training="twice"),
        arm("SynFlow, 100 rounds", "synflow"),
        arm("SynFlow, trained", "synflow", on="pretrained", training="full"),
    ),
    claims=(
        Claim(
            id="snip",
            text="SNIP gains from trained weights that stay",
            left="SNIP, trained",
            right="SNIP, weights",
            survey="figure 9: pretrained weights do not guarantee better results",
        ),
        Claim(
            id="snip-mask",
            text="SNIP's mask gains from trained weights that are rewound",
            left="SNIP, trained and rewound",
            right="SNIP, weights",
            survey="figure 9 leaves open which of the two was done",
        ),
        Claim(
            id="synflow",
            text="SynFlow gains from trained weights that stay",
            left="SynFlow, trained",
            right="SynFlow, 100 rounds",
            survey="figure 9: pretrained weights do not guarantee better results",
        ),
    ),
    notes=(
        (
            "Both readings of figure 9: after scoring on trained weights the network goes on from them, or is rewound "
            "to its initial weights under the mask. Arms that go on have had one training more."
        ),
    ),
)
