"""The native library in this process: found, compiled if need be, loaded once."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from prunus.core.errors import PrunusError, SpecError
from prunus.deploy.kernels import build

VERSION = 2
_LEVEL = "PRUNUS_KERNEL_LEVEL"
_THREADS = "PRUNUS_KERNEL_THREADS"
_process = os.getpid()
_lock = threading.Lock()


class Matrix(ctypes.Structure):
    """`struct Matrix` of native/matrix.hpp."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("tile", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("wide", ctypes.c_int32),
        ("half", ctypes.c_int32),
    )


@dataclass(frozen=True)
class _Found:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str


_found: _Found | None = None


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    if library.prunus_version() != VERSION:
        raise OSError(f"{path} has another interface than this version of Prunus")
    for name in ("prunus_level", "prunus_widest_level"):
        getattr(library, name).restype = ctypes.c_char_p
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    matrix = ctypes.POINTER(Matrix)
    library.prunus_use_level.argtypes = [ctypes.c_char_p]
    library.prunus_use_team.argtypes = [pointer]
    library.prunus_use_team.restype = None
    library.prunus_check.argtypes = [matrix]
    library.prunus_linear.argtypes = [matrix, pointer, i32, i64, pointer, i32, pointer, i32]
    library.prunus_conv2d.argtypes = [matrix, pointer, i32, pointer, pointer, i32, pointer, i32]
    return library


def _openmp() -> int | None:
    """Where the OpenMP runtime of PyTorch's operators runs a team of threads; None without one.

    A forked process has the runtime without its threads, and would wait for them.
    """
    if os.getpid() != _process or os.name != "posix":
        return None
    run = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(run, ctypes.c_void_p).value if run else None


def _search() -> _Found:
    problems: list[str] = []
    given = os.environ.get("PRUNUS_KERNEL_LIBRARY")
    for path in (Path(given),) if given else (build.PACKAGED, None):
        if path is not None and not given and not path.is_file():
            continue
        try:
            library = _open(build.cached() if path is None else path)
        except (OSError, AttributeError, build.BuildError) as error:
            problems.append(str(error))
            continue
        wanted = os.environ.get(_LEVEL)
        if wanted and library.prunus_use_level(wanted.encode()):
            best = library.prunus_widest_level().decode()
            return _Found(None, f"{_LEVEL}={wanted} asks for what this machine cannot run (it runs up to {best})")
        if os.environ.get(_THREADS) != "own":
            library.prunus_use_team(_openmp())
        return _Found(library, "")
    return _Found(None, "; ".join(problems))


def _state() -> _Found:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _search()
    return _found


def loaded() -> ctypes.CDLL:
    """The library. Cost: compiles it where it is missing (some seconds, once). Errors: `PrunusError` without it."""
    state = _state()
    if state.library is None:
        raise PrunusError(f"the sparse kernels are not available: {state.reason}")
    return state.library


def available() -> bool:
    """Whether the kernels can be used here. Cost: some seconds at first, if they have to be compiled."""
    return _state().library is not None


def reason() -> str:
    """Why the kernels are not available; empty where they are."""
    return _state().reason


def level() -> str:
    """The instructions in use: "baseline" (SSE2 or NEON), "v3" (AVX2 and FMA) or "v4" (AVX-512)."""
    return str(loaded().prunus_level().decode())


def use_level(name: str) -> None:
    """Use other instructions from now on, in the whole process: for tests and measurements.

    Errors: `SpecError` where this machine cannot run them. At the start, `PRUNUS_KERNEL_LEVEL` does the same.
    """
    if loaded().prunus_use_level(name.encode()):
        best = loaded().prunus_widest_level().decode()
        raise SpecError(f"no kernels of level {name!r} run here; the widest is {best!r}")
