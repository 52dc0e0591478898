"""Where the outputs of modules are added to what they were computed from, and what every tensor was computed from.

One run under a dispatch mode. Each output of a module is followed as long as it would be zero if that output were:
operations are carried out a second time with zeros in its place. An operation that then returns another of its operands
unchanged adds it to that one (`x + y`, `torch.add`, `index_add`, however it is written). What is not zero is followed
for a few operations more, since it may be multiplied by something that is (the epsilon of a norm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from prunus.core.task import Example
from prunus.graph.flow import tensors_in
from prunus.graph.running import takes_hooks
from prunus.graph.verify import outputs

FAR = 4
"""How many operations what is not zero is followed."""


@dataclass
class Tag:
    """What a tensor would be if the output of a module were zero.

    Attributes:
        zero: the modules whose zero would make it zero.
        beside: those whose output was added to something else, of which this consists then.
        loose: those whose zero would make it something else: what, and after how many operations.
    """

    tensor: Tensor
    zero: set[str] = field(default_factory=set)
    beside: set[str] = field(default_factory=set)
    loose: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def shadow(self, name: str) -> tuple[Tensor | None, int]:
        """What stands in its place, None for zeros; and after how many operations."""
        return self.loose.get(name, (None, 0))


class Sums(TorchDispatchMode):
    """Follows one run.

    Attributes:
        joined: module -> the operations (by number) at which its output is added to what it was computed from.
        lost: module -> the operation that does something else with its output.
        carried: module -> other modules whose output would be zero if its output were.
        live: parameters that the outputs of the model were computed from.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.joined: dict[str, set[int]] = {}
        self.lost: dict[str, str] = {}
        self.carried: dict[str, set[str]] = {}
        self.live: set[str] = set()
        self._parents: list[tuple[int, ...]] = []
        self._reads: list[tuple[str, ...]] = []
        self._node: dict[int, int] = {}  # by storage: its latest contents
        self._made: dict[str, set[int]] = {}  # module -> the contents of what it returned
        self._latest: dict[str, int] = {}  # module -> the contents of the first tensor of its latest call
        self._tags: dict[int, Tag] = {}
        self._met: dict[str, set[int]] = {}  # module -> the sums that it meets before one with what it comes from
        self._ends: list[int] = []
        self._names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(_place(parameter), []).append(name)

    # The run

    def run(self, names: Iterable[str], inputs: Example | Tensor) -> None:
        """Follow the outputs of these modules, which must have parameters of their own."""
        for tensor in tensors_in(inputs):
            self._node[_place(tensor)] = len(self._parents)
            self._parents.append(())
            self._reads.append(())
        with self._hooked(names), self:
            found = outputs(self.model, inputs)
        self._ends = [self._node[_place(t)] for t in found if _place(t) in self._node]
        self.live = self._parameters(self._reached(()))
        self._tags.clear()

    @contextmanager
    def _hooked(self, names: Iterable[str]) -> Iterator[None]:
        begun: list[int] = []

        def leave(name: str, output: Any) -> None:
            start = begun.pop()
            every = list(tensors_in(output))
            nodes = [self._node.get(_place(t), -1) for t in every]
            self._made.setdefault(name, set()).update(n for n in nodes if n >= start)  # not what it passes on
            self.carried.setdefault(name, set())
            if every and every[0].is_floating_point():
                self._latest[name] = nodes[0]
                tag = self._tag(every[0])
                for other in tag.zero:
                    self.carried[other].add(name)
                tag.zero.add(name)

        handles = []
        for name in names:
            module = self.model.get_submodule(name)
            if not takes_hooks(module):
                continue
            handles.append(module.register_forward_pre_hook(lambda m, a: begun.append(len(self._parents))))
            handles.append(module.register_forward_hook(lambda m, a, o, n=name: leave(n, o)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        tags = {id(t): self._tags[id(t)] for t in given if id(t) in self._tags}
        writes = func._schema.is_mutable  # type: ignore[attr-defined]
        read = tuple({self._node[_place(t)] for t in given if _place(t) in self._node})
        before, copies = (args, kwargs), {id(t): t for t in given}
        if tags and writes:
            copies = {k: t.clone() for k, t in copies.items()}
            before = tree_map(lambda v: copies.get(id(v), v), before)
            tags = {id(copies[k]): tag for k, tag in tags.items()}
        nodes = {id(copies[id(t)]): self._node.get(_place(t), -1) for t in given}
        out = func(*args, **kwargs)
        names = tuple(n for t in given for n in self._names.get(_place(t), ()))
        self._note(out, given, read, names, writes)
        for t in tensors_in(out):
            self._tags.pop(id(t), None)
        if tags:
            self._follow(func, before, tags, nodes, list(tensors_in(out)))
        return out

    def _note(
        self, out: Any, given: Sequence[Tensor], read: tuple[int, ...], names: tuple[str, ...], writes: bool
    ) -> None:
        old = {_place(t) for t in given}
        made = {_place(t) for t in tensors_in(out)}
        # A view has its base's contents, whichever part of them.
        fresh = made if writes else {p for p in made if p not in old or p not in self._node}
        if fresh or names:
            self._parents.append(read)
            self._reads.append(names)
            self._node.update(dict.fromkeys(fresh, len(self._parents) - 1))

    def _follow(
        self,
        func: Callable[..., Any],
        call: tuple[Any, Any],
        tags: Mapping[int, Tag],
        nodes: Mapping[int, int],
        made: Sequence[Tensor],
    ) -> None:
        """What becomes of the outputs that these operands depend on, all that meet in the same operands at once."""
        alike: dict[Any, tuple[dict[int, Tensor | None], int, set[str]]] = {}
        for followed in (True, False):
            for name in {n for tag in tags.values() for n in ((*tag.zero, *tag.loose) if followed else tag.beside)}:
                own = {k: t for k, t in tags.items() if name in (t.zero | t.loose.keys() if followed else t.beside)}
                instead = {k: tag.shadow(name)[0] if followed else None for k, tag in own.items()}
                steps = max(tag.shadow(name)[1] for tag in own.values()) if followed else FAR
                key = followed, steps, frozenset((k, id(v)) for k, v in instead.items())
                alike.setdefault(key, (instead, steps, set()))[2].add(name)
        for (followed, *_), (instead, steps, names) in alike.items():
            args, kwargs = tree_map(lambda v, w=instead: _shadow(v, w), call)
            try:
                results = list(tensors_in(func(*args, **kwargs)))
            except RuntimeError:  # zeros are no indices, no positive definite matrix, ...
                results = []
            others = [t for t in tensors_in(call) if id(t) not in instead]
            if len(results) != len(made) and followed:
                self._lose(names, str(func))
            for result, out in zip(results, made, strict=False):
                if not (result.is_floating_point() or result.is_complex()):
                    continue
                if not bool(result.any()):
                    tag = self._tag(out)
                    (tag.zero if followed else tag.beside).update(names)
                elif same := [t for t in others if t.shape == result.shape and torch.equal(t, result)]:
                    self._join(names, [nodes[id(t)] for t in same], out)
                elif steps < FAR:
                    self._tag(out).loose.update(dict.fromkeys(names, (result, steps + 1)))
                elif followed:
                    self._lose(names, str(func))

    def _tag(self, tensor: Tensor) -> Tag:
        return self._tags.setdefault(id(tensor), Tag(tensor))

    def _lose(self, names: Iterable[str], operation: str) -> None:
        for name in names:
            self.lost.setdefault(name, operation.removeprefix("aten."))

    def _join(self, names: Iterable[str], others: list[int], out: Tensor) -> None:
        """The output of these modules is added to tensors of these contents."""
        now = len(self._parents) - 1
        for name in names:
            if self._latest[name] in self._ancestors(others):
                self._lose([name], "a sum with what comes from it")
                continue
            self._met.setdefault(name, set()).add(now)
            if self._ancestors([self._latest[name]]) & self._unlearned(others):
                self.joined.setdefault(name, set()).update(self._met.pop(name))
            else:
                self._tag(out).beside.add(name)

    # What comes from what

    def _ancestors(self, nodes: Iterable[int]) -> set[int]:
        return self._walk(nodes, lambda node: True)

    def _unlearned(self, nodes: Iterable[int]) -> set[int]:
        """What these come from without any parameter: a way around takes nothing but data movements and sums."""
        return self._walk(nodes, lambda node: not self._reads[node])

    def _walk(self, nodes: Iterable[int], on: Callable[[int], bool]) -> set[int]:
        seen = {n for n in nodes if n >= 0}
        waiting = list(seen)
        while waiting:
            node = waiting.pop()
            if on(node):
                new = [p for p in self._parents[node] if p not in seen]
                seen.update(new)
                waiting += new
        return seen

    def _reached(self, without: Iterable[int]) -> set[int]:
        stop = set(without)
        return self._walk((n for n in self._ends if n not in stop), lambda node: node not in stop) - stop

    def _parameters(self, nodes: Iterable[int]) -> set[str]:
        return {name for node in nodes for name in self._reads[node]}

    def dead(self, name: str) -> set[str]:
        """The parameters from which nothing is computed that reaches an output but through this module's output."""
        return self.live - self._parameters(self._reached(self._made.get(name, ())))


def _place(tensor: Tensor) -> int:
    """What a tensor has in common with its views."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _shadow(value: Any, instead: Mapping[int, Tensor | None]) -> Any:
    if id(value) not in instead:
        return value
    shadow = instead[id(value)]
    # Operations may write to what they are given.
    return torch.zeros_like(value) if shadow is None else shadow.clone()
