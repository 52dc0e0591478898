"""Masks of which only the numbers count: where a reconstruction chooses by itself, nothing need be scored."""

from typing import TYPE_CHECKING

import torch

from prunus.core.events import Event
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.engine.decide import apart, chosen, scored_by, unfit
from prunus.engine.rebuild import blocks, free
from prunus.engine.score import left_out
from prunus.engine.waves import Uses, in_order, read_by

if TYPE_CHECKING:
    from prunus.engine.session import Session


def undecided(session: "Session", event: Event) -> Masks | None:
    """Masks that keep as many single weights as `ranked` would in everything from which the reconstruction then chooses
    anew; None where it would matter which.

    What stays is chosen layer by layer (`Allocation.apart`), or the numbers would hang on the scores; and a matrix is a
    layer of its own, or how many each of a stack keeps would. So SparseGPT sums up x x^T once, on the inputs that its
    update is for, and scores with that alone. Cost: a forward over one batch, to see which weights are used.
    """
    part, criterion = session.recipe.reconstruct, scored_by(session)
    choosing = part is not None and part.chooses and not event.mark and event.settle is None
    if not choosing or not apart(session, criterion, event):
        return None
    uses, _ = in_order(session)
    seen = [g for g in session.groups if all(m.param in uses for m in read_by(g))]
    if not all(chosen_anew(session, g, uses) for g in seen):
        return None
    uses = {}  # or a batch of inputs would be held
    out, masks, final = unfit(session), {} if event.revive else session.masks, event is session.events[-1]
    found: Masks = {}
    for group in (g for g in seen if g.name not in out):
        equal = torch.zeros(group.shape, device=session.parameters[group.members[0].param].device)
        found[group.name] = chosen(session, {group.name: equal}, event.density, masks, final)[group.name]
    names = {g.name for g in seen}
    session.skipped = left_out(criterion, names, session.groups) | {n: why for n, why in out.items() if n in names}
    return {g.name: found.get(g.name, session.masks[g.name]) for g in session.groups}


def chosen_anew(session: "Session", group: Group, uses: Uses) -> bool:
    """Whether a reconstruction may choose other weights of a group than its mask, at numbers no score decides."""
    use = uses[group.members[0].param][0]
    pattern = blocks(session, group, use)
    return free(session, group, patterned=pattern is not None) and (use.groups == 1 or pattern is not None)
