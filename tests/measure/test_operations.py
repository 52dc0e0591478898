"""Multiply-accumulates against closed forms, as exact integers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from prunus import measure
from prunus.core.errors import DataError, SpecError


class Function(nn.Module):
    """A module around a function of tensors."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        result: Tensor = self.function(*tensors)
        return result


LAYERS: list[tuple[str, nn.Module, tuple[tuple[int, ...], ...], int]] = [
    ("linear", nn.Linear(3, 4), ((5, 3),), 5 * 3 * 4),
    ("linear on one vector", nn.Linear(3, 4), ((3,),), 3 * 4),
    ("linear on tokens, no bias", nn.Linear(3, 4, bias=False), ((2, 7, 3),), 14 * 3 * 4),
    ("bilinear", nn.Bilinear(3, 4, 5), ((2, 3), (2, 4)), 2 * 5 * 3 * 4),
    ("conv stride, pad", nn.Conv2d(3, 8, 3, stride=2, padding=1), ((2, 3, 9, 9),), 2 * 25 * 8 * 3 * 9),
    ("conv same padding", nn.Conv2d(3, 8, 3, padding="same"), ((1, 3, 6, 6),), 36 * 8 * 3 * 9),
    ("conv groups", nn.Conv2d(4, 8, 3, groups=2), ((1, 4, 6, 6),), 16 * 8 * 2 * 9),
    ("conv depthwise", nn.Conv2d(4, 4, 3, groups=4, padding=1), ((1, 4, 6, 6),), 36 * 4 * 9),
    ("conv dilation", nn.Conv2d(2, 3, 3, dilation=2), ((1, 2, 9, 9),), 25 * 3 * 2 * 9),
    ("conv unbatched", nn.Conv2d(2, 3, 1), ((2, 4, 4),), 16 * 3 * 2),
    ("conv 1d", nn.Conv1d(2, 3, 5), ((4, 2, 10),), 4 * 6 * 3 * 2 * 5),
    ("conv 3d", nn.Conv3d(2, 3, 2), ((1, 2, 4, 4, 4),), 27 * 3 * 2 * 8),
    ("transposed conv", nn.ConvTranspose2d(4, 6, 3, stride=2), ((2, 4, 5, 5),), 2 * 25 * 4 * 6 * 9),
    ("transposed conv groups", nn.ConvTranspose1d(4, 6, 3, groups=2), ((1, 4, 5),), 5 * 4 * 3 * 3),
    ("rnn", nn.RNN(5, 7), ((4, 3, 5),), 4 * 3 * 7 * (5 + 7)),
    ("lstm", nn.LSTM(5, 7), ((4, 3, 5),), 4 * 3 * 4 * 7 * (5 + 7)),
    ("lstm 2 layers both ways", nn.LSTM(5, 7, 2, bidirectional=True), ((4, 3, 5),), 12 * 2 * 28 * (5 + 7 + 14 + 7)),
    ("gru", nn.GRU(5, 7, batch_first=True), ((3, 4, 5),), 4 * 3 * 3 * 7 * (5 + 7)),
    ("gru cell", nn.GRUCell(5, 7), ((3, 5), (3, 7)), 3 * 3 * 7 * (5 + 7)),
    (
        "attention layer",
        nn.MultiheadAttention(8, 2, batch_first=True),
        ((3, 4, 8), (3, 6, 8), (3, 6, 8)),
        3 * (4 * 64 + 2 * 6 * 64 + 2 * 4 * 6 * 8 + 4 * 64),
    ),
    (
        "encoder layer",
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        ((3, 4, 8),),
        3 * (4 * 4 * 64 + 2 * 4 * 4 * 8 + 2 * 4 * 8 * 16),
    ),
    ("sdpa", Function(F.scaled_dot_product_attention), ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)), 6 * 4 * 5 * 14),
    (
        "sdpa grouped queries",
        Function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        ((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)),
        2 * 4 * 5 * 5 * 16,
    ),
    ("einsum", Function(lambda a, b: torch.einsum("bik,bkj->bij", a, b)), ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    ("matrix and vector", Function(torch.mv), ((3, 4), (4,)), 12),
    ("dot", Function(torch.dot), ((4,), (4,)), 4),
    ("norms, pool, activation", nn.Sequential(nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2)), ((1, 3, 4, 4),), 0),
    ("layer norm, softmax", nn.Sequential(nn.LayerNorm(4), nn.Softmax(-1)), ((2, 4),), 0),
]


@pytest.mark.parametrize(("layer", "shapes", "expected"), [case[1:] for case in LAYERS], ids=[c[0] for c in LAYERS])
def test_closed_form(layer: nn.Module, shapes: tuple[tuple[int, ...], ...], expected: int) -> None:
    count = measure.macs(layer, tuple(torch.randn(s) for s in shapes))
    assert (count.total, count.effective, count.uncounted_ops, count.how) == (expected, expected, (), "meta")


@pytest.mark.parametrize(("layer", "shapes", "expected"), [case[1:] for case in LAYERS], ids=[c[0] for c in LAYERS])
def test_a_model_that_reads_values_is_run_for_real_and_counts_the_same(
    layer: nn.Module, shapes: tuple[tuple[int, ...], ...], expected: int
) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *inputs: Tensor) -> Any:
            assert float(inputs[0].flatten()[0]) < 1e9
            return self.layer(*inputs)

    count = measure.macs(Reads(), tuple(torch.randn(s) for s in shapes))
    assert (count.total, count.effective, count.uncounted_ops) == (expected, expected, ())
    assert count.how.startswith("real: ")


def test_embedding_is_a_look_up() -> None:
    count = measure.macs(nn.Embedding(10, 4), (torch.tensor([[1, 2], [3, 4]]),))
    assert (count.total, count.uncounted_ops) == (0, ())


def test_an_operation_nobody_knows_is_reported() -> None:
    count = measure.macs(Function(torch.linalg.inv), torch.eye(3))
    assert count.total == 0
    assert any("linalg" in name for name in count.uncounted_ops)


def test_vit_b_16_and_resnet_50() -> None:
    """The published numbers: 17.56 G and 4.09 G multiply-accumulates."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        vit, resnet = models.vit_b_16(), models.resnet50()
    image = torch.empty(1, 3, 224, 224, device="meta")
    tokens, width, hidden = 197, 768, 3072
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    assert measure.macs(vit, (image,)).total == 196 * width * 3 * 256 + 12 * layer + width * 1000 == 17_563_828_224
    assert measure.macs(resnet, (image,)).total == 4_089_184_256


def half_zero(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.view(-1)[::2] = 0


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 16, 10))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x)).flatten(1))
        return result


def test_zeros_are_not_counted_in_effective_and_modules_add_up() -> None:
    model = Small()
    half_zero(model.conv.weight)
    with torch.no_grad():
        model.head[1].weight.zero_()[0, :3] = 1.0
        model.norm.weight.zero_()  # zero activations still count
    count = measure.macs(model, (torch.randn(2, 1, 4, 4),))
    conv, linear = 2 * 16 * 36, 2 * 640
    assert count.per_module == {"conv": conv, "head.1": linear}
    assert count.effective_per_module == {"conv": conv // 2, "head.1": 2 * 3}
    assert count.per_parameter == {"conv.weight": conv, "head.1.weight": linear}
    assert (count.total, count.effective) == (conv + linear, conv // 2 + 6)
    assert (count.within("head"), count.within("")) == (linear, conv + linear)
    assert (count.batch, count.per_sample) == (2, (conv + linear) / 2)
    assert count.to_dict()["per_sample"] == count.per_sample


@pytest.mark.parametrize("real", [False, True])
def test_zeros_in_slices_of_one_weight(real: bool) -> None:
    """Cross-attention uses the query rows of `in_proj_weight` on 4 positions and the others on 6."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.zero_()[:3] = 1.0  # 3 x 8 entries of the query rows
    q, k = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
    model: nn.Module = layer
    if real:
        model = Function(lambda a, b: layer(a, b, b)[0] * float(a.sum()))
        model.layer = layer
    count = measure.macs(model, (q, k) if real else (q, k, k))
    assert count.how.startswith("real") is real
    assert count.effective == 4 * 24 + 2 * 4 * 6 * 8 + 4 * 64


def test_zeros_in_recurrent_weights() -> None:
    layer = nn.LSTM(5, 7)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    assert measure.macs(layer, (torch.randn(4, 3, 5),)).effective == 4 * 3 * 28 * 5


def test_zeros_survive_a_cast_and_channels_last() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half_zero(model.weight.data.permute(0, 2, 3, 1))
    wrapped = Function(lambda x: F.conv2d(x.double(), model.weight.double()))
    wrapped.inner = model
    expected = 4 * int(model.weight.count_nonzero())
    assert expected == 4 * 72
    assert measure.macs(model, (torch.randn(1, 4, 4, 4),)).effective == expected

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x.double(), self.inner.weight.double())

    assert measure.macs(Casts(), (torch.randn(1, 4, 4, 4),)).effective == expected


def test_zeros_of_torch_prune_and_of_a_mask_parametrization() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", (torch.arange(12).view(4, 3) % 3 == 0).float())

        def forward(self, w: Tensor) -> Tensor:
            return w * self.mask

    masked = nn.Linear(3, 4)
    parametrize.register_parametrization(masked, "weight", Mask())
    count = measure.macs(masked, (torch.randn(5, 3),))
    assert (count.total, count.effective) == (60, 20)
    assert list(count.per_parameter) == ["parametrizations.weight.original"]

    hooked = nn.Sequential(prune.l1_unstructured(nn.Linear(3, 4), "weight", amount=9))
    hooked(torch.randn(5, 3))
    count = measure.macs(hooked, (torch.randn(5, 3),))
    assert (count.total, count.effective, count.how) == (60, 15, "meta")


def test_a_scaled_activation_is_not_a_weight() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x * self.scale)
            return result

    count = measure.macs(Scaled(), (torch.randn(3),))
    assert (count.effective, count.per_parameter) == (12, {"linear.weight": 12})


def test_tied_weight_and_shared_module() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.mix = nn.Linear(4, 4)
            self.again = self.mix
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            result: Tensor = self.head(self.again(self.mix(self.embed(ids))))
            return result

    count = measure.macs(Tied(), {"ids": torch.tensor([[1, 2, 3]])})
    assert count.per_module == {"mix": 2 * 3 * 16, "head": 3 * 40}
    assert count.per_parameter == {"mix.weight": 2 * 3 * 16, "embed.weight": 3 * 40}


def test_weights_on_meta_count_as_nonzero() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    assert measure.macs(model, (torch.randn(2, 3),)).effective == 24


def test_sparse_weight() -> None:
    class Csr(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4).to_sparse_csr(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    count = measure.macs(Csr(), (torch.randn(4, 5),))
    assert (count.total, count.effective) == (80, 20)


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        copy.deepcopy(model.state_dict()),
        [(id(m), m.training, dict(m._forward_hooks), sorted(m.__dict__)) for m in model.modules()],
        [(id(p), p.requires_grad, p._version, p.device) for p in (*model.parameters(), *model.buffers())],
        torch.get_rng_state(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
        torch.is_grad_enabled(),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Breaks(Small):
    """Works on meta or for real, or nowhere; uses the random state and caches what it made."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        self.cached = x + torch.rand(1).to(x.device)
        self.norm.running_mean += 1
        if self.where == "meta":
            float(x.sum())
        if self.where == "everywhere":
            raise RuntimeError("broken on purpose")
        return super().forward(x)


@pytest.mark.parametrize("where", ["nowhere", "meta", "everywhere"])
@pytest.mark.parametrize("verb", ["macs", "latency", "peak_memory", "accuracy", "profile"])
def test_model_is_left_as_found(where: str, verb: str) -> None:
    model = Breaks(where).train()
    model.head[0].eval()
    model.conv.weight.requires_grad_(False)
    seen: list[Any] = []
    model.conv.register_forward_hook(lambda *a: seen.append(a))
    before = state(model)
    image = torch.randn(2, 1, 4, 4)
    before = (*before[:3], torch.get_rng_state(), *before[4:])
    calls: dict[str, Any] = {
        "macs": lambda: measure.macs(model, (image,)),
        "latency": lambda: measure.latency(model, (image,), runs=30, min_seconds=0.0),
        "peak_memory": lambda: measure.peak_memory(model, (image,)),
        "accuracy": lambda: measure.accuracy(model, [(image, torch.tensor([1, 2]))]),
        "profile": lambda: measure.profile(model, (image,)),
    }
    if where == "everywhere":
        with pytest.raises(DataError, match="broken on purpose"):
            calls[verb]()
    else:
        calls[verb]()
    after = state(model)
    # The running mean was written and written back, so its version may differ; nothing else may.
    mean = [i for i, p in enumerate((*model.parameters(), *model.buffers())) if p is model.norm.running_mean]
    for index in mean:
        before[2][index] = after[2][index] = None
    for one, other in zip(before, after, strict=True):
        assert same(one, other)
    assert verb != "macs" or not seen


def test_wrong_shape_says_what_and_where() -> None:
    with pytest.raises(DataError, match=r"Linear does not run on the example \(float32\[2, 5\]\)"):
        measure.macs(nn.Linear(3, 4), (torch.randn(2, 5),))
    with pytest.raises(SpecError, match="give a tensor"):
        measure.macs(nn.Linear(3, 4), "image")
    with pytest.raises(SpecError, match=r"'weight' has no shape yet"):
        measure.macs(nn.LazyLinear(3), (torch.randn(2, 5),))


def test_huge_model_needs_no_memory() -> None:
    """A model of 4 TB: counted from its shapes."""
    with torch.device("meta"):
        model = nn.Linear(1_000_000, 1_000_000, bias=False)
    assert measure.macs(model, (torch.empty(1, 1_000_000),)).total == 10**12
