"""Proximal maps against brute force, and the first steps of the methods that use them against loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.parts.allocation import Uniform
from prunus.parts.granularity import Block
from prunus.parts.penalty import SilentLasso
from prunus.parts.prox import ActiveGradient, Decaying, HalfSpace, SoftThreshold
from prunus.parts.schedule import MarkThenCut, OneShot

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.02


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def trained(found: prunus.Recipe, model: nn.Module, steps: int, density: float = 0.4, until: int = 0) -> Any:
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    session.attach(optimizer)
    for _ in range(until or steps):
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
    session.detach()
    return session


class ByHand:
    """SGD with momentum and decay, a step at a time, with the gradients and the weights open to change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.named = dict(model.named_parameters())
        self.velocity: dict[str, Tensor] = {}

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.named, torch.autograd.grad(loss, list(self.named.values())), strict=True))

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        for n, p in self.named.items():
            g = gradients[n] + DECAY * p
            self.velocity[n] = MOMENTUM * self.velocity[n] + g if n in self.velocity else g
            p -= RATE * self.velocity[n]


def equal(model: nn.Module, byhand: ByHand) -> None:
    for n, p in model.named_parameters():
        assert torch.allclose(p, byhand.named[n], rtol=0, atol=1e-12), n


# Soft threshold


@pytest.mark.parametrize(("v", "t"), [((0.6, -0.8), 0.4), ((0.1, 0.2), 0.5), ((1.0, 0.0), 0.25), ((-0.4,), 0.1)])
def test_soft_threshold_minimizes(v: tuple[float, ...], t: float) -> None:
    """The factor makes of v the minimum of 1/2 ||x - v||^2 + t ||x||, looked for on a grid."""
    point = torch.tensor([v], dtype=torch.float64)
    rate = torch.tensor(0.5)
    found = (point * SoftThreshold(strength=2 * t)(point, rate).unsqueeze(-1))[0]
    axis = torch.linspace(-1.2, 1.2, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * len(v)).reshape(-1, len(v))
    costs = 0.5 * (grid - point).square().sum(1) + t * grid.norm(dim=1)
    assert (grid[costs.argmin()] - found).abs().max() <= 2e-3
    assert 0.5 * (found - point[0]).square().sum() + t * found.norm() <= costs.min() + 1e-12


def test_soft_threshold_in_training() -> None:
    """Rows and biases of neurons shrink by one factor after the step, that of the rows' norm."""
    recipe = replace(
        methods.oto, criterion=methods.sfp.criterion, penalty=None, prox=SoftThreshold(1.0), schedule=OneShot(at=1.0)
    )
    model, byhand = net(), ByHand(net())
    trained(recipe, model, 9, until=6)
    for _ in range(6):
        byhand.step(byhand.gradients(squared(byhand.model)))
        with torch.no_grad():
            for r in range(5):
                w = byhand.named["0.weight"]
                shrunk = max(0.0, 1 - RATE * 1.0 / float(w[r].norm()))
                w[r] *= shrunk
                byhand.named["0.bias"][r] *= shrunk
    equal(model, byhand)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        shift: Tensor = self.b(torch.tanh(self.a(x)))
        return x + shift


def test_soft_threshold_of_whole_blocks() -> None:
    """All weights and biases of a block shrink by one factor, that of the norm of its weights."""

    def deep() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Sequential(Residual(), Residual(), Residual()), nn.Linear(3, 2)).double()

    recipe = replace(methods.sfp, granularity=Block(), prox=SoftThreshold(1.0), schedule=OneShot(at=1.0))
    model, byhand = deep(), ByHand(deep())
    trained(recipe, model, 9, density=0.67, until=4)
    for _ in range(4):
        byhand.step(byhand.gradients(squared(byhand.model)))
        with torch.no_grad():
            for i in range(3):
                own = {n: p for n, p in byhand.named.items() if n.startswith(f"0.{i}.")}
                norm = sum(p.square().sum().item() for n, p in own.items() if n.endswith("weight")) ** 0.5
                for p in own.values():
                    p *= max(0.0, 1 - RATE / norm)
    equal(model, byhand)


# Half-space projection


def test_half_space_is_the_paper_s_condition() -> None:
    torch.manual_seed(3)
    before, after = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    before[0] = 0.0
    for margin in (0.0, 0.3):
        factor = HalfSpace(margin=margin)(after, before, torch.tensor(0.7))
        for x, trial, f in zip(before, after, factor, strict=True):
            inside = float(x @ trial) >= margin * float(x @ x) and bool(x.any())
            assert float(f) == float(inside)
    assert bool((HalfSpace()(after, before, torch.tensor(0.4)) == 1).all())


def test_only_train_once_by_hand() -> None:
    """SGD on L + strength * sum ||(row, bias)||; from the half on rows that turn back become zero with their bias."""
    strength, steps = 0.5, 20
    recipe = replace(methods.oto, penalty=SilentLasso(strength), prox=HalfSpace(margin=0.2))
    model, byhand = net(2), ByHand(net(2))
    session = trained(recipe, model, steps, until=steps - 1)
    dead = 0
    for step in range(steps - 1):
        w, b = byhand.named["0.weight"], byhand.named["0.bias"]
        x = torch.cat([w, b.unsqueeze(1)], 1)
        grads = byhand.gradients(squared(byhand.model) + strength * sum(row.norm() for row in x if bool(row.any())))
        before = x.detach().clone()
        byhand.step(grads)
        if step >= steps / 2:
            with torch.no_grad():
                for r in range(5):
                    trial = torch.cat([w[r], b[r : r + 1]])
                    if float(trial @ before[r]) < 0.2 * float(before[r] @ before[r]) or not before[r].any():
                        w[r], b[r] = 0.0, 0.0
                        dead += 1
    equal(model, byhand)
    assert dead > 0 and session.fired == 0


# Decay


def test_decay_by_hand() -> None:
    """Marked rows are scaled by (n - 1) / n after each of the n steps left, and end at zero before the cut."""
    steps, mark, cut = 12, 3, 9
    prox = Decaying()
    recipe = replace(methods.decay_pruning, schedule=MarkThenCut(mark / steps, cut / steps), prox=prox)
    model, byhand = net(4), ByHand(net(4))
    trained(recipe, model, steps, until=cut)
    gone: list[int] = []
    for step in range(cut):
        if step == mark:
            norms = byhand.named["0.weight"].detach().norm(dim=1).tolist()
            gone = sorted(range(5), key=lambda r: norms[r])[:3]
        byhand.step(byhand.gradients(squared(byhand.model)))
        n = cut - step
        with torch.no_grad():
            for r in gone:
                byhand.named["0.weight"][r] *= (n - 1) / n
                byhand.named["0.bias"][r] *= (n - 1) / n
    for n in ("0.weight", "0.bias"):  # what reads the neurons is cut with them, at the end
        assert torch.allclose(dict(model.named_parameters())[n], byhand.named[n], rtol=0, atol=1e-12)
    assert bool((model[0].weight[gone] == 0).all())


def test_rectified_units_are_left_alone() -> None:
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[-1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    kept = torch.tensor([[False]] * 4)
    assert Decaying(rectify=0.8)(w, g, kept, torch.tensor(4.0)).tolist() == [1.0, 0.75, 0.75, 0.75]
    assert Decaying(rectify=0.5)(w, g, kept, torch.tensor(4.0)).tolist() == [1.0, 1.0, 0.75, 0.75]
    assert Decaying()(w, g, ~kept, torch.tensor(4.0)).tolist() == [1.0] * 4
    assert Decaying()(w, g, kept, torch.tensor(1.0)).tolist() == [0.0] * 4


def test_decay_ranks_anew_at_every_marking() -> None:
    events = methods.decay_pruning.schedule(0.5, 400)
    assert [e.mark for e in events] == [True] * (len(events) - 1) + [False] and all(e.revive for e in events)
    assert events[-1] == Event(300, 0.5, revive=True)


# Gradient selection


def test_global_sparse_momentum_by_hand() -> None:
    """z <- momentum z + decay w + B g, B the Q largest |g w| of all weights together; biases take all of theirs."""
    model, byhand = net(5), ByHand(net(5))
    trained(methods.gsm, model, 9, density=0.4, until=7)
    for _ in range(7):
        grads = byhand.gradients(squared(byhand.model))
        worth = [
            (-abs((g * w).item()), n, i)
            for n in ("0.weight", "2.weight")
            for i, (g, w) in enumerate(zip(grads[n].reshape(-1), byhand.named[n].reshape(-1), strict=True))
        ]
        active = {(n, i) for _, n, i in sorted(worth)[: int(0.4 * 25)]}
        for n in ("0.weight", "2.weight"):
            keep = torch.tensor([float((n, i) in active) for i in range(grads[n].numel())], dtype=torch.float64)
            grads[n] = grads[n] * keep.reshape(grads[n].shape)
        byhand.step(grads)
    equal(model, byhand)


def test_the_last_cut_of_global_sparse_momentum_changes_next_to_nothing() -> None:
    """What is left out decays to nothing, where decay is strong enough for the time that there is."""
    rises = []
    for prox in (ActiveGradient(), None):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        session = prunus.Session(model, replace(methods.gsm, prox=prox), TASK, prunus.Budget(0.5), steps=251)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.02)
        session.attach(optimizer)
        for step in range(251):
            before = squared(model).item() if step == 250 else 0.0
            optimizer.zero_grad()
            squared(model).backward()
            optimizer.step()
        rises.append(abs(squared(model).item() - before))
        session.detach()
    assert rises[0] < 1e-3 and rises[1] > 0.1, rises


def test_wrong_settings_are_refused() -> None:
    for make in (
        lambda: HalfSpace(margin=1.0),
        lambda: HalfSpace(begin=2.0),
        lambda: Decaying(rectify=1.5),
        lambda: SoftThreshold(-1.0),
        lambda: SilentLasso(-1.0),
    ):
        with pytest.raises(SpecError):
            make()
    assert methods.decay_pruning.allocate == Uniform()
