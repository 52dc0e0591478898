"""What happens during training, by hand: RigL and SET updates, the cubic path, rounds with rewinding, soft pruning."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.parts.schedule import Gradual, PruneAndGrow, Repeated, Rounds
from tests.oracle.rules import count, differences, first_k, joined, lowest_rows_removed

Batch = tuple[Tensor, Tensor]
WEIGHTS = ("0.weight", "2.weight", "4.weight")


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(31)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(32)
    return torch.randn(64, 12, generator=generator), torch.randint(4, (64,), generator=generator)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def flat(values: Tensor) -> list[float]:
    return [float(v) for v in values.detach().flatten()]


# RigL


def rigl_update(mask: list[bool], w: list[float], g: list[float], share: float) -> tuple[list[bool], list[float]]:
    """google-research/rigl, one layer: of `ones` connections keep the ones - int(share * ones) largest; then grow as
    many where |gradient| is largest among all the rest, those just dropped included. New ones start at zero, unless
    they were dropped in the same breath: those keep their value."""
    ones = sum(mask)
    pruned = int(ones * share)
    order = sorted(range(len(w)), key=lambda i: (-(abs(w[i]) if mask[i] else 0.0), i))
    stay = set(order[: ones - pruned])
    rest = sorted((i for i in range(len(w)) if i not in stay), key=lambda i: (-abs(g[i]), i))
    new = stay | set(rest[:pruned])
    return [i in new for i in range(len(w))], [w[i] if i in new and mask[i] else 0.0 for i in range(len(w))]


def test_rigl_one_update_by_hand(mlp: nn.Module, batch: Batch) -> None:
    """Two updates in a run of sixteen steps with momentum: masks, weights, the skipped step, the cleared momentum."""
    steps, every = 16, 4
    recipe = replace(methods.rigl, schedule=PruneAndGrow(every=every, until=0.75, drop=0.3, skip_step=True))
    session = prunus.Session(
        mlp, recipe, prunus.Task(loss=loss_of, train=[batch]), prunus.Budget(0.3), steps=steps, seed=1
    )
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1, momentum=0.9)
    session.attach(optimizer)
    updates = 0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(mlp, batch).backward()
        before = {n: (session.masks[n].clone(), mlp.get_parameter(n).detach().clone()) for n in WEIGHTS}
        grads = {n: mlp.get_parameter(n).grad.clone() for n in WEIGHTS}
        optimizer.step()
        share = 0.15 * (1 + math.cos(math.pi * step / 12))
        if step % every or step >= 12:
            assert all(torch.equal(session.masks[n], before[n][0]) for n in WEIGHTS)
            assert not torch.equal(mlp.get_parameter("0.weight"), before["0.weight"][1])
            continue
        updates += 1
        for n in WEIGHTS:
            mask, w = before[n]
            assert count({n: mask}) == int(mask.sum())
            expected, values = rigl_update(mask.flatten().tolist(), flat(w), flat(grads[n]), share)
            assert session.masks[n].flatten().tolist() == expected, (step, n)
            assert flat(mlp.get_parameter(n)) == values, (step, n)
            momentum = optimizer.state[mlp.get_parameter(n)]["momentum_buffer"]
            born = session.masks[n].reshape(w.shape) & ~mask.reshape(w.shape)
            assert bool(born.any())
            assert not momentum[born].any()
        # Biases belong to no group; the step was skipped for them as well.
    assert updates == 2
    assert session.result().sparsity == pytest.approx(0.7, abs=1e-3)


# SET


def test_set_drops_the_smallest_positive_and_the_largest_negative(mlp: nn.Module, batch: Batch) -> None:
    """The share zeta of either sign goes (Mocanu et al., Methods); int(zeta * ones) in all, so each sign gives its
    own share to within one. What survives that is certain to be in the new mask; what is new starts at zero."""
    recipe = replace(methods.set, schedule=PruneAndGrow(every=5, until=1.0, drop=0.3, decay="none"))
    session = prunus.Session(mlp, recipe, prunus.Task(loss=loss_of), prunus.Budget(0.4), steps=20, seed=2)
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.0)
    values = {n: flat(mlp.get_parameter(n)) for n in WEIGHTS}  # which a learning rate of zero leaves alone
    session.attach(optimizer)
    old = {n: session.masks[n].clone() for n in WEIGHTS}
    for _ in range(5):
        optimizer.step()
    for n in WEIGHTS:
        w = [v if m else 0.0 for v, m in zip(values[n], old[n].flatten().tolist(), strict=True)]
        new = session.masks[n].flatten().tolist()
        ones = int(old[n].sum())
        assert sum(new) == ones
        survivors = 0
        for sign in (1, -1):
            side = sorted((i for i in range(len(w)) if w[i] * sign > 0), key=lambda i: abs(w[i]))
            certain = side[math.ceil(0.3 * len(side)) :]
            assert all(new[i] for i in certain)
            survivors += len(certain)
        assert abs(survivors - (ones - int(0.3 * ones))) <= 2
        born = torch.tensor(new) & ~old[n].flatten()
        assert bool(born.any()) or bool(old[n].all()), "only a layer that is dense has nowhere else to grow"
        assert not mlp.get_parameter(n).flatten()[born].any()
    assert [e.step for e in session.events] == [0, 5, 10, 15], (
        "nothing is regrown after the last step: it would stay zero"
    )


# Gradual magnitude


def test_cubic_path_of_zhu_and_gupta() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0 (eq. 1), at t_0 + dt, ..., t_0 + n dt."""
    events = Gradual(begin=0.1, end=0.6, every=50)(0.1, 1000)
    times = list(range(150, 601, 50))
    assert [e.step for e in events] == times
    for event in events:
        assert event.density == pytest.approx(1 - (0.9 + (0 - 0.9) * (1 - (event.step - 100) / 500) ** 3), abs=1e-12)
    assert events[-1].density == 0.1


def test_gradual_masks_follow_the_weights_of_the_moment(mlp: nn.Module, batch: Batch) -> None:
    """At each event every layer keeps its largest weights as they are then; what is pruned stays pruned."""
    recipe = replace(methods.gradual_magnitude, schedule=Gradual(end=0.8, every=4))
    session = prunus.Session(mlp, recipe, prunus.Task(loss=loss_of), prunus.Budget(0.2), steps=20)
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.2)
    seen: dict[str, Tensor] = {}
    optimizer.register_step_post_hook(
        lambda *_: seen.update({n: mlp.get_parameter(n).detach().clone() for n in WEIGHTS})
    )
    session.attach(optimizer)
    due = {e.step: e.density for e in session.events}
    for step in range(1, 21):
        before = {n: session.masks[n].clone() for n in WEIGHTS}
        optimizer.zero_grad()
        loss_of(mlp, batch).backward()
        optimizer.step()
        if step not in due:
            continue
        for n in WEIGHTS:
            units = before[n].numel()
            alive = {n: seen[n].abs().masked_fill(~before[n].reshape(seen[n].shape), -1.0)}
            expected = first_k(alive, units - int((1 - due[step]) * units))[n]
            assert torch.equal(session.masks[n].reshape(expected.shape), expected), (step, n)
    assert sorted(due) == [4, 8, 12, 16]


# Lottery tickets


@pytest.mark.parametrize("what", ["weights", "rate"])
def test_iterative_magnitude_by_hand(mlp: nn.Module, batch: Batch, what: str) -> None:
    """Train, prune globally to 0.8^i, rewind, three rounds of six steps, by a plain loop.

    open_lth removes ceil(0.2 * what is left) + 1 per round (its threshold is the next entry, and what equals it goes
    too); the recipe keeps the counts of 0.8^i n, rounded once.
    """
    task = prunus.Task(loss=loss_of, train=[batch])
    recipe = replace(methods.lth if what == "weights" else methods.lr_rewinding, schedule=Rounds(what=what))  # type: ignore[arg-type]
    rate = {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.5, 4: 0.3, 5: 0.1}
    ours = prunus.prune(
        mlp,
        task,
        recipe,
        budget=prunus.Budget(0.8**3),
        steps=24,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
        rate=lambda progress: rate[round(progress * 6)],
    )
    by_hand, start = copy.deepcopy(mlp), copy.deepcopy(mlp.state_dict())
    masks = {n: torch.ones_like(by_hand.get_parameter(n), dtype=torch.bool) for n in WEIGHTS}
    total = joined(masks).numel()
    kept = []
    for i in range(4):
        for step in range(6):
            grads = torch.autograd.grad(loss_of(by_hand, batch), list(by_hand.parameters()))
            with torch.no_grad():
                for (n, p), g in zip(by_hand.named_parameters(), grads, strict=True):
                    p -= 0.3 * rate[step] * (g * masks[n] if n in masks else g)
        if i == 3:
            break
        scores = {n: by_hand.get_parameter(n).detach().abs().masked_fill(~masks[n], -1.0) for n in WEIGHTS}
        masks = first_k(scores, total - total * (10 ** (i + 1) - 8 ** (i + 1)) // 10 ** (i + 1))
        kept.append(count(masks))
        if what == "weights":
            by_hand.load_state_dict(start)
        with torch.no_grad():
            for n in WEIGHTS:
                by_hand.get_parameter(n).mul_(masks[n])
    assert [h["kept"] for h in ours.history] == kept
    assert differences(ours.masks, masks) == {}
    for (name, p), q in zip(ours.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


# Soft filter pruning


def test_soft_pruned_filters_recover_until_the_last_time() -> None:
    """After each pruning but the last the zeroed filters receive gradients and come back; the ranking is always over
    all.
    """
    torch.manual_seed(33)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    x, y = torch.randn(16, 3, 6, 6), torch.randint(4, (16,))
    task = prunus.Task(loss=loss_of, train=[(x, y)], example=x[:1])
    recipe = replace(methods.sfp, schedule=Repeated(times=3))
    session = prunus.Session(model, recipe, task, prunus.Budget(0.5), steps=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.get_parameter("0.weight")
    seen: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(weight.detach().clone()))
    session.attach(optimizer)
    recovered = 0
    for step in range(1, 10):
        optimizer.zero_grad()
        loss_of(model, (x, y)).backward()
        optimizer.step()
        zero = weight.detach().flatten(1).eq(0).all(1)
        if step in (3, 6, 9):
            expected = lowest_rows_removed(seen[-1].double().square().sum((1, 2, 3)).sqrt(), 4)
            assert torch.equal(session.masks["0"], expected)
            assert torch.equal(zero, ~expected)
        elif step > 3:
            recovered += int((~zero).sum()) - 4
    assert recovered > 0
    assert session.holding
