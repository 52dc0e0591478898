"""What an event would keep: evidence, scores and masks, with nothing applied yet."""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.evidence import RunningEvidence, Sources
from prunus.core.groups import Group
from prunus.core.part import Criterion, Growth, Masks, Part
from prunus.core.recipe import Recipe
from prunus.engine.latency import Latency
from prunus.engine.regrow import added, drop, grow
from prunus.engine.score import check_scores, facts, left_out, one_by_one, rate, without
from prunus.engine.select import select
from prunus.engine.shards import gathered
from prunus.engine.walk import blocks_in

if TYPE_CHECKING:
    from prunus.engine.session import Session


def upcoming(session: "Session", *, marks: bool = True) -> Event:
    """The next event that is certain to be carried out, or the last; with `marks=False` one that does not only mark."""
    waiting = (e for e in islice(session.events, session.fired, None) if e.settle is None or e.settle >= 1)
    return next((e for e in waiting if marks or not e.mark), session.events[-1])


def begun(session: "Session", *, marks: bool = True) -> int:
    """The step of the last event that was carried out; with `marks=False` of one that did more than mark."""
    past = (session.events[i] for i in range(session.fired - 1, -1, -1))
    return next((e.step for e in past if e.settle is None and (marks or not e.mark)), 0)


def progress(session: "Session", *, marks: bool = True) -> float:
    """How far the steps since the last event have come towards the next, in [0, 1]."""
    start = begun(session, marks=marks)
    return min(1.0, (session.step - start) / max(1, upcoming(session, marks=marks).step - start))


def sources_of(session: "Session", part: Part, gradients: Mapping[str, Tensor] | None = None) -> Sources:
    """What evidence for `part` may be collected from, at this point of a session."""
    sources = Sources(
        model=session.model,
        task=session.task,
        groups=session.groups,
        parameters=gathered(session.parameters, session.groups),
        generator=session.generator,
        settings=part.settings(),
        gradients=gradients,
    )
    sources.initial, sources.running, sources.masks = session.initial, session.running, session.masks
    asked = part.asks().values()
    if any(getattr(e, "momenta", False) for e in asked):
        sources.momenta = session.momenta()
    sources.progress, sources.step, sources.age = progress(session), session.step, session.step - begun(session)
    sources.left = max(0, upcoming(session, marks=False).step - session.step)
    sources.density = upcoming(session).density
    sources.choose, sources.crew = (lambda scores: wanted(session, scores)), session.crew
    if session.gating is not None and any(getattr(e, "gates", False) for e in asked):
        sources.gates = session.gating.worth()
    if any(getattr(e, "blocks", False) for e in asked):
        sources.blocks = lying_in(tuple(blocks_in(session.model)), session.groups)
    if isinstance(part, Criterion):
        sources.known = session.known
    if isinstance(cost := session.cost, Latency):
        sources.prices = lambda: cost.prices
    return sources


def wanted(session: "Session", scores: dict[str, Tensor] | None = None, density: float | None = None) -> Masks:
    """The masks that the next event would make now; of other scores, or at another density, where they are given."""
    if scores is None:
        criterion = session.recipe.criterion
        scores, _ = rate(criterion, sources_of(session, criterion), session.recipe.granularity.reduce)
    scores = {n: s for n, s in scores.items() if n not in unfit(session)}
    event = upcoming(session)
    masks = {} if event.revive else session.masks
    return chosen(session, scores, event.density if density is None else density, masks, event is session.events[-1])


def ranked(session: "Session", event: Event) -> Masks:
    """The masks of an event that scores and selects. Groups that the recipe says nothing about keep theirs."""
    recipe = session.recipe
    criterion = scored_by(session)
    if apart(session, criterion, event):
        return ranked_apart(session, criterion, event)
    scores, session.skipped = rate(criterion, sources_of(session, criterion), recipe.granularity.reduce)
    check_scores(criterion, scores)
    for name, why in unfit(session).items():
        if scores.pop(name, None) is not None:
            session.skipped[name] = why
    masks = {} if event.revive else session.masks
    found = chosen(session, scores, event.density, masks, event is session.events[-1])
    return found if event.below is None else spared(found, without(scores, masks), event.below)


def apart(session: "Session", criterion: Criterion, event: Event) -> bool:
    """Whether groups of single weights may be scored and chosen from one by one: nothing compares them."""
    return (
        session.recipe.allocate.apart
        and not session.recipe.allocate.asks()
        and session.budget.currency == "units"
        and event.below is None
        and not any(e.per_batch for e in criterion.asks().values())
        and all(g.elementwise for g in session.groups)
    )


def ranked_apart(session: "Session", criterion: Criterion, event: Event) -> Masks:
    """What `ranked` finds, with the scores of one group in memory at a time."""
    out, masks, final = unfit(session), {} if event.revive else session.masks, event is session.events[-1]
    found: Masks = {}
    seen: set[str] = set()
    for name, scores in one_by_one(criterion, sources_of(session, criterion), session.recipe.granularity.reduce):
        seen.add(name)
        if name not in out:
            check_scores(criterion, {name: scores})
            found[name] = chosen(session, {name: scores}, event.density, masks, final)[name]
        del scores  # or it would be there while the next ones are made
    session.skipped = left_out(criterion, seen, session.groups) | {n: why for n, why in out.items() if n in seen}
    return {g.name: found.get(g.name, session.masks[g.name]) for g in session.groups}


def scored_by(session: "Session") -> Criterion:
    """The criterion of the next event."""
    recipe = session.recipe
    return recipe.start if session.fired == 0 and recipe.start is not None else recipe.criterion


def lying_in(blocks: tuple[str, ...], groups: tuple[Group, ...]) -> dict[str, str]:
    """The block in which each group lies, all of its members; empty where there are fewer than two blocks."""
    found = {g.name: n for n in blocks for g in groups if all(m.param.startswith(f"{n}.") for m in g.members)}
    return found if len(blocks) > 1 else {}


def unfit(session: "Session") -> dict[str, str]:
    """The groups that the recipe's allocation does not fit, and why; they stay whole."""
    allocate = session.recipe.allocate
    fits = getattr(allocate, "fits", None)
    out = () if fits is None else (g for g in session.groups if not fits(g.shape, g.weight))
    return {g.name: f"rows of {g.shape[-1]} do not divide into blocks of {allocate}" for g in out}


def spared(found: Masks, scores: Mapping[str, Tensor], below: float) -> Masks:
    """Masks with the units added that are worth at least the share `below` of what the least of the kept is worth."""
    more: Masks = {}
    for name, keep in found.items():
        least = scores[name][keep].min() if name in scores and bool(keep.any()) else None
        more[name] = keep if least is None else keep | (scores[name] >= below * least)
    return more


def chosen(session: "Session", scores: dict[str, Tensor], density: float, masks: Masks, final: bool) -> Masks:
    """What the recipe's allocation keeps at a density; units that `masks` lack are out. Groups without scores keep
    their masks. `final`: whether this is the last event.
    """
    recipe = session.recipe
    scores = without(scores, masks)
    groups = tuple(g for g in session.groups if g.name in scores)
    told = sources_of(session, recipe.allocate)
    told.groups, told.scores, told.final, told.density = groups, scores, final, density
    given = facts(recipe.allocate, told)
    found = select(scores, recipe.allocate, session.budget.at(density), groups, session.cost, given)
    return {g.name: found.get(g.name, session.masks[g.name]) for g in session.groups}


def regrown(session: "Session", event: Event, gradients: Mapping[str, Tensor] | None) -> tuple[Masks, Masks]:
    """The masks of an event that drops and regrows, and what it leaves in between."""
    growth, criterion = session.recipe.grow, session.recipe.criterion
    assert growth is not None
    worth, _ = rate(criterion, sources_of(session, criterion), session.recipe.granularity.reduce)
    promise = promised(session, growth, gradients)
    worth = {n: w for n, w in worth.items() if n in promise}
    left = drop(session.masks, worth, event, {g.name: g.at_least for g in session.groups})
    shares, spread = None, session.recipe.redistribute
    if spread is not None:
        told = sources_of(session, spread, gradients)
        told.survivors = left
        shares = spread(**facts(spread, told))
    promise = {n: p for n, p in promise.items() if n in worth}
    return grow(left, promise, added(session.masks, left, promise, event, shares)), left


def grown(session: "Session", event: Event, gradients: Mapping[str, Tensor] | None) -> Masks:
    """The masks of an event that grows to a density: what is kept stays, the allocation chooses the rest by promise."""
    growth = session.recipe.grow
    assert growth is not None
    promise = promised(session, growth, gradients)
    scores = {n: p.double().masked_fill(session.masks[n], torch.inf) for n, p in promise.items()}
    found = chosen(session, scores, event.density, {}, event is session.events[-1])
    return {n: m | session.masks[n] for n, m in found.items()}


def promised(session: "Session", growth: Growth, gradients: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """What growth says of every unit."""
    promise, _ = rate(growth, sources_of(session, growth, gradients), session.recipe.granularity.reduce)
    check_scores(growth, promise)
    return promise


def distance(a: Masks, b: Masks) -> float:
    """The fraction of units in which two sets of masks differ (the mask distance of You et al. 2020,
    arXiv:1909.11957).
    """
    return sum(count(a[n] != b[n]) for n in a) / max(1, sum(m.numel() for m in a.values()))


def asked_by(recipe: Recipe) -> dict[str, Any]:
    """All evidence that a recipe's parts ask for while it runs: class name -> evidence."""
    return {type(e).__name__: e for part in _asking(recipe) for e in part.asks().values()}


def watched(recipe: Recipe) -> dict[str, tuple[RunningEvidence, dict[str, Any]]]:
    """The evidence that is gathered step by step: key -> (evidence, settings of the part that asks)."""
    asked = ((e, part.settings()) for part in _asking(recipe) for e in part.asks().values())
    return {e.key: (e, settings) for e, settings in asked if isinstance(e, RunningEvidence)}


def _asking(recipe: Recipe) -> tuple[Part, ...]:
    slots = ("criterion", "start", "grow", "redistribute", "allocate", "penalty", "prox")
    return tuple(part for slot in slots if (part := getattr(recipe, slot)) is not None)
