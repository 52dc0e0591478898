"""Learned thresholds and densities: every method against a loop that is written from its paper or official code."""

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
from prunus.core.gate import Moment
from prunus.parts.criteria import AboveThreshold
from prunus.parts.gate import LearnedDensity, MaskingThreshold, SoftThresholding
from prunus.parts.schedule import OneShot
from tests.oracle.shadow_nets import NAMES, Slow, attached, best, loss_of, net, slopes, step, weights_of

NOW = Moment(0.0, 0.4)


def same(model: Any, weights: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(weights_of(model), weights, strict=True))


def test_soft_thresholds_are_trained_with_the_weights() -> None:
    """sign(w) relu(|w| - sigmoid(s)) by autograd; SGD with momentum, decay and a cosine rate on s."""
    model, steps = net(), 8
    gate = SoftThresholding(start=-3.0, decay=0.02, lr=0.5, momentum=0.8)
    found = replace(methods.soft_threshold_str, gate=gate, schedule=OneShot(at=1.0))
    session = attached(found, model, steps)
    slow = Slow(weights_of(model))
    s = [torch.full((1, 1), -3.0, dtype=torch.float64) for _ in slow.w]
    v = [torch.zeros_like(t) for t in s]

    def soft(w: Tensor, t: Tensor) -> Tensor:
        return torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(t))

    for k in range(steps):
        w, t = [x.clone().requires_grad_() for x in slow.w], [x.clone().requires_grad_() for x in s]
        loss = loss_of([soft(a, b) for a, b in zip(w, t, strict=True)])
        gradients = torch.autograd.grad(loss, [*w, *t])
        assert step(session) == pytest.approx(float(loss.detach()), rel=1e-11)
        slow.step(list(gradients[:2]))
        for i, g in enumerate(gradients[2:]):
            g = g + 0.02 * s[i]
            v[i] = g if k == 0 else 0.8 * v[i] + g
            s[i] = s[i] - 0.5 * 0.5 * (1 + math.cos(math.pi * k / steps)) * v[i]
    clear = [w.abs() - torch.sigmoid(t) for w, t in zip(slow.w, s, strict=True)]
    masks = best(clear, 0.6)
    assert all(torch.equal(session.masks[n], m) for n, m in zip(NAMES, masks, strict=True))
    assert same(model, [soft(w, t) * m for w, t, m in zip(slow.w, s, masks, strict=True)])
    natural = sum(int((c > 0).sum()) for c in clear) / 72
    assert session.history[-1]["open"] == pytest.approx(natural) and natural != 0.4
    assert session.history[-1]["density"] == pytest.approx(29 / 72)


def tail(x: Tensor) -> Tensor:
    """The long-tailed derivative of the step, entry by entry."""
    out = torch.zeros_like(x)
    for i, value in enumerate(x.flatten().tolist()):
        far = abs(value)
        out.view(-1)[i] = 2 - 4 * far if far <= 0.4 else 0.4 if far <= 1 else 0.0
    return out


def test_masking_thresholds_get_long_tailed_gradients() -> None:
    """w 1[|w| > t]: to w by the weight and by the mask, to t by the mask, and -alpha exp(-t) of the penalty."""
    model, steps, alpha = net(), 8, 0.02
    gate = MaskingThreshold(strength=alpha, lr=0.3, momentum=0.5, least=0.0)
    found = replace(methods.dst_thresholds, gate=gate, schedule=OneShot(at=1.0))
    session = attached(found, model, steps)
    slow = Slow(weights_of(model))
    t = [torch.zeros(len(w), 1, dtype=torch.float64) for w in slow.w]
    v = [torch.zeros_like(x) for x in t]
    for k in range(steps):
        masks = [(w.abs() - x > 0).double() for w, x in zip(slow.w, t, strict=True)]
        used = [w * m for w, m in zip(slow.w, masks, strict=True)]
        assert step(session) == pytest.approx(float(loss_of(used)), rel=1e-11)
        g = slopes(used)
        through = [a * w * tail(w.abs() - x) for a, w, x in zip(g, slow.w, t, strict=True)]
        slow.step([a * m + b * w.sign() for a, m, b, w in zip(g, masks, through, slow.w, strict=True)])
        for i in range(2):
            down = -through[i].sum(1, keepdim=True) - alpha * torch.exp(-t[i])
            v[i] = down if k == 0 else 0.5 * v[i] + down
            t[i] = t[i] - 0.3 * v[i]
    assert any((m == 0).any() for m in masks)
    clear = [w.abs() - x for w, x in zip(slow.w, t, strict=True)]
    keep = best(clear, 0.6)
    assert all(torch.equal(session.masks[n], m) for n, m in zip(NAMES, keep, strict=True))
    assert session.history[-1]["open"] == pytest.approx(sum(int((c > 0).sum()) for c in clear) / 72)
    assert same(model, [w * (c > 0) * m for w, c, m in zip(slow.w, clear, keep, strict=True)])


def test_a_layer_that_thresholds_would_empty_starts_anew() -> None:
    """At most 1 % left: all thresholds of the layer back to zero; the others go on."""
    model = net()
    found = replace(methods.dst_thresholds, gate=MaskingThreshold(lr=1e-6, least=0.01))
    session = attached(found, model, 8)
    with torch.no_grad():
        session.gating.thetas["0.weight"].fill_(50.0)
        session.gating.thetas["2.weight"].fill_(0.1)
    step(session)
    assert session.gating.thetas["0.weight"].eq(0).all() and session.gating.thetas["2.weight"].gt(0.05).all()
    gate, w = MaskingThreshold(least=0.25), torch.tensor([[1.0, 0.1], [0.1, 0.1]]).unsqueeze(-1)
    for t, anew in ((0.5, True), (0.05, False)):
        theta = torch.full((2, 1), t)
        found_theta = gate.restarted(theta, replace(NOW, w=w))
        assert bool((found_theta == 0).all()) == anew


def test_what_clears_the_threshold_is_what_stays() -> None:
    w, gate = torch.tensor([[0.5], [-0.2], [0.1]]), torch.tensor([[-0.15], [-0.15], [-0.15]])
    assert AboveThreshold()(w, gate).squeeze(-1).tolist() == pytest.approx([0.35, 0.05, -0.05])


def test_densities_are_learned_by_the_official_rule() -> None:
    """Top ceil(sigmoid(v) n) of the scores; dL/dS = dL/dm, dL/dv = its sum over the kept; the penalty as coded."""
    model, steps, target = net(), 10, 0.4
    gate = LearnedDensity(start=1.0, limit=300.0, floor=20.0, rest=5.0, lr=0.2)
    session = attached(replace(methods.leap, gate=gate, schedule=OneShot(at=1.0)), model, steps)
    slow, n = Slow(weights_of(model)), [48, 24]
    s = [torch.zeros_like(w).requires_grad_() for w in slow.w]
    v = [torch.tensor(1.0, dtype=torch.float64).requires_grad_() for _ in slow.w]
    adam, strengths = torch.optim.Adam([*s, *v], lr=0.2), set()
    for _ in range(steps):
        masks = []
        for scores, logit in zip(s, v, strict=True):
            k = math.ceil(float(torch.sigmoid(logit.detach())) * scores.numel())
            order = sorted(range(scores.numel()), key=lambda i: (-float(scores.detach().view(-1)[i]), i))
            masks.append(torch.zeros(scores.numel(), dtype=torch.float64))
            masks[-1][order[:k]] = 1
            masks[-1] = masks[-1].reshape(scores.shape)
        used = [w * m for w, m in zip(slow.w, masks, strict=True)]
        assert step(session) == pytest.approx(float(loss_of(used)), rel=1e-11)
        g = slopes(used)
        remain = sum(k * torch.sigmoid(logit) for k, logit in zip(n, v, strict=True)) / 72
        excess = torch.square(remain - target) if remain > target else remain * 0.0
        strength = max(300.0 * excess.item() / (1 - target) / (1 - target), 20.0) if excess.item() >= 3e-4 else 5.0
        strengths.add(round(strength, 2))
        adam.zero_grad()
        (strength * excess).backward()
        for i in range(2):
            s[i].grad = g[i] * slow.w[i]
            down = (g[i] * slow.w[i] * masks[i]).sum()
            v[i].grad = down if v[i].grad is None else v[i].grad + down
        slow.step([a * m for a, m in zip(g, masks, strict=True)])
        adam.step()
    assert len(strengths) > 2
    learned = [math.ceil(float(torch.sigmoid(x.detach())) * k) for x, k in zip(v, n, strict=True)]
    assert session.history[-1]["open"] == pytest.approx(sum(learned) / 72)
    ranks = []
    for scores in s:
        order = scores.detach().flatten().argsort(descending=True, stable=True).tolist()
        ranks.append(
            torch.tensor([order.index(i) for i in range(len(order))], dtype=torch.float64).reshape(scores.shape)
        )
    worth = [torch.sigmoid(x.detach()) - r / k for x, r, k in zip(v, ranks, n, strict=True)]
    keep = best(worth, 1 - target)
    assert all(torch.equal(session.masks[name], m) for name, m in zip(NAMES, keep, strict=True))


def test_learned_densities_that_meet_the_budget_are_kept_as_they_are() -> None:
    gate = LearnedDensity()
    torch.manual_seed(0)
    shares = {"a": 0.25, "b": 0.75}
    thetas = {}
    for name, share in shares.items():
        scores = torch.randn(4, 5)
        logit = torch.zeros(4, 1)
        logit[0, 0] = math.log((share - 0.01) / (1.01 - share))  # ceil(4.8) and ceil(14.8) of 20
        thetas[name] = torch.cat([scores, logit], 1)
    worth = {n: gate.worth(t) for n, t in thetas.items()}
    keep = best(list(worth.values()), 0.5)
    for mask, (name, theta) in zip(keep, thetas.items(), strict=True):
        assert int(mask.sum()) == round(20 * shares[name])
        assert torch.equal(mask, gate.open(theta, NOW))
    theta = torch.zeros(2, 3)  # equal scores: the earlier stay
    assert gate.open(theta, NOW).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SoftThresholding, {"decay": -1.0}),
        (MaskingThreshold, {"least": 1.0}),
        (MaskingThreshold, {"strength": -1.0}),
        (LearnedDensity, {"lr": 0.0}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)


def test_the_budget_is_met_whatever_the_thresholds_say() -> None:
    """Thresholds that open nothing, or everything, change which stay and what they weigh, not how many."""
    for start, density in ((5.0, 0.5), (-30.0, 0.25)):
        found = replace(
            methods.soft_threshold_str, gate=SoftThresholding(start=start, lr=1e-9), schedule=OneShot(at=1.0)
        )
        session = attached(found, net(), 2, density)
        step(session), step(session)
        assert sum(int(m.sum()) for m in session.masks.values()) == 72 * density
        assert session.history[-1]["open"] == (0.0 if start > 0 else 1.0)
        assert isinstance(session.result(), prunus.Result)
