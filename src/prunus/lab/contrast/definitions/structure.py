"""Unstructured against structured pruning."""

from prunus.lab.contrast.contrast import Claim, Contrast, Quoted, arm
from prunus.parts.granularity import Channel

contrast = Contrast(
    name="structure",
    title="Unstructured and structured pruning",
    section="7.1, table 7",
    question="At the same number of parameters, do single weights or whole channels cost less accuracy?",
    currency="params",
    arms=(
        arm("SNIP, weights", "snip"),
        arm("SNIP, channels", "snip", granularity=Channel()),
        arm("GraSP, weights", "grasp"),
        arm("GraSP, channels", "grasp", granularity=Channel()),
    ),
    claims=(
        Claim(
            id="snip",
            text="weights lose no more than channels (SNIP)",
            left="SNIP, weights",
            right="SNIP, channels",
            margin=-0.1,
            survey="93.84 / 93.74, 93.73 / 93.71, 73.09 / 72.82, 72.67 / 70.68",
        ),
        Claim(
            id="grasp",
            text="weights lose no more than channels (GraSP)",
            left="GraSP, weights",
            right="GraSP, channels",
            margin=-0.1,
            survey="93.58 / 93.67, 93.18 / 93.04, 72.46 / 72.43, 71.42 / 71.30",
        ),
    ),
    survey=(
        Quoted(
            title="Survey, table 7: VGG-16, best of three runs, top-1 accuracy in %",
            columns=("", "CIFAR-10, -10 %", "CIFAR-10, -40 %", "CIFAR-100, -10 %", "CIFAR-100, -50 %"),
            rows=(
                ("SNIP, weights", "93.84", "93.73", "73.09", "72.67"),
                ("SNIP, channels", "93.74", "93.71", "72.82", "70.68"),
                ("GraSP, weights", "93.58", "93.18", "72.46", "71.42"),
                ("GraSP, channels", "93.67", "93.04", "72.43", "71.30"),
            ),
        ),
    ),
    notes=("A channel's score is the sum of its weights' scores, with everything that goes with it.",),
)
