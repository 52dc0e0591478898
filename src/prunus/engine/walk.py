"""A model's own forward, stopped at every block: what reaches a block is what the blocks before it now give.

Nothing about a forward is assumed and nothing of it is written anew: each calibration batch runs through the model in a
thread of its own, which waits wherever a block is called. So every block gets its own arguments (masks, rotary tables,
what an encoder gave), and what happens between blocks happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError, StructureError
from prunus.core.evidence import SideBySide
from prunus.core.task import Batch, Task
from prunus.engine.nested import afresh, equal
from prunus.engine.nested import tensors as tensors
from prunus.graph.running import eager
from prunus.parts.evidence.mode import ranks
from prunus.parts.evidence.vectorized import is_one_of_many

_here = threading.local()


class Call(NamedTuple):
    """What a block was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Visit:
    """A block at which all batches wait.

    Attributes:
        name: its path in the model.
        block: the module; it may be changed before the next visit.
        calls: its arguments, one `Call` per batch, taken anew whenever they are looked at; not to be changed.
        which: the numbers of these batches.
    """

    name: str
    block: nn.Module
    calls: Sequence[Call]
    which: tuple[int, ...] = ()

    @property
    def task(self) -> Task:
        """The block as a model of its own, with these calls as its calibration data."""
        first = self.calls[0]
        return Task(calib=self.calls, forward=called, example=first.kwargs if not first.args else first.args)


class _Calls(Sequence[Call]):
    """What all batches wait with."""

    def __init__(self, runs: list[_Run], take: Callable[[Any], Any]) -> None:
        self._calls = [r.call for r in runs if r.call is not None]
        self._take = take

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: Any) -> Any:
        return Call(*self._take(tuple(self._calls[index])))

    def drop(self, index: int) -> None:
        """Forget one, so that it is not kept in memory longer than the forward keeps it."""
        self._calls[index] = Call((), {})


def called(block: nn.Module, call: Call) -> Any:
    """The block's outputs on a call, as if it had not been called: a cache among the arguments stays as it is."""
    return _called("", block, afresh(call))


def _called(name: str, block: nn.Module, call: Call) -> Any:
    return block(*call.args, **call.kwargs)


def _same(value: Any) -> Any:
    return value


class _Left(BaseException):
    """Unwinds a forward that nobody waits for. No `Exception`: forwards catch these."""


@dataclass(eq=False)
class _Run:
    """One batch's forward in a thread that is either running or waits at a block, never both threads at once."""

    model: nn.Module
    task: Task
    batch: Batch
    names: Mapping[int, str]
    at: str | None = None
    call: Call | None = None
    output: Any = None
    failed: BaseException | None = None
    ended: bool = False
    leaving: bool = False
    mine: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    theirs: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def start(self) -> None:
        """Run up to the first block."""
        self.thread = threading.Thread(target=self._forward, daemon=True, name="prunus-walk")
        self.thread.start()
        self._wait()

    def go_on(self, output: Any) -> None:
        """Return `output` from the block where it waits, and run up to the next one."""
        self.output, self.at, self.call = output, None, None
        self.mine.release()
        self._wait()

    def leave(self) -> None:
        """Unwind, if it is still waiting."""
        if not self.ended:
            self.leaving = True
            self.mine.release()
            self.thread.join()

    def stop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block's forward does in this thread: wait for somebody else to compute it."""
        self.at, self.call = self.names[id(module)], Call(args, kwargs)
        self.theirs.release()
        self.mine.acquire()
        if self.leaving:
            raise _Left
        output, self.output = self.output, None
        return output

    def _wait(self) -> None:
        self.theirs.acquire()
        if self.failed is not None:
            raise self.failed

    def _forward(self) -> None:
        _here.run = self
        try:
            with torch.no_grad():
                self.task.outputs(self.model, self.batch)
        except _Left:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self.failed = error
        finally:
            self.ended = True
            self.theirs.release()


def walk(
    model: nn.Module,
    task: Task,
    blocks: Mapping[str, nn.Module],
    *,
    through: bool | Literal["all"] = False,
    put: Callable[[Any], Any] = _same,
    take: Callable[[Any], Any] = _same,
    run_block: Callable[[str, nn.Module, Call], Any] = _called,
    crew: SideBySide | None = None,
) -> Iterator[Visit]:
    """Visit the blocks in the order in which the model runs them, all calibration batches at once.

    Between two visits a block runs on all batches as it is by then. The part of the model behind the last block is not
    run; with `through` it is on the first batch, to see that no block is called again there (`blocks_in` sees that too
    where it is given the task), or on all of them. Evaluation mode, no gradients, no key-value cache; everything is put
    back, also after an exception. `put` may lay what a block gave elsewhere, nested tensors as they are, and `take`
    brings it back. `run_block` may do something else than call a block; a `crew` runs it on several devices.
    Batches may be of several kinds (text, images, both): a block is visited with those that reach it, and of blocks at
    which some wait the one that comes first in `blocks`. Then all of them run to the end.

    Cost: one forward in all, less what lies behind the last block; the inputs of one block for all batches in memory.
    Errors: `DataError` without a batch; `StructureError` where a block is called again, or after batches of another
    kind have passed it, or where several processes have batches of several kinds.
    """
    with ExitStack() as stack:
        stack.enter_context(_instead(blocks.values(), _stopped))
        stack.enter_context(_evaluating(model))
        names = {id(m): n for n, m in blocks.items()}
        every: list[_Run] = []
        stack.callback(_leave, every)
        for batch in task.calibration():
            run = _Run(model, task, batch, names)
            every.append(run)
            run.start()
        runs = list(every)
        if not runs:
            raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
        passed, mixed = set[str](), False
        while (name := _where(runs, blocks, passed)) is not None:
            here = [r for r in runs if r.at == name]
            calls = _Calls(here, take)
            yield Visit(name, blocks[name], calls, tuple(map(every.index, here)))
            passed.add(name)
            mixed = mixed or len(here) < len(runs)  # some may come to a block that has been passed
            last = len(passed) == len(blocks) and not mixed
            if last and not through:
                return
            ending = last and through != "all"
            going, act = here[:1] if ending else here, partial(run_block, name)
            given = (calls[i] for i in range(len(going)))
            outputs = (act(blocks[name], c) for c in given) if crew is None else crew.each(act, given)
            for index, run in enumerate(going):
                with torch.no_grad():
                    output = put(next(outputs))
                calls.drop(index)
                run.go_on(output)
                del output
            if ending:
                runs = here[:1]


def _leave(runs: list[_Run]) -> None:
    for run in runs:
        run.leave()


def _where(runs: list[_Run], blocks: Iterable[str], passed: set[str]) -> str | None:
    """The block to visit next, of those at which batches wait; None where all forwards are over."""
    places = {r.at for r in runs}
    if len(places) > 1 and ranks() > 1:
        told = " and ".join(sorted(repr(p) if p else "the end" for p in places))
        raise StructureError(
            f"calibration batches take different ways through the model: some wait at {told}. With several processes, "
            f"pass batches of one kind (all with images, or none)"
        )
    if again := places & passed:
        raise StructureError(
            f"{min(map(str, again))} is called more than once in a forward, or by batches of another kind once it has "
            f"been pruned, so it cannot be pruned before the model goes on: take sweep='model', or batches of one kind"
        )
    return next((n for n in blocks if n in places), None)


def _stopped(module: nn.Module, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let a block wait when a run of `walk` calls it; anyone else's call goes through."""
    run = getattr(_here, "run", None)
    return own(*args, **kwargs) if run is None else run.stop(module, args, kwargs)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no cache of keys and values, which would grow with every time that a block is tried."""
    training = {m: m.training for m in model.modules()}
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", None) is True]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        with eager():
            yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, was in training.items():
            module.training = was


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_in(model: nn.Module, task: Task | None = None) -> dict[str, nn.Module]:
    """The blocks of a model by their paths: the entries of its outermost lists, each of which runs once in a forward.

    With a task one calibration batch of every kind is run, and lists that never run are passed over, as are those of
    which an entry runs twice, or never while others do (the lists within their entries are looked at). Without one, all
    lists are believed. A model without any is one block, with the path "".
    """
    counts = None if task is None else [counted(model, batch, task) for batch in kinds(task)]
    found: dict[str, nn.Module] = {}
    for path, container in model.named_modules():
        inside = any(path == n or path.startswith(f"{n}.") for n in found)
        if inside or not isinstance(container, CONTAINERS):
            continue
        entries = {f"{path}.{k}" if path else k: m for k, m in container._modules.items() if m is not None}
        weighty = {n: m for n, m in entries.items() if any(True for _ in m.parameters())}
        if len(weighty) < 2 or any(isinstance(m, CONTAINERS[1:]) for m in weighty.values()):
            continue
        times = [{one.get(n, 0) for n in weighty} for one in counts or ()]
        if counts is None or ({1} in times and all(t in ({0}, {1}) for t in times)):
            found |= weighty
    return found or {"": model}


def chained(model: nn.Module, task: Task, blocks: Mapping[str, nn.Module]) -> set[str]:
    """The blocks of those lists whose second entry is given something else when the first one gives something else.

    Layers of a network are; experts and branches, which all read the same, are not. Cost: two forwards up to there for
    every list and every kind of batches until one reaches it.
    """
    lists: dict[str, list[str]] = {}
    for name in blocks:
        lists.setdefault(name.rpartition(".")[0], []).append(name)
    pairs = {path: (blocks[names[0]], blocks[names[1]]) for path, names in lists.items() if len(names) > 1}
    return {n for path, names in lists.items() if path in pairs and _depends(model, task, *pairs[path]) for n in names}


def kinds(task: Task) -> list[Batch]:
    """The first calibration batch of every kind: of every set of keywords."""
    found: dict[Any, Batch] = {}
    for batch in task.calibration():
        found.setdefault(frozenset(batch) if isinstance(batch, Mapping) else type(batch), batch)
    if not found:
        raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
    return list(found.values())


def counted(model: nn.Module, batch: Batch, task: Task) -> dict[str, int]:
    """How often each entry of a list runs on a batch (more than once inside `torch.vmap`)."""
    counts: dict[str, int] = {}
    entries = {
        f"{path}.{k}" if path else k: m
        for path, c in model.named_modules()
        if isinstance(c, CONTAINERS)
        for k, m in c._modules.items()
        if m is not None
    }
    names = {id(m): n for n, m in entries.items()}

    def count(module: nn.Module, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        times = 2 if is_one_of_many((*tensors((args, kwargs)), *module.parameters())) else 1  # once for each sample
        counts[names[id(module)]] = counts.get(names[id(module)], 0) + times
        return own(*args, **kwargs)

    with _instead(entries.values(), count), _evaluating(model), torch.no_grad():
        task.outputs(model, batch)
    return counts


def _depends(model: nn.Module, task: Task, first: nn.Module, second: nn.Module) -> bool:
    """Whether what reaches one module changes with what another one gives."""
    return any(_moves(model, task, batch, first, second) for batch in kinds(task))


def _moves(model: nn.Module, task: Task, batch: Batch, first: nn.Module, second: nn.Module) -> bool:
    seen: list[list[Tensor]] = []
    change = False

    def watched(module: nn.Module, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module is second:
            seen.append([t.detach().clone() for t in tensors((args, kwargs))])
            raise _Left
        output = own(*args, **kwargs)
        for t in tensors(output) if change else ():
            if t.is_floating_point():
                with suppress(RuntimeError):  # several places of one number cannot be written to
                    t.mul_(1.5).add_(0.1)
        return output

    for change in (False, True):  # noqa: B007 (`watched` reads it)
        with _instead((first, second), watched), _evaluating(model), torch.no_grad(), suppress(_Left):
            task.outputs(model, batch)
    if len(seen) < 2:  # a batch that does not come there
        return False
    one, other = seen
    return [t.shape for t in one] != [t.shape for t in other] or not all(map(equal, one, other))


@contextmanager
def _instead(modules: Iterable[nn.Module], act: Callable[..., Any]) -> Iterator[None]:
    """While inside, `act(module, own forward, args, kwargs)` takes the place of the forwards of modules."""
    found = list({id(m): m for m in modules}.values())

    def stub(module: nn.Module, own: Any) -> Any:
        return lambda *args, **kwargs: act(module, own, args, kwargs)

    before: list[Any] = [m.__dict__.get("forward") for m in found]
    try:
        for module in found:
            module.forward = stub(module, module.forward)
        yield
    finally:
        for module, own in zip(found, before, strict=True):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


def check_repeatable(visit: Visit) -> None:
    """Refuse (`SpecError`) a block that computes something else when it is called again with the same arguments."""
    with torch.no_grad():
        one, other = (list(tensors(called(visit.block, visit.calls[0]))) for _ in range(2))
    if [t.shape for t in one] != [t.shape for t in other] or not all(map(equal, one, other)):
        raise SpecError(
            f"{visit.name or 'the model'} gives something else when it runs again on the same input: it draws random "
            f"numbers, or keeps something from call to call (pass use_cache=False in the batches, if it is a cache)"
        )
