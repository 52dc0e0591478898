"""EagleEye."""

from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.candidates import best_draw
from prunus.engine.result import Result
from prunus.parts.allocation import RandomWidths
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.recover import BatchNormRecalibration
from prunus.parts.schedule import OneShot

SOURCE = "Li et al. 2020, ECCV, arXiv:2007.02491"
CANDIDATE = Recipe(
    name="eagle_eye",
    source=SOURCE,
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=RandomWidths(low=0.3),
    schedule=OneShot(),
    recover=BatchNormRecalibration(),
    on="pretrained",
)


@procedure(source=SOURCE, structure="structured", reads="labels")
def eagle_eye(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    candidates: int = 1000,
    base: Recipe = CANDIDATE,
) -> Result:
    """The best of `candidates` random widths after adaptive batch normalization; `base` is pruned to each of them."""
    return best_draw(model, task, base, budget, candidates=candidates, steps=steps, seed=seed, optimizer=optimizer)


card = Card(
    title="EagleEye",
    use_when="you can afford many short evaluations and want widths that suit the data; batch normalization everywhere",
    avoid_when="the network has no running statistics to recalibrate: then it is a random search and nothing more",
    formula="argmin over random widths of the loss after running statistics were taken anew",
    deviations=(
        "Judged by the loss on the calibration batches, on which statistics are also taken; the paper by the accuracy "
        "on held-out training data. Random widths are scaled to the budget instead of drawn until they meet it."
    ),
    rows=(222,),
)
