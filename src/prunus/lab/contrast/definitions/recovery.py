"""Training the pruned network from scratch against fine-tuning it."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.lab.contrast.definitions.weights import ONE_ROUND
from prunus.parts.recover import FineTune, Scratch

contrast = Contrast(
    name="recovery",
    title="Training from scratch and fine-tuning",
    section="7.5, figure 10",
    question="Are the weights that pruning leaves worth keeping, or only the mask?",
    arms=(
        arm("magnitude, one shot", "magnitude"),
        arm("fine-tuned, low rate", "magnitude", recover=FineTune(policy="constant", peak=0.1)),
        arm("learning rate rewound", "magnitude", recover=FineTune(policy="cosine", peak=1.0, begin=0.5)),
        arm("weights rewound", "magnitude", schedule=ONE_ROUND, on="initialized", training="twice"),
        arm("scratch-E", "magnitude", recover=Scratch(kind="E"), training="full"),
        arm("scratch-B", "magnitude", recover=Scratch(kind="B"), training="full"),
        arm("scratch, equal epochs", "magnitude", recover=Scratch(kind="E"), training="both"),
    ),
    claims=(
        Claim(
            id="low-rate",
            text="fine-tuning at a low rate beats training as long in all from scratch",
            left="fine-tuned, low rate",
            right="scratch, equal epochs",
            survey="figure 10: fine-tuning above scratch",
        ),
        Claim(
            id="whole-curve",
            text="fine-tuning with the whole curve beats training as long in all from scratch",
            left="magnitude, one shot",
            right="scratch, equal epochs",
            survey="figure 10: fine-tuning above scratch",
        ),
        Claim(
            id="rewinding",
            text="rewinding the learning rate beats a low rate",
            left="learning rate rewound",
            right="fine-tuned, low rate",
            survey="Renda et al. 2020: as good or better",
        ),
    ),
    notes=(
        (
            "The verdict depends on the rate of the fine-tuning and on the epochs in all, so both are varied. Dense "
            "training and fine-tuning together take as many epochs as `scratch, equal epochs`; scratch-B trains as "
            "often longer as the pruned network has fewer multiply-accumulates, twice at most."
        ),
    ),
)
