"""How much each layer keeps."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.allocation import GlobalRanking

contrast = Contrast(
    name="depth",
    title="Layer-wise density",
    section="7.8",
    question="Which layers do methods keep?",
    arms=(
        arm("SNIP, weights", "snip"),
        arm("GraSP, weights", "grasp"),
        arm("SynFlow, 100 rounds", "synflow"),
        arm("magnitude, one shot", "magnitude"),
        arm("movement, across layers", "movement", allocate=GlobalRanking()),
    ),
    claims=(
        *(
            Claim(
                id=name.split(",")[0].lower(),
                text=f"deeper layers lose more ({name.split(',')[0]})",
                left=name,
                metric="depth",
                survey="SNIP and GraSP keep less with depth, but for layers that reduce the resolution",
            )
            for name in ("SNIP, weights", "GraSP, weights")
        ),
        Claim(
            id="movement",
            text="movement takes more from deeper layers than magnitude does",
            left="movement, across layers",
            right="magnitude, one shot",
            metric="depth",
            survey="movement prunes the deepest layers most, magnitude about evenly",
        ),
    ),
    notes=("Rank correlations over all weight tensors, the first and the last included.",),
)
