"""Boxes of weights, patterns inside kernels and synaptic strength against loops over single entries."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import BudgetError, PrunusError, PrunusWarning, SpecError
from prunus.core.groups import Group, Member
from prunus.parts.allocation import Connectivity, KernelPattern
from prunus.parts.granularity import Element, Tile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.bn2 = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.conv(torch.relu(self.bn1(self.stem(x))))))
        return self.head(x.flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
    return model


TASK = prunus.Task(example=(torch.ones(2, 3, 2, 2, dtype=torch.float64),))


def boxes(shape: tuple[int, ...], box: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """The entries of each box, in the order in which boxes lie in memory."""
    lengths = [b or n for b, n in zip(box, shape, strict=False)][: len(shape)]
    starts = itertools.product(*(range(0, n, t) for n, t in zip(shape, lengths, strict=True)))
    return [
        list(itertools.product(*(range(s, s + t) for s, t in zip(start, lengths, strict=True)))) for start in starts
    ]


@pytest.mark.parametrize(
    "box", [(1, 1, 0, 0), (1, 1, 1, 0), (1, 0, 1, 1), (4, 1, 0, 0), (4, 1, 1, 1), (2, 4, 1, 1), (1, 0, 0, 0)]
)
def test_a_unit_is_a_box(net: Net, box: tuple[int, ...]) -> None:
    named = dict(net.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = {g.name: g for g in Tile(box)(net, None)}
    for name in ("conv.weight", "head.weight"):
        group, p = groups[name], named[name]
        expected = boxes(tuple(p.shape), box)
        assert group.units == len(expected)
        view = group.view(group.members[0], p).reshape(group.units, -1)
        assert group.shape[0] == p.shape[0] // box[0]
        for unit in range(group.units):
            assert sorted(view[unit].tolist()) == sorted(p[place].item() for place in expected[unit])
        for gone in (0, group.units - 1):
            keep = torch.ones(group.units, dtype=torch.bool)
            keep[gone] = False
            mask = group.spread(group.members[0], keep.reshape(group.shape), p.shape)
            assert {tuple(i) for i in (~mask).nonzero().tolist()} == set(expected[gone])


def test_what_a_box_does_not_divide_stays_whole_and_is_named(net: Net) -> None:
    with pytest.warns(PrunusWarning, match=r"stem.weight \(8, 3, 3, 3\)"):
        groups = Tile((4, 4, 1, 1))(net, None)
    assert [g.name for g in groups] == ["conv.weight", "head.weight"]
    assert [g.name for g in Tile(kernel=(3, 3))(net, None)] == ["stem.weight", "conv.weight"]
    assert [g.name for g in Tile(exclude=("stem",), skip_last=True)(net, None)] == ["conv.weight"]
    with pytest.raises(SpecError):
        Tile((4,))


def test_matrices_of_stacked_experts_are_cut_one_by_one() -> None:
    model = nn.Module()
    model.up_proj = nn.Parameter(torch.arange(2 * 4 * 6.0).reshape(2, 4, 6))
    (group,) = Tile((2, 3))(model, None)
    assert group.members[0].tile == (1, 2, 3) and group.shape == (4, 2)
    first = group.view(group.members[0], model.up_proj.detach())[2, 1]
    assert sorted(first.tolist()) == sorted(model.up_proj[1, 0:2, 3:6].reshape(-1).tolist())


def test_krp_keeps_the_row_with_the_largest_sum(net: Net) -> None:
    result = prunus.prune(net, None, "krp")
    assert set(result.masks) == {"stem.weight", "conv.weight"}
    for name, mask in result.masks.items():
        w = dict(net.named_parameters())[name].detach()
        for o, i in itertools.product(range(w.shape[0]), range(w.shape[1])):
            sums = [float(w[o, i, r].abs().sum()) for r in range(3)]
            best = sums.index(max(sums))
            assert [mask[o, i, r].all().item() for r in range(3)] == [r == best for r in range(3)]
            assert mask[o, i].sum() == 3


def test_one_by_n_removes_kernels_of_consecutive_filters_together(net: Net) -> None:
    mask = prunus.prune(net, None, "one_by_n", sparsity=0.5).masks["conv.weight"]
    norms = [float(net.conv.weight.detach()[0:4, i].abs().sum()) for i in range(8)]
    kept = sorted(range(8), key=lambda i: -norms[i])[:4]
    for i in range(8):
        assert mask[:, i].all() if i in kept else not mask[:, i].any()


def pattern_of(kernel: list[float], n: int, centre: int | None) -> tuple[int, ...]:
    order = sorted(range(len(kernel)), key=lambda i: (i != centre, -kernel[i], i))
    return tuple(sorted(order[:n]))


@pytest.mark.parametrize("centre", [True, False])
def test_a_learned_library_holds_the_most_frequent_patterns(net: Net, centre: bool) -> None:
    recipe = replace(methods.pattern_library, allocate=KernelPattern(count=3, centre=centre))
    result = prunus.prune(net, None, recipe)
    kernels = {
        (name, o, i): (p[o, i].detach().square().reshape(-1)).tolist()
        for name, p in net.named_parameters()
        if p.ndim == 4
        for o in range(p.shape[0])
        for i in range(p.shape[1])
    }
    seen = Counter(pattern_of(k, 4, 4 if centre else None) for k in kernels.values())
    library = sorted(seen, key=lambda p: (-seen[p], p))[:3]
    for (name, o, i), kernel in kernels.items():
        best = max(library, key=lambda p: sum(kernel[j] for j in p))
        kept = result.masks[name][o, i].reshape(-1).nonzero().squeeze(1).tolist()
        assert tuple(kept) == best
    assert "head.weight" in result.skipped
    assert result.sparsity == pytest.approx(5 / 9)


def group_of(weight: tuple[int, ...]) -> Group:
    return Group("w", (weight[0], weight[1] * 9), (Member("w"),), weight=weight, kind="weight")


def test_ties_go_to_the_earlier_pattern_and_filters_can_share() -> None:
    group = group_of((2, 1, 3, 3))
    first = KernelPattern(patterns=((0, 1, 2, 3), (5, 6, 7, 8)))
    mask = first({"w": torch.ones(2, 9)}, 4 / 9, {"w": group})["w"]
    assert mask.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    scores = torch.ones(2, 9)
    scores[0, 0], scores[1, 8] = 3.0, 4.0
    alone = first({"w": scores}, 4 / 9, {"w": group})["w"]
    assert alone[0, 0] and not alone[1, 0]
    together = replace(first, shared=2)({"w": scores}, 4 / 9, {"w": group})["w"]
    assert torch.equal(together[0], together[1]) and together[0, 8] and not together[0, 0]


def test_kernels_that_are_pruned_stay_so() -> None:
    group = group_of((1, 3, 3, 3))
    scores = torch.rand(1, 27)
    scores[0, 9:18] = -torch.inf
    mask = KernelPattern()({"w": scores}, 4 / 9, {"w": group})["w"].reshape(3, 9)
    assert mask.sum(1).tolist() == [4, 0, 4]
    # A second time nothing changes, whatever library is learned from what is left.
    again = scores.masked_fill(~mask.reshape(1, -1), -torch.inf)
    assert torch.equal(KernelPattern()({"w": again}, 4 / 9, {"w": group})["w"].reshape(3, 9), mask)


@pytest.mark.parametrize("k", range(1, 7))
def test_connectivity_is_the_best_choice_of_balanced_kernels(k: int) -> None:
    torch.manual_seed(k)
    scores, group = torch.rand(2, 27, dtype=torch.float64), group_of((2, 3, 3, 3))
    density = k * 4 / 54
    mask = Connectivity()({"w": scores}, density, {"w": group})["w"].reshape(2, 3, 9)
    worth = scores.reshape(2, 3, 9).sum(-1)
    places = list(itertools.product(range(2), range(3)))
    even = [c for c in itertools.combinations(places, k) if abs(sum(1 - 2 * r for r, _ in c)) <= k % 2]
    best = max(even, key=lambda c: float(sum(worth[p] for p in c)))
    assert {tuple(p) for p in mask.any(-1).nonzero().tolist()} == set(best)
    assert mask.sum() == 4 * k
    inside = KernelPattern()(
        {"w": scores.masked_fill(~mask.any(-1).repeat_interleave(9, 1), -torch.inf)}, 4 / 9, {"w": group}
    )
    assert torch.equal(inside["w"].reshape(2, 3, 9), mask)


def test_densities_that_patterns_do_not_have_are_refused(net: Net) -> None:
    with pytest.raises(BudgetError, match="keeps exactly"):
        prunus.prune(net, None, "pattern_library", sparsity=0.3)
    with pytest.raises(BudgetError, match="keeps at most"):
        prunus.prune(net, None, "pconv", sparsity=0.3)
    with pytest.raises(SpecError):
        KernelPattern(patterns=((0, 1, 2),))
    with pytest.raises(SpecError):
        Connectivity(of=methods.magnitude.allocate)


@pytest.mark.parametrize("name", ["krp", "pattern_library", "pconv"])
def test_a_network_without_such_kernels_is_refused(name: str) -> None:
    with pytest.raises(PrunusError, match=r"nothing to prune|fits no layer"):
        prunus.prune(nn.Sequential(nn.Linear(4, 4)), None, name, **({"sparsity": 0.6} if name == "pconv" else {}))


def test_synaptic_strength_is_the_scale_before_a_kernel_times_its_norm(net: Net) -> None:
    assert set(prunus.score(net, TASK, methods.synaptic_strength)) == {"conv.weight"}
    scores = prunus.score(net, TASK, replace(methods.synaptic_strength, granularity=Tile()))
    assert set(scores) == {"conv.weight", "head.weight"}
    for o, i in itertools.product(range(4), range(8)):
        expected = abs(net.bn1.weight[i].item()) * net.conv.weight[o, i].square().sum().sqrt().item()
        assert scores["conv.weight"][o, i].item() == pytest.approx(expected, rel=1e-12)
    for o, c in itertools.product(range(8), range(16)):  # flattened: 2 x 2 places of each of 4 channels
        expected = abs(net.bn2.weight[c // 4].item() * net.head.weight[o, c].item())
        assert scores["head.weight"][o, c].item() == pytest.approx(expected, rel=1e-12)


class Sum(nn.Module):
    """What feeds the second convolution comes from two normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na, self.b, self.nb = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.read, self.late = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.read(torch.relu(self.na(self.a(x)) + self.nb(self.b(x)))))


def test_after_a_sum_the_normalization_that_is_declared_last_counts() -> None:
    torch.manual_seed(1)
    model = Sum().double()
    nn.init.normal_(model.na.weight)
    nn.init.normal_(model.nb.weight)
    task = prunus.Task(example=(torch.randn(1, 2, 2, 2, dtype=torch.float64),))
    scores = prunus.score(model, task, replace(methods.synaptic_strength, granularity=Tile()))
    expected = (model.nb.weight.detach() * model.read.weight.detach()[:, :, 0, 0]).abs()
    assert torch.allclose(scores["read.weight"], expected, rtol=1e-12)
    assert set(scores) == {"read.weight"}


def test_elements_are_still_what_they_were(net: Net) -> None:
    assert [g.shape for g in Element()(net)] == [(8, 27), (4, 72), (8, 16)]
    assert [g.name for g in Element(skip_last=True)(net)] == ["stem.weight", "conv.weight"]
