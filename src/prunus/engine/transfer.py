"""Tickets carried over: masks, and the weights they began with, to a network of another depth or for another task."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.core.errors import Problems, StructureError
from prunus.core.groups import Group
from prunus.core.task import Example
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.prepare import unwrap
from prunus.engine.result import Result
from prunus.graph.duplicate import duplicate

Order = Literal["append", "interpolate"]


def transfer(
    ticket: Result,
    model: nn.Module,
    *,
    initial: Mapping[str, Tensor] | None = None,
    new: tuple[str, ...] = (),
    blocks: Mapping[str, str] | None = None,
    order: Order = "append",
    example: Example | None = None,
) -> Result:
    """A copy of `model` with the masks of a ticket that was found in another network, and with that network's weights.

    For another task (Morcos et al. 2019, arXiv:1906.02773; Mehta 2019, arXiv:1905.07785) `model` is the same network
    with another head, which `new` names. For another depth (elastic tickets: Chen et al. 2021, arXiv:2103.16547) it has
    more or fewer equal blocks in its containers, and every block takes over the one that `stretched` says; downsampling
    first blocks take over first blocks. To train it with what is pruned at zero, prune it again by magnitude at its own
    density: zeros come first.

    Args:
        ticket: what `prunus.prune` gave.
        model: the network that is to get the masks; it is not changed.
        initial: the weights and buffers the ticket began with (a state dict of the first network, before training or
            at the rewind point); left out: `model` keeps its own.
        new: parameter or module names, with shell wildcards, that have no counterpart (heads): they stay dense and as
            they are.
        blocks: module path in `model` -> module path in the ticket's network; left out: see `stretched`.
        order: how blocks are repeated or left out, see `stretched`.
        example: an input of `model`, where the ticket's units are found by running it; left out: the ticket's own.

    Returns: a `Result` whose model is the masked copy; its recipe and budget are the ticket's, its history is empty.
    Errors: `StructureError` where a parameter has no counterpart of its shape, or a unit would be kept in one of its
    layers and removed in another; nothing was changed.
    """
    target = duplicate(unwrap(model))
    parameters = dict(target.named_parameters())
    theirs = {n: tuple(p.shape) for n, p in ticket.model.named_parameters()}
    path = blocks if blocks is not None else stretched(theirs, parameters, order=order)
    source = {n: renamed(n, path) for n in target.state_dict()}
    fresh = {n for n in source if any(fnmatch.fnmatch(n, e) or fnmatch.fnmatch(n, f"{e}.*") for e in new)}
    _check(target, source, fresh, theirs, initial)
    shape = {n: tuple(p.shape) for n, p in parameters.items() if n not in fresh}
    masks = {n: ticket.masks[source[n]].clone() for n in shape if source[n] in ticket.masks}
    found = ticket.recipe.granularity(target, ticket.example if example is None else example)
    groups = tuple(g for g in found if any(m.param in masks for m in g.members))
    units = {g.name: _units(g, masks) for g in groups}
    carried = parameter_masks(groups, units, parameters)
    if torn := [n for n in carried if n in masks and not torch.equal(carried[n], masks[n])]:
        raise StructureError(
            f"the masks of {', '.join(torn[:5])} do not fit the units of {type(target).__name__}: what is coupled "
            f"there was not coupled in the ticket's network"
        )
    if initial is not None:
        with torch.no_grad():
            for name, tensor in target.state_dict(keep_vars=True).items():
                if name not in fresh:
                    tensor.copy_(initial[source[name]])
    apply_(parameters, carried)
    return Result(
        model=target,
        masks=carried,
        groups=groups,
        unit_masks=units,
        recipe=ticket.recipe,
        budget=ticket.budget,
        history=[],
        skipped={},
        collapsed=(),
        cost={},
        seed=ticket.seed,
        example=ticket.example if example is None else example,
    )


def stretched(source: Iterable[str], target: Iterable[str], *, order: Order = "append") -> dict[str, str]:
    """Which blocks of a network become which of one of another depth: path in `target` -> path in `source`.

    source, target: the names of their parameters. Containers are compared whose children are numbers: where one has
    another count than in the source, its first block takes over the first one (which may downsample), and the others
    take over the others in turn, from the front (`append`: 1 2 3 1 2), or each several times in place (`interpolate`:
    1 1 2 2 3; Elastic Lottery Ticket Hypothesis, Chen et al. 2021, arXiv:2103.16547, section 3). With fewer blocks
    `append` leaves out the last ones and `interpolate` evenly many between.
    """
    here, there = _containers(source), _containers(target)
    path: dict[str, str] = {}
    for name in sorted(there, key=len):
        had, has = here.get(name, 0), there[name]
        if had in (0, has) or any(name == p or name.startswith(f"{p}.") for p in path):
            continue
        prefix = f"{name}." if name else ""
        for j in range(has):
            i = min(j, had - 1)
            if j and had > 1:
                i = 1 + ((j - 1) % (had - 1) if order == "append" else (j - 1) * (had - 1) // (has - 1))
            path[f"{prefix}{j}"] = f"{prefix}{i}"
    return path


def _containers(names: Iterable[str]) -> dict[str, int]:
    """Module path -> how many children it has whose names are 0, 1, 2, ..., as far as they hold parameters."""
    children: dict[str, set[int]] = {}
    for name in names:
        for found in re.finditer(r"(?:^|\.)(\d+)(?=\.)", name):
            children.setdefault(name[: found.start()], set()).add(int(found.group(1)))
    return {path: len(own) for path, own in children.items() if own == set(range(len(own)))}


def renamed(name: str, path: Mapping[str, str]) -> str:
    """A name under the path that its longest matching prefix stands for; `path` as `stretched` gives it."""
    for prefix in sorted(path, key=len, reverse=True):
        if name == prefix or name.startswith(f"{prefix}."):
            return path[prefix] + name[len(prefix) :]
    return name


def _check(
    target: nn.Module,
    source: Mapping[str, str],
    fresh: set[str],
    theirs: Mapping[str, tuple[int, ...]],
    initial: Mapping[str, Tensor] | None,
) -> None:
    """Refuse what has no counterpart, all of it at once."""
    problems = Problems("the ticket does not fit this network")
    state = target.state_dict()
    for name, p in target.named_parameters():
        if name in fresh:
            continue
        if source[name] not in theirs:
            problems.add(f"{name!r} has no counterpart {source[name]!r} (new=... names what is to stay as it is)")
        elif theirs[source[name]] != tuple(p.shape):
            problems.add(
                f"{name!r} is {tuple(p.shape)} and {source[name]!r} is {theirs[source[name]]} "
                f"(new=... names what is to stay as it is)"
            )
    begins = {n: initial.get(source[n]) for n in source if n not in fresh} if initial is not None else {}
    for name, tensor in begins.items():
        if tensor is None:
            problems.add(f"initial lacks {source[name]!r}, which {name!r} begins with")
        elif tensor.shape != state[name].shape:
            problems.add(f"initial has {source[name]!r} of another shape than {name!r}")
    problems.raise_if_any(StructureError)


def _units(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Which units of a group the masks of its producing weights keep."""
    members = [m for m in group.with_role("out") if m.param in masks]
    return group.views(members, masks).any(-1)
