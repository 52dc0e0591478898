"""Which experts of a model's mixtures can be removed whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from prunus.core.errors import StructureError
from prunus.core.groups import Member
from prunus.core.task import Example
from prunus.graph.depth.drop import CONTAINERS
from prunus.graph.mixture.flow import Choice, Choices, Gate
from prunus.graph.mixture.group import Count, ExpertGroup, holder, turns
from prunus.graph.mixture.trial import Bench, Site, counts_in
from prunus.graph.running import unwrap


@dataclass(frozen=True)
class Experts:
    """What of a model's mixtures of experts can be removed, and what cannot and why.

    Attributes:
        groups: one per router, in the order of the model. Its name is the path of its experts.
        refused: the path of the experts (or of the router) of every other one -> the reason.
    """

    groups: tuple[ExpertGroup, ...]
    refused: dict[str, str]


def experts(
    model: nn.Module, example: Example | Tensor, *, exclude: Sequence[str] = (), at_least: int = 1, seed: int = 0
) -> Experts:
    """The experts that can be removed whole, in the sense of `ExpertGroup`: routing goes on over those that stay.

    A router is a weight whose product with activations reaches, along an axis of E numbers, a softmax, a sigmoid or a
    choice of the largest. Experts are what lies nearest to it in E copies: slices of tensors along their first axis, or
    entries of a list; or, where there is neither, E equal numbers of rows of matrices. What belongs to an expert is
    found by trying, in float64: it makes no difference, whatever its values, once the expert's logit is minus infinity.
    Then random experts are removed and the result is compared with the model in which their logits are minus infinity;
    the fewest that can be left is found in the same way (at least the number that is chosen at once). Where experts are
    chosen part by part, the parts stay equally large.

    Args:
        model: any module; left as it is.
        example: inputs; many different tokens are best, since only experts that are chosen can be judged.
        exclude: paths of groups or names of tensors of which the experts stay.
        at_least: how many experts every router keeps.
        seed: of the random values.

    Cost: a float64 copy, one run under the dependency engine, and for each mixture of a new kind about thirty runs and
    five copies; for each further one of the same kind nothing but its share of the last few runs.

    Raises:
        DataError: the model cannot run the example.
        StructureError: the parameters have no values (meta device, lazy modules), so nothing can be tried.
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise StructureError(
                f"{name} has no values, and experts are found by running the model: load weights (random ones will do)"
            )
    bench = Bench(model, example, seed)
    flow = bench.choices(bench.model)
    found: list[ExpertGroup] = []
    reasons: dict[str, str] = {}
    known: dict[tuple[object, ...], list[ExpertGroup] | str] = {}
    failures: Counter[tuple[object, ...]] = Counter()
    for site in sites(bench.model, flow):
        if site.flat and any(m.param == n for n, _, _ in site.routers for g in found for m in g.members):
            continue
        key = _form(bench.model, site)
        # What fails in one place may work in another, where tokens are sent to other experts.
        if key not in known or (isinstance(known[key], str) and failures[key] < 2):
            known[key] = bench.examine(site)
            failures[key] += isinstance(known[key], str)
        groups = known[key]
        if isinstance(groups, str):
            reasons |= {} if site.flat else {site.name: groups}
        else:
            found += [_moved(group, site.scope) for group in groups]
    names = {g.name for g in found}
    refused = {name: why for name, why in reasons.items() if name not in names}
    found = _shared(model, found, refused)
    away = set(exclude)
    chosen = [g for g in found if not away & {g.name, *(m.param for m in g.members)}]
    kept = _together(bench, chosen, refused)
    groups = [replace(g, at_least=_least(g, at_least)) for g in kept]
    refused |= {g.name: f"all {g.units} experts are to stay" for g in groups if g.at_least >= g.units}
    return Experts(tuple(g for g in groups if g.at_least < g.units), refused)


def sites(model: nn.Module, flow: Choices) -> list[Site]:
    """The places where experts may be: each router with the nearest copies of as many; where there are none, with
    matrices that may hold the rows of all experts."""
    found: dict[tuple[str, tuple[str, ...], tuple[str, ...], bool], list[tuple[str, int, Choice]]] = {}
    for (router, dim), choice in flow.found.items():
        if choice.experts < 2:
            continue
        steps = router.split(".")[:-1]
        above = [".".join(steps[:n]) for n in range(len(steps), -1, -1)]
        called = [scope for scope in above if scope in flow.ran or not scope]
        near = (_near(model, flow, scope, router, choice.experts, thin) for scope in above for thin in (False, True))
        copies = next((pair for pair in near if any(pair)), None)
        if copies is not None:
            paths = (*copies[0], *(n.rpartition(".")[0] for n in copies[1]))
            scope = next(s for s in called if not s or all(f"{p}.".startswith(f"{s}.") for p in paths))
            found.setdefault((scope, *copies, False), []).append((router, dim, choice))
        elif choice.chosen:
            for scope in called[:_LEVELS]:
                if flat := _rows(model, flow, scope, router, choice.experts):
                    found.setdefault((scope, (), flat, True), []).append((router, dim, choice))
    return [
        Site(scope, tuple(routers), lists, stacks, {n: flow.met(n, d) for n, d, _ in routers}, flat)
        for (scope, lists, stacks, flat), routers in found.items()
    ]


_LEVELS = 3
"""How far up from a router matrices are looked for that hold the rows of all experts."""


def _rows(model: nn.Module, flow: Choices, scope: str, router: str, experts: int) -> tuple[str, ...]:
    """The matrices in a module that have several rows for each expert."""
    return tuple(
        n
        for n, p in model.named_parameters()
        if n.startswith(f"{scope}." if scope else "") and n != router and p.dim() > 1
        and p.shape[0] > experts and p.shape[0] % experts == 0 and not flow.convolved(n)
    )  # fmt: skip


def _near(
    model: nn.Module, flow: Choices, scope: str, router: str, experts: int, thin: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lists and stacks of this many entries in a module, but for those that the router is a part of; with `thin`,
    matrices with as many rows, which make no features."""
    lists: list[str] = []
    for path, module in model.get_submodule(scope).named_modules(prefix=scope):
        if isinstance(module, CONTAINERS) and len(module._modules) == experts and not router.startswith(f"{path}."):
            entries = list(module._modules.values())
            full = all(e is not None and any(True for _ in e.parameters()) for e in entries)
            if full and path and not any(path.startswith(f"{p}.") for p in lists):
                lists.append(path)
    prefix = f"{scope}." if scope else ""
    stacks = [
        n
        for n, p in model.named_parameters()
        if n.startswith(prefix) and n != router and p.dim() > 1 and p.shape[0] == experts
        and (p.dim() > 2 or (thin and flow.part(n, 0) != "out"))
        and not flow.convolved(n) and not n.startswith(tuple(f"{p}." for p in lists))
    ]  # fmt: skip
    return tuple(lists), tuple(stacks)


def _form(model: nn.Module, site: Site) -> tuple[object, ...]:
    """Equal for places that are alike: the same names with the same shapes in modules of one class."""
    cut = len(site.scope) + 1 if site.scope else 0
    scope = model.get_submodule(site.scope)
    choices = tuple((n[cut:], d, c.experts, c.most, c.parts, c.each) for n, d, c in site.routers)
    shapes = tuple((n, tuple(t.shape)) for n, t in (*scope.named_parameters(), *scope.named_buffers()))
    return type(scope), choices, tuple(p[cut:] for p in (*site.lists, *site.stacks)), shapes


def _moved(group: ExpertGroup, scope: str) -> ExpertGroup:
    """The group of a place that is like another's."""
    old = f"{group.scope}." if group.scope else ""

    def there(name: str) -> str:
        return f"{scope}.{name[len(old) :]}" if name.startswith(old) else name

    if group.scope == scope:
        return group
    return replace(
        group,
        name=there(group.name) if group.name != group.scope else scope,
        scope=scope,
        members=tuple(Member(there(m.param), m.dim, m.index, m.role, m.buffer, m.unit) for m in group.members),
        gates=tuple(Gate(there(g.tensor), g.dim) for g in group.gates),
        lists=tuple(there(path) for path in group.lists),
        counts=tuple(Count(there(c.target), c.each) for c in group.counts),
    )


def _shared(model: nn.Module, found: list[ExpertGroup], refused: Mapping[str, str]) -> list[ExpertGroup]:
    """Integers outside of the scopes, and configurations, speak for several routers, or for one that is refused."""
    named = [list(g.counts) + [c for c in counts_in(model, g)[0] if c.target not in {o.target for o in g.counts}]
             for g in found]  # fmt: skip
    users = Counter(key for own in named for key in {holder(model, c.target) for c in own})
    several = len(refused) > 0
    result = []
    for group, own in zip(found, named, strict=True):
        counts = []
        for c in own:
            count = users[holder(model, c.target)]
            outside = not c.target.startswith(f"{group.scope}." if group.scope else "")
            # It may speak for what is refused too, and so must not change: more users than there are groups.
            counts.append(c._replace(users=count + (several and outside)))
        result.append(replace(group, counts=tuple(counts)))
    return result


def _together(bench: Bench, groups: list[ExpertGroup], refused: dict[str, str]) -> list[ExpertGroup]:
    """Those of which some can be removed at once, whichever experts tokens go to."""

    def failure(part: list[ExpertGroup]) -> str | None:
        masks = {g.name: turns(g, _some(g), bench.generator) for g in part}
        ways = max(len(own) for own in masks.values())
        for i in range(ways):
            way = {name: own[i % len(own)] for name, own in masks.items()}
            with bench.rerouted(part if i % 2 else ()):
                if (reason := bench.attempt(part, way, more=i == 0)) is not None:
                    return reason
        return None

    if not groups or (reason := failure(groups)) is None:
        return groups
    good = []
    for group in groups:
        if (reason := failure([group])) is None:
            good.append(group)
        else:
            refused[group.name] = f"tried and found not removable: {reason}"
    while len(good) > 1 and (reason := failure(good)) is not None:
        refused[good.pop().name] = f"tried and found not removable together with others: {reason}"
    return good


def _some(group: ExpertGroup) -> int:
    return max(group.at_least, (group.units * 3 // 5) // group.parts * group.parts)


def _least(group: ExpertGroup, asked: int) -> int:
    return max(group.at_least, -(-asked // group.parts) * group.parts)
