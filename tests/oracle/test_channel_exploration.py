"""Channel exploration: leverage scores, residuals and draws against linear algebra that is written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import LeverageScore
from prunus.parts.growth import SpanResidual
from prunus.parts.schedule import Explored
from tests.contract.models import CASES


def leverage(w: np.ndarray, k: int) -> np.ndarray:
    """By the eigenvectors of the units' Gram matrix, one unit at a time."""
    values, vectors = np.linalg.eigh(w @ w.T)
    leading = vectors[:, np.argsort(-values)[:k]]
    return np.array([sum(leading[j, i] ** 2 for i in range(leading.shape[1])) for j in range(len(w))])


def residual(w: np.ndarray, kept: list[int], j: int) -> float:
    """||w_j - its best approximation by the kept filters||^2."""
    if not kept:
        return float((w[j] ** 2).sum())
    mix, *_ = np.linalg.lstsq(w[kept].T, w[j], rcond=None)
    return float(((w[j] - w[kept].T @ mix) ** 2).sum())


def test_leverage_is_the_share_of_the_leading_subspace() -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 9, dtype=torch.float64)
    for k in range(7):
        wide = (torch.arange(6) < k).unsqueeze(1)
        found = LeverageScore()(w, wide).numpy()
        expected = leverage(w.numpy(), k)
        best = sorted(range(6), key=lambda i: -expected[i])[:k]
        assert found - np.isin(range(6), list(best)) == pytest.approx(expected, abs=1e-10)
        assert expected.sum() == pytest.approx(k)
    # A filter that is the only one of its direction is needed by any subset; of two that are equal each is half.
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scores = LeverageScore()(w, torch.tensor([[True], [True], [False]]))
    assert scores.tolist() == pytest.approx([1.5, 0.5, 2.0])


def test_what_the_kept_do_not_span_comes_back_first() -> None:
    w = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 9, 0], [0, 0, 30]], dtype=torch.float64)
    kept = torch.tensor([[True], [False], [False], [False]])
    promise = SpanResidual()(w, kept, torch.full((4, 1), 0.5))
    assert promise.tolist() == pytest.approx([-1.0, -0.75, -0.5, -0.25])
    # Nothing kept: everything is residual.
    promise = SpanResidual()(w, torch.zeros(4, 1, dtype=torch.bool), torch.full((4, 1), 0.5))
    assert promise.tolist() == pytest.approx([-1.0, -0.75, -0.5, -0.25])


def test_channels_are_drawn_by_the_softmax_of_their_residuals() -> None:
    torch.manual_seed(1)
    w = torch.randn(5, 4, dtype=torch.float64)
    kept = torch.tensor([[True], [False], [False], [True], [False]])
    errors = np.array([residual(w.numpy(), [0, 3], j) for j in (1, 2, 4)])
    chances = np.exp(errors) / np.exp(errors).sum()
    draws, counts = 4000, np.zeros(3)
    for _ in range(draws):
        promise = SpanResidual()(w, kept, torch.rand(5, 1, dtype=torch.float64))
        first = int(promise.argmax())
        counts[[1, 2, 4].index(first)] += 1
    assert counts / draws == pytest.approx(chances, abs=0.03)


def test_the_share_that_comes_back_shrinks_like_a_cosine() -> None:
    events = Explored(every=20, until=0.8, regrow=0.4)(0.3, 200)
    assert [e.step for e in events] == sorted([*range(0, 160, 20), *range(0, 160, 20), 160])
    for cut, more in zip(events[:-1:2], events[1:-1:2], strict=True):
        assert cut.density == 0.3 and cut.mark and cut.revive and not cut.grow and more.mark and more.grow
        assert more.density == pytest.approx(0.3 + 0.2 * (1 + math.cos(math.pi * cut.step / 160)))
    assert events[-1] == prunus.Event(160, 0.3, revive=True)
    with pytest.raises(SpecError, match="Explored"):
        Explored(regrow=0.0)


def test_every_cut_takes_widths_from_the_scales_and_channels_from_the_leverage() -> None:
    """The masks of the first cut, worked out layer by layer; dormant channels keep their weights and come back."""
    case = CASES["cnn"]
    model = case.model()
    with torch.no_grad():
        for i, module in enumerate(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            module.weight.copy_(torch.linspace(0.1, 1.0 + i, len(module.weight)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = prunus.Session(model, methods.chex, case.task(), prunus.Budget(0.5), steps=24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found.attach(optimizer)
    scales, filters = {}, {}
    for g in found.groups:
        scales[g.name] = g.views(g.with_role("scale"), before).abs().mean(-1)
        filters[g.name] = g.views(g.with_role("out"), before).numpy()
    everything = torch.cat(list(scales.values()))
    keep = len(everything) - math.floor(0.5 * len(everything))
    least = everything.sort(descending=True, stable=True).values[keep - 1]
    cut: dict[str, list[int]] = {}
    for name, gamma in scales.items():
        k = int((gamma >= least).sum())
        scores = leverage(filters[name], k)
        cut[name] = sorted(range(len(scores)), key=lambda j: -scores[j])[:k]
    assert found.history[0]["kept"] == sum(map(len, cut.values())) == keep
    for name, mask in found.masks.items():  # what came back since has joined them
        assert mask[cut[name]].all()
    assert found.history[1]["kept"] > keep

    def loop() -> None:
        optimizer.zero_grad()
        case.loss(model, case.batches(1)[0]).backward()
        optimizer.step()

    dormant = {n: ~m for n, m in found.masks.items()}
    loop(), loop()
    now = dict(model.named_parameters())
    moved: list[Tensor] = []
    for g in found.groups:
        old, new = (g.views(g.with_role("out"), t) for t in (before, now))
        assert torch.equal(old[dormant[g.name]], new[dormant[g.name]])
        moved.append((old != new).any(-1)[~dormant[g.name]])
    assert torch.cat(moved).any() and any(m.any() for m in dormant.values())
    for _ in range(22):
        loop()
    result = found.result()
    assert sum(int(m.sum()) for m in result.unit_masks.values()) == keep
    assert found.history[-1]["explored"] > 0.75
