"""Readers of the file formats: IDX (MNIST), binary records (CIFAR), MATLAB (SVHN), folders of images, text.

Each checks what it reads against what the format promises, and says which file is wrong and by how much. Nothing here
unpickles: a pickle can run any code when it is read.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from prunus.core.errors import DataError, listed, require

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
_AGAIN = "delete it and fetch the data set again"


def read_bytes(path: Path) -> bytes:
    """Content of a file, unzipped if its name ends in `.gz`.

    Raises:
        DataError: it cannot be read, or the gzip stream is cut off or damaged.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            return stream.read()
    except EOFError as error:
        size = path.stat().st_size
        raise DataError(f"{path} is cut off: its {size} bytes end inside the gzip stream; {_AGAIN}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """An IDX file of unsigned bytes, as MNIST uses it.

    The format: two zero bytes, a type (8: unsigned byte), the number of axes, each axis as a big-endian 32-bit integer,
    then the values, last axis fastest (Y. LeCun, the MNIST page).

    Raises:
        DataError: not such a file, or it holds fewer or more values than its header says.
    """
    content = read_bytes(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        first = content[:4].hex(" ") or "nothing"
        raise DataError(
            f"{path} is no IDX file of bytes: it starts with {first}, not 00 00 08 and 1 to 4 axes; {_AGAIN}"
        )
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(shape)
    if len(content) != expected:
        sizes = f"found {len(content)} bytes, expected {expected} for an array of {' x '.join(map(str, shape))}"
        raise DataError(f"{path} is cut off or damaged: {sizes}; {_AGAIN}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def read_records(
    paths: Sequence[Path], *, records: int, labels: int, side: int = 32
) -> tuple[UInt8[Tensor, "n 3 side side"], Int[Tensor, " n"]]:
    """Binary CIFAR files: per image `labels` label bytes (the last one is the fine label), then red, green, blue.

    Args:
        records: Images that every file must hold.
        labels: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, fine).

    Raises:
        DataError: a file has another size than so many records.
    """
    width = labels + 3 * side * side
    parts = []
    for path in paths:
        content = read_bytes(path)
        if len(content) != records * width:
            sizes = f"found {len(content)} bytes, expected {records * width} ({records} records of {width})"
            raise DataError(f"{path} is cut off or damaged: {sizes}; {_AGAIN}")
        parts.append(torch.frombuffer(bytearray(content), dtype=torch.uint8).view(records, width))
    table = torch.cat(parts)
    return table[:, labels:].reshape(-1, 3, side, side), table[:, labels - 1].long()


def read_svhn(path: Path) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """A MATLAB file of SVHN's cropped digits: `X [32, 32, 3, n]` and `y [n, 1]`, where 10 stands for the digit 0.

    Raises:
        DataError: the file is damaged or has other contents.
        MissingExtraError: scipy is not installed.
    """
    io = require("scipy.io", extra="data", why="SVHN is stored as MATLAB files")
    try:
        content = io.loadmat(path, variable_names=["X", "y"])
    except (ValueError, OSError, TypeError, EOFError, NotImplementedError, zlib.error) as error:
        size = path.stat().st_size
        raise DataError(f"{path} ({size} bytes) is cut off or no MATLAB file of SVHN ({error}); {_AGAIN}") from error
    missing = [k for k in ("X", "y") if k not in content]
    if missing:
        raise DataError(f"{path} has no variable {' and '.join(missing)}: it is not SVHN's format 2 (cropped digits)")
    x, y = torch.from_numpy(content["X"]), torch.from_numpy(content["y"].astype("int64")).flatten()
    if x.dtype != torch.uint8 or x.ndim != 4 or tuple(x.shape[:3]) != (32, 32, 3):
        raise DataError(f"{path}: X is {x.dtype} of shape {tuple(x.shape)}, expected uint8 of shape (32, 32, 3, n)")
    return x.permute(3, 2, 0, 1).contiguous(), y % 10


def is_picture(path: Path) -> bool:
    """Whether the name ends like that of an image."""
    return path.suffix.lower() in _PICTURES


def class_names(folder: Path) -> list[str]:
    """Sub-folders that hold at least one image, in alphabetical order: the classes of an image folder."""
    return sorted(d.name for d in folder.iterdir() if d.is_dir() and any(is_picture(f) for f in d.rglob("*")))


def read_folder(
    folder: Path, classes: Sequence[str], size: int, *, channels: int = 3
) -> tuple[UInt8[Tensor, "n channels size size"], Int[Tensor, " n"]]:
    """Images in one folder per class, each cut to its central square and resized to `size` pixels.

    Raises:
        DataError: an image cannot be decoded (it is named).
        MissingExtraError: pillow is not installed.
    """
    pil = require("PIL.Image", extra="vision", why="it decodes the images of a folder")
    ops = require("PIL.ImageOps", extra="vision", why="it resizes the images of a folder")
    x: list[Tensor] = []
    y: list[int] = []
    for label, name in enumerate(classes):
        for path in sorted(f for f in (folder / name).rglob("*") if is_picture(f)):
            try:
                with pil.open(path) as picture:
                    fitted = ops.fit(picture.convert("RGB" if channels == 3 else "L"), (size, size))
            except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
                # Pillow reports a broken PNG as a SyntaxError.
                raise DataError(f"{path} cannot be decoded as an image ({error}); remove it or replace it") from error
            pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
            x.append(pixels.view(size, size, channels).permute(2, 0, 1).contiguous())
            y.append(label)
    if not x:
        raise DataError(f"{folder} has no image in the folders {listed(list(classes))}")
    return torch.stack(x), torch.tensor(y)


def matching(root: Path, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder that match, ordered by name.

    Raises:
        DataError: there is none.
    """
    found = [root] if root.is_file() else sorted(f for f in root.glob(pattern) if f.is_file())
    if not found:
        raise DataError(f"{root} has no file that matches {pattern!r}: give another pattern, such as '**/*.txt'")
    return found


def read_text(
    root: Path, pattern: str, length: int
) -> list[tuple[Shaped[Tensor, "n length"], Shaped[Tensor, "n length"]]]:
    """Bytes of the files that match, cut into train, valid and test (80, 10, 10 % of the bytes, ordered by name).

    Each part is a pair of blocks: tokens, and for every token its successor. Files are joined with one zero byte.

    Raises:
        DataError: no file matches, or together they are too short for one block in every part.
    """
    files = matching(root, pattern)
    content = b"\0".join(read_bytes(f) for f in files)
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
    cuts = (0, int(0.8 * len(tokens)), int(0.9 * len(tokens)), len(tokens))
    if min(b - a for a, b in pairwise(cuts)) <= length:
        raise DataError(
            f"{root} has {len(tokens)} bytes in {len(files)} files that match {pattern!r}: "
            f"too few for blocks of {length} in train, valid and test; at least {10 * (length + 2)} are needed"
        )
    parts = []
    for begin, end in pairwise(cuts):
        count = (end - begin - 1) // length
        piece = tokens[begin : begin + count * length + 1]
        parts.append((piece[:-1].view(count, length).clone(), piece[1:].view(count, length).clone()))
    return parts
