"""Gates that come to be zero, or zero and one: their projections by brute force, their first steps by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.gate import BoxBinary, Skeleton, SparseScale
from prunus.parts.gate.binary import capped, on_sphere
from prunus.parts.gate.proximal import AcceleratedProximal
from prunus.parts.schedule import OneShot

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
RATE = 0.1


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def trained(found: prunus.Recipe, model: nn.Module, steps: int, until: int, density: float = 0.4) -> Any:
    """A session after `until` steps of SGD, still attached."""
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session.attach(optimizer)
    for _ in range(until):
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
    return session


def gated_neurons(named: dict[str, Tensor], v: Tensor) -> Tensor:
    """The loss of the network with its neurons multiplied by v where they are read."""
    hidden = torch.tanh(X @ named["0.weight"].T + named["0.bias"]) * v
    return (hidden @ named["2.weight"].T + named["2.bias"] - Y).square().mean()


def weights_stepped(named: dict[str, Tensor], grads: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for p, g in zip(named.values(), grads, strict=True):
            p -= RATE * g


# Sparse structure selection


def test_accelerated_proximal_gradient_by_hand() -> None:
    """z = S(lambda - eta g); v = z - lambda + mu v; lambda = max(0, z + mu v): the paper's equations 10 to 12."""
    strength, lr, mu = 0.1, 0.3, 0.8
    x = torch.tensor([1.0, 0.05, 0.2], dtype=torch.float64, requires_grad=True)
    optimizer = AcceleratedProximal([x], lr, mu, strength)
    target = [0.7, -0.5, 0.3]
    values, speed = [1.0, 0.05, 0.2], [0.0] * 3
    for _ in range(12):
        optimizer.zero_grad()
        ((x - torch.tensor(target, dtype=torch.float64)).square().sum() / 2).backward()
        optimizer.step()
        for i in range(3):
            z = values[i] - lr * (values[i] - target[i])
            z = math.copysign(max(0.0, abs(z) - lr * strength), z)
            speed[i] = z - values[i] + mu * speed[i]
            values[i] = max(0.0, z + mu * speed[i])
        assert x.tolist() == pytest.approx(values, abs=1e-12)
    assert values[1] == 0.0


def test_accelerated_proximal_gradient_comes_to_the_minimum() -> None:
    """Of 1/2 (x - t)^2 + strength |x| over x >= 0: max(0, t - strength)."""
    targets = torch.tensor([0.7, 0.05, -0.4, 2.0], dtype=torch.float64)
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = AcceleratedProximal([x], 0.2, 0.9, 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        ((x - targets).square().sum() / 2).backward()
        optimizer.step()
    assert x.tolist() == pytest.approx([0.6, 0.0, 0.0, 1.9], abs=1e-9)


def test_sparse_structure_selection_by_hand() -> None:
    gate = SparseScale(strength=0.02, lr=0.2, momentum=0.9)
    model, byhand = net(), net()
    session = trained(replace(methods.sss, gate=gate), model, 20, 8)
    named, v, speed = dict(byhand.named_parameters()), torch.ones(5, dtype=torch.float64), torch.zeros(5).double()
    for _ in range(8):
        v.requires_grad_(True)
        *grads, g = torch.autograd.grad(gated_neurons(named, v), [*named.values(), v])
        weights_stepped(named, tuple(grads))
        v = v.detach()
        z = v - 0.2 * g
        z = z.sign() * (z.abs() - 0.2 * 0.02).clamp(min=0)
        speed = z - v + 0.9 * speed
        v = (z + 0.9 * speed).clamp(min=0)
    (theta,) = session.gating.thetas.values()
    assert torch.allclose(theta, v, rtol=0, atol=1e-12)
    session.detach()
    assert all(torch.allclose(p, named[n], rtol=0, atol=1e-12) for n, p in model.named_parameters())


def test_zeros_are_recorded_and_cutting_them_is_lossless() -> None:
    """A strength that closes three of five gates: the cut to as many as are open leaves the loss where it was."""
    gate = SparseScale(strength=0.05, lr=0.1)
    model = net(1)
    session = trained(replace(methods.sss, gate=gate), model, 61, 60, density=0.9)
    (theta,) = session.gating.thetas.values()
    share = (theta > 0).double().mean().item()
    assert 0 < share < 0.9
    before = squared(model).item()
    session.detach()
    model = net(1)
    session = trained(replace(methods.sss, gate=gate, schedule=OneShot(at=60 / 61)), model, 61, 60, density=share)
    assert session.history[-1]["open"] == share and abs(squared(model).item() - before) < 1e-12
    session.detach()


# Filter skeletons


def test_skeletons_by_hand() -> None:
    """As the official code has it: sign(FS) alpha onto the gradient, |FS| <= threshold to zero in both, then SGD."""
    torch.manual_seed(8)
    x, y = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    settings = {"strength": 0.05, "threshold": 0.5, "lr": 0.4, "momentum": 0.9, "decay": 0.01}

    def built() -> nn.Sequential:
        torch.manual_seed(9)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()

    def loss(out: Tensor) -> Tensor:
        return (out - y).square().mean()

    recipe = replace(methods.filter_skeleton, gate=Skeleton(**settings))
    task = prunus.Task(loss=lambda m, b: loss(m(x)), train=[0], example=(x,))
    model, byhand = built(), built()
    session = prunus.Session(model, recipe, task, prunus.Budget(0.5), steps=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session.attach(optimizer)
    named = dict(byhand.named_parameters())
    bones, velocity = torch.ones(4, 3, 3, dtype=torch.float64), torch.zeros(4, 3, 3).double()
    dead = 0
    for _ in range(25):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()

        bones.requires_grad_(True)
        hidden = torch.relu(torch.conv2d(x, named["0.weight"] * bones.unsqueeze(1), named["0.bias"])).flatten(1)
        value = loss(hidden @ named["3.weight"].T + named["3.bias"])
        *grads, g = torch.autograd.grad(value, [*named.values(), bones])
        weights_stepped(named, tuple(grads))
        bones = bones.detach()
        g = g + settings["strength"] * bones.sign()
        alive = bones.abs() > settings["threshold"]
        bones, g = bones * alive, g * alive
        velocity = 0.9 * velocity + g + settings["decay"] * bones
        bones = bones - settings["lr"] * velocity
        dead += int((~alive).sum())
    assert torch.allclose(session.gating.thetas["0.weight"].reshape(4, 3, 3), bones, rtol=0, atol=1e-12) and dead
    session.detach()
    assert all(torch.allclose(p, named[n], rtol=0, atol=1e-12) for n, p in model.named_parameters())


# Factorized convolutional filters


@pytest.mark.parametrize("seed", range(6))
def test_the_projection_onto_the_box_with_a_sum(seed: int) -> None:
    """It lies in the set, and no step towards any other point of the set comes nearer (many are tried)."""
    generator = torch.Generator().manual_seed(seed)
    a = 1.5 * torch.randn(7, generator=generator, dtype=torch.float64) + 0.3
    total = [0.0, 0.7, 2.0, 3.5, 6.3, 7.0][seed]
    z = capped(a, total)
    assert bool(((z >= 0) & (z <= 1)).all()) and z.sum().item() == pytest.approx(total, abs=1e-9)
    for i in range(7):
        for j in range(7):  # the edges of the set: what one entry gives, another takes
            if z[i] < 1 and z[j] > 0 and i != j:
                assert (z - a)[i] - (z - a)[j] >= -1e-9
    shift = torch.cat([(a - z)[(z > 1e-9) & (z < 1 - 1e-9)], torch.zeros(0)])
    assert len(shift) < 2 or shift.max() - shift.min() < 1e-9


def test_the_projection_onto_equal_numbers() -> None:
    assert capped(torch.ones(4, dtype=torch.float64), 1.0).tolist() == pytest.approx([0.25] * 4)
    assert capped(torch.tensor([1.0, 0.0]), 1.0).tolist() == [1.0, 0.0]


def test_the_projection_onto_the_sphere() -> None:
    point = torch.tensor([0.9, -0.2], dtype=torch.float64)
    angles = torch.linspace(0, 2 * math.pi, 200001, dtype=torch.float64)
    circle = 0.5 + math.sqrt(2) / 2 * torch.stack([angles.cos(), angles.sin()], 1)
    nearest = circle[(circle - point).square().sum(1).argmin()]
    assert (nearest - on_sphere(point)).abs().max() < 1e-4
    corners = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert all(torch.allclose(on_sphere(c), c) for c in corners)
    assert on_sphere(torch.full((3,), 0.5)).tolist() == pytest.approx([1.0] * 3)


def test_factorized_filters_by_hand() -> None:
    """v -= lr ((1 - alpha) dL/dv + alpha (y1 + y2 + rho (2 v - z1 - z2))); y += rho (v - z); rho grows; z anew."""
    alpha, lr, rho, growth, limit, density = 0.7, 0.3, 0.2, 1.5, 0.5, 0.4
    gate = BoxBinary(alpha=alpha, lr=lr, rho=rho, growth=growth, limit=limit)
    model, byhand = net(3), net(3)
    session = trained(replace(methods.fcf, gate=gate), model, 40, 9, density)
    named = dict(byhand.named_parameters())
    v, y1, y2 = torch.ones(5).double(), torch.zeros(5).double(), torch.zeros(5).double()
    z1, z2 = torch.ones(5).double(), torch.ones(5).double()
    for _ in range(9):
        v.requires_grad_(True)
        *grads, g = torch.autograd.grad(gated_neurons(named, v), [*named.values(), v])
        weights_stepped(named, tuple(grads))
        v = v.detach()
        v = v - lr * ((1 - alpha) * g + alpha * (y1 + y2 + rho * (2 * v - z1 - z2)))
        y1, y2 = y1 + rho * (v - z1), y2 + rho * (v - z2)
        rho = min(limit, growth * rho)
        z1, z2 = capped(v + y1 / rho, density * 5), on_sphere(v + y2 / rho)
    (theta,) = session.gating.thetas.values()
    session.detach()
    assert torch.allclose(theta, torch.stack([v, y1, y2, z1, z2], -1), rtol=0, atol=1e-11)
    assert all(torch.allclose(p, named[n], rtol=0, atol=1e-12) for n, p in model.named_parameters())


def test_factors_end_up_binary_and_in_number() -> None:
    """Without a loss to speak of, the constraint alone: two of five at one, the others at zero."""
    gate = BoxBinary(alpha=0.99, lr=0.1, rho=0.05, growth=1.02, limit=6.0)
    session = trained(replace(methods.fcf, gate=gate), net(3), 1000, 300)
    (theta,) = session.gating.thetas.values()
    session.detach()
    v = theta.detach()[:, 0].sort().values
    assert v[:3].abs().max() < 0.02 and (v[3:] - 1).abs().max() < 0.02


def test_wrong_settings_are_refused() -> None:
    for kind, wrong in (
        (SparseScale, {"strength": -1.0}),
        (SparseScale, {"momentum": 1.0}),
        (Skeleton, {"threshold": -0.1}),
        (Skeleton, {"lr": 0.0}),
        (BoxBinary, {"alpha": 1.0}),
        (BoxBinary, {"rho": 7.0}),
    ):
        with pytest.raises(SpecError):
            kind(**wrong)
