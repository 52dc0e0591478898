"""Penalties against sums over slices, and whole training runs of their recipes against loops by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus import methods
from tests.oracle.penalized import Named, Now, Score, Term, by_hand, each, filters, l1, root, run, same, score

# What every recipe adds to the loss, written down slice by slice


def guided(p: Named, now: Now) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for layer in filters(p):
        energy = [(own**2).sum() for own, _, _ in layer]
        mean = sum(energy) / 4
        total = total + 0.1 * sum(root(own) for own, _, _ in layer) + 0.02 / (sum((e - mean) ** 2 for e in energy) / 4)
    return total


def growing(p: Named, now: Now) -> Tensor:
    strength = min(0.5, 0.2 * (now.age // 2 + 1))
    pairs = [pair for layer, kept in zip(filters(p), now.keep, strict=True) for pair in zip(layer, kept, strict=True)]
    marked = [own for (own, _, _), stays in pairs if not stays]
    return strength / 2 * sum((own**2).sum() for own in marked)  # type: ignore[return-value]


def separating(p: Named, now: Now) -> Tensor:
    """All grow by 0.1 every 2 steps, up to 0.15; then what is marked by 0.3, while the rest comes back at -0.05."""
    if now.begun == 0:
        grown = min(0.15, 0.1 * (now.step // 2 + 1))
        return grown / 2 * sum((own**2).sum() for layer in filters(p) for own, _, _ in layer)  # type: ignore[return-value]
    pushed = min(0.15, 0.1 * (now.begun // 2 + 1)) + 0.3 * (now.age // 2 + 1)
    total = torch.zeros((), dtype=torch.float64)
    for layer, kept in zip(filters(p), now.keep, strict=True):
        for (own, _, _), stays in zip(layer, kept, strict=True):
            total = total + (-0.05 if stays else pushed) / 2 * (own**2).sum()
    return total


def trainable(p: Named, now: Now) -> Tensor:
    grown, total = min(1.0, 0.1 * (now.age // 2)), torch.zeros((), dtype=torch.float64)
    for layer, kept in zip(filters(p), now.keep, strict=True):
        for i, (a, _, rest) in enumerate(layer):
            for j, (b, _, _) in enumerate(layer):
                inner = (a * b).sum()
                target = inner.detach() if kept[i] and kept[j] else 0.0
                total = total + grown * 3.0 * (inner - target) ** 2 / 16
            if not kept[i]:
                total = total + grown / 2 * ((a**2).sum() + sum(t**2 for t in rest))
    return total


def balanced(p: Named, now: Now) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for layer, kept in zip(filters(p), now.keep, strict=True):
        sizes = [float(own.detach().abs().sum()) for own, _, _ in layer]
        theta = min(s for s, k in zip(sizes, kept, strict=True) if k)
        energy = [(own**2).sum() for own, _, _ in layer]
        goes = [(1 + math.log(theta / s)) * e for s, e, k in zip(sizes, energy, kept, strict=True) if not k]
        stays = [(-1 - math.log(s / theta)) * e for s, e, k in zip(sizes, energy, kept, strict=True) if k]
        tau = -(sum(goes) / sum(stays)).detach()
        total = total + 0.1 * (sum(goes) + tau * sum(stays))
    return total


def relative(p: Named, now: Now) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for layer in filters(p):
        norm = [root(own, reads, rest[0]) for own, reads, rest in layer]  # rest[0]: the normalization's scale
        most, least = (float(f(n.detach() for n in norm)) for f in (max, min))
        total = total + sum(0.1 / 2 * 2 ** (2 * (most - float(n.detach())) / (most - least)) * n**2 for n in norm)
    return total


def shrunk(squares: bool) -> Term:
    def term(p: Named, now: Now) -> Tensor:
        tension, total = 0.06 / 0.2, torch.zeros((), dtype=torch.float64)
        for i, layer in enumerate(filters(p)):
            for u, (own, _, _) in enumerate(layer):
                if now.step % 2 == 0:
                    w = own.detach().clone()
                    dual = now.memory.get(("dual", i, u), torch.zeros_like(w))
                    point = w + dual
                    size = float(root(point))
                    kept = float(size**2 > 2 * tension) if squares else max(0.0, 1 - tension / size)
                    if now.step:
                        dual = dual + w - kept * point
                    now.memory["split", i, u], now.memory["dual", i, u] = kept * point, dual
                anchor = now.memory["split", i, u] - now.memory["dual", i, u]
                total = total + 0.2 / 2 * ((own - anchor) ** 2).sum()
        return total

    return term


def resources(currency: str) -> Term:
    """C (alive_out sum |gamma_in| + alive_in sum |gamma_out|), C = kernel times positions (or kernel alone)."""

    def term(p: Named, now: Now) -> Tensor:
        area = 25 if currency == "macs" else 1
        gammas = [p["bn1.weight"].abs(), p["bn2.weight"].abs()]
        first, second = (int((g > 0.6).sum()) for g in gammas)
        own = 0 if currency == "macs" else 2  # the entries of the normalization itself
        one = area * 9 * (2 + second) + own + (0 if currency == "macs" else 1)  # and of conv1's bias
        two = area * 9 * first + 2 + own
        dense = area * 9 * (2 * 4 + 4 * 4) + 4 * 2 + (0 if currency == "macs" else 4 + 16 + 2)
        return 0.5 * (one * sum(gammas[0]) + two * sum(gammas[1])) / dense

    return term


L = "strength"
RUNS: dict[str, tuple[dict[str, Any], Term, Score]] = {
    "ssl": ({L: 0.1}, each(lambda own, reads, _: 0.1 * (root(own) + root(reads))), score(lambda own, *_: root(own))),
    "oicsr": (
        {L: 0.1},
        each(lambda own, reads, _: 0.1 * root(own, reads)),
        score(lambda own, reads, _: root(own, reads) ** 2),
    ),
    "multi_layer_pruning": (
        {L: 0.1},
        each(lambda own, *_: 0.1 * root(own)),
        score(lambda own, reads, _: own.abs().sum() + reads.abs().sum()),
    ),
    "hanson_pratt": ({L: 0.1, "slope": 0.5}, each(lambda own, *_: 0.1 * l1(own) / (1 + 0.5 * l1(own))), score(l1)),
    "hanson_pratt_exponential": (
        {L: 0.1, "slope": 0.3},
        each(lambda own, *_: 0.1 * (1 - (-0.3 * l1(own)).exp())),
        score(l1),
    ),
    "gss": ({L: 0.1, "spread": 0.02}, guided, score(lambda own, *_: root(own))),
    "greg_1": ({"step": 0.2, "every": 2, "limit": 0.5}, growing, score(l1)),
    "greg_2": (
        {"pick": 0.1, "pick_limit": 0.15, "step": 0.3, "recover": -0.05, "every": 2},
        separating,
        score(l1),
    ),
    "tpp": ({L: 3.0, "step": 0.1, "every": 2}, trainable, score(l1)),
    "auto_balanced": ({L: 0.1}, balanced, score(l1)),
    "depgraph_sparse": ({L: 0.1, "alpha": 2.0}, relative, lambda p: normalized(p)),
    "ssr_l21": ({L: 0.06, "rho": 0.2, "every": 2}, shrunk(False), score(lambda own, *_: root(own))),
    "ssr_l20": ({L: 0.06, "rho": 0.2, "every": 2}, shrunk(True), score(lambda own, *_: root(own))),
    "network_slimming": ({L: 0.1}, each(lambda own, _, r: 0.1 * r[0].abs()), score(lambda own, _, r: r[0].abs())),
    "morphnet": ({L: 0.5, "threshold": 0.6, "every": 1}, resources("macs"), score(lambda own, _, r: r[0].abs())),
    "morphnet_size": ({L: 0.5, "threshold": 0.6, "every": 1}, resources("params"), score(lambda own, _, r: r[0].abs())),
}


def normalized(p: Named) -> list[list[float]]:
    """Group norms over their layer's mean."""
    energy = score(lambda own, reads, rest: root(own, reads, rest[0]) ** 2)(p)
    return [[e / (sum(layer) / 4) for e in layer] for layer in energy]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_is_descent_on_the_loss_and_the_sum_over_slices(name: str) -> None:
    changes, term, worth = RUNS[name]
    recipe = methods.get(name)
    assert recipe.penalty is not None
    recipe = replace(recipe, penalty=replace(recipe.penalty, **changes))
    session, ours = run(recipe, 0.5)
    theirs = by_hand(recipe, term, worth, 0.5)
    same(ours, theirs)
    plain = by_hand(recipe, lambda p, now: torch.zeros(()), worth, 0.5)
    assert any(not torch.allclose(ours[-1][n], plain[-1][n], rtol=1e-4) for n in ours[-1])  # the penalty matters
    assert session.history[-1]["density"] == 0.5
