"""What an installation promises: the files, the versions, and an import that stays light."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import prunus

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "timm", "transformers", "lightning", "sklearn", "scipy")
# What the extras bring, and no module may need in order to be imported.
OPTIONAL = (
    "accelerate", "beartype", "hypothesis", "lightning", "lm_eval", "onnx", "onnx_ir", "onnxruntime", "onnxscript",
    "packaging", "peft", "PIL", "pytest", "pytorch_lightning", "scipy", "sklearn", "timm", "torchmetrics",
    "torchvision", "tqdm", "transformers", "yaml",
)  # fmt: skip


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def requirements() -> list[str]:
    """Every library of the core and of the extras, by name; an extra that names prunus itself only joins others."""
    extras = project()["optional-dependencies"].values()
    every = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in every}
    return sorted(names - {"prunus"})


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after the statement."""
    report = f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    return set(fresh(f"import sys\n{statement}\n{report}").splitlines()[-1].split()[1:])


def fresh(code: str) -> str:
    """What a new interpreter prints when it runs the code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_torch_alone() -> None:
    assert loaded_by("import prunus") == set()


def test_help_leaves_torch_alone() -> None:
    statement = (
        "from prunus.cli import main\n"
        "sys.argv = ['prunus', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded_by(statement) == set()


def test_the_probe_sees_torch() -> None:
    assert "torch" in loaded_by("import torch")


def test_every_module_imports_without_the_extras() -> None:
    # None in sys.modules makes an import fail as if the library were not installed.
    code = (
        "import importlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        "import prunus\n"
        "def fail(name): raise ImportError(name)\n"
        "for module in pkgutil.walk_packages(prunus.__path__, 'prunus.', onerror=fail):\n"
        "    if module.name != 'prunus.__main__': print(importlib.import_module(module.name).__name__)"
    )
    names = fresh(code).split()
    assert {"prunus.core.recipe", "prunus.cli"} <= set(names)


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "src/prunus/py.typed"])
def test_file_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_licence_is_the_declared_one() -> None:
    assert project()["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text
    assert "Version 2.0, January 2004" in text


@pytest.mark.parametrize("name", requirements())
def test_requirement_is_pinned(name: str) -> None:
    assert name in pins(), f"{name} is in pyproject.toml and has no line in constraints.txt"


def test_pins_are_exact_versions() -> None:
    loose = {name: version for name, version in pins().items() if not re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", version)}
    assert loose == {}


def test_version_is_one() -> None:
    assert prunus.__version__ == project()["version"]


def test_script_has_a_target() -> None:
    assert project()["scripts"] == {"prunus": "prunus.cli:main"}
    from prunus.cli import main

    assert callable(main)
