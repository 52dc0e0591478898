"""ONNX files of compact networks: valid, and ONNX Runtime computes from them what the network computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import MissingExtraError, SpecError, StructureError, VerificationError
from prunus.deploy import export_onnx
from prunus.deploy import onnx as exporting
from prunus.graph import compact, trace
from prunus.lab import zoo
from tests.graph.proof import disturb, some

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


class Residual(nn.Module):
    """Two convolutions beside a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.n, self.fc = nn.BatchNorm2d(8), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.n(self.a(x)))) + self.c(x))
        return self.fc(x.mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution with hard-swish, projection, shortcut (MobileNet's block)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 1, bias=False)
        self.deep, self.down = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 8, 1)
        self.n, self.fc = nn.BatchNorm2d(24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.relu6(self.deep(F.hardswish(self.n(self.up(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small(model: nn.Module, example: Any) -> nn.Module:
    """The network without half of the units of every group, nothing in it zero or constant."""
    model = disturb(model).eval()
    structure = trace(model, example)
    assert structure.groups
    return compact(model, structure.groups, some(structure, 0.5), example)[0]


def hf(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = torch.arange(10).view(2, 5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    words = {**sizes, "vocab_size": 50, "max_position_embeddings": 32}
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**words)), {"input_ids": ids}
    if kind == "llama":
        config = transformers.LlamaConfig(**words, num_key_value_heads=2, pad_token_id=0, bos_token_id=1)
        return transformers.LlamaForCausalLM(config), {"input_ids": ids}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    return transformers.ViTForImageClassification(config), {"pixel_values": pixels()}


def check(path: Path, model: nn.Module, example: Any, **options: Any) -> Any:
    """Export, then compare by hand on other values of the same shapes."""
    runtime = pytest.importorskip("onnxruntime")
    flags = [m.training for m in model.modules()]
    saved = export_onnx(model, example, path, **options)
    assert [m.training for m in model.modules()] == flags
    assert saved.path == path and saved.error is not None and saved.error <= 1e-4 and not saved.reason
    onnx.checker.check_model(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = list(example.values()) if isinstance(example, dict) else [example]
    other = [v.flip(0) * 2 + 1 if not v.is_floating_point() else v.flip(-1) * 2 for v in values]
    found = session.run(None, {n: v.numpy() for n, v in zip(saved.inputs, other, strict=True)})
    first = session.run(None, {n: v.numpy() for n, v in zip(saved.inputs, values, strict=True)})
    with torch.no_grad():
        expected = (
            model.eval()(**dict(zip(example, other, strict=True))) if isinstance(example, dict) else model(*other)
        )
    expected = expected if isinstance(expected, Tensor) else expected.logits
    torch.testing.assert_close(torch.as_tensor(found[0]), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert abs(found[0] - first[0]).max() > 1e-3 * float(expected.abs().max())  # it looks at its input
    return saved


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "residual": lambda: (Residual(), pixels()),
    "inverted residual": lambda: (Inverted(), pixels()),
    "bert": lambda: hf("bert"),
    "llama": lambda: hf("llama"),
    "vit": lambda: hf("vit"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_compact_networks_export(name: str, tmp_path: Path) -> None:
    model, example = NETWORKS[name]()
    before = sum(p.numel() for p in model.parameters())
    model = small(model, {**example, "use_cache": False} if name == "llama" else example)
    assert sum(p.numel() for p in model.parameters()) < before
    saved = check(tmp_path / "new" / "model.onnx", model, example)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["model.onnx"]
    assert len(saved.inputs) == len(saved.outputs) == 1 and saved.opset >= 17
    weights = sum(int(torch.tensor(i.dims).prod()) for i in onnx.load(saved.path).graph.initializer if i.data_type == 1)
    assert weights < 1.2 * sum(p.numel() for p in model.parameters()) + 200


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit_tiny_cifar"])
def test_networks_of_the_zoo_export(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, model = torch.randn(2, 3, 32, 32), zoo.build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    # Statistics of real activations, or nothing of the image is left at the end of a deep network.
    model.train()(torch.randn(16, 3, 32, 32))
    check(tmp_path / "model.onnx", small(model, images), images)


def test_mixtures_of_experts_export(tmp_path: Path) -> None:
    """Their grouped products, for which ONNX has no operator, become batched ones for the time of the export."""
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, intermediate_size=48, vocab_size=50, use_cache=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, example = transformers.Qwen3MoeForCausalLM(config), {"input_ids": torch.arange(10).view(2, 5)}
    before = model.get_experts_implementation()
    compacted = small(model, example)
    check(tmp_path / "model.onnx", compacted, example)
    assert compacted.get_experts_implementation() == before == {"": "grouped_mm"}


def test_axes_may_vary(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = small(Residual(), pixels())
    saved = export_onnx(model.train(), pixels(), tmp_path / "m.onnx", dynamic_shapes={"x": {0: "batch"}})
    assert model.training and saved.error is not None
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    five = torch.randn(5, 3, 8, 8)
    found = session.run(None, {"x": five.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(found), model.eval()(five), rtol=1e-3, atol=1e-4)


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "INLINE_LIMIT", 100)
    model = small(Residual(), pixels())
    saved = [check(tmp_path / "m.onnx", model, pixels()) for _ in range(2)]
    assert saved[0].weights != saved[1].weights and saved[1].weights is not None
    # The weights of the file that was replaced are gone.
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(["m.onnx", saved[1].weights.name])
    monkeypatch.setattr(exporting, "INLINE_LIMIT", 1 << 30)
    assert check(tmp_path / "m.onnx", model, pixels()).weights is None
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


class Branch(nn.Module):
    """Control flow that depends on values, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_what_cannot_be_exported_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("older")
    with pytest.raises(StructureError, match="cannot export this Branch"):
        export_onnx(Branch(), torch.ones(2), tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="is a folder"):
        export_onnx(Residual(), pixels(), tmp_path)
    with pytest.raises(SpecError, match="meta device"):
        export_onnx(Residual().to("meta"), pixels(), tmp_path / "m.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"] and (tmp_path / "m.onnx").read_text() == "older"


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    model, real = Residual().eval(), exporting._translated

    def other(given: nn.Module, *rest: Any) -> Any:
        with torch.no_grad():
            given.fc.bias[0] += 0.5  # type: ignore[union-attr, index, operator]
        return real(given, *rest)

    monkeypatch.setattr(exporting, "_translated", other)
    with pytest.raises(VerificationError, match="apart"):
        export_onnx(model, pixels(), tmp_path / "m.onnx")
    assert not os.listdir(tmp_path)
    assert export_onnx(model, pixels(), tmp_path / "m.onnx", tol=10.0).error > 1e-3  # type: ignore[operator]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"prunus\[onnx\]"):
        export_onnx(Residual(), pixels(), tmp_path / "m.onnx")
