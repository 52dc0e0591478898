"""Blocks merged into one of those before them, from the last to the first, as long as what comes out stays alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError, StructureError
from prunus.core.groups import Group
from prunus.core.task import Task
from prunus.graph.running import quiet, tensors_in

FALL = 0.05
"""By how much the threshold falls where a pass through the layers has not merged enough."""


def collapse_(
    model: nn.Module,
    task: Task,
    group: Any,
    count: int,
    *,
    merge: int = 3,
    interval: int = 2,
    threshold: float = 0.65,
    lowest: int = 1,
) -> list[dict[str, Any]]:
    """Merge `count` blocks of a group into others and zero them, in place (LaCo: Yang et al. 2024, arXiv:2402.11187).

    Block l becomes w_l + sum over the k blocks after it of (w_{l+i} - w_l), which go. Tried from the last place at
    which `merge` blocks follow, downwards to block `lowest`; kept where the mean over samples of the cosine between
    what the last block puts out and what it did at first, tokens joined, is above the threshold, and then goes on
    `interval` blocks lower. Where a pass ends too early the threshold falls, and another one begins.

    Returns: the merges, in their order. Cost: a forward per calibration batch and trial, a copy of the tried blocks.
    Errors: `SpecError` where so many cannot be merged, `DataError` without batches.
    """
    batches = list(task.calibration())
    if not batches:
        raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
    blocks = _parameters(model, group)
    alive, done = sorted(range(group.units), key=lambda u: group.entries[u]), list[dict[str, Any]]()
    fixed = set(range(group.length)) - set(group.entries)
    before = list(_states(model, task, group, batches))
    most = len(alive) - 1 - lowest
    if count > most:
        raise SpecError(f"{count} of {len(alive)} blocks of {group.name} cannot be merged into others: {most} at most")
    while count > 0:
        at = max(lowest, len(alive) - 1 - merge)
        while at >= lowest and count > 0:
            after = alive[at + 1 : at + 1 + min(merge, count)]
            if not after or not _alike(blocks, [alive[at], *after]) or _apart(group, fixed, alive[at], after[-1]):
                at -= 1
                continue
            with _merged(blocks, alive[at], after) as keep:
                now = _states(model, task, group, batches)
                alike = float(torch.cat([cosine(a, b) for a, b in zip(before, now, strict=True)]).mean())
                keep.append(alike > threshold)
            if alike <= threshold:
                at -= 1
                continue
            done.append({"into": group.names[alive[at]], "merged": [group.names[u] for u in after], "alike": alike})
            alive, count = [u for u in alive if u not in after], count - len(after)
            at -= interval
        if count > 0 and threshold < -1:
            raise SpecError(f"blocks of {group.name} differ in their shapes: {count} more cannot be merged into others")
        threshold -= FALL
    return done


def cosine(a: Float[Tensor, "samples ..."], b: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples"]:
    """Of two states sample by sample, everything else joined; in float64."""
    return torch.nn.functional.cosine_similarity(a.double().flatten(1), b.double().flatten(1))


def _parameters(model: nn.Module, group: Group) -> list[dict[str, nn.Parameter]]:
    """Of every unit its own parameters, by their names within the block."""
    named, names = dict(model.named_parameters()), group.names  # type: ignore[attr-defined]
    found: list[dict[str, nn.Parameter]] = [{} for _ in names]
    for m in group.members:
        if m.unit is not None and m.param in named:
            found[m.unit][m.param.removeprefix(f"{names[m.unit]}.")] = named[m.param]
    return found


def _alike(blocks: list[dict[str, nn.Parameter]], units: list[int]) -> bool:
    shapes = [{n: p.shape for n, p in blocks[u].items()} for u in units]
    return all(s == shapes[0] for s in shapes)


def _apart(group: Any, fixed: set[int], first: int, last: int) -> bool:
    """Whether a block that cannot go lies between two."""
    return any(group.entries[first] < entry < group.entries[last] for entry in fixed)


@contextmanager
def _merged(blocks: list[dict[str, nn.Parameter]], into: int, after: Sequence[int]) -> Iterator[list[bool]]:
    """Merge; what is written to the list that this yields says whether it stays so."""
    keep: list[bool] = []
    saved = [(p, p.detach().clone()) for u in (into, *after) for p in blocks[u].values()]
    try:
        with torch.no_grad():
            for name, p in blocks[into].items():
                own = p.detach().double()
                p.copy_(own + sum((blocks[u][name].detach().double() - own for u in after), torch.zeros_like(own)))
                for u in after:
                    blocks[u][name].zero_()
        yield keep
    finally:
        if keep != [True]:
            with torch.no_grad():
                for p, value in saved:
                    p.copy_(value)


def _states(model: nn.Module, task: Task, group: Any, batches: Sequence[Any]) -> Iterator[Tensor]:
    """What the last block of the container puts out, batch by batch."""
    last = list(model.get_submodule(group.container).children())[-1]
    seen: list[Tensor] = []
    handle = last.register_forward_hook(lambda _m, _i, y: seen.append(next(tensors_in(y)).detach().clone()))
    try:
        with quiet(model):
            for batch in batches:
                seen.clear()
                task.outputs(model, batch)
                if not seen:
                    raise StructureError(f"the last block of {group.name} is not called: nothing can be compared there")
                yield seen[-1]
    finally:
        handle.remove()
