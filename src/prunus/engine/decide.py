"""What an event would keep: evidence, scores and masks, with nothing applied yet."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.evidence import RunningEvidence, Sources
from prunus.core.part import Allocation, Criterion, Growth, Masks
from prunus.core.recipe import Recipe
from prunus.engine.regrow import regrow
from prunus.engine.score import check_scores, facts, make_sources, rate, without
from prunus.engine.select import select

if TYPE_CHECKING:
    from prunus.engine.session import Session


def sources_of(
    session: "Session", part: Criterion | Growth | Allocation, gradients: Mapping[str, Tensor] | None = None
) -> Sources:
    """What evidence for `part` may be collected from, at this point of a session."""
    sources = make_sources(session.model, session.task, session.groups, session.generator, part, gradients)
    sources.initial, sources.running, sources.masks = session.initial, session.running, session.masks
    if session.gating is not None:
        sources.gates = session.gating.worth()
    return sources


def ranked(session: "Session", event: Event) -> Masks:
    """The masks of an event that scores and selects. Groups that the recipe says nothing about keep theirs."""
    recipe = session.recipe
    first = session.fired == 0 and recipe.start is not None
    criterion = recipe.start if first and recipe.start is not None else recipe.criterion
    scores, session.skipped = rate(criterion, sources_of(session, criterion), recipe.granularity.reduce)
    check_scores(criterion, scores)
    if (fits := getattr(recipe.allocate, "fits", None)) is not None:
        for group in session.groups:
            if group.name in scores and not fits(group.shape, group.weight):
                del scores[group.name]
                session.skipped[group.name] = (
                    f"rows of {group.shape[-1]} do not divide into blocks of {recipe.allocate}"
                )
    masks = {} if event.revive else session.masks
    return chosen(session, scores, event.density, masks, event is session.events[-1])


def chosen(session: "Session", scores: dict[str, Tensor], density: float, masks: Masks, final: bool) -> Masks:
    """What the recipe's allocation keeps at a density; units that `masks` lack are out. Groups without scores keep
    their masks. `final`: whether this is the last event.
    """
    recipe = session.recipe
    scores = without(scores, masks)
    groups = tuple(g for g in session.groups if g.name in scores)
    told = sources_of(session, recipe.allocate)
    told.groups, told.scores, told.final = groups, scores, final
    given = facts(recipe.allocate, told)
    found = select(scores, recipe.allocate, session.budget.at(density), groups, session.cost, given)
    return {g.name: found.get(g.name, session.masks[g.name]) for g in session.groups}


def regrown(session: "Session", event: Event, gradients: Mapping[str, Tensor] | None) -> Masks:
    """The masks of an event that drops and regrows."""
    grow, criterion, reduce = session.recipe.grow, session.recipe.criterion, session.recipe.granularity.reduce
    assert grow is not None
    worth, _ = rate(criterion, sources_of(session, criterion), reduce)
    promise, _ = rate(grow, sources_of(session, grow, gradients), reduce)
    check_scores(grow, promise)
    return regrow(session.masks, worth, promise, event.regrow)


def distance(a: Masks, b: Masks) -> float:
    """The fraction of units in which two sets of masks differ (the mask distance of You et al. 2020,
    arXiv:1909.11957).
    """
    return sum(count(a[n] != b[n]) for n in a) / max(1, sum(m.numel() for m in a.values()))


def asked_by(recipe: Recipe) -> dict[str, Any]:
    """All evidence that a recipe's criteria and allocation ask for: class name -> evidence."""
    parts = [p for p in (recipe.criterion, recipe.start, recipe.grow, recipe.allocate) if p is not None]
    return {type(e).__name__: e for p in parts for e in p.asks().values()}


def watched(recipe: Recipe) -> dict[str, tuple[RunningEvidence, dict[str, Any]]]:
    """The evidence that is gathered step by step: key -> (evidence, settings of the part that asks)."""
    parts = [p for p in (recipe.criterion, recipe.start, recipe.grow) if p is not None]
    return {e.key: (e, p.settings()) for p in parts for e in p.asks().values() if isinstance(e, RunningEvidence)}
