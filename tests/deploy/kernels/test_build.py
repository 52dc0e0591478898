"""Where the library comes from: compiled once, into the user's cache; and what is said where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.deploy import kernels
from prunus.deploy.kernels import build
from prunus.measure.machine import cache_folder

ROOT = Path(__file__).resolve().parents[3]
SAY = "from prunus.deploy import kernels as k; print(k.available(), k.reason())"


def said(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PRUNUS_CACHE": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.skipif(build.PACKAGED.is_file(), reason="the library came with the package")
def test_without_a_compiler_the_kernels_say_what_is_missing(tmp_path: Path) -> None:
    found = said(SAY, PATH=str(tmp_path), CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert found.startswith("False") and "no C++ compiler" in found


@pytest.mark.skipif(build.PACKAGED.is_file(), reason="the library came with the package")
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    broken.chmod(0o755)
    found = said(SAY, CXX=str(broken), XDG_CACHE_HOME=str(tmp_path))
    assert found.startswith("False") and "ended with 3" in found and "no such luck" in found
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("name", ["PRUNUS_CACHE", "XDG_CACHE_HOME", ""])
def test_it_lies_where_measurements_of_the_machine_lie(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNUS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path))
    assert build.cache_folder() == cache_folder() / "kernels"
    assert build.cache_folder().is_relative_to(tmp_path if name else Path.home())


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"not a library")
    assert said(SAY, PRUNUS_KERNEL_LIBRARY=str(tmp_path / "x.so")).startswith("False")


@pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
def test_levels_can_be_forced_from_outside() -> None:
    code = "from prunus.deploy import kernels as k; print(k.available() and k.level(), k.reason())"
    assert said(code, PRUNUS_KERNEL_LEVEL="baseline").startswith("baseline")
    assert "cannot run" in said(code, PRUNUS_KERNEL_LEVEL="v9")


@pytest.mark.skipif(build.compiler() is None, reason="no compiler")
def test_the_digest_follows_the_flags() -> None:
    cxx = build.compiler()
    assert cxx is not None
    assert build.digest(cxx) == build.digest(cxx) != build.digest(cxx, ["-O1"])


def test_looking_at_the_package_loads_neither_torch_nor_the_library() -> None:
    assert said("import sys, prunus.deploy.kernels; print('torch' in sys.modules)").startswith("False")
