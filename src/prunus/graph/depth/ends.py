"""What a residual branch ends in: the parameters that all that it returns is proportional to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.depth.trial import first_of
from prunus.graph.running import FAILURES


class Ends:
    """Runs each of some branches on what it was given in a run of the model, with one module's parameters doubled after
    the other, the last first: where it then returns twice as much, these are its end. A factor on them is a factor on
    the branch.

    Cost: what each branch was given, and one run of it per module in it, up to the one that is its end.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.given = model, dict[str, tuple[Any, Any]]()
        self.handles = [
            model.get_submodule(n).register_forward_pre_hook(
                lambda _m, a, k, n=n: self._enter(n, a, k), with_kwargs=True
            )
            for n in names
        ]

    def _enter(self, name: str, args: Any, kwargs: Any) -> None:
        self.given.setdefault(name, (args, kwargs))

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def of(self, name: str, own: Sequence[str]) -> tuple[str, ...]:
        """The names of the parameters that a branch ends in, of those that are its own; none where it has no end."""
        before = self._returned(name)
        if before is None or not bool(before.any()):
            return ()
        for path, module in reversed(list(self.model.get_submodule(name).named_modules(prefix=name))):
            held = {f"{path}.{n}": p for n, p in module._parameters.items() if p is not None}
            if held and held.keys() <= set(own):
                for p in held.values():
                    p.mul_(2)
                after = self._returned(name)
                for p in held.values():
                    p.mul_(0.5)
                if after is not None and torch.allclose(after, 2 * before, rtol=1e-9, atol=0.0):
                    return tuple(held)
        return ()

    def _returned(self, name: str) -> Tensor | None:
        if name not in self.given:
            return None
        try:
            args, kwargs = copy.deepcopy(self.given[name])  # a cache among them would grow with every run
            return first_of(self.model.get_submodule(name)(*args, **kwargs))
        except FAILURES:
            return None
