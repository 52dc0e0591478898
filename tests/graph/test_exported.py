"""Sizes that are written into a forward become attributes of an exported graph, pruned like any other model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import StructureError
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
    # Behind the heads: the output projection, of which nothing but a bounded slice and the classifier take channels.
    assert [(g.kind, g.units) for g in structure.groups] == [("head", 4), ("neuron", 16)]
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
    model = vision.VisionTransformer(16, 8, 1, 4, 32, 48, num_classes=5).eval()
    x = torch.randn(2, 3, 16, 16)
    reasons = trace(model, x).frozen
    assert "its width is that of its input" in reasons["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    structure, _ = prove(exported(model, x), x)
    assert sorted(g.kind for g in structure.groups) == ["head", "neuron"]


def test_control_flow_on_data_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(StructureError, match=r"torch\.export makes no graph of Branch"):
        exported(Branch(), torch.randn(2, 4))
