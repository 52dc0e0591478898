"""Recommendation 8: small learning rates with residual connections, large ones without."""

from prunus.lab.contrast.contrast import BODY, Claim, Contrast, arm, taking

LARGE, LITTLE = 0.1, 0.01
KINDS = {"residual": {}, "plain": {"options": {"shortcut": "none"}}}
_SAID = {
    "residual": "Ma et al. 2021: with residual connections a subnetwork does better at a relatively small rate",
    "plain": "Ma et al. 2021: without residual connections a larger rate is preferable",
}

contrast = Contrast(
    name="rates",
    title="Learning rates with and without residual connections",
    section="9.1, recommendation 8",
    question="Does a subnetwork want a small learning rate with residual connections, a large one without?",
    on={"network": "resnet20", "options": {"width": 0.5, "stem_stride": 2}, "channels_last": False},
    arms=tuple(
        made
        for kind, where in KINDS.items()
        for rate in (LARGE, LITTLE)
        for made in (
            taking(f"{kind} ticket at {rate:g}", f"found, {kind}", where={**where, "rates": (rate,)}),
            arm(f"{kind}, tuned at {rate:g}", "magnitude", granularity=BODY, where={**where, "rates": (rate,)}),
        )
    ),
    aside=tuple(
        arm(f"found, {kind}", "magnitude", "none", granularity=BODY, where=where) for kind, where in KINDS.items()
    ),
    claims=tuple(
        Claim(
            id=f"{kind}-{done}",
            text=f"{kind} subnetworks do better at {better:g} than at {worse:g}, {told}",
            left=form.format(kind, better),
            right=form.format(kind, worse),
            survey=_SAID[kind],
        )
        for kind, better, worse in (("residual", LITTLE, LARGE), ("plain", LARGE, LITTLE))
        for done, told, form in (
            ("ticket", "from initial weights", "{} ticket at {:g}"),
            ("tuned", "fine-tuned", "{}, tuned at {:g}"),
        )
    ),
    notes=(
        (
            "ResNet-20 and the same without its shortcuts, at half the width and with a stem of stride 2, on the data "
            "of the problems: the contrast brings its own networks. Both begin with the same weights. The dense "
            "network that masks and trained weights come from has the rate that suits it; what is compared is the rate "
            "at which the subnetwork is trained."
        ),
        "Baselines are of the residual network; plain arms have random masks with the same layer shares beside them.",
    ),
)
