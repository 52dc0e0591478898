"""Ties that one run does not show: the next step of a recurrence, and the experts that no token was sent to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunus.graph.atoms import Plane, varying
from prunus.graph.flow import NOTHING, Flow
from prunus.graph.repair import parametrized


def tie_unseen(flow: Flow) -> None:
    """Add to a finished run the ties of what it did not come by. Cost: a look at every module, no operation of it."""
    for path, module in flow.model.named_modules():
        for name in (n for n in _owned(module) if n.startswith("weight_hh")):
            _close(flow, module, name, f"the state of the next step in {path or 'the model'}")
    used = {flow.atoms.axes[axis].name for axis in flow.used}
    for path, module in flow.model.named_modules():
        if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            _adopt(flow, path, module, used)


def _owned(module: nn.Module) -> list[str]:
    return [*(name for name, _ in module.named_parameters(recurse=False)), *parametrized(module)]


def _close(flow: Flow, module: nn.Module, name: str, why: str) -> None:
    """What leaves a step of a recurrent module enters the next one (a run of a single step does not show it)."""
    hidden, projection = getattr(module, name), getattr(module, name.replace("_hh", "_hr"), None)
    if not isinstance(hidden, Tensor) or hidden.dim() != 2:
        return
    state, rows = _along(flow, hidden, 1), _along(flow, hidden, 0)
    cell = state if projection is None else _along(flow, projection, 1)
    if projection is not None and state is not None:
        leaving = _along(flow, projection, 0)
        flow.atoms.tie(state, leaving if leaving is not None else torch.zeros_like(state), why)
    if cell is not None and rows is not None and rows.numel() % cell.numel() == 0:
        flow.atoms.tie(rows.reshape(-1, cell.numel()), cell, why)


def _along(flow: Flow, weight: Tensor, dim: int) -> Plane | None:
    """The atoms along one axis of a matrix."""
    found = [p for p in flow.info.get(weight, NOTHING).planes if varying(p) == (dim,)]
    return found[0].reshape(-1) if found else None


def _adopt(flow: Flow, path: str, container: nn.Module, used: set[str]) -> None:
    """A child that did not run, beside one of the same form that did, is used like that one.

    Where routing depends on the data, another input may run it. So its units are those of its sibling.
    """
    ran: list[dict[str, Tensor]] = []
    idle: list[dict[str, Tensor]] = []
    for name, child in container.named_children():
        prefix = f"{path}.{name}" if path else name
        own = dict(_tensors(child))
        if own:
            (ran if any(f"{prefix}.{key}" in used for key in own) else idle).append(own)
    for own in idle:
        form = {key: t.shape for key, t in own.items()}
        twin = next((other for other in ran if {key: t.shape for key, t in other.items()} == form), None)
        for key in own if twin is not None else ():
            assert twin is not None
            _copy_ties(flow, own[key], twin[key], f"not run, but of the form of its siblings in {path or 'the model'}")


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _copy_ties(flow: Flow, tensor: Tensor, twin: Tensor, why: str) -> None:
    planes = flow.info.get(tensor, NOTHING).planes
    for own, other in zip(planes, flow.info.get(twin, NOTHING).planes, strict=True):
        flow.atoms.tie(own, other, why)
        mine, theirs = (flow.atoms.axis_of(int(p.reshape(-1)[0])) for p in (own, other))
        if mine not in flow.roles and theirs in flow.roles:
            flow.roles[mine] = flow.roles[theirs]
        if theirs in flow.used:
            flow.used.setdefault(mine, len(flow.used))
