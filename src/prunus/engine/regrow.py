"""Prune-and-grow: drop a share of the kept units and regrow as many elsewhere."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Masks


def drop(masks: Masks, worth: Mapping[str, Tensor], event: Event, floors: Mapping[str, int] | None = None) -> Masks:
    """Masks without the `floor(event.regrow * kept)` kept units of least worth.

    Of every group, or of all together (`event.across`); those that are worth `event.under` or more stay. Ties stay in
    favour of the earlier unit. Groups without worth keep theirs. floors: units that a group is left at least.
    """
    names = [n for n in masks if n in worth]
    flat = {n: worth[n].reshape(-1).double() for n in names}
    kept = {n: masks[n].reshape(-1) for n in names}
    left = dict(masks)
    for together in [names] if event.across else [[n] for n in names]:
        if not together:
            continue
        value = torch.cat([flat[n].masked_fill(~kept[n], torch.inf) for n in together])
        out = _lowest_first(value)[: int(event.regrow * sum(count(kept[n]) for n in together))]
        if event.under is not None:
            out = out[value[out] < event.under]
        gone = torch.zeros(len(value), dtype=torch.bool, device=value.device)
        gone[out] = True
        for name, part in zip(together, gone.split([len(kept[n]) for n in together]), strict=True):
            stay = kept[name] & ~part
            short = (floors or {}).get(name, 0) - count(stay)
            if short > 0:  # the best of those that would go stay
                would = kept[name] & part
                best = flat[name].masked_fill(~would, -torch.inf).argsort(descending=True, stable=True)
                stay[best[: min(short, count(would))]] = True
            left[name] = stay.reshape(masks[name].shape)
    return left


def added(
    masks: Masks,
    left: Masks,
    promise: Mapping[str, Tensor],
    event: Event,
    shares: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """How many units every group regrows: as many in all as were dropped.

    Each group what it dropped; or, where there are `shares`, in proportion to these, as far as it has room; or
    (`event.jointly`) as many as it has among the most promising pruned units of all groups.
    """
    gone = {n: count(masks[n]) - count(left[n]) for n in promise}
    if event.jointly and any(gone.values()):
        pool = torch.cat([_open(left[n], promise[n]) for n in promise])
        best = torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
        best[pool.argsort(descending=True, stable=True)[: sum(gone.values())]] = True
        sizes = [left[n].numel() for n in promise]
        return {n: count(b) for n, b in zip(promise, best.split(sizes), strict=True)}
    if shares is None:
        return gone
    return apportion(sum(gone.values()), shares, {n: left[n].numel() - count(left[n]) for n in promise})


def grow(left: Masks, promise: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Masks:
    """Masks with the most promising of the units that are not kept, the just dropped among them (RigL,
    arXiv:1911.11134, and its official code); ties go to the earlier unit.
    """
    new = dict(left)
    for name, number in numbers.items():
        if number:
            keep = left[name].reshape(-1).clone()
            keep[_open(left[name], promise[name]).argsort(descending=True, stable=True)[:number]] = True
            new[name] = keep.reshape(left[name].shape)
    return new


def _open(left: Tensor, promise: Tensor) -> Tensor:
    """`[units]`: what the units that are not kept promise."""
    return promise.reshape(-1).double().masked_fill(left.reshape(-1), -torch.inf)


def _lowest_first(value: Tensor) -> Tensor:
    """Positions from the least value up; of equals the later first, so that the earlier stays."""
    return value.flip(0).argsort(stable=True).neg() + (len(value) - 1)


def apportion(total: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to `shares`, none above its `room`, that sum to `total` (or to all the room).

    Groups that would get more than they have room for are filled, and the others share what is left; then by largest
    remainders, ties to the earlier group. Groups without a share come last, in equal parts.
    Errors: `SpecError` for a share that is negative or not finite.
    """
    if bad := [n for n in room if not 0.0 <= shares.get(n, 0.0) < math.inf]:
        raise SpecError(f"the share of {bad[0]!r} in what is regrown is {shares[bad[0]]}: shares are 0 or more")
    given = dict.fromkeys(room, 0)
    left = min(total, sum(room.values()))
    while left > 0:
        open_ = [n for n in room if given[n] < room[n]]
        weight = {n: Fraction(shares.get(n, 0.0)) for n in open_}  # exact, so that equal remainders are
        if not any(weight.values()):
            weight = dict.fromkeys(open_, Fraction(1))
        whole = sum(weight.values())
        quota = {n: left * w / whole for n, w in weight.items()}
        full = [n for n in open_ if quota[n] >= room[n] - given[n]]
        more = {n: room[n] - given[n] for n in full} if full else {n: int(q) for n, q in quota.items()}
        if not full:
            ranked = sorted(open_, key=lambda n: int(quota[n]) - quota[n])
            more |= {n: more[n] + 1 for n in ranked[: left - sum(more.values())]}
        for n, k in more.items():
            given[n] += k
        left -= sum(more.values())
    return given
