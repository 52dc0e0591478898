"""Sizes that are written into a forward become attributes of an exported graph, pruned like any other model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.core.errors import StructureError
from prunus.deploy import export_onnx
from prunus.graph import exported, trace
from prunus.parts.granularity import Head
from tests.graph.proof import prove


class Baked(nn.Module):
    """Attention whose sizes are numbers in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 7, 3, 4, 6).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(-1, 7, 24))
        return self.head(torch.cat([y[..., :8], y[..., 8:]], -1).mean(1))


def test_sizes_in_the_code_become_attributes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Baked().eval(), torch.randn(2, 7, 24)
    assert "qkv.weight" in trace(model, x).frozen
    graph = exported(model, x)
    assert torch.equal(graph(x), model(x))
    assert graph(torch.randn(5, 7, 24)).shape == (5, 5)
    assert dict(graph.named_parameters())["qkv.weight"] is model.qkv.weight
    structure, small = prove(graph, x)
    # Behind the heads: the output projection, on both sides of the bound of a slice.
    assert [(g.kind, g.units) for g in structure.groups] == [("head", 4), ("neuron", 16), ("neuron", 8)]
    assert small(torch.randn(3, 7, 24)).shape == (3, 5)

    recipe = replace(prunus.methods.get("l1_filter"), granularity=Head())
    result = prunus.prune(graph, prunus.Task(example=(x,)), recipe, sparsity=0.5)
    compact = result.compact()
    assert dict(compact.named_parameters())["qkv.weight"].shape == (36, 24)
    prunus.save(result, tmp_path / "pruned")
    again = prunus.load(tmp_path / "pruned", lambda: exported(Baked().eval(), x))
    assert torch.equal(again(x), compact(x))


def test_the_heads_of_multihead_attention_go_in_the_graph() -> None:
    vision = pytest.importorskip("torchvision").models.vision_transformer
    model = vision.VisionTransformer(16, 8, 2, 4, 32, 48, num_classes=5).eval()
    x = torch.randn(2, 3, 16, 16)
    reasons = trace(model, x).frozen
    assert "its width is that of its input" in reasons["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    structure, _ = prove(exported(model, x), x)
    assert sorted(g.kind for g in structure.groups) == ["head", "head", "neuron", "neuron"]  # each layer for itself


def test_control_flow_on_data_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(StructureError, match=r"torch\.export makes no graph of Branch"):
        exported(Branch(), torch.randn(2, 4))


class Mixed(nn.Module):
    """Channels convolved one by one and normalized in pairs, sizes in the code, and layers that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.deep = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)
        self.pairs, self.drop, self.fc = nn.GroupNorm(4, 8), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pairs(self.deep(F.relu(self.norm(self.a(x)))))
        out: Tensor = self.fc(self.drop(F.dropout(y.mean((2, 3)).reshape(-1, 8), 0.9, training=False)))
        return out


def test_groups_of_convolutions_and_norms_become_attributes() -> None:
    x = torch.randn(4, 3, 8, 8)
    structure, small = prove(exported(Mixed().eval(), x), x)
    assert [(g.kind, g.units) for g in structure.groups] == [("channel", 4)]  # pairs of channels, normalized together
    assert small.get_parameter("deep.weight").shape == (4, 1, 3, 3)


def test_what_training_changes_follows_the_mode() -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(4, 3, 8, 8)
    graph = exported(model, x)
    assert model.training and not graph.training  # the model is left as it was
    for training in (False, True):
        torch.manual_seed(1)
        expected = model.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(graph.train(training)(x), expected)
    small = prove(graph, x)[1]
    before = small.get_buffer("norm.running_mean").clone()
    small.train()(x).sum().backward()
    assert not torch.equal(small.get_buffer("norm.running_mean"), before)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())


def test_a_pruned_graph_goes_to_half_precision_and_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    x = torch.randn(4, 3, 8, 8)
    small = prove(exported(Mixed().eval(), x), x)[1].eval()
    done = export_onnx(small, x, tmp_path / "small.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert done.error is not None and done.error < 1e-4
    expected = small(x)
    assert (small.half()(x.half()) - expected).abs().max() < 1e-2 * expected.abs().max()


def test_slices_of_tables_are_not_sizes() -> None:
    class Table(nn.Module):
        """Relative positions: a table of which the length of the input says which part is read."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(12, 6))
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            near = self.a(self.table[4 : 4 + x.shape[1]])
            out: Tensor = self.b(torch.relu(self.a(x) + near))
            return out

    x = torch.randn(2, 5, 6)
    structure, _ = prove(exported(Table().eval(), x), x)
    assert [(g.kind, g.units) for g in structure.groups] == [("neuron", 8)]


def test_both_halves_of_a_fused_projection_are_cut_at_their_bound() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.a.bias.clone()
            bias[8:12].zero_()
            y = F.linear(x, self.a.weight, bias)
            out: Tensor = self.b(y[..., :8] * torch.sigmoid(y[..., 8:]))
            return out

    x = torch.randn(2, 2, 6)  # as many samples as the axis' number, which is no bound
    structure, _ = prove(exported(Fused().eval(), x), x)
    assert [(g.kind, g.units) for g in structure.groups] == [("neuron", 4)] * 2  # with and without a bias


def test_parametrized_weights_are_exported() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(2, 4)
    structure, _ = prove(exported(model, x), x)
    assert [(g.kind, g.units) for g in structure.groups] == [("neuron", 6)]


def test_the_refusal_of_heads_names_the_way() -> None:
    torch.manual_seed(0)
    model, x = Baked().eval(), torch.randn(2, 7, 24)
    recipe = replace(prunus.methods.get("l1_filter"), granularity=Head())
    task = prunus.Task(example=(x,))
    with pytest.raises(StructureError, match=r"prunus\.graph\.exported\(model, example\)"):
        prunus.prune(model, task, recipe, sparsity=0.5)
    assert prunus.prune(exported(model, x), task, recipe, sparsity=0.5).sparsity == pytest.approx(0.5, abs=0.1)
