"""A block on several devices: calibration batches run on copies of it side by side, and layers are solved likewise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunus.engine.nested import moved
from prunus.graph.duplicate import duplicate
from prunus.graph.running import computed, identity
from prunus.parts.evidence.capture import Use, lay_

T = TypeVar("T")


class Crew:
    """Devices that work on one block at a time, a thread each.

    Every batch is run by one of them, on a copy of the block; results come back in the order of the batches, and every
    sum over batches is made on one device in that order. A layer is solved by one of them. So nothing depends on how
    many there are, to the bit, where all of them compute the same.

    Args:
        devices: the first is where the block itself lies. One may stand there twice.

    Memory: a copy of the block on each; a batch more in work for each.
    """

    def __init__(self, devices: Sequence[str | torch.device]) -> None:
        self.devices = tuple(map(torch.device, devices))
        self.slots: dict[str, int] = {}
        self._block: nn.Module | None = None
        self._copies: list[nn.Module] = []
        self._stamps: list[tuple[int, int]] = []
        self._workers = [ThreadPoolExecutor(1, f"prunus-device-{i}") for i in range(len(self.devices))]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.take_up(None)
        for worker in self._workers:
            worker.shutdown()

    def take_up(self, block: nn.Module | None) -> None:
        """Let go of the block before, and work on this one, which may be moved to the first device after this."""
        self._block, self._copies, self._stamps, self.slots = block, [], [], {}

    def each(self, act: Callable[[nn.Module, Any], T], batches: Iterable[Any]) -> Iterator[T]:
        """`act(block, batch)` for every batch, in their order, each on one device: a copy of the block as it is now,
        and the batch's tensors there. Without gradients.
        """
        blocks, numbered = self._ready(), enumerate(batches)
        waiting: deque[Future[T]] = deque()

        def send() -> None:
            for index, batch in islice(numbered, 1):
                slot = index % len(blocks)
                waiting.append(self._workers[slot].submit(self._act, slot, act, blocks[slot], batch))

        try:
            for _ in blocks:
                send()
            while waiting:
                found = waiting.popleft().result()
                send()
                yield found
                del found
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def deal_(self, uses: Mapping[str, list[Use]], parameters: Mapping[str, Tensor]) -> None:
        """Lay the inputs of every layer on the device that keeps its sums and solves it.

        The layers that are new are dealt out by what it costs to solve them, the largest first, each to the device with
        the least; layers that are fed one tensor together, which share their sums.
        """
        fed: dict[Any, list[str]] = {}
        for name, ones in uses.items():
            fed.setdefault(identity(ones[0].x), []).append(name)
        load = [0] * len(self.devices)
        for name, slot in self.slots.items():
            load[slot] += _solving(parameters[name])
        shares = [(sum(_solving(parameters[n]) for n in names), names) for names in fed.values()]
        for cost, names in sorted(shares, key=lambda s: -s[0]):
            known = next((self.slots[n] for n in names if n in self.slots), None)
            slot = load.index(min(load)) if known is None else known
            load[slot] += cost
            self.slots |= {n: slot for n in names if n not in self.slots}
        lay_((u for ones in uses.values() for u in ones), lambda use: self.devices[self.slots[use.name]])

    def solve(self, act: Callable[[T], Any], layers: Iterable[tuple[str, T]]) -> Iterator[Any]:
        """`act(layer)` for every pair of a parameter's name and a layer, in their order, each by the device that it was
        dealt to. Without gradients. Those of a device one after another.
        """
        futures = []
        for name, layer in layers:
            slot = self.slots.get(name, 0)
            futures.append(self._workers[slot].submit(self._act, slot, lambda _, x: act(x), None, layer))
        wait(futures)
        for future in futures:
            yield future.result()

    def _act(self, slot: int, act: Callable[[Any, Any], T], block: nn.Module | None, batch: Any) -> T:
        device = self.devices[slot]
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), torch.no_grad():
            return act(block, batch if block is None else moved(batch, device))

    def _ready(self) -> list[nn.Module]:
        """The block on every device, the copies as it is now."""
        block = self._block
        assert block is not None
        stamps = [(id(t), t._version) for t in _state(block)]
        if not self._copies:
            self._copies = [copied(block, d) for d in self.devices[1:]]
        elif stamps != self._stamps:
            with torch.no_grad():
                for made in self._copies:
                    for own, now in zip(_state(made), _state(block), strict=True):
                        own.copy_(now)
        self._stamps = stamps
        return [block, *self._copies]


def copied(block: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a block on another device, with its own forward and not the one that `walk` puts in its place."""
    memo: dict[int, Any] = computed(block)
    for p in block.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to(device, copy=True), requires_grad=False)
    for b in block.buffers():
        memo[id(b)] = b.detach().to(device, copy=True)
    own = block.__dict__.pop("forward", None)
    try:
        return duplicate(block, memo).eval()
    finally:
        if own is not None:
            block.__dict__["forward"] = own


def _state(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]


def _solving(p: Tensor) -> int:
    """Roughly what it costs to solve for a parameter: its numbers times its inputs."""
    return p.numel() * (p.numel() // max(1, len(p)))
