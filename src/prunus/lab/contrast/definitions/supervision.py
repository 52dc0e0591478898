"""Masks found with labels, by contrasting views, by drawing the image, and without data."""

from prunus.lab.contrast.contrast import BODY, Claim, Contrast, arm, taking

_VIEWS = {"learns": "views"}

contrast = Contrast(
    name="supervision",
    title="Levels of supervision",
    section="7.9",
    question="Are masks as good that were found without labels?",
    arms=(
        taking("with labels", "found with labels"),
        taking("with labels, drawn anew", "found with labels", without="reinit"),
        taking("by views", "found by views"),
        taking("by views, drawn anew", "found by views", without="reinit"),
        taking("by pixels", "found by pixels"),
        arm("SynFlow, 100 rounds", "synflow", granularity=BODY),
        taking("views throughout", "found by views", where=_VIEWS),
        taking("views throughout, drawn anew", "found by views", where=_VIEWS, without="reinit"),
    ),
    aside=(
        arm("found with labels", "magnitude", "none", granularity=BODY),
        arm("found by views", "magnitude", "none", granularity=BODY, where=_VIEWS),
        arm("found by pixels", "magnitude", "none", granularity=BODY, where={"learns": "pixels"}),
    ),
    claims=(
        Claim(
            id="views",
            text="masks found by views lose no more than half a point to masks found with labels",
            left="by views",
            right="with labels",
            margin=-0.5,
            survey="Caron et al. 2020: masks found with and without labels do about as well when labels train them",
        ),
        Claim(
            id="pixels",
            text="masks found by pixels lose no more than half a point to masks found with labels",
            left="by pixels",
            right="with labels",
            margin=-0.5,
            survey="Pan et al. 2022: unsupervised pruning usually fails to preserve the accuracy",
        ),
        Claim(
            id="ticket",
            text="with labels, a ticket is better than the same drawn anew",
            left="with labels",
            right="with labels, drawn anew",
        ),
        Claim(
            id="slight",
            text="without labels, a ticket gains no more than one point over the same drawn anew",
            left="views throughout, drawn anew",
            right="views throughout",
            margin=-1.0,
            survey="Caron et al. 2020: the initialization of tickets improves only slightly on drawing anew",
        ),
        Claim(
            id="slight-labels",
            text="found by views and trained with labels, a ticket gains no more than one point over drawing anew",
            left="by views, drawn anew",
            right="by views",
            margin=-1.0,
            survey="Caron et al. 2020: the initialization of tickets improves only slightly on drawing anew",
        ),
    ),
    notes=(
        (
            "Masks are found by magnitude in a network that was trained in full: with labels; by telling which two "
            "views are of one image (SimCLR's loss, arXiv:2002.05709, on 64 linear outputs); or by drawing the image "
            "from what the last layer is given. All then begin with the same initial weights under their mask and are "
            "trained once with labels; SynFlow sees no data."
        ),
        (
            "`Views throughout` is trained by views under the mask too; its accuracy is that of a linear classifier, "
            "fitted with labels once the run is over, of what the last layer is given, and its parameters are those of "
            "a network with 64 outputs. Rates of what learns without labels are chosen without labels, by how well it "
            "does that on held-out images."
        ),
        "The last layer has no counterpart and stays dense, in all arms but baselines.",
        "Semi-supervised pruning, the fourth of the survey's levels, has no arm.",
    ),
)
