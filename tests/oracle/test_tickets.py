"""Tickets: early ones, rewound ones, and what lies on the line between two networks, against the papers' own words."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import measure, methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import Magnitude
from prunus.parts.schedule import EarlyBird, Rounds
from tests.integration import toys

SHAPE = (6,)


def drawn(model: nn.Module, density: float) -> Tensor:
    """The channels of the toy network whose scales are among the largest: the mask of the paper's algorithm 1."""
    gamma = model.norm.weight.detach().abs() + model.inner_norm.weight.detach().abs()  # one group: a residual sum
    kept = len(gamma) - int((1 - density) * len(gamma) + 1e-9)
    mask = torch.zeros(len(gamma), dtype=torch.bool)
    mask[gamma.argsort(descending=True, stable=True)[:kept]] = True
    return mask


def scaled(model: nn.Module) -> nn.Module:
    """With scales that are far enough apart for masks to settle."""
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(0.2, 1.6, 8))
    return model


def early_run(settle: float, steps: int, probes: int, **changes: Any) -> prunus.Session:
    model = scaled(toys.network())
    found = replace(methods.early_bird, schedule=EarlyBird(probes=probes, until=1.0, settle=settle), **changes)
    session = prunus.Session(model, found, toys.task(), prunus.Budget(0.5), steps=steps)
    session.attach(torch.optim.SGD(model.parameters(), lr=0.3))
    return session


@pytest.mark.parametrize("settle", [0.01, 0.1, 0.3, 1.0])
def test_an_early_ticket_is_drawn_when_the_last_five_masks_agree(settle: float) -> None:
    steps, density = 30, 0.5
    # The same training without pruning, and the queue of five masks written out.
    session = early_run(0.1, steps, 1)
    queue: list[Tensor] = []
    when = steps
    for step in range(1, steps + 1):
        toys.train(session, session.optimizers[0], step - 1, step)
        if step == steps:
            break
        queue = [*queue, drawn(session.model, density)][-5:]
        far = [float((queue[-1] != m).float().mean()) for m in queue[:-1]]
        if settle == 1.0 or (len(far) == 4 and max(far) < settle):
            when = step
            break
    early = early_run(settle, steps, steps)
    optimizer = early.optimizers[0]
    toys.train(early, optimizer, 0, steps)
    assert [h["step"] for h in early.history if "kept" in h] == [when]
    assert len(early.history) == when  # every step until then was a probe, none after it
    assert early.fired == len(early.events) and early.settled
    assert early.history[-1]["kept"] == 4


def test_early_tickets_resume_bit_for_bit_from_every_step() -> None:
    steps = 12
    whole = early_run(0.2, steps, steps)
    saved = []
    for step in range(steps):
        state = toys.pack({"model": whole.model.state_dict(), "session": whole.state_dict()})
        saved.append(state)
        toys.train(whole, whole.optimizers[0], step, step + 1)
    assert 1 < len(whole.history) < steps  # it settled on the way
    for step, data in enumerate(saved):
        state = toys.unpack(data)
        model = toys.network(seed=9)
        again = prunus.Session(model, whole.recipe, toys.task(), prunus.Budget(0.5), steps=steps)
        model.load_state_dict(state["model"])
        again.load_state_dict(state["session"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        again.attach(optimizer)
        toys.train(again, optimizer, step, steps)
        assert toys.same(again.masks, whole.masks) and again.history == whole.history, step
        assert toys.same(toys.state_of(model), toys.state_of(whole.model)), step


def test_an_early_ticket_that_rewinds_gives_the_initial_weights_back() -> None:
    model = scaled(toys.network())
    before = toys.state_of(model)
    found = replace(methods.early_bird, schedule=EarlyBird(probes=10, until=0.5, settle=0.6, window=2, rewind=0.0))
    session = prunus.Session(model, found, toys.task(), prunus.Budget(0.5), steps=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    assert session.horizon == 20  # as far as anyone knows before: the last probe, then twenty steps of training
    for step in range(20):
        toys.train(session, optimizer, step, step + 1)
        if session.settled:
            break
    assert session.step == 6 and session.clock == 0 and session.horizon == 34
    keep = session.applied
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] * keep[name] if name in keep else before[name])


@pytest.mark.parametrize(
    "wrong", [{"probes": 0}, {"window": 0}, {"settle": 0.0}, {"until": 0.0}, {"rewind": 0.2}, {"settle": 1.5}]
)
def test_early_tickets_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="EarlyBird"):
        EarlyBird(**wrong)


def test_late_rewinding_is_the_algorithm_of_the_paper() -> None:
    """Train to T, prune a fifth of what is left globally, go back to step k, train T - k, and so on."""
    model = toys.network(kind=toys.mlp)
    mine = copy.deepcopy(model)
    found = replace(methods.late_rewinding, schedule=Rounds(per_round=0.2, rewind=0.5))
    steps, density = 12, 0.64  # two rounds: T = 6, k = 3, and 6 + 3 + 3 steps
    events = found.schedule(density, steps)
    assert [(e.step, e.rewind) for e in events] == [(6, 3), (9, 3)]
    session = prunus.Session(model, found, toys.task(SHAPE), prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    toys.train(session, optimizer, 0, steps, SHAPE)

    weights = {n: p for n, p in mine.named_parameters() if p.ndim == 2}
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in weights.items()}
    slow = torch.optim.SGD(mine.parameters(), lr=0.1)
    early: dict[str, Tensor] = {}

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            if step == 3 and not early:
                early.update(toys.state_of(mine))
            slow.zero_grad()
            toys.loss_of(mine, toys.batch_at(step, SHAPE)).backward()
            slow.step()
            with torch.no_grad():
                for n, p in weights.items():
                    p.mul_(masks[n])

    train(0, 6)
    for first, kept_share in ((6, 0.8), (9, 0.64)):
        flat = torch.cat([torch.where(masks[n], p.detach().abs(), -torch.inf).flatten() for n, p in weights.items()])
        kept = len(flat) - int((1 - kept_share) * len(flat) + 1e-9)
        alive = torch.zeros(len(flat), dtype=torch.bool)
        alive[flat.argsort(descending=True, stable=True)[:kept]] = True
        for (n, p), part in zip(weights.items(), alive.split([p.numel() for p in weights.values()]), strict=True):
            masks[n] = part.reshape(p.shape)
        mine.load_state_dict(early)
        with torch.no_grad():
            for n, p in weights.items():
                p.mul_(masks[n])
        train(first, first + 3)
    assert toys.same({f"{n}": m for n, m in session.masks.items()}, masks)
    assert toys.same(toys.state_of(model), toys.state_of(mine))


def test_pretrained_tickets_remove_a_tenth_per_round_and_go_back_to_what_they_were_given() -> None:
    model = toys.network(kind=toys.mlp)
    given = toys.state_of(model)
    task = replace(toys.task(SHAPE), train=[toys.batch_at(i, SHAPE) for i in range(4)])
    result = prunus.prune(model, task, methods.pretrained_tickets, sparsity=1 - 0.9**3, steps=40)
    assert [h.get("rewind", 0) for h in result.history] == [0, 0, 0]
    assert [h["asked"] for h in result.history] == pytest.approx([0.9, 0.81, 0.729])
    assert methods.pretrained_tickets.when == "after" and list(result.masks) == ["0.weight"]
    assert isinstance(methods.pretrained_tickets.criterion, Magnitude)
    # Undo the training after the last round: what it started from were the given weights, masked.
    session = prunus.Session(copy.deepcopy(model), methods.pretrained_tickets, task, prunus.Budget(0.9), steps=8)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=0.1)
    session.attach(optimizer)
    toys.train(session, optimizer, 0, 4, SHAPE)
    assert session.fired == 1
    now = toys.state_of(session.model)
    assert torch.equal(now["0.weight"], given["0.weight"] * session.masks["0.weight"])
    assert torch.equal(now["2.weight"], given["2.weight"])


# Between two networks


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 1).double()


def test_the_error_on_a_line_of_a_convex_problem_is_what_algebra_says() -> None:
    """Least squares is convex in the weights: E on the line is a parabola, and below the chord."""
    one, other = linear(1), linear(2)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)

    def error(model: nn.Module) -> float:
        return float((model(x) - y).square().mean().detach())

    found = measure.line_errors(one, other, error, points=5)
    for alpha, value in found:
        w = alpha * one.weight + (1 - alpha) * other.weight
        b = alpha * one.bias + (1 - alpha) * other.bias
        assert value == pytest.approx(float((x @ w.T + b - y).square().mean()), rel=1e-12)
    assert [a for a, _ in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    values = [v for _, v in found]
    assert values[0] == error(other) and values[-1] == error(one)
    for alpha, value in found:
        assert value <= alpha * values[-1] + (1 - alpha) * values[0] + 1e-12
    # Convex: the largest is an end, so the instability is half the difference of the ends.
    expected = abs(values[0] - values[-1]) / 2
    assert measure.instability(one, other, error, points=5) == pytest.approx(expected)
    assert measure.instability(one, one, error, points=5) == 0.0


def test_a_hill_between_two_networks_is_seen() -> None:
    one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        one.weight.fill_(1.0)
        other.weight.fill_(-1.0)
    height = measure.instability(one, other, lambda m: 1.0 - float(m.weight) ** 2, points=21)
    assert height == pytest.approx(1.0)
    assert float(one.weight) == 1.0 and float(other.weight) == -1.0


def test_statistics_are_recalibrated_only_where_it_is_asked_for() -> None:
    one, other = toys.network(1).double(), toys.network(2).double()
    for model in (one, other):
        model.norm.running_mean.normal_()
    before = toys.state_of(one)
    batches = [tuple(t.double() if t.is_floating_point() else t for t in toys.batch_at(i)) for i in range(3)]
    task = prunus.Task(loss=toys.loss_of, calib=batches)
    seen: list[Tensor] = []

    def look(model: nn.Module) -> float:
        assert not model.training
        seen.append(model.norm.running_mean.clone())
        return 0.0

    measure.line_errors(one, other, look, points=3)
    assert torch.allclose(seen[1], (one.norm.running_mean + other.norm.running_mean) / 2)
    seen.clear()
    measure.line_errors(one, other, look, points=3, recalibrate=task)
    w = (one.stem.weight + other.stem.weight) / 2
    outputs = [torch.nn.functional.conv2d(x, w, padding=1).mean((0, 2, 3)) for x, _ in batches]
    assert torch.allclose(seen[1], torch.stack(outputs).mean(0))
    assert toys.same(before, toys.state_of(one)) and one.norm.momentum == 0.1


def test_copies_that_see_other_orders_differ_and_those_that_see_the_same_do_not() -> None:
    model = toys.network(kind=toys.mlp)
    with torch.no_grad():
        model[0].weight[:, 0] = 0.0
    before = toys.state_of(model)
    task = prunus.Task(loss=toys.loss_of, train=[toys.batch_at(i, SHAPE) for i in range(6)])
    made = measure.twins(model, task, 10, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    again = measure.twins(model, task, 10, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), seeds=(0, 0))
    assert not toys.same(toys.state_of(made[0]), toys.state_of(made[1]))
    assert toys.same(toys.state_of(again[0]), toys.state_of(again[1]))
    assert toys.same(toys.state_of(again[0]), toys.state_of(made[0]))
    assert all((m[0].weight[:, 0] == 0).all() and (m[0].weight[:, 1] != 0).all() for m in made)
    assert toys.same(before, toys.state_of(model))


def test_two_different_networks_are_refused() -> None:
    with pytest.raises(SpecError, match="no line between"):
        measure.instability(toys.network(), toys.network(kind=toys.mlp), lambda m: 0.0)
    with pytest.raises(SpecError, match="points=2"):
        measure.line_errors(toys.network(), toys.network(), lambda m: 0.0, points=2)


# Weights that only move


def test_laperm_is_the_published_synchronization() -> None:
    """theta_0 with zeros, sorted per neuron, put into the order of what was trained; k = 3, and once at the end."""
    model = toys.network(kind=toys.mlp).double()
    batches = [tuple(t.double() if t.is_floating_point() else t for t in toys.batch_at(i, SHAPE)) for i in range(2)]
    task = prunus.Task(loss=toys.loss_of, train=batches)
    result = prunus.prune(
        model, task, "laperm", sparsity=0.6, steps=7, every=3, seed=5, optimizer=lambda p: torch.optim.Adam(p, lr=0.05)
    )
    zeroed = prunus.prune(model, task, "random", sparsity=0.6, seed=5).model
    mine = copy.deepcopy(zeroed)
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.05)
    for step in range(1, 8):
        optimizer.zero_grad()
        toys.loss_of(mine, batches[(step - 1) % 2]).backward()
        optimizer.step()
        if step in (3, 6, 7):
            for layer, first in ((mine[0], zeroed[0]), (mine[2], zeroed[2])):
                for row, values in zip(layer.weight.detach(), first.weight.detach(), strict=True):
                    ordered = sorted(values.tolist())
                    for rank, place in enumerate(sorted(range(len(row)), key=row.tolist().__getitem__)):
                        row[place] = ordered[rank]
    assert toys.same(toys.state_of(mine), toys.state_of(result.model))
    for layer, first in ((result.model[0], zeroed[0]), (result.model[2], zeroed[2])):
        assert torch.equal(layer.weight.sort(1).values, first.weight.sort(1).values)
        assert not torch.equal(layer.weight, first.weight)
    assert result.sparsity == pytest.approx(0.6, abs=1 / 108) and result.recipe.name == "laperm"
    for name, mask in result.masks.items():
        assert torch.equal(mask, dict(result.model.named_parameters())[name] != 0)
