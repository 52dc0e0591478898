"""Masks found in a network of another depth against masks found in the network itself."""

from prunus.lab.contrast.contrast import BODY, Claim, Contrast, arm, taking

SMALL = {"width": 0.5, "stem_stride": 2}

contrast = Contrast(
    name="elastic",
    title="Transfer to another depth",
    section="7.6",
    question="Is a mask as good that was found in a shallower or a deeper network of the family?",
    on={"network": "resnet20", "options": SMALL, "channels_last": False},
    arms=(
        taking("ticket", "found in ResNet-20"),
        taking("stretched from ResNet-14", "found in ResNet-14"),
        taking("stretched from ResNet-14, shuffled", "found in ResNet-14", without="shuffle"),
        taking("squeezed from ResNet-32", "found in ResNet-32"),
    ),
    aside=(
        arm("found in ResNet-20", "magnitude", "none", granularity=BODY),
        *(
            arm(
                f"found in ResNet-{depth}",
                "magnitude",
                "none",
                granularity=BODY,
                where={"network": f"resnet{depth}", "options": SMALL},
            )
            for depth in (14, 32)
        ),
    ),
    claims=(
        Claim(
            id="stretched",
            text="a ticket stretched to more layers loses no more than half a point to the network's own",
            left="stretched from ResNet-14",
            right="ticket",
            margin=-0.5,
            survey="Chen et al. 2021 turn tickets of one depth into tickets of another of the same family",
        ),
        Claim(
            id="chance",
            text="a stretched ticket is better than random masks with its layer shares",
            left="stretched from ResNet-14",
            right="stretched from ResNet-14, shuffled",
        ),
        Claim(
            id="squeezed",
            text="a ticket squeezed from more layers loses no more than half a point to a stretched one",
            left="squeezed from ResNet-32",
            right="stretched from ResNet-14",
            margin=-0.5,
        ),
    ),
    notes=(
        (
            "Elastic ticket transformation (arXiv:2103.16547): a stage's first block is taken over by the first one, "
            "the others are repeated in turn, or the last ones left out. The paper carries over the weights that "
            "tickets begin with as well; here only masks are, so that all arms begin with the same weights."
        ),
        (
            "The contrast brings its own networks, at half the width and with a stem of stride 2, on the data of the "
            "problems. Masks laid over another depth keep about what was asked; what they do keep is printed."
        ),
    ),
)
