"""Prune-and-grow: drop a share of the kept units and regrow as many elsewhere."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.part import Masks


def regrow(
    masks: Masks,
    worth: Mapping[str, Tensor],
    promise: Mapping[str, Tensor],
    event: Event,
    *,
    shares: Mapping[str, float] | None = None,
    floors: Mapping[str, int] | None = None,
) -> Masks:
    """New masks with the same count in all, and in every group where no `shares` spread it otherwise.

    The `floor(event.regrow * kept)` kept units of least worth are dropped, of every group or of all together
    (`event.across`), those that are worth `event.under` or more excepted; then as many of the units that are not kept,
    the just dropped among them, are taken by promise (RigL, arXiv:1911.11134, and its official code). Ties go to the
    earlier unit. Groups without worth or promise keep theirs.

    shares: group name -> how much of what was dropped it regrows, in proportion. floors: units that a group is left.
    """
    names = [n for n in masks if n in worth and n in promise]
    left = survivors(
        {n: masks[n].reshape(-1) for n in names}, {n: worth[n].reshape(-1) for n in names}, event, floors or {}
    )
    dropped = {n: count(masks[n]) - count(left[n]) for n in names}
    room = {n: left[n].numel() - count(left[n]) for n in names}
    grown = dropped if shares is None else apportion(sum(dropped.values()), shares, room)
    new = dict(masks)
    for name in names:
        if grown[name] or dropped[name]:
            hope = promise[name].reshape(-1).double().masked_fill(left[name], -torch.inf)
            left[name][hope.argsort(descending=True, stable=True)[: grown[name]]] = True
            new[name] = left[name].reshape(masks[name].shape)
    return new


def survivors(
    kept: Mapping[str, Tensor], worth: Mapping[str, Tensor], event: Event, floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """`[units]` per group: the kept units that a drop leaves."""
    sets = [list(kept)] if event.across else [[n] for n in kept]
    left = {n: k.clone() for n, k in kept.items()}
    for names in sets:
        sizes = [kept[n].numel() for n in names]
        value = torch.cat([worth[n].double().masked_fill(~kept[n], torch.inf) for n in names])
        out = _lowest_first(value)[: int(event.regrow * sum(count(kept[n]) for n in names))]
        if event.under is not None:
            out = out[value[out] < event.under]
        gone = torch.zeros(len(value), dtype=torch.bool, device=value.device)
        gone[out] = True
        for name, part in zip(names, gone.split(sizes), strict=True):
            left[name] &= ~part
            short = floors.get(name, 0) - count(left[name])
            if short > 0:  # the best of those that would go stay
                best = worth[name].double().masked_fill(~(kept[name] & part), -torch.inf)
                left[name][best.argsort(descending=True, stable=True)[:short]] = True
    return left


def _lowest_first(value: Tensor) -> Tensor:
    """Positions from the least value up; of equals the later first, so that the earlier stays."""
    return value.flip(0).argsort(stable=True).neg() + (len(value) - 1)


def apportion(total: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to `shares`, none above its `room`, that sum to `total` (or to all the room).

    By largest remainders; what does not fit into one group is spread over the others. Groups without a share come last.
    """
    given = dict.fromkeys(room, 0)
    left = min(total, sum(room.values()))
    while left > 0:
        free = {n: max(0.0, float(shares.get(n, 0.0))) for n in room if given[n] < room[n]}
        whole = sum(free.values())
        quota = {n: left * s / whole if whole > 0 else left / len(free) for n, s in free.items()}
        step = {n: min(int(q), room[n] - given[n]) for n, q in quota.items()}
        if not any(step.values()):
            first = sorted(quota, key=lambda n: -quota[n])[:left]
            step = {n: int(quota[n] > 0 and n in first) for n in quota}
        for n, more in step.items():
            given[n] += more
        left -= sum(step.values())
    return given
