"""How much memory of the process some work takes, whatever library does it (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """Bytes of the process that lie in memory; None where the system does not say."""
    return _line("VmRSS")


def settled_bytes() -> int | None:
    """The same after garbage and free blocks were given back, so that what comes next is not served from them."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def peak_of(work: Callable[[], object]) -> int | None:
    """The most bytes of the process that lay in memory while `work` ran; None where the system does not say."""
    try:
        _REFS.write_text("5")  # starts the peak anew
    except OSError:
        return None
    work()
    return _line("VmHWM")


def _line(key: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
