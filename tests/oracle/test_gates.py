"""Learned masks against the papers: values, gradients and steps written out on networks small enough for paper."""

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
from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.gate import Annealed, Bernoulli, BinaryPopup, Coefficient, Popup, SignedPopup, TargetMean
from prunus.parts.schedule import OneShot, Relearned

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def net(seed: int = 0) -> nn.Sequential:
    """3 -> 4 -> 2, without biases, as the papers' networks are."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().sum()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def attached(found: prunus.Recipe, model: nn.Module, steps: int, density: float = 0.5) -> tuple[Any, Any]:
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return session.attach(optimizer), optimizer


def top(scores: Tensor, density: float) -> Tensor:
    """The official selection: the int((1 - k) n) smallest go."""
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().sort().indices[: int((1 - density) * scores.numel())]] = False
    return mask.reshape(scores.shape)


def grads(model: nn.Sequential, masks: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss of the masked two-layer network, and dL/d(effective weight) of both layers, by the chain rule on paper."""
    w1, w2 = (model[0].weight * masks[0]).detach(), (model[2].weight * masks[1]).detach()
    a = X @ w1.T
    z = a.clamp(min=0)
    out = 2 * (z @ w2.T - Y)
    back = (out @ w2) * (a > 0)
    return (z @ w2.T - Y).square().sum(), [back.T @ X, out.T @ z]


def test_edge_popup_is_the_published_algorithm() -> None:
    """Forward with the top half per layer, dL/ds = dL/dw_eff * w * sign(s), SGD with momentum, decay and cosine."""
    model, steps = net(), 6
    before = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    session, optimizer = attached(replace(methods.edge_popup, gate=Popup()), model, steps)
    scores = [session.gating.thetas[n].detach().clone() for n in ("0.weight", "2.weight")]
    assert all((s.abs() <= 1 / math.sqrt(s.shape[1])).all() and s.std() > 0.1 for s in scores)
    momentum = [torch.zeros_like(s) for s in scores]
    for step in range(steps):
        masks = [top(s.abs(), 0.5) for s in scores]
        loss, g = grads(model, masks)
        optimizer.zero_grad()
        ours = squared(model)
        ours.backward()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-12)
        optimizer.step()
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for i, w in enumerate(before):
            slope = g[i] * w * scores[i].sign() + 1e-4 * scores[i]
            momentum[i] = slope if step == 0 else 0.9 * momentum[i] + slope
            scores[i] = scores[i] - lr * momentum[i]
    expected = [top(s.abs(), 0.5) for s in scores]
    for (_, mask), want, w, layer in zip(session.masks.items(), expected, before, (model[0], model[2]), strict=True):
        assert torch.equal(mask, want)
        assert torch.equal(layer.weight, w * want)  # the weights were never trained
    assert session.gating is None and type(model[0]) is nn.Linear


def test_a_signed_constant_is_the_scaled_kaiming_deviation() -> None:
    w = net()[0].weight.detach()
    keep = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0], dtype=torch.float64).reshape(4, 3)
    made = SignedPopup().weight(w, keep)
    assert torch.allclose(made[keep > 0].abs(), torch.tensor(math.sqrt(2 / (3 * 0.25)), dtype=torch.float64))
    assert torch.equal(made.sign(), w.sign() * keep)
    # It is what the network computes with while the mask is learned, and what stays.
    model = net()
    session, optimizer = attached(methods.edge_popup, model, 2)
    for _ in range(2):
        mask = top(session.gating.thetas["0.weight"].detach().abs(), 0.5)
        assert torch.allclose(model[0].weight, w.sign() * mask * math.sqrt(2 / 1.5), rtol=1e-12)
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
    assert torch.allclose(model[0].weight, w.sign() * session.masks["0.weight"] * math.sqrt(2 / 1.5), rtol=1e-12)


def test_biprop_is_forward_binary_and_backward_real() -> None:
    """alpha = sum |w m| / sum m, and dL/dm = dL/dw_eff * w, whatever alpha is (the official backward)."""
    model = net()
    w = model[0].weight.detach().clone()
    session, optimizer = attached(methods.biprop, model, 3)
    keep = top(session.gating.thetas["0.weight"].detach().abs(), 0.5)
    alpha = (w.abs() * keep).sum() / keep.sum()
    used = model[0].weight
    assert torch.allclose(used, alpha * w.sign() * keep, rtol=1e-12)
    assert used.detach()[keep].abs().unique().numel() == 1
    (gradient,) = torch.autograd.grad(
        (used * torch.arange(12.0).reshape(4, 3)).sum(), session.gating.thetas["0.weight"]
    )
    theta = session.gating.thetas["0.weight"].detach()
    assert torch.allclose(gradient, torch.arange(12.0, dtype=torch.float64).reshape(4, 3) * w * theta.sign())
    for _ in range(3):
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
    final = session.masks["0.weight"]
    alpha = (w.abs() * final).sum() / final.sum()
    assert torch.allclose(model[0].weight, alpha * w.sign() * final, rtol=1e-12)


def test_a_supermask_is_sampled_and_trained_straight_through() -> None:
    gate, noise = Bernoulli(), torch.tensor([0.1, 0.6, 0.49, 0.9], dtype=torch.float64)
    theta = torch.tensor([0.0, 0.0, -3.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = gate.value(theta, Moment(0.0, 0.5, noise=noise))
    assert value.tolist() == [1.0, 0.0, 0.0, 1.0]  # probabilities 0.5, 0.5, 0.047, 0.95
    (gradient,) = torch.autograd.grad((value * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), theta)
    p = theta.detach().sigmoid()
    assert torch.allclose(gradient, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) * p * (1 - p))
    assert gate.value(theta, Moment(1.0, 0.5)).tolist() == [1.0] * 4


def test_the_share_of_a_supermask_is_its_probability() -> None:
    model = net()
    found = replace(methods.supermask, gate=Bernoulli(start=1.0, lr=1e-9))
    _, optimizer = attached(found, model, 400)
    hits = 0.0
    for _ in range(400):
        hits += float((model[0].weight != 0).double().mean())
        optimizer.zero_grad()
        squared(model).backward()
        optimizer.step()
    assert hits / 400 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_continuous_sparsification_is_the_published_formula() -> None:
    """w sigmoid(beta s) / sigmoid(s0), beta = 200^(t/T), joint SGD, and the penalty; against plain autograd."""
    model, mine, steps = net(), net(), 5
    gate = Annealed(start=-0.05, strength=0.01, lr=0.2)
    found = replace(methods.continuous_sparsification, gate=gate, schedule=OneShot(at=1.0))
    session, optimizer = attached(found, model, steps)
    w = [mine[0].weight.detach().clone().requires_grad_(), mine[2].weight.detach().clone().requires_grad_()]
    s = [torch.full_like(p, -0.05).requires_grad_() for p in w]
    slow = torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01)
    slow_masks = torch.optim.SGD(s, lr=0.2, momentum=0.9)
    for step in range(steps):
        beta = 200 ** (step / steps)
        m = [torch.sigmoid(beta * t) for t in s]
        start = 1 / (1 + math.exp(0.05))
        loss = (F.relu(X @ (w[0] * m[0] / start).T) @ (w[1] * m[1] / start).T - Y).square().sum()
        optimizer.zero_grad()
        ours = squared(model)
        ours.backward()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
        optimizer.step()
        slow.zero_grad(), slow_masks.zero_grad()
        (loss + 0.01 * sum(t.sum() for t in m)).backward()
        slow.step(), slow_masks.step()
    everything = torch.cat([t.detach().flatten() for t in s])
    kept = torch.zeros(20, dtype=torch.bool)
    kept[everything.argsort(descending=True, stable=True)[:10]] = True
    for layer, part, weight, t in zip((model[0], model[2]), kept.split([12, 8]), w, s, strict=True):
        mask = part.reshape(weight.shape)
        assert torch.equal(session.masks[f"{0 if layer is model[0] else 2}.weight"], mask)
        used = weight.detach() * torch.sigmoid(200 * t.detach()) / start * mask
        assert torch.allclose(layer.weight, used, rtol=1e-9, atol=1e-12)


def test_a_new_round_keeps_what_was_dropped_down_and_starts_the_rest_anew() -> None:
    model, steps = net(), 9
    found = replace(methods.continuous_tickets, schedule=Relearned(rounds=2, rewind=0.0))
    assert [(e.step, e.density, e.rewind) for e in found.schedule(0.5, 9)] == [(3, 1.0, 0), (6, 0.5, 0)]
    session, optimizer = attached(found, model, steps)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(steps):
        optimizer.zero_grad()
        squared(model).backward()
        theta = {n: t.detach().clone() for n, t in session.gating.thetas.items()} if step < 6 else {}
        optimizer.step()
        if step == 2:
            for name, t in session.gating.thetas.items():
                assert (t <= 0).all() and (t < 0).any()
                assert torch.equal(session.parameters[name], first[name])
                assert not torch.equal(t, theta[name])
        if step == 5:
            assert session.gating is None
            for name, mask in session.masks.items():
                assert torch.equal(session.parameters[name], first[name] * mask)
    renewed = Annealed(start=0.1, final=200.0).renewed(torch.tensor([0.002, -0.01, 0.0001]))
    assert torch.allclose(renewed, torch.tensor([0.1, -2.0, 0.02]))


def test_relearned_segments_share_the_steps() -> None:
    events = Relearned(rounds=3, rewind=0.1)(0.2, 370)
    assert [(e.step, e.density, e.rewind) for e in events] == [(100, 1.0, 10), (190, 1.0, 10), (280, 0.2, 10)]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.norm(self.one(x)))).mean((2, 3))


@pytest.mark.parametrize("gate", [TargetMean(strength=0.5, lr=0.01), Coefficient(strength=0.3, lr=0.02)])
def test_channel_gates_are_the_published_ones(gate: Any) -> None:
    """lambda on the normalized channel before the ReLU, Adam, the penalty of the paper, and the clamp."""
    torch.manual_seed(0)
    model = Chain().double()
    x, y = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(x), y), train=[0], example=(x,))
    found = replace(methods.pfs, gate=gate, schedule=OneShot(at=1.0), recover=None)
    session = prunus.Session(model, found, task, prunus.Budget(0.5), steps=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session.attach(optimizer)
    torch.manual_seed(0)
    mine = Chain().double()
    lam = torch.ones(4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([lam], lr=gate.lr)
    slow = torch.optim.SGD(mine.parameters(), lr=0.05)
    name = next(iter(session.masks))
    for _ in range(8):
        assert torch.allclose(session.gating.thetas[name], lam, rtol=1e-9)
        optimizer.zero_grad()
        task.loss_of(model, 0).backward()
        optimizer.step()
        h = F.relu(mine.norm(mine.one(x)) * lam.view(1, -1, 1, 1))
        loss = F.cross_entropy(mine.two(h).mean((2, 3)), y)
        if isinstance(gate, TargetMean):
            loss = loss + 0.5 * (lam.abs().mean() - 0.5) ** 2
        else:
            loss = loss + 0.3 * lam.abs().sum()
        adam.zero_grad(), slow.zero_grad()
        loss.backward()
        adam.step()
        if isinstance(gate, TargetMean):
            lam.data.clamp_(0, 1)
        else:
            slow.step()
    order = lam.detach().abs().argsort(descending=True, stable=True)[:2]
    assert session.masks[name].nonzero().flatten().tolist() == sorted(order.tolist())
    # What is left computes what it did with the gates of the channels that are left.
    kept = torch.zeros(4, dtype=torch.float64)
    kept[order] = lam.detach()[order]
    model.eval(), mine.eval()
    with torch.no_grad():
        expected = mine.two(F.relu(mine.norm(mine.one(x))) * kept.view(1, -1, 1, 1)).mean((2, 3))
        assert torch.allclose(model(x), expected, rtol=1e-6)


def test_coefficients_lie_on_heads_and_neurons_where_earlybert_has_them() -> None:
    """Between attention and its output projection, and after the activation of the feed-forward layer."""
    from tests.contract.models import CASES

    case = CASES["vit"]
    model, task = case.model().eval(), case.task()
    session = prunus.Session(model, methods.early_bert, task, prunus.Budget(0.5), steps=20)
    session.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    model.eval()
    x = case.batches(1)[0][0]
    factors = {n: torch.rand_like(t) for n, t in session.gating.thetas.items()}
    with torch.no_grad():
        for name, t in session.gating.thetas.items():
            t.copy_(factors[name])
    kinds = {g.kind: g for g in session.groups if g.name in factors}
    heads, neurons = factors[kinds["head"].name], factors[kinds["neuron"].name]
    with torch.no_grad():
        ours = model(x)
        session.detach()
        wide = heads.repeat_interleave(8)  # 16 channels, two heads
        hooks = [
            model.block.attention.proj.register_forward_pre_hook(lambda m, args: (args[0] * wide,)),
            model.block.mlp[2].register_forward_pre_hook(lambda m, args: (args[0] * neurons,)),
        ]
        assert set(kinds) == {"head", "neuron"}
        assert torch.allclose(model(x), ours, rtol=1e-10)
        for hook in hooks:
            hook.remove()
        assert not torch.allclose(model(x), ours)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Popup, {"lr": 0.0}),
        (Popup, {"momentum": 1.0}),
        (Bernoulli, {"lr": -1.0}),
        (Annealed, {"final": 0.5}),
        (TargetMean, {"strength": -1.0}),
        (Coefficient, {"lr": 0.0}),
        (BinaryPopup, {"decay": -1.0}),
    ],
)
def test_gates_that_make_no_sense_are_refused(kind: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)
