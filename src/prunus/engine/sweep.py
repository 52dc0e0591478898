"""Pruning block by block: each on what the pruned and rebuilt blocks before it give."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from prunus.core.errors import NothingScored
from prunus.core.events import Event
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.engine.ahead import foretold, settled, within
from prunus.engine.apply_ import apply_, check_ranks, parameter_masks
from prunus.engine.decide import ranked
from prunus.engine.rebuild import rebuilt
from prunus.engine.undecided import rebuilt_anew
from prunus.engine.walk import blocks_in, chained, check_repeatable, counted, kinds, walk

if TYPE_CHECKING:
    from prunus.engine.session import Session

UNREACHED = "no calibration batch comes to its block"
OUTSIDE = "it lies in no block, and blocks are what this recipe goes through"


def swept(session: "Session", event: Event) -> Masks:
    """The masks of an event of a recipe that goes through the model block by block.

    A block is scored, chosen from and rebuilt as a model of its own, whose calibration data is what reaches it, and
    its weights are written before the model goes on. Groups that lie in no block keep their masks. Where layers
    that follow each other have less than half of the units (those of towers that no batch runs do not count), or the
    budget is in another currency than units, the whole model is one block.
    What the allocation deals out over layers, and what the criterion reads of the loss, is gathered on the whole model
    first, as it is before the event.
    Cost: as of the recipe's parts, with a block's activations in memory instead of the model's.
    Errors: `NothingScored` where that is so for all blocks; those of `walk`.
    """
    masks = dict(session.masks)
    blocks = blocks_in(session.model, session.task)
    own = {name: inside(name, session.groups) for name in blocks}
    layers = chained(session.model, session.task, blocks)
    # A budget in parameters or MACs is one of the whole model: no block knows its share of it.
    whole = session.budget.currency != "units"
    idle = {g.name for name in _idle(session, blocks) for g in inside(name, session.groups)}
    units = sum(g.units for g in session.groups if g.name not in idle)
    if whole or 2 * sum(g.units for name in layers for g in own[name]) < units:
        blocks, own = {"": session.model}, {"": session.groups}
    recipe, known = settled(session, event, blocks, own), foretold(session)
    found = {g.name for groups in own.values() for g in groups}
    skipped = {g.name: UNREACHED if g.name in idle else OUTSIDE for g in session.groups if g.name not in found}
    left = dict.fromkeys(found, UNREACHED)
    nothing: NothingScored | None = None
    scored = False
    for index, visit in enumerate(walk(session.model, session.task, blocks)):
        groups = own[visit.name]
        left = {n: why for n, why in left.items() if n not in {g.name for g in groups}}
        if not groups:
            continue
        if index == 0:
            check_repeatable(visit)
        part = within(session, visit, groups, block_seed(session.seed, visit.name))
        part.recipe, part.known = recipe, known
        try:
            anew = rebuilt_anew(part, event)
            chosen = anew or ranked(part, event)
        except NothingScored as error:
            nothing = error
            skipped |= {g.name: "nothing scores this block" for g in groups}
            continue
        scored = True
        skipped |= part.skipped
        check_ranks(chosen)
        if session.recipe.reconstruct is not None and not anew:
            chosen = rebuilt(part, chosen)
        apply_(session.parameters, parameter_masks(groups, chosen, session.parameters))
        masks |= chosen
    if not scored:
        raise nothing or NothingScored(
            f"none of the {len(session.groups)} groups lies within one of the {len(blocks)} blocks: take sweep='model'"
        )
    session.skipped = skipped | left
    return masks


def _idle(session: "Session", blocks: Collection[str]) -> set[str]:
    """Entries of lists that no calibration batch runs: the tower of images, where all of them are text.

    Costs a forward of every kind of batches where there are lists that are no blocks.
    """
    others = {n for n in blocks_in(session.model) if n and not any(f"{b}.".startswith(f"{n}.") for b in blocks)}
    for batch in kinds(session.task) if others else ():
        others -= counted(session.model, batch, session.task).keys()
    return others


def inside(name: str, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups all of whose members lie in a block."""
    prefix = f"{name}." if name else ""
    return tuple(g for g in groups if all(m.param.startswith(prefix) for m in g.members))


def block_seed(seed: int, name: str) -> int:
    """Each block has randomness of its own, so that a run can go on at any block."""
    return seed + zlib.crc32(name.encode())
