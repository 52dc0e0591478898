"""A saved folder without containers: dense safetensors, which any tool reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunus.deploy.atomic import MARK, check_replaceable, check_space, new_folder
from prunus.deploy.containers.grid import integers_of
from prunus.deploy.containers.spec import ITEM_BYTES
from prunus.deploy.files import MASKS, META, WEIGHTS, Masks, weights_of
from prunus.deploy.manifest import FileRecord, SizesRecord, read_manifest
from prunus.deploy.tensors import Entry, write_tensors
from prunus.deploy.weights import Weights, check_claim, free_memory, packed_bits


@dataclass(frozen=True)
class Unpacked:
    """What was written.

    Attributes:
        folder: where it lies.
        tensors: how many there are.
        packed: how many of them were in containers.
        before: bytes of the tensors as they were stored.
        after: bytes as they are now.
    """

    folder: Path
    tensors: int
    packed: int
    before: int
    after: int


def unpack_folder(folder: str | Path, out: str | Path, *, limit: int | None = None, write: bool = True) -> Unpacked:
    """Write a folder of `prunus.save` anew with every tensor dense; `prunus.load` reads it as before.

    Args:
        folder: what to unpack; it is not changed.
        out: where to; an earlier folder of ours is replaced in one step, anything else is refused.
        limit: bytes that one tensor may take; left out, half of the memory that is free. A container of a few bytes
            can claim any size, and here no model says how large its tensors are.
        write: False checks everything and says what would be written.

    Cost: the dense bytes on the disk; one tensor at a time in memory.
    Errors: `SpecError` for another folder or an `out` that is taken; `VerificationError` for a changed file, or
        one that claims more than the limit; `PrunusError` where the disk has no room.
    """
    folder, out = Path(folder), Path(out)
    manifest = read_manifest(folder)
    check_replaceable(out)
    weights = weights_of(folder, manifest)
    masks = Masks(folder, manifest, weights)
    limit = free_memory() // 2 if limit is None else limit
    sizes = {n: weights.bytes_of(n) for n in weights.shapes}
    for name, size in sizes.items():
        check_claim(f"{name} in {weights.file.path}", size, limit)
    total = sum(sizes.values())
    check_space(out.absolute().parent, total)
    stored = sum(p.size for p in weights.file.places.values())
    made = Unpacked(out, len(sizes), len(weights.packed), stored, total)
    if not write:
        return made
    order = sorted(sizes, key=lambda n: -ITEM_BYTES[weights.dtype_of(n)])
    dense = [Entry(n, weights.dtype_of(n), s := weights.shapes[n], partial(_dense, weights, n, s)) for n in order]
    bits = [Entry(n, "U8", (-(-math.prod(s) // 8),), partial(_bits, masks, n)) for n, s in manifest.masks.items()]
    with new_folder(out, needs=total) as temporary:
        digests = {
            WEIGHTS: write_tensors(temporary / WEIGHTS, dense, META),
            MASKS: write_tensors(temporary / MASKS, bits, META),
        }
        told = {
            "files": {n: FileRecord(sha256=d, bytes=(temporary / n).stat().st_size) for n, d in digests.items()},
            "tensors": {},
            "mask_of": {},
            "format_version": 2,
            "sizes": SizesRecord(dense=total, stored=total, bound=manifest.sizes.bound if manifest.sizes else total),
        }
        (temporary / MARK).write_bytes(manifest.model_copy(update=told).sealed())
    return made


def _dense(weights: Weights, name: str, shape: tuple[int, ...]) -> Iterator[Any]:
    yield integers_of(weights.tensor(name, shape))


def _bits(masks: Masks, name: str) -> Iterator[Any]:
    return packed_bits(masks.one(name))
