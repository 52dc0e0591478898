"""A network pruned to a grid of sparsities and trained again at each: one-shot curves, and sparse double descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import SpecError
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.lab.data import Dataset

Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class DescentRun:
    """A network at one sparsity.

    Attributes:
        sparsity: of the recipe's units; 0 is the dense network.
        scores: what every judge gave, in their order.
        distance: the l2 norm of the kept parameters' move from where they began; NaN where that is not known.
    """

    sparsity: float
    scores: tuple[float, ...]
    distance: float


def pruned_curve(
    model: nn.Module,
    task: Task,
    recipe: Recipe | str,
    sparsities: Sequence[float],
    judges: Sequence[Judge],
    *,
    steps: int = 0,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    rate: Callable[[float], float] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[DescentRun, ...]:
    """Prune `model` to every sparsity, each time from the same weights, train for `steps`, and judge.

    Args:
        sparsities: in [0, 1), growing.
        judges: of a network in evaluation mode.
        steps: optimizer steps of each; 0 judges right after pruning.
        initial: the weights that the model was trained from, by name, for `distance`.
        on_step: called with (steps done, steps in all, loss) over the whole curve.

    Cost: a pruning and `steps` steps per sparsity. Errors: those of `prunus.prune`, `SpecError` for the sparsities.
    """
    if not sparsities or list(sparsities) != sorted(set(sparsities)) or not all(0 <= s < 1 for s in sparsities):
        raise SpecError(f"sparsities {list(sparsities)}: give growing ones in [0, 1)")
    found = []
    for i, sparsity in enumerate(sparsities):

        def stepped(done: int, of: int, loss: float, i: int = i) -> None:
            if on_step is not None:
                on_step(i * of + done, len(sparsities) * of, loss)

        result = prunus.prune(
            model, task, recipe, sparsity=sparsity, steps=steps, optimizer=optimizer, rate=rate, seed=seed,
            on_step=stepped,
        )  # fmt: skip
        pruned = result.model.eval()
        if on_step is not None and not steps:
            on_step(i + 1, len(sparsities), 0.0)
        far = float("nan") if initial is None else _distance(pruned, initial, result.masks)
        found.append(DescentRun(sparsity, tuple(judge(pruned) for judge in judges), far))
    return tuple(found)


def noisy(data: Dataset, share: float, seed: int) -> Dataset:
    """The data with a share of the training labels replaced by another class each, drawn evenly (symmetric label
    noise); held-out and test labels stay.

    Errors: `SpecError` for a share outside [0, 1], or data that have no classes.
    """
    if not 0 <= share <= 1:
        raise SpecError(f"share={share}: the share of wrong labels lies in [0, 1]")
    if data.kind != "image":
        raise SpecError(f"{data.name} has no classes: labels of images are what can be made wrong")
    draw = torch.Generator().manual_seed(seed)
    y = data.train.y.clone()
    wrong = torch.randperm(len(y), generator=draw)[: round(share * len(y))]
    y[wrong] = (y[wrong] + torch.randint(1, data.num_classes, (len(wrong),), generator=draw)) % data.num_classes
    return replace(data, train=replace(data.train, y=y))


def _distance(model: nn.Module, initial: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    total = 0.0
    for name, p in model.named_parameters():
        if name in initial and initial[name].shape == p.shape:
            apart = (p.detach() - initial[name].to(p)).double()
            total += float((apart * masks[name] if name in masks else apart).square().sum())
    return math.sqrt(total)
