"""Try out what belongs to the experts of a router, and how few of them can be left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.groups import Group, Member, Role
from prunus.core.task import Example
from prunus.graph.compact import compact
from prunus.graph.depth.trial import Trials
from prunus.graph.mixture.flow import Choice, Choices, Gate
from prunus.graph.mixture.group import Count, ExpertGroup, some_experts, turns
from prunus.graph.running import mapped
from prunus.graph.verify import differ, largest_difference, outputs, reference

FAILURES = (DataError, StructureError, VerificationError)
Masks = Mapping[str, Bool[Tensor, "..."]]
OTHERWISE = "removing experts changes the output"

_COUNT = re.compile(
    r"_?(moe_)?((n|num|nr|number_of|total)_?)?((local|routed|moe|sparse)_)?experts?(_(num|count|number))?"
)
"""Names of the number of experts: where a forward does not read it, nothing else says what an integer counts."""


@dataclass(frozen=True)
class Site:
    """A place where a model may choose among experts.

    Attributes:
        scope: the path of a module that is called and holds all of it.
        routers: the weights that may give the logits, with what is seen of the choice.
        lists: the paths of lists with one entry per expert.
        stacks: the tensors with one slice per expert along their first axis.
        met: by router, the tensors with one number per expert that its logits are combined with.
        flat: each of the stacks has several rows per expert, one expert's after the other's.
    """

    scope: str
    routers: tuple[tuple[str, int, Choice], ...]
    lists: tuple[str, ...]
    stacks: tuple[str, ...]
    met: Mapping[str, frozenset[str]]
    flat: bool = False

    @property
    def name(self) -> str:
        """The path of the experts."""
        return self.lists[0] if self.lists else self.stacks[0].rpartition(".")[0] or self.stacks[0]


class Bench:
    """A float64 copy of a model on which experts are set aside, changed and removed."""

    def __init__(self, model: nn.Module, example: Example | Tensor, seed: int) -> None:
        trials = Trials(model, example, seed)
        self.model, self.inputs, self.tol = trials.model, trials.inputs, trials.tol
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.plain = outputs(self.model, self.inputs[0])
        self.many = self._repeated()

    def _repeated(self) -> list[Example | Tensor]:
        """The inputs three times, one after the other, where the model takes as many."""
        many = mapped(self.inputs[0], lambda t: torch.cat([t] * 3) if t.dim() else t)
        try:
            outputs(self.model, many)
        except DataError:
            return []
        return [many]

    def choices(self, model: nn.Module) -> Choices:
        """What one run of a model shows of its choices."""
        flow = Choices(model)
        with flow:
            outputs(model, self.inputs[0], flow.path)
        return flow

    def examine(self, site: Site) -> list[ExpertGroup] | str:
        """The groups of a site, or why there is none.

        Each router by itself; if none works, all together (experts that several routers share, one for each task).
        """
        found: list[ExpertGroup] = []
        reason = ""
        for router in site.routers:
            if any(router[0] == m.param for g in found for m in g.members):
                continue
            group = self._routed_by(site, (router,))
            if isinstance(group, ExpertGroup):
                found.append(group)
            else:
                reason = reason or group
        if (
            not found
            and len(site.routers) > 1
            and isinstance(group := self._routed_by(site, site.routers), ExpertGroup)
        ):
            found.append(group)
        return found or reason

    def _routed_by(self, site: Site, routers: Sequence[tuple[str, int, Choice]]) -> ExpertGroup | str:
        experts, parts = routers[0][2].experts, max(c.parts for _, _, c in routers)
        names = " and ".join(n for n, _, _ in routers)
        most = max(c.most for _, _, c in routers)
        least = -(-max(most, parts * max(c.each for _, _, c in routers), 1) // parts) * parts
        if least >= experts:
            return f"all {experts} experts are needed: {names} chooses {most or least} of them at once"
        members = tuple(Member(n, d, role="other") for n, d, _ in routers)
        bare = ExpertGroup(
            site.name, (experts,), members, at_least=least, multiple=parts, parts=parts, kind="expert",
            scope=site.scope, gates=tuple(Gate(n, d) for n, d, _ in routers),
        )  # fmt: skip
        kept = max(least, experts // 2 // parts * parts)
        for _ in range(4):
            keep = some_experts(bare, kept, self.generator)
            try:
                aside = self._aside(bare, keep)
            except FAILURES as failure:
                return f"tried and found not removable: {failure}"
            if any(bool(t.isnan().any()) for t in aside):
                return f"with logits of minus infinity from {names} the output is not a number"
            if self._differ(aside, self.plain) > self.tol:
                break
        else:
            return f"which experts {names} chooses makes no difference for the example"
        found = self._members(site, bare, keep, aside)
        return found if isinstance(found, str) else self._counted(found)

    # What belongs to an expert: what makes no difference once its logit is minus infinity.

    def _members(
        self, site: Site, bare: ExpertGroup, keep: Bool[Tensor, "units"], aside: list[Tensor]
    ) -> ExpertGroup | str:
        gates, members = list(bare.gates), list(bare.members)
        shapes = {n: tuple(t.shape) for n, t in self.tensors.items()}
        met = frozenset[str]().union(*(site.met[g.tensor] for g in gates))
        lists: list[str] = []
        for path in site.lists:
            entries = list(self.model.get_submodule(path)._modules)
            own = {u: [n for n in self.tensors if n.startswith(f"{path}.{e}.")] for u, e in enumerate(entries)}
            gone = [(n, None) for u, names in own.items() if not keep[u] for n in names]
            every = [(n, None) for names in own.values() for n in names]
            if not self._dead(gone, keep, bare, aside) or self._idle(every):
                continue
            lists.append(path)
            members += [
                Member(n, role=role_of(n, shapes[n]), buffer=not self._is_parameter(n), unit=u)
                for u, names in own.items()
                for n in names
            ]
        inside = tuple(f"{path}." for path in lists)
        prefix = f"{site.scope}." if site.scope else ""
        known = {(g.tensor, g.dim) for g in gates}
        idle: list[str] = []
        for name, shape in shapes.items():
            if not name.startswith(prefix) or name.startswith(inside):
                continue
            for dim, size in enumerate(shape):
                if (name, dim) in known or not (size == bare.units or (site.flat and size and size % bare.units == 0)):
                    continue
                if self._idle([(name, None)]):
                    idle += [name] if dim == 0 else []
                elif self._dead([(name, dim)], keep, bare, aside):
                    matrix = name in site.stacks and "bias" not in name.rpartition(".")[2]
                    members.append(self._member(name, dim, bare.units, role="out" if matrix else None))
                elif name in met and self.tensors[name].is_floating_point():
                    # The scores that are compared are made of the logits and another number per expert.
                    gates.append(Gate(name, dim))
                    members.append(self._member(name, dim, bare.units, role="other"))
                else:
                    continue
                break
        used = {shapes[m.param] for m in members if m.unit is None} | {(bare.units,)}
        members += [self._member(n, 0, bare.units, role="other") for n in idle if shapes[n] in used]
        stacks = [n for n in site.stacks if any(n == m.param for m in members)]
        if not lists and not stacks:
            copies, names = (*site.lists, *site.stacks)[0], " and ".join(g.tensor for g in bare.gates)
            return f"what {names} does not choose of {copies} makes a difference all the same (or none at all)"
        members.sort(key=lambda m: (m.buffer, m.role != "out"))
        if members[0].role != "out" or members[0].buffer:
            return "no parameters belong to the experts"
        site = replace(site, lists=tuple(lists), stacks=tuple(stacks))
        return replace(bare, name=site.name, members=tuple(members), gates=tuple(gates), lists=site.lists)

    def _member(self, name: str, dim: int, experts: int, role: Role | None = None) -> Member:
        shape = list(self.tensors[name].shape)
        rows = shape[dim] // experts
        shape[dim : dim + 1] = [rows] if rows > 1 else []
        index = torch.arange(experts * rows).view(experts, rows) if rows > 1 else None
        return Member(name, dim, index, role or role_of(name, tuple(shape)), not self._is_parameter(name))

    def _is_parameter(self, name: str) -> bool:
        return isinstance(self.tensors[name], nn.Parameter)

    def _aside(self, group: ExpertGroup, keep: Bool[Tensor, "units"]) -> list[Tensor]:
        with group.aside(self.model, keep):
            return outputs(self.model, self.inputs[0])

    def _dead(
        self,
        slices: Sequence[tuple[str, int | None]],
        keep: Bool[Tensor, "units"],
        group: ExpertGroup,
        aside: list[Tensor],
    ) -> bool:
        """Whether these slices (of the experts that are away, where an axis is named) make no difference."""
        with self._changed(slices, ~keep):
            try:
                return self._differ(aside, self._aside(group, keep)) <= self.tol
            except FAILURES:
                return False

    def _idle(self, slices: Sequence[tuple[str, int | None]]) -> bool:
        with self._changed(slices, None):
            try:
                return self._differ(self.plain, outputs(self.model, self.inputs[0])) <= self.tol
            except FAILURES:
                return False

    @contextmanager
    def _changed(self, slices: Sequence[tuple[str, int | None]], away: Bool[Tensor, "units"] | None) -> Iterator[None]:
        saved = {name: self.tensors[name].detach().clone() for name, _ in slices}
        try:
            for name, dim in slices:
                old, tensor = saved[name], self.tensors[name].detach()
                new = torch.zeros_like(old)
                if old.is_floating_point():
                    drawn = torch.randn(old.shape, generator=self.generator, dtype=torch.float64)
                    new = old + (drawn * (1 + old.abs().max().cpu())).to(old)
                if dim is None or away is None:
                    tensor.copy_(new)
                else:
                    lying = [1] * old.dim()
                    lying[dim] = -1
                    gone = away.repeat_interleave(old.shape[dim] // away.numel()).reshape(lying)
                    tensor.copy_(torch.where(gone.to(old.device), new, old))
            yield
        finally:
            for name, tensor in saved.items():
                self.tensors[name].detach().copy_(tensor)

    def _differ(self, one: list[Tensor], other: list[Tensor]) -> float:
        if any(bool(t.isnan().any()) for t in other):
            return float("inf")
        return largest_difference(one, other)

    # Which integers follow, and how few experts can be left.

    def _counted(self, group: ExpertGroup) -> ExpertGroup | str:
        """With the integers in its scope that repeat the number of experts: those that are called so, and those
        without which the model does not run. And with the fewest experts that can be left."""
        named, others = counts_in(self.model, group)
        ways = [named, named + [c for c in others if c.each == 1], named + others]
        half = max(group.at_least, group.units // 2 // group.parts * group.parts)
        failure = ""
        # Where it is not to be seen how many are chosen at once, half of them may be too few.
        for kept in dict.fromkeys((half, group.units - group.parts)):
            for way in dict.fromkeys(map(tuple, ways)):
                trial = replace(group, counts=way)
                if (reason := self._tries(trial, kept)) is not None:
                    failure = failure or reason
                    continue
                for count in way[len(named) :]:
                    fewer = replace(trial, counts=tuple(c for c in trial.counts if c != count))
                    trial = fewer if self._tries(fewer, kept) is None else trial
                return self._least(trial, kept)
            if failure.startswith(OTHERWISE) and group.parts == 1:
                break
        return f"tried and found not removable: {failure}"

    def _least(self, group: ExpertGroup, enough: int) -> ExpertGroup | str:
        """With as few experts as can be left.

        A choice among too few does not run. If it runs and gives something else, the forward depends on how many there
        are (a capacity), and what was seen to be equal was so by chance. Only where experts are chosen part by part
        can too few of them lead to a choice of those that are closed.
        """
        for kept in range(group.at_least, enough, group.parts):
            if (reason := self._tries(group, kept)) is None:
                enough = kept
                break
            if reason.startswith(OTHERWISE) and group.parts == 1:
                return f"tried and found not removable: {reason}"
        return replace(group, at_least=enough, routed=self._routed(group, enough))

    def _tries(self, group: ExpertGroup, kept: int) -> str | None:
        """Why that many cannot be left, so that every expert was removed once."""
        for keep in turns(group, kept, self.generator):
            if (failure := self.attempt([group], {group.name: keep})) is not None:
                return failure
        return None

    def _routed(self, group: ExpertGroup, kept: int) -> bool:
        """Whether the experts do more than their share of the multiply-accumulates when fewer are left."""
        small, _ = compact(self.model, [group], {group.name: some_experts(group, kept, self.generator)}, verify=False)
        names = {m.param for m in group.members} - {g.tensor for g in group.gates}
        paths = tuple(f"{path}." for path in group.lists)
        before, after = (
            sum(macs for n, macs in self.choices(m).macs.items() if n in names or n.startswith(paths))
            for m in (self.model, small)
        )
        return after * group.units * 2 >= before * (group.units + kept)

    def attempt(self, groups: Sequence[Group], masks: Masks, more: bool = False) -> str | None:
        """Why the model without these experts is not the one that never chooses them; with `more`, also on three
        times as many inputs, of which experts of a limited capacity drop others."""
        try:
            dense = reference(self.model, groups, masks)
            small, _ = compact(self.model, groups, masks, verify=False)
            for inputs in [*self.inputs, *(self.many if more else ())]:
                expected = outputs(dense, inputs)
                if any(bool(t.isnan().any()) for t in expected):
                    return "the output is not a number"
                error = differ(expected, small, inputs)
                if not error <= self.tol:
                    return f"{OTHERWISE} by {error:.1e}"
        except FAILURES as failure:
            return str(failure)
        return None

    @contextmanager
    def rerouted(self, groups: Sequence[ExpertGroup]) -> Iterator[None]:
        """Routers drawn anew, so that tokens go to other experts."""
        with self._changed([(g.gates[0].tensor, None) for g in groups], None):
            yield


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """The role of an expert's share of a tensor, by its shape: matrices are what it weighs."""
    if sum(n > 1 for n in shape) > 1:
        return "out"
    if not shape:
        return "other"
    return "bias" if "bias" in name.rpartition(".")[2] else "scale"


def counts_in(model: nn.Module, group: ExpertGroup) -> tuple[list[Count], list[Count]]:
    """Integers that may repeat the number of experts: those that are called so, on the way to the scope and in it, and
    all others in it that have its value (or that of a part).
    """
    named: list[Count] = []
    others: list[Count] = []
    for path, module in model.named_modules():
        within = path == group.scope or path.startswith(f"{group.scope}." if group.scope else "")
        if not within and path and not group.scope.startswith(f"{path}."):
            continue
        if any(path.startswith(f"{entries}.") for entries in group.lists):
            continue
        for target, key, value in _integers(module, f"{path}." if path else ""):
            if value == group.units and _COUNT.fullmatch(key):
                named.append(Count(target))
            elif within and value == group.units:
                others.append(Count(target))
            elif within and group.parts > 1 and value * group.parts == group.units:
                others.append(Count(target, group.parts))
    return named, sorted(others, key=lambda c: c.each)


def _integers(module: nn.Module, prefix: str) -> Iterator[tuple[str, str, int]]:
    """The integers that a module keeps, in plain objects such as a configuration too: path, name, value."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield prefix + key, key, value
        elif not isinstance(value, nn.Module | Tensor | type | torch.dtype) and not callable(value):
            inner: dict[str, Any] = getattr(value, "__dict__", {})
            yield from ((f"{prefix}{key}.{k}", k, v) for k, v in inner.items() if type(v) is int)
