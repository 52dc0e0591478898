"""LeGR: a global ranking that is learned."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.errors import SpecError
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.engine.score import score
from prunus.parts.allocation import LearnedAffine
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

SOURCE = "Chin et al. 2020, CVPR, arXiv:1904.12368"
BASE = Recipe(
    name="legr",
    source=SOURCE,
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=LearnedAffine(),
    schedule=OneShot(),
    on="pretrained",
)


@procedure(source=SOURCE, structure="structured", how="criteria", scope="global", reads="labels")
def legr(
    model: torch.nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    population: int = 16,
    sample: int = 4,
    generations: int = 64,
    mutate: float = 0.1,
    trial_steps: int = 0,
) -> Result:
    """Scale and shift each layer's squared filter norms so that the network pruned by their global ranking has the
    least loss on the calibration batches: regularized evolution of (alpha_l, kappa_l).

    The first `population` candidates are log-normal scales and normal shifts (one is the ranking as it is); each later
    one changes the share `mutate` of the layers, at least one, of the best of `sample` drawn, by steps that shrink to a
    fifth, and takes the place of the oldest. The paper has population 64, sample 16 and 400 candidates, and trains each
    for 200 steps (`trial_steps`) before it is judged. Cost: a pruning and a loss for each candidate.
    """
    if not 0 < sample <= population <= generations or generations * trial_steps > steps:
        raise SpecError(
            f"legr(population={population}, sample={sample}, generations={generations}, trial_steps={trial_steps}, "
            f"steps={steps}): sample <= population <= generations, and the trials fit into the steps"
        )
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):  # dropout draws from the global generators
        torch.manual_seed(seed)
        norms = score(model, task, BASE, seed=seed)
        layers, draw = tuple(norms), np.random.default_rng(seed)
        spread = np.array([float(s.double().square().std(correction=0)) for s in norms.values()])
        alive: list[tuple[float, np.ndarray]] = []  # (loss, rows of log alpha and kappa), the oldest first
        best: tuple[float, np.ndarray] | None = None
        for turn in range(generations):
            if turn < population:
                one = np.stack([draw.normal(size=len(layers)), draw.normal(size=len(layers)) * spread])
                one = np.zeros_like(one) if turn == population - 1 else one
            else:
                one = min((alive[i] for i in draw.integers(population, size=sample)), key=lambda a: a[0])[1].copy()
                moved = draw.choice(len(layers), max(1, int(mutate * len(layers))))
                one[0, moved] += draw.normal(size=len(moved)) * (1 - turn / (1.25 * generations))
                one[1, moved] += draw.normal(size=len(moved)) * spread[moved]
                alive.pop(0)
            found = prune(
                model, task, told(layers, one), budget=budget, steps=trial_steps, optimizer=optimizer, seed=seed
            )
            alive.append((loss_of(found.model, task), one))
            best = alive[-1] if best is None or alive[-1][0] < best[0] else best
        assert best is not None
        left = steps - generations * trial_steps
        return prune(model, task, told(layers, best[1]), budget=budget, steps=left, optimizer=optimizer, seed=seed)


def told(layers: tuple[str, ...], rows: np.ndarray) -> Recipe:
    """The recipe that a candidate stands for."""
    alpha, kappa = (tuple(map(float, row)) for row in (np.exp(rows[0]), rows[1]))
    return replace(BASE, allocate=LearnedAffine(layers, alpha, kappa))


def loss_of(model: torch.nn.Module, task: Task) -> float:
    """The mean loss on the calibration batches, of a copy that nobody needs afterwards."""
    model.eval()
    with torch.no_grad():
        return float(np.mean([float(task.loss_of(model, batch)) for batch in task.calibration()]))


card = Card(
    title="LeGR (learned global ranking)",
    use_when="the same network is to be pruned to several sizes and a search for one ranking pays off",
    avoid_when="a loss on the calibration batches says little about the network after fine-tuning, or time is short",
    deviations=(
        "Smaller search by default (16, 4, 64 instead of 64, 16, 400), without training before a candidate is judged."
    ),
    formula="alpha_l ||F||^2 + kappa_l, ranked globally",
    rows=(82,),
)
