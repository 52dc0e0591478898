"""From one run of a model to its groups: which slices of which parameters live and die together."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError
from prunus.core.groups import Group, Member, Role
from prunus.core.task import Example
from prunus.graph import rules_contract, rules_math, rules_move
from prunus.graph.flow import Flow, tensors_in
from prunus.graph.probe import sift
from prunus.graph.running import call, one_sample, quiet, unwrap

assert rules_contract and rules_math and rules_move  # imported for the rules they register


@dataclass(frozen=True, eq=False)
class CoupledGroup(Group):
    """A group that also owns positions of sizes which modules keep as plain integers (paddings with channels).

    Attributes:
        sizes: like `members`, with the path of the integer (`layer2.0.shortcut.before`) in place of a parameter's name.
    """

    sizes: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Structure:
    """What can be removed from a model, and what cannot and why.

    Attributes:
        groups: the prunable units in the order in which they are produced. A position along an axis of a parameter
            belongs to at most one unit of one group.
        frozen: the weights whose output axis (or part of it) cannot be pruned, with the reason.
        macs: multiply-accumulates of one sample of the example per weight, summed over its uses.
        fixed_macs: multiply-accumulates of products without parameters (attention), per sample.
        aliases: all names of each parameter and buffer (more than one where it is shared).
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    macs: dict[str, int]
    fixed_macs: int
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def positions(self) -> dict[str, int]:
        """How many units each group has, by name."""
        return {group.name: group.units for group in self.groups}


def trace(model: nn.Module, example: Example | Tensor, *, probe: bool = True, seed: int = 0) -> Structure:
    """The structure of `model`, read off one run of `example` in evaluation mode.

    Atoms (positions along the axes of parameters) flow through every ATen operation of the run; what meets at equal
    positions is tied, and units are the connected components (the coupled groups of DepGraph, Fang et al. 2023,
    arXiv:2301.12900, found here by index flow instead of walking the autograd graph). What no rule covers is frozen.
    With `probe`, random units of all groups are then removed from a float64 copy and its output is compared with that
    of the same copy masked; groups that do not come out equal (a size is written into the code of a forward) are frozen
    too, so what is returned was seen to be exact.

    Cost: one run on the first sample for the flow, and with `probe` at least two more and two float64 copies.

    Raises:
        DataError: the model cannot run the example.
        StructureError: the model cannot be read (lazy, quantized or otherwise unusual parameters).
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise StructureError(f"{name} has no shape yet: run the model once before reading its structure")
    sample, batch = one_sample(example)
    try:
        flow = _run(model, sample)
    except DataError:
        if batch == 1:
            raise
        sample, flow = example, _run(model, example)
    else:
        batch = 1
    groups, frozen = _groups(flow)
    if probe and groups and not any(t.is_meta for t in model.parameters()):
        groups, broken = sift(model, groups, sample, seed)
        for group, reason in broken:
            for member in group.with_role("out"):
                frozen.setdefault(member.param, reason)
    macs = {name: count // batch for name, count in flow.macs.items()}
    return Structure(tuple(groups), frozen, macs, flow.fixed_macs // batch, dict(flow.aliases))


def _run(model: nn.Module, example: Example | Tensor) -> Flow:
    flow = Flow(model)
    with quiet(model), flow:
        output = call(model, example, flow.path)
    for tensor in tensors_in(output):
        info = flow.info.get(tensor)
        for plane in info.planes if info is not None else ():
            flow.atoms.freeze(plane, "an output of the model")
    return flow


def _groups(flow: Flow) -> tuple[list[Group], dict[str, str]]:
    labels, removable = flow.atoms.solve()
    axes = flow.atoms.axes
    starts = torch.tensor([a.start for a in axes])
    atoms = torch.arange(labels.numel())
    owner = torch.bucketize(atoms, starts, right=True) - 1
    live = removable.clone()
    # A unit is only of use if something produces it, and can only be scored by what was seen at work.
    produces = torch.tensor([flow.roles.get(i) == "out" for i in range(len(axes))])
    made = torch.zeros_like(live)
    made[labels[live & produces[owner]]] = True
    live &= made[labels]
    groups: list[Group] = []
    taken: set[str] = set()
    lonely: dict[int, str] = {}
    for units in _alike(labels[live], owner[live], atoms[live]):
        if units.rows.shape[0] < 2:
            lonely.update({axis: "all its positions are tied to one unit" for axis in units.axes if axis not in lonely})
        else:
            groups.append(_group(flow, units, taken))
    order = {i: flow.used.get(i, len(axes)) for i in range(len(axes))}
    by_name = {(a.name, a.dim): i for i, a in enumerate(axes)}
    groups.sort(key=lambda g: order[by_name[(g.members[0].param, g.members[0].dim)]])
    why = flow.atoms.why(labels)
    frozen: dict[str, str] = {}
    for i, axis in enumerate(axes):
        if flow.roles.get(i) != "out":
            continue
        own = slice(axis.start, axis.start + axis.size)
        stuck = labels[own][~removable[own]]
        if stuck.numel():
            part = "" if stuck.numel() == axis.size else f"{stuck.numel()} of {axis.size} positions: "
            frozen[axis.name] = part + why.get(int(stuck[0]), "tied to a fixed axis")
        elif i in lonely:
            frozen[axis.name] = lonely[i]
    return groups, frozen


@dataclass(frozen=True)
class _Units:
    """Units that own equally many positions of the same axes: one row of atoms each, sorted by axis."""

    axes: tuple[int, ...]
    counts: tuple[int, ...]
    rows: Int[Tensor, "units atoms"]

    def of(self, axis: int) -> Int[Tensor, "units r"]:
        """The atoms along one axis."""
        i = self.axes.index(axis)
        start = sum(self.counts[:i])
        return self.rows[:, start : start + self.counts[i]]


def _alike(labels: Int[Tensor, "n"], owner: Int[Tensor, "n"], atoms: Int[Tensor, "n"]) -> list[_Units]:
    """All units, each together with those of the same form. `atoms` ascend, and so do their axes."""
    if not labels.numel():
        return []
    order = torch.argsort(labels, stable=True)
    labels, owner, atoms = labels[order], owner[order], atoms[order]
    unit_start = _starts(labels)
    pairs = torch.stack([labels, owner])
    pair_start = _starts(pairs)
    pair_end = torch.cat([pair_start[1:], torch.tensor([labels.numel()])])
    form = torch.stack([owner[pair_start], pair_end - pair_start], 1)
    of_unit = _starts(labels[pair_start]).tolist()
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    entries = [(axis, count) for axis, count in form.tolist()]
    for unit, (a, b) in enumerate(pairwise([*of_unit, len(entries)])):
        alike.setdefault(tuple(entries[a:b]), []).append(unit)
    found = []
    for key, units in alike.items():
        width = sum(count for _, count in key)
        rows = atoms[unit_start[torch.tensor(units)].unsqueeze(1) + torch.arange(width)]
        found.append(_Units(tuple(a for a, _ in key), tuple(c for _, c in key), rows))
    return found


def _starts(values: Int[Tensor, "*rows n"]) -> Int[Tensor, "runs"]:
    """Where runs of equal columns begin."""
    differs = (values[..., 1:] != values[..., :-1]).reshape(-1, values.shape[-1] - 1).any(0)
    return torch.cat([torch.zeros(1, dtype=torch.long), differs.nonzero().reshape(-1) + 1])


def _group(flow: Flow, units: _Units, taken: set[str]) -> Group:
    axes = flow.atoms.axes

    def rank(i: int) -> tuple[bool, int, int]:
        return flow.roles.get(i) != "out", flow.used.get(i, len(axes)), i

    order = sorted(units.axes, key=rank)
    ranked = torch.argsort(units.of(order[0])[:, 0])
    members: list[Member] = []
    sizes: list[Member] = []
    for i in order:
        axis = axes[i]
        index: Tensor | None = (own := units.of(i)[ranked] - axis.start)
        if own.shape == (axis.size, 1) and bool((own[:, 0] == torch.arange(axis.size)).all()):
            index = None
        if axis.dim is None:
            sizes.append(Member(axis.name, 0, index, "other"))
            continue
        role: Role = flow.roles.get(i, "other")
        members.append(Member(axis.name, axis.dim, index, role, axis.name in flow.buffers))
    main = members[0].param
    # The parameter of a parametrization is named after the module that owns it.
    path = (
        main.partition("parametrizations.")[0].rstrip(".") if "parametrizations." in main else main.rpartition(".")[0]
    )
    path, count = path or main, 1
    name = path
    while name in taken:
        count += 1
        name = f"{path}#{count}"
    taken.add(name)
    return CoupledGroup(
        name,
        (units.rows.shape[0],),
        tuple(members),
        weight=flow.shapes[main],
        at_least=1,
        kind=flow.kinds.get(order[0], "neuron"),
        sizes=tuple(sizes),
    )
