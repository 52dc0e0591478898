"""Files of runtimes: read back by their own libraries, they compute what the model computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.core.errors import (
    MissingExtraError,
    PrunusError,
    SpecError,
    StructureError,
    UnknownNameError,
    VerificationError,
)
from prunus.deploy import export, exporting
from tests.deploy.test_onnx import Branch
from tests.deploy.test_runtimes import net, pixels


def ran(path: Path, to: str, x: Tensor) -> Tensor:
    """What the file computes, by its own library and not by ours."""
    if to == "torch":
        return torch.export.load(str(path)).module()(x)
    if to == "openvino":
        core = importlib.import_module("openvino").Core()
        compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return torch.as_tensor(compiled([x.numpy()])[0])
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.as_tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize(("to", "name", "files"), [
    ("torch", "m.pt2", ["m.pt2"]),
    ("onnx", "m.onnx", ["m.onnx"]),
    ("openvino", "m.xml", ["m.bin", "m.xml"]),
])  # fmt: skip
def test_a_file_computes_what_the_model_computes(to: Any, name: str, files: list[str], tmp_path: Path) -> None:
    if to != "torch":
        pytest.importorskip("onnxscript")
    if to == "openvino":
        pytest.importorskip("openvino")
    model = net().train()
    with torch.no_grad():
        model.up.weight[0] = 1e-41
    before = model.up.weight.detach().clone()
    done = export(model, pixels(), tmp_path / "new" / name, to)
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == sorted(f.name for f in done.files) == files
    assert done.bytes == sum(f.stat().st_size for f in done.files) and done.flushed == 32
    assert done.error is not None and done.error < 1e-5 and done.path == tmp_path / "new" / name
    assert model.training and torch.equal(model.up.weight, before)
    other = pixels().flip(0) * 2
    with torch.no_grad():
        torch.testing.assert_close(ran(done.path, to, other), model.eval()(other), rtol=1e-4, atol=1e-5)


def test_int8_files_are_smaller(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
    x = torch.randn(4, 64)
    calib = [torch.randn(4, 64) for _ in range(3)]
    whole = export(model, x, tmp_path / "m.onnx")
    narrow = export(model, x, tmp_path / "n.onnx", precision="int8", calib=calib)
    assert narrow.bytes < 0.45 * whole.bytes and narrow.error is not None and 1e-6 < narrow.error < 0.1


def test_wrong_use_is_refused_and_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    file.write_text("older")
    with pytest.raises(UnknownNameError, match="kind of file"):
        export(net(), pixels(), file, "tflite")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"ends in \.xml"):
        export(net(), pixels(), file, "openvino")
    with pytest.raises(SpecError, match="precision='int8' to torch"):
        export(net(), pixels(), file, "torch", precision="int8")
    with pytest.raises(SpecError, match="meta device"):
        export(net().to("meta"), pixels(), file, "torch")
    with pytest.raises(StructureError, match="cannot follow this Branch"):
        export(Branch(), torch.ones(2), file, "torch")
    (tmp_path / "d.pt2").mkdir()
    with pytest.raises(SpecError, match="is a folder"):
        export(net(), pixels(), tmp_path / "d.pt2", "torch")
    assert file.read_text() == "older" and sorted(f.name for f in tmp_path.iterdir()) == ["d.pt2", "m.pt2"]


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(subject: Any, path: Path, precision: str) -> Any:
        path.write_text("wrong")
        return [subject.model(*subject.args) + 1], ""

    monkeypatch.setitem(exporting._WRITERS, "torch", wrong)
    with pytest.raises(VerificationError, match="of their largest value from the model's"):
        export(net(), pixels(), tmp_path / "m.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "executorch.exir", None)
    monkeypatch.setitem(__import__("sys").modules, "executorch", None)
    with pytest.raises(MissingExtraError, match=r"prunus\[executorch\]"):
        export(net(), pixels(), tmp_path / "m.pte", "executorch")
    assert not list(tmp_path.iterdir())


def test_a_package_for_core_ml_holds_the_weights_and_leaves_zeros_out(tmp_path: Path) -> None:
    tools: Any = pytest.importorskip("coremltools")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    x, path = torch.randn(4, 64), tmp_path / "m.mlpackage"
    whole = export(model, x, path, "coreml")
    assert whole.files == (path,) == tuple(tmp_path.iterdir()) and whole.error is None and "Apple" in whole.reason
    assert whole.bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) > 4 * 64 * 256
    optimize = importlib.import_module("coremltools.optimize.coreml")
    held = optimize.get_weights_metadata(tools.models.MLModel(str(path), skip_model_load=True), weight_threshold=1000)
    values = {v.val.shape: torch.as_tensor(v.val) for v in held.values()}
    assert torch.equal(values[256, 64], model[0].weight) and torch.equal(values[10, 256], model[2].weight)
    with torch.no_grad():
        model[0].weight.masked_fill_(torch.rand(256, 64, generator=torch.Generator().manual_seed(2)) < 0.9, 0)
    less = export(model, x, path, "coreml")
    assert less.bytes < whole.bytes - 0.7 * 4 * 64 * 256
    text = str(tools.models.MLModel(str(path), skip_model_load=True)._mil_program or tools.utils.load_spec(str(path)))
    assert "constexpr_sparse_to_dense" in text
    (tmp_path / "mine.mlpackage").mkdir()
    (tmp_path / "mine.mlpackage" / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match="no folder that prunus wrote"):
        export(model, x, tmp_path / "mine.mlpackage", "coreml")


def test_models_that_core_ml_has_no_operators_for_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(x)

    with pytest.raises(StructureError, match="coremltools cannot translate it"):
        export(Turned(), torch.randn(3, 3), tmp_path / "m.mlpackage", "coreml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_disk_that_fills_up_is_said_and_nothing_is_left(to: str, tmp_path: Path) -> None:
    """No file may grow beyond some kilobytes, which the system says in the middle of writing."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = nn.Linear(64, 64)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        with pytest.raises(PrunusError, match="ould not write"):
            export(model, torch.randn(1, 64), tmp_path / f"model{exporting.SUFFIXES[to]}", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["onnx", "torch", "mnn"])
def test_a_full_disk_is_known_before_anything_is_written(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(PrunusError, match="10,000 are free"):
        export(nn.Linear(64, 64), torch.randn(1, 64), tmp_path / f"model{exporting.SUFFIXES[to]}", to)
    assert not list(tmp_path.iterdir())
