"""The identity prior: function norms by a loop over tokens, spectral norms by singular values."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import ResidualNorm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import SpectralExcess
from prunus.parts.schedule import Gradual

X = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Layer(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.mix, self.mlp = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        with torch.no_grad():
            for p in (*self.mix.parameters(), *self.mlp.parameters()):
                p.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(Layer(s) for s in (1.0, 0.3, 2.0)), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


TASK = Task(loss=loss, train=[X], calib=[X], forward=lambda m, b: m(b), example=(X,))


def by_loop(model: Deep, order: float) -> dict[str, float]:
    """||F(x)|| / ||x|| of every branch, averaged token by token."""
    found: dict[str, float] = {}
    with torch.no_grad():
        x = X
        for i, layer in enumerate(model.layers):
            for name, branch in (
                ("mix", lambda t, m=layer: m.mix(m.norm1(t))),
                ("mlp", lambda t, m=layer: m.mlp(m.norm2(t))),
            ):
                y = branch(x)
                ratios = [
                    float(torch.linalg.vector_norm(y[b, t], order) / torch.linalg.vector_norm(x[b, t], order))
                    for b in range(5)
                    for t in range(7)
                ]
                found[f"layers.{i}.{name}"] = sum(ratios) / len(ratios)
                x = x + y
    return found


def test_how_far_a_branch_is_from_the_identity() -> None:
    for norm, order in (("max", float("inf")), ("euclidean", 2.0)):
        found = replace(methods.identity_prior, criterion=ResidualNorm(norm=norm))
        scores = prunus.score(Deep(), TASK, found)
        expected = by_loop(Deep(), order)
        for group in prunus.Session(Deep(), found, TASK, sparsity=0.5, steps=4).groups:
            mine = [expected[n] for n in group.names]
            assert scores[group.name].tolist() == pytest.approx(mine)


def test_spectral_norms_are_held_down_by_their_own_gradient() -> None:
    """After the power iteration has settled: the gradient of strength / 2 (sigma_max - limit)_+^2, by SVD."""
    part = SpectralExcess(strength=0.3, limit=0.4)
    found = replace(methods.identity_prior, penalty=part, schedule=Gradual(begin=0.0, end=1.0, every=100))
    model = Deep()
    session = prunus.Session(model, found, TASK, sparsity=0.3, steps=200)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    session.attach(optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        optimizer_step(model, optimizer)
    held = copy.deepcopy(model)
    for p, q in zip(model.parameters(), held.parameters(), strict=True):
        own = torch.zeros_like(q)
        if q.ndim == 2 and q is not held.head.weight:
            u, s, v = torch.linalg.svd(q.detach(), full_matrices=False)
            own = 0.3 * (s[0] - 0.4).clamp(min=0) * torch.outer(u[:, 0], v[0])
        assert p.grad is not None
        assert torch.allclose(p.grad, own, atol=1e-6)
    session.detach()


def optimizer_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step without a loss: what is left in the gradients is the penalty's."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_the_least_of_the_branches_go_and_the_rest_stays_exact() -> None:
    found = replace(methods.identity_prior, schedule=Gradual(begin=0.0, end=0.5, every=2))
    result = prunus.prune(Deep(), TASK, found, sparsity=0.34, steps=10)
    gone = {g.names[i] for g in result.groups for i in range(g.units) if not result.unit_masks[g.name][i]}
    assert gone == {"layers.1.mix", "layers.1.mlp"}
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    assert torch.allclose(result.compact()(x), result.model(x))


def test_units_that_own_no_matrix_have_no_spectral_norm() -> None:
    found = replace(methods.identity_prior, granularity=Channel(), criterion=methods.l1_filter.criterion)
    session = prunus.Session(Deep(), found, TASK, sparsity=0.3, steps=4)
    optimizer = torch.optim.SGD(session.model.parameters(), 0.1)
    session.attach(optimizer)
    loss(session.model, X).backward()
    with pytest.raises(SpecError, match="SpectralExcess is defined on none"):
        optimizer.step()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SpecError):
        SpectralExcess(limit=-1.0)
