"""Activations that are too many for memory wait in files."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prunus.core.errors import PrunusError
from prunus.deploy.tensors import bytes_of
from prunus.engine.nested import changed

_SMALL = 1 << 16


class Shelf:
    """Holds what blocks give, in memory up to a limit, beyond it in files without a name.

    What is put comes back as tensors whose memory is mapped from a file and is not touched before somebody reads them;
    `take` reads a copy of it in one piece, so that what was used once does not stay in memory. The files are gone with
    the tensors, or with the process.

    Args:
        folder: where the files lie.
        limit: bytes that may stay in memory; None for all.

    Attributes:
        held: bytes of what was put that are in memory now.
        shelved: bytes that are in files now.
        most: the most that was ever held and shelved together.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        self.held = self.shelved = self.most = 0
        self._files: dict[int, BinaryIO] = {}

    def put(self, value: Any) -> Any:
        """The same nested value, its tensors held or shelved."""
        found = changed(value, self._put)
        self.most = max(self.most, self.held + self.shelved)
        return found

    def take(self, value: Any) -> Any:
        """The same nested value, shelved tensors read into memory of their own."""
        return changed(value, self._take)

    def _put(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.itemsize
        if size < _SMALL or tensor.device.type != "cpu":
            return tensor
        if self.limit is None or self.held + size <= self.limit:
            self.held += size
            weakref.finalize(tensor, self._let, size)
            return tensor
        try:
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed when the tensor is gone)
            file.write(bytes_of(tensor))
            file.flush()
        except OSError as error:
            raise PrunusError(
                f"could not write activations to {self.folder}: {error.strerror or error}. Free space, pass fewer or "
                f"shorter samples, or let more of them stay in memory"
            ) from error
        mapped = mmap.mmap(file.fileno(), size)
        found = torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)
        self.shelved += size
        self._files[found.data_ptr()] = file
        weakref.finalize(found, self._forget, found.data_ptr(), size)
        return found

    def _take(self, tensor: Tensor) -> Tensor:
        file = self._files.get(tensor.data_ptr()) if tensor.device.type == "cpu" else None
        size = tensor.numel() * tensor.itemsize
        if file is None or not tensor.is_contiguous() or os.fstat(file.fileno()).st_size != size:
            return tensor
        data = torch.empty(size, dtype=torch.uint8)
        view, read = data.numpy().data, 0
        while read < size and (n := os.preadv(file.fileno(), [view[read:]], read)):
            read += n
        return data.view(tensor.dtype).reshape(tensor.shape)

    def _let(self, size: int) -> None:
        self.held -= size

    def _forget(self, place: int, size: int) -> None:
        self.shelved -= size
        self._files.pop(place).close()
