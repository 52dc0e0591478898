"""Evidence from the hidden states on both sides of a block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import evidence_mode

Tokens = Float[Tensor, "batch tokens features"]


class HiddenStatesEvidence(Evidence):
    """What enters each block and what leaves it, batch by batch, token by token.

    Of a residual branch, and of a block that its container adds up, what leaves is what enters plus what it returns.
    Features are the last axis, or the second where the block's own kernels have as many axes as the state (feature
    maps). Blocks of one group need not be alike: their states are padded with zeros, so a token that is zero on both
    sides is none. Undefined for units that are no modules, and for blocks that are never called, are called with no
    tensor, or change the shape. Cost: one forward per batch; the states of all blocks are in memory at once.
    """

    reads: ClassVar[Reads] = "inputs"
    per_batch = True
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        modules = {g.name: [_modules(g, u) for u in range(g.units)] for g in sources.groups if _modules(g, 0)}
        names = {n for units in modules.values() for unit in units for n in unit}
        train, empty = bool(sources.settings.get("train_mode", False)), True
        for batch in sources.task.calibration():
            empty = False
            mode = evidence_mode(sources.model, {}, sources.generator, train=train)
            with mode, torch.no_grad(), _watched(sources.model, names) as calls:
                sources.task.outputs(sources.model, batch)
            yield {
                g.name: s
                for g in sources.groups
                if (s := _states(g, modules.get(g.name, []), calls, sources)) is not None
            }
        if empty:
            raise DataError(NO_BATCH)


def _modules(group: Group, unit: int) -> tuple[str, ...]:
    """The modules of one unit: the block itself, or a branch with what feeds it; none where units are no modules."""
    names, twins = getattr(group, "names", ()), getattr(group, "twins", ())
    instead = getattr(group, "instead", ())
    if twins or len(names) != group.units:
        return ()
    return tuple(n for n, _ in instead[unit]) if group.kind == "branch" and instead else (names[unit],)


@contextmanager
def _watched(model: nn.Module, names: set[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """The calls of modules in their order: name, first tensor in, first tensor out."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def noting(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x, y = entered.pop(name, None), _first(output)
            if x is not None and y is not None:
                calls.append((name, x, y.detach().clone()))

        return note

    def entering(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if (x := _first((args, kwargs))) is not None:
                entered[name] = x.detach().clone()  # a block may compute in its place

        return note

    entered: dict[str, Tensor] = {}
    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
            handles.append(module.register_forward_hook(noting(name), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.ndim > 1 else None
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((t for t in map(_first, inside) if t is not None), None)


def _states(
    group: Group, units: list[tuple[str, ...]], calls: list[tuple[str, Tensor, Tensor]], sources: Sources
) -> Float[Tensor, "units batch tokens features 2"] | None:
    pairs: list[Tensor] = []
    for unit, names in enumerate(units):
        mine = [(x, y) for name, x, y in calls if name in names]
        if not mine:
            return None
        before, after = mine[0][0], mine[-1][1]
        if before.shape != after.shape:
            return None
        if group.kind == "branch" or getattr(group, "additive", False):
            after = before + after
        kernels = any(sources.parameters[m.param].ndim == before.ndim for m in group.with_role("out") if m.unit == unit)
        pairs.append(torch.stack([_tokens(t, kernels and before.ndim > 3) for t in (before, after)], -1))
    if not pairs or len({len(p) for p in pairs}) > 1:
        return None
    sizes = [max(p.shape[axis] for p in pairs) for axis in (1, 2)]
    padded = [nn.functional.pad(p, (0, 0, 0, sizes[1] - p.shape[2], 0, sizes[0] - p.shape[1])) for p in pairs]
    return torch.stack(padded)


def _tokens(state: Tensor, maps: bool) -> Tokens:
    rows = state.movedim(1, -1) if maps else state
    return rows.reshape(len(rows), -1, rows.shape[-1])


HiddenStates = Annotated[Float[Tensor, "units batch tokens features 2"], HiddenStatesEvidence()]
"""`[units, batch, tokens, features, 2]`: the state before and after each block; zeros where there is no such token."""
