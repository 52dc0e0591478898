"""Auto-train-once: a controller guides which units are drawn to zero."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ControllerWorth
from prunus.parts.granularity import Channel
from prunus.parts.prox import MarkedThreshold
from prunus.parts.schedule import MarkThenCut

ato = Recipe(
    name="ato",
    source="Wu et al. 2024, CVPR, arXiv:2403.14729",
    granularity=Channel(),
    criterion=ControllerWorth(),
    allocate=GlobalRanking(),
    schedule=MarkThenCut(at=0.2, cut=1.0, again=8, until=0.5),
    prox=MarkedThreshold(),
)

card = Card(
    title="ATO (auto-train-once)",
    use_when="you train from scratch, once, and the network itself is to say which units it can do without",
    avoid_when="training is short: the controller moves every 20 steps, at a rate for a hundred thousand of them",
    deviations=(
        "After the official code. Its controller sees a twentieth of the training data, here the batches of "
        "Task(calib=...), and one of training without them. "
        "As many units are marked as the budget wants gone, by the controller's log-odds over the whole network, nine "
        "times; the code rounds a draw to masks in every epoch. What stays is counted in units: "
        "ControllerWorth(weighs='macs') with Budget(macs=...) is the paper's constraint. The last event meets the "
        "budget exactly, so what has not come to zero by then is cut."
    ),
    rows=(218,),
)
