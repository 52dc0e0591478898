"""LoSparse: layers as low rank plus a rest whose rows are pruned, against the published loop in plain tensors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError, WeightsError
from prunus.core.factors import LowRankPlus
from prunus.parts.granularity import Remainder
from prunus.parts.prepare import Residue
from prunus.parts.schedule import Gradual

torch.manual_seed(5)
X, Y = torch.randn(16, 6, dtype=torch.float64), torch.randn(16, 4, dtype=torch.float64)
LR = 0.05


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def loss_of(model: nn.Module, batch: object = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = prunus.Task(loss=loss_of, train=[0], example=(X,))


def split(w: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """U sqrt(s), sqrt(s) V of the first r components, and what they leave."""
    r = math.ceil(share * w.shape[0] * w.shape[1] / (w.shape[0] + w.shape[1]))
    u, s, v = torch.linalg.svd(w)
    left, right = u[:, :r] @ s[:r].sqrt().diag(), s[:r].sqrt().diag() @ v[:r]
    return left, right, w - left @ right


def test_a_layer_becomes_its_largest_components_and_what_they_leave() -> None:
    model, dense = net(), net()
    Residue(share=0.5)(model, (X,))
    for i in (0, 2):
        one, w = model[i], dense[i].weight.detach()
        left, right, rest = split(w, 0.5)
        assert isinstance(one, LowRankPlus) and one.low[0].weight.shape == right.shape
        torch.testing.assert_close(one.rest.weight, rest, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.low.weight, left @ right, rtol=1e-9, atol=1e-12)
        # Both factors carry the roots of the singular values.
        torch.testing.assert_close(one.low[0].weight.norm(dim=1), right.norm(dim=1), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(one.low[1].weight.norm(dim=0), left.norm(dim=0), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(one.weight, w, rtol=1e-9, atol=1e-12)
        assert one.bias is one.low[1].bias and torch.equal(one.bias, dense[i].bias) and one.rest.bias is None
    assert type(model[4]) is nn.Linear  # the classifier
    torch.testing.assert_close(model(X), dense(X), rtol=1e-9, atol=1e-12)
    names = [n for n, _ in model.named_parameters()]
    assert [n for n, _ in Residue(share=0.5)(model, (X,)).named_parameters()] == names  # again: nothing


def test_convolutions_and_refusals() -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = plain(x)
    torch.testing.assert_close(Residue(share=0.3)(plain, (x,))(x), expected, rtol=1e-9, atol=1e-12)
    assert plain[0].low[0].weight.shape == (math.ceil(0.3 * 4 * 27 / 31), 3, 3, 3)
    with pytest.raises(SpecError, match="finds no layer"):
        Residue(exclude=("0", "2"))(net())
    with pytest.raises(SpecError, match="share"):
        Residue(share=0.0)
    broken = net()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="2 hold NaN"):
        Residue()(broken)
    assert type(broken[0]) is nn.Linear


def test_rows_of_the_rest_go_by_their_smoothed_sensitivity() -> None:
    """U, V, S, and biases by SGD; I = beta I + (1 - beta) |S dL/dS|, averaged over a row; all rows ranked together."""
    steps, share, sparsity = 12, 0.4, 0.6
    found = replace(
        methods.losparse, prepare=Residue(share=share), schedule=Gradual(begin=0.0, end=0.75, every=1, soft=True)
    )
    model, dense = net(), net()
    session = prunus.Session(model, found, TASK, prunus.Budget(1 - sparsity), steps=steps)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=LR)
    session.attach(optimizer)
    weights: list[Tensor] = []
    for i in (0, 2):
        weights += [t.clone() for t in split(dense[i].weight.detach(), share)] + [dense[i].bias.detach().clone()]
    weights += [dense[4].weight.detach().clone(), dense[4].bias.detach().clone()]
    rests, last = (2, 6), round(0.75 * steps)
    average = {i: torch.zeros_like(weights[i]) for i in rests}
    masks = {i: torch.ones(len(weights[i]), dtype=torch.bool) for i in rests}
    returned = 0
    for t in range(1, steps + 1):
        w = [p.clone().requires_grad_() for p in weights]
        h = torch.tanh(X @ (w[0] @ w[1] + w[2]).T + w[3])
        h = torch.tanh(h @ (w[4] @ w[5] + w[6]).T + w[7])
        loss = (F.linear(h, w[8], w[9]) - Y).square().mean()
        optimizer.zero_grad()
        ours = loss_of(session.model)
        ours.backward()
        optimizer.step()
        assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        gradients = torch.autograd.grad(loss, w)
        for i in rests:
            average[i] = 0.85 * average[i] + 0.15 * (weights[i] * gradients[i]).abs()
        holding = t > last
        for i, g in enumerate(gradients):
            weights[i] = weights[i] - LR * g
            if holding and i in rests:
                weights[i] = weights[i] * masks[i].double().unsqueeze(1)
        if t <= last:
            scores = torch.cat([average[i].mean(1) for i in rests])
            gone = math.floor(13 * sparsity * (1 - (1 - t / last) ** 3) + 1e-9)
            keep = torch.ones(13, dtype=torch.bool)
            keep[sorted(range(13), key=lambda j: (float(scores[j]), -j))[:gone]] = False
            for i, now in zip(rests, keep.split([8, 5]), strict=True):
                returned += int((now & ~masks[i]).sum())
                masks[i] = now
                weights[i] = weights[i] * now.double().unsqueeze(1)
    assert session.masks["0.rest.weight"].flatten().equal(masks[2])
    assert session.masks["2.rest.weight"].flatten().equal(masks[6])
    torch.testing.assert_close(session.model[0].rest.weight.detach(), weights[2], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(session.model[2].low.weight.detach(), weights[4] @ weights[5], rtol=1e-8, atol=1e-11)
    assert sum(int(m.sum()) for m in masks.values()) == 13 - math.floor(13 * sparsity)
    assert session.result().sparsity == pytest.approx(7 / 13)


def test_what_is_pruned_is_the_rest_alone() -> None:
    model = Residue()(net(), (X,))
    groups = Remainder()(model)
    assert [(g.name, g.shape) for g in groups] == [("0.rest.weight", (8, 1)), ("2.rest.weight", (5, 1))]
    single = Remainder(box=(1, 1))(model)
    assert [g.shape for g in single] == [(8, 6), (5, 8)]


def test_a_pruned_sum_is_saved_and_loaded(tmp_path: object) -> None:
    result = prunus.prune(net(), TASK, methods.losparse, sparsity=0.5)
    prunus.save(result, f"{tmp_path}/pruned")
    again = prunus.load(f"{tmp_path}/pruned", lambda: net(1))
    assert torch.equal(again(X), result.model(X))
