"""Networks whose density moves while they train: GraNet, CGP, NeST, MEST and AC/DC by hand; and every method of dynamic
sparse training counted after every step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus
from prunus import Recipe, methods
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.parts.allocation import Begun, Uniform
from prunus.parts.criteria import Random
from prunus.parts.schedule import (
    Alternating,
    GradualPruneAndGrow,
    GrowThenPrune,
    PruneAndGrow,
    Rewiring,
    SoftBound,
)
from tests.oracle.sparse_runs import Run, batches, best, best_of_all, loss_of, mlp, stays, total, without_least

STEPS, DENSITY = 24, 0.3


def test_granet_by_hand() -> None:
    """At every update: across the network to s_t of the cubic path, then every layer drops r_t and regrows as much by
    the dense gradient of the step. Nothing is random."""
    run = Run(replace(methods.granet, schedule=GradualPruneAndGrow(every=4)), DENSITY, STEPS)
    twin, end, paths = run.twin, 16, []
    units = sum(m.numel() for m in twin.masks.values())
    for step, dense in run:
        if step % 4 == 0 and step < STEPS:
            size = {n: twin.p[n].abs() for n in twin.names}
            if step <= end:
                sparsity = (1 - DENSITY) * (1 - (1 - step / end) ** 3)
                paths.append(sparsity)
                twin.mask(best_of_all(size, twin.masks, stays(1 - sparsity, units)))
            share = 0.25 * (1 + math.cos(math.pi * step / STEPS))
            left = {n: without_least(size[n], twin.masks[n], share) for n in twin.names}
            gone = {n: int(twin.masks[n].sum() - left[n].sum()) for n in twin.names}
            twin.mask({n: left[n] | best(dense[n].abs(), ~left[n], gone[n]) for n in twin.names})
        run.agree(step)
    assert len(paths) == 4 and paths[-1] == pytest.approx(1 - DENSITY)
    assert total(twin.masks) == stays(DENSITY, units)


def test_granet_from_half_a_network() -> None:
    """Half of the weights at random, dealt out by ERK; what is pruned from then on is pruned across the network."""
    schedule = GradualPruneAndGrow(initial=0.5, every=4, drop=1e-9)
    found = replace(methods.granet, start=Random(), allocate=Begun(), schedule=schedule)
    model = mlp()
    session = prunus.Session(model, found, prunus.Task(loss=loss_of), prunus.Budget(DENSITY), steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    session.attach(optimizer)
    units = sum(m.numel() for m in session.masks.values())
    dealt = prunus.prune(mlp(), None, methods.erk_random, sparsity=0.5, seed=5).unit_masks
    assert {n: int(m.sum()) for n, m in session.masks.items()} == {n: int(m.sum()) for n, m in dealt.items()}
    assert total(session.masks) == stays(0.5, units)
    before = dict(session.masks)
    for batch in batches():
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    weights = dict(model.named_parameters())
    dropped = torch.cat([weights[n].detach().abs().reshape(m.shape)[before[n] & ~m] for n, m in session.masks.items()])
    assert total(session.masks) == stays(DENSITY + (0.5 - DENSITY) * (1 - 4 / 16) ** 3, units)
    assert all(not (m & ~before[n]).any() for n, m in session.masks.items()) and not dropped.any()
    shares = {n: int(m.sum()) / int(before[n].sum()) for n, m in session.masks.items()}
    assert len({round(v, 2) for v in shares.values()}) > 1  # not the same share of every layer
    session.detach()


def test_cgp_by_hand() -> None:
    """The same, layer by layer."""
    run = Run(replace(methods.cgp, schedule=GradualPruneAndGrow(every=4, drop=0.1, end=0.5)), DENSITY, STEPS)
    twin = run.twin
    for step, dense in run:
        if step % 3 == 0 and step < STEPS:  # a quarter of the twelve steps in which it prunes
            if step <= 12:
                density = DENSITY + (1 - DENSITY) * (1 - step / 12) ** 3
                size = {n: stays(density, twin.p[n].numel()) for n in twin.names}
                twin.mask({n: best(twin.p[n].abs(), twin.masks[n], size[n]) for n in twin.names})
            share = 0.05 * (1 + math.cos(math.pi * step / STEPS))
            left = {n: without_least(twin.p[n].abs(), twin.masks[n], share) for n in twin.names}
            gone = {n: int(twin.masks[n].sum() - left[n].sum()) for n in twin.names}
            twin.mask({n: left[n] | best(dense[n].abs(), ~left[n], gone[n]) for n in twin.names})
        run.agree(step)


def test_nest_by_hand() -> None:
    """From the seed the connections of largest |dL/dw| are added, at zero, layer by layer; then the smallest go."""
    schedule = GrowThenPrune(seed=0.5, peak=2.0, grown=0.5, pruned=1.0, rounds=3)
    run = Run(replace(methods.nest, schedule=schedule), DENSITY, STEPS)
    run.start()
    twin = run.twin
    up = {4: 0.3, 8: 0.45, 12: 0.6}
    down = {16: 0.5, 20: 0.4, 24: 0.3}
    for step, dense in run:
        for n in twin.names:
            units = twin.p[n].numel()
            if step in up:
                more = stays(up[step], units) - int(twin.masks[n].sum())
                assert more > 0
                twin.mask({n: twin.masks[n] | best(dense[n].abs(), ~twin.masks[n], more)})
            if step in down:
                twin.mask({n: best(twin.p[n].abs(), twin.masks[n], stays(down[step], units))})
        run.agree(step)


def test_mest_by_hand() -> None:
    """Every update prunes each layer to the budget by |w| + lambda |dL/dw| and grows it to the soft bound at random,
    at zero; the bound falls to the budget."""
    schedule = SoftBound(every=3, factors=(1.5, 1.25), until=(0.5, 0.75))
    run = Run(replace(methods.mest, schedule=schedule), DENSITY, STEPS)
    run.start()
    twin, seen = run.twin, []
    assert all(int(m.sum()) == stays(1.5 * DENSITY, m.numel()) for m in twin.masks.values())
    for step, _ in run:
        if step % 3 == 0 and step <= 18:
            g = twin.gradients(run.data[0])  # calibration: the first batch, at the weights after the step
            worth = {n: twin.p[n].abs() + 0.01 * g[n].abs() for n in twin.names}
            twin.mask({n: best(worth[n], twin.masks[n], stays(DENSITY, worth[n].numel())) for n in twin.names})
            bound = DENSITY * (1.5 if step < 12 else 1.25 if step < 18 else 1.0)
            new = run.masks()
            for n in twin.names:
                assert not (twin.masks[n] & ~new[n]).any()
                assert int(new[n].sum()) == stays(bound, new[n].numel()), (step, n)
                seen.append(int((new[n] & ~twin.masks[n]).sum()))
                twin.masks[n] = new[n]
        run.agree(step)
    assert min(seen[:9]) > 0 and seen[-3:] == [0, 0, 0]


def test_ac_dc_by_hand() -> None:
    """Dense and sparse phases in turn; every compression ranks all weights of the network, what comes back begins at
    zero, with no momentum."""
    run = Run(
        replace(methods.ac_dc, schedule=Alternating(warmup=1 / 6, sparse=1 / 6, dense=1 / 6, last=1 / 6)),
        DENSITY,
        STEPS,
    )
    twin = run.twin
    units = sum(m.numel() for m in twin.masks.values())
    everything = {n: torch.ones_like(m) for n, m in twin.masks.items()}
    back = False
    for step, _ in run:
        if step in (4, 12, 20):
            before = dict(twin.masks)
            twin.mask(best_of_all({n: twin.p[n].abs() for n in twin.names}, everything, stays(DENSITY, units)))
            back = back or step == 4 or bool((before["0.weight"] != twin.masks["0.weight"]).any())
        if step in (8, 16):
            twin.mask(everything)
        run.agree(step)
    assert [e.step for e in run.session.events] == [4, 8, 12, 16, 20]
    assert total(twin.masks) == stays(DENSITY, units)


# Counting


def quick(found: Recipe) -> Recipe:
    """Updates every three steps, and large enough for a tiny network."""
    schedule: Any = found.schedule
    changes = {"every": 3, "drop": 0.3}
    return replace(found, schedule=replace(schedule, **{k: v for k, v in changes.items() if hasattr(schedule, k)}))


NAMES = [
    n
    for n in methods.names()
    if methods.get(n).grow is not None or isinstance(methods.get(n).schedule, Alternating | Rewiring)
]


def expected(run: Run, density: float, names: list[str]) -> int:
    sizes = [run.twin.p[n].numel() for n in names]
    if isinstance(run.session.recipe.allocate, Uniform):
        return sum(stays(density, s) for s in sizes)
    return stays(density, sum(sizes))


@pytest.mark.parametrize("name", NAMES)
def test_density_is_met_to_the_unit_after_every_step(name: str) -> None:
    """Whatever is dropped and grown: as many weights as the last event asked for, zeros outside, no memory of them."""
    recipe = quick(methods.get(name))
    if methods.get(name).structure != "unstructured":
        pytest.skip("counted by the contract suite")
    run = Run(recipe, DENSITY, STEPS)
    names, moved = run.twin.names, False
    density = run.session.events[0].density if run.session.events[0].step == 0 else 1.0
    before = run.masks()
    for step in range(STEPS + 1):
        if step:
            run.optimizer.zero_grad()
            batch = run.data[step % len(run.data)]
            torch.nn.functional.cross_entropy(run.model(batch[0]), batch[1]).backward()
            run.optimizer.step()
        fired = [e for e in run.session.events if e.step == step]
        density = fired[-1].density if fired else density
        masks = run.masks()
        assert total(masks) == expected(run, density, names), step
        for n in names:
            p: Tensor = run.model.get_parameter(n)
            assert not p[~masks[n]].any()
            momentum = run.optimizer.state.get(p, {}).get("momentum_buffer")
            assert momentum is None or not momentum[~masks[n]].any()
        moved = moved or any(bool((masks[n] & ~before[n]).any()) for n in names)
        before = masks
    assert moved and run.session.result().sparsity == pytest.approx(1 - DENSITY, abs=0.02)


# Schedules


def test_the_official_phases_of_ac_dc() -> None:
    """CIFAR-100, 200 epochs: pruned at 10, 50, 90, 130 and 170, restored at 30, 70, 110 and 150."""
    events = Alternating()(0.1, 200)
    assert [e.step for e in events if e.density == 0.1] == [10, 50, 90, 130, 170]
    assert [e.step for e in events if e.density == 1.0] == [30, 70, 110, 150]


def test_the_official_bounds_of_mest() -> None:
    """160 epochs at 90 % sparsity, updates every 5: grown to 85 % until epoch 90, to 87.5 % until 120, to 90 % then."""
    events = SoftBound(every=5)(0.1, 160)
    grown = {e.step: e.density for e in events if e.grow}
    assert all(d == pytest.approx(0.15 if t < 90 else 0.125) for t, d in grown.items())
    assert list(grown) == list(range(5, 120, 5)) and events[-1] == Event(120, 0.1)


def test_rewiring_is_at_every_step_but_the_last() -> None:
    assert [e.step for e in Rewiring()(0.1, 5)] == [0, 1, 2, 3, 4]
    assert [e.step for e in Rewiring()(0.1, 0)] == [0]


SCHEDULES = [
    Rewiring(),
    Rewiring(every=3, until=0.5),
    GradualPruneAndGrow(),
    GradualPruneAndGrow(initial=0.5, end=1.0, every=3),
    GrowThenPrune(),
    GrowThenPrune(seed=1.0, peak=1.0, grown=1.0, pruned=1.0),
    SoftBound(),
    SoftBound(every=2, factors=(3.0,), until=(1.0,)),
    Alternating(),
    Alternating(warmup=0.0, sparse=0.01, dense=0.01, last=0.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_events_of_any_run_fit_into_it_and_end_at_the_budget(schedule: Any) -> None:
    for steps in (*range(14), 50, 997):
        for density in (0.001, 0.3, 0.9, 1.0):
            events = schedule(density, steps)
            times = [e.step for e in events]
            assert times == sorted(times) and times[0] >= 0 and times[-1] <= steps
            assert events[-1].density == density and not events[-1].grow and events[-1].hold
            assert all(0 < e.density <= 1 for e in events)
            assert all(e.step < steps for e in events if e.regrow or e.grow), "grown at the end, a unit stays zero"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Rewiring, {"every": 0}),
        (Rewiring, {"until": 1.5}),
        (GradualPruneAndGrow, {"initial": 0.0}),
        (GradualPruneAndGrow, {"drop": 1.0}),
        (GrowThenPrune, {"seed": 3.0}),
        (GrowThenPrune, {"grown": 0.9}),
        (SoftBound, {"factors": (0.5, 1.0)}),
        (SoftBound, {"until": (0.5,)}),
        (SoftBound, {"until": (0.8, 0.5)}),
        (Alternating, {"sparse": 0.0}),
        (Alternating, {"warmup": 0.9, "last": 0.2}),
        (PruneAndGrow, {"drop": 1.0}),
    ],
)
def test_schedules_refuse_what_makes_no_sense(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        kind(**wrong)


def test_a_schedule_that_grows_wants_a_growth() -> None:
    with pytest.raises(SpecError, match="grow slot"):
        replace(methods.nest, grow=None)
    assert replace(methods.ac_dc, start=Random()).pace == "gradual"
