"""OpenVINO: int8 weights whose zeros are packed, offered where the processor can unpack them, else with the reason."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunus.deploy import deploy, runtimes
from prunus.deploy.deploying import subject_of
from prunus.deploy.runtimes import openvino_
from prunus.measure.machine import machine

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

TITLE = "openvino-int8-sparse"
AMX = "AMX INT8"


def sparse() -> nn.Module:
    """Layers whose sizes the packed form is for, nine of ten weights zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight.masked_fill_(torch.rand_like(layer.weight) < 0.9, 0)
    return model


def rows() -> torch.Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(machine().features.get(AMX, False), reason="this processor has AMX")
def test_without_amx_it_says_why_it_is_not_offered() -> None:
    assert "only for processors with AMX" in runtimes.named(TITLE).missing()
    found = deploy(sparse(), sparse(), rows(), runtimes=[TITLE, "eager"], threads=1, runs=30, min_seconds=0.0)
    assert [r.runtime for r in found.rows] == ["eager"]
    assert [(a.runtime, "AMX" in a.reason) for a in found.absent] == [(TITLE, True)]
    assert f"{TITLE}: OpenVINO packs the zeros" in found.says[0]


def test_with_amx_it_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_, "machine", lambda: SimpleNamespace(features={AMX: True}))
    assert runtimes.named(TITLE).missing() == ""
    assert runtimes.named(TITLE).skips == {"unstructured"} and not runtimes.named("openvino-int8").skips


def test_the_setting_reaches_the_plugin_and_outputs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = importlib.import_module("openvino")
    told: list[float] = []

    class Watched(library.Core):  # type: ignore[misc, name-defined]  # a class that is looked up at run time
        def compile_model(self, *args: Any, **kwargs: Any) -> Any:
            compiled = super().compile_model(*args, **kwargs)
            told.append(float(compiled.get_property(openvino_.SPARSE_RATE)))
            return compiled

    subject, _ = subject_of(sparse(), rows(), tmp_path)
    monkeypatch.setattr(library, "Core", Watched)
    outputs = []
    for title in ("openvino-int8", TITLE):
        session = runtimes.named(title).open(subject, 1)
        outputs.append(session.tensors(session.run())[0])
    assert told == [1.0, pytest.approx(0.7)]
    assert float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()) < 0.02  # a rounding may flip
