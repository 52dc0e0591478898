"""From one run of a model to its groups: which slices of which parameters live and die together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError
from prunus.core.groups import Group, Member, Role
from prunus.core.task import Example
from prunus.graph import rules
from prunus.graph.attributes import remembered
from prunus.graph.fake import is_fake, known, on_meta
from prunus.graph.flow import Flow, tensors_in
from prunus.graph.hollow import Dependent, Hollow
from prunus.graph.norms import Norm
from prunus.graph.probe import sift
from prunus.graph.running import call, one_sample, quiet, unwrap
from prunus.graph.sizes import Watch
from prunus.graph.unseen import tie_unseen

assert rules  # imported for the rules that it registers


@dataclass(frozen=True, eq=False)
class CoupledGroup(Group):
    """A group that also owns positions of sizes which modules keep as plain integers (paddings with channels).

    Attributes:
        norms: root-mean-square normalizations over the units' axis, which `compact` puts right.
        statistics: the weights of normalizations whose mean and variance run over the units' axis and are those of
            fewer positions once units are gone (only where `trace` was asked for such groups).
        sizes: like `members`, with the path of the integer (`layer2.0.shortcut.before`) in place of a parameter's name.
    """

    sizes: tuple[Member, ...] = ()
    norms: tuple[Norm, ...] = ()
    statistics: tuple[str, ...] = ()


class Link(NamedTuple):
    """Two axes that an operation tied: `(name of a parameter, buffer or integer; dim)` each, and that operation.

    The chain of links between two axes of a group is why they live and die together.
    """

    one: tuple[str, int | None]
    other: tuple[str, int | None]
    operation: str


@dataclass(frozen=True)
class Structure:
    """What can be removed from a model, and what cannot and why.

    Attributes:
        groups: the prunable units in the order in which they are produced. A position along an axis of a parameter
            belongs to at most one unit of one group.
        frozen: the weights whose output axis (or part of it) cannot be pruned or that are in no group, with the reason.
        macs: multiply-accumulates of one sample of the example per weight, summed over its uses.
        fixed_macs: multiply-accumulates of products without parameters (attention), per sample.
        links: what was tied directly with what, and where: see `Link`.
        aliases: all names of each parameter and buffer (more than one where it is shared).
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    macs: dict[str, int]
    fixed_macs: int
    links: tuple[Link, ...] = field(default=(), repr=False)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def positions(self) -> dict[str, int]:
        """How many units each group has, by name."""
        return {group.name: group.units for group in self.groups}


def trace(
    model: nn.Module, example: Example | Tensor, *, probe: bool = True, seed: int = 0, exact: bool = True
) -> Structure:
    """The structure of `model`, read off one run of `example` in evaluation mode.

    Atoms (positions along the axes of parameters) flow through every ATen operation of the run; what meets at equal
    positions is tied, and units are the connected components (the coupled groups of DepGraph, Fang et al. 2023,
    arXiv:2301.12900, found here by index flow instead of walking the autograd graph). What no rule covers is frozen.
    With `probe`, random units of all groups are then removed from a float64 copy and its output is compared with that
    of the same copy masked; groups that do not come out equal (a size is written into the code of a forward) are frozen
    too, so what is returned was seen to be exact. On the meta device, and for fake tensors, nothing can be tried.

    LayerNorm and GroupNorm average over axes, and a mean over fewer positions is another mean. Such axes are frozen,
    unless `exact` is False: then they are groups that say so (`CoupledGroup.statistics`), and what is tried and proved
    of them is that compact and masked model agree if the masked one normalizes over the kept positions only.

    Cost: one run on the first sample for the flow, whose products are not computed unless the forward depends on their
    numbers; one of the example in training mode where something is read in training only; and with `probe` at least two
    more on the sample and two float64 copies.

    Raises:
        DataError: the model cannot run the example.
        StructureError: the model cannot be read (lazy, quantized or otherwise unusual parameters).
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise StructureError(f"{name} has no shape yet: run the model once before reading its structure")
    if is_fake(model):
        return on_meta(model, example, lambda twin, inputs: trace(twin, inputs, probe=False, exact=exact))  # type: ignore[no-any-return]
    sample, batch = one_sample(example)
    try:
        flow = _run(model, sample, example, exact=exact)
    except DataError:
        if batch == 1:
            raise
        sample, flow = example, _run(model, example, example, exact=exact)
    else:
        batch = 1
    groups, frozen = _groups(flow)
    if not flow.trained and any(not group.with_role("in") for group in groups):
        # What is computed and read by nothing may be what a loss reads.
        _run_training(flow, model, example)
        groups, frozen = _groups(flow)
    if probe and groups and not any(t.is_meta for t in model.parameters()):
        groups, broken = sift(model, groups, sample, seed)
        for group, reason in broken:
            for member in group.with_role("out"):
                frozen.setdefault(member.param, reason)
    macs = {name: count // batch for name, count in flow.macs.items()}
    axes = [(a.name, a.dim) for a in flow.atoms.axes]
    links = tuple(Link(axes[a], axes[b], operation) for (a, b), operation in flow.atoms.links().items())
    return Structure(tuple(groups), frozen, macs, flow.fixed_macs // batch, links, dict(flow.aliases))


def _run(
    model: nn.Module, example: Example | Tensor, batch: Example | Tensor | None = None, *, exact: bool = True
) -> Flow:
    """One run in evaluation mode; where it leaves weights idle, one of `batch` in training mode as well.

    The products are computed only where what follows depends on them (`hollow.py`).
    """
    flow = Flow(model, exact, Hollow(model))
    try:
        with quiet(model), remembered(model, flow.lengths), known(model), flow, Watch(flow):
            output = call(model, example, flow.path)
    except (Dependent, DataError):
        flow = Flow(model, exact)
        with quiet(model), remembered(model, flow.lengths), known(model), flow, Watch(flow):
            output = call(model, example, flow.path)
    tie_unseen(flow)
    _freeze_outputs(flow, output)
    _freeze_compiled(flow)
    kept = (*model.named_parameters(), *model.named_buffers())
    idle = any(t.dim() > 1 and t.is_floating_point() and n not in flow.touched for n, t in kept)
    if batch is not None and idle:
        _run_training(flow, model, batch)
    return flow


def _run_training(flow: Flow, model: nn.Module, batch: Example | Tensor) -> None:
    """Auxiliary classifiers run only in training, and read what must then stay as wide as they are."""
    macs, fixed, flow.hollow, flow.trained = dict(flow.macs), flow.fixed_macs, None, True
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    seen = set(flow.used)
    try:
        with quiet(model), remembered(model, flow.lengths):
            for module in model.modules():
                module.training = True
            with known(model), flow, Watch(flow):
                output = call(model, batch, flow.path)
        _freeze_outputs(flow, output)
    except DataError as error:
        # A model that does not train on this example (a loss that wants labels, statistics of one value). What was
        # first made in this run may be read by what it did not reach.
        why = f"a run in training mode, which alone uses it, failed: {error.__cause__ or error}"
        for axis in (flow.atoms.axes[i] for i in set(flow.used) - seen if flow.roles.get(i) == "out"):
            flow.atoms.freeze(torch.arange(axis.start, axis.start + axis.size), why)
    finally:
        flow.macs, flow.fixed_macs = macs, fixed
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _freeze_outputs(flow: Flow, output: object) -> None:
    for tensor in tensors_in(output):
        flow.settle(tensor)
        for plane in flow.planes_of(tensor):
            flow.atoms.freeze(plane, "an output of the model")


def _freeze_compiled(flow: Flow) -> None:
    """What TorchScript holds cannot be given another shape."""
    for path, module in flow.model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for _, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                for plane in flow.planes_of(tensor):
                    flow.atoms.freeze(plane, f"{path or 'the model'} is a TorchScript module, which keeps its shapes")


def _groups(flow: Flow) -> tuple[list[Group], dict[str, str]]:
    labels, removable = flow.atoms.solve()
    axes = flow.atoms.axes
    starts = torch.tensor([a.start for a in axes])
    atoms = torch.arange(labels.numel())
    owner = torch.bucketize(atoms, starts, right=True) - 1
    live = removable.clone()
    # A unit is only of use if something produces it, and can only be scored by what was seen at work.
    made = torch.zeros_like(live)
    for plane in flow.made:  # not the rows of a table that this example is too short for
        made[labels[plane[plane > 0]]] = True
    live &= made[labels]
    kinds = _kinds(flow, labels)
    norms: dict[int, list[Norm]] = {}
    for plane, norm in flow.norms:
        for label in labels[plane].unique().tolist():
            norms.setdefault(label, []).append(norm)
    statistics: dict[int, list[str]] = {}
    for plane, name in flow.statistics:
        for label in labels[plane].unique().tolist():
            statistics.setdefault(label, []).append(name)
    multiples: dict[int, int] = {}
    for plane, multiple in flow.multiples:
        for label in labels[plane].unique().tolist():
            multiples[label] = math.lcm(multiples.get(label, 1), multiple)
    groups: list[Group] = []
    taken: set[str] = set()
    lonely: dict[int, str] = {}
    for units in _alike(labels[live], owner[live], atoms[live]):
        if units.rows.shape[0] < 2:
            lonely.update({axis: "all its positions are tied to one unit" for axis in units.axes if axis not in lonely})
        else:
            label = int(labels[units.rows[0, 0]])
            group = _group(flow, units, taken, kinds.get(label), multiples.get(label, 1), norms.get(label, []))
            groups.append(replace(group, statistics=tuple(dict.fromkeys(statistics.get(label, ())))))
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
            frozen[axis.name] = part + (why(int(stuck[0])) or "tied to a fixed axis")
        elif i in lonely:
            frozen[axis.name] = lonely[i]
    held = {member.param for group in groups for member in group.members} | set(frozen)
    for axis in axes:
        if axis.name not in held and axis.dim is not None and len(flow.shapes.get(axis.name, ())) > 1:
            unused = None if axis.name in flow.touched else "the example does not use it"
            reason = unused or why(int(labels[axis.start])) or "no operation produces its units"
            frozen.setdefault(axis.name, reason)
    return groups, frozen


def _kinds(flow: Flow, labels: Int[Tensor, "atoms"]) -> dict[int, str]:
    """What units are called that are more than channels or neurons, by their label; heads before anything else."""
    kinds: dict[int, str] = {}
    for plane, kind in sorted(flow.marks, key=lambda mark: mark[1] == "head"):
        own, counts = labels[plane.unique()].unique(return_counts=True)
        for label, count in zip(own.tolist(), counts.tolist(), strict=True):
            # Several heads of queries with the head of keys and values that they share.
            if kinds.get(label) != "kv group":
                kinds[label] = "kv group" if kind == "head" and count > 1 else kind
    return kinds


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
    start = _starts(labels)
    width = torch.diff(start, append=torch.tensor([labels.numel()]))
    unit = torch.repeat_interleave(torch.arange(start.numel()), width)
    # Units are of one form if they own the same axes equally often: the same sum of a number drawn per axis.
    drawn = torch.randint(-(2**62), 2**62, (int(owner.max()) + 1,), generator=torch.Generator().manual_seed(0))
    form = torch.zeros_like(start).index_add_(0, unit, drawn[owner])
    found = []
    _, which = torch.unique(form, return_inverse=True)
    by_form = torch.argsort(which, stable=True)
    for units in by_form.split(torch.bincount(which).tolist()):
        wide = int(width[units[0]])
        index = start[units].unsqueeze(1) + torch.arange(wide)
        axes, counts = torch.unique_consecutive(owner[index[0]], return_counts=True)
        assert bool((owner[index] == owner[index[0]]).all()), "units of different form were taken for equal"
        found.append(_Units(tuple(axes.tolist()), tuple(counts.tolist()), atoms[index]))
    return found


def _starts(values: Int[Tensor, "*rows n"]) -> Int[Tensor, "runs"]:
    """Where runs of equal columns begin."""
    differs = (values[..., 1:] != values[..., :-1]).reshape(-1, values.shape[-1] - 1).any(0)
    return torch.cat([torch.zeros(1, dtype=torch.long), differs.nonzero().reshape(-1) + 1])


def _group(
    flow: Flow, units: _Units, taken: set[str], kind: str | None, multiple: int, norms: list[Norm]
) -> CoupledGroup:
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
        if axis.dim == -1:
            continue
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
        multiple=multiple,
        kind=kind or ("width" if any(norm.power == 0.5 for norm in norms) else flow.kinds.get(order[0], "neuron")),
        sizes=tuple(sizes),
        norms=tuple(dict.fromkeys(norms)),
    )
