"""What a network does between its layers, timed where it happens: normalization, activations, pooling, attention.

No table tells of these operations, and they are no small part: pooling alone takes most of a small network. Each is
booked on the layer whose output it works on, so that it gets cheaper where that layer gets narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.measure.inputs import Example, as_found, device_of, moved, run
from prunus.measure.layers import CONVOLUTIONS, PRODUCTS, LayerCall
from prunus.measure.timing import _no_collection, stopwatch, threads_of

ROUNDS = 7


class _Watch(TorchDispatchMode):
    """Times every operation of a run, and follows which layer each tensor comes from."""

    def __init__(
        self, owned: dict[int, str], calls: Sequence[LayerCall], clock: Callable[[Callable[[], object]], float]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owned, self.calls, self.clock = owned, calls, clock
        self.at = -1  # the layer that ran last
        self.told: list[tuple[int | None, float]] = []  # the layer that an operation follows, milliseconds
        self.fits = True
        self._from = WeakTensorKeyDictionary()  # tensor -> the layer that it comes from

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept: list[Any] = []
        took = self.clock(lambda: kept.append(func(*args, **(kwargs or {}))))
        out = kept.pop()
        if self._is_layer(func, args):
            self.at += 1
            source: int | None = self.at
        else:
            behind = [self._from[t] for t in _tensors((args, kwargs)) if t in self._from]
            source = max(behind, default=None)  # of several the last: sums and products of branches have its width
            self.told.append((source, took))
        if source is not None:
            for tensor in _tensors(out):
                self._from[tensor] = source
        return out

    def _is_layer(self, func: Any, args: Any) -> bool:
        name = str(func).rpartition(".")[0]
        places = PRODUCTS.get(name, ()) if name not in CONVOLUTIONS else (1,)
        names = [n for i in places if (n := self.owned.get(args[i].untyped_storage().data_ptr())) is not None]
        if not names:
            return False
        at = self.at + 1
        self.fits &= at < len(self.calls) and self.calls[at].param in names
        return True


def beside(
    model: nn.Module, example: Example, calls: Sequence[LayerCall], *, threads: int | None = None
) -> tuple[float, ...]:
    """Milliseconds of the operations that follow each layer, for each number that the layer puts out.

    Args:
        model: on the processor; it is left as it was.
        calls: what `layers` saw in a run on the same example.

    What every operation takes at least, its dispatch, is left out; what follows no layer is, too. Returns nothing where
    the operations of a run cannot be told apart: on a device whose work goes on behind Python, and where a run differs
    from the one that `layers` saw. Cost: eight runs.
    """
    device = device_of(model, example)
    if device.type != "cpu" or not calls:
        return ()
    owned = {p.untyped_storage().data_ptr(): n for n, p in model.named_parameters() if p.numel()}
    args, kwargs = moved(example, device)
    seen: list[list[tuple[int | None, float]]] = []
    with threads_of(threads), as_found(model, device, inference=False), _no_collection():
        run(model, args, kwargs)
        for _ in range(ROUNDS):
            watch = _Watch(owned, calls, stopwatch(device))
            with watch:
                run(model, args, kwargs)
            if not watch.fits or watch.at + 1 != len(calls):
                return ()
            seen.append(watch.told)
    if len({tuple(source for source, _ in told) for told in seen}) != 1 or not seen[0]:
        return ()
    least = [min(ms for _, ms in one) for one in zip(*seen, strict=True)]
    floor = min(least)
    found = [0.0] * len(calls)
    for (source, _), ms in zip(seen[0], least, strict=True):
        if source is not None:
            found[source] += ms - floor
    return tuple(ms / max(1, c.shape.outputs * c.shape.positions) for ms, c in zip(found, calls, strict=True))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
