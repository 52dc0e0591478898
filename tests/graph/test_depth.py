"""Whole blocks: which can be removed, and that the model without them is the one with them at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import SpecError, StructureError
from prunus.graph import Edit, compact, replay_
from prunus.graph.depth.blocks import blocks
from prunus.lab.zoo.resnet import resnet20
from tests.graph.depth_nets import Residual, Stack, outputs_of, proved, stack, where
from tests.graph.nets import Net


def test_residual_networks() -> None:
    found, _ = proved(resnet20(width=0.25), torch.randn(2, 3, 16, 16), lambda: resnet20(width=0.25))
    assert where(found) == {"stages.0": (0, 1, 2), "stages.1": (1, 2), "stages.2": (1, 2)}
    assert [group.at_least for group in found.groups] == [1, 0, 0]
    assert "shape" in found.refused["stages.1.0"] and "16x16" in found.refused["stages.1.0"]


def bottleneck(models: Any) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [2, 3, 1, 1], num_classes=4, width_per_group=8)


def convnext(models: Any) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 3), CNBlockConfig(16, None, 2)], num_classes=4)


@pytest.mark.parametrize(
    ("build", "entries"),
    [
        (bottleneck, {"layer1": (1,), "layer2": (1, 2)}),
        (lambda m: m.mobilenet_v2(width_mult=0.25, num_classes=4),
         {"features": (1, 3, 5, 6, 8, 9, 10, 12, 13, 15, 16)}),
        (convnext, {"features.1": (0, 1, 2), "features.3": (0, 1)}),
        (lambda m: m.VisionTransformer(32, 16, 3, 2, 8, 16, num_classes=4), {"encoder.layers": (0, 1, 2)}),
    ],
    ids=["resnet", "mobilenet_v2", "convnext", "vit"],
)  # fmt: skip
def test_torchvision(build: Callable[[Any], nn.Module], entries: dict[str, tuple[int, ...]]) -> None:
    models = pytest.importorskip("torchvision").models
    found, small = proved(build(models), torch.randn(2, 3, 32, 32))
    assert where(found) == entries
    if "encoder.layers" in entries:  # names that are not numbers stay
        kept = [n for n, _ in small.encoder.layers.named_children()]
        assert set(kept) < {"encoder_layer_0", "encoder_layer_1", "encoder_layer_2"}


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", depth=4, img_size=32, embed_dim=24, num_classes=4)
    found, small = proved(vit, torch.randn(2, 3, 32, 32))
    assert where(found) == {"blocks": (0, 1, 2, 3)} and [n for n, _ in small.blocks.named_children()] == ["0", "1"]
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", depths=(2, 3), num_heads=(2, 2), embed_dim=8, img_size=28, num_classes=4
    )
    found, small = proved(swin, torch.randn(2, 3, 28, 28))
    assert where(found) == {"layers.0.blocks": (0, 1), "layers.1.blocks": (0, 1, 2)}
    assert small.num_layers == 2 and [stage.depth for stage in small.layers] == [1, 1]
    assert found.refused["layers.0"] == "the blocks in it can be removed one by one"


SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
IDS = {"input_ids": torch.arange(10, 22).reshape(2, 6)}


def hf(kind: str, config: str, **settings: Any) -> nn.Module:
    library = pytest.importorskip("transformers")
    made: nn.Module = getattr(library, kind)(getattr(library, config)(**settings))
    return made.eval()


def test_decoders_renumber_their_layers_and_follow_their_configuration() -> None:
    found, small = proved(hf("LlamaForCausalLM", "LlamaConfig", **SMALL, num_key_value_heads=1), IDS)
    assert where(found) == {"model.layers": (0, 1, 2, 3)}
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    assert small.config.num_hidden_layers == 2 and small.config is small.model.config
    assert small.generate(IDS["input_ids"], max_new_tokens=2, do_sample=False).shape == (2, 8)
    found, small = proved(
        hf("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=3, n_head=2, vocab_size=40, n_positions=16,
           bos_token_id=0, eos_token_id=1), IDS,
    )  # fmt: skip
    assert where(found) == {"transformer.h": (0, 1, 2)} and small.config.n_layer == 1
    found, small = proved(
        hf("Gemma3ForCausalLM", "Gemma3TextConfig", **SMALL, num_key_value_heads=1, head_dim=8, sliding_window=4), IDS
    )
    assert len(small.config.layer_types) == 2


def test_encoders() -> None:
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    found, small = proved(hf("ViTModel", "ViTConfig", **{**SMALL, "image_size": 16, "patch_size": 8}), images)
    assert [g.units for g in found.groups] == [4] and small.config.num_hidden_layers == 2
    bert = blocks(hf("BertModel", "BertConfig", **SMALL), IDS)
    assert not bert.groups and len(bert.refused) == 4
    assert all("a normalization follows the sum" in reason for reason in bert.refused.values())


def test_a_layer_that_others_lean_on_is_refused() -> None:
    found, small = proved(
        hf("T5ForConditionalGeneration", "T5Config", vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3,
           num_decoder_layers=3, num_heads=2, decoder_start_token_id=0),
        {**IDS, "decoder_input_ids": IDS["input_ids"]},
    )  # fmt: skip
    # The first layer of T5 makes the position bias of all the others.
    assert {n: e for n, e in where(found).items() if "layer" not in n} == {
        "encoder.block": (1, 2), "decoder.block": (1, 2)
    }  # fmt: skip
    # Of that one the feed-forward branch can go, which is a module of its own from input to sum.
    assert [g.names for g in found.groups if g.replaced] == [("encoder.block.0.layer.1",), ("decoder.block.0.layer.2",)]
    assert "does more than passing its input on" in found.refused["encoder.block.0"]
    assert (small.config.num_layers, small.config.num_decoder_layers) == (2, 2)
    assert type(small.encoder.block[0].layer[1]) is nn.Identity


def test_what_repeats_the_depth_follows() -> None:
    config = Stack.Config(4)
    net = Stack(config)
    found, small = proved(net, torch.randn(2, 6), stack)
    assert where(found) == {"layers": (0, 1, 2, 3)}
    assert (small.n_layers, small.config.num_hidden_layers, small.config.num_heads) == (2, 2, 4)
    assert [layer.index for layer in small.layers] == [0, 1] and len(small.config.layer_types) == 2
    # The configuration is not the small model's alone: neither compaction nor replay may change the caller's.
    replay_(Stack(config), [Edit("layers.*", 0, 4, ((0, 1), (3, 4)))])
    assert config.num_hidden_layers == 4 and len(config.layer_types) == 4 and net.config is config


def test_kept_blocks_keep_their_weights_and_order() -> None:
    net = stack()
    masks = {"layers": torch.tensor([False, True, False, True])}
    small, edits = compact(net, blocks(net, torch.randn(2, 6)).groups, masks, torch.randn(2, 6))
    assert edits == (Edit("layers.*", 0, 4, ((1, 2), (3, 4))),)
    for new, old in ((0, 1), (1, 3)):
        assert torch.equal(small.layers[new].a.weight, net.layers[old].a.weight)
    with pytest.raises(SpecError, match="keeps 0 of 4"):
        compact(net, blocks(net, torch.randn(2, 6)).groups, {"layers": torch.zeros(4, dtype=torch.bool)})
    with pytest.raises(StructureError, match="are 3 blocks, but there were 4"):
        replay_(stack(3), edits)
    with pytest.raises(StructureError, match="no module 'layers'"):
        replay_(nn.Sequential(nn.Linear(2, 2)), edits)


def test_branches_in_a_list_per_layer() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        for norm, linear in s.layers:
            x = linear(torch.tanh(norm(x))) + x
        return s.head(x)

    layers = nn.ModuleList(nn.ModuleList([nn.LayerNorm(6), nn.Linear(6, 6)]) for _ in range(3))
    found, _ = proved(Net(forward, layers=layers, head=nn.Linear(6, 2)), torch.randn(2, 6))
    assert where(found) == {"layers": (0, 1, 2)}
    assert "nothing leads around it" in found.refused["layers.1.1"]


@pytest.mark.parametrize("indexed", [True, False])
def test_lists_that_are_gone_through_together(indexed: bool) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.first(x)
        if indexed:
            for i in range(s.num_layers):
                x = x + s.acts[i](s.convs[i](s.norms[i](x)))
        else:
            for conv, norm, act in zip(s.convs, s.norms, s.acts, strict=True):
                x = x + act(conv(norm(x)))
        return s.head(x)

    net = Net(
        forward, first=nn.Linear(4, 6), head=nn.Linear(6, 2), norms=nn.ModuleList(nn.BatchNorm1d(6) for _ in range(4)),
        convs=nn.ModuleList(nn.Linear(6, 6) for _ in range(4)), acts=nn.ModuleList(nn.GELU() for _ in range(4)),
    )  # fmt: skip
    net.num_layers = 4
    found, small = proved(net, torch.randn(2, 4))
    (group,) = found.groups
    assert group.entries == (0, 1, 2, 3) and {group.container, *group.twins} == {"norms", "convs", "acts"}
    assert {m.param for m in group.members if m.unit == 1} >= {"norms.1.running_var", "convs.1.weight"}
    assert [len(small.norms), len(small.convs), len(small.acts), small.num_layers] == [2, 2, 2, 2]
    assert not any(n.startswith(("norms", "convs")) for n in found.refused)


def test_lists_with_holes() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        for layer, extra in zip(s.layers, s.extras, strict=True):
            x = layer(x) if extra is None else extra(layer(x))
        return s.head(x)

    layers, extras = nn.ModuleList(Residual(6) for _ in range(3)), nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
    extras.append(None)
    found = blocks(Net(forward, layers=layers, extras=extras, head=nn.Linear(6, 2)), torch.randn(2, 6))
    assert [(g.names, g.replaced) for g in found.groups] == [(("layers.0", "layers.1", "layers.2"), True)]


class Branches(nn.Module):
    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(4))
        self.gate = nn.Linear(6, 4) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1) if self.gate is not None else torch.ones(len(x), 4)
        return x + sum(share[:, i : i + 1] * branch(x) for i, branch in enumerate(self.branches))


def test_branches_that_are_added_up() -> None:
    found, _ = proved(Branches(), torch.randn(2, 6))
    assert where(found) == {"branches": (0, 1, 2, 3)}
    # Whole blocks come before the branches in them.
    found, _ = proved(nn.Sequential(nn.Linear(6, 6), Branches(), Branches(), nn.Linear(6, 2)), torch.randn(2, 6))
    assert where(found) == {"model": (1, 2)}
    # Without one of them the others would get each other's share.
    gated = blocks(Branches(gate=True), torch.randn(2, 6))
    assert not gated.groups and "nothing leads around it" in gated.refused["branches.3"]


def test_a_way_around_that_is_scaled() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.f = nn.Parameter(torch.ones(())), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return (1 + self.alpha - self.alpha.detach()) * x + self.f(x)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    net = nn.Sequential(nn.Linear(4, 6), Scaled(), Normed(), Normed(), nn.Linear(6, 2))
    found, _ = proved(net, torch.randn(2, 4))
    assert where(found) == {"model": (1, 2, 3)}
    masked = {m.param for m in found.groups[0].members if not m.buffer}
    # The direction of a normalized weight cannot be zero: 0 / 0 is not a number.
    assert "2.f.parametrizations.weight.original0" in masked and "2.f.parametrizations.weight.original1" not in masked


class Clamped(nn.Module):
    def __init__(self, top: float = 6.0) -> None:
        super().__init__()
        self.f, self.top = nn.Linear(6, 6), top

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(x + self.f(x), 0.0, self.top)


class InPlace(nn.Module):
    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.f, self.sign = nn.Linear(6, 6), sign

    def forward(self, x: Tensor) -> Tensor:
        x += self.f(x)
        x *= self.sign
        return x


def test_what_only_looks_like_the_identity() -> None:
    def net(*between: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *between, nn.Linear(6, 2))

    # A clamp passes small values on; it is not the identity for all that may come.
    assert not blocks(net(Clamped(), Clamped()), torch.randn(2, 4)).groups
    assert where(blocks(net(Clamped(float("inf"))), torch.randn(2, 4))) == {"model": (2,)}
    assert where(blocks(net(InPlace(), InPlace()), torch.randn(2, 4))) == {"model": (2, 3)}
    refused = blocks(net(InPlace(-1.0), InPlace(-1.0)), torch.randn(2, 4)).refused
    assert "not the identity" in refused["2"] and "not the identity" in refused["3"]


def test_blocks_whose_absence_the_code_does_not_stand() -> None:
    class Two(Residual):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + 0 * y

    net = Net(
        lambda s, x: s.head(s.layers[2](s.layers[1](s.layers[0](x, x), x), x)),
        layers=nn.ModuleList(Two(6) for _ in range(3)), head=nn.Linear(6, 2),
    )  # fmt: skip
    found = blocks(net, torch.randn(2, 6))
    assert not found.groups and all("does not run" in reason for reason in found.refused.values())
    # What is between the blocks is used by its number: they may be replaced but not dropped.
    layers = nn.ModuleList(Residual(6) for _ in range(3))
    net = Net(
        lambda s, x: s.head(sum((k + 1) * y for k, y in enumerate(outputs_of(s.layers, x)))),
        layers=layers, head=nn.Linear(6, 2),
    )  # fmt: skip
    found, _ = proved(net, torch.randn(2, 6))
    assert [(g.names, g.replaced) for g in found.groups] == [(("layers.0", "layers.1", "layers.2"), True)]
