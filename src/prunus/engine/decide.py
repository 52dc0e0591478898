"""What an event would keep: evidence, scores and masks, with nothing applied yet."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.evidence import RunningEvidence, Sources
from prunus.core.part import Masks, Part
from prunus.core.recipe import Recipe
from prunus.engine.regrow import regrow
from prunus.engine.score import check_scores, facts, rate, without
from prunus.engine.select import select

if TYPE_CHECKING:
    from prunus.engine.session import Session


def upcoming(session: "Session", *, marks: bool = True) -> Event:
    """The next event that is certain to be carried out, or the last; with `marks=False` one that does not only mark."""
    waiting = (e for e in session.events[session.fired :] if e.settle is None or e.settle >= 1)
    return next((e for e in waiting if marks or not e.mark), session.events[-1])


def begun(session: "Session", *, marks: bool = True) -> int:
    """The step of the last event that was carried out; with `marks=False` of one that did more than mark."""
    done = (e for e in session.events[: session.fired] if e.settle is None and (marks or not e.mark))
    return max((e.step for e in done), default=0)


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
        parameters=session.parameters,
        generator=session.generator,
        settings=part.settings(),
        gradients=gradients,
    )
    sources.initial, sources.running, sources.masks = session.initial, session.running, session.masks
    asked = part.asks().values()
    if any(getattr(e, "momenta", False) for e in asked):
        sources.momenta = session.momenta()
    sources.progress, sources.step, sources.age = progress(session), session.step, session.step - begun(session)
    sources.choose = lambda scores: wanted(session, scores)
    if session.gating is not None and any(getattr(e, "gates", False) for e in asked):
        sources.gates = session.gating.worth()
    return sources


def wanted(session: "Session", scores: dict[str, Tensor] | None = None) -> Masks:
    """The masks that the next event would make now; of other scores where they are given."""
    if scores is None:
        criterion = session.recipe.criterion
        scores, _ = rate(criterion, sources_of(session, criterion), session.recipe.granularity.reduce)
    event = upcoming(session)
    return chosen(session, scores, event.density, {} if event.revive else session.masks, event is session.events[-1])


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
    found = chosen(session, scores, event.density, masks, event is session.events[-1])
    return found if event.below is None else spared(found, without(scores, masks), event.below)


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
    spread = session.recipe.redistribute
    floors = {g.name: g.at_least for g in session.groups}
    shares = None if spread is None else spread(**facts(spread, sources_of(session, spread, gradients)))
    return regrow(session.masks, worth, promise, event, shares=shares, floors=floors)


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
