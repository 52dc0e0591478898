"""Batches from tensors in memory: no worker processes, no Python per example, and an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.lab.data.dataset import Split


@dataclass(frozen=True)
class Augment:
    """Random changes of training images: a shift of up to `shift` pixels (zeros enter), and a mirror image.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2 (4 pixels and flips, on CIFAR). Zeros enter before the
    normalization, as the value of a black pixel.
    """

    shift: int = 0
    flip: bool = False

    def __call__(
        self, x: UInt8[Tensor, "batch channels height width"], generator: torch.Generator
    ) -> UInt8[Tensor, "batch channels height width"]:
        batch, _, height, width = x.shape
        if self.shift:
            padded = torch.nn.functional.pad(x, (self.shift,) * 4)
            offsets = torch.randint(2 * self.shift + 1, (2, batch, 1), generator=generator)
            rows = offsets[0] + torch.arange(height)
            columns = offsets[1] + torch.arange(width)
            at = torch.arange(batch)[:, None, None]
            # The channel axis stands between the advanced indices, so they come out in front of it.
            x = padded[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = torch.rand(batch, generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


class Loader:
    """Iterates over `(inputs, targets)` batches of a split, normalized; can be iterated any number of times.

    Epoch k has the same order and the same augmentation on every run and after every resumption: they follow from the
    seed and k alone. Each `iter()` moves on to the next epoch; `batches(k)` gives any epoch without moving.

    Args:
        split: The examples.
        batch_size: Examples in a batch; the last one has the rest, unless `drop_last`.
        seed: Of order and augmentation.
        shuffle: A new order in every epoch; the stored order otherwise.
        augment: Random changes of the images; none when left out.
        drop_last: Leave out a last batch that is not full.

    Raises:
        SpecError: a batch size below 1, or no batch at all, or an augmentation of tokens.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int = 128,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise SpecError(f"batch_size must be at least 1, not {batch_size}")
        if len(split) < (batch_size if drop_last else 1):
            raise SpecError(f"{len(split)} examples make no batch of {batch_size}: use a smaller batch_size")
        if augment is not None and split.kind == "tokens":
            raise SpecError("augment shifts and mirrors images; leave it out for tokens")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.shuffle, self.augment, self.drop_last = shuffle, augment, drop_last
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Shaped[Tensor, "batch ..."], Int[Tensor, "batch ..."]]]:
        self.epoch += 1
        return self.batches(self.epoch - 1)

    def batches(self, epoch: int) -> Iterator[tuple[Shaped[Tensor, "batch ..."], Int[Tensor, "batch ..."]]]:
        """The batches of this epoch."""
        n = len(self.split)
        # A generator's seed is a 64-bit number; epochs of neighbouring seeds must not coincide.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            at = order[start : start + self.batch_size]
            x = self.split.x[at]
            if self.augment is not None:
                x = self.augment(x, generator)
            yield self.split.inputs(x), self.split.y[at].long()
