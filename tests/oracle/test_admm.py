"""The alternating direction method of multipliers against loops: projections by enumeration, steps by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Granularity
from prunus.parts.allocation import CROSSES, GlobalRanking, KernelPattern, Uniform
from prunus.parts.criteria import L2Norm, SquaredMagnitude
from prunus.parts.granularity import Channel, Element, Tile
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def attached(found: prunus.Recipe, model: nn.Module, steps: int, density: float) -> tuple[Any, Any]:
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    return session.attach(optimizer), optimizer


def stepped(model: nn.Module, optimizer: Any, times: int, loss: Any = squared) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


# The projection


def by_enumeration(v: Tensor, boxes: list[list[int]], keep: int) -> Tensor:
    """The nearest point to `v` (flat) in which only `keep` of the boxes of entries are not zero."""
    best, found = float("inf"), v
    for kept in itertools.combinations(range(len(boxes)), keep):
        point = torch.zeros_like(v)
        for box in kept:
            point[boxes[box]] = v[boxes[box]]
        if float((point - v).square().sum()) < best - 1e-12:
            best, found = float((point - v).square().sum()), point
    return found


def anchors(
    granularity: Granularity, allocate: Allocation, model: nn.Module, density: float, example: Tensor = X
) -> dict[str, Tensor]:
    """Z - U at the first step of a run, which is the projection of the weights."""
    recipe = replace(
        methods.admm_nn, granularity=granularity, criterion=L2Norm(), allocate=allocate, schedule=OneShot(at=1.0)
    )
    task = prunus.Task(loss=lambda m, b: m(example).square().sum(), train=[0], example=(example,))
    budget = None if density == 4 / 9 else prunus.Budget(density)
    session = prunus.Session(model, recipe, task, budget, steps=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session.attach(optimizer)
    stepped(model, optimizer, 1, lambda m: m(example).square().sum())
    session.detach()
    return {n: t for n, t in session.running["anchor"].items() if "|" not in n}


def test_projection_of_single_weights_within_layers() -> None:
    model = net(3)
    z = anchors(Element(), Uniform(), model, 0.25)
    for name, p in model.named_parameters():
        if name in z:
            v = p.detach().reshape(-1)
            assert torch.equal(z[name].reshape(-1), by_enumeration(v, [[i] for i in range(len(v))], len(v) // 4))
    assert set(z) == {"0.weight", "2.weight"}


def test_projection_of_single_weights_across_layers() -> None:
    model = net(4)
    z = anchors(Element(), GlobalRanking(), model, 0.15)
    v = torch.cat([model[0].weight.detach().reshape(-1), model[2].weight.detach().reshape(-1)])
    found = torch.cat([z["0.weight"].reshape(-1), z["2.weight"].reshape(-1)])
    assert torch.equal(found, by_enumeration(v, [[i] for i in range(20)], 3))


def test_projection_of_neurons_and_of_columns() -> None:
    model = net(5)
    z = anchors(Channel(), Uniform(), model, 0.5)
    v = model[0].weight.detach().reshape(-1)
    rows = [[3 * r, 3 * r + 1, 3 * r + 2] for r in range(4)]
    assert set(z) == {"0.weight"} and torch.equal(z["0.weight"].reshape(-1), by_enumeration(v, rows, 2))
    z = anchors(Tile((0, 1, 1, 1)), Uniform(), model, 0.5)
    columns, left = [[c, c + 3, c + 6, c + 9] for c in range(3)], int((z["0.weight"] != 0).any(0).sum())
    assert left < 3 and torch.equal(z["0.weight"].reshape(-1), by_enumeration(v, columns, left))


def test_projection_onto_patterns() -> None:
    """Every kernel takes the nearest of the four crosses; layers without 3x3 kernels are no part of the penalty."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    example = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    z = anchors(Element(), KernelPattern(patterns=CROSSES), model, 4 / 9, example)
    assert set(z) == {"0.weight"}
    for v, point in zip(model[0].weight.detach().reshape(-1, 9), z["0.weight"].reshape(-1, 9), strict=True):
        nearest = []
        for cross in CROSSES:
            w = torch.zeros_like(v)
            w[list(cross)] = v[list(cross)]
            nearest.append(w)
        assert torch.equal(point, min(nearest, key=lambda w: float((w - v).square().sum())))


# The steps


def top(v: Tensor, k: int) -> Tensor:
    """`v` with all but its k largest magnitudes zero."""
    out, flat = torch.zeros_like(v).reshape(-1), v.reshape(-1)
    for i in sorted(range(len(flat)), key=lambda i: (-abs(float(flat[i])), i))[:k]:
        out[i] = flat[i]
    return out.reshape(v.shape)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_steps_by_hand(rounds: int) -> None:
    """W by SGD on L + rho/2 ||W - Z + U||^2; every two steps Z = top(W + U), U += W - Z; cut; retrain without it."""
    rho, every, cut, steps, k = 0.3, 2, 8, 12, {"0.weight": 6, "2.weight": 4}
    penalty = Anchored(rho=rho, every=every, rounds=rounds)
    recipe = replace(methods.admm_nn, penalty=penalty, schedule=OneShot(at=cut / steps))
    model, byhand = net(), net()
    session, optimizer = attached(recipe, model, steps, 0.5)
    stepped(model, optimizer, steps)
    session.detach()

    named = dict(byhand.named_parameters())
    velocity: dict[str, Tensor] = {}
    z, u = {n: torch.zeros_like(named[n]) for n in k}, {n: torch.zeros_like(named[n]) for n in k}
    masks: dict[str, Tensor] = {}
    for step in range(steps):
        span = min(step * rounds // cut, rounds - 1)
        with torch.no_grad():
            for n in k if step < cut else ():
                if step == 0 or span != (step - 1) * rounds // cut:
                    z[n], u[n] = top(named[n], k[n]), torch.zeros_like(named[n])
                elif step % every == 0:
                    z[n] = top(named[n] + u[n], k[n])
                    u[n] = u[n] + named[n] - z[n]
        loss = squared(byhand)
        if step < cut:
            loss = loss + sum(rho * 10**span / 2 * (named[n] - z[n] + u[n]).square().sum() for n in k)
        grads = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (n, p), g in zip(named.items(), grads, strict=True):
                g = g * masks[n] if n in masks else g
                g = g + 0.01 * p
                velocity[n] = 0.9 * velocity[n] + g if n in velocity else g
                p -= 0.2 * velocity[n]
                if step + 1 == cut and n in k:
                    masks[n] = (top(p, k[n]) != 0).double()
                    velocity[n] *= masks[n]
                if n in masks:
                    p *= masks[n]
    for n, p in model.named_parameters():
        assert torch.allclose(p, named[n], rtol=0, atol=1e-12), n
    assert all(int((named[n] != 0).sum()) == k[n] for n in k)


def test_the_weights_come_to_the_set_that_they_are_projected_onto() -> None:
    """What the method is for: before the cut W is nearly sparse, so that the cut changes the loss little."""
    recipe = replace(methods.admm_nn, schedule=OneShot(at=1.0), penalty=Anchored(rho=0.3, every=5))
    plain = replace(recipe, penalty=None)
    risen = []
    for one in (recipe, plain):
        model = net(7)
        session, optimizer = attached(one, model, 101, 0.4)
        stepped(model, optimizer, 100)
        before = squared(model).item()
        stepped(model, optimizer, 1)
        session.detach()
        risen.append(squared(model).item() - before)
    assert risen[0] < 0.1 * risen[1]


def test_nothing_is_penalized_where_nothing_goes() -> None:
    """At density 1 the run is that of the optimizer alone."""
    model, plain = net(), net()
    session, optimizer = attached(replace(methods.admm_nn, schedule=OneShot(at=1.0)), model, 6, 1.0)
    stepped(model, optimizer, 6)
    session.detach()
    stepped(plain, torch.optim.SGD(plain.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01), 6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_settings_are_checked() -> None:
    for wrong in ({"rho": -1.0}, {"every": 0}, {"rounds": 0}, {"factor": 0.0}):
        with pytest.raises(SpecError):
            Anchored(**wrong)
    assert SquaredMagnitude() == methods.pconv_admm.criterion
