"""Make one run: build, prune, train, evaluate, and write down what came of it."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus import measure
from prunus.core.budget import Budget
from prunus.core.errors import CollapseWarning, DataError, PrunusWarning
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.result import Result
from prunus.lab.contrast import unlabelled
from prunus.lab.contrast.problem import Problem
from prunus.lab.contrast.taken import settled
from prunus.lab.contrast.trial import Layer, Record, Spec
from prunus.lab.data import Loader
from prunus.lab.experiment import layer_densities, logits_of
from prunus.lab.trainer import factor

Weights = Mapping[str, Tensor]
EVALUATED = 128
"""Examples per batch of an evaluation: more of them leave the cache of a core."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run's record, the masks by parameter, and its weights at the end."""

    record: Record
    masks: Mapping[str, Tensor]
    weights: Weights


def perform(
    spec: Spec,
    parent: Weights | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    device: str = "cpu",
    masks: Mapping[str, Tensor] | None = None,
) -> Outcome:
    """Make a run.

    Args:
        spec: what to do.
        parent: the weights that `spec.parent` ended with.
        on_step: called after every step with (step, steps, loss).
        device: where the run is made. Initial weights are drawn on the CPU, the same for every device.
        masks: those that `spec.masks` ended with, by parameter.

    Raises:
        DataError: there is a parent and no weights, or the other way round; the same of masks.
        StructureError: masks that do not fit the network.
        PrunusError: whatever the recipe refuses.
    """
    if (spec.parent is None) != (parent is None):
        raise DataError(f"run {spec.key[:12]} has {'no ' if spec.parent is None else 'a '}parent: pass its weights")
    if (spec.masks is None) != (masks is None):
        raise DataError(f"run {spec.key[:12]} takes over masks of {(spec.masks or 'no run')[:12]}: pass just these")
    began, problem = time.process_time(), spec.problem
    found = problem.dataset()
    model = problem.initial(spec.seed)
    if parent is not None:
        model.load_state_dict(dict(parent))
    initial = digest(model.state_dict())
    model.to(device)
    recipe, budget = spec.recipe_of(), spec.budget()
    if problem.resolution < 1.0:  # what smaller images save is saved
        budget = Budget(macs=min(1.0, spec.keep / problem.share()))
    steps = spec.epochs * problem.steps_per_epoch
    task = task_of(problem, spec.seed, device)
    untrained, notes = None, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if masks is not None and recipe is not None:
            model, recipe, budget = settled(model, task, recipe, masks, spec.seed)
        if (
            recipe is not None
            and parent is not None
            and steps
            and all(e.step == 0 for e in recipe.timeline(0.5, steps))
        ):
            bare = prunus.prune(model, task, replace(recipe, recover=None), budget=budget, seed=spec.seed)
            untrained = held_out(problem, bare.model)
        result = prunus.prune(
            model,
            task,
            dense_recipe() if recipe is None else recipe,
            budget=budget,
            steps=steps,
            optimizer=lambda parameters: problem.optimizer(parameters, spec.rate),
            rate=lambda progress: factor(problem.curve, round(progress * 10_000), 10_000),
            seed=spec.seed,
            on_step=on_step,
        )
    notes += sorted({str(w.message) for w in said if issubclass(w.category, PrunusWarning | CollapseWarning)})
    notes += [f"left dense: {name} ({why})" for name, why in result.skipped.items()]
    record = described(result, spec, notes)
    record = record.model_copy(
        update={
            "untrained": untrained,
            "initial": initial,
            "data": found.digest,
            "steps": int(result.cost.get("steps", steps)),
            "seconds": round(time.process_time() - began, 2),
        }
    )
    state = {k: v.detach().cpu().clone() for k, v in result.model.state_dict().items()}
    return Outcome(record, result.masks if recipe is not None else {}, state)


def described(result: Result, spec: Spec, notes: list[str]) -> Record:
    """Accuracies and sizes of a run that has ended."""
    found, model = spec.problem.dataset(), result.model.eval()
    device = next(model.parameters()).device
    example = (spec.problem.inputs(found.test, 1).to(device),)
    whole = spec.problem.edited({"resolution": 1.0})
    full = (whole.inputs(whole.dataset().test, 1).to(device),)
    dense = spec.problem.initial(spec.seed).to(device)
    params, macs = measure.params(model), measure.macs(model, example)
    top = (1, 5) if found.num_classes > 5 else (1,)
    if spec.problem.learns == "labels":
        tested = measure.accuracies(model, Loader(found.test, EVALUATED), top=top)
    else:
        tested = unlabelled.probe(model, spec.problem.train(), found.test, found.num_classes, top)
    masked = spec.recipe is not None
    return Record(
        test=tested[1],
        test_top5=tested.get(5),
        valid=held_out(spec.problem, model),
        sparsity=result.sparsity if masked else 0.0,
        params_dense=measure.params(dense).total,
        params_kept=params.nonzero,
        macs_dense=measure.macs(dense, full).total,
        macs_kept=macs.effective,
        effective=effective_sparsity(result, example) if masked else None,
        collapsed=result.collapsed,
        layers=tuple(Layer(name=d.layer, weights=d.weights, kept=d.kept) for d in layer_densities(result)),
        masks=digest(result.masks) if masked else "",
        notes=tuple(notes),
    )


def task_of(problem: Problem, seed: int, device: str = "cpu") -> Task:
    """The problem as recipes see it; calibration batches are drawn from the training examples by the seed.

    The data stay in the memory of the CPU; a batch goes to the device when the loss is taken.
    """
    train = problem.train()
    calib = problem.seen(Loader(train, problem.batch, seed=seed + 1, shuffle=True))
    drawn = zip(range(problem.calib), calib.batches(0), strict=False)
    batches = [(x.to(device), y.to(device)) for _, (x, y) in drawn]
    kind = torch.device(device).type

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = (t.to(device, non_blocking=True) for t in batch)
        with torch.autocast(kind, torch.bfloat16) if problem.bf16 else nullcontext():
            found = logits_of(model(inputs))
        return unlabelled.loss(problem.learns, found.float(), targets)

    return Task(loss=loss, train=problem.loader(seed), calib=batches, example=(batches[0][0][:1],))


def held_out(problem: Problem, model: nn.Module) -> float:
    """How well a network does on held-out examples what it learns, from 0 to 1, in float32 and evaluation mode."""
    split = problem.dataset().valid
    if problem.learns != "labels":
        return unlabelled.told(model, split, problem.learns)
    return measure.accuracy(model, Loader(split, EVALUATED))


def dense_recipe() -> Recipe:
    """A recipe under which nothing is removed: the dense network is trained by the same loop."""
    return replace(prunus.methods.get("magnitude"), on="initialized")


def effective_sparsity(result: Result, example: tuple[Tensor, ...]) -> float | None:
    """Share of the ranked weights that are zero or on no path from input to output.

    A weight is on a path where the sum over all paths of the product of absolute weights through it is not zero, which
    is synaptic flow (Tanaka et al. 2020, arXiv:2006.05467), in float64. None where flow is not defined on the network.
    Cost: a forward and a backward of one input.
    """
    model = result.model.double()
    try:
        flow = prunus.score(model, Task(example=tuple(e.double() for e in example)), "synflow")
    except prunus.core.errors.PrunusError:
        return None
    finally:
        model.float()
    ranked = {m.param for g in result.groups for m in g.members if g.name in result.unit_masks}
    named = [n for n in flow if n in ranked]
    total = sum(flow[n].numel() for n in named)
    return 1.0 - sum(int((flow[n] > 0).sum()) for n in named) / total if total else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return sha.hexdigest()
