"""Which weights are prunable on their own, and how they are laid out."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.parts.granularity import Channel, Element, Tile


class Mixed(nn.Module):
    """A bit of everything: what is a matrix and what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(3, 8, (3, 5))
        self.line = nn.Conv1d(8, 6, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.pointwise = nn.Conv2d(1, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.LSTM(8, 4)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.randn(3, 8, 16))
        self.scale = nn.Module()
        self.scale.weight = nn.Parameter(torch.randn(8, 1, 1))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 9, 8))
        self.count = nn.Parameter(torch.ones(4, 4, dtype=torch.int64), requires_grad=False)
        self.tied = nn.Linear(8, 10)
        self.tied.weight = self.embed.weight
        self.head = nn.Linear(8, 2)


def shapes(granularity: Element) -> dict[str, tuple[int, ...]]:
    return {g.name: g.shape for g in granularity(Mixed())}


def test_matrices_are_prunable_and_nothing_else() -> None:
    assert shapes(Element()) == {
        "conv.weight": (8, 45),
        "line.weight": (6, 24),
        "depthwise.weight": (8, 9),
        "pointwise.weight": (8, 1),
        "attention.in_proj_weight": (24, 8),
        "attention.out_proj.weight": (8, 8),
        "recurrent.weight_ih_l0": (16, 8),
        "recurrent.weight_hh_l0": (16, 4),
        "experts.gate_up_proj": (24, 16),
        "head.weight": (2, 8),
    }


def test_groups_are_single_weights_of_one_parameter() -> None:
    model = Mixed()
    for group in Element()(model):
        weight = model.get_parameter(group.name)
        assert group.elementwise and group.units == weight.numel() and group.weight == tuple(weight.shape)
        assert group.at_least == 0 and group.kind == "weight"
        view = group.view(group.members[0], weight)
        assert view.shape == (*group.shape, 1) and view.data_ptr() == weight.data_ptr()
        keep = torch.rand(group.shape) > 0.5
        assert torch.equal(group.spread(group.members[0], keep, weight.shape).reshape(group.shape), keep)


def test_exclusions_by_parameter_and_by_module() -> None:
    left = shapes(Element(exclude=("head", "recurrent.weight_*", "*.out_proj")))
    assert not {"head.weight", "recurrent.weight_hh_l0", "attention.out_proj.weight"} & set(left)
    assert "conv.weight" in left
    assert list(shapes(Element(skip_last=True))) == list(shapes(Element()))[:-1]


def test_a_weight_that_two_layers_share_is_one_weight() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert [g.name for g in Element()(nn.Sequential(first, second))] == ["0.weight"]


# Channels


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.norm(self.a(x)).relu()).mean((2, 3)))
        return out


def test_channels_with_demands_and_exclusions() -> None:
    example = (torch.randn(1, 3, 8, 8),)
    both = Channel(at_least=3, round_to=4)(Plain(), example)
    assert {(g.name, g.units, g.at_least, g.multiple) for g in both} == {("a", 8, 3, 4), ("b", 16, 3, 4)}
    (one,) = Channel(exclude=("norm.*",))(Plain(), example)
    assert one.name == "b"
    assert {(m.param, m.role, m.dim) for m in both[0].members if not m.buffer} == {
        ("a.weight", "out", 0),
        ("a.bias", "bias", 0),
        ("norm.weight", "scale", 0),
        ("norm.bias", "shift", 0),
        ("b.weight", "in", 1),
    }


def test_channels_need_an_example() -> None:
    with pytest.raises(SpecError, match="example"):
        Channel()(Plain(), None)


@pytest.mark.parametrize("wrong", [{"at_least": 0}, {"round_to": 0}])
def test_demands_that_are_none_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="at least 1"):
        Channel(**wrong)  # type: ignore[arg-type]


def test_weights_without_entries_are_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is nothing to initialize
        model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.Linear(4, 4))
    for granularity in (Element(), Tile((4, 1, 1, 1))):
        assert [group.name for group in granularity(model)] == ["2.weight"]
