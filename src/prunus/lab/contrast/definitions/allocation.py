"""Where to prune, and whether what is left is adjusted."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.allocation import ERK

contrast = Contrast(
    name="allocation",
    title="Global and local pruning; weights updated or not",
    section="4, 7.8",
    question="Should weights compete across layers, and do updates of the others help?",
    arms=(
        arm("magnitude, one shot", "magnitude"),
        arm("magnitude, by layer", "magnitude_uniform"),
        arm("magnitude, ERK", "magnitude", allocate=ERK()),
        arm("LAMP", "lamp"),
        arm("second order, updated", "sparsegpt", sweep="model"),
        arm("second order, as they are", "sparsegpt", sweep="model", reconstruct=None),
    ),
    claims=(
        Claim(
            id="global",
            text="ranking across layers is better than equal shares",
            left="magnitude, one shot",
            right="magnitude, by layer",
        ),
        Claim(
            id="erk",
            text="ERK's shares are better than equal ones",
            left="magnitude, ERK",
            right="magnitude, by layer",
        ),
        Claim(
            id="update-before",
            text="updating the other weights helps before training",
            left="second order, updated",
            right="second order, as they are",
            metric="untrained",
        ),
        Claim(
            id="update-after",
            text="updating the other weights helps after fine-tuning",
            left="second order, updated",
            right="second order, as they are",
        ),
    ),
)
