"""`kill -9` wherever it hits, also in the middle of saving: a run that goes on ends as one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import kills

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_to_the_bit_as_if_nothing_had_happened(tmp_path: Path, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integration.kills", str(tmp_path), str(count)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert found.keys() == kills.RECIPES.keys()
    for name, one in found.items():
        assert one["killed"] == count, name
        assert one["outcomes"] == 1, f"{name} depends on where it was interrupted"
    everywhere = {place for one in found.values() for place in one["places"]}
    assert everywhere == set(kills.PLACES)
