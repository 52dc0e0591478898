"""What a sweep over blocks has to know of the whole model, gathered before the first block is changed."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.evidence import GroupTensors
from prunus.core.groups import Group
from prunus.core.recipe import Recipe
from prunus.engine.decide import lying_in, scored_by, sources_of, unfit
from prunus.engine.score import seeded
from prunus.engine.walk import Visit, walk

if TYPE_CHECKING:
    from prunus.engine.session import Session


def settled(
    session: "Session", event: Event, blocks: Mapping[str, nn.Module], own: Mapping[str, tuple[Group, ...]]
) -> Recipe:
    """The recipe with the densities of all layers written down, where its allocation deals them out ahead.

    Evidence from inputs is gathered block by block in one forward through the model as it is; what reads the loss is
    gathered on the whole model, and so is what reads nothing. Cost: that of the evidence.
    """
    allocate = session.recipe.allocate
    ahead = allocate.foresees()
    if not ahead or session.budget.currency != "units":
        return session.recipe
    out = unfit(session)
    groups = tuple(g for some in own.values() for g in some if g.name not in out)
    whole = "" in blocks or any(e.reads != "inputs" for e in ahead.values())
    told: dict[str, dict[str, Tensor]] = {name: {} for name in ahead}
    for part in [session] if whole else each_block(session, blocks, own):
        sources = sources_of(part, allocate)
        here = {g.name for g in part.groups}
        sources.groups, sources.blocks = tuple(g for g in groups if g.name in here), lying_in(tuple(own), groups)
        for name, evidence in ahead.items():
            told[name] |= next(iter(evidence.collect(sources)))
    there, space = {g.name: count(session.masks[g.name]) for g in groups}, {g.name: g for g in groups}
    keep = session.budget.at(event.density).keep
    return replace(session.recipe, allocate=allocate.settled(keep, space, there, **told))


def each_block(
    session: "Session", blocks: Mapping[str, nn.Module], own: Mapping[str, tuple[Group, ...]]
) -> Iterator["Session"]:
    """The session with one block after the other in place of the model, nothing of which is changed."""
    for visit in walk(session.model, session.task, blocks):
        if own[visit.name]:
            yield within(session, visit, own[visit.name], session.seed)


def foretold(session: "Session") -> dict[str, GroupTensors]:
    """What the criterion of the next event reads of the loss, of the model as it is: parameter name -> by group."""
    criterion = scored_by(session)
    asked = {name: e for name, e in criterion.asks().items() if e.reads == "labels"}
    if not asked:
        return {}
    sources = sources_of(session, criterion)
    return {name: next(iter(e.collect(sources))) for name, e in asked.items()}


def within(session: "Session", visit: Visit, groups: tuple[Group, ...], seed: int) -> "Session":
    """The session with a block in place of the model."""
    part = copy.copy(session)
    part.model, part.task, part.groups = visit.block, visit.task, groups
    part.masks = {g.name: session.masks[g.name] for g in groups}
    part.generator, part.skipped = seeded(seed), {}
    part.is_block = visit.name != ""
    part.crew = session.crew if visit.block is session.model else None  # it has copies of that alone
    return part
