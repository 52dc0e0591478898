"""Dynamic sparse training by hand: whole runs of DEEP R, DSR, sparse momentum, ITOP and PruneFL, from the papers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.parts.growth import GainPerMac
from prunus.parts.penalty import RandomWalk
from prunus.parts.schedule import PruneAndGrow
from tests.oracle.sparse_runs import (
    Run,
    batches,
    best,
    best_of_all,
    hamilton,
    loss_of,
    mlp,
    stays,
    total,
    without_least,
)

STEPS = 24


# DEEP R (Bellec et al. 2018, algorithm 1)


def test_deep_r_steps_by_hand() -> None:
    """theta <- theta - eta dE/dtheta - eta alpha; theta < 0: dormant; then as many dormant connections as it takes to
    have K are activated with theta = 0. Without noise all but the choice of these is determined."""
    alpha, lr = 2e-2, 0.3
    recipe = replace(methods.deep_r, penalty=RandomWalk(l1=alpha, temperature=0.0))
    run = Run(recipe, 0.4, STEPS, lr=lr, momentum=0.0)
    run.start()
    twin, sign = run.twin, {n: torch.where(run.twin.first[n] < 0, -1.0, 1.0).double() for n in run.twin.names}
    kept, born = total(twin.masks), 0
    for step, _ in run:
        for n in twin.names:
            twin.p[n] = (twin.p[n] - lr * alpha * sign[n]) * twin.masks[n]
        if step < STEPS:  # nothing is regrown after the last step
            theta = {n: twin.p[n] * sign[n] for n in twin.names}
            alive = {n: twin.masks[n] & (theta[n] >= 0) for n in twin.names}
            new = run.masks()
            assert total(new) == kept
            for n in twin.names:
                assert not (alive[n] & ~new[n]).any(), "only what is dormant may leave"
                fresh = new[n] & ~alive[n]
                born += int(fresh.sum())
                assert not run.model.get_parameter(n)[fresh].any(), "it begins at zero, also where it just left"
                twin.p[n] = twin.p[n] * alive[n]
                twin.masks[n] = new[n]
        run.agree(step)
    assert born > 24


def test_deep_r_noise_has_the_temperature_of_the_paper() -> None:
    """Without a loss, far from zero, theta diffuses by sqrt(2 eta T) nu at every step, nu normal and independent."""
    lr, temperature, steps = 0.5, 0.02, 60
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(50 * torch.where(p < 0, -1.0, 1.0))
    recipe = replace(methods.deep_r, penalty=RandomWalk(l1=0.0, temperature=temperature))
    task = prunus.Task(loss=lambda m, b: 0.0 * m(b[0]).sum(), train=batches())
    session = prunus.Session(model, recipe, task, prunus.Budget(0.5), steps=steps, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    session.attach(optimizer)
    names, moves = list(session.masks), []
    for _ in range(steps):
        before = {n: model.get_parameter(n).detach().clone() for n in names}
        optimizer.zero_grad()
        (0.0 * model(batches()[0][0]).sum()).backward()
        optimizer.step()
        moves.append(
            torch.cat([(model.get_parameter(n) - before[n])[session.masks[n].reshape(before[n].shape)] for n in names])
        )
    nu = torch.stack(moves).detach() / math.sqrt(2 * lr * temperature)
    assert abs(float(nu.mean())) < 4 / math.sqrt(nu.numel()) and abs(float(nu.std()) - 1) < 0.03
    assert abs(float((nu[1:] * nu[:-1]).mean())) < 4 / math.sqrt(nu.numel())
    assert abs(float((nu[:, 1:] * nu[:, :-1]).mean())) < 4 / math.sqrt(nu.numel())


@pytest.mark.filterwarnings("ignore:layer collapse")
def test_deep_r_activates_any_dormant_connection_with_equal_probability() -> None:
    """Over the whole network, those that just became dormant among them: two of each step's dormant connections."""
    torch.manual_seed(9)
    model, steps = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)).double(), 300
    sign = {n: torch.where(p < 0, -1.0, 1.0).double().flatten() for n, p in model.named_parameters()}
    recipe, task = replace(methods.deep_r, penalty=None), prunus.Task(loss=lambda m, b: m(b).sum())
    session = prunus.Session(model, recipe, task, prunus.Budget(0.5), steps=steps + 1, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session.attach(optimizer)
    chances, drawn = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for step in range(steps):
        kept = {(n, i) for n, m in session.masks.items() for i in m.flatten().nonzero().flatten().tolist()}
        crossing = set()
        for n, p in model.named_parameters():  # one kept weight of each layer, in turn, ends at theta = -1
            own = sorted(i for name, i in kept if name == n)
            p.grad = torch.zeros_like(p)
            if own:
                i = own[step % len(own)]
                p.grad.view(-1)[i] = p.detach().view(-1)[i] + sign[n][i]
                crossing.add((n, i))
        dormant = {(n, i) for n, p in model.named_parameters() for i in range(p.numel())} - (kept - crossing)
        optimizer.step()
        now = {(n, i) for n, m in session.masks.items() for i in m.flatten().nonzero().flatten().tolist()}
        assert kept - crossing <= now and len(now) == len(kept)
        drawn.update(now - (kept - crossing))
        chances.update({one: len(crossing) / len(dormant) for one in dormant})
    assert len(chances) == 10
    for one, expected in chances.items():
        assert abs(drawn[one] - expected) < 4 * math.sqrt(expected), (one, drawn[one], expected)


# DSR (Mostafa & Wang 2019, algorithm 1)


def test_dsr_updates_by_hand() -> None:
    """The K least weights of the network are zeroed; layer l gets K R_l / sum R new ones, at zero, where they are
    not."""
    recipe = replace(methods.dsr, schedule=replace(methods.dsr.schedule, every=4, drop=0.25))
    run = Run(recipe, 0.4, STEPS)
    run.start()
    twin, updates = run.twin, 0
    for step, _ in run:
        if step % 4 == 0 and step < STEPS:
            updates += 1
            size, kept = {n: twin.p[n].abs() for n in twin.names}, total(twin.masks)
            left = best_of_all(size, twin.masks, kept - int(0.25 * kept))
            wanted = hamilton(kept - total(left), {n: float(m.sum()) for n, m in left.items()})
            new = run.masks()
            for n in twin.names:
                assert not (left[n] & ~new[n]).any()
                assert int((new[n] & ~left[n]).sum()) == wanted[n], (step, n)
            twin.mask(left)  # what is dropped is forgotten, even where it comes back at once
            twin.mask(new)
        run.agree(step)
    assert updates == 5


# Sparse momentum (Dettmers & Zettlemoyer 2019, section 3)


def test_sparse_momentum_by_hand() -> None:
    """Nothing is random after the first masks: averages of dense gradients, shares by their mean magnitude over live
    weights, the smallest p_t of every layer go, the largest averages come. Weights dropped and regrown at once keep
    their value."""
    recipe = replace(methods.snfs, schedule=replace(methods.snfs.schedule, every=4))
    run = Run(recipe, 0.3, STEPS)
    run.start()
    twin = run.twin
    smooth = {n: torch.zeros_like(twin.p[n]) for n in twin.names}
    counts = set()
    for step, dense in run:
        smooth = {n: 0.9 * smooth[n] + 0.1 * dense[n] for n in twin.names}
        if step % 4 == 0 and step < STEPS:
            share = 0.25 * (1 + math.cos(math.pi * step / STEPS))
            mean = {n: float(smooth[n].abs()[twin.masks[n]].mean()) for n in twin.names}
            left = {n: without_least(twin.p[n].abs(), twin.masks[n], share) for n in twin.names}
            room = {n: int((~left[n]).sum()) for n in twin.names}
            number = hamilton(total(twin.masks) - total(left), mean)
            assert all(number[n] < room[n] for n in number)
            twin.mask({n: left[n] | best(smooth[n].abs(), ~left[n], number[n]) for n in twin.names})
            counts.add(tuple(int(m.sum()) for m in twin.masks.values()))
        run.agree(step)
    assert len(counts) > 1, "layers change their density"


# ITOP (Liu et al. 2021): the share of weights that were ever active


@pytest.mark.parametrize("name", ["itop", "rigl", "set", "deep_r", "granet", "mest", "nest"])
def test_the_share_ever_explored_is_that_of_the_union_of_all_masks(name: str) -> None:
    """R_s: weights that were active at any step so far, over all; 1 at once for a run that begins dense."""
    found = methods.get(name)
    schedule: Any = found.schedule
    if hasattr(schedule, "every"):
        found = replace(found, schedule=replace(schedule, every=3))
    run = Run(found, 0.25, STEPS)
    ever, told = run.masks(), []
    units = sum(m.numel() for m in ever.values())
    for _ in run:
        ever = {n: ever[n] | m for n, m in run.masks().items()}
        told = [h["explored"] for h in run.session.history]
        assert not told or told[-1] == total(ever) / units
    assert told == sorted(told) and told[-1] > 0.25
    assert name != "granet" or set(told) == {1.0}


def test_the_itop_rate_rises_from_the_density_and_longer_runs_explore_more() -> None:
    rates = []
    for steps in (8, 48):
        run = Run(replace(methods.itop, schedule=PruneAndGrow(every=2, until=1.0, drop=0.5)), 0.2, steps)
        for _ in run:
            pass
        history = run.session.history
        assert history[0]["explored"] == history[0]["density"]
        rates.append(history[-1]["explored"])
    assert 0.2 < rates[0] < rates[1] <= 1.0
    assert rates[1] > 0.6


# PruneFL (Jiang et al. 2022): best g^2 / t first


def conv() -> nn.Module:
    torch.manual_seed(6)
    layers = (nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(*layers).double()


def test_prunefl_by_hand() -> None:
    """t is a constant for sending a weight and one multiply-accumulate for every position at which it is used: 16 and
    4 for the convolutions on 6x6 images, 1 for the linear layer."""
    transfer = 2.0
    recipe = replace(
        methods.prunefl,
        schedule=replace(methods.prunefl.schedule, every=4, drop=0.4),
        start=replace(methods.prunefl.start, transfer=transfer),
        grow=GainPerMac(transfer=transfer),
    )
    model, data = conv(), batches(shape=(1, 6, 6))
    run = Run(recipe, 0.35, STEPS, model=model, data=data)
    twin = run.twin
    cost = dict(zip(twin.names, (transfer + 16, transfer + 4, transfer + 1), strict=True))
    units = sum(m.numel() for m in twin.masks.values())
    first = {n: twin.gradients(data[0])[n].square() / cost[n] for n in twin.names}  # calibration: the first batch
    twin.mask(best_of_all(first, twin.masks, stays(0.35, units)))
    run.agree(0)
    for step, dense in run:
        if step % 4 == 0 and step < STEPS:
            share = 0.2 * (1 + math.cos(math.pi * step / STEPS))
            left = {n: without_least(twin.p[n].abs(), twin.masks[n], share) for n in twin.names}
            gain = {n: dense[n].square() / cost[n] for n in twin.names}
            new = best_of_all(gain, {n: ~m for n, m in left.items()}, total(twin.masks) - total(left))
            twin.mask({n: left[n] | new[n] for n in twin.names})
        run.agree(step)


# Fantastic Weights (Nowak et al. 2023): six criteria to drop by

EPS = 1e-8


def by_sign(w: Tensor, g: Tensor) -> Tensor:
    """The rank among the kept weights of one sign, over their number."""
    out = torch.zeros_like(w)
    for side in (w > 0, w < 0):
        places = sorted(side.flatten().nonzero().flatten().tolist(), key=lambda i: abs(float(w.flatten()[i])))
        for rank, i in enumerate(places, 1):
            out.view(-1)[i] = rank / len(places)
    return out


CRITERIA: dict[str, Any] = {
    "dst_magnitude": lambda w, g: w.abs(),
    "set": by_sign,
    "dst_magnitude_gradient": lambda w, g: w.abs() + g.abs(),
    "dst_snip": lambda w, g: (w * g).abs(),
    "dst_sensitivity": lambda w, g: g.abs() / (w.abs() + EPS),
    "dst_reciprocal": lambda w, g: w.abs() / (g.abs() + EPS),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_each_of_the_six_criteria_drops_its_least(name: str) -> None:
    found = methods.get(name)
    run = Run(replace(found, schedule=PruneAndGrow(every=4, until=1.0, drop=0.5, fresh=True)), 0.4, 16)
    run.start()
    twin = run.twin
    for step, _ in run:
        if step == 4:
            g = twin.gradients(run.data[0])
            share = 0.25 * (1 + math.cos(math.pi * step / 16))
            left = {n: without_least(CRITERIA[name](twin.p[n], g[n]), twin.masks[n], share) for n in twin.names}
            new, w = run.masks(), dict(run.model.named_parameters())
            for n in twin.names:
                alive = new[n] & (w[n] != 0)  # what is regrown begins at zero, so this is what was not dropped
                assert torch.equal(alive, left[n]), n
                assert int(new[n].sum()) == int(twin.masks[n].sum())
            break


def test_the_criteria_choose_different_weights_and_jaccard_says_how_different() -> None:
    model, data = mlp(), batches()
    task = prunus.Task(loss=loss_of, train=data)
    chosen = {}
    for name in CRITERIA:
        scores = prunus.score(model, task, name)
        chosen[name] = {n: ~best(s, torch.ones_like(s, dtype=torch.bool), s.numel() // 2) for n, s in scores.items()}
    for one in CRITERIA:
        for other in CRITERIA:
            both = sum(int((chosen[one][n] & chosen[other][n]).sum()) for n in chosen[one])
            either = sum(int((chosen[one][n] | chosen[other][n]).sum()) for n in chosen[one])
            assert prunus.measure.jaccard(chosen[one], chosen[other]) == both / either
    assert prunus.measure.jaccard(chosen["dst_sensitivity"], chosen["dst_reciprocal"]) < 0.05  # each other's opposite
