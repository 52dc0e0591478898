"""Scores: collect exactly the evidence a part asks for, call it once per group, reduce to units."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.counting import full
from prunus.core.errors import NothingScored, SpecError, WeightsError
from prunus.core.evidence import Sources
from prunus.core.gate import Gate
from prunus.core.groups import Group, Member
from prunus.core.part import Allocation, Criterion, Growth, Masks, Part, Redistribution, Reduce
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prepare import (
    check_slots,
    check_weights,
    find_groups,
    prepared,
    resolve_recipe,
    resolve_task,
    unwrap,
)
from prunus.graph.duplicate import duplicate


def score(model: nn.Module, task: Task | None, recipe: Recipe | str, *, seed: int = 0) -> dict[str, Tensor]:
    """What every unit is worth under a recipe, before anything is removed.

    Returns: group name -> scores, higher = keep. For single weights the name is the parameter's and the scores have its
    shape; for channels they are `[channels]`. Groups the criterion says nothing about are missing.
    Cost: that of the criterion's evidence. The model is left exactly as it was.
    Errors: `WeightsError` for NaN weights, `SpecError` for a task that lacks what the criterion reads.
    """
    recipe, task, model = resolve_recipe(recipe), resolve_task(task), unwrap(model)
    if recipe.prepare is not None:
        model = prepared(duplicate(model), recipe, task)
    groups = find_groups(model, recipe, task)
    check_weights(model, groups)
    check_slots(recipe, task, groups, 0)
    generator = seeded(seed)
    sources = make_sources(model, task, groups, generator, recipe.criterion)
    if recipe.gate is not None and recipe.gate.trained:
        told = make_sources(model, task, groups, generator, recipe.gate)
        sources.gates = worth_of(recipe.gate, gates_of(recipe.gate, told), groups, told.parameters)
    scores, _ = rate(recipe.criterion, sources, recipe.granularity.reduce)
    by_name = {g.name: g for g in groups}
    return {n: s.reshape(by_name[n].weight) if by_name[n].elementwise else s for n, s in scores.items()}


def seeded(seed: int) -> torch.Generator:
    """The session's only source of randomness: apart from what `torch.manual_seed(seed)` gives.

    Initial weights are often drawn with the same small number: from the same stream, random masks would depend on them.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SpecError(f"seed={seed!r} must be a whole number: the same seed gives the same masks")
    digest = hashlib.sha256(f"prunus {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def make_sources(
    model: nn.Module,
    task: Task,
    groups: tuple[Group, ...],
    generator: torch.Generator,
    part: Part,
    gradients: Mapping[str, Tensor] | None = None,
) -> Sources:
    """What evidence for `part` may be collected from."""
    return Sources(model, task, groups, dict(model.named_parameters()), generator, part.settings(), gradients)


def acting(group: Group) -> tuple[Member, ...]:
    """The members that a gate multiplies: single weights and boxes themselves; of a unit, what it is read with.

    Of a residual branch, the parameters that it ends in, where all of the group do. None of other units that own whole
    parameters (experts, blocks): several gated weights in a row would count a gate twice.
    """
    if group.members[0].unit is not None:
        ends = getattr(group, "ends", ())
        return tuple(m for m in group.members if m.unit is not None and ends and m.param in ends[m.unit] and all(ends))
    return group.with_role("in") if group.movable else group.with_role("out")


def gates_of(part: Gate, sources: Sources) -> dict[str, Tensor]:
    """What gates start from, by group; groups on which they are undefined are missing.

    Errors: `SpecError` where they are defined on none.
    """
    fits = getattr(part, "fits", None)
    sources.groups = tuple(g for g in sources.groups if acting(g) and (fits is None or fits(g.shape)))
    thetas, _ = rate(part, sources, "sum")
    return thetas


def worth_of(
    part: Gate, thetas: Mapping[str, Tensor], groups: tuple[Group, ...], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Group name -> `[*units]`, what gates say that units are worth."""
    found: dict[str, Tensor] = {}
    for g in (g for g in groups if g.name in thetas):
        theta = thetas[g.name].detach()
        worth = part.worth_over(theta, behind(g, parameters)) if part.sees else part.worth(theta)
        found[g.name] = worth.expand(g.shape)
    return found


def behind(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """`[*units, k]`: the weights that produce a group's units; no gradient goes to them."""
    makers = group.with_role("out")
    return group.views(makers, {m.param: parameters[m.param].detach() for m in makers})


def facts(part: Allocation | Redistribution, sources: Sources) -> dict[str, Any]:
    """What a part that sees all groups at once asks to be told: parameter name -> tensors by group.

    Of evidence that comes batch by batch it is told the first batch's.
    """
    return {name: next(iter(e.collect(sources))) for name, e in part.asks().items()}


def rate(part: Criterion | Growth | Gate, sources: Sources, reduce: Reduce) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scores per group, and the groups left out with the reason (evidence undefined there)."""
    evidence = part.asks()
    known = {name: iter([given]) for name, given in sources.known.items()}
    streams = {name: known[name] if name in known else e.collect(sources) for name, e in evidence.items()}
    batched = [name for name, e in evidence.items() if e.per_batch]
    fixed = {name: next(streams[name]) for name in streams if name not in batched}
    rounds = zip(*(streams[name] for name in batched), strict=True) if batched else iter([()])
    scores: dict[str, Tensor] = {}
    count = 0
    for values in rounds:
        given = fixed | dict(zip(batched, values, strict=True))
        for group in sources.groups:
            if all(group.name in g for g in given.values()):
                one = reduced(part(**{n: g[group.name] for n, g in given.items()}), group, reduce, part)
                scores[group.name] = scores[group.name] + one if group.name in scores else one
        count += 1
    if batched:
        scores = _mean(scores, count)
    return scores, left_out(part, scores, sources.groups)


def one_by_one(part: Criterion, sources: Sources, reduce: Reduce) -> Iterator[tuple[str, Tensor]]:
    """The same scores, of one group after the other, of a part whose evidence does not come batch by batch."""
    known = {name: iter([given]) for name, given in sources.known.items()}
    given = {name: next(known.get(name) or e.collect(sources)) for name, e in part.asks().items()}
    for group in sources.groups:
        if all(group.name in g for g in given.values()):
            yield group.name, reduced(part(**{n: g[group.name] for n, g in given.items()}), group, reduce, part)


def left_out(part: Part, scores: Collection[str], groups: tuple[Group, ...]) -> dict[str, str]:
    """The groups that a part does not score, and why. Errors: `NothingScored` where that is all of them."""
    if not scores:
        asked = ", ".join(type(e).__name__.removesuffix("Evidence") for e in part.asks().values())
        raise NothingScored(
            f"{type(part).__name__} scores nothing here: its evidence ({asked}) is defined on none of the "
            f"{len(groups)} groups of this model at this granularity"
        )
    what = f"{type(part).__name__} is undefined there"
    return {g.name: what for g in groups if g.name not in scores}


def reduced(values: Tensor, group: Group, reduce: Reduce, part: Criterion | Growth | Gate) -> Tensor:
    """`[*units]` from what a criterion returned: itself, or its entries reduced over each unit. What gates start from
    keeps its own shape.
    """
    if isinstance(part, Gate):
        return values.squeeze(-1) if tuple(values.shape) == (*group.shape, 1) else values
    if values.ndim == len(group.shape) + 1:
        if values.shape[-1] == 1:
            values = values.squeeze(-1)
        elif reduce == "l2":
            values = torch.linalg.vector_norm(values, dim=-1)
        elif reduce == "max":
            values = values.amax(dim=-1)
        else:
            values = values.sum(dim=-1) if reduce == "sum" else values.mean(dim=-1)
    if tuple(values.shape) != tuple(group.shape):
        raise SpecError(
            f"{type(part).__name__} returned {tuple(values.shape)} for group {group.name!r}; expected one score per "
            f"unit {group.shape} or per entry {(*group.shape, 'k')}"
        )
    return values


def without(scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Scores with pruned units at -inf, so that iterating only ever removes more."""
    out: dict[str, Tensor] = {}
    for name, s in scores.items():
        if name in masks and not full(masks[name]):
            s = s.double() if not s.is_floating_point() else s
            s = s.masked_fill(~masks[name], -torch.inf)
        out[name] = s
    return out


def check_scores(part: Criterion | Growth, scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that cannot be ordered, naming the group."""
    for name, s in scores.items():
        if s.is_floating_point() and torch.isnan(s.sum()) and torch.isnan(s).any():
            raise WeightsError(
                f"{type(part).__name__} gives NaN for {int(torch.isnan(s).sum())} of {s.numel()} units of {name!r}: "
                f"look for NaN in the batches, the loss or its gradients"
            )


def _mean(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Scores summed over batches, averaged over batches and over the ranks of a distributed run."""
    scores = {n: s / count for n, s in scores.items()}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for s in scores.values():
            torch.distributed.all_reduce(s)
            s /= torch.distributed.get_world_size()
    return scores
