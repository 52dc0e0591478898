"""Random networks (tests/graph/fuzz): refused or equal, never wrong. `make fuzz` runs twenty times as many."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from statistics import median

import pytest
import torch

from prunus.core.errors import VerificationError
from tests.graph import proof
from tests.graph.fuzz.generate import network
from tests.graph.fuzz.outcome import Outcome, attempt, summary

SEEDS = range(100)


@cache
def found(seed: int) -> Outcome:
    return attempt(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_refused_or_equal(seed: int) -> None:
    result = found(seed)
    assert result.good, f"{result.verdict}: {result.error}\n{network(seed).source}"
    assert all(why for _, why in result.frozen)


def test_most_can_be_pruned() -> None:
    # Freezing everything would be "never wrong" too.
    results = [found(seed) for seed in SEEDS]
    assert median(r.share for r in results) >= 0.5, summary(results)
    assert sum(r.verdict == "equal" for r in results) >= 90, summary(results)


def test_a_seed_is_a_network() -> None:
    first, second = network(7), network(7)
    assert first.source == second.source and torch.equal(first.example, second.example)
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert network(8).source != first.source


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(*_: object) -> None:
        raise VerificationError("the compact model's output differs")

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("in a rule")

    monkeypatch.setattr(proof, "prove", differs)
    assert attempt(0).verdict == "wrong"
    monkeypatch.setattr(proof, "prove", breaks)
    broken = attempt(0)
    assert broken.verdict == "crash" and not broken.good and "ZeroDivisionError: in a rule" in broken.error
    assert "1 wrong" not in summary([broken]) and "1 crash" in summary([broken])


def test_one_seed_can_be_replayed() -> None:
    command = [sys.executable, "-m", "tests.graph.fuzz", "--seed", "3", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# seed 3:" in done.stdout and "1 networks: 1 equal" in done.stdout
