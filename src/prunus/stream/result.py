"""What a run over a folder comes to: its record, and the digests by which runs and masks are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus import __version__
from prunus.core.budget import Budget
from prunus.core.errors import DataError
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.deploy.tensors import bytes_of
from prunus.stream.shards import Checkpoint
from prunus.stream.state import BlockRecord

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
"""Endings of files that hold weights; all others of a folder are copied."""
OnBlock = Callable[[int, int, BlockRecord], None]
"""Called after every block with (done, all, record)."""


@dataclass(frozen=True)
class Streamed:
    """A pruned folder.

    Attributes:
        folder: where it lies; `from_pretrained` reads it.
        recipe: what was done.
        blocks: a record per block, in the order of the model.
        outside: how many weights lie in no block and were copied as they are.
        inside: how many weights the blocks have.
        resumed: how many blocks an earlier run had done.
        read: bytes of weights that were read for the blocks and for what is called outside of them.
        written: bytes of weights; those outside of the blocks were copied.
        activations: the most bytes of activations that waited between blocks, in memory or in files.
        seconds: wall time of this run.
    """

    folder: Path
    recipe: Recipe
    blocks: tuple[BlockRecord, ...]
    inside: int
    outside: int
    resumed: int
    read: int
    written: int
    activations: int
    seconds: float

    @property
    def sparsity(self) -> float:
        """Of the units that were scored."""
        counts = [(n, b.kept[g]) for b in self.blocks for g, n in b.units.items() if g not in b.skipped]
        return 1 - sum(kept for _, kept in counts) / sum(n for n, _ in counts)

    @property
    def overall(self) -> float:
        """Of all units in the blocks, those included that nothing scored."""
        kept = sum(n for b in self.blocks for n in b.kept.values())
        return 1 - kept / sum(n for b in self.blocks for n in b.units.values())

    @property
    def skipped(self) -> dict[str, str]:
        """The groups that were not scored, with their blocks' paths, and why."""
        return {f"{b.name}.{g}": why for b in self.blocks for g, why in b.skipped.items()}

    @property
    def masks(self) -> str:
        """SHA-256 over the masks of all blocks."""
        return hashlib.sha256("".join(b.masks for b in self.blocks).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "prunus": __version__,
            "recipe": self.recipe.to_dict(),
            "sparsity": self.sparsity,
            "sparsity_of_all_in_blocks": self.overall,
            "weights_in_blocks": self.inside,
            "weights_outside": self.outside,
            "masks": self.masks,
            "resumed": self.resumed,
            "bytes_read": self.read,
            "bytes_written": self.written,
            "bytes_of_activations": self.activations,
            "seconds": self.seconds,
            "blocks": [asdict(b) for b in self.blocks],
        }


def fingerprint_of(checkpoint: Checkpoint, recipe: Recipe, budget: Budget, seed: int, batches: Any) -> str:
    """SHA-256 of all that the outcome of a run hangs on. Errors: `DataError` for batches of anything but tensors, text
    and numbers in dicts, lists and tuples.
    """
    sha = hashlib.sha256(checkpoint.digest().encode())
    told = {"recipe": recipe.to_dict(), "budget": asdict(budget), "seed": seed, "prunus": __version__}
    sha.update(json.dumps(told, sort_keys=True, default=str).encode())
    for batch in batches:
        _feed(sha, batch)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
        sha.update(bytes_of(value))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            sha.update(str(key).encode())
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _feed(sha, one)
    elif isinstance(value, str | int | float | bool | None):
        sha.update(repr(value).encode())
    else:
        raise DataError(f"a calibration batch holds a {type(value).__name__}: pass tensors in dicts, lists or tuples")


def digest_of(masks: Masks) -> str:
    """SHA-256 of masks and the names of their groups."""
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(name.encode())
        sha.update(bytes_of(masks[name]))
    return sha.hexdigest()
