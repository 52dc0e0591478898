"""What the layers of a block are fed while all of it is whole, from the last to the first, a few at a time.

What a layer is fed hangs on what runs before it, and on nothing behind it. So the layers that run last may be pruned
first: what reaches the others is still what the whole block makes, and never are the moments of all of them there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.core.errors import StructureError, listed
from prunus.core.groups import Group
from prunus.core.symmetric import numbers
from prunus.engine.decide import sources_of
from prunus.engine.nested import tensors
from prunus.engine.waves import Read, Uses, begun, identity, read_by, whole
from prunus.parts.evidence.capture import Capture, Use
from prunus.parts.evidence.mode import evidence_mode, ranks

if TYPE_CHECKING:
    from prunus.engine.session import Session

WIDE = 8
"""Bytes of a number of x x^T."""


class Enough(BaseException):
    """Leaves a forward of which nothing more is asked. No `Exception`: forwards catch these."""


@dataclass
class Order:
    """The uses of weights in a forward, and of each weight and bias how many uses there were when any call first met
    it.
    """

    uses: list[str] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)

    def apart(self, before: Collection[str], behind: Collection[str]) -> bool:
        """Whether the last use of some came before anything met any of the others."""
        last = max((i for i, n in enumerate(self.uses) if n in before), default=-1)
        return last < min((at for n, at in self.met.items() if n in behind), default=len(self.uses))

    def until(self, names: Collection[str]) -> int:
        """How many uses it takes to see all uses of these."""
        return 1 + max((i for i, n in enumerate(self.uses) if n in names), default=-1)


class Watched(Capture):
    """Keeps inputs of some of the weights that it sees, and the order of all; ends the forward after so many uses."""

    def __init__(self, parameters: Mapping[str, Tensor], kept: Collection[str], enough: int | None = None) -> None:
        super().__init__(parameters, stacks=True)
        self.kept, self.enough, self.order = kept, enough, Order()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = len(self.uses)
        result = super().__torch_function__(func, types, args, kwargs)
        asks = func is Tensor.requires_grad_ or (
            getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor)  # its shape, type and place
        )
        for t in () if asks else tensors((args, kwargs or {})):
            if (name := self.names.get(id(t))) is not None:
                self.order.met.setdefault(name, before)
        for use in self.uses[before:]:
            self.order.uses.append(use.name)
            if use.name not in self.kept:
                use.x = use.x.new_empty(0)
        if self.enough is not None and len(self.uses) >= self.enough:
            raise Enough
        return result

    def kept_uses(self) -> dict[str, list[Use]]:
        """The uses, on any rows at all, whose inputs were kept, by weight; they are let go of here."""
        found: dict[str, list[Use]] = {}
        for use in self.uses:
            if use.name in self.kept and (use.shares or use.x.numel()):
                found.setdefault(use.name, []).append(use)
        self.uses.clear()
        return found


def backwards(session: "Session", pruned: Callable[[Group], bool]) -> Iterator[tuple[list[Group], Read]]:
    """The pruned groups, the last that the network uses first, a few at a time, with what they are fed while all of
    them are whole. Who asks may prune some before it asks for the next.

    The moments of those that come together take no more memory than those of the largest layer (with what cannot be
    told apart from it, see `joined`). No group may be one of whole units.
    Cost: a forward over the calibration batches, and for every further few one that is left after their last use.
    Where a batch shows that the order is another one, or several devices run the batches, all groups come at once.
    Errors: `StructureError` where a batch is not run twice in the same way.
    """
    waiting, uses = begun(session, pruned)
    if not waiting:
        return
    some = [waiting] if session.crew is not None else fews(session, waiting, uses)
    biases = {n: [u.bias for u in ones if u.bias is not None] for n, ones in uses.items()}
    uses = {}  # or a batch of inputs would be held
    if len(some) > 1:
        start = session.generator.get_state()  # every pass draws the same, and all of them as much as one
        orders, read = first(session, some, biases)
        if read is not None:
            for few in some:
                if few is not some[0]:
                    session.generator.set_state(start)
                    read = again(session, few, orders)
                yield few, read
                read.sums.clear()  # whoever asked may still hold it while the next pass runs
            return
        session.generator.set_state(start)
    yield waiting, whole(session, waiting)


def first(
    session: "Session", some: Sequence[Sequence[Group]], biases: Mapping[str, Sequence[str]]
) -> tuple[list[Order], Read | None]:
    """How every batch runs, and what the first few groups are fed; None where they do not run behind all others."""
    names = [[m.param for g in few for m in read_by(g)] for few in some]
    cuts = [
        (set(chain(*names[k:])), {n for w in chain(*names[:k]) for n in (w, *biases.get(w, ()))})
        for k in range(1, len(names))
    ]
    orders, read = list[Order](), Read()
    fits = True
    for batch, seen in enumerate(watched(session, set(chain(*names)), set(names[0]), repeat(None))):
        fits = all(seen.order.apart(before, behind) for before, behind in cuts)
        if not fits:
            break
        orders.append(seen.order)
        read.add(seen.kept_uses(), batch)
    return orders, None if _most(session, [not fits])[0] else read


def again(session: "Session", few: Sequence[Group], orders: Sequence[Order]) -> Read:
    """What some groups are fed, by forwards that are left when these have been used."""
    names, read = {m.param for g in few for m in read_by(g)}, Read()
    every = {n for order in orders for n in order.uses} | names
    for batch, seen in enumerate(watched(session, every, names, (o.until(names) for o in orders))):
        if seen.order.uses != orders[batch].uses[: len(seen.order.uses)]:
            raise StructureError(
                f"calibration batch {batch} (counted from 0) runs {listed(sorted(names))} in another order when it is "
                f"run again: a model that hangs on chance or on what ran before is pruned with fed='pruned'"
            )
        read.add(seen.kept_uses(), batch)
    return read


def watched(
    session: "Session", names: Collection[str], kept: Collection[str], enough: Iterable[int | None]
) -> Iterator[Watched]:
    """What every batch shows, of some weights only, in as many uses as are enough."""
    sources = sources_of(session, session.recipe.criterion)
    # A bias is only named, so that whoever rebuilds a layer knows where its bias lies.
    known = {n: p for n, p in sources.parameters.items() if n in names or p.ndim == 1}
    for batch, stop in zip(sources.task.calibration(), enough, strict=False):
        seen = Watched(known, kept, stop)
        with evidence_mode(sources.model, {}, sources.generator), torch.no_grad(), suppress(Enough):
            if stop != 0:
                with seen:
                    sources.task.outputs(sources.model, batch)
        yield seen


def fews(session: "Session", groups: Sequence[Group], uses: Uses) -> list[list[Group]]:
    """The groups, a few at a time, the last first: as many as take no more memory than the most that are joined."""
    each: list[list[Group]] = [[]]
    for group, on in zip(groups, _most(session, joined(groups, uses)), strict=True):
        each[-1].append(group)
        if not on:
            each.append([])
    sizes = _most(session, [_bytes(b, uses) for b in each[:-1]])
    return [list(chain(*each[s])) for s in packed(sizes)]


def joined(groups: Sequence[Group], uses: Uses) -> list[bool]:
    """Whether each group has to come with the next: those that are fed the same, so that it is summed up once, with
    what lies between, unless that is more; and what is used several times with all behind it, for of the last use
    nothing is known.
    """
    keys = [{identity(use) for m in read_by(g) for use in uses.get(m.param, ())} for g in groups]
    several = [any(len(uses.get(m.param, ())) > 1 for m in read_by(g)) for g in groups]
    sizes = [_bytes([g], uses) for g in groups]
    ends = []
    for i, key in enumerate(keys):
        alike = [j for j in range(i + 1, len(groups)) if key & keys[j]]
        near = [j for j in alike if sum(sizes[k] for k in range(i, j) if not key & keys[k]) <= sizes[i]]
        ends.append(len(groups) - 1 if several[i] else max(near, default=i))
    return [last > i for i, last in enumerate(accumulate(ends, max))]


def packed(sizes: Sequence[int]) -> list[slice]:
    """Consecutive entries from the last to the first, as many at a time as are no more than the largest."""
    most, found, stop, total = max(sizes, default=0), list[slice](), len(sizes), 0
    for at in range(len(sizes) - 1, -1, -1):
        if total and total + sizes[at] > most:
            found.append(slice(at + 1, stop))
            stop, total = at + 1, 0
        total += sizes[at]
    return [*found, slice(0, stop)]


def _bytes(groups: Sequence[Group], uses: Uses) -> int:
    """Of the moments of what groups are fed."""
    found: dict[Any, int] = {}
    for use in (u for g in groups for m in read_by(g) for u in uses.get(m.param, ())):
        rows = use.rows()
        found[identity(use)] = WIDE * sum(numbers(x.shape[1]) for x in rows)
    return sum(found.values())


def _most(session: "Session", values: Sequence[int]) -> list[int]:
    """The most that any process of a distributed run says, of each."""
    if ranks() < 2:
        return list(values)
    device = next((p.device for p in session.parameters.values()), torch.device("cpu"))
    most = torch.tensor(values, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    found: list[int] = most.tolist()
    return found
