"""Recommendation 6: depth, width and resolution at the same multiply-accumulates."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.granularity import Block

ASKS = "recommendation 6: consider depth, width and resolution together"

contrast = Contrast(
    name="dimensions",
    title="Depth, width and resolution",
    section="9.1, recommendation 6",
    question="At the same multiply-accumulates, which may go: blocks, channels, or pixels of the input?",
    currency="macs",
    points=(0.8, 0.65, 0.5, 0.4, 0.35),
    on={"network": "resnet20", "options": {"width": 0.375}, "channels_last": False},
    arms=(
        arm("width", "l1_filter"),
        arm("depth", "magnitude", granularity=Block()),
        arm("resolution", "l1_filter", shrinks=1.0),
        arm("width and resolution", "l1_filter", shrinks=0.5),
        arm("depth and resolution", "magnitude", granularity=Block(), shrinks=0.5),
    ),
    claims=(
        Claim(
            id="width",
            text="channels and pixels together lose less than channels alone",
            left="width and resolution",
            right="width",
            survey=ASKS,
        ),
        Claim(
            id="resolution",
            text="channels and pixels together lose less than pixels alone",
            left="width and resolution",
            right="resolution",
            survey=ASKS,
        ),
        Claim(
            id="depth",
            text="blocks and pixels together lose less than blocks alone",
            left="depth and resolution",
            right="depth",
            survey=ASKS,
        ),
        Claim(
            id="kept",
            text="removing channels leaves more multiply-accumulates of the same budget than removing blocks",
            left="width",
            right="depth",
            metric="macs",
        ),
    ),
    notes=(
        (
            "All arms start from one network, trained on images of full size, and are fine-tuned alike. Smaller "
            "images are averages over areas; where two dimensions are cut, half of the budget (in logarithms) falls "
            "to each."
        ),
        (
            "Whole blocks and whole pixels meet a budget only roughly: they leave less than is asked. What is left is "
            "printed with every run; the last claim says how uneven it is."
        ),
        "Depth and width in one network are not tried, nor quantization on top of either.",
        "The contrast brings its own network, three eighths as wide as ResNet-20, on the data of the problems.",
    ),
)
