"""The direction of imports and the few things that no file of the package may contain, read from the source alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "prunus"
FILES = sorted(SOURCE.rglob("*.py"))

ANYTHING = frozenset({"*"})
# What each package may import of prunus, besides itself; a dotted name allows that one subpackage. A row for a
# subpackage adds to the row of its package. "." stands for the files directly in src/prunus.
ALLOWED: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "graph": frozenset({"core"}),
    "parts": frozenset({"core"}),
    # Channels and the like are read off the network's structure.
    "parts.granularity": frozenset({"graph"}),
    # Where streams of a network run is a question of its structure too.
    "parts.prepare": frozenset({"graph"}),
    # And so is what a unit costs.
    "parts.evidence": frozenset({"graph"}),
    "measure": frozenset({"core", "graph"}),
    # Procedures run the engine: they are what is told in steps instead of parts.
    "methods": frozenset({"core", "parts", "engine", "graph"}),
    # The default granularity of prunus.groups is the one part the engine knows by name.
    "engine": frozenset({"core", "parts.evidence", "parts.granularity", "graph"}),
    "deploy": frozenset({"core", "graph", "engine", "measure"}),
    # Folders of shards, block by block: which units and which evidence a block tells by itself.
    "stream": frozenset({"core", "graph", "engine", "deploy", "parts.evidence", "parts.granularity"}),
    "lab": ANYTHING,
    "advise": ANYTHING,
    "report": frozenset({"core", "measure"}),
    "cli": ANYTHING,
    ".": ANYTHING,
}
# These alone know the methods by name: everything below them takes a Recipe.
KNOW_METHODS = {"methods", "cli", "lab", "advise", "."}
# What any file may take from the package itself: a string, and the doors by which a method's name becomes its recipe
# and a budget in latency finds something to measure with.
DOORS = {
    "prunus.__version__",
    "prunus.default_clock",
    "prunus.layer_prices",
    "prunus.preparation_of",
    "prunus.procedure_named",
    "prunus.recipe_named",
}
VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib"}
LONGEST = 400
# The vocabulary holds if methods stay sentences and parts stay formulas.
LONGEST_RECIPE, LONGEST_PART = 60, 40


class Import(NamedTuple):
    file: Path
    line: int
    module: str  # without the leading "prunus."

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} imports " + f"prunus.{self.module}".rstrip(".")


def package(dotted: str) -> str:
    return dotted.split(".")[0] or "."


def within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(allowed + ".")


def home(file: Path, root: Path = SOURCE) -> str:
    """Dotted path of the package that the file lies in: parts/criteria/simple.py -> parts.criteria, cli.py -> '.'"""
    return ".".join(file.relative_to(root).parent.parts) or "."


def named(node: ast.AST, where: list[str]) -> Iterator[str]:
    """The absolute modules that one node imports; a from-import with the name added, which may be a module itself."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = where[: len(where) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in {"import_module", "__import__"}:
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def imports(file: Path, root: Path = SOURCE) -> list[Import]:
    """Every import of prunus in a file, at any depth: one inside a function or for the type checker counts the same."""
    where = ["prunus", *file.relative_to(root).parent.parts]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        for module in named(node, where):
            if within(module, "prunus") and module not in DOORS:
                found.append(Import(file, node.lineno, module.removeprefix("prunus").lstrip(".")))  # type: ignore[attr-defined]
    return found


def wrong_direction(file: Path, root: Path = SOURCE) -> list[Import]:
    place = home(file, root)
    own = package(place)
    allowed = ALLOWED[own] | ALLOWED.get(place, frozenset())
    if allowed == ANYTHING:
        return []
    return [
        found
        for found in imports(file, root)
        if package(found.module) != own and not any(within(found.module, row) for row in allowed)
    ]


def across_slots(file: Path, root: Path = SOURCE) -> list[Import]:
    """What a slot package imports of another slot; evidence is the language that all of them speak."""
    slot = home(file, root)
    return [
        found
        for found in imports(file, root)
        if within(found.module, "parts")
        and not within(found.module, ".".join(slot.split(".")[:2]))
        and not within(found.module, "parts.evidence")
    ]


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Code that runs what a file says: pickle, torch's pickling pair, and the two builtins that run text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, a.name) for a in node.names if package(a.name) in {"pickle", "dill", "cloudpickle"}
            )
        elif isinstance(node, ast.ImportFrom) and package(node.module or "") in PICKLES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module in {"torch", "torch.serialization"}:
            yield from ((node.lineno, f"torch.{alias.name}") for alias in node.names if alias.name in {"load", "save"})
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in {"load", "save"}:
                yield node.lineno, f"torch.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            yield node.lineno, node.func.id


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=[str(file.relative_to(SOURCE)) for file in files])


def test_every_package_has_a_row() -> None:
    packages = {package(home(file)) for file in FILES}
    assert {"core", "parts", "methods", "engine"} <= packages
    assert packages <= set(ALLOWED), "say in ALLOWED what the new package may import"


def test_every_folder_is_a_package() -> None:
    assert {file.parent for file in FILES if not (file.parent / "__init__.py").is_file()} == set()


@each(FILES)
def test_imports_point_one_way(file: Path) -> None:
    assert [str(found) for found in wrong_direction(file)] == []


@each([file for file in FILES if home(file).startswith("parts.")])
def test_no_slot_imports_another(file: Path) -> None:
    assert [str(found) for found in across_slots(file)] == []


def test_the_streaming_of_folders_builds_upwards() -> None:
    """Its modules import each other one way."""
    modules = {".".join(f.relative_to(SOURCE).with_suffix("").parts): f for f in FILES if home(f) == "stream"}
    needs = {m: {n for i in imports(f) for n in modules if within(i.module, n)} - {m} for m, f in modules.items()}
    assert set(TopologicalSorter(needs).static_order()) == set(modules)


@each([file for file in FILES if package(home(file)) not in KNOW_METHODS])
def test_methods_are_not_known_below(file: Path) -> None:
    assert [str(found) for found in imports(file) if within(found.module, "methods")] == []


@each(FILES)
def test_file_says_what_it_is_and_is_short(file: Path) -> None:
    assert not {file.stem, file.parent.name} & VAGUE
    assert len(file.read_text().splitlines()) <= LONGEST


@each(FILES)
def test_file_runs_no_data(file: Path) -> None:
    assert list(dangers(ast.parse(file.read_text()))) == []


# The checks themselves, on files that break each rule.


def written(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core/recipe.py", "from prunus.engine import score"),
        ("core/recipe.py", "from prunus import engine"),
        ("core/recipe.py", "import prunus"),
        ("core/recipe.py", "from ..engine import score"),
        ("core/recipe.py", "def f():\n    import prunus.parts.criteria"),
        ("core/recipe.py", "import importlib\nimportlib.import_module('prunus.methods.snip')"),
        ("core/recipe.py", "import importlib\nimportlib.import_module(f'prunus.methods.{1}')"),
        ("engine/score.py", "from prunus.parts.criteria import Magnitude"),
        ("engine/score.py", "from prunus.parts import criteria"),
        ("graph/trace.py", "from prunus.measure import macs"),
        ("measure/macs.py", "from prunus.engine import prune"),
        ("methods/snip.py", "from prunus.lab import data"),
        ("deploy/save.py", "from prunus.parts.allocation import NofM"),
    ],
)
def test_wrong_direction_is_seen(tmp_path: Path, name: str, text: str) -> None:
    assert wrong_direction(written(tmp_path, name, text), tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core/recipe.py", "import torch\nfrom prunus.core.part import Part\nfrom .part import Part"),
        (
            "engine/score.py",
            "from prunus.parts.evidence import Grad\nfrom prunus.core import errors\nimport prunus.graph",
        ),
        ("methods/lth.py", "from prunus.parts.schedule import OneShot\nfrom prunus.methods.magnitude import magnitude"),
        ("deploy/save.py", "from prunus import __version__"),
        ("cli/prune.py", "from prunus.methods import snip\nimport prunus"),
        ("__init__.py", "from prunus.methods import snip"),
    ],
)
def test_right_direction_passes(tmp_path: Path, name: str, text: str) -> None:
    assert wrong_direction(written(tmp_path, name, text), tmp_path) == []


def lines_of(definition: ast.ClassDef) -> int:
    """Lines of a class less those of its docstrings."""
    told: set[int] = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return (definition.end_lineno or definition.lineno) - definition.lineno + 1 - len(told)


@each([file for file in FILES if home(file) == "methods" and file.name != "__init__.py"])
def test_a_recipe_is_a_sentence(file: Path) -> None:
    text = file.read_text()
    if "@procedure(" not in text:
        assert len(text.splitlines()) <= LONGEST_RECIPE


@each([file for file in FILES if home(file).startswith("parts.") and home(file) != "parts.evidence"])
def test_a_part_is_a_formula(file: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
    assert {c.name: n for c in classes if (n := lines_of(c)) > LONGEST_PART} == {}


def test_a_slot_that_imports_another_is_seen(tmp_path: Path) -> None:
    bad = written(
        tmp_path, "parts/criteria/a.py", "from prunus.parts.growth import Random\nfrom ..allocation import ERK"
    )
    good = written(tmp_path, "parts/criteria/b.py", "from prunus.parts.evidence import Grad\nfrom .a import b")
    assert len(across_slots(bad, tmp_path)) == 2
    assert across_slots(good, tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\nf = torch.save",
        "from torch import load",
        "ev" + "al('1')",
        "ex" + "ec('x = 1')",
    ],
)
def test_danger_is_seen(text: str) -> None:
    assert list(dangers(ast.parse(text)))


def test_harmless_code_passes() -> None:
    assert list(dangers(ast.parse("import torch\nmodel.eval()\ntorch.loadtxt\nsession.load(1)\njson.load(f)"))) == []
