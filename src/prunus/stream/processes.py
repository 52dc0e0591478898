"""One folder, several processes: each runs its part of the calibration data, and the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from prunus.core.errors import DataError, PrunusError
from prunus.engine.agreement import check_agreement, distributed

T = TypeVar("T")


def rank() -> int:
    """Which of the processes this is; 0 where it is the only one."""
    return dist.get_rank() if distributed() else 0


@contextmanager
def joined(device: str = "cpu") -> Iterator[int]:
    """Join the processes that `torchrun` started, where it did and nobody has joined them yet; gives the rank.

    gloo on the CPU; nccl on CUDA, each process on a device of its own (written without one at hand, so never run).
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not started or not dist.is_available() or dist.is_initialized():
        yield rank()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield rank()
    finally:
        dist.destroy_process_group()


def device_of() -> torch.device:
    """Where tensors lie that the processes exchange."""
    on_cuda = distributed() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")


def own_part(batches: Sequence[T], fingerprint: str) -> list[T]:
    """Of the batches that all processes were given, every n-th, from the one of this rank's number on.

    Errors: on all ranks alike, where they were given different things, or fewer batches than there are processes.
    """
    if not distributed():
        return list(batches)
    check_agreement({"model, recipe, budget, seed or calibration data": fingerprint}, device_of())
    count = dist.get_world_size()
    if len(batches) < count:
        raise DataError(f"{len(batches)} calibration batches cannot be shared by {count} processes: pass more of them")
    return list(batches[rank() :: count])


def by_first(act: Callable[[], T]) -> T | None:
    """What the first process does while the others wait for it; None there. Where it fails, all do."""
    if not distributed():
        return act()
    found: T | None = None
    error: Exception | None = None
    if rank() == 0:
        try:
            found = act()
        except Exception as caught:  # noqa: BLE001 (raised again when the others know)
            error = caught
    failed = torch.tensor(int(error is not None), device=device_of())
    dist.all_reduce(failed)
    if error is not None:
        raise error
    if int(failed):
        raise PrunusError("the process of rank 0 stopped, and says why; this one waited for it")
    return found
