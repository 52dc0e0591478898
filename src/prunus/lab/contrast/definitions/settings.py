"""Recommendation 7: trained weights, a fitting rate, some epochs of fine-tuning, distillation."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.recover import FineTune

contrast = Contrast(
    name="settings",
    title="What helps a pruned network",
    section="9.1, recommendation 7",
    question="What do trained weights, the learning rate, epochs of fine-tuning and distillation each bring?",
    arms=(
        arm("fine-tuned", "magnitude"),
        arm("not fine-tuned", "magnitude", "none"),
        arm("fine-tuned, low rate", "magnitude", recover=FineTune(policy="constant", peak=0.1)),
        arm("fine-tuned, distilled", "distilled_magnitude"),
        arm("from initial weights, equal epochs", "magnitude_at_init", "both"),
    ),
    claims=(
        Claim(
            id="pretrained",
            text="pruning trained weights beats pruning initial ones and training as long in all",
            left="fine-tuned",
            right="from initial weights, equal epochs",
            survey="recommendation 7: use a pretrained model",
        ),
        Claim(
            id="rate",
            text="the rate matters: the whole curve beats a tenth of it",
            left="fine-tuned",
            right="fine-tuned, low rate",
            survey="recommendation 7: set a more appropriate learning rate",
        ),
        Claim(
            id="epochs",
            text="fine-tuning gains more than a point",
            left="fine-tuned",
            right="not fine-tuned",
            margin=1.0,
            survey="recommendation 7: fine-tune for several epochs",
        ),
        Claim(
            id="distilled",
            text="distillation from the dense network adds to fine-tuning",
            left="fine-tuned, distilled",
            right="fine-tuned",
            survey="recommendation 7: integrate knowledge distillation",
        ),
    ),
    notes=(
        "One thing is changed at a time; all prune by magnitude across layers.",
        "Architecture search and the other compressions that the recommendation names are not tried.",
    ),
)
