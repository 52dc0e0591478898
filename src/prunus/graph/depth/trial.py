"""Try out which blocks are the identity at zero, and which can be removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.task import Example
from prunus.graph.depth.drop import apply_, entries_of, plan
from prunus.graph.flow import tensors_in
from prunus.graph.running import mapped
from prunus.graph.verify import NARROW, differ, largest_difference, noise_like, outputs, precise, randomized_, typed

Look = Callable[[str, Tensor | None, Any], None]
"""Is shown a module's name, the first tensor that it was given, and its output."""

SILENT = "its output is zero: nothing leads around it, or a normalization follows the sum"

LOUD = 16.0
"""Random inputs are tried at this scale too, so that a clamp (ReLU6) that passes small values shows."""


@dataclass(frozen=True)
class Candidate:
    """An entry of a container.

    Attributes:
        name: its path.
        container: the container's path.
        entry: its position there.
        parameters: the names of those that are used nowhere else.
        shares: whether it uses others as well.
        twins: the paths of other containers whose entries at this position belong to it.
        replace: it is tried as an `nn.Identity` in its place.
    """

    name: str
    container: str
    entry: int
    parameters: tuple[str, ...]
    shares: bool
    twins: tuple[str, ...] = ()
    replace: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """The containers that it has an entry in."""
        return self.container, *self.twins

    def touches(self, path: str) -> bool:
        """Whether a module lies in this block, holds it, or is one of its containers."""
        return path in self.places or path.startswith(f"{self.name}.") or self.name.startswith(f"{path}.")

    def within(self, other: Candidate) -> bool:
        """Whether this is a part of `other`."""
        return self.name.startswith(f"{other.name}.")


class Trials:
    """A float64 copy of a model on which parameters are zeroed, outputs replaced and blocks removed, one after another.

    Attributes:
        zeroed: by candidate, the parameters that are zero where it is removed.
        called: the candidates, and parts of those that are lists, that ran for the example.
        silent: the candidates that return zero where their parameters are zero.
        unwatched: the candidates whose calls say nothing, because they have none or are added up.
        plain: whether a candidate takes one tensor, and nothing else, and returns one.
    """

    def __init__(self, model: nn.Module, example: Example | Tensor, seed: int) -> None:
        self.zeroed: dict[str, tuple[str, ...]] = {}
        self.model, self.inputs, self.wide = self._setting(model, example, seed)
        self.tol = 1e-9 if self.wide else NARROW
        self.parameters = dict(self.model.named_parameters())
        self.called: set[str] = set()
        self.silent: set[str] = set()
        self.plain: dict[str, bool] = {}
        self.unwatched: set[str] = set()

    @staticmethod
    def _setting(
        model: nn.Module, example: Example | Tensor, seed: int
    ) -> tuple[nn.Module, list[Example | Tensor], bool]:
        """A copy in float64 (in its own type where it runs in no other) and one or two inputs that give numbers."""
        failure: DataError | None = None
        for wide in (True, False):
            twin = randomized_(precise(model, wide), seed)
            ways = [typed(example, wide)]
            if any(t.is_floating_point() for t in tensors_in(example)):
                noise = noise_like(example, seed, wide)
                ways = [noise, mapped(noise, lambda t: t * LOUD if t.is_floating_point() else t), *ways]
            usable = []
            for inputs in ways:
                try:
                    found = outputs(twin, inputs)
                except DataError as error:  # inputs that must be positive, sorted or otherwise special
                    failure = error
                    continue
                if not any(bool(t.isnan().any()) for t in found):
                    usable.append(inputs)
            if usable:
                return twin, usable[:2], wide
        if failure is not None:
            raise failure
        raise StructureError("the model's output is not a number, so no block of it can be tried")

    # Is it the identity?

    def identities(self, candidates: Sequence[Candidate]) -> dict[str, str]:
        """Candidate -> why it is not the identity when its parameters are zero. Those that are get their `zeroed`."""
        refused = self._shapes([c for c in candidates if c.name not in self.zeroed])
        for level in levels([c for c in candidates if c.name not in refused]):
            for pick in (lambda c: c.parameters, self._careful):
                left = [c for c in level if c.name not in self.zeroed and pick(c)]
                refused.update(self._measured(left, pick) if left else {})
        return {n: why for n, why in refused.items() if n not in self.zeroed}

    def _careful(self, candidate: Candidate) -> tuple[str, ...]:
        """Without what scales the way around the branch, and without what a weight is divided by."""
        left = [
            n
            for n in candidate.parameters
            if "." in n[len(candidate.name) + 1 :]
            and not n.endswith((".parametrizations.weight.original1", "weight_v"))
        ]
        return tuple(left) if len(left) < len(candidate.parameters) else ()

    def _shapes(self, candidates: Sequence[Candidate]) -> dict[str, str]:
        """Candidate -> why it cannot be the identity, whatever its weights: one run as it is."""
        reasons: dict[str, str] = {}
        called = self.called

        def look(name: str, given: Tensor | None, output: Any) -> None:
            called.add(name)
            found = first_of(output)
            if given is None or found is None or not given.is_floating_point():
                reasons.setdefault(name, "it passes no numbers from an input to an output")
            elif (given.shape, given.dtype) != (found.shape, found.dtype):
                shapes = f"{_sides(given)} in and {_sides(found)} out"
                reasons.setdefault(name, f"its output is not of its input's shape ({shapes})")

        lists = {c.name: self.model.get_submodule(c.name) for c in candidates}
        lists = {n: m for n, m in lists.items() if isinstance(m, nn.ModuleList | nn.ModuleDict)}
        inside = [f"{n}.{k}" for n, m in lists.items() for k, _ in m.named_modules() if k]
        with self._watched([*(c.name for c in candidates), *inside], look, bypass=False):
            outputs(self.model, self.inputs[0])
        for candidate in candidates:
            name = candidate.name
            if name not in called and name in lists and any(n.startswith(f"{name}.") for n in called):
                self.unwatched.add(name)
                self.zeroed[name] = candidate.parameters
            elif name not in called:
                reasons[name] = "it did not run for the example"
        return {c.name: reasons[c.name] for c in candidates if c.name in reasons}

    def _measured(self, level: list[Candidate], pick: Callable[[Candidate], tuple[str, ...]]) -> dict[str, str]:
        """Run with all of these at zero, each passing its input on whatever it computes, and look at what it does."""
        reasons: dict[str, str] = {}
        called: set[str] = set()

        def look(name: str, given: Tensor | None, output: Any) -> None:
            called.add(name)
            if given is not None and (reason := self._unlike(given, first_of(output))) is not None:
                reasons.setdefault(name, f"with its parameters at zero {reason}")
                if reason == SILENT:
                    self.silent.add(name)

        for inputs in self.inputs:
            with self._zeros([n for c in level for n in pick(c)]), self._watched([c.name for c in level], look):
                try:
                    outputs(self.model, inputs)
                except DataError as error:
                    for c in level:
                        if c.name not in called:
                            reasons[c.name] = f"with parameters at zero the model does not run ({error.__cause__})"
        for candidate in level:
            if candidate.name not in reasons:
                self.zeroed[candidate.name] = pick(candidate)
            elif candidate.shares:
                reasons[candidate.name] += "; it shares parameters with other modules, and those stay"
        return reasons

    def _unlike(self, given: Tensor, found: Tensor | None) -> str | None:
        """Why an output is not the input."""
        if found is None or given.shape != found.shape:
            return "its output has another shape"
        if not bool(found.isfinite().all()):
            return "its output is not a number"
        scale = float(given.abs().max()) if given.numel() else 0.0
        if not scale:
            return "it could not be judged: its input is zero for the example"
        if not bool(found.any()):
            return SILENT
        error = float((found - given).abs().max()) / scale
        return None if error <= self.tol else f"it is not the identity (it changes its input by {error:.1e})"

    # Can it be removed?

    def removable(
        self, candidates: Sequence[Candidate], taken: Sequence[Candidate]
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Those that can be removed, together with each other and with `taken`, and the others with the reason."""
        bad: dict[str, str] = {}
        failing: dict[tuple[type, str, int], str] = {}

        def good(part: list[Candidate]) -> list[Candidate]:
            bad.update({c.name: failing[self._kind(c)] for c in part if self._kind(c) in failing})
            part = [c for c in part if c.name not in bad]
            failure = self._attempts(part) if part else None
            if failure is None:
                return part
            reason = f"tried and found not removable: {failure}"
            if len(part) == 1:
                bad[part[0].name] = reason
                if isinstance(failure, StructureError):
                    failing[self._kind(part[0])] = reason
                return []
            middle = len(part) // 2
            later = good(part[middle:])
            return good(part[:middle]) + later

        kept = good(list(candidates))
        tried = not taken and len(kept) == len(candidates)
        while kept and not tried and (failure := self._attempts([*taken, *kept])) is not None:
            bad[kept[-1].name] = f"tried and found not removable together with others: {failure}"
            kept = kept[:-1]
        return kept, bad

    def branches(self, containers: Iterable[list[Candidate]], taken: Sequence[Candidate]) -> list[Candidate]:
        """Those entries that can be removed although they are no identities, so that only the last test judges them:
        branches that are added up, lists that are gone through together.

        A container is given up where neither its first entry nor the last but one can be removed: the last of several
        may be removable by its position alone, where something else is shared out among them. One container that
        passes, or two that fail, speak for all that lie at the same place in modules of one class.
        """
        hopeful: list[Candidate] = []
        verdicts: Counter[tuple[type, str]] = Counter()
        for own in containers:
            if any(c.touches(t.container) or t.touches(c.container) for c in own for t in hopeful):
                continue
            for c in own:
                self.unwatched.add(c.name)
                self.zeroed[c.name] = c.parameters
            kind = self._kind(own[0])[:2]
            if -2 < verdicts[kind] < 1:
                probes = {c.name: c for c in (own[0], own[max(len(own) - 2, 0)])}
                works = any(self._attempt([c], self.inputs[0]) is None for c in probes.values())
                verdicts[kind] += 1 if works else -1
            hopeful += own if verdicts[kind] > 0 else []
        return self.removable(hopeful, taken)[0]

    def _kind(self, candidate: Candidate) -> tuple[type, str, int]:
        """Candidates that fail alike: the same place in modules of one class, whose code cannot do without it."""
        owner, _, own = candidate.container.rpartition(".")
        return type(self.model.get_submodule(owner)), own, candidate.entry

    def _attempts(self, part: Sequence[Candidate]) -> Exception | None:
        """Everything gone but the first of each container that would be emptied; then every second one with the first,
        so that each was gone once and something is left behind what is gone.
        """
        away: dict[str, list[Candidate]] = {}
        for c in part:
            away.setdefault(c.container, []).append(c)
        full = {path for path, own in away.items() if len(own) == len(self.model.get_submodule(path)._modules)}
        ways = (
            [c for path, own in away.items() for c in (own[1:] if path in full else own)],
            [c for own in away.values() for c in own[::2]],
        )
        for way, inputs in zip(ways, (self.inputs[0], self.inputs[-1]), strict=True):
            if way and (failure := self._attempt(way, inputs)) is not None:
                return failure
        return None

    def _attempt(self, gone: list[Candidate], inputs: Example | Tensor) -> Exception | None:
        """Why the model without these is not the one with these at zero."""
        called = [c.name for c in gone if c.name not in self.unwatched]
        rest = [n for c in gone if c.name in self.unwatched for n in self.zeroed[c.name]]
        try:
            with self._zeros([n for c in gone for n in self.zeroed[c.name]]):
                masked = outputs(self.model, inputs)
            with self._zeros(rest), self._watched(called):
                passed = outputs(self.model, inputs) if called else masked
            if (error := largest_difference(masked, passed)) > self.tol:
                return VerificationError(f"it does more than passing its input on (the output changes by {error:.1e})")
            with self._removed(gone):
                error = differ(masked, self.model, inputs)
        except (DataError, StructureError, VerificationError) as failure:
            return failure
        if error <= self.tol:
            return None
        return VerificationError(f"the model without it computes something else (by {error:.1e})")

    @contextmanager
    def _zeros(self, names: Sequence[str]) -> Iterator[None]:
        saved = {name: self.parameters[name].detach().clone() for name in names}
        try:
            for name in names:
                self.parameters[name].data.zero_()
            yield
        finally:
            for name, tensor in saved.items():
                self.parameters[name].data.copy_(tensor)

    @contextmanager
    def _watched(self, names: Sequence[str], look: Look | None = None, *, bypass: bool = True) -> Iterator[None]:
        """Show every call of these modules to `look`, and with `bypass` let each return, as the first tensor of its
        output, the first that it was given.
        """
        given: list[tuple[str, Tensor | None]] = []

        def enter(name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
            tensor = first_of((args, dict(kwargs)))
            self.plain[name] = self.plain.get(name, True) and not kwargs and len(args) == 1 and args[0] is tensor
            # It may be changed in place.
            given.append((name, None if tensor is None else tensor.detach().clone()))

        def leave(name: str, output: Any) -> Any:
            begun, tensor = given.pop()
            while begun != name:  # the model caught an exception on the way
                begun, tensor = given.pop()
            if look is not None:
                look(name, tensor, output)
            found = first_of(output)
            self.plain[name] = self.plain[name] and output is found
            if not bypass or tensor is None or found is None or tensor.shape != found.shape:
                return None
            return _withfirst_of(output, tensor)

        with ExitStack() as stack:
            for name in names:
                module = self.model.get_submodule(name)
                before = module.register_forward_pre_hook(lambda m, a, k, n=name: enter(n, a, k), with_kwargs=True)
                stack.callback(before.remove)
                after = module.register_forward_hook(lambda m, a, o, n=name: leave(n, o))
                stack.callback(after.remove)
            yield

    @contextmanager
    def _removed(self, gone: Sequence[Candidate]) -> Iterator[None]:
        away: dict[str, set[int]] = {}
        for candidate in gone:
            for path in () if candidate.replace else candidate.places:
                away.setdefault(path, set()).add(candidate.entry)
        kept: dict[str, list[int]] = {entries_of(c.name): [] for c in gone if c.replace}
        for path, entries in away.items():
            length = len(self.model.get_submodule(path)._modules)
            kept[entries_of(path)] = [i for i in range(length) if i not in entries]
        undo = apply_(plan(self.model, kept))
        try:
            yield
        finally:
            apply_(undo)


def levels(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates by how many others they lie in: those of one level are no parts of each other."""
    found: dict[int, list[Candidate]] = {}
    names = {c.name for c in candidates}
    for c in candidates:
        steps = c.name.split(".")
        depth = sum(".".join(steps[:i]) in names for i in range(1, len(steps)))
        found.setdefault(depth, []).append(c)
    return [found[d] for d in sorted(found)]


def _sides(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def first_of(value: Any) -> Tensor | None:
    return next(iter(tensors_in(value)), None)


def _withfirst_of(value: Any, tensor: Tensor) -> Any:
    """The value with its first tensor replaced."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, Mapping):
        changed = type(value)(value)  # type: ignore[call-arg]
        for key, item in value.items():
            if first_of(item) is not None:
                changed[key] = _withfirst_of(item, tensor)  # type: ignore[index]
                break
        return changed
    if isinstance(value, tuple | list):
        items = list(value)
        i = next(i for i, item in enumerate(items) if first_of(item) is not None)
        items[i] = _withfirst_of(items[i], tensor)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
