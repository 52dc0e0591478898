"""L0 regularization of binary gates with the augment-reinforce-merge estimator."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Arm
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

l0_arm = Recipe(
    name="l0_arm",
    source="Li & Ji 2019, ECML-PKDD, arXiv:1904.04961",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=Arm(weighs="weights"),
)

card = Card(
    title="L0-ARM",
    use_when="gates shall be zeros and ones from the first step, and two more forward passes per step are affordable",
    avoid_when="there are many gates and few steps: losses say little about each",
    deviations=(
        "Losses for the gates are those of calibration batches, one per step in turn (the paper: of the training "
        "batch). Arm(single=True) is the variant of one pass (AR). The budget says how many stay; what the gates "
        'would keep is the record "open".'
    ),
    rows=(155,),
)
