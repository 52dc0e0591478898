"""How large the gradients of the loss are, for a folder of which one block is in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.recipe import Recipe
from prunus.core.task import Batch, Task
from prunus.engine.agreement import distributed
from prunus.engine.prepare import check_weights
from prunus.engine.walk import Call, Visit, called, check_repeatable, tensors, walk
from prunus.graph.running import mapped
from prunus.parts.evidence.regional import GradLengthEvidence, readers
from prunus.stream.ahead import own_loss, within
from prunus.stream.proof import reads
from prunus.stream.shards import Checkpoint, write_shard
from prunus.stream.shrunk import Run

Place = tuple[str, int]
"""A block's path, and which of the tensors that it gives."""


@dataclass
class _Way:
    """What is kept of a batch's forward.

    Attributes:
        calls: block -> what it was called with, as it waits.
        given: block -> which tensors of the call, counted, are what blocks gave.
        outputs: what blocks gave and where it is from, the last block's last.
        slopes: the loss's gradients of these, as far as they are known.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    given: dict[str, dict[int, Place]] = field(default_factory=dict)
    outputs: dict[Place, Tensor] = field(default_factory=dict)
    slopes: dict[Place, Tensor] = field(default_factory=dict)


def asked(recipe: Recipe) -> list[str]:
    """The parameters of the criterion that are told lengths of the loss's gradients (GBLM-Pruner)."""
    return [name for name, e in recipe.criterion.asks().items() if type(e) is GradLengthEvidence]


def untold(recipe: Recipe, batches: Sequence[Batch]) -> Iterator[str]:
    """Why the gradients that a recipe asks for cannot be gathered ahead."""
    if not asked(recipe):
        return
    if not all(isinstance(b, Mapping) and "labels" in b for b in batches):
        yield f"{type(recipe.criterion).__name__} goes by the loss: every batch is a dict with labels"
    if distributed():
        yield f"{type(recipe.criterion).__name__} goes by gradients of all data, which one process gathers"


def gather(run: Run, blocks: Mapping[str, nn.Module]) -> None:
    """Lay the lengths of the dense model's gradients beside the blocks that are done, a file for each block.

    Forward, the blocks' inputs are laid by; backward, from the last block to the first, every block is run again on
    them and differentiated, with what the blocks behind it make of its outputs. The gradients, and so the lengths, are
    those of the whole model to the bit. Nothing is done where an earlier run has written the files.
    Cost: reading the blocks twice, two forwards and a backward; memory: a block, its gradients and their sums for one
    batch, and the inputs of all blocks for all batches (beyond `memory`, files); on disk, four bytes a weight.
    Errors: `SpecError` for a model without a loss, or whose blocks are given more of each other than what they give (an
    encoder's norm in between): its gradients are gathered in memory.
    """
    names = asked(run.recipe)
    if not names or all(_file(run, name).is_file() for name in blocks if within(run.recipe, run.skeleton, name)):
        return
    ways = [_Way() for _ in run.batches]
    order = _forward(run, blocks, ways)
    each = (Visit(name, blocks[name], ()) for name in reversed(order))
    for visit in run.skeleton.loaded(each, blocks, reads(run.skeleton)):
        visit.block.to(run.device)
        lengths = _lengths(run, visit.name, visit.block, ways)
        if lengths:
            write_shard(_file(run, visit.name), lengths)


def known(run: Run, name: str, recipe: Recipe, groups: Sequence[Group]) -> dict[str, dict[str, Tensor]]:
    """What `gather` found for the groups of a block: parameter of the criterion -> group -> lengths."""
    names = asked(recipe)
    if not names:
        return {}
    file = Checkpoint.of(_file(run, name))
    lengths = {n: file.read(n).to(run.device) for n in file.entries}
    return {key: {g.name: g.views(readers(g), lengths) for g in groups if readers(g)} for key in names}


def told(block: nn.Module, call: Call) -> Any:
    """The outputs of a block of which the loss says what is known already."""
    return called(block, call)


def no_loss(_block: nn.Module, _call: Call) -> Tensor:
    """Stands for the loss of a block, which has none. Errors: `SpecError` when it is asked for."""
    raise SpecError("a block of a folder has no loss of its own; what a recipe reads of it is gathered ahead")


def _file(run: Run, name: str) -> Any:
    return run.part / f"slopes-{name or 'model'}.safetensors"


def _forward(run: Run, blocks: Mapping[str, nn.Module], ways: list[_Way]) -> list[str]:
    """Run the model on all batches, and differentiate what lies behind the last block; the order of the blocks."""
    origins: list[dict[int, Place]] = [{} for _ in ways]
    order: list[str] = []
    turn, here = {"at": 0}, threading.get_ident()

    def run_block(name: str, block: nn.Module, call: Call) -> Any:
        at, turn["at"] = turn["at"], (turn["at"] + 1) % len(ways)
        way, origin = ways[at], origins[at]
        way.calls[name] = call
        way.given[name] = {i: _origin(t, origin, name) for i, t in enumerate(tensors(tuple(call))) if t.requires_grad}
        with torch.enable_grad():  # as in memory: some kernels round otherwise where nothing is to be differentiated
            found = called(block, Call(*run.take(mapped(tuple(call), Tensor.detach))))
        output = run.put(mapped(found, Tensor.detach))
        for i, t in enumerate(tensors(output)):
            if t.is_floating_point():
                way.outputs[name, i] = t.requires_grad_()
                origin[id(t)] = (name, i)
        return output

    def loss(model: nn.Module, at: int) -> None:
        found, way = own_loss(model, run.batches[at]), ways[at]
        if found.requires_grad:
            slopes = torch.autograd.grad(found, list(way.outputs.values()), allow_unused=True)
            way.slopes = {p: run.put(g) for p, g in zip(way.outputs, slopes, strict=True) if g is not None}

    def differentiated(*_: Any) -> None:
        """What comes after the first block is recorded, in the thread that runs the model."""
        if threading.get_ident() != here:
            torch.set_grad_enabled(True)

    each = Task(calib=range(len(ways)), forward=loss)
    with run.skeleton.on_demand(blocks), ExitStack() as stack:
        for block in blocks.values():
            stack.callback(block.register_forward_hook(differentiated).remove)
        reached = walk(run.skeleton.model, each, blocks, through="all", run_block=run_block)
        for visit in run.skeleton.loaded(reached, blocks, reads(run.skeleton)):
            visit.block.to(run.device)
            for p in (p for p in visit.block.parameters() if p.is_floating_point()):
                p.requires_grad_()
            if not order:
                check_repeatable(Visit(visit.name, visit.block, [Call(*run.take(tuple(visit.calls[0])))]))
            order.append(visit.name)
    for way in ways:
        way.outputs.clear()
    return order


def _origin(tensor: Tensor, origin: Mapping[int, Place], name: str) -> Place:
    """Which block gave a tensor that hangs on what blocks gave."""
    if not tensor.is_leaf or id(tensor) not in origin:
        raise SpecError(
            f"{name} is given something that is made of what blocks before it give, between them; gradients can be "
            f"gathered from a folder where blocks are given what others give as it is: prune this model in memory"
        )
    return origin[id(tensor)]


def _lengths(run: Run, name: str, block: nn.Module, ways: list[_Way]) -> dict[str, Tensor]:
    """The lengths of a block's gradients, by the names that its weights have there."""
    recipe = within(run.recipe, run.skeleton, name)
    groups = () if recipe is None else recipe.granularity(block, None)
    check_weights(block, groups)
    parameters = dict(block.named_parameters())
    weights: dict[str, Tensor] = {m.param: parameters[m.param].requires_grad_() for g in groups for m in readers(g)}
    norm = float(run.recipe.criterion.settings().get("norm", 2))
    total = {
        n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for n, p in weights.items()
    }
    for way in ways:
        for n, g in _backward(run, name, block, way, weights).items():
            total[n] += g.to(total[n].dtype).abs() ** norm
    return {n: ((t / len(ways)) ** (1 / norm)).cpu() for n, t in total.items()}


def _backward(run: Run, name: str, block: nn.Module, way: _Way, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss's gradients of a block's weights on a batch; those of what it was given go to the blocks that gave it.
    What was kept of the block is forgotten.
    """
    given, call = way.given.pop(name), way.calls.pop(name)
    taken = Call(*run.take(mapped(tuple(call), Tensor.detach)))
    inputs = {i: t.detach().requires_grad_() for i, t in enumerate(tensors(tuple(taken))) if i in given}
    count = iter(range(len(list(tensors(tuple(taken))))))
    taken = Call(*mapped(tuple(taken), lambda t: inputs.get(next(count), t)))
    with torch.enable_grad():
        output = called(block, taken)
    there = {(name, i): t for i, t in enumerate(tensors(output))}
    pairs = [(t, run.take(way.slopes.pop(p))) for p, t in there.items() if p in way.slopes]
    pairs = [(t, g) for t, g in pairs if t.requires_grad]
    if not pairs:
        return {}
    wanted = [*weights.values(), *inputs.values()]
    found = torch.autograd.grad([t for t, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
    for i, g in zip(inputs, found[len(weights) :], strict=True):
        if g is not None:
            place = given[i]
            way.slopes[place] = run.put(run.take(way.slopes[place]) + g if place in way.slopes else g)
    return {n: g for n, g in zip(weights, found, strict=False) if g is not None}
