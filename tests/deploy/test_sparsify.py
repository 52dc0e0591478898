"""Packed models: they compute what the dense ones do, come back, are saved, copied, compiled and exported."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunus
from prunus.core.errors import DataError, PrunusError, SpecError, VerificationError
from prunus.deploy import kernels, sparse_choice, sparsify_
from prunus.deploy.sparse_modules import DrawnIn, PackedLayer, densify
from prunus.deploy.sparse_record import Sparsified
from tests.deploy.test_sparsify_trace import Conv1D, sparse

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no sparse kernels: {kernels.reason()}")

ALL = ["csr", "rows", "bitmask", "bitrows", "4x1", "8x1", "16x1"]


class Net(nn.Module):
    """Convolutions with everything that may follow them, then linear layers, one stored the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU(True)
        )
        self.wide = nn.Conv2d(20, 16, (3, 1), padding=(1, 0), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.point = nn.Conv2d(16, 16, 1)
        self.up = nn.Linear(16, 33)
        self.act = nn.GELU()
        self.narrow = nn.Linear(33, 6, bias=False)
        self.last = Conv1D()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.wide(self.stem(x)))
        y = torch.relu(self.point(y)) + y
        return self.last(self.narrow(self.act(self.up(y.flatten(2).mT))))


LAYERS = ["stem.0", "wide", "point", "up", "narrow", "last"]
IMAGES = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(5))


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sparse(Net(), 0.8).to(dtype)


def plan(forms: Mapping[str, str] | str, dtype: str = "float32") -> dict[str, Any]:
    """A record by which layers are packed without timing anything."""
    chosen = dict.fromkeys(LAYERS, forms) if isinstance(forms, str) else forms
    return {"layers": [{"path": path, "form": form, "dtype": dtype} for path, form in chosen.items()]}


def packed(model: nn.Module | None = None, form: str = "csr", x: Tensor = IMAGES) -> Sparsified:
    return prunus.sparsify(net() if model is None else model, (x,), like=plan(form))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)


@torch.no_grad()
def out(model: nn.Module, x: Tensor = IMAGES) -> Tensor:
    found: Tensor = model(x)
    return found


@pytest.mark.parametrize("form", ALL)
def test_every_form_computes_the_same_and_comes_back(form: str) -> None:
    model = net()
    before, expected = copy.deepcopy(model), out(model)
    found = packed(model, form)
    assert same_state(model, before), "the model that was given is not touched"
    assert [x.form for x in found.layers] == [form] * len(LAYERS)
    assert {n for n, m in found.model.named_modules() if isinstance(m, PackedLayer)} == set(LAYERS)
    assert {n for n, m in found.model.named_modules() if isinstance(m, DrawnIn)} == {"stem.1", "stem.2", "norm", "act"}
    torch.testing.assert_close(out(found.model), expected, rtol=1e-4, atol=1e-5)
    other = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(out(found.model, other), out(model, other), rtol=1e-4, atol=1e-5)
    dense = found.dense()
    assert same_state(dense, before) and [type(m) for m in dense.modules()] == [type(m) for m in before.modules()]
    assert torch.equal(out(dense), expected)
    assert all(p.requires_grad for p in dense.parameters())


def test_measured_on_this_machine() -> None:
    """Whatever is chosen, the record says by which figures."""
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10), nn.LayerNorm(10))
    with torch.no_grad():
        model[0].weight[torch.rand(512, 512) < 0.95] = 0
        model[2].weight[torch.rand(10, 512) < 0.95] = 0
    x = torch.randn(64, 512)
    found = prunus.sparsify(model.eval(), x, threads=1, runs=5)
    assert found.threads == 1 and found.batch == 64 and found.level == kernels.level()
    for layer in found.layers:
        assert layer.ratio is not None and layer.sparse_ms == min(layer.tried.values())
        fast = layer.ratio.median >= 1.05 and layer.ratio.q25 > 1
        assert (layer.form is not None) == fast and (layer.why == "") == fast
    torch.testing.assert_close(out(found.model, x), out(model, x), rtol=1e-4, atol=1e-5)
    assert (found.ratio is not None) == bool(found.packed)


def test_the_garbage_collector_is_as_before() -> None:
    assert gc.get_freeze_count() == 0
    packed()
    assert gc.isenabled() and gc.get_freeze_count() == 0


def fake_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    """Timing that gives what a test says: whatever is not named takes as long as `others`."""

    def turns(calls: Mapping[str, Any], runs: int) -> dict[str, list[float]]:
        for call in calls.values():
            call()
        return {name: [times.get(name, times["others"])] * runs for name in calls}

    monkeypatch.setattr(sparse_choice, "turns", turns)
    monkeypatch.setattr(sparsify_, "turns", turns)


@pytest.mark.parametrize(
    ("times", "dtype", "form", "why"),
    [
        ({"dense": 3.0, "8x1 float32": 1.0, "others": 1.2}, None, "8x1", ""),
        ({"dense": 3.0, "bitmask float32": 1.0, "others": 1.2}, None, "bitmask", ""),
        ({"dense": 1.04, "csr float32": 1.0, "others": 1.2}, None, None, "1.04x faster"),
        ({"dense": 0.5, "csr float32": 1.0, "others": 1.2}, None, None, "2.00x slower"),
        ({"dense": 3.0, "csr bfloat16": 1.0, "others": 1.2}, torch.bfloat16, "csr", ""),
        ({"dense": 3.0, "csr bfloat16": 1.0, "dense bfloat16": 0.9, "others": 1.2}, torch.bfloat16, None, "dense bfl"),
    ],
)
def test_the_fastest_form_is_taken_if_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], dtype: torch.dtype | None, form: str | None, why: str
) -> None:
    fake_times(monkeypatch, times)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).eval()
    with torch.no_grad():
        model[0].weight[(torch.rand(4, 64) < 0.9).repeat_interleave(16, 0)] = 0
    (layer,) = prunus.sparsify(model, torch.randn(8, 64), dtype=dtype).layers
    assert layer.form == form and why in layer.why and bool(why) == (form is None)


def test_only_forms_without_loss_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, {"dense": 3.0, "others": 1.0})
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).eval()
    with torch.no_grad():
        model[0].weight.view(64, 16, 4).scatter_(2, torch.rand(64, 16, 4).argsort(2)[:, :, :2], 0)
    (layer,) = prunus.sparsify(model, torch.randn(8, 64)).layers
    assert "2:4 float32" in layer.tried and "8x1 float32" not in layer.tried and "csr bfloat16" not in layer.tried


def test_a_layer_that_differs_stays_dense_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, {"dense": 3.0, "others": 1.0})
    found = prunus.sparsify(net(), IMAGES, tol=0.0)
    left = [x for x in found.layers if x.form is None]
    assert left and all("differ by" in x.why for x in left) and all(x.error == 0 for x in found.packed)
    assert torch.equal(out(found.model), out(net()))


@pytest.mark.parametrize("place", ["in place", "copy"])
def test_a_model_that_differs_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(sparsify_, "largest_difference", lambda *_: 0.5)
    model = net()
    run = prunus.sparsify_ if place == "in place" else prunus.sparsify
    with pytest.raises(VerificationError, match=r"differ by 5.0e-01 .*exclude="):
        run(model, IMAGES, like=plan("csr"))
    assert same_state(model, net()) and not any(isinstance(m, PackedLayer) for m in model.modules())


def test_in_place() -> None:
    model = net()
    found = prunus.sparsify_(model, IMAGES, like=plan("4x1"))
    assert found.model is model and isinstance(model.up, PackedLayer)
    torch.testing.assert_close(out(model), out(net()), rtol=1e-4, atol=1e-5)
    assert same_state(densify(model), net())


def test_a_layer_that_is_called_twice_is_replaced_under_each_name() -> None:
    layer = nn.Linear(8, 8)
    model = sparse(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()))
    found = prunus.sparsify(model, torch.randn(4, 8), like=plan({"0": "csr"})).model
    assert found[0] is found[2] and isinstance(found[0], PackedLayer)
    x = torch.randn(4, 8)
    torch.testing.assert_close(out(found, x), out(model, x))


def test_minus_zeros_are_zeros() -> None:
    """A mask that is multiplied leaves minus zeros, which are no values."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 64) > 0.9)
    assert bool((model[0].weight.signbit() & (model[0].weight == 0)).any())
    found = prunus.sparsify(model, torch.randn(2, 64), like=plan({"0": "csr"}))
    assert len(found.model[0].values) < 0.15 * 64 * 64
    assert torch.equal(found.model[0].weight, model[0].weight)


def test_bfloat16() -> None:
    model = net(dtype=torch.bfloat16)
    x = IMAGES.bfloat16()
    found = prunus.sparsify(model, x, like=plan("csr", "bfloat16"))
    torch.testing.assert_close(out(found.model, x), out(model, x), rtol=0.05, atol=0.05)
    assert same_state(found.dense(), model)
    rounded = prunus.sparsify(net(), IMAGES, like=plan("csr", "bfloat16"))
    assert rounded.model.up.values.dtype == torch.bfloat16 and out(rounded.model).dtype == torch.float32
    torch.testing.assert_close(out(rounded.model), out(net()), rtol=0.05, atol=0.05)


def test_other_types_stay_dense() -> None:
    found = prunus.sparsify(net(dtype=torch.float64), IMAGES.double())
    assert found.packed == () and all(x.why for x in found.layers)


def test_exclude_and_least() -> None:
    found = prunus.sparsify(
        net(), IMAGES, exclude=("stem.*", "wide", "point", "up", "narrow"), like=plan({"last": "csr"})
    )
    assert [x.why for x in found.layers] == ["excluded"] * 5 + [""]
    found = prunus.sparsify(net(), IMAGES, least=0.99)
    assert found.layers == () and found.left == {}


def test_save_and_load(tmp_path: Path) -> None:
    """A state goes into a model with other weights that was packed in the same places, in other forms."""
    saved = packed(form="csr")
    save_file(saved.model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "record.json").write_text(json.dumps(saved.to_dict()))
    state = load_file(tmp_path / "model.safetensors")
    like = json.loads((tmp_path / "record.json").read_text())
    full = prunus.sparsify(Net().eval(), IMAGES, like=like)  # a model without zeros
    for made in (prunus.sparsify(net(1), IMAGES, like=like), packed(net(1), "8x1"), full):
        assert not torch.equal(out(made.model), out(saved.model))
        made.model.load_state_dict(state)
        assert torch.equal(out(made.model), out(saved.model))
        assert same_state(made.dense(), net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"up.index": s["up.index"] + 200}), "contradict"),
        (lambda s: s.update({"up.starts": s["up.starts"] * 3}), "no packed weight"),
        (lambda s: s.update({"up.values": s["up.values"][:-1]}), "no packed weight"),
        (lambda s: s.update({"up._extra_state": torch.tensor([99, 255], dtype=torch.uint8)}), "unknown form"),
        (lambda s: s.update({"wide.unfolded": s["wide.unfolded"][1:]}), "normalization"),
        (lambda s: s.pop("up.counts"), "up: "),
        (lambda s: s.update({"up.weight": torch.zeros(33, 16)}), "load it into the dense model"),
    ],
    ids=["index", "starts", "values", "form", "unfolded", "missing", "dense"],
)
def test_a_state_is_checked_before_a_kernel_reads_it(change: Any, message: str) -> None:
    model = packed().model
    state, expected = model.state_dict(), out(model)
    change(state)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert torch.equal(out(model), expected)


def test_copied() -> None:
    found = packed()
    twin = copy.deepcopy(found.model)
    assert torch.equal(out(twin), out(found.model))
    twin.up.values.zero_()
    assert not torch.equal(out(twin), out(found.model))
    assert same_state(found.dense(), net())


def test_compiled() -> None:
    found = packed()
    compiled = torch.compile(found.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(out(compiled), out(found.model))


def test_exported() -> None:
    found = packed()
    program = torch.export.export(found.model, (IMAGES,))
    ops = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert any("sparse_linear" in op for op in ops) and any("sparse_conv2d" in op for op in ops)
    assert not any("batch_norm" in op or "gelu" in op for op in ops)
    torch.testing.assert_close(out(program.module()), out(found.model))


@pytest.mark.slow
def test_compiled_to_code() -> None:
    found = packed()
    torch.testing.assert_close(out(torch.compile(found.model)), out(found.model))


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    model = sparse(transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **sizes)))
    ids = {"input_ids": torch.arange(12).view(2, 6)}
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = prunus.sparsify(model, ids, like=plan(dict.fromkeys(names, "csr")))
    assert [x.path for x in found.packed] == names
    assert [x.activation is not None for x in found.packed] == ["intermediate" in n for n in names]
    assert set(found.left) == {n for n, p in model.named_parameters() if "embeddings" in n and p.dim() > 1}
    with torch.no_grad():
        a, b = (m(**ids).last_hidden_state for m in (model, found.model))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert same_state(found.dense(), model)


def test_record_is_told_in_text_and_json() -> None:
    found = packed()
    told = json.loads(json.dumps(found.to_dict()))
    assert [x["path"] for x in told["layers"]] == LAYERS and told["layers"][0]["shape"] == [20, 3, 3, 3]
    text, page = str(found), found._repr_html_()
    for word in (*LAYERS, "6 of 6 layers", "csr float32", "stem.1 + stem.2"):
        assert word in text and word in page
    model = sparse(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6)))
    assert "not packable: 0.weight" in str(prunus.sparsify(model, torch.arange(4), like=plan({"1": "csr"})))


def test_packed_layers_answer_what_the_dense_ones_did() -> None:
    model = packed().model
    assert (model.up.in_features, model.up.out_features, model.wide.dilation) == (16, 33, (1, 2))
    for name in LAYERS:
        assert torch.equal(model.get_submodule(name).weight, net().get_submodule(name).weight)
    assert "form=csr" in repr(model.up)
    assert torch.equal(out(model.cpu().float()), out(model))
    for moved in (lambda: model.to(torch.bfloat16), lambda: model.double(), lambda: model.to("meta")):
        with pytest.raises(SpecError, match="densify"):
            moved()


def test_inference_only() -> None:
    model = packed().model
    with pytest.raises(SpecError, match="for inference"):
        model.train()(IMAGES)
    y = model.eval()(IMAGES.clone().requires_grad_())
    with pytest.raises(PrunusError, match="backward"):
        y.sum().backward()


def layer_in(mode: str) -> nn.Module:
    model = net()
    match mode:
        case "part":
            model.norm.train()
        case "meta":
            model.to("meta")
        case "all":
            model.train()
        case "packed":
            model = packed().model
        case "layer":
            return nn.Linear(6, 6).eval()
    return model


@pytest.mark.parametrize(
    ("mode", "options", "error", "message"),
    [
        ("all", {}, SpecError, "training mode"),
        ("part", {}, SpecError, "training mode"),
        ("meta", {}, SpecError, "meta"),
        ("packed", {}, SpecError, "packed layers already"),
        ("layer", {}, SpecError, "single layer"),
        ("", {"margin": 0.0}, SpecError, "margin=0"),
        ("", {"runs": 1}, SpecError, "runs=1"),
        ("", {"dtype": torch.float16}, SpecError, "float16"),
        ("", {"like": plan({"nowhere": "csr"})}, SpecError, "nowhere"),
        ("", {"like": plan("13x1")}, SpecError, "unknown form"),
        ("", {"like": {"layers": [{"path": "up"}]}}, DataError, "record of sparsify"),
    ],
)
def test_what_cannot_be_is_refused(mode: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prunus.sparsify(layer_in(mode), IMAGES, **options)


def test_without_kernels_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False, raising=False)
    monkeypatch.setattr(kernels, "reason", lambda: "no C++ compiler", raising=False)
    with pytest.raises(PrunusError, match=r"not available here: no C\+\+ compiler"):
        prunus.sparsify(net(), IMAGES)


def patterns(model: nn.Module, names: Sequence[str]) -> list[float]:
    return [float((model.get_submodule(n).weight == 0).float().mean()) for n in names]


def test_zeros_survive_the_way_there_and_back() -> None:
    assert patterns(packed().dense(), LAYERS) == patterns(net(), LAYERS)
