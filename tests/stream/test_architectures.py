"""Architectures of transformers, streamed from a folder and pruned in memory: the same to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus import Task
from prunus.stream import prune_folder
from tests.graph.networks.transformers_nets import FAST, ROWS, builder

transformers = pytest.importorskip("transformers")

# Convolutions of state-space models that a kernel computes are not seen.
PARTLY = {"MambaForCausalLM", "Mamba2ForCausalLM"}
CASES = [
    pytest.param(model, config, arguments, inputs, id=model, marks=() if model in FAST else pytest.mark.slow)
    for model, config, arguments, inputs, _ in ROWS
]


def test_there_are_enough() -> None:
    assert len(ROWS) - len(PARTLY) >= 60


@pytest.mark.parametrize(("model", "config", "arguments", "inputs"), CASES)
def test_streamed_is_in_memory(
    model: str, config: str, arguments: dict[str, Any], inputs: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made: Any = builder(model, config, arguments)().eval()
    batches = [inputs() for _ in range(2)]
    made.save_pretrained(tmp_path / "dense")
    dense = type(made).from_pretrained(tmp_path / "dense").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunus.prune(dense, Task(calib=batches), "wanda", sparsity=0.5)
        streamed = prune_folder(tmp_path / "dense", tmp_path / "out", "wanda", batches, sparsity=0.5)
    ours, theirs = type(made).from_pretrained(tmp_path / "out").state_dict(), result.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert not [n for n in theirs if not torch.equal(ours[n], theirs[n])]
    assert streamed.sparsity == pytest.approx(0.5, abs=0.005)
    assert bool(streamed.skipped) == (model in PARTLY)
