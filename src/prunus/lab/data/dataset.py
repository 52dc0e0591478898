"""What a data set is here: three splits of raw tensors, the statistics that normalize them, where they came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from prunus.core.errors import DataError

Kind = Literal["image", "tokens"]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples as they were stored, with the statistics that turn them into inputs.

    Attributes:
        x: `uint8 [n, channels, height, width]` images, or `uint8 [n, length]` tokens.
        y: `int64 [n]` classes, or `uint8 [n, length]`: for every token the one that follows it.
        mean: `float32 [channels]`, in the units of `x`; empty for tokens.
        std: the same for the standard deviation.
        kind: `image` or `tokens`.
    """

    x: Shaped[Tensor, "n ..."]
    y: Shaped[Tensor, "n ..."]
    mean: Float[Tensor, " channels"] = field(default_factory=lambda: torch.zeros(0))
    std: Float[Tensor, " channels"] = field(default_factory=lambda: torch.ones(0))
    kind: Kind = "image"

    def __len__(self) -> int:
        return self.x.shape[0]

    def inputs(self, raw: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
        """What the network is given: `(raw - mean) / std` as float32 for images, int64 for tokens."""
        if self.kind == "tokens":
            return raw.long()
        return (raw.float() - self.mean.view(1, -1, 1, 1)).div_(self.std.view(1, -1, 1, 1))

    def take(self, indices: Int[Tensor, " k"]) -> Split:
        """The examples at these positions, in this order."""
        return replace(self, x=self.x[indices], y=self.y[indices])

    def head(self, n: int) -> Split:
        """The first n examples."""
        return replace(self, x=self.x[:n], y=self.y[:n])


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: Its name in `names()`, or the path it was read from.
        train: Examples to learn from.
        valid: Held out of the training examples, to choose by.
        test: Never looked at while training or choosing.
        num_classes: Classes, or tokens in the vocabulary.
        in_channels: Channels of an image; 0 for tokens.
        size: Side of the (square) images in pixels, or length of the token blocks.
        where: Folder, package or file it was read from.
        digest: SHA-256 over all its tensors before the validation split was taken, so equal data have equal digests.
        kind: `image` or `tokens`.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    num_classes: int
    in_channels: int
    size: int
    where: str
    digest: str
    kind: Kind = "image"

    def __str__(self) -> str:
        what = (
            f"{self.in_channels}x{self.size}x{self.size}" if self.kind == "image" else f"blocks of {self.size} tokens"
        )
        counts = f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
        return f"{self.name}: {counts}, {what}, {self.num_classes} classes, from {self.where}"


def digest(*tensors: Tensor) -> str:
    """SHA-256 over shapes, types and bytes of the tensors, as a hexadecimal string."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def statistics(
    x: UInt8[Tensor, "n channels height width"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and standard deviation of each channel over all pixels, exact up to the final rounding to float32.

    From the histogram of the 256 possible values, so no float copy of the images is made. The deviation of a constant
    channel is given as 1, so that normalizing it gives zeros.
    """
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in range(x.shape[1]):
        counts = torch.bincount(x[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(mean)
        deviations.append(variance.sqrt() if variance > 0 else torch.ones((), dtype=torch.float64))
    return torch.stack(means).float(), torch.stack(deviations).float()


def images(
    name: str,
    train: tuple[UInt8[Tensor, "n channels height width"], Int[Tensor, " labels"]],
    test: tuple[UInt8[Tensor, "m test_channels test_height test_width"], Int[Tensor, " test_labels"]],
    *,
    where: str,
    seed: int,
    held_out: float = 1 / 12,
    num_classes: int | None = None,
) -> Dataset:
    """Assemble an image data set: check it, hold out a stratified validation split, take statistics of what remains.

    Args:
        train, test: Images and classes; that they agree is checked here.
        held_out: Fraction of every class of the training examples that becomes `valid` (1/12: 5,000 of 60,000).
        seed: Which ones; the same seed gives the same split on every machine.

    Raises:
        DataError: the sizes disagree, a split is empty, or a class lies outside `[0, num_classes)`.
    """
    for part, (x, y) in (("train", train), ("test", test)):
        if len(x) != len(y):
            raise DataError(f"{name} ({where}): {len(x)} {part} images but {len(y)} labels; fetch the data set again")
        if len(x) == 0:
            raise DataError(f"{name} ({where}): no {part} images")
    if train[0].shape[1:] != test[0].shape[1:]:
        a, b = tuple(train[0].shape[1:]), tuple(test[0].shape[1:])
        raise DataError(f"{name} ({where}): train images are {a} but test images {b} (channels, height, width)")
    classes = num_classes if num_classes is not None else int(max(train[1].max(), test[1].max())) + 1
    for part, y in (("train", train[1]), ("test", test[1])):
        if int(y.min()) < 0 or int(y.max()) >= classes:
            found = f"between {int(y.min())} and {int(y.max())}"
            raise DataError(
                f"{name} ({where}): {part} labels {found}, expected 0 to {classes - 1}; the file is corrupt"
            )
    key = digest(*train, *test)
    valid_at, train_at = stratified(train[1], held_out, seed)
    mean, std = statistics(train[0][train_at])
    whole = Split(train[0], train[1].long(), mean, std)
    return Dataset(
        name=name,
        train=whole.take(train_at),
        valid=whole.take(valid_at),
        test=Split(test[0], test[1].long(), mean, std),
        num_classes=classes,
        in_channels=train[0].shape[1],
        size=train[0].shape[-1],
        where=where,
        digest=key,
    )


def stratified(y: Int[Tensor, " n"], fraction: float, seed: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " rest"]]:
    """Positions of `fraction` of every class (at least one, where a class has two or more), and those of the rest."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        at = (y == label).nonzero().flatten()
        count = max(1, round(fraction * len(at))) if len(at) > 1 else 0
        chosen[at[torch.randperm(len(at), generator=generator)[:count]]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
