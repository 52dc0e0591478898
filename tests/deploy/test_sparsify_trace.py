"""Which layers may be swapped for packed ones: one construct each, read off a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from prunus.core.errors import DataError
from prunus.deploy.sparse_trace import Reading, read


def sparse(model: nn.Module, share: float = 0.8) -> nn.Module:
    """Zeros in every weight, and normalizations that do something."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p[torch.rand(p.shape, generator=draw) < share] = 0
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
                m.running_mean.normal_(generator=draw)
                m.running_var.uniform_(0.5, 2, generator=draw)
    return model.eval()


def reading(model: nn.Module, *example: Tensor) -> Reading:
    return read(sparse(model), example, 0.3)


class Twice(nn.Module):
    """Convolution, normalization, activation; `again` says who else reads what."""

    def __init__(self, again: str = "", **options: Any) -> None:
        super().__init__()
        self.again = again
        self.conv = nn.Conv2d(3, 8, 3, padding=1, **options)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.again == "conv called twice":
            y = self.conv(x)
        z = self.bn(y)
        if self.again == "norm called twice":
            z = self.bn(z)
        if self.again == "norm's scale":
            z = z * self.bn.weight[0]
        out = self.act(z)
        if self.again == "conv returned":
            return out, y
        if self.again == "view kept":
            self.seen = [y.flatten(1)[:, :3]]
        if self.again == "conv read":
            return out + y
        return self.act(out) if self.again == "act twice" else out


IMAGE = torch.randn(2, 3, 8, 8)


def test_normalization_and_activation_are_drawn_in() -> None:
    found = reading(Twice(), IMAGE)
    site = found.sites["conv"]
    assert (site.norm, site.eps, site.activation, site.activation_path) == ("bn", 1e-5, "relu", "act")
    assert (site.stride, site.padding, site.dilation) == ((1, 1), (1, 1), (1, 1))
    assert found.left == {}


@pytest.mark.parametrize(
    "again", ["conv returned", "view kept", "conv read", "conv called twice", "norm called twice", "norm's scale"]
)
def test_a_normalization_stays_where_anybody_else_reads(again: str) -> None:
    site = reading(Twice(again), IMAGE).sites["conv"]
    assert site.norm is None and site.activation == "none"


def test_an_activation_that_runs_twice_stays() -> None:
    site = reading(Twice("act twice"), IMAGE).sites["conv"]
    assert site.norm == "bn" and site.activation == "none"


def test_hooks_are_not_drawn_in() -> None:
    model = Twice()
    model.bn.register_forward_hook(lambda *_: None)
    assert reading(model, IMAGE).sites["conv"].norm is None
    model.conv.register_forward_hook(lambda *_: None)
    assert "hooks" in reading(model, IMAGE).left["conv.weight"]


def test_a_normalization_by_the_batch_stays() -> None:
    model = Twice()
    model.bn = nn.BatchNorm2d(8, track_running_stats=False)
    assert reading(model, IMAGE).sites["conv"].norm is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stride": 2}, ((2, 2), (1, 1), (1, 1))),
        ({"stride": (2, 1), "dilation": (1, 2)}, ((2, 1), (1, 1), (1, 2))),
    ],
)
def test_convolutions_are_read_off_the_operation(options: dict[str, Any], expected: Any) -> None:
    site = reading(Twice(**options), IMAGE).sites["conv"]
    assert (site.stride, site.padding, site.dilation) == expected


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as `[in, out]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 6), self.weight).view(*x.shape[:-1], 4)


class Square(nn.Module):
    """Its weight is as long as wide, so that only strides tell which way round it is used."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight if self.transposed else self.weight.t())


class Own(nn.Module):
    """What a linear layer of one's own may do beside its product."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(6, 6))
        if kind == "scale":
            self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        match self.kind:
            case "scale":
                return F.linear(x, self.weight) * self.scale
            case "clamp":
                return F.linear(x, self.weight).clamp(max=1)
            case "part":
                return F.linear(x, self.weight[:3])
            case "residual":
                return F.linear(x, self.weight) + x
            case "two":
                return F.linear(F.linear(x, self.weight), self.weight)
            case "computed":
                return F.linear(x, self.weight.tanh())
            case "two inputs":
                return F.linear(x, self.weight) + (0 if y is None else y)
        return F.linear(x, self.weight)


@pytest.mark.parametrize(
    ("layer", "transposed"),
    [(nn.Linear(6, 4), False), (nn.Linear(6, 4, bias=False), False), (Conv1D(), True), (Own("plain"), False)]
    + [(Square(transposed), transposed) for transposed in (False, True)],
)
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_any_class_of_linear_layer(layer: nn.Module, transposed: bool, shape: tuple[int, ...]) -> None:
    found = reading(nn.Sequential(layer, nn.GELU()), torch.randn(shape))
    site = found.sites["0"]
    assert (site.kind, site.transposed, site.activation, site.activation_path) == ("linear", transposed, "gelu", "1")


@pytest.mark.parametrize("kind", ["scale", "clamp", "part", "residual", "two", "computed", "two inputs"])
def test_a_layer_that_does_more_stays(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own(kind)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x, x) if kind == "two inputs" else self.own(x)

    found = reading(Net(), torch.randn(5, 6))
    assert found.sites == {} and list(found.left) == ["own.weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


@pytest.mark.parametrize(
    ("model", "example", "name", "why"),
    [
        (Tied(), torch.arange(4), "embed.weight", "tied: embed.weight, head.weight"),
        (nn.Sequential(nn.Embedding(9, 6)), torch.arange(4), "0.weight", "aten.embedding"),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), torch.randn(1, 4, 5, 5), "0.weight", "in 2 groups"),
        (nn.Sequential(nn.ConvTranspose2d(4, 8, 3)), torch.randn(1, 4, 5, 5), "0.weight", "transposed"),
        (nn.Sequential(nn.Conv1d(4, 8, 3)), torch.randn(1, 4, 5), "0.weight", "over 1 axes"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
            torch.randn(1, 4, 5, 5),
            "0.weight",
            "not one product",
        ),
        (nn.Sequential(nn.GRU(4, 8)), torch.randn(5, 4), "0.weight_ih_l0", "more than"),
        (nn.ModuleDict({"a": nn.Linear(4, 4)}), None, "a.weight", "did not read it"),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            torch.randn(1, 4, 8),
            "linear1.weight",
            "set_fastpath_enabled(False)",
        ),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
            torch.randn(2, 6),
            "0.parametrizations.weight.original1",
            "",
        ),
    ],
)
def test_what_cannot_be_packed_says_why(model: nn.Module, example: Tensor | None, name: str, why: str) -> None:
    if example is None:
        model.forward = lambda x: x  # type: ignore[method-assign]
    found = reading(model, torch.zeros(1) if example is None else example)
    assert name not in {f"{path}.weight" for path in found.sites} and why in found.left[name]


def test_what_a_fused_layer_hides_is_found_without_the_fast_path() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert {"linear1", "linear2"} <= set(reading(model, torch.randn(1, 4, 8)).sites)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_masks_of_torch_are_told_apart() -> None:
    layer = nn.Linear(6, 4)
    model = nn.Sequential(layer)
    prune.l1_unstructured(layer, "weight", 0.5)
    found = read(model.eval(), torch.randn(2, 6), 0.0)
    assert found.sites == {}
    prune.remove(layer, "weight")
    assert list(read(model, torch.randn(2, 6), 0.3).sites) == ["0"]


def test_the_model_is_left_as_it_was() -> None:
    model = sparse(Twice("view kept"))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert not nn.modules.module._has_any_global_hook()
    read(model, (IMAGE,), 0.3)
    assert model.seen == [] and not nn.modules.module._has_any_global_hook()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(DataError, match="cannot run the example"):
        read(model, (torch.randn(2, 5, 8, 8),), 0.3)
    assert not nn.modules.module._has_any_global_hook()
