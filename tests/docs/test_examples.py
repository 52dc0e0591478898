"""The Python blocks of a page are one program: it runs, in a fresh interpreter and an empty folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name

RUNNABLE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"), "python")]


def program(page: Path) -> str:
    return "\n\n".join(blocks(page.read_text(encoding="utf-8"), "python"))


def test_the_pages_that_promise_examples_have_them() -> None:
    assert {"README.md", "docs/add-a-criterion.md"} <= {name(page) for page in RUNNABLE}
    # A first block that sets the scene, then one per way of using it.
    assert len(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")) == 5


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the examples use scikit-learn's digits")
    script = tmp_path / "example.py"
    head = "import torch\n\ntorch.set_num_threads(1)\ntorch.manual_seed(0)\n\n"
    if "transformers" in program(page):
        pytest.importorskip("transformers")
        # What lets it be imported beside a torch that torchvision was not built for.
        head = f"import sys\n\nsys.path.append({str(ROOT / 'tests')!r})\nimport conftest\n\n" + head
    script.write_text(head + program(page))
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        # What the package warns of is no example to follow.
        [sys.executable, "-W", "error::UserWarning:__main__", script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_saves_what_it_says(tmp_path: Path) -> None:
    """The examples call what they are there to show; a rewrite must not lose one of them."""
    tree = ast.parse(program(ROOT / "README.md"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    expected = {"prunus.prune", "result.compact", "prunus.save", "prunus.load", "replace", "prunus.Session"}
    assert expected <= called
    assert "session.attach" in called


def test_a_criterion_takes_ten_lines() -> None:
    first = blocks((ROOT / "docs" / "add-a-criterion.md").read_text(encoding="utf-8"), "python")[0]
    assert "(Criterion)" in first
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
