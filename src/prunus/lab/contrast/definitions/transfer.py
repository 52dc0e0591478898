"""Masks found on other classes, or on few images, against masks found on the task itself."""

from prunus.lab.contrast.contrast import BODY, Claim, Contrast, arm, taking

HERE, ELSEWHERE = (0.5, 1.0), (0.0, 0.5)
FEW = 20

contrast = Contrast(
    name="transfer",
    title="Original task and transfer to another data set",
    section="7.6",
    question="Is a mask that was found on other data as good as one found on the task itself?",
    on={"classes": HERE},
    arms=(
        taking("ticket", "found here"),
        taking("ticket from other classes", "found on other classes"),
        taking("ticket from other classes, shuffled", "found on other classes", without="shuffle"),
        taking("ticket from few images", "found on few images of other classes"),
        arm("SNIP", "snip", granularity=BODY),
        taking("SNIP from other classes", "SNIP on other classes"),
    ),
    aside=(
        arm("found here", "magnitude", "none", granularity=BODY),
        arm("found on other classes", "magnitude", "none", granularity=BODY, where={"classes": ELSEWHERE}),
        arm(
            "found on few images of other classes",
            "magnitude",
            "none",
            granularity=BODY,
            where={"classes": ELSEWHERE, "thinned": FEW},
        ),
        arm("SNIP on other classes", "snip", "none", granularity=BODY, where={"classes": ELSEWHERE}),
    ),
    claims=(
        Claim(
            id="other",
            text="a ticket of other classes loses no more than half a point to one of these classes",
            left="ticket from other classes",
            right="ticket",
            margin=-0.5,
            survey="Tiwari et al. 2021: masks of Tiny ImageNet do better on CIFAR-100 than its own (40 % of channels)",
        ),
        Claim(
            id="chance",
            text="a ticket of other classes is better than random masks with its layer shares",
            left="ticket from other classes",
            right="ticket from other classes, shuffled",
        ),
        Claim(
            id="larger",
            text=f"a ticket of all images transfers better than one of every {FEW}th",
            left="ticket from other classes",
            right="ticket from few images",
            survey="Morcos et al. 2019: tickets of larger data sets transfer consistently better",
        ),
        Claim(
            id="snip",
            text="SNIP on other classes loses no more than half a point to SNIP on these",
            left="SNIP from other classes",
            right="SNIP",
            margin=-0.5,
        ),
    ),
    notes=(
        (
            "The task is the second half of the classes of a data set, masks come from the first half. Every arm "
            "begins with the same initial weights, those that the masks were found with too, and is trained once. "
            "Magnitude ranks a network that was trained in full: tickets of one round. The last layer, which is for "
            "other classes there, stays dense in all arms but baselines."
        ),
        (
            f"Few images are every {FEW}th, each {FEW} times an epoch: as many steps. Few classes as a source are not "
            "tried, nor are sources of another kind of image."
        ),
    ),
)
