"""Dense weights behind masks: every method against a loop that is written from its paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import Hysteresis
from prunus.parts.gate import Dormant, PowerPropagation, SoftBoundary, Straight, TopKast
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual, Marked, OneShot, Readjusted, Surgery, TwoSlopes
from tests.oracle.shadow_nets import (
    NAMES,
    TASK,
    Slow,
    attached,
    best,
    best_each,
    loss_of,
    net,
    slopes,
    step,
    weights_of,
    wide_net,
)


def masked(weights: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    return [w * m for w, m in zip(weights, masks, strict=True)]


def same(model: Any, weights: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(weights_of(model), weights, strict=True))


def test_sr_ste_is_a_loop_with_two_lines_of_backward() -> None:
    """Forward with the two largest of four, backward g + lambda (1 - m) w; ten steps, equal weights."""
    model, decay = wide_net(), 0.3
    slow = Slow(weights_of(model))
    session = attached(replace(methods.sr_ste, gate=methods.sr_ste.gate.__class__(decay=decay)), model, 10, None)

    def two_of_four(w: Tensor) -> Tensor:
        mask = torch.zeros_like(w)
        for r in range(w.shape[0]):
            for b in range(0, w.shape[1], 4):
                order = sorted(range(4), key=lambda i: (-abs(float(w[r, b + i])), i))
                mask[r, [b + i for i in order[:2]]] = 1.0
        return mask

    for _ in range(10):
        masks = [two_of_four(w) for w in slow.w]
        assert step(session) == pytest.approx(float(loss_of(masked(slow.w, masks))), rel=1e-12)
        gradients = slopes(masked(slow.w, masks))
        slow.step([g + decay * (1 - m) * w for g, m, w in zip(gradients, masks, slow.w, strict=True)])
        if session.step < 10:
            assert same(model, slow.w)
    assert same(model, masked(slow.w, [two_of_four(w) for w in slow.w]))
    assert methods.sr_ste.gate.decay == 2e-4


def test_dynamic_pruning_with_feedback_updates_dense_weights_by_masked_gradients() -> None:
    """w <- w - eta dL/dw at (m w), m renewed every p steps by the global magnitude on the cubic path."""
    model, steps, p = net(), 24, 3
    found = replace(methods.dpf, schedule=Marked(of=Gradual(end=0.5, every=p), until=1.0))
    slow, masks = Slow(weights_of(model)), [torch.ones_like(w) for w in weights_of(model)]
    session = attached(found, model, steps)
    for t in range(1, steps + 1):
        assert step(session) == pytest.approx(float(loss_of(masked(slow.w, masks))), rel=1e-12)
        slow.step(slopes(masked(slow.w, masks)))  # with respect to what was computed with: no mask on the gradient
        if t % p == 0:
            masks = best([w.abs() for w in slow.w], 0.6 * (1 - (1 - min(t, 12) / 12) ** 3))
        if t < steps:
            assert same(model, slow.w)
            assert session.marking == (t >= p) and not session.holding
    assert same(model, masked(slow.w, masks))
    assert session.gating is None and session.holding


def test_marks_go_on_to_the_end_at_the_distance_of_the_path() -> None:
    events = Marked(of=Gradual(end=0.5, every=16), until=1.0)(0.1, 200)
    assert [e.step for e in events] == [16, 32, 48, 64, 80, 96, 100, 116, 132, 148, 164, 180, 196, 200]
    assert [e.density for e in events[6:]] == [0.1] * 8 and [e.mark for e in events] == [True] * 13 + [False]
    assert all(e.revive for e in events)
    assert [e.step for e in Marked(of=OneShot(at=0.0), until=0.5)(0.1, 10)] == [0, 5]
    with pytest.raises(SpecError, match="until"):
        Marked(until=1.5)


def test_network_surgery_has_two_thresholds() -> None:
    """A kept weight goes below a, a pruned one comes back above b = 1.1 / 0.9 a, in every layer."""
    model, steps = net(), 12
    found = replace(methods.dynamic_network_surgery, schedule=Surgery(every=1, until=1.0))
    session = attached(found, model, steps)
    slow, masks = Slow(weights_of(model)), [torch.ones_like(w, dtype=torch.bool) for w in weights_of(model)]
    back = 0
    for _ in range(steps):
        # The threshold that leaves as many as are to stay, found by trying all that make a difference.
        for i, w in enumerate(slow.w):
            goal = w.numel() - math.floor(0.6 * w.numel() + 1e-9)
            for b in sorted({*w.abs().flatten().tolist(), *(w.abs() * 11 / 9).flatten().tolist()}, reverse=True):
                a = b * 9 / 11 * (1 - 1e-12)
                kept = torch.where(masks[i], w.abs() > a, w.abs() >= b * (1 - 1e-12))
                if int(kept.sum()) >= goal:
                    break
            back += int((kept & ~masks[i]).sum())
            masks[i] = kept
        assert all(torch.equal(session.masks[n], m) for n, m in zip(NAMES, masks, strict=True))
        assert step(session) == pytest.approx(float(loss_of(masked(slow.w, masks))), rel=1e-12)
        slow.step(slopes(masked(slow.w, masks)))
    assert back > 0 and same(model, masked(slow.w, [session.masks[n] for n in NAMES]))
    kept, out = (
        Hysteresis(bonus=1.5)(torch.tensor([[-2.0], [2.0]]), torch.tensor([[True], [False]])).squeeze(-1).tolist()
    )
    assert (kept, out) == (3.0, 2.0)


def test_surgery_chooses_as_often_as_dice_would() -> None:
    gamma, power, steps = 0.02, 1.3, 400
    chances = [(1 + gamma * t) ** -power for t in range(300)]
    for every in (1, 5):
        events = Surgery(gamma=gamma, power=power, every=every)(0.3, steps)
        assert events[-1] == prunus.Event(300, 0.3, revive=True) and all(e.mark for e in events[:-1])
        for end in (10, 100, 300):
            found = sum(e.step < end for e in events[:-1])
            assert abs(found - sum(chances[:end]) / every) <= 1


@pytest.mark.parametrize("first", [1.0, 0.5])
def test_parp_zeroes_and_trains_everything(first: float) -> None:
    model, steps, n = net(), 12, 3
    found = replace(methods.parp, schedule=Readjusted(every=n, first=first))
    slow = Slow(weights_of(model))
    session = attached(found, model, steps)
    for t in range(steps):
        if t % n == 0:
            share = first + (1 - first) * t / steps
            slow.w = masked(slow.w, best_each([w.abs() for w in slow.w], 0.6 * share))
        assert same(model, slow.w)
        assert step(session) == pytest.approx(float(loss_of(slow.w)), rel=1e-12)
        slow.step(slopes(slow.w))
    assert same(model, masked(slow.w, best_each([w.abs() for w in slow.w], 0.6)))
    assert session.holding


def test_a_threshold_rises_on_two_slopes() -> None:
    """The paper's recurrence, q being what the final density would leave at that moment."""
    model, steps, f = net(), 40, 2
    schedule = TwoSlopes(begin=0.1, ramp=0.4, end=0.8, every=f)
    first, bend, last = 4, 16, 32
    slow, masks = Slow(weights_of(model)), [torch.ones_like(w) for w in weights_of(model)]
    session = attached(replace(methods.narang, schedule=schedule), model, steps)
    spared = 0
    for t in range(1, steps + 1):
        assert step(session) == pytest.approx(float(loss_of(slow.w)), rel=1e-12)
        slow.step(masked(slopes(slow.w), masks))
        slow.w = masked(slow.w, masks)
        if first < t <= last and (t - first) % f == 0:
            for i, w in enumerate(slow.w):
                q = w.abs().flatten().sort(descending=True).values[w.numel() - math.floor(0.6 * w.numel() + 1e-9) - 1]
                theta = 2 * q * f / (2 * (bend - first) + 3 * (last - bend))
                phi = 1.5 * theta
                epsilon = (theta * (min(t, bend) - first) + phi * max(0, t - bend)) / f
                masks[i] = masks[i] * (w.abs() >= epsilon * (1 - 1e-12))
                spared += t < last and int(masks[i].sum()) > w.numel() * 0.4 + 1
            slow.w = masked(slow.w, masks)
        assert same(model, slow.w)
    assert spared > 8 and [int(m.sum()) for m in masks] == [20, 10]


def test_top_kast_learns_in_a_wider_set_than_it_computes_with() -> None:
    """A the top D by magnitude, B the top D + M; gradient on B only, L2 on A and, over D, on B - A."""
    model, steps, every, strength = net(), 9, 2, 0.1
    found = replace(methods.top_kast, gate=TopKast(every=every, extra=0.25, strength=strength))
    slow = Slow(weights_of(model))
    session = attached(found, model, steps)
    for t in range(steps):
        if t % every == 0:
            a = [m.double() for m in best_each([w.abs() for w in slow.w], 0.6)]
            b = [m.double() for m in best_each([w.abs() for w in slow.w], 0.35)]
        assert step(session) == pytest.approx(float(loss_of(masked(slow.w, a))), rel=1e-12)
        pulls = [strength * w * (x + (y - x) / x.mean()) for w, x, y in zip(slow.w, a, b, strict=True)]
        slow.step([g * y + p for g, y, p in zip(slopes(masked(slow.w, a)), b, pulls, strict=True)])
        if t < steps - 1:
            assert same(model, slow.w)
    assert same(model, masked(slow.w, best_each([w.abs() for w in slow.w], 0.6)))


def test_what_is_dormant_waits_unchanged() -> None:
    model = net()
    found = replace(methods.dpf, gate=Dormant(), schedule=Marked(of=OneShot(at=0.0), until=1.0))
    session = attached(found, model, 4)
    session.optimizers[0].param_groups[0]["weight_decay"] = 0.0
    before, masks = weights_of(model), [session.masks[n] for n in NAMES]
    for _ in range(3):
        step(session)
    now = weights_of(model)
    assert all(
        torch.equal(a[~m], b[~m]) and not torch.equal(a[m], b[m]) for a, b, m in zip(now, before, masks, strict=True)
    )


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_powerpropagation_trains_the_signed_root(alpha: float) -> None:
    model, steps = net(), 6
    v = [(w.sign() * w.abs() ** (1 / alpha)) for w in weights_of(model)]
    before, slow = weights_of(model), Slow(v)
    session = attached(replace(methods.powerprop, gate=PowerPropagation(alpha=alpha)), model, steps)
    assert all(torch.allclose(model[i].weight, w, rtol=1e-12) for i, w in zip((0, 2), before, strict=True))
    for _ in range(steps):
        used = [x.sign() * x.abs() ** alpha for x in slow.w]
        assert step(session) == pytest.approx(float(loss_of(used)), rel=1e-10)
        slow.step([alpha * x.abs() ** (alpha - 1) * g for x, g in zip(slow.w, slopes(used), strict=True)])
    used = [x.sign() * x.abs() ** alpha for x in slow.w]
    assert same(model, masked(used, best([w.abs() for w in used], 0.6)))


def test_a_weight_that_is_zero_has_a_finite_slope_of_its_power() -> None:
    w = torch.tensor([0.0, 2.0], requires_grad=True)
    PowerPropagation(alpha=1.5).weight(w, torch.ones(2)).sum().backward()
    assert w.grad is not None and w.grad.tolist() == pytest.approx([0.0, 1.5 * math.sqrt(2)])


def test_parameter_free_masks_are_a_softmax_at_the_boundary() -> None:
    """m = softmax([t^2, w^2] / tau), t half way between the least kept and the largest pruned, differentiated by w."""
    model, steps, tau = net(), 8, 0.02
    found = replace(methods.pdp, gate=SoftBoundary(tau=tau), schedule=OneShot(at=1.0), allocate=methods.parp.allocate)
    slow = Slow(weights_of(model))
    session = attached(found, model, steps)

    def soft(w: Tensor) -> Tensor:
        order = w.detach().abs().flatten().sort(descending=True).values
        k = w.numel() - math.floor(0.6 * w.numel() + 1e-9)
        t = (order[k - 1] + order[k]) / 2
        pair = torch.stack([t.square().expand_as(w), w.square()]) / tau
        return w * pair.softmax(0)[1]

    for _ in range(steps):
        w = [x.detach().clone().requires_grad_() for x in slow.w]
        loss = loss_of([soft(x) for x in w])
        assert step(session) == pytest.approx(float(loss.detach()), rel=1e-11)
        slow.step(list(torch.autograd.grad(loss, w)))
    final = best_each([x.abs() for x in slow.w], 0.6)
    assert same(model, masked([soft(x) for x in slow.w], final))
    whole = SoftBoundary().weight(torch.ones(3), torch.ones(3))
    assert whole.tolist() == [1.0] * 3 and SoftBoundary().weight(torch.ones(3), torch.zeros(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Straight, {"decay": -1.0}),
        (TopKast, {"extra": 2.0}),
        (TopKast, {"decay": 0.1}),
        (PowerPropagation, {"alpha": 0.5}),
        (SoftBoundary, {"tau": 0.0}),
        (Hysteresis, {"bonus": 0.5}),
        (Surgery, {"gamma": 0.0}),
        (Readjusted, {"first": 0.0}),
        (TwoSlopes, {"ramp": 0.9}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)


@pytest.mark.parametrize("name", ["powerprop", "pdp", "soft_threshold_str", "dst_thresholds"])
def test_gates_on_single_weights_refuse_channels(name: str) -> None:
    found = replace(methods.get(name), granularity=Channel())
    with pytest.raises(SpecError, match="single weights"):
        prunus.prune(net(), TASK, found, sparsity=0.4, steps=2)
