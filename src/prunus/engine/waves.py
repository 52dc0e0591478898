"""What the readers of pruned groups are fed, and which groups may learn it from the same pass over the data."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunus.core.errors import DataError
from prunus.core.groups import Group, Member
from prunus.core.symmetric import Symmetric
from prunus.engine.agreement import check_agreement
from prunus.engine.decide import sources_of
from prunus.engine.walk import tensors
from prunus.parts.evidence.capture import TRANSPOSES, Use, captured
from prunus.parts.evidence.mode import ranks

if TYPE_CHECKING:
    from prunus.engine.session import Session

Uses = Mapping[str, list[Use]]
Identity = tuple[Any, ...]


class Moments(NamedTuple):
    """Sums of x x^T and of x over n of them."""

    gram: Symmetric
    sum: Tensor
    n: int

    @classmethod
    def none(cls, x: Float[Tensor, "samples in"]) -> "Moments":
        """Of no samples, for some like these."""
        width = x.shape[1]
        return cls(Symmetric.zeros(width, x.device), torch.zeros(width, dtype=torch.float64, device=x.device), 0)

    def and_these(self, x: Float[Tensor, "samples in"]) -> "Moments":
        """With more samples, in the memory of these."""
        return Moments(self.gram.add_products_(x), self.sum.add_(x.sum(0, dtype=torch.float64)), self.n + len(x))

    def copy(self) -> "Moments":
        return Moments(self.gram.clone(), self.sum.clone(), self.n)

    def and_(self, other: "Moments") -> "Moments":
        if not self.n or not other.n:  # matrices of a stack that multiply nothing
            return self if self.n else other
        return Moments(self.gram.plus(other.gram), self.sum + other.sum, self.n + other.n)

    def means(self) -> "Moments":
        """Means instead of sums, in the memory of these."""
        return Moments(self.gram.div_(self.n), self.sum.div_(self.n), self.n)

    def of_all_ranks(self) -> "Moments":
        """Sums over the samples of all processes of a distributed run, in the memory of these."""
        n = torch.tensor(self.n, dtype=torch.float64, device=self.gram.device)
        for each in (*self.gram.panels, self.sum, n):
            torch.distributed.all_reduce(each)
        return Moments(self.gram, self.sum, int(n))


class Read:
    """What a pass has shown of some weights: a use of each (without its input), and the moments of what it multiplies.

    Weights that always multiplied the very same tensor hold the same moments, which are summed up once.
    """

    def __init__(self) -> None:
        self.uses: dict[str, Use] = {}
        self.sums: dict[str, list[Moments]] = {}
        self._averaged: set[int] = set()

    def add(self, uses: Uses, batch: int) -> None:
        """Take in what a calibration batch has shown. Errors: `DataError` where an input is NaN or infinite."""
        made: dict[tuple[int, Identity], list[Moments]] = {}
        fresh: dict[str, list[Moments]] = {}
        keys = {n: (id(self.sums.get(n)), tuple(identity(use) for use in ones)) for n, ones in uses.items()}
        for name, ones in uses.items():
            if name not in self.uses:
                self.uses[name] = replace(ones[0], x=torch.empty_like(ones[0].x, device="meta"))
            total, key = self.sums.get(name), keys[name]
            if key not in made:
                if total is not None and any(keys.get(n) != key for n, s in self.sums.items() if s is total):
                    total = [m.copy() for m in total]  # who shared it until now is fed something else
                for use in ones:
                    rows = use.rows()
                    total = [Moments.none(x) for x in rows] if total is None else total
                    total[:] = [m.and_these(x) for m, x in zip(total, rows, strict=True)]
                assert total is not None
                made[key] = total
                fresh[name] = total
            self.sums[name] = made[key]
        for name, total in fresh.items():  # not before all are under way: they may be on several devices
            if not all(bool(m.sum.isfinite().all()) for m in total):
                raise DataError(
                    f"the inputs of {name} hold NaN or infinite values in calibration batch {batch} (counted from 0): "
                    f"look at that batch, and at the weights before {name}"
                )

    def forget(self, names: Collection[str]) -> None:
        """Let go of what nobody will ask for again."""
        for name in names:
            self.sums.pop(name, None)

    def means(self, name: str) -> list[Moments]:
        """The mean moments of a weight's inputs, for each group of a grouped convolution."""
        sums = self.sums[name]
        if ranks() > 1:  # every process asks for every weight, whatever they share there
            return [m.means() for m in fed([m.copy().of_all_ranks() for m in sums])]
        if id(sums) not in self._averaged:
            sums[:] = [m.means() for m in fed(sums)]
            self._averaged.add(id(sums))
        return sums


def fed(sums: list[Moments]) -> list[Moments]:
    """The same, where a matrix of a stack that multiplied nothing has what all others have together."""
    if all(m.n for m in sums):
        return sums
    every = sums[0]
    for one in sums[1:]:
        every = every.and_(one)
    return [m if m.n else every.copy() for m in sums]


def waves(session: "Session", pruned: Callable[[Group], bool]) -> Iterator[tuple[list[Group], Read]]:
    """The pruned groups in the order in which the network first uses what reads them, a few at a time, with what their
    readers are fed when the groups before are pruned and rebuilt and these are still whole.

    Groups come together (queries, keys and values; gate and up) if they are single weights whose inputs are the very
    same tensor, and nothing that rebuilding one of them changes is used before that tensor is there: then it is what
    it would be if they came one by one, bit for bit. Cost: one forward over the calibration batches for each such wave,
    whose moments alone are held: half of a float64 `[in, in]` for every distinct input.
    """
    waiting, uses = begun(session, pruned)
    alike = {g.name: shared(g, uses) for g in waiting}
    uses = {}  # or a batch of inputs would be held
    while waiting:
        planned = agreed(session, together(waiting, alike))
        read, found = observed(session, waiting[:planned])
        count = agreed(session, found)
        yield waiting[:count], read
        read.sums.clear()  # whoever asked may still hold it while the next pass runs
        waiting = waiting[count:]


def begun(session: "Session", pruned: Callable[[Group], bool]) -> tuple[list[Group], Uses]:
    """The pruned groups as the network uses them, on which all processes agree, and what a batch shows of them."""
    uses, order = in_order(session)
    if ranks() > 1:
        device = next((p.device for p in session.parameters.values()), torch.device("cpu"))
        check_agreement({"order of layers": " ".join(f"{g.name}:{g.members[0].param in uses}" for g in order)}, device)
    return [g for g in order if pruned(g)], uses


def whole(session: "Session", groups: list[Group]) -> Read:
    """What a pass over the calibration batches shows of all readers, none of which is pruned yet."""
    sources = sources_of(session, session.recipe.criterion)
    sources.settings = {}
    names, read = {m.param for g in groups for m in read_by(g)}, Read()
    for batch, uses in enumerate(captured(sources, names, stacks=True, stay=True)):
        if session.crew is not None:
            session.crew.deal_(uses, session.parameters)
        read.add(uses, batch)
        uses.clear()
    return read


def in_order(session: "Session") -> tuple[dict[str, list[Use]], list[Group]]:
    """The session's groups by when the first of their readers runs (those that nothing reads come last), and what a
    calibration batch shows of the readers.
    """
    names = {m.param for g in session.groups for m in read_by(g)}
    sources = sources_of(session, session.recipe.criterion)
    sources.settings, sources.crew = {}, None
    uses = next(captured(sources, names, stacks=True), {})
    place = {n: i for i, n in enumerate(uses)}
    key = lambda g: min((place.get(m.param, len(place)) for m in read_by(g)), default=0)  # noqa: E731
    return uses, sorted(session.groups, key=key)


def read_by(group: Group) -> tuple[Member, ...]:
    """The members in whose inputs a group's units show: the weight itself for single weights, else its readers.

    A weight that is tied, and so makes units as well as reads them, is not rewritten.
    """
    if not group.movable:
        return group.members[:1]
    others = {m.param for m in group.members if m.role != "in"}
    return tuple(m for m in group.with_role("in") if m.param not in others)


def together(waiting: list[Group], alike: Mapping[str, Identity | None]) -> int:
    """How many of the first groups seem to be fed by one tensor and share no parameter."""
    first = alike[waiting[0].name]
    owned: set[str] = set()
    for count, group in enumerate(waiting):
        mine = {m.param for m in group.members}
        if count and (first is None or alike[group.name] != first or owned & mine):
            return count
        owned |= mine
    return len(waiting)


def shared(group: Group, uses: Uses) -> Identity | None:
    """Which tensor feeds a group of single weights; None where there are several, or units are more than that."""
    ones = uses.get(group.members[0].param, [])
    if group.movable or len(ones) != 1 or type(ones[0].x) is not Tensor or ones[0].x.is_inference():
        return None
    return memory(ones[0].x)


def observed(session: "Session", groups: list[Group]) -> tuple[Read, int]:
    """A pass over the calibration batches, and for how many of the groups it is as good as one of their own."""
    sources = sources_of(session, session.recipe.criterion)
    sources.settings, sources.crew = {}, None  # `Watch` sees this thread
    read, count, batch = Read(), len(groups), 0
    passes = captured(sources, {m.param for g in groups for m in read_by(g)}, stacks=True)
    while True:
        watch = Watch(sources.parameters)
        with watch if len(groups) > 1 else nullcontext():
            uses = next(passes, None)
        if uses is None:
            break
        if count > 1:
            count = unchanged(groups[:count], uses, watch)
        read.add(uses, batch)
        uses.clear()  # or these inputs would be held through the next forward
        batch += 1
    for _ in range((count - 1) * batch):
        # As many seeds are drawn as if every group had had its passes: what is random later does not depend on it.
        torch.randint(2**31, (1,), generator=session.generator)
    return read, count


def unchanged(groups: list[Group], uses: Uses, watch: "Watch") -> int:
    """How many of the groups a forward has fed with one tensor, on which rebuilding the ones before has no influence:
    it was complete when any of their parameters was first touched, and nobody has written to it since.
    """
    first = shared(groups[0], uses)
    for count, group in enumerate(groups):
        if count and (first is None or shared(group, uses) != first):
            return count
        if first is not None:
            use = uses[group.members[0].param][0]
            mine = {m.param for m in group.members} | ({use.bias} if use.bias else set())
            if not all(state(use.x) in watch.beside.get(n, ()) for n in mine):
                return count + 1
    return len(groups)


class Watch(TorchFunctionMode):
    """Notes which tensors lie beside a parameter, and in which state, in the call that first touches it.

    What compiled or scripted code does inside is not seen, nor is it by `Capture`.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {id(p): n for n, p in parameters.items()}
        self.beside: dict[str, set[Identity]] = {}
        self._turned: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(tensors((args, kwargs)))
        known = [n for t in given if (n := self.names.get(id(t))) is not None and n not in self.beside]
        if not known:
            return result
        if func in TRANSPOSES and isinstance(result, Tensor):
            self.names[id(result)] = known[0]
            self._turned.append(result)  # as long as it is there its id is nobody else's
        elif func is not Tensor.requires_grad_ and (
            getattr(func, "__name__", "") != "__get__" or isinstance(result, Tensor)  # its shape, type and place
        ):
            for name in known:
                self.beside[name] = {state(t) for t in given if type(t) is Tensor and not t.is_inference()}
        return result


def memory(x: Tensor) -> Identity:
    """Where a tensor's numbers lie, while it is there."""
    return (x.device, x.dtype, x.data_ptr(), tuple(x.shape), x.stride())


def state(x: Tensor) -> Identity:
    """Where a tensor's numbers lie, and how often they were written to."""
    return (*memory(x), x._version)


def identity(use: Use) -> Identity:
    """Equal for uses whose columns are the same numbers at the same place."""
    if type(use.x) is not Tensor:
        return (id(use),)
    geometry = None if use.conv is None else tuple(sorted((k, str(v)) for k, v in use.conv.items()))
    return (*memory(use.x), use.kernel, use.shares, geometry)


def agreed(session: "Session", count: int) -> int:
    """The least of what the processes of a distributed run say, so that all run the model equally often."""
    if ranks() < 2:
        return count
    device = next((p.device for p in session.parameters.values()), torch.device("cpu"))
    least = torch.tensor(count, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)
