"""Bytes: of the state in memory, of files on disk, and what a sparse container would take (computed, not written)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.measure.inputs import check_materialized, uncompiled
from prunus.measure.parameters import count_nonzero, named_parameters, place


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a model's parameters and buffers.

    `parameters` and `buffers` are what the values occupy in memory, zeros included, shared tensors once.
    `bitmask_estimate` is computed, no such file is written: every tensor as one bit per element plus its nonzero
    values, or dense where that is smaller; headers not counted.
    """

    parameters: int
    buffers: int
    bitmask_estimate: int

    @property
    def dense(self) -> int:
        """Parameters and buffers with all their zeros."""
        return self.parameters + self.buffers

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {**asdict(self), "dense": self.dense}


def bitmask_bytes(tensor: Tensor) -> int:
    """Computed bytes of `tensor` as a bitmask and its nonzero values, or dense if that is less."""
    dense = tensor.numel() * tensor.element_size()
    return min(dense, -(-tensor.numel() // 8) + count_nonzero(tensor) * tensor.element_size())


def state_bytes(model: nn.Module) -> StateBytes:
    """Bytes of the parameters and buffers (also those not saved) of `model`, each shared tensor once.

    Cost: one pass over the weights. Raises `SpecError` for lazy parameters.
    """
    model = uncompiled(model)
    check_materialized(model)
    own = [p for name, owner, p in named_parameters(model) if name == owner]
    buffers = list({place(b): b for b in model.buffers()}.values())
    return StateBytes(
        parameters=sum(p.numel() * p.element_size() for p in own),
        buffers=sum(b.numel() * b.element_size() for b in buffers),
        bitmask_estimate=sum(bitmask_bytes(t) for t in (*own, *buffers)),
    )


def disk_bytes(path: str | PathLike[str]) -> int:
    """Bytes of a file, or of all files below a folder (their lengths, not the blocks of the file system).

    A link counts as what it points to; a file reached by two links below the folder counts once.
    Raises `DataError` if there is nothing at `path`.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"no file or folder at {str(root)!r}: cannot say how many bytes it takes")
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
    stats = [f.stat() for f in files]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in stats}.values())
