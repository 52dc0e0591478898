"""Models that do what most models do not: files of them compute the same, and the models stay as they were."""

from __future__ import annotations

import copy
import zipfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunus
from prunus.deploy import deploy, export, from_torch_prune, kernels, to_torch_prune
from prunus.deploy.calling import plain
from prunus.graph.running import tensors_in

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Said:
    """An output of a class that no library but this test knows."""

    logits: Tensor
    length: int
    nothing: None
    more: Pair


class Net(nn.Module):
    """Two layers; `says` makes the output of the result and of what lies between."""

    def __init__(self, says: Any = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(8, 16, dtype=dtype), nn.Linear(16, 4, dtype=dtype)
        self.says = says

    def forward(self, x: Tensor) -> Any:
        h = self.up(x).relu()
        y = self.down(h)
        return y if self.says is None else self.says(y, h)


def vectors(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def same(a: Any, b: Any, tol: float = 0.0) -> None:
    for x, y in zip(tensors_in(a), tensors_in(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol)


def own_class(y: Tensor, h: Tensor) -> Said:
    return Said(y, 3, None, Pair(h, [h.sum()]))


def test_a_file_of_torch_needs_no_class_of_the_model_that_it_came_from(tmp_path: Path) -> None:
    export(Net(own_class), vectors(), tmp_path / "m.pt2", "torch")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        texts = [archive.read(n) for n in archive.namelist() if n.endswith(".json")]
    assert not any(b"Pair" in t or b"Said" in t for t in texts)
    found = torch.export.load(str(tmp_path / "m.pt2")).module()(vectors())
    expected = Net(own_class).eval()(vectors())
    assert list(found) == ["logits", "more"] and type(found["more"]) is tuple
    same(list(found.values()), [expected.logits, expected.more], 1e-6)


@pytest.mark.parametrize("says", [own_class, lambda y, h: (y, None, 3, {"h": h}), lambda y, h: Pair(y, h)])
def test_outputs_of_any_kind_go_into_onnx(says: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Net(says).eval()
    done = export(model, vectors(), tmp_path / "m.onnx")
    assert done.error is not None and done.error < 1e-5
    assert not model._forward_hooks


def test_plain_keeps_every_tensor_in_order() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    value = {"a": a, "none": None, "p": Pair([b, 1], {"x": {"y": c}}), "empty": ()}
    assert [t is s for t, s in zip(tensors_in(plain(value)), (a, b, c), strict=True)] == [True] * 3
    assert list(plain(value)) == ["a", "p"] and type(plain(value)["p"]) is tuple


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_parametrized_weights_are_written_as_what_they_compute(to: Any, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    model = Net()
    parametrizations.weight_norm(model.up)
    parametrizations.orthogonal(model.down)  # made of an operation that ONNX has not
    expected = model.eval()(vectors())
    done = export(model, vectors(), tmp_path / ("m.onnx" if to == "onnx" else "m.pt2"), to)
    assert done.error is not None and done.error < 1e-5
    assert "parametrizations.weight.original0" in dict(model.up.named_parameters())
    same(model(vectors()), expected)
    if to == "torch":
        found = torch.export.load(str(done.path))
        assert sorted(found.state_dict) == ["down.bias", "down.weight", "up.bias", "up.weight"]


class Keeps(Net):
    """Keeps what it computed, as caches do."""

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.up(x)
        return self.down(self.kept.relu())


def test_a_model_that_was_just_trained_is_written_and_copied(tmp_path: Path) -> None:
    model = Keeps()
    model(vectors()).sum().backward()
    done = export(model, vectors(), tmp_path / "m.pt2", "torch")
    assert done.error == 0.0
    result = prunus.prune(model, prunus.Task(example=vectors()), "magnitude", sparsity=0.5)
    result.model(vectors()).sum().backward()
    other = to_torch_prune(result)
    same(other(vectors()), result.model(vectors()))
    assert from_torch_prune(other).masks.keys() == result.masks.keys()


class Convolved(nn.Module):
    """A convolution with batch normalization, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu().mean((2, 3))


def test_bfloat16_goes_to_onnx_and_to_openvino(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    x = torch.randn(2, 3, 8, 8).to(torch.bfloat16)
    done = export(Convolved().eval(), x, tmp_path / "m.onnx")
    assert done.error is None and "bfloat16" in done.reason
    done = export(Convolved().eval(), x, tmp_path / "m.xml", "openvino")
    assert done.error is not None and done.error < 0.02


def test_a_model_in_bfloat16_is_deployed_as_such() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    x = torch.randn(2, 3, 8, 8).to(torch.bfloat16)
    model = Convolved().eval()
    found = deploy(model, model, x, runtimes=["eager", "openvino", "onnxruntime"], threads=1, runs=30, min_seconds=0.0)
    assert sorted(row.runtime for row in found.rows) == ["eager", "openvino"]
    assert [a.runtime for a in found.absent] == ["onnxruntime"] and "bfloat16" in found.absent[0].reason


def test_float16_is_compared_as_such(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    done = export(Net(dtype=torch.float16), vectors(torch.float16), tmp_path / "m.xml", "openvino")
    assert done.error is not None and done.error < 1e-2


class Padded(nn.Module):
    """What OpenVINO cannot read from ONNX (a padding of unknown rank), and an input that is converted at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.even = nn.Conv2d(8, 4, 4, padding="same")

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.even(self.conv(x).relu()) * scale.to(torch.bfloat16).float()


def test_what_openvino_cannot_read_from_onnx_goes_there_from_torch_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    x, scale = torch.randn(1, 3, 8, 8), torch.tensor([2.0])
    model = Padded().eval()
    done = export(model, (x, scale), tmp_path / "m.xml", "openvino")
    assert done.error is not None and done.error < 1e-4
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    compiled = openvino.Core().compile_model(str(done.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.as_tensor(compiled([(x * 2).numpy(), scale.numpy()])[0])
    same(found, model(x * 2, scale).detach(), 1e-4)


def test_an_input_of_several_names_is_found(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")

    class Cast(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.to(torch.float64).to(torch.float32))

    done = export(Cast().eval(), vectors(), tmp_path / "m.xml", "openvino")
    assert done.error is not None and done.error < 1e-4


class Named(nn.Module):
    """Modules may be named by any text without a dot."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {"conv-1": nn.Conv2d(3, 8, 3), "層 2/a": nn.Conv2d(8, 8, 3), "x[0]": nn.Linear(8, 4)}
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.parts.values()
        return three(two(one(x).relu()).relu().mean((2, 3)))


def test_modules_of_any_name_are_saved_and_loaded(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    result = prunus.prune(Named(), prunus.Task(example=x), "l1_filter", sparsity=0.5)
    prunus.save(result, tmp_path / "s")
    again = prunus.load(tmp_path / "s", Named)
    assert again.parts["層 2/a"].in_channels == 4
    same(again(x), result.compact().eval()(x))


def test_a_factory_may_make_a_wrapped_model(tmp_path: Path) -> None:
    result = prunus.prune(Net(), prunus.Task(example=vectors()), "magnitude", sparsity=0.5)
    prunus.save(result, tmp_path / "s")
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        found = prunus.load(tmp_path / "s", lambda wrap=wrap: wrap(Net()))
        assert type(found) is type(wrap(Net()))
        same(found(vectors()), result.model.eval()(vectors()))


@pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_stays_as_it_is() -> None:
    with torch.no_grad():
        first = nn.Linear(8, 16)
        first.weight[:, ::2] = 0
        last = nn.Linear(16, 4)
        last.weight[:, ::2] = 0
    model = nn.Sequential(torch.jit.script(first), nn.ReLU(), last).eval()
    found = prunus.sparsify(model, vectors(), margin=1e-9, runs=5)
    assert [x.path for x in found.packed] == ["2"] and "TorchScript" in found.left["0.weight"]
    same(found.model(vectors()), model(vectors()), 1e-5)


@pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
def test_a_type_without_kernels_is_named() -> None:
    model = Net(dtype=torch.float64).eval()
    with torch.no_grad():
        model.up.weight[:, ::2] = 0
    before = copy.deepcopy(model.state_dict())
    found = prunus.sparsify(model, vectors(torch.float64), runs=5)
    assert [x.why for x in found.layers] == ["its weight is float64: the kernels compute in float32 and bfloat16"]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
def test_a_layer_known_by_several_names_comes_back_as_one() -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    model = nn.Sequential(nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer, nn.Tanh()), nn.Linear(8, 4)).eval()
    found = prunus.sparsify(model, vectors(), margin=1e-9, runs=5)
    assert found.model[0][0] is found.model[1][0] and len(found.packed) == 1
    back = found.dense()
    assert back[0][0] is back[1][0]
    assert len(list(back.parameters())) == len(list(model.parameters()))
    same(back(vectors()), model(vectors()))


class Bound(nn.Module):
    """A network whose forward goes through a function that knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(64, 64)
        self.run = lambda x: self.lin(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.run(x)
        return y


@pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
def test_copies_for_deployment_run_their_own_weights() -> None:
    model, x = Bound().eval(), torch.randn(8, 64)
    found = prunus.prune(model, prunus.Task(example=x), "magnitude", sparsity=0.95)
    sparse = prunus.sparsify(found.model, x, margin=1e-6)
    with torch.no_grad():
        expected = found.model(x)
        copies = [sparse.model, sparse.dense(), to_torch_prune(found)]
        found.model.lin.weight.zero_()
        for copied in copies:
            torch.testing.assert_close(copied(x), expected, rtol=1e-4, atol=1e-5)
