"""Data sets in memory: `load` by name or path, `default` for what this machine has, `Loader` for batches.

>>> from prunus.lab import data
>>> digits = data.load("digits")
>>> loader = data.Loader(digits.train, batch_size=64, shuffle=True, seed=0)
>>> inputs, targets = next(iter(loader))
>>> inputs.shape, targets.shape
(torch.Size([64, 1, 8, 8]), torch.Size([64]))
"""

from __future__ import annotations

import os
from pathlib import Path

from prunus.core.errors import SpecError
from prunus.lab.data import sources
from prunus.lab.data.dataset import Dataset, Split
from prunus.lab.data.loader import Augment, Loader

__all__ = ["Augment", "Dataset", "Loader", "Split", "default", "load", "names"]


def names() -> tuple[str, ...]:
    """Names that `load` knows; it takes a path as well."""
    return sources.NAMES


def load(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    seed: int = 0,
    size: int | None = None,
    channels: int = 3,
    pattern: str = "**/*.py",
    length: int = 128,
) -> Dataset:
    """Read a data set into memory.

    Args:
        name: One of `names()`, or the path of a folder or file, whose kind is then found out.
        root: Folder to look in, and to download to. When left out: `$PRUNUS_DATA` or the user's cache folder, `./data`,
            and where Debian's packages put data sets. For `folder` and `text`, the data itself.
        download: Fetch what is not found. MNIST, Fashion-MNIST and SVHN go through torchvision (`vision` extra), CIFAR
            comes from its authors' page in the binary version; the pickled version is never read.
        seed: Which training examples are held out as `valid`. The test part does not depend on it.
        size: Side in pixels that the images of a folder are resized to; 32 when left out.
        channels: 3, or 1 to turn the images of a folder grey.
        pattern: Files of a text folder.
        length: Tokens in a block of text.

    Raises:
        UnknownNameError: neither a name nor a path.
        DataError: not found (with where it was looked for, and how to get it), damaged, or a download that failed.
        MissingExtraError: a library that this data set needs.
        SpecError: a size, length or channel count that makes no sense.
    """
    path = None if root is None else Path(root).expanduser()
    if size is not None and size < 1:
        raise SpecError(f"size must be at least 1 pixel, not {size}")
    if channels not in (1, 3):
        raise SpecError(f"channels must be 1 (grey) or 3 (colour), not {channels}")
    key = os.fspath(name)
    if key not in sources.NAMES:
        given = Path(key).expanduser()
        if not given.exists() and os.sep not in key:
            raise sources.unknown(key)
        key, path = sources.kind_of(given), given
        if key in ("cifar10", "cifar100") and any(path.glob("test*.bin")):
            path = path.parent
    if key == "digits":
        return sources.load_digits(seed=seed)
    if key in ("fashion-mnist", "mnist"):
        return sources.load_idx(key, path, download=download, seed=seed)
    if key in ("cifar10", "cifar100"):
        return sources.load_cifar(key, path, download=download, seed=seed)
    if key == "svhn":
        return sources.load_svhn(path, download=download, seed=seed)
    if key == "folder":
        return sources.load_folder(path, size=size, channels=channels, seed=seed)
    return sources.load_text(path, pattern=pattern, length=length)


def default(
    root: str | os.PathLike[str] | None = None, *, download: bool = False, seed: int = 0
) -> tuple[Dataset, str]:
    """Fashion-MNIST where it lies on this machine (or may be downloaded), else scikit-learn's digits.

    Returns:
        The data set, and a sentence that says which one it is and why.
    """
    path = None if root is None else Path(root).expanduser()
    found, _ = sources.find_idx("fashion-mnist", path)
    if found is not None or download:
        dataset = load("fashion-mnist", root, download=download, seed=seed)
        how = "was found at" if found is not None else "was downloaded to"
        return dataset, f"Fashion-MNIST {how} {dataset.where}."
    reason = "Fashion-MNIST is not on this machine and no download was asked for (--download)"
    return load("digits", seed=seed), f"{reason}, so scikit-learn's digits are used: small, but real."
