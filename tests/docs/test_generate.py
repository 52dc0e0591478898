"""The generated parts of the documentation say what the code says."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import prunus
from prunus.core.part import Part
from tests.docs.pages import ROOT
from tests.report import sample


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with a README and documents of its own."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    return tmp_path


def test_everything_is_up_to_date(generate: ModuleType) -> None:
    assert generate.main(["--check"]) == 0, "run python docs/generate.py"


def test_parts_that_others_registered_are_not_counted(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "_registry", {slot: dict(known) for slot, known in Part._registry.items()})

    class NotOurs(prunus.parts.criteria.Magnitude):
        """A criterion that a user has defined in this process."""

    assert "NotOurs" in Part.known("criterion")
    assert "NotOurs" not in generate.ours("criterion")
    assert "Magnitude" in generate.ours("criterion")
    assert generate.main(["--check"]) == 0


def test_check_sees_what_is_stale_and_writing_mends_it(
    generate: ModuleType, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace("[snip]", "[snap]"))
    assert generate.main(["--check"], copy) == 1
    told = capsys.readouterr().err
    assert "README.md is out of date" in told
    assert "docs/methods.md is out of date" in told
    assert "[snap]" in readme.read_text()
    assert generate.main([], copy) == 0
    assert generate.main(["--check"], copy) == 0
    assert "[snip]" in readme.read_text()


def test_every_method_is_in_the_readme_and_has_a_section(generate: ModuleType) -> None:
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "methods.md").read_text()
    for name in (*prunus.methods.names(), *prunus.methods.procedures()):
        assert readme.count(f"[{name}](docs/methods.md#{name})") == 1
        assert page.count(f"\n## {name}\n") == 1 and page.count(f"| `{name}` |") == 1
        assert prunus.methods.find(name).source.split(";")[0].split(", arXiv")[0] in page


def test_counts_are_those_of_the_recipes(generate: ModuleType) -> None:
    rows = {s.name: s.found() for s in generate.SETTINGS}
    recipes = [prunus.methods.get(n) for n in prunus.methods.names()]
    assert rows["Structured"][0] == str(sum(r.structure == "structured" for r in recipes))
    by_when = [rows["Before training"]] + [
        found for name, found in rows.items() if name.startswith(("During", "After, o"))
    ]
    by_when.append(rows["After, lottery tickets and variants"])
    assert sum(int(count) for count, _ in by_when) == len(recipes), "a method is in no cell, or in two"


def test_without_a_run_there_is_no_number(generate: ModuleType, copy: Path) -> None:
    assert generate.quickstart_section(copy) == ""
    generate.main([], copy)
    assert "<!-- generated: quickstart -->\n<!-- end: quickstart -->" in (copy / "README.md").read_text()


def test_the_quickstart_section_is_made_from_the_record(generate: ModuleType, copy: Path) -> None:
    report = sample.report()
    (copy / "docs" / "quickstart").mkdir()
    (copy / "docs" / "quickstart" / "report.json").write_text(report.to_json())
    (copy / "docs" / "report.png").write_bytes(b"")
    assert generate.main([], copy) == 0
    readme = (copy / "README.md").read_text()
    section = readme.split("<!-- generated: quickstart -->")[1].split("<!-- end: quickstart -->")[0]
    assert "](docs/report.png)" in section
    assert f"seed {report.seed}" in section
    for method in report.methods:
        assert section.count(f"| {method.title}") == 1
    assert generate.main(["--check"], copy) == 0


def test_a_damaged_record_is_an_error(generate: ModuleType, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "docs" / "quickstart").mkdir()
    (copy / "docs" / "quickstart" / "report.json").write_text('{"title": "x"}')
    assert generate.main([], copy) == 1
    assert "report.json" in capsys.readouterr().err


def test_missing_markers_are_an_error(generate: ModuleType, copy: Path) -> None:
    (copy / "README.md").write_text("# No markers\n")
    with pytest.raises(SystemExit, match="must hold"):
        generate.main([], copy)
