"""Random channel pruning."""

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
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.schedule import OneShot

SOURCE = "Li et al. 2022, CVPR, arXiv:2205.05676"
CANDIDATE = Recipe(
    name="random_channel_pruning",
    source=SOURCE,
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=RandomWidths(low=0.1),
    schedule=OneShot(),
    reconstruct=LeastSquares(),
    on="pretrained",
)


@procedure(source=SOURCE, structure="structured", reads="labels")
def random_channel_pruning(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    candidates: int = 100,
    base: Recipe = CANDIDATE,
) -> Result:
    """The best of `candidates` random widths after a least squares update; `base` is pruned to each of them."""
    return best_draw(model, task, base, budget, candidates=candidates, steps=steps, seed=seed, optimizer=optimizer)


card = Card(
    title="Random channel pruning, revisited",
    use_when="you want the baseline that every search and every criterion has to beat under the same fine-tuning",
    avoid_when="one evaluation takes long: it lives off many of them",
    formula="argmin over random widths of the loss after the readers' weights were fitted by least squares",
    deviations=(
        "Random widths are scaled to the budget instead of drawn until they meet it. Judged by the loss on the "
        "calibration batches. base= takes another criterion, or recover=BatchNormRecalibration() for the paper's other "
        "quick evaluation."
    ),
    rows=(187,),
)
