"""What a recipe says, and wants to know, of the whole model, for a folder of which one block is in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, Sources
from prunus.core.groups import Group
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prepare import check_weights
from prunus.engine.score import seeded
from prunus.engine.walk import Call, Visit, blocks_in, called, check_repeatable, walk
from prunus.parts.evidence.ahead import slope
from prunus.parts.granularity import Element, Tile
from prunus.parts.granularity.element import matrices
from prunus.stream.processes import by_first
from prunus.stream.proof import reads
from prunus.stream.shrunk import Run, in_model
from prunus.stream.skeleton import Skeleton
from prunus.stream.state import BlockRecord


def within(recipe: Recipe, skeleton: Skeleton, name: str) -> Recipe | None:
    """The recipe for a block as a model of its own, with what it says of the model's layers by name (exclusions, the
    last one, densities) said of those in the block by the names that they have there; None where none may be pruned.
    """
    model, units = skeleton.model, recipe.granularity
    own = {n: f"{name}.{n}" if name else n for n, _ in matrices(model.get_submodule(name), (), skip_last=False)}
    out: list[str] = []
    if isinstance(units, Element | Tile):
        there = {n for n, _ in matrices(model, units.exclude, skip_last=units.skip_last)}
        out = [n for n, whole in own.items() if there.isdisjoint(skeleton.tied(whole))]
        units = replace(units, exclude=tuple(out), skip_last=False)
    if len(out) == len(own):
        return None
    return replace(recipe, sweep="model", granularity=units, allocate=recipe.allocate.inside(name))


def settled(run: Run) -> Recipe:
    """The recipe with the densities of all layers written down, where its allocation deals them out ahead.

    What it goes by is gathered from the dense folder, a block in memory at a time, and is what `prunus.engine.ahead`
    gathers in memory. It is written down after every block, so that a stopped pass goes on there.
    Cost: reading the blocks once; a forward over the data, and another one for the evidence, where that reads inputs.
    Where it reads the loss, for every block as much as `_tried` says: the folder is read as often as it has blocks.
    """
    allocate, state = run.recipe.allocate, run.state
    ahead = allocate.foresees()
    if not ahead:
        return run.recipe
    blocks = blocks_in(run.skeleton.model)
    groups = {name: _groups(run, name) for name in blocks}
    if not all(name in state.foreseen for name in blocks):
        _gather(run, blocks, groups, ahead)
    space = {g.name: g for name, own in groups.items() for g in (in_model(name, g) for g in own)}
    told = {
        what: {
            in_model(name, g).name: torch.tensor(state.foreseen[name][what][g.name], dtype=torch.float64)
            for name, own in groups.items()
            for g in own
            if g.name in state.foreseen[name][what]
        }
        for what in ahead
    }
    keep = run.budget.at(run.recipe.timeline(run.budget.keep, 0)[0].density).keep
    there = {n: g.units for n, g in space.items()}
    return replace(run.recipe, allocate=allocate.settled(keep, space, there, **told))


def _groups(run: Run, name: str) -> tuple[Group, ...]:
    """The groups of a block that the allocation fits, by the names that they have there; no weight is read."""
    recipe = within(run.recipe, run.skeleton, name)
    fits = getattr(run.recipe.allocate, "fits", None)
    found = () if recipe is None else recipe.granularity(run.skeleton.model.get_submodule(name), None)
    return tuple(g for g in found if fits is None or fits(g.shape, g.weight))


def _gather(
    run: Run,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, tuple[Group, ...]],
    ahead: Mapping[str, Evidence],
) -> None:
    """Fill the state with what is to be known of every block of the dense model, by what it takes least to know."""
    read = {e.reads for e in ahead.values()}
    by_loss = "labels" in read
    each = _by_loss(run, blocks, groups, ahead) if by_loss else _by_block(run, blocks, groups, ahead, "inputs" in read)
    began = time.perf_counter()
    for at, name in enumerate(each, 1):
        by_first(lambda: run.state.write(run.part))
        if run.on_block is not None:
            units = {g.name: g.units for g in groups[name]}
            seconds = round(time.perf_counter() - began, 3)
            run.on_block(at, 2 * len(blocks), BlockRecord(name, units, units, {}, "", "", "", seconds))
        began = time.perf_counter()


def _by_block(
    run: Run,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, tuple[Group, ...]],
    ahead: Mapping[str, Evidence],
    data: bool,
) -> Iterator[str]:
    """One block after the other, each by itself; what the data gives it comes with it, where that is asked for."""
    for visit in _dense(run, blocks) if data else _alone(run, blocks):
        name, own = visit.name, groups[visit.name]
        if name not in run.state.foreseen:
            check_weights(visit.block, own)
            sources = _sources(run, blocks, own, name, visit.task if data else Task(forward=called))
            found = {what: next(iter(e.collect(sources))) if own else {} for what, e in ahead.items()}
            run.state.foreseen[name] = _numbers(own, found, name)
        yield name


def _alone(run: Run, blocks: Mapping[str, nn.Module]) -> Iterator[Visit]:
    each = (Visit(name, block, ()) for name, block in blocks.items())
    return run.skeleton.loaded(each, blocks, reads(run.skeleton))


def _dense(run: Run, blocks: Mapping[str, nn.Module]) -> Iterator[Visit]:
    """The blocks, reached by the data."""
    with run.skeleton.on_demand(blocks):
        reached = walk(run.skeleton.model, run.task, blocks, put=run.put, take=run.take)
        for at, visit in enumerate(run.skeleton.loaded(reached, blocks, reads(run.skeleton))):
            visit.block.to(run.device)
            if not at:
                check_repeatable(visit)
            yield visit


def _sources(run: Run, blocks: Mapping[str, nn.Module], groups: tuple[Group, ...], name: str, task: Task) -> Sources:
    """What evidence of a block may be collected from, by the names of the model."""
    own = tuple(in_model(name, g) for g in groups)
    parameters = {f"{name}.{n}" if name else n: p for n, p in blocks[name].named_parameters()}
    sources = Sources(blocks[name], task, own, parameters, seeded(run.seed), run.recipe.allocate.settings())
    sources.blocks = {g.name: name for g in own} if len(blocks) > 1 else {}
    return sources


def _numbers(
    groups: tuple[Group, ...], found: Mapping[str, Mapping[str, Tensor]], name: str
) -> dict[str, dict[str, Any]]:
    """Evidence by the names that groups have in their block, as numbers: float64 comes back from JSON to the bit."""
    names = {in_model(name, g).name: g.name for g in groups}
    return {what: {names[n]: v.double().tolist() for n, v in told.items()} for what, told in found.items()}


def _by_loss(
    run: Run,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, tuple[Group, ...]],
    ahead: Mapping[str, Evidence],
) -> Iterator[str]:
    """For one block after the other a pass of its own through the folder, in which its weights are moved, one at a
    time, and what each of them makes of each batch goes on to the loss beside what the others make of it.
    """
    for name, own in groups.items():
        if name not in run.state.foreseen:
            found = {what: _tried(run, blocks, name, own, e) if own else {} for what, e in ahead.items()}
            run.state.foreseen[name] = _numbers(own, found, name)
        yield name


def _tried(
    run: Run, blocks: Mapping[str, nn.Module], name: str, groups: tuple[Group, ...], evidence: Any
) -> Mapping[str, Tensor]:
    """What the loss says of a block (`ForwardDifferenceEvidence`).

    Cost: reading the whole folder; for every trial, of which there are two for each draw, weight of the block and
    batch, a forward. Memory: a block, one of its weights as it was, moved, and by what, and the block's inputs for all
    trials (beyond `memory`, files), each of which has a thread.
    """
    skeleton = run.skeleton
    task = Task(calib=run.batches, loss=own_loss)
    known = _sources(run, blocks, groups, name, task)
    seed = evidence.seed(known)
    sizes = {g.name: evidence.per_batch_of(known, g) for g in known.groups}
    trials = [batch for g in known.groups for batch in run.batches for _ in range(sizes[g.name])]
    losses: list[float] = [0.0] * len(trials)
    counts: list[float] = []
    moving: list[Iterator[tuple[Any, float]]] = []

    def forward(model: nn.Module, at: int) -> None:
        losses[at] = float(task.loss_of(model, trials[at]))

    def moved(path: str, block: nn.Module, call: Call) -> Any:
        if path == name:
            if not moving:
                there = _sources(run, blocks, groups, name, task)
                moving.append(chain.from_iterable(evidence.trials(there, g, seed) for g in there.groups))
            counts.append(next(moving[0])[1])
        output = called(block, call)
        if path == name and len(counts) == len(trials):
            next(moving[0], None)  # the last weight is put back
        return output

    each = Task(calib=range(len(trials)), forward=forward)
    ways: dict[str, Any] = {"through": "all", "put": run.put, "take": run.take, "run_block": moved}
    with skeleton.on_demand(blocks):
        for visit in skeleton.loaded(walk(skeleton.model, each, blocks, **ways), blocks, reads(skeleton)):
            visit.block.to(run.device)
            if visit.name == name:
                check_weights(visit.block, groups)
    ends = [0, *accumulate(sizes[g.name] * len(run.batches) for g in known.groups)]
    told = list(zip(losses, counts, strict=True))
    found: Mapping[str, Tensor] = evidence.dealt(
        known, {g.name: slope(told[a:b]) for g, a, b in zip(known.groups, ends[:-1], ends[1:], strict=True)}
    )
    return found


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model of transformers computes by itself. Errors: `SpecError` for one that has none."""
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise SpecError(f"{type(model).__name__} computes no loss from {', '.join(batch)}: densities cannot go by it")
    return loss
