"""Criteria from trajectories, from derivatives while training, and from both sides of a unit, re-derived in loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import (
    BothSides,
    CoresetSampling,
    FeatureShift,
    GradientPreservation,
    KernelSparsityEntropy,
    LossChange,
    WeightTrajectory,
)
from prunus.parts.criteria.trajectory import ranks
from prunus.parts.schedule import OneShot
from tests.contract.models import CASES

pytestmark = pytest.mark.filterwarnings("ignore::prunus.core.errors.PrunusWarning")
Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(4)
    return [
        (torch.randn(6, 4, generator=draw, dtype=torch.float64), torch.randint(3, (6,), generator=draw))
        for _ in range(2)
    ]


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


# Where a weight began and where it went


def published(name: str, w0: float, w: float) -> float:
    """The scores of the authors' code for one weight; its two criteria of both ends are thresholds, see below."""
    same = (w0 > 0) - (w0 < 0) == (w > 0) - (w < 0)
    grown = abs(w) - abs(w0)
    return {
        "large_final": abs(w),
        "small_final": -abs(w),
        "large_init": abs(w0),
        "small_init": -abs(w0),
        "magnitude_increase": grown,
        "movement": abs(w - w0),
        "large_final_same_sign": abs(w) if same else 0.0,
        "large_final_diff_sign": 0.0 if same else abs(w),
        "magnitude_increase_same_sign": grown if same else 0.0,
        "magnitude_increase_diff_sign": 0.0 if same else grown,
    }[name]


TABLE = {
    "large_final": WeightTrajectory(),
    "small_final": WeightTrajectory(final=-1.0),
    "large_init": WeightTrajectory(final=0.0, initial=1.0),
    "small_init": WeightTrajectory(final=0.0, initial=-1.0),
    "magnitude_increase": WeightTrajectory(final=1.0, initial=-1.0),
    "movement": WeightTrajectory(final=1.0, initial=1.0, combine="distance"),
    "large_final_same_sign": WeightTrajectory(signs="same"),
    "large_final_diff_sign": WeightTrajectory(signs="different"),
    "magnitude_increase_same_sign": WeightTrajectory(initial=-1.0, signs="same"),
    "magnitude_increase_diff_sign": WeightTrajectory(initial=-1.0, signs="different"),
}


@pytest.mark.parametrize("name", TABLE)
def test_one_criterion_is_all_of_the_authors(name: str) -> None:
    torch.manual_seed(1)
    w0, w = torch.randn(5, 4, 1, dtype=torch.float64), torch.randn(5, 4, 1, dtype=torch.float64)
    w[0, 0] = w0[0, 0] = 0.0
    ours = TABLE[name](w, w0)
    theirs = [published(name, float(a), float(b)) for a, b in zip(w0.flatten(), w.flatten(), strict=True)]
    torch.testing.assert_close(ours.flatten(), torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_both_ends_are_cut_at_one_percentile(sign: float) -> None:
    """large_init_large_final keeps what is among the best by both; the code searches the percentile that keeps the
    number asked for. So does ranking by the worse of the two ranks."""
    torch.manual_seed(2)
    w0, w = torch.randn(60, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    ours = WeightTrajectory(final=sign, initial=sign, combine="smaller")(w, w0)
    a, b = sign * w0.abs(), sign * w.abs()
    checked = 0
    for cut in range(60):
        theirs = (a >= a.sort().values[cut]) & (b >= b.sort().values[cut])
        k = int(theirs.sum())
        if k and len(set(ours.sort(descending=True).values[k - 1 : k + 1].tolist())) == 2:
            best = torch.zeros(60, dtype=torch.bool)
            best[ours.argsort(descending=True, stable=True)[:k]] = True
            assert torch.equal(best, theirs)
            checked += 1
    assert checked > 20
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [4.0, 1.0, 4.0, 2.0]


def test_the_weights_before_the_first_step_are_remembered(net: nn.Sequential, batches: list[Batch]) -> None:
    """Train, then prune once at the end, by hand and by the recipe."""
    recipe = replace(methods.weight_movement, schedule=OneShot(at=1.0))
    task = prunus.Task(loss=cross_entropy, train=batches)
    result = prunus.prune(
        net, task, recipe, sparsity=0.5, steps=6, optimizer=lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)
    )
    work = copy.deepcopy(net)
    optimizer = torch.optim.SGD(work.parameters(), lr=0.5, momentum=0.9)
    for step in range(6):
        optimizer.zero_grad()
        cross_entropy(work, batches[step % 2]).backward()
        optimizer.step()
    for n in ("0.weight", "2.weight"):
        moved = (work.get_parameter(n) - net.get_parameter(n)).abs().detach().flatten()
        keep = torch.zeros(len(moved), dtype=torch.bool)
        keep[moved.argsort(descending=True, stable=True)[: math.ceil(len(moved) / 2)]] = True
        assert torch.equal(result.masks[n].flatten(), keep)


def test_rounds_rewind_and_compare_with_the_first_weights(net: nn.Sequential, batches: list[Batch]) -> None:
    task = prunus.Task(loss=cross_entropy, train=batches)
    result = prunus.prune(net, task, "magnitude_increase", sparsity=0.6, steps=20)
    assert result.sparsity == pytest.approx(0.6, abs=0.05) and len(result.history) > 2


# While training


def test_flow_measures_are_the_authors(net: nn.Sequential, batches: list[Batch]) -> None:
    task = prunus.Task(loss=cross_entropy, calib=batches, example=batches[0][0])
    names = [n for n, p in net.named_parameters() if p.ndim == 2]
    fixed = {n: p.detach() for n, p in net.named_parameters()}
    sizes = [fixed[n].numel() for n in names]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: t.reshape(fixed[n].shape) for n, t in zip(names, flat.split(sizes), strict=True)}
        return sum(F.cross_entropy(functional_call(net, fixed | parts, (x,)), y) for x, y in batches) / len(batches)

    flat = torch.cat([fixed[n].flatten() for n in names])
    g = torch.func.grad(loss)(flat)
    hg = hessian(loss)(flat) @ g
    g0, h0, w = g[: sizes[0]].reshape(5, 4), hg[: sizes[0]].reshape(5, 4), fixed["0.weight"]
    theirs = {
        "loss_preservation": (w * g0).abs().sum(1),
        "biased_loss": (w.square() * g0).abs().sum(1),
        "gradient_preservation": (w * h0).sum(1).abs(),
        "loss_change": (w * g0).sum(1).abs(),
    }
    for name, expected in theirs.items():
        recipe = replace(methods.biased_loss, criterion=LossChange()) if name == "loss_change" else methods.get(name)
        torch.testing.assert_close(prunus.score(net, task, recipe)["0"], expected, rtol=1e-9, atol=1e-14)
    # Without the absolute value, at any temperature, it is GraSP.
    grasp = prunus.score(net, task, replace(methods.grasp, criterion=replace(methods.grasp.criterion, temperature=1.0)))
    torch.testing.assert_close(grasp["0.weight"], w * h0, rtol=1e-9, atol=1e-14)
    assert GradientPreservation().temperature == 1.0


# Both sides


class Convs(nn.Module):
    """A convolution that a second one and a linear layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
        self.two, self.out = nn.Conv2d(5, 7, 3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


@pytest.fixture
def convs() -> Convs:
    torch.manual_seed(5)
    net = Convs().double().eval()
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([0.5, -1.5, 1.0, 0.2, 2.0]))
        net.norm.bias.copy_(torch.tensor([0.3, -0.4, 0.0, -1.0, 1.0]))
    return net


EXAMPLE = prunus.Task(example=torch.zeros(1, 2, 8, 8, dtype=torch.float64))


def test_norms_of_both_sides(convs: Convs) -> None:
    ours = prunus.score(convs, EXAMPLE, "both_sides_norm")
    squares = prunus.score(convs, EXAMPLE, replace(methods.both_sides_norm, criterion=BothSides(order=2)))
    for i in range(5):
        made, read = convs.one.weight[i].detach(), convs.two.weight[:, i].detach()
        assert float(ours["one"][i]) == pytest.approx(float(made.abs().sum() + read.abs().sum()))
        assert float(squares["one"][i]) == pytest.approx(float(made.norm() + read.norm()))
    for i in range(7):
        made, read = convs.two.weight[i].detach(), convs.out.weight[:, i].detach()
        assert float(ours["two"][i]) == pytest.approx(float(made.abs().sum() + read.abs().sum()))


def entropy(kernels: Tensor, k: int = 5) -> float:
    """As the authors' density_entropy of one channel, by scikit-learn's neighbours."""
    x = kernels.numpy()
    distances, _ = NearestNeighbors(n_neighbors=min(k, len(x) - 1) + 1).fit(x).kneighbors(x)
    each = [float(row[1:].sum()) for row in distances]
    return -sum(d / sum(each) * math.log2(d / sum(each)) for d in each)


def unit(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) for v in values]


@pytest.mark.parametrize("alpha", [1.0, 0.0, 3.0])
def test_kse_is_the_indicator_of_each_channels_own_kernels(convs: Convs, alpha: float) -> None:
    ours = prunus.score(convs, EXAMPLE, replace(methods.kse, criterion=KernelSparsityEntropy(alpha=alpha)))
    for name, reader in (("one", convs.two.weight), ("two", convs.out.weight)):
        weight = reader.detach().reshape(reader.shape[0], reader.shape[1], -1)
        sparsity = unit([float(weight[:, c].abs().sum()) for c in range(weight.shape[1])])
        spread = unit([entropy(weight[:, c]) for c in range(weight.shape[1])])
        theirs = unit([math.sqrt(s / (1 + alpha * e)) for s, e in zip(sparsity, spread, strict=True)])
        torch.testing.assert_close(ours[name], torch.tensor(theirs, dtype=torch.float64))


def test_kse_of_kernels_that_are_all_alike() -> None:
    same = torch.ones(3, 4, 2)
    score = KernelSparsityEntropy()(same * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    assert torch.isfinite(score).all() and score.argsort().tolist() == [0, 1, 2]


def test_feature_shift_is_the_expected_move_of_the_next_layer(convs: Convs) -> None:
    ours = prunus.score(convs, EXAMPLE, "fsm")
    assert set(ours) == {"one"}  # nothing normalizes the second
    for i in range(5):
        mean, deviation = float(convs.norm.bias[i].detach()), abs(float(convs.norm.weight[i].detach()))
        expected = integrate.quad(lambda z, m=mean, d=deviation: z * stats.norm.pdf(z, m, d), 0, mean + 12 * deviation)
        shifts = [abs(float(convs.two.weight[j, i].detach().sum())) * expected[0] for j in range(7)]
        assert float(ours["one"][i]) == pytest.approx(sum(shifts) / 7, rel=1e-6)


def test_a_channel_without_variance_is_its_mean() -> None:
    kernels = torch.ones(3, 2, 1)
    score = FeatureShift()(torch.zeros(3, 1), torch.tensor([[2.0], [-1.0], [0.0]]), kernels)
    assert score.tolist() == [2.0, 0.0, 0.0]
    # Two normalizations whose outputs are added: means and variances add.
    both = FeatureShift()(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]]), kernels[:1])
    assert float(both) == pytest.approx(5.0 / math.sqrt(2 * math.pi))


def test_neurons_are_drawn_by_their_sensitivity() -> None:
    """How often each of four neurons is the first draw, against the shares of Mussay et al."""
    torch.manual_seed(0)
    w, out = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    sensitivity = [float(out[i].abs().max()) * float(w[i].norm()) for i in range(4)]
    draw = torch.Generator().manual_seed(1)
    firsts = torch.zeros(4)
    for _ in range(1500):
        firsts[CoresetSampling()(w, out, torch.rand(4, 1, generator=draw)).argmax()] += 1
    shares = torch.tensor(sensitivity) / sum(sensitivity)
    assert (firsts / 1500 - shares).abs().max() < 0.05


def test_a_group_that_nothing_reads_is_skipped(convs: Convs) -> None:
    with pytest.raises(SpecError, match="scores nothing"):
        prunus.prune(convs, EXAMPLE, replace(methods.kse, granularity=methods.snip.granularity), sparsity=0.5)


def test_group_norm_sums_every_slice_that_goes_with_a_channel() -> None:
    """A residual sum, a shortcut and normalizations, member by member."""
    model = CASES["cnn"].model()
    found = prunus.score(model, CASES["cnn"].task(), "depgraph")
    named = dict(model.named_parameters())
    for group in prunus.groups(model, CASES["cnn"].batches(1)[0][0]):
        for unit in range(group.units):
            total = 0.0
            for member in group.members:
                if member.role in ("out", "in", "scale") and not member.buffer:
                    assert member.dim is not None
                    rows = named[member.param].index_select(member.dim, member.positions(group.units)[unit])
                    total += float(rows.detach().double().square().sum())
            assert abs(total - float(found[group.name][unit])) < 1e-9
