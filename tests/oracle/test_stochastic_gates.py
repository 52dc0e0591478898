"""Hard concrete gates and their constraints: distributions by counting, steps and multipliers by hand-written loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.allocation import GlobalRanking
from prunus.parts.gate import DualRestart, HardConcrete, Lagrangian, TargetShape
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
NAMES = ("0.weight", "2.weight")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().sum()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def sampled(u: float, alpha: float, beta: float, stretch: float = 0.1) -> float:
    """Eq. 10 and 11 of the paper, in numbers."""
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + alpha) / beta))
    return min(1.0, max(0.0, s * (1 + 2 * stretch) - stretch))


def test_values_are_the_published_samples() -> None:
    theta = torch.tensor([-3.0, -0.4, 0.0, 1.0, 4.0], dtype=torch.float64)
    u = torch.tensor([0.9, 0.5, 0.02, 0.31, 0.999], dtype=torch.float64)
    for beta in (2 / 3, 0.33, 1.0):
        found = HardConcrete(beta=beta).value(theta, Moment(0.0, 0.5, noise=u))
        expected = [sampled(float(a), float(t), beta) for a, t in zip(u, theta, strict=True)]
        assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_what_stays_has_three_published_forms() -> None:
    theta, end = torch.tensor([-3.0, -1.0, 0.5, 4.0], dtype=torch.float64), Moment(1.0, 0.5)
    logistic = [1 / (1 + math.exp(-t)) for t in theta.tolist()]
    mean = [min(1.0, max(0.0, 1.2 * s - 0.1)) for s in logistic]
    assert HardConcrete().value(theta, end).tolist() == pytest.approx(mean)
    median = [sampled(0.5, t, 2 / 3) for t in theta.tolist()]
    assert HardConcrete(last="median").value(theta, end).tolist() == pytest.approx(median)
    soft = [1 / (1 + math.exp(-0.8 * t * 1.5)) for t in theta.tolist()]
    assert HardConcrete(last="soft").value(theta, end).tolist() == pytest.approx(soft)


@pytest.mark.parametrize(("beta", "stretch"), [(2 / 3, 0.1), (0.33, 0.1), (1.0, 0.3)])
def test_gates_are_open_as_often_as_the_formula_says(beta: float, stretch: float) -> None:
    """The share of samples that are not zero, over 200000 draws."""
    gate = HardConcrete(beta=beta, stretch=stretch)
    draw = torch.Generator().manual_seed(5)
    for alpha in (-2.5, -0.7, 0.0, 1.3):
        theta = torch.full((200_000,), alpha, dtype=torch.float64)
        u = torch.rand(theta.shape, generator=draw, dtype=torch.float64)
        share = float((gate.value(theta, Moment(0.0, 0.5, noise=u)) > 0).double().mean())
        assert float(gate.chance(theta[:1])) == pytest.approx(share, abs=4e-3)


def test_gradients_are_those_of_finite_differences() -> None:
    gate, u = HardConcrete(strength=0.3), torch.tensor([0.2, 0.6, 0.45], dtype=torch.float64)
    theta = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)

    def total(t: Tensor) -> Tensor:
        return (gate.value(t, Moment(0.0, 0.5, noise=u)) * torch.tensor([1.0, -2.0, 3.0])).sum() + gate.penalty(
            {"a": t}, Moment(0.0, 0.5)
        )

    assert torch.autograd.gradcheck(total, theta)
    rounded = HardConcrete(binary=True)
    value = rounded.value(theta, Moment(0.0, 0.5, noise=u))
    assert set(value.tolist()) <= {0.0, 1.0}
    soft = gate.value(theta, Moment(0.0, 0.5, noise=u))
    straight = torch.autograd.grad(value.sum(), theta)[0]
    assert torch.allclose(straight, torch.autograd.grad(soft.sum(), theta)[0])


def test_the_penalty_counts_units_or_the_weights_they_own() -> None:
    thetas = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([-1.0])}
    p = {n: [1 / (1 + math.exp(-(t - 2 / 3 * math.log(0.1 / 1.1)))) for t in v.tolist()] for n, v in thetas.items()}
    moment = Moment(0.0, 0.5, sizes={"a": 10.0, "b": 3.0})
    assert float(HardConcrete(strength=2.0).penalty(thetas, moment)) == pytest.approx(2 * sum(p["a"] + p["b"]))
    heavy = HardConcrete(strength=2.0, weighs="weights").penalty(thetas, moment)
    assert float(heavy) == pytest.approx(2 * (10 * sum(p["a"]) + 3 * sum(p["b"])))


def run(gate: HardConcrete, model: nn.Sequential, steps: int, **kwargs: Any) -> tuple[Any, Any]:
    found = replace(methods.l0, granularity=Element(), gate=gate, schedule=OneShot(at=1.0), **kwargs)
    session = prunus.Session(model, found, TASK, prunus.Budget(0.5), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return session.attach(optimizer), optimizer


def open_chance(alpha: Tensor, beta: float = 2 / 3) -> Tensor:
    return torch.sigmoid(alpha - beta * math.log(0.1 / 1.1))


def gated(w: Tensor, alpha: Tensor, u: Tensor) -> Tensor:
    s = torch.sigmoid((u.log() - (1 - u).log() + alpha) * 1.5)
    return w * (1.2 * s - 0.1).clamp(0, 1)


def test_a_lagrangian_is_the_official_loop() -> None:
    """Weights by SGD, log-odds by Adam, both multipliers by Adam upwards, at the same point; the target warms up."""
    gate, steps = Lagrangian(lr=0.1, ascent=0.2, warm=0.5), 12
    model, mine = net(), net()
    session, optimizer = run(gate, model, steps)
    w = [mine[i].weight.detach().clone().requires_grad_() for i in (0, 2)]
    alpha = [session.gating.thetas[n].detach().clone().requires_grad_() for n in NAMES]
    assert all(a.detach().abs().max() < 0.1 and a.detach().std() > 0.001 for a in alpha)
    one, two = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    descent, adam = torch.optim.SGD(w, lr=0.05), torch.optim.Adam(alpha, lr=0.1)
    ascent = torch.optim.Adam([one, two], lr=0.2, maximize=True)
    for step in range(steps):
        u = [session.gating._moments[n].noise.clone() for n in NAMES]
        sparsity = 1 - sum(open_chance(a).sum() for a in alpha) / 20
        gap = sparsity - 0.5 * min(1.0, step / steps / 0.5)
        out = F.relu(X @ gated(w[0], alpha[0], u[0]).T) @ gated(w[1], alpha[1], u[1]).T
        loss = (out - Y).square().sum()
        optimizer.zero_grad()
        ours = squared(model)
        assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
        ours.backward()
        for o in (descent, adam, ascent):
            o.zero_grad()
        (loss + one * gap + two * gap.square()).backward()
        for o in (descent, adam, ascent):
            o.step()
        with torch.no_grad():
            for a in alpha:
                a.clamp_(-math.log(100), math.log(100))
        optimizer.step()
        if session.gating is not None:
            assert session.gating.duals[:2].tolist() == pytest.approx([one.item(), two.item()], rel=1e-9, abs=1e-12)
            for n, a in zip(NAMES, alpha, strict=True):
                assert torch.allclose(session.gating.thetas[n], a, rtol=1e-9)
    kept = torch.cat([a.detach().flatten() for a in alpha]).argsort(descending=True, stable=True)[:10]
    expected = torch.zeros(20, dtype=torch.bool).index_fill(0, kept, True).split([12, 8])
    for n, mask, weight, a in zip(NAMES, expected, w, alpha, strict=True):
        assert torch.equal(session.masks[n].flatten(), mask)
        used = weight.detach() * torch.sigmoid(0.8 * 1.5 * a.detach()) * mask.reshape(a.shape)
        assert torch.allclose(model[int(n[0])].weight, used, rtol=1e-9)


@pytest.mark.parametrize("per", ["group", "model"])
def test_dual_restarts_are_the_published_loop(per: Any) -> None:
    gate, steps = DualRestart(lr=0.3, ascent=0.5, per=per), 24
    model, mine = net(), net()
    session, optimizer = run(gate, model, steps)
    w = [(mine[i].weight.detach() / 0.5).requires_grad_() for i in (0, 2)]
    alpha = [session.gating.thetas[n].detach().clone().requires_grad_() for n in NAMES]
    descent, adam = torch.optim.SGD(w, lr=0.05), torch.optim.Adam(alpha, lr=0.3)
    dual, restarts = [0.0] * (2 if per == "group" else 1), 0
    for _ in range(steps - 1):
        u = [session.gating._moments[n].noise.clone() for n in NAMES]
        p = [open_chance(a) for a in alpha]
        gaps = [q.mean() - 0.5 for q in p] if per == "group" else [(p[0].sum() + p[1].sum()) / 20 - 0.5]
        out = F.relu(X @ gated(w[0], alpha[0], u[0]).T) @ gated(w[1], alpha[1], u[1]).T
        loss = (out - Y).square().sum() + sum(d * g for d, g in zip(dual, gaps, strict=True))
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
        descent.zero_grad(), adam.zero_grad()
        loss.backward()
        descent.step(), adam.step()
        with torch.no_grad():
            for a in alpha:
                a.clamp_(-math.log(100), math.log(100))
        for i, gap in enumerate(gaps):
            restarts += gap.item() <= 0 and dual[i] > 0
            dual[i] = 0.0 if gap.item() <= 0 else dual[i] + 0.5 * gap.item()
        assert session.gating.duals.tolist() == pytest.approx(dual, rel=1e-8, abs=1e-12)
        for n, a in zip(NAMES, alpha, strict=True):
            assert torch.allclose(session.gating.thetas[n], a, rtol=1e-8)
    assert restarts


def test_target_shapes_are_those_of_the_allocation() -> None:
    thetas = {"a": torch.zeros(4, dtype=torch.float64), "b": torch.full((8,), 1.0, dtype=torch.float64)}
    keep = {"a": torch.tensor([1, 1, 1, 0], dtype=torch.bool), "b": torch.tensor([1, 0] * 4, dtype=torch.bool)}
    moments: dict[str, Moment] = {}
    for n in thetas:
        moments[n] = Moment(1.0, 0.5, keep[n], others=moments)
    gate = TargetShape()
    gaps = gate.gaps(thetas, moments["a"])
    expected = [1 - float(open_chance(thetas["a"])[0]) - 0.25, 1 - float(open_chance(thetas["b"])[0]) - 0.5]
    assert gaps.tolist() == pytest.approx(expected)
    assert len(gate.duals(2)) == 14 and len(Lagrangian().duals(2)) == 7


def digits() -> tuple[Tensor, Tensor]:
    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)


@pytest.mark.parametrize(
    ("gate", "density"),
    [
        (Lagrangian(lr=0.2, ascent=1.0, warm=0.5), 0.3),
        (Lagrangian(lr=0.2, ascent=1.0, warm=0.5), 0.1),
        (Lagrangian(lr=0.2, ascent=1.0, warm=0.5, per="group"), 0.2),
        (DualRestart(lr=0.1, ascent=0.3, per="model", last="soft"), 0.2),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, HardConcrete) else str(x),
)
def test_gates_come_to_the_density_that_is_asked_for(gate: HardConcrete, density: float) -> None:
    """Within one percent, before the last event enforces it: 1776 weights on digits, 480 of 600 steps."""
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    batches = [(x[i::8], y[i::8]) for i in range(8)]
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), train=batches)
    found = replace(methods.l0, granularity=Element(), allocate=GlobalRanking(), gate=gate)
    result = prunus.prune(
        model, task, found, sparsity=1 - density, steps=600, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    (record,) = result.history
    assert record["density"] == pytest.approx(density, abs=1e-3)
    assert record["open"] == pytest.approx(density, abs=0.01)
    with torch.no_grad():
        assert float((result.model(x).argmax(1) == y).double().mean()) > 0.85


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (HardConcrete, {"drop": 0.0}),
        (HardConcrete, {"bound": 0.0}),
        (HardConcrete, {"beta": 0.0}),
        (Lagrangian, {"ascent": 0.0}),
        (Lagrangian, {"warm": 1.5}),
        (TargetShape, {"per": "model"}),
        (DualRestart, {"ascent": -1.0}),
    ],
)
def test_gates_that_make_no_sense_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)
