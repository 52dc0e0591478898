"""Whole networks: of the zoo, torchvision, timm and transformers. Refused or equal, never wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus.graph import Structure
from prunus.lab import zoo
from tests.graph.proof import producers, prove

ONLY_HEAD = {"an output of the model"}


def reasons(structure: Structure) -> set[str]:
    return set(structure.frozen.values())


@pytest.mark.parametrize("name", list(zoo.networks()))
def test_zoo(name: str) -> None:
    slim: dict[str, Any] = {"width": 0.25} if name.startswith(("vgg", "resnet18", "mobilenet")) else {}
    structure, small = prove(zoo.build(name, **slim), zoo.example_inputs(name))
    assert structure.groups
    assert not [reason for reason in structure.frozen.values() if "its rule does not fit" in reason]
    if name.startswith(("lenet", "mlp", "vgg", "resnet", "mobilenet")):
        assert reasons(structure) == ONLY_HEAD, structure.frozen
        assert sum(p.numel() for p in small.parameters()) > 0


TORCHVISION = ["shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"]
TORCHVISION_LARGE = (
    "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "swin_t", "vgg11_bn",
)  # fmt: skip


@pytest.mark.parametrize("name", [*TORCHVISION, *TORCHVISION_LARGE])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, weights=None, num_classes=10, **options)
    size = 96 if name == "inception_v3" else 64 if name in TORCHVISION_LARGE else 32
    structure, _ = prove(model, torch.randn(2, 3, size, size))
    assert structure.groups
    if not name.startswith(("convnext", "swin", "shufflenet")):
        # The auxiliary classifier of Inception runs in training only, and on larger images only.
        idle = {"the example does not use it"} if name == "inception_v3" else set()
        assert reasons(structure) == ONLY_HEAD | idle, structure.frozen


TIMM = {
    "resnet10t": 64, "mobilenetv3_small_050": 64, "repvgg_a0": 32, "convnext_atto": 64, "vit_tiny_patch16_224": 224,
}  # fmt: skip


@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    options = {"depth": 2} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **options)
    structure, _ = prove(model, torch.randn(1, 3, TIMM[name], TIMM[name]))
    assert structure.groups


def transformer(name: str) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    library = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"input_ids": torch.randint(0, 64, (2, 7))}
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "bert":
        config = library.BertConfig(**small, vocab_size=64)
        return library.BertForSequenceClassification(config), ids, "bert.encoder.layer.0.intermediate.dense.weight"
    if name == "gpt2":
        config = library.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=0)
        return library.GPT2LMHeadModel(config), ids, "transformer.h.1.mlp.c_fc.weight"
    if name == "llama":
        config = library.LlamaConfig(**small, vocab_size=64, num_key_value_heads=2)
        return library.LlamaForCausalLM(config), ids, "model.layers.0.mlp.up_proj.weight"
    config = library.ViTConfig(**small, image_size=32, patch_size=8)
    return library.ViTForImageClassification(config), pixels, "vit.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_transformers(name: str) -> None:
    model, example, neurons = transformer(name)
    structure, small = prove(model, example)
    assert neurons in producers(structure)
    was, now = dict(model.named_parameters())[neurons], dict(small.named_parameters())[neurons]
    width, inner = sorted(was.shape)
    # The width of the stream goes too where its norms can be put right.
    assert sorted(now.shape) == sorted((round(0.6 * width) if name == "llama" else width, round(0.6 * inner)))
