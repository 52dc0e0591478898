"""Compiling the native library, with the package or at first use. Needs nothing but the standard library."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).with_name("native")
PACKAGED = SOURCES / "libprunus_kernels.so"
"""Where a wheel has the library."""

_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-tree-slp-vectorize",
]
_V3 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt", "-mlzcnt"]
_V4 = [*_V3, *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]]
_X86 = platform.machine().lower() in {"x86_64", "amd64"}
# A level is the same file compiled for other instructions: its name, floats in a register, flags.
LEVELS = (
    (("baseline", 4, []), ("v3", 8, _V3), ("v4", 16, _V4)) if _X86 else (("baseline", 4, []),)  # NEON has four, too
)


class BuildError(Exception):
    """The compiler failed, or there is none; says what it said."""


def compiler() -> str | None:
    """The C++ compiler of this machine: `$CXX`, or the first of c++, g++ and clang++; None without one."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        words = shlex.split(name)
        if words and (found := shutil.which(words[0])):
            return shlex.join([found, *words[1:]])
    return None


def sources() -> list[Path]:
    """The files that make the library."""
    return sorted(f for f in SOURCES.iterdir() if f.suffix in {".cpp", ".hpp"})


def digest(cxx: str, extra: Sequence[str] = ()) -> str:
    """What a build depends on as 16 hexadecimal digits: sources, compiler and flags."""
    said = subprocess.run([*shlex.split(cxx), "--version"], capture_output=True, check=False).stdout
    hashed = hashlib.sha256(repr((cxx, said, _FLAGS, LEVELS, list(extra), platform.machine())).encode())
    for file in sources():
        hashed.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return hashed.hexdigest()[:16]


def build(target: Path, cxx: str, extra: Sequence[str] = ()) -> None:
    """Compile the library to `target`, which appears whole or not at all.

    Args:
        target: the shared library.
        cxx: the compiler's command.
        extra: more flags, such as `-fsanitize=address`.

    Cost: about ten processor seconds, on all processors.
    Errors: `BuildError` with what the compiler said; OSError where the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    words = [*shlex.split(cxx), *_FLAGS, *(["-DPRUNUS_X86"] if _X86 else []), *extra]
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as temporary:
        folder = Path(temporary)
        jobs = [
            [*words, *flags, f"-DPRUNUS_LEVEL={name}", f"-DPRUNUS_LANES={lanes}", str(SOURCES / "level.cpp")]
            for name, lanes, flags in LEVELS
        ]
        jobs += [[*words, str(file)] for file in sources() if file.suffix == ".cpp" and file.stem != "level"]
        objects = [str(folder / f"{i}.o") for i in range(len(jobs))]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_run, [[*job, "-c", "-o", o] for job, o in zip(jobs, objects, strict=True)]))
        library = folder / target.name
        _run([*words, "-shared", "-o", str(library), *objects])
        library.replace(target)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{shlex.join(command)}: {error}") from error
    if done.returncode:
        first = "\n".join(done.stderr.strip().splitlines()[:12])
        raise BuildError(f"{shlex.join(command)} ended with {done.returncode}:\n{first}")


def cache_folder() -> Path:
    """Where libraries compiled at first use are kept: `kernels` in `$PRUNUS_CACHE`, else in `prunus` in the user's
    cache folder, as `measure.machine.cache_folder` has it, which needs more than the standard library.
    """
    if chosen := os.environ.get("PRUNUS_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunus" / "kernels"


def cached() -> Path:
    """The library compiled by this machine's compiler, made now if it is not there yet.

    Errors: `BuildError` without a compiler, or where it fails; OSError where the cache cannot be written.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildError("there is no C++ compiler: install g++ or clang++, or set CXX")
    folder = cache_folder() / digest(cxx)
    target = folder / PACKAGED.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise BuildError(f"{folder} belongs to another user: code is not loaded from there")
    with _alone(folder / "lock"):
        if not target.is_file():
            build(target, cxx)
    return target


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time compiles; where files cannot be locked, each of them does."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with lock.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
