"""Energy-constrained compression: its proximal map by brute force, its duals by autograd, its cost by counting."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Budget, Task, methods
from prunus.core.budget import Timing
from prunus.core.errors import SpecError
from prunus.core.evidence import Sources
from prunus.parts.evidence.fitted import FittedCostEvidence, drawn
from prunus.parts.evidence.quota import SLACK, held_back, lowered, price, shares
from prunus.parts.prox import CostQuota

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(30) % 3
SGD = torch.optim.SGD


def net(seed: int = 0, wide: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(4, wide), nn.Tanh(), nn.Linear(wide, 10), nn.Tanh(), nn.Linear(10, 3))
    return nn.Sequential(*layers).double()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


TASK = Task(loss=loss, train=[(X, Y)], example=(X[:1],))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("y", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("s", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_the_map_is_the_best_of_all_subsets(y: float, s: float, rho: float) -> None:
    """min over V of ||V - R||^2 / (2 eta) + y |V|_0 + rho / 2 (|V|_0 - s)_+^2, over all 2^5 choices of rows."""
    eta = 0.3
    r = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    energy = r.square().sum(-1)
    y = float(held_back(energy, number(s), number(y), rho, eta))
    keep = CostQuota(rho_y=rho)(r, torch.tensor([s, y], dtype=torch.float64), number(eta))

    def cost(chosen: tuple[bool, ...]) -> float:
        n = sum(chosen)
        away = sum(float(e) for e, c in zip(energy, chosen, strict=True) if not c)
        return away / (2 * eta) + y * n + rho / 2 * max(0.0, n - s) ** 2

    best = min(itertools.product((True, False), repeat=5), key=cost)
    assert cost(tuple(keep.tolist())) == pytest.approx(cost(best), abs=1e-12)
    order = energy.argsort(descending=True)
    assert keep[order[: int(s)]].all()  # the projection of y spares as many


def test_what_may_stay_goes_down_the_gradient() -> None:
    """The gradient by autograd, z raised by hand."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    rows[:, 0] = 0.1
    rows[:, 2:] = (rows[:, 2:] + rows[:, 2:].T) / 2
    whole, least = torch.tensor([8.0, 4.0, 6.0]).double(), torch.ones(3).double()
    s = torch.tensor([6.0, 3.5, 1.0]).double().requires_grad_()
    y, alive = torch.tensor([0.7, 0.0, 0.2]).double(), torch.tensor([7.0, 3.0, 1.0]).double()
    ceiling, rho, pace, clip = number(0.05), (2.0, 0.01), 0.01, 5.0
    over = (price(rows, s) - ceiling).clamp(min=0)
    rest = rho[1] / 2 * over**2 + (rho[0] / 2 * (alive - s).clamp(min=0) ** 2 + y * (alive - s)).sum()
    (pull,) = torch.autograd.grad(rest, s, retain_graph=True)
    (steep,) = torch.autograd.grad(price(rows, s), s)
    raised = min(
        (max(0.0, -float(p * w)) + SLACK) / float(e * w) for p, e, w in zip(pull[:2], steep, whole, strict=False)
    )
    # the negative part of the pull is that of both its terms together
    found, z = lowered(s.detach(), y, number(0.0), alive, whole, least, rows, ceiling, rho, pace, clip)
    assert float(z) == pytest.approx(raised)
    slope = [max(0.0, float((p + raised * e) * w)) for p, e, w in zip(pull, steep, whole, strict=True)]
    slope[2] = 0.0  # at its least
    size = sum(v * v for v in slope) ** 0.5
    scaled = [v * min(1.0, clip / size) for v in slope]
    expected = [max(1.0, float(a) - pace * v * float(w)) for a, v, w in zip(s, scaled, whole, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def sources_of(model: nn.Module, task: Task) -> Sources:
    session = prunus.Session(model, methods.ecc, task, sparsity=0.5, steps=4)
    return Sources(
        model=session.model,
        task=session.task,
        groups=session.groups,
        parameters=session.parameters,
        generator=session.generator,
        settings={"by": "macs", "samples": 40},
    )


def test_the_cost_is_that_of_the_smaller_network() -> None:
    """4 a + a b + 3 b multiply-accumulates, over those of the dense network."""
    sources = sources_of(net(), TASK)
    table = shares(sources, [g.name for g in sources.groups], sources.settings)
    for a, b in ((12, 10), (7, 4), (1, 10)):
        counts = torch.tensor([a, b] if sources.groups[0].units == 12 else [b, a]).double()
        assert float(price(table, counts)) == pytest.approx((4 * a + a * b + 3 * b) / (48 + 120 + 30))


def test_the_fit_finds_a_bilinear_energy() -> None:
    """A meter that reads 0.1 + 0.02 a + 0.004 a b + 0.01 b, whatever the model: its coefficients come out."""

    def energy(model: nn.Module) -> float:
        a, b = model[0].out_features, model[2].out_features
        return 0.1 + 0.02 * a + 0.004 * a * b + 0.01 * b

    def meter(dense: nn.Module, small: nn.Module, example: object) -> Timing:
        share = energy(small) / energy(dense)
        return Timing(share, share, share)

    dense = energy(net())
    sources = sources_of(net(), replace(TASK, clock=meter))
    (found,) = FittedCostEvidence(samples=40, ridge=1e-9).collect(sources)
    first, second = (g.name for g in sources.groups)
    assert float(found[""]) * dense == pytest.approx(0.1, abs=1e-5)
    assert float(found[first][0]) * dense == pytest.approx(0.02, abs=1e-6)
    assert float(found[second][0]) * dense == pytest.approx(0.01, abs=1e-6)
    assert float(found[first][2] + found[second][1]) * dense == pytest.approx(0.004, abs=1e-6)
    for group in sources.groups:
        counts = [int(drawn(group, sources.generator).sum()) for _ in range(200)]
        assert min(counts) == 1 and max(counts) == group.units


@pytest.mark.parametrize("by", ["macs", "clock"])
def test_the_network_comes_under_its_ceiling_while_it_trains(by: str) -> None:
    """By the last event so many units have come to zero that nothing that it removes was alive."""

    def meter(dense: nn.Module, small: nn.Module, example: object) -> Timing:
        cost = [sum(m.weight.numel() for m in net if isinstance(m, nn.Linear)) for net in (small, dense)]
        return Timing(cost[0] / cost[1], 0.0, 1.0)

    model = net()
    found = replace(methods.ecc, prox=CostQuota(by=by, samples=30, pace=0.02))
    session = prunus.Session(model, found, replace(TASK, clock=meter), Budget(macs=0.5), steps=150)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    session.attach(optimizer)
    for step in range(150):
        if session.fired == 0 and step == 118:
            alive = {n: int((model[i].weight.abs().sum(0) > 0).sum()) for n, i in (("a", 2), ("b", 4))}
            state = session.running["quota"]
        optimizer.zero_grad()
        loss(model, (X, Y)).backward()
        optimizer.step()
    a, b = alive["a"], alive["b"]
    assert (4 * a + a * b + 3 * b) / 198 <= 0.5 + 0.02 and a < 12 and b < 10
    assert a * b >= 12  # it stopped when it was there
    kept = [int(m.sum()) for m in session.result().unit_masks.values()]
    assert kept[0] >= a - 1 and kept[1] >= b - 1
    assert all(v.dtype == torch.float64 for v in state.values())


def test_the_map_says_nothing_where_the_rate_is_zero() -> None:
    r = torch.rand(4, 2, dtype=torch.float64)
    assert CostQuota()(r, torch.tensor([2.0, 5.0]).double(), number(0.0)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: CostQuota(samples=0),
        lambda: CostQuota(pace=0.0),
        lambda: CostQuota(rho_y=-1.0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError):
        wrong()  # type: ignore[operator]
