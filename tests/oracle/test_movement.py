"""Masks that are scored by how training moves weights, against the papers: whole runs written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.gate import Moment
from prunus.parts.gate import BiLevel, MovementGate, ScaledPopup, SoftMovementGate
from prunus.parts.granularity import Channel, Tile
from prunus.parts.schedule import MarkGradually, OneShot

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-1.0, 0.4, 2.0]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]], dtype=torch.float64)


def net(seed: int = 0) -> nn.Sequential:
    """3 -> 4 -> 2, without biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().sum()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))
LAYERS = ("0.weight", "2.weight")


def attached(found: prunus.Recipe, model: nn.Module, steps: int, density: float = 0.5) -> tuple[Any, Any]:
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return session.attach(optimizer), optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = squared(model)
    loss.backward()
    optimizer.step()
    return loss.item()


def used(w: list[Tensor], m: list[Tensor]) -> tuple[float, list[Tensor]]:
    """The loss with weights w * m, and its gradients by the effective weights."""
    z = [(a * b).detach().requires_grad_() for a, b in zip(w, m, strict=True)]
    loss = (torch.tanh(X @ z[0].T) @ z[1].T - Y).square().sum()
    return loss.item(), list(torch.autograd.grad(loss, z))


class Adam:
    """Kingma & Ba, written out."""

    def __init__(self) -> None:
        self.t, self.m, self.v = 0, 0.0, 0.0

    def move(self, grad: Tensor, lr: float) -> Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * grad, 0.999 * self.v + 0.001 * grad**2
        return lr * (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)


class Descent:
    """SGD with momentum 0.9 and weight decay 0.01, as the sessions here are trained."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def move(self, grad: Tensor, w: Tensor) -> Tensor:
        grad = grad + 0.01 * w
        self.buffer = grad if self.buffer is None else 0.9 * self.buffer + grad
        return 0.1 * self.buffer


def top(scores: Tensor, density: float) -> Tensor:
    """The int((1 - density) n) lowest go, of equals the later."""
    flat = scores.flatten()
    order = sorted(range(len(flat)), key=lambda i: (-float(flat[i]), i))
    mask = torch.zeros(len(flat), dtype=torch.float64)
    mask[order[: len(flat) - int(round((1 - density) * len(flat), 9))]] = 1
    return mask.reshape(scores.shape)


def kept(session: Any) -> dict[str, Tensor]:
    return {n: m.double() for n, m in session.masks.items()}


# Hard movement


def cubic(t: int, first: int, last: int, density: float) -> float:
    """Zhu & Gupta's path of what is kept, dense before and at its end after."""
    if t <= first:
        return 1.0
    return density if t >= last else density + (1 - density) * (1 - (t - first) / (last - first)) ** 3


def test_movement_pruning_is_the_published_algorithm() -> None:
    """W' = W * Top_v(S); dL/dW = dL/dW' * M, dL/dS = dL/dW' * W; v on the cubic path, Adam on S."""
    steps, first, last = 12, 3, 9
    schedule = MarkGradually(begin=0.25, end=0.75, cut=1.0, every=1)
    model = net()
    found = replace(methods.movement, schedule=schedule, gate=MovementGate(lr=0.05, warm=0.25))
    session, optimizer = attached(found, model, steps)
    w = [net()[i].weight.detach().clone() for i in (0, 2)]
    s = [torch.zeros_like(p) for p in w]
    adams, descents = [Adam(), Adam()], [Descent(), Descent()]
    seen: list[list[Tensor]] = []
    for t in range(steps):
        v = cubic(t + 1, first, last, 0.5) if t >= first else 1.0
        masks = [top(p, v) for p in s]
        seen.append(masks)
        loss, grads = used(w, masks)
        assert step(model, optimizer) == pytest.approx(loss, rel=1e-12)
        lr = 0.05 * (t / 3 if t < 3 else (12 - t) / 9)
        for i, g in enumerate(grads):
            move = adams[i].move(g * w[i], lr)
            w[i] = w[i] - descents[i].move(g * masks[i], w[i])
            s[i] = s[i] - move
    final = [top(p, 0.5) for p in s]
    for name, layer, mask, weight in zip(LAYERS, (model[0], model[2]), final, w, strict=True):
        assert torch.equal(kept(session)[name], mask)
        torch.testing.assert_close(layer.weight.detach(), weight * mask, rtol=1e-10, atol=1e-12)
    layerwise = [torch.stack([x[i] for x in seen]) for i in (0, 1)]
    back = sum(int((masks[1:] > masks[:-1]).sum()) for masks in layerwise)
    assert back > 0  # a masked weight did return
    assert session.gating is None and all(h["density"] == pytest.approx(0.5) for h in session.history[-2:])


def test_marks_follow_the_cubic_path_and_the_last_event_removes() -> None:
    events = MarkGradually(begin=0.1, end=0.7, cut=1.0, every=10)(0.2, 100)
    assert [e.step for e in events] == [10, 20, 30, 40, 50, 60, 70, 100]
    assert [e.density for e in events[:-1]] == pytest.approx([cubic(t, 10, 70, 0.2) for t in range(10, 80, 10)])
    assert all(e.mark and e.revive for e in events[:-1]) and not events[-1].mark and events[-1].density == 0.2
    assert [(e.step, e.density) for e in MarkGradually()(0.3, 0)] == [(0, 0.3), (0, 0.3)]


def test_the_score_of_a_block_moves_by_the_sum_over_its_weights() -> None:
    model = net()
    found = replace(methods.movement, granularity=Tile((2, 1)), gate=MovementGate(lr=0.1, warm=0.0))
    session, optimizer = attached(found, model, 10)
    w = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
    _, grads = used(w, [torch.ones_like(p) for p in w])
    optimizer.zero_grad()
    squared(model).backward()
    for name, g, p in zip(LAYERS, grads, w, strict=True):
        products = (g * p).reshape(p.shape[0] // 2, 2, p.shape[1]).sum(1)
        torch.testing.assert_close(session.gating.thetas[name].grad, products, rtol=1e-12, atol=0.0)


# Soft movement


def test_soft_movement_thresholds_the_sigmoid_and_pulls_all_scores_down() -> None:
    """mask = sigmoid(S) > tau, dL/dS = dL/dW' * W + lambda tau / tau_f * d mean of means of sigmoid(S)."""
    steps = 12
    gate = SoftMovementGate(lr=0.6, warm=0.25, threshold=0.3, strength=2.0, begin=0.25, end=0.75)
    model = net()
    session, optimizer = attached(replace(methods.movement_soft, gate=gate, schedule=OneShot(at=1.0)), model, steps)
    w = [net()[i].weight.detach().clone() for i in (0, 2)]
    s = [torch.zeros_like(p) for p in w]
    adams, descents = [Adam(), Adam()], [Descent(), Descent()]
    opened = 1.0
    for t in range(steps):
        done = min(1.0, max(0.0, (t / steps - 0.25) / 0.5))
        tau = 0.3 - 0.3 * (1 - done) ** 3
        masks = [(p.sigmoid() > tau).double() for p in s]
        loss, grads = used(w, masks)
        assert step(model, optimizer) == pytest.approx(loss, rel=1e-12)
        lr = 0.6 * (t / 3 if t < 3 else (12 - t) / 9)
        for i, g in enumerate(grads):
            slope = g * w[i] + 2.0 * tau / 0.3 * s[i].sigmoid() * (1 - s[i].sigmoid()) / (2 * s[i].numel())
            move = adams[i].move(slope, lr)
            w[i] = w[i] - descents[i].move(g * masks[i], w[i])
            s[i] = s[i] - move
        opened = sum(float((p.sigmoid() > tau).sum()) for p in s) / 20
    assert 0 < opened < 1 and session.history[-1]["open"] == pytest.approx(opened)
    both = top(torch.cat([p.flatten() for p in s]), 0.5).split([12, 8])
    for name, layer, mask, weight in zip(LAYERS, (model[0], model[2]), both, w, strict=True):
        mask = mask.reshape(weight.shape)
        assert torch.equal(kept(session)[name], mask)
        torch.testing.assert_close(layer.weight.detach(), weight * mask, rtol=1e-10, atol=1e-12)


def test_the_threshold_rises_from_nothing_to_what_was_asked() -> None:
    gate = SoftMovementGate(begin=0.2, end=0.6)
    assert [gate.tau(p) for p in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.0, 0.1, 0.1])
    assert gate.tau(0.4) == pytest.approx(0.1 * (1 - 0.5**3))
    assert SoftMovementGate(begin=0.5, end=0.5).tau(0.5) == 0.1


# Scores that start from the weights


def test_hydra_starts_from_scaled_weights_and_trains_the_mask_alone() -> None:
    steps = 6
    model = net()
    found = replace(methods.hydra, gate=ScaledPopup(lr=0.5), schedule=OneShot(at=1.0))
    session, optimizer = attached(found, model, steps)
    w = [net()[i].weight.detach().clone() for i in (0, 2)]
    # The signs of the paper, which the ranking by absolute values ignores.
    s = [math.sqrt(6 / p.shape[1]) * p / p.abs().max() for p in w]
    momentum = [torch.zeros_like(p) for p in s]
    for t in range(steps):
        masks = [top(p.abs(), 0.5) for p in s]
        if t == 0:
            assert all(torch.equal(m, top(p.abs(), 0.5)) for m, p in zip(masks, w, strict=True))
        loss, grads = used(w, masks)
        assert step(model, optimizer) == pytest.approx(loss, rel=1e-12)
        for i, g in enumerate(grads):
            momentum[i] = 0.9 * momentum[i] + g * w[i] * s[i].sign() + 1e-4 * s[i]
            s[i] = s[i] - 0.5 * 0.5 * (1 + math.cos(math.pi * t / steps)) * momentum[i]
    for name, layer, weight, score in zip(LAYERS, (model[0], model[2]), w, s, strict=True):
        mask = top(score.abs(), 0.5)
        assert torch.equal(kept(session)[name], mask)
        assert torch.equal(layer.weight.detach(), weight * mask)


def test_bip_is_the_bilevel_step() -> None:
    """dL/dm = theta dL/dz - 1/gamma dL/dz dL/dtheta, with theta descending along dL/dtheta = m dL/dz."""
    steps, inverse = 5, 0.3
    model = net()
    session, optimizer = attached(replace(methods.bip, gate=BiLevel(step=inverse, lr=0.5)), model, steps)
    w = [net()[i].weight.detach().clone() for i in (0, 2)]
    s = [math.sqrt(6 / p.shape[1]) * p.abs() / p.abs().max() for p in w]
    momentum, descents = [torch.zeros_like(p) for p in s], [Descent(), Descent()]
    for t in range(steps):
        masks = [top(p.abs(), 0.5) for p in s]
        loss, grads = used(w, masks)
        assert step(model, optimizer) == pytest.approx(loss, rel=1e-12)
        for i, g in enumerate(grads):
            upper = w[i] * g - inverse * g * (masks[i] * g)
            momentum[i] = 0.9 * momentum[i] + upper * s[i].sign() + 1e-4 * s[i]
            s[i] = s[i] - 0.5 * 0.5 * (1 + math.cos(math.pi * t / steps)) * momentum[i]
            w[i] = w[i] - descents[i].move(masks[i] * g, w[i])
    for name, layer, weight, score in zip(LAYERS, (model[0], model[2]), w, s, strict=True):
        mask = top(score.abs(), 0.5)
        assert torch.equal(kept(session)[name], mask)
        torch.testing.assert_close(layer.weight.detach(), weight * mask, rtol=1e-10, atol=1e-12)


def test_the_implicit_gradient_is_that_of_the_solved_lower_problem() -> None:
    """Where the loss is linear in z, theta*(m) = argmin l(m theta) + gamma / 2 |theta|^2 is known: differentiate it."""
    gamma, g = 2.5, torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
    m = torch.tensor([0.9, 0.3, 1.0], dtype=torch.float64)

    def solved(mask: Tensor) -> Tensor:
        return -mask * g / gamma

    def upper(mask: Tensor) -> Tensor:
        return (g * mask * solved(mask)).sum()

    h = 1e-6
    slow = torch.stack([(upper(m + h * e) - upper(m - h * e)) / (2 * h) for e in torch.eye(3, dtype=torch.float64)])
    value = m.clone().requires_grad_()
    (fast,) = torch.autograd.grad((BiLevel(step=1 / gamma).weight(solved(m).requires_grad_(), value) * g).sum(), value)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=0.0)


def test_a_channel_gathers_the_implicit_gradient_of_its_weights() -> None:
    model = net()
    found = replace(methods.bip, gate=BiLevel(step=0.3), granularity=Channel())
    session, optimizer = attached(found, model, 4)
    (name,) = session.gating.thetas
    keep = session.gating.keep[name].double()
    w = [p.detach().clone() for p in (net()[0].weight, net()[2].weight)]
    z = (w[1] * keep).requires_grad_()
    loss = (torch.tanh(X @ w[0].T) @ z.T - Y).square().sum()
    (g,) = torch.autograd.grad(loss, z)
    optimizer.zero_grad()
    squared(model).backward()
    expected = (w[1] * g - 0.3 * g * keep * g).sum(0)
    torch.testing.assert_close(session.gating.thetas[name].grad, expected, rtol=1e-10, atol=0.0)


def test_moments_that_are_over_open_everything() -> None:
    gate, theta = SoftMovementGate(), torch.tensor([-9.0, 9.0], dtype=torch.float64)
    assert gate.value(theta, Moment(1.0, 0.5)).tolist() == [1.0, 1.0]
    assert gate.value(theta, Moment(0.9, 0.5)).tolist() == [0.0, 1.0]
    assert F.sigmoid(theta[0]) < gate.tau(0.9)
