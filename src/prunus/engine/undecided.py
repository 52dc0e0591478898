"""Masks of which only the numbers count: where a reconstruction chooses by itself, nothing need be scored."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunus.core.events import Event
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.engine.apply_ import check_ranks
from prunus.engine.decide import apart, chosen, scored_by, unfit
from prunus.engine.rebuild import blocks, free, rebuilt
from prunus.engine.score import left_out
from prunus.engine.waves import Uses, in_order, read_by

if TYPE_CHECKING:
    from prunus.engine.session import Session


class Packed(Mapping[str, Tensor]):
    """Masks in a bit for each weight, each laid out anew whenever it is asked for: of a block's only one is there."""

    def __init__(self) -> None:
        self._bits: dict[str, tuple[np.ndarray, torch.Size, torch.device]] = {}

    def add(self, name: str, mask: Tensor) -> None:
        """Take one in."""
        self._bits[name] = np.packbits(mask.cpu().contiguous().numpy()), mask.shape, mask.device

    def __getitem__(self, name: str) -> Tensor:
        bits, shape, device = self._bits[name]
        found = np.unpackbits(bits, count=shape.numel()).view(bool)
        return torch.from_numpy(found).reshape(shape).to(device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


def rebuilt_anew(session: "Session", event: Event) -> Masks | None:
    """The masks of an event in which the reconstruction chooses all weights by itself, which it has rebuilt; None where
    scores are to choose them first. Cost: that of `undecided` and of `rebuilt`.
    """
    numbers = undecided(session, event)
    if numbers is None:
        return None
    check_ranks(numbers)
    return rebuilt(session, numbers)


def undecided(session: "Session", event: Event) -> Mapping[str, Tensor] | None:
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
    found = Packed()
    for group in session.groups:
        mask = session.masks[group.name]
        if group in seen and group.name not in out:
            equal = torch.zeros(group.shape, device=session.parameters[group.members[0].param].device)
            mask = chosen(session, {group.name: equal}, event.density, masks, final)[group.name]
        found.add(group.name, mask)
    names = {g.name for g in seen}
    session.skipped = left_out(criterion, names, session.groups) | {n: why for n, why in out.items() if n in names}
    return found


def chosen_anew(session: "Session", group: Group, uses: Uses) -> bool:
    """Whether a reconstruction may choose other weights of a group than its mask, at numbers no score decides."""
    use = uses[group.members[0].param][0]
    pattern = blocks(session, group, use)
    return free(session, group, patterned=pattern is not None) and (use.groups == 1 or pattern is not None)
