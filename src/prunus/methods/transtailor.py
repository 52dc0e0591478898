"""TransTailor."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import TailoredScale
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

transtailor = Recipe(
    name="transtailor",
    source="Liu et al. 2021, AAAI, arXiv:2103.01542",
    granularity=Channel(),
    criterion=TailoredScale(),
    allocate=GlobalRanking(),
    schedule=Gradual(end=0.5, power=1.0),
    on="pretrained",
)

card = Card(
    title="TransTailor",
    use_when="you adapt a pre-trained network to a task of its own and want channels kept for that task",
    avoid_when="there is no loss to differentiate, or calibration batches are few: factors are learned on them",
    deviations=(
        "Factors are learned for a few steps on the calibration batches before every event, from 1; the paper "
        "trains them for epochs. Equal portions while fine-tuning, where the paper prunes a tenth of the filters "
        "and fine-tunes in turns. Factors sit where the next layers read."
    ),
    rows=(191,),
)
