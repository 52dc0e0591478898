"""Unstructured, semi-structured and structured pruning at one half."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.allocation import NofM
from prunus.parts.granularity import Channel, Tile

contrast = Contrast(
    name="pattern",
    title="Unstructured, semi-structured and structured pruning",
    section="7.1 (later version), table 1",
    question="What does each step towards regular patterns cost at one half?",
    points=(0.5,),
    arms=(
        arm("weights", "magnitude"),
        arm("weights, by layer", "magnitude_uniform"),
        arm("4:8", "n_of_m", allocate=NofM(n=4, m=8)),
        arm("2:4", "n_of_m"),
        arm("blocks of 4", "magnitude_uniform", granularity=Tile((4, 1, 1, 1))),
        arm("channels", "l1_filter"),
        arm("channels, all layers", "magnitude", granularity=Channel()),
    ),
    claims=tuple(
        Claim(
            id=f"{i}-{metric}", text=f"{left} lose no more than {right}{after}", left=left, right=right, metric=metric
        )
        for i, (left, right) in enumerate(
            (("weights, by layer", "4:8"), ("4:8", "2:4"), ("2:4", "blocks of 4"), ("blocks of 4", "channels"))
        )
        for metric, after in (("untrained", ", before training"), ("test", ", after fine-tuning"))
    ),
    notes=("A layer that a pattern does not divide stays dense; the numbers of parameters say so.",),
)
