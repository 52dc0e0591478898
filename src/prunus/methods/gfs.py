"""Greedy forward selection."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ForwardSelection
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

gfs = Recipe(
    name="gfs",
    source="Ye et al. 2020, ICML, arXiv:2003.01794",
    granularity=Channel(),
    criterion=ForwardSelection(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Greedy forward selection (GFS)",
    use_when="time is no object and you want small sub-networks with guarantees: loss falls as one over units kept",
    avoid_when="layers are wide or batches many: each layer takes up to half its width squared runs",
    deviations=(
        "The budget says how many neurons stay; the paper stops where the loss is within a tolerance. All layers are "
        "selected before any is pruned, and none is fine-tuned in between. Fine-tune with a larger rate than usual."
    ),
    rows=(88,),
)
