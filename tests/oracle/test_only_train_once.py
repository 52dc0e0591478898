"""The later versions of only-train-once: their saliences, strengths and fading, unit by unit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import MixedSalience
from prunus.parts.penalty import RedundantLasso
from prunus.parts.prox import Decaying, MarkedHalfSpace
from prunus.parts.schedule import MarkAndCut, MarkThenCut

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
RATE = 0.1


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = Task(loss=squared, train=[0], calib=[0], example=(X,))


def rows(model: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    """All that makes each hidden unit, and its gradient, one by one: first the 6, then the 4."""
    model.zero_grad()
    squared(model).backward()
    made, slopes = [], []
    for i in (0, 2):
        for w, b, gw, gb in zip(model[i].weight, model[i].bias, model[i].weight.grad, model[i].bias.grad, strict=True):
            made.append(torch.cat([w.detach(), b.detach().reshape(1)]))
            slopes.append(torch.cat([gw, gb.reshape(1)]))
    return made, slopes


def test_saliences_of_every_unit() -> None:
    made, slopes = rows(net())
    columns = [
        [float(x.norm()) for x in made],
        [float(x.norm()) / len(x) for x in made],
        [1 + float(x @ g / (x.norm() * g.norm())) for x, g in zip(made, slopes, strict=True)],
        [abs(float(x @ g)) for x, g in zip(made, slopes, strict=True)],
        [float(x @ g) ** 2 / 2 for x, g in zip(made, slopes, strict=True)],
    ]
    weights = (0.3, 0.1, -0.2, 0.5, 0.7)
    total = [0.0] * 10
    for weight, column in zip(weights, columns, strict=True):
        size = sum(v * v for v in column) ** 0.5
        total = [t + weight * v / size for t, v in zip(total, column, strict=True)]
    found = replace(methods.hesso, criterion=MixedSalience(*weights))
    scores = prunus.score(net(), TASK, found)
    assert torch.cat(list(scores.values())).tolist() == pytest.approx(total)


def strength_of(x: Tensor, g: Tensor, part: RedundantLasso) -> float:
    """The published code's lambda for one unit."""
    along = float(x @ g)
    if along >= 0 or not float(x.norm()):
        return part.strength
    low, high = -along / float(x.norm()), -float(g @ g) * float(x.norm()) / along
    chosen = min(max(part.amplify * low, part.strength), part.strength * part.most)
    return (low + high) / 2 if chosen >= high else chosen


def test_a_redundant_unit_shrinks_and_the_loss_falls() -> None:
    """Whatever the two directions, where the cap does not bite; the gradients are lambda x / ||x|| of the marked."""
    part = RedundantLasso(strength=0.05, amplify=1.5, most=1e6)
    generator = torch.Generator().manual_seed(5)
    x, g = (torch.randn(60, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    kept = torch.arange(60).reshape(60, 1) % 3 == 0
    part(x, g, kept).backward()
    for u in range(60):
        one, slope = x[u].detach(), g[u]
        expected = 0.0 if bool(kept[u]) else strength_of(one, slope, part)
        assert torch.allclose(x.grad[u], expected * one / one.norm())
        if not bool(kept[u]) and float(one @ slope) < 0:
            step = slope + x.grad[u]
            assert float(step @ one) > 0 and float(step @ slope) > 0
    capped = RedundantLasso(strength=0.01, amplify=2.0, most=1.5)
    expected_all = [strength_of(a, b, capped) for a, b in zip(x.detach(), g, strict=True)]
    assert capped.needed(x.detach(), g).tolist() == pytest.approx(expected_all)


def test_marked_units_that_turn_back_become_zero() -> None:
    """SGD with the adjusted strengths by hand, projections of the marked, until the cut."""
    part = RedundantLasso(strength=0.3, amplify=2.0, most=10.0)
    found = replace(
        methods.dhspg, schedule=MarkThenCut(at=0.0, cut=1.0), penalty=part, prox=MarkedHalfSpace(margin=0.1)
    )
    model, byhand = net(), net()
    session = prunus.Session(model, found, TASK, sparsity=0.5, steps=60)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    session.attach(optimizer)
    marked = [not bool(v) for m in session.masks.values() for v in m.flatten()]
    assert sum(marked) == 5
    for _ in range(40):
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
        made, slopes = rows(byhand)
        with torch.no_grad():
            for u, (x, g) in enumerate(zip(made, slopes, strict=True)):
                layer, r = (byhand[0], u) if u < 6 else (byhand[2], u - 6)
                trial = x - RATE * g
                if marked[u] and float(x.norm()):
                    trial = trial - RATE * strength_of(x, g, part) * x / x.norm()
                if marked[u] and (float(trial @ x) < 0.1 * float(x @ x) or not float(x.norm())):
                    trial = torch.zeros_like(x)
                layer.weight[r], layer.bias[r] = trial[:-1], trial[-1]
            for p in byhand[4].parameters():
                p -= RATE * p.grad
    for a, b in zip(model.parameters(), byhand.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    zero = [float(x.norm()) == 0 for x in rows(byhand)[0]]
    assert any(zero) and all(m for z, m in zip(zero, marked, strict=True) if z)


def test_units_fade_period_by_period() -> None:
    """Two periods of five steps: what a period marks is multiplied by 4/5, 3/4, ... 0, and then gone."""
    found = replace(methods.hesso, schedule=MarkAndCut(begin=0.0, end=1.0, periods=2), prox=Decaying())
    model, byhand = net(), net()
    session = prunus.Session(model, found, TASK, sparsity=0.4, steps=10)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    session.attach(optimizer)
    gone: set[int] = set()
    for step in range(10):
        if step % 5 == 0:
            marked = {u for u, v in enumerate(v for m in session.masks.values() for v in m.flatten()) if not bool(v)}
            assert len(marked) == (2 if step == 0 else 4) and gone <= marked
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
        made, slopes = rows(byhand)
        left = 5 - step % 5
        with torch.no_grad():
            for p in byhand[4].parameters():
                p -= RATE * p.grad
            for u, (x, g) in enumerate(zip(made, slopes, strict=True)):
                layer, r = (byhand[0], u) if u < 6 else (byhand[2], u - 6)
                trial = 0 * x if u in gone else (x - RATE * g) * ((left - 1) / left if u in marked else 1.0)
                layer.weight[r], layer.bias[r] = trial[:-1], trial[-1]
            if left == 1:
                gone = set(marked)
                for u in gone:
                    reader, r = (byhand[2], u) if u < 6 else (byhand[4], u - 6)
                    reader.weight[:, r] = 0.0
        if step < 9:
            for i in (0, 2):
                assert torch.allclose(model[i].weight, byhand[i].weight, atol=1e-10)
    assert sum(int((~m).sum()) for m in session.result().unit_masks.values()) == 4


def test_the_timeline() -> None:
    events = MarkAndCut(begin=0.1, end=0.6, periods=2)(0.4, 100)
    assert [(e.step, round(e.density, 6), e.mark) for e in events] == [
        (10, 0.7, True),
        (35, 0.7, False),
        (35, 0.4, True),
        (60, 0.4, False),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RedundantLasso(amplify=0.5),
        lambda: MarkedHalfSpace(margin=1.0),
        lambda: MarkAndCut(begin=0.5, end=0.4),
        lambda: MarkAndCut(periods=0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError):
        wrong()  # type: ignore[operator]
