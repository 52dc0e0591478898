"""Freed memory that the system gets back, so that what a process holds is what it needs."""

import ctypes
import gc
import os
from typing import Any

LARGE = 1 << 20
_MMAP_THRESHOLD = -3


def tight() -> None:
    """From now on tensors of 1 MB and more come from the system one by one, and go back to it when they are freed.

    glibc keeps what was freed below 32 MB in its heaps, in pieces that the next tensors may not fit into: of a model of
    1.1 B parameters that was as much as a block.
    Process: sets `M_MMAP_THRESHOLD` (mallopt), for all of the process and for good: nothing puts it back. Other
    allocators and other systems are left to themselves.
    """
    _call("mallopt", _MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Free circles of objects, which Python does when it comes to it, and give free memory back to the system."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *args: int) -> None:
    """A function of the C library, where there is such a one."""
    found: Any = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if found is not None:
        found(*args)
