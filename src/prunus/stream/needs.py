"""The linear maps of a block, and the memory that pruning the block takes, told from their sizes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from math import prod

import torch
from torch import nn

from prunus.core.symmetric import ENTRIES, PANEL, numbers
from prunus.engine.backwards import packed

WIDE = 8
"""Bytes of a float64, in which half of x x^T is summed up."""


@dataclass(frozen=True)
class Matrices:
    """Equal linear maps of a block: one, or the experts of a stack."""

    name: str
    out: int
    width: int
    count: int = 1

    @property
    def size(self) -> int:
        return self.out * self.width * self.count

    @property
    def gram(self) -> int:
        """Bytes of x x^T, of all of them."""
        return WIDE * numbers(self.width) * self.count

    @property
    def shared_by(self) -> int:
        """How many layers of a decoder block are fed by the tensor that feeds this one."""
        return ALIKE.get(self.name.split(".")[-2] if "." in self.name else self.name, 1)


ALIKE = {"q_proj": 3, "k_proj": 3, "v_proj": 3, "gate_proj": 2, "up_proj": 2}
"""Layers that are fed the same, by the names that Llama gives them."""


def matrices(block: nn.Module, hidden: int) -> Iterator[Matrices]:
    """The linear maps of a block: matrices, and stacks of them."""
    stacks = {n: p for n, p in block.named_parameters() if p.ndim == 3}
    longest = max((n for p in stacks.values() for n in p.shape[1:]), default=0)
    for name, p in block.named_parameters():
        if p.ndim == 2:
            yield Matrices(name, p.shape[0], p.shape[1])
        elif p.ndim == 3:
            # What is computed at once (gate and up) is longer than what goes back to the model's width.
            out, width = (max(p.shape[1:]), min(p.shape[1:])) if longest in p.shape[1:] else _back(p.shape, hidden)
            yield Matrices(name, out, width, p.shape[0])


def _back(shape: torch.Size, hidden: int) -> tuple[int, int]:
    own = [n for n in shape[1:] if n != hidden] or [hidden]
    return prod(shape[1:]) // max(own), max(own)


def fews(layers: Sequence[Matrices], *, whole: bool) -> list[list[Matrices]]:
    """The layers whose x x^T are there together, in the order in which they come: of one tensor each, or, where a block
    is told of whole, as `prunus.engine.backwards` takes them, the last first.
    """
    alone = count(-1, -1)
    each = [list(g) for _, g in groupby(layers, lambda m: m.shared_by if m.shared_by > 1 else next(alone))]
    if not whole:
        return each
    return [[m for some in each[s] for m in some] for s in packed([all_of(some) for some in each])]


def all_of(layers: Sequence[Matrices]) -> int:
    """Bytes of x x^T of layers together: those that are fed the same share theirs."""
    return sum(m.gram // m.shared_by for m in layers)


def forwards(layers: Sequence[Matrices]) -> float:
    """How much of a block runs until all of them have been reached, from the last to the first, where layers stand in
    the order in which they run: once to the end, and for every further few as far as their last.
    """
    total, behind, found = sum(m.size for m in layers), 0, 0.0
    for at, few in enumerate(fews(layers, whole=True)):
        found += 1.0 if not at or not total else 1 - behind / total
        behind += sum(m.size for m in few)
    return found


def plain_needs(item: int, size: int, layers: Sequence[Matrices], *, scored: int) -> int:
    """Bytes for a block that is scored layer by layer and rebuilt by nothing: weights, masks, and a layer's scores of
    so many bytes a weight, twice.
    """
    return size * (item + 1) + max((m.size for m in layers), default=0) * (item + 2 * scored)


def surgeon_needs(item: int, size: int, layers: Sequence[Matrices], tokens: int, *, whole: bool, scored: bool) -> int:
    """Bytes for a block whose layers `ObsUpdate` rebuilds, beyond what waits and what a forward makes of a batch.

    tokens: of all batches. whole: whether layers come from the last to the first. scored: whether stacks of experts are
    scored first, by the inverse of every x x^T, whole and of all layers at once.
    """
    most, done = 0, 0
    for few in fews(layers, whole=whole):
        left = all_of(few)
        piece = max(min(tokens, max(PANEL, ENTRIES // m.width)) * m.width for m in few)
        most = max(most, done + left + WIDE * piece)
        for one in few:
            own = one.gram // one.count
            # Its factor in float32, and blocks of its diagonal in float64; what the layer has moved by; its mask.
            swept = own // 2 + WIDE * PANEL // 2 * one.width + 4 * one.size // one.count
            most = max(most, done + left + one.size, done + left - own + swept + one.size)
            left -= one.gram // one.shared_by
            done += one.size
    held = size // 8  # masks, a bit each
    if scored:
        every = WIDE * sum(m.width**2 * m.count for m in layers)
        most = max(most, every + 3 * WIDE * max(m.size for m in layers))
    return size * item + held + most
