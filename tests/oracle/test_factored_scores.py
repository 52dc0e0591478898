"""Parameter-efficient sparse training: the official loop with six factors per layer, by autograd over all of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.gate import FactoredMovement
from prunus.parts.granularity import Channel
from prunus.parts.schedule import MarkGradually
from tests.oracle.shadow_nets import NAMES, TASK, attached, best_each, loss_of, net, step, weights_of

RANK, SCORES, SCALE, LOW, LINES, LR = 2, 3, 0.7, 1.5, 0.4, 0.05
GATE = FactoredMovement(rank=RANK, score_rank=SCORES, scale=SCALE, low=LOW, lines=LINES, lr=LR)


class Layer:
    """W and the factors U, T, A, B, R and C of one weight."""

    def __init__(self, w: Tensor, a: Tensor, u: Tensor) -> None:
        out, columns = w.shape
        self.w = w
        self.a, self.u = a.clone().requires_grad_(), u.clone().requires_grad_()
        zeros = [(SCORES, columns), (out,), (columns,), (RANK, columns)]
        self.b, self.r, self.c, self.t = (torch.zeros(s, dtype=w.dtype, requires_grad=True) for s in zeros)

    def trained(self) -> list[Tensor]:
        return [self.a, self.b, self.r, self.c, self.u, self.t]

    def moved(self) -> Tensor:
        return self.w + SCALE * self.u @ self.t

    def scores(self) -> Tensor:
        return self.moved().abs() + LOW * self.a @ self.b + LINES * (self.r.unsqueeze(1) + self.c.unsqueeze(0))

    def used(self, sparsity: float) -> Tensor:
        """A hard mask forward; backward what comes to the mask goes on to the scores."""
        scores = self.scores()
        (keep,) = best_each([scores.detach()], sparsity)
        return (keep.double() + scores - scores.detach()) * self.moved()


def sparsity_at(t: int, first: int, last: int, final: float) -> float:
    """The path's next point: the step is made with what the next event chooses."""
    far = (t + 1 - first) / (last - first)
    return 0.0 if t < first else final if far >= 1 else final * (1 - (1 - far) ** 3)


def factors(session: Any) -> list[Layer]:
    """The layers with the draws that the session began with."""
    found = []
    for name, w in zip(NAMES, weights_of(session.model), strict=True):
        theta = session.gating.thetas[name].detach()
        assert theta.shape == (sum(w.shape), SCORES + 1 + RANK)
        assert not theta[len(w) :].any() and not theta[: len(w), SCORES].any()  # B, C, T and R begin at zero
        found.append(Layer(w, theta[: len(w), :SCORES], theta[: len(w), SCORES + 1 :]))
    return found


def test_only_factors_are_trained_and_they_decide_what_stays() -> None:
    steps, first, last = 12, 2, 8
    model = net()
    schedule = MarkGradually(begin=first / steps, end=last / steps, every=1)
    session = attached(replace(methods.pst, gate=GATE, schedule=schedule), model, steps)
    layers = factors(session)
    before = weights_of(model)
    adam = torch.optim.Adam([p for one in layers for p in one.trained()], lr=LR, eps=1e-6)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: 1 - t / steps)
    for t in range(steps):
        loss = loss_of([one.used(sparsity_at(t, first, last, 0.6)) for one in layers])
        assert step(session) == pytest.approx(float(loss.detach()), rel=1e-9)
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
        if t < steps - 1:
            assert all(torch.equal(a, b) for a, b in zip(weights_of(model), before, strict=True))
    masks = best_each([one.scores().detach() for one in layers], 0.6)
    assert all(torch.equal(session.masks[n], m) for n, m in zip(NAMES, masks, strict=True))
    for now, one, mask in zip(weights_of(model), layers, masks, strict=True):
        torch.testing.assert_close(now, one.moved().detach() * mask, rtol=1e-8, atol=1e-11)
    by_size = best_each([w.abs() for w in before], 0.6)
    assert any(not torch.equal(a, b) for a, b in zip(masks, by_size, strict=True))
    assert session.gating is None


def test_the_first_ranking_is_by_magnitude_whatever_is_drawn() -> None:
    for seed in (0, 1):
        result = prunus.prune(net(), TASK, methods.pst, sparsity=0.5, seed=seed)
        expected = best_each([w.abs() for w in weights_of(net())], 0.5)
        assert all(torch.equal(result.masks[n], m) for n, m in zip(NAMES, expected, strict=True))
    scores = prunus.score(net(), TASK, methods.pst)
    assert all(torch.equal(scores[n], w.abs()) for n, w in zip(NAMES, weights_of(net()), strict=True))


def test_draws_are_normal_and_ranks_no_larger_than_half_of_the_inputs() -> None:
    gate = FactoredMovement()
    u = torch.rand(500, 40, 1, generator=torch.Generator().manual_seed(0))
    theta = gate(torch.ones(500, 40, 1, dtype=torch.float64), u)
    drawn = torch.cat([theta[:500, :8], theta[:500, 9:]], 1)
    assert theta.shape == (540, 17) and not theta[500:].any()
    assert abs(float(drawn.mean())) < 0.05 and abs(float(drawn.std()) - 1) < 0.05
    assert abs(float(torch.corrcoef(drawn.T).triu(1).abs().max())) < 0.2
    assert gate(torch.ones(5, 3, 1), torch.rand(5, 3, 1)).shape == (8, 3)  # one and one
    assert gate(torch.ones(5, 1, 1), torch.rand(5, 1, 1)).shape == (6, 1)  # rows and columns alone


def test_a_state_goes_on_and_what_is_no_matrix_is_refused() -> None:
    found = replace(methods.pst, gate=GATE, schedule=MarkGradually(begin=0.0, end=0.5, every=1))
    whole = attached(found, net(), 8)
    for _ in range(3):
        step(whole)
    state, weights = copy.deepcopy((whole.state_dict(), whole.model.state_dict()))
    for _ in range(5):
        step(whole)
    again = net(1)
    again.load_state_dict(weights)
    session = prunus.Session(again, found, TASK, prunus.Budget(0.4), steps=8)
    session.load_state_dict(state)
    session.attach(torch.optim.SGD(again.parameters(), lr=0.05))
    for _ in range(5):
        step(session)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(again), weights_of(whole.model), strict=True))
    with pytest.raises(SpecError, match="single weights"):
        prunus.prune(nn.Sequential(net(), nn.Identity()), TASK, replace(found, granularity=Channel()), sparsity=0.5)
    with pytest.raises(SpecError, match="ranks"):
        FactoredMovement(rank=0)
