"""One row of the list of networks: how to build it, what to feed it, and what is expected of pruning it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Expected = Literal["equal", "refused"]

CONV = ("channel",)
MLP = ("neuron",)


@dataclass(frozen=True)
class Network:
    """One network of the list.

    Attributes:
        name: `source/architecture`, unique.
        family: the part of the list it belongs to.
        build: makes it with random weights; imports what it needs when called.
        example: makes the inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        other: makes inputs of another size, where the network takes them: what is equal on the example only is wrong.
        prunes: the kinds of units that must be found prunable; more may be.
        expected: `equal` (pruned, and the compact model computes what the masked one does) or `refused`.
        reason: for a refused network, a part of the reason that must be given.
        fast: quick enough to be proved in every run of the tests.
        seconds: CPU time the sweep gives it, where the default does not do.
    """

    name: str
    family: str
    build: Callable[[], nn.Module] = field(repr=False)
    example: Callable[[], Any] = field(repr=False)
    other: Callable[[], Any] | None = field(default=None, repr=False)
    prunes: tuple[str, ...] = CONV
    expected: Expected = "equal"
    reason: str = ""
    fast: bool = False
    seconds: int = 0


def image(size: int = 64, channels: int = 3, batch: int = 2) -> Callable[[], Tensor]:
    """A batch of square images of noise."""
    return lambda: torch.randn(batch, channels, size, size)


def ids(length: int = 7, vocabulary: int = 64, batch: int = 2) -> Tensor:
    """Random token ids that avoid the first few, which tokenizers reserve."""
    return torch.randint(4, vocabulary, (batch, length))


def words(text: str) -> list[str]:
    """A block of names, split at white space."""
    return text.split()
