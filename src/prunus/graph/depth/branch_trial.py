"""Try out which modules are silent at zero, and which can be replaced by `Nothing`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.task import Example
from prunus.graph.depth.branch_cache import Stepper, takes_cache
from prunus.graph.depth.branch_shape import Calls, variants
from prunus.graph.depth.drop import CONTAINERS, apply_, entries_of, plan
from prunus.graph.depth.trial import Candidate, Trials, first_of
from prunus.graph.flow import tensors_in
from prunus.graph.running import FAILURES, call, quiet
from prunus.graph.verify import differ, double_default, outputs
from prunus.graph.wide import Wide

_NUMBER = re.compile(r"\d+")

Pick = Callable[[Candidate], tuple[str, ...]]


@dataclass(frozen=True)
class Unit(Candidate):
    """A branch, with all that goes with it.

    Attributes:
        instead: the modules that are replaced, each with what `Nothing` returns in its place; None for an identity.
    """

    instead: tuple[tuple[str, Any], ...] = ()


class BranchTrials(Trials):
    """A float64 copy of a model on which branches are zeroed and replaced.

    Attributes:
        ways: inputs of other sizes that the model runs.
        steps: the model taking two steps with a cache; None where it has none, or cannot take the second.
        untried: it has a cache and cannot take a second step.
        trains: whether gradients get through the model, so that they must without its branches.
        cached: the modules that are given the cache.
    """

    def __init__(self, model: nn.Module, example: Example | Tensor, batch: Example | Tensor, seed: int) -> None:
        super().__init__(model, example, seed)
        self.ways = variants(self.model, self.inputs[0], batch)
        self.cached: set[str] = set()
        self.steps: Stepper | None = None
        self.untried = False
        steps = Stepper(self.model)
        try:
            outputs(steps, self.inputs[0])
            self.steps = steps
        except DataError:
            self.untried = steps.held.cache is not None
        steps.held.cache = None
        self.trains = self._trained() is None

    def all_silent(self, level: Sequence[Candidate]) -> set[str]:
        """Those that return zero wherever their own parameters are zero and what they are given is not."""
        silent: set[str] = set()
        for pick in (lambda c: c.parameters, self._careful):
            left = [c for c in level if c.name not in silent and pick(c)]
            if left:
                found = self._returning_zero(left, pick)
                self.zeroed.update({c.name: pick(c) for c in left if c.name in found})
                silent |= found
        return silent

    def _careful(self, candidate: Candidate) -> tuple[str, ...]:
        """Without the directions of normalized weights, which cannot be zero."""
        own = candidate.parameters
        left = tuple(n for n in own if not n.endswith((".parametrizations.weight.original1", "weight_v")))
        return left if len(left) < len(own) else ()

    def _returning_zero(self, level: Sequence[Candidate], pick: Pick) -> set[str]:
        heard, silent = set[str](), set[str]()

        def look(name: str, given: Tensor | None, output: Any) -> None:
            found = first_of(output)
            if found is None or not found.is_floating_point() or bool(found.any()):
                heard.add(name)
            elif given is not None and bool(given.any()):
                silent.add(name)

        for inputs in self.inputs:
            with self._zeros([n for c in level for n in pick(c)]), self._watched([c.name for c in level], look):
                outputs(self.model, inputs)
        return silent - heard

    def observed(self, names: Sequence[str], zeros: Sequence[str]) -> Calls:
        """What modules are given and return in runs of all sizes, with these parameters at zero."""
        calls = Calls()
        with self._zeros(zeros), calls.watch(self.model, names):
            for inputs in (self.inputs[0], *self.ways):
                outputs(self.model, inputs)
        if self.steps is not None:
            self._see_cache(names)
        return calls

    def _see_cache(self, names: Sequence[str]) -> None:
        held: dict[str, list[Any]] = {}

        def enter(name: str, args: Any, kwargs: dict[str, Any]) -> None:
            held.setdefault(name, []).extend((*args, *kwargs.values()))

        assert self.steps is not None
        handles = [
            self.model.get_submodule(n).register_forward_pre_hook(lambda m, a, k, n=n: enter(n, a, k), with_kwargs=True)
            for n in names
        ]
        try:
            outputs(self.steps, self.inputs[0])
            cache = self.steps.held.cache
        finally:
            self.steps.held.cache = None
            for handle in handles:
                handle.remove()
        self.cached = {n for n, values in held.items() if any(v is cache for v in values)}

    # Can it be replaced?

    def _kind(self, candidate: Candidate) -> tuple[type, str, int]:
        """Branches that fail alike: the same attribute in modules of one class, whose code cannot do without it."""
        own = candidate.name.rpartition(".")[2]
        return type(self.model.get_submodule(candidate.container)), own, candidate.entry

    def _attempts(self, part: Sequence[Candidate]) -> Exception | None:
        """All gone at once, on inputs of all sizes and with a cache; then every second one of those at one place, and
        the others, so that something is left behind what is gone.
        """
        alike: dict[str, list[Candidate]] = {}
        for c in part:
            alike.setdefault(place_of(self.model, c.name), []).append(c)
        even, odd = ([c for own in alike.values() for c in own[start::2]] for start in (0, 1))
        ways: list[tuple[Sequence[Candidate], Example | Tensor, nn.Module | None]] = [
            *((part, inputs, None) for inputs in (self.inputs[0], *self.ways)),
            *((gone, self.inputs[-1], None) for gone in (even, odd)),
            *((gone, self.inputs[0], self.steps) for gone in (part, even, odd) if self.steps is not None),
        ]
        for gone, inputs, model in ways:
            if gone and (failure := self._attempt(list(gone), inputs, model)) is not None:
                return failure
        if not self.trains:
            return None
        with self._removed(part):
            return self._trained()

    def _trained(self) -> Exception | None:
        """Why gradients do not get through the model: reversible layers, activations that are changed in place."""
        inputs = [*self.ways[:1], self.inputs[0]][0]
        buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        wide = (double_default(), Wide()) if self.wide else ()
        try:
            with ExitStack() as stack:
                for manager in (quiet(self.model), torch.enable_grad(), *wide):
                    stack.enter_context(manager)
                for module in self.model.modules():
                    module.training = True
                made = [t.abs().sum() for t in tensors_in(call(self.model, inputs)) if t.requires_grad]
                if made:
                    torch.autograd.backward(made)
        except (DataError, *FAILURES) as error:
            return StructureError(f"the model without it cannot be trained: {error}")
        finally:
            for name, buffer in self.model.named_buffers():
                if name in buffers:
                    buffer.data.copy_(buffers[name])
            for parameter in self.parameters.values():
                parameter.grad = None
        return None

    def alone(self, part: Sequence[Candidate]) -> dict[str, str]:
        """Of those that are given the cache, the ones that it cannot do without, with the reason.

        Each for itself: where others are gone too, nothing may be left that a wrong length could change.
        """
        bad = {}
        for candidate in part if self.untried else ():
            if any(takes_cache(self.model.get_submodule(name)) for name, _ in _instead(candidate)):
                bad[candidate.name] = "the model's key-value cache may need it, and a second step could not be tried"
        for candidate in part if self.steps is not None else ():
            if self.cached & {n for n, _ in _instead(candidate)}:
                failure = self._attempt([candidate], self.inputs[0], self.steps)
                if isinstance(failure, VerificationError):
                    bad[candidate.name] = (
                        f"without it steps with a key-value cache differ, whose length may be read there: {failure}"
                    )
        return bad

    def _attempt(
        self, gone: list[Candidate], inputs: Example | Tensor, model: nn.Module | None = None
    ) -> Exception | None:
        """Why the model without these is not the one with these at zero."""
        model = self.model if model is None else model
        try:
            with self._zeros([n for c in gone for n in self.zeroed[c.name]]):
                masked = outputs(model, inputs)
            if any(bool(t.isnan().any()) for t in masked):
                return VerificationError("with its parameters at zero the model's output is not a number")
            with self._removed(gone):
                error = differ(masked, model, inputs)
        except (DataError, StructureError, VerificationError) as failure:
            return failure
        if error <= self.tol:
            return None
        return VerificationError(f"the model without it computes something else (by {error:.1e})")

    @contextmanager
    def _removed(self, gone: Sequence[Candidate]) -> Iterator[None]:
        instead = {entries_of(name): new for c in gone for name, new in _instead(c)}
        undo = apply_(plan(self.model, dict.fromkeys(instead, ()), {k: v for k, v in instead.items() if v is not None}))
        try:
            yield
        finally:
            apply_(undo)


def place_of(model: nn.Module, name: str) -> str:
    """The path of a module with a star for every entry of a container, and for the numbers in names of modules of one
    class side by side (`layer1`, `layer2`): what is alike in all layers.
    """
    *owners, last = name.split(".")
    steps, module = [], model
    for step in owners:
        alike = [n for n, m in module.named_children() if type(m) is type(module.get_submodule(step))]
        pattern = _NUMBER.sub("*", step)
        numbered = sum(_NUMBER.sub("*", other) == pattern for other in alike) > 1
        steps.append("*" if isinstance(module, CONTAINERS) else pattern if numbered else step)
        module = module.get_submodule(step)
    return ".".join([*steps, "*" if isinstance(module, CONTAINERS) else last])


def _instead(candidate: Candidate) -> tuple[tuple[str, Any], ...]:
    return candidate.instead if isinstance(candidate, Unit) else ()
