"""Penalties on other units than filters (columns, boxes, kernels, weights, blocks), and what penalties refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts import penalty as penalties
from prunus.parts.granularity import Element, Tile
from prunus.parts.schedule import OneShot
from tests.oracle.penalized import (
    DECAY,
    LR,
    MOMENTUM,
    STEPS,
    TASK,
    Deep,
    Named,
    Tiny,
    built,
    detached,
    loss,
    root,
    run,
    same,
)

Units = Callable[[Named], dict[tuple[Any, ...], Tensor]]


def descended(
    kind: type[nn.Module], term: Callable[[Named, int], Tensor], last: int, gone: Callable[[Named], Named]
) -> list[Named]:
    """Descent with momentum on loss + term until step `last`; from then on without it, on what `gone` leaves."""
    model = built(kind)
    named = dict(model.named_parameters())
    velocity = {n: torch.zeros_like(p) for n, p in named.items()}
    masks: Named = {}
    seen = []
    for step in range(STEPS + 1):
        if step == last:
            masks = gone(detached(named))
        for n, mask in masks.items():
            named[n].data.mul_(mask)
            velocity[n].mul_(mask)
        seen.append({n: p.detach().clone() for n, p in named.items()})
        total = loss(model) + (term(named, step) if step < last else 0.0)
        grads = torch.autograd.grad(total, list(named.values()))
        for (n, p), g in zip(named.items(), grads, strict=True):
            velocity[n] = MOMENTUM * velocity[n] + g * masks.get(n, 1.0) + DECAY * p.detach()
            p.data.sub_(LR * velocity[n])
    return seen


def least(units: dict[tuple[Any, ...], Tensor], share: float) -> list[tuple[Any, ...]]:
    """The units with the smallest norms: this share of them."""
    order = sorted(units, key=lambda u: float(units[u]))
    return order[: math.floor(share * len(order) + 1e-9)]


def columns(p: Named) -> dict[tuple[Any, ...], Tensor]:
    """The norm of every input channel at every kernel position, over all filters of a layer."""
    found = {}
    for n in ("conv1.weight", "conv2.weight", "head.weight"):
        w = p[n] if p[n].ndim == 4 else p[n][:, :, None, None]
        for c in range(w.shape[1]):
            for i in range(w.shape[2]):
                for j in range(w.shape[3]):
                    found[n, c, i, j] = root(w[:, c, i, j])
    return found


def boxes(p: Named) -> dict[tuple[Any, ...], Tensor]:
    """The norm of every box of two filters by two channels at one kernel position."""
    found = {}
    for n in ("conv1.weight", "conv2.weight", "head.weight"):
        w = p[n] if p[n].ndim == 4 else p[n][:, :, None, None]
        for o in range(0, w.shape[0], 2):
            for c in range(0, w.shape[1], 2):
                for i in range(w.shape[2]):
                    for j in range(w.shape[3]):
                        found[n, o, c, i, j] = root(w[o : o + 2, c : c + 2, i, j])
    return found


def without(p: Named, units: Units, share: float) -> Named:
    """Masks of parameters, with the least units taken out."""
    masks = {n: torch.ones_like(p[n]) for n in ("conv1.weight", "conv2.weight", "head.weight")}
    for n, *at in least(units(p), share):
        w = masks[n] if masks[n].ndim == 4 else masks[n][:, :, None, None]
        if len(at) == 3:
            w[:, at[0], at[1], at[2]] = 0
        else:
            w[at[0] : at[0] + 2, at[1] : at[1] + 2, at[2], at[3]] = 0
    return masks


@pytest.mark.parametrize(
    ("name", "box", "units"), [("ssl_shapes", (0, 1, 1, 1), columns), ("block_lasso", (2, 2, 1, 1), boxes)]
)
def test_group_lasso_over_columns_and_boxes(name: str, box: tuple[int, ...], units: Units) -> None:
    recipe = replace(methods.get(name), granularity=Tile(box), penalty=penalties.GroupLasso(0.05))
    assert name != "ssl_shapes" or methods.get(name).granularity == Tile(box)
    _, ours = run(recipe, 0.5)
    total: Callable[[Named, int], Tensor] = lambda p, step: 0.05 * torch.stack(list(units(p).values())).sum()  # noqa: E731
    same(ours, descended(Tiny, total, 4, lambda p: without(p, units, 0.5)))


def test_ssl_of_depth_is_group_lasso_over_residual_blocks() -> None:
    recipe = replace(methods.get("ssl_depth"), penalty=penalties.GroupLasso(0.3))
    _, ours = run(recipe, 0.5, Deep)

    def norms(p: Named) -> dict[tuple[Any, ...], Tensor]:
        return {(i,): root(p[f"blocks.{i}.weight"]) for i in range(4)}

    def gone(p: Named) -> Named:
        worst = [i for (i,) in least(norms(p), 0.5)]
        return {f"blocks.{i}.{k}": torch.zeros_like(p[f"blocks.{i}.{k}"]) for i in worst for k in ("weight", "bias")}

    same(ours, descended(Deep, lambda p, step: 0.3 * torch.stack(list(norms(p).values())).sum(), 4, gone))


def test_synaptic_strengths_are_penalized_with_the_norm_before_them_live() -> None:
    """sum_ki |gamma_i| ||K_ki||: the gradient reaches kernels and scales; the first layer, fed by nothing, stays."""
    recipe = replace(methods.get("synaptic_strength"), penalty=penalties.StrengthL1(0.05))
    _, ours = run(recipe, 0.5)

    def strengths(p: Named) -> dict[tuple[Any, ...], Tensor]:
        gamma, w = p["bn1.weight"], p["conv2.weight"]
        return {(k, i): gamma[i].abs() * root(w[k, i]) for k in range(4) for i in range(4)}

    def gone(p: Named) -> Named:
        mask = torch.ones_like(p["conv2.weight"])
        for k, i in least(strengths(p), 0.5):
            mask[k, i] = 0
        return {"conv2.weight": mask}

    same(ours, descended(Tiny, lambda p, step: 0.05 * torch.stack(list(strengths(p).values())).sum(), 4, gone))


def test_random_tickets_push_out_what_the_dice_marked() -> None:
    """RST: lambda grows by 0.1 every 3 steps on weights drawn at random at the start, which go after half the steps."""
    recipe = replace(methods.get("rst"), penalty=penalties.GrowingL2(step=0.1, every=3))
    session = prunus.Session(built(Tiny), recipe, TASK, prunus.Budget(0.5), steps=STEPS)
    session.start()  # marks, by the same seed
    marks = {n: m.reshape(session.parameters[n].shape) for n, m in session.masks.items()}
    assert session.marking and all(int(m.sum()) == m.numel() // 2 for m in marks.values())
    _, ours = run(recipe, 0.5)

    def term(p: Named, step: int) -> Tensor:
        return torch.stack([0.1 * (step // 3 + 1) / 2 * (p[n][~m] ** 2).sum() for n, m in marks.items()]).sum()

    same(ours, descended(Tiny, term, 4, lambda p: {n: m.double() for n, m in marks.items()}))


# Values, units at zero, and what is refused


def test_gradients_of_norms_are_zero_at_units_that_are_zero() -> None:
    w, r = (torch.zeros(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for part in (penalties.SidesLasso(), penalties.CoupledLasso()):
        assert all(bool((g == 0).all()) for g in torch.autograd.grad(part(w=w, r=r), (w, r)))
    (found,) = torch.autograd.grad(penalties.GroupLasso()(w=w), w)
    assert bool((found == 0).all())


@pytest.mark.parametrize(
    ("part", "slope"),
    [
        (penalties.HyperbolicBias(strength=1.0, slope=2.0), lambda v: 1 / (1 + 2 * v) ** 2),
        (penalties.ExponentialBias(strength=1.0, slope=2.0), lambda v: 2 * math.exp(-2 * v)),
    ],
)
def test_biases_of_hanson_and_pratt_fall_with_size(part: Any, slope: Callable[[float], float]) -> None:
    """The derivatives that the paper gives, with the sign of the weight."""
    w = torch.tensor([[0.5, -0.25], [-2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(part(w=w), w)
    expected = [[slope(0.75), -slope(0.75)], [-slope(3.0), slope(3.0)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_auto_balance_moves_strength_from_one_side_to_the_other() -> None:
    w = torch.tensor([[0.1, 0.1], [0.5, -0.5], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[False], [True], [True]])
    total = penalties.AutoBalanced(strength=1.0)(w=w, kept=kept)
    (found,) = torch.autograd.grad(total, w)
    assert abs(float(total.detach())) < 1e-12
    assert bool((found[0] * w[0] > 0).all()) and bool((found[1:] * w[1:] < 0).all())
    whole = penalties.AutoBalanced()(w=w, kept=torch.ones(3, 1, dtype=torch.bool))
    assert bool((torch.autograd.grad(whole, w)[0] == 0).all())


def test_a_layer_of_one_unit_has_no_variance_and_equal_units_decay_alike() -> None:
    w = torch.full((1, 4), 2.0, dtype=torch.float64)
    assert float(penalties.GuidedLasso(strength=0.5)(w=w)) == 2.0
    assert float(penalties.RelativeL2(strength=1.0)(w=torch.ones(3, 2, dtype=torch.float64))) == 3.0


def test_filters_are_compared_and_single_weights_refused() -> None:
    recipe = replace(methods.get("tpp"), granularity=Element())
    with pytest.raises(SpecError, match="granularity=Channel"):
        run(recipe, 0.5)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((k, {"strength": -1.0}) for k in ("GroupLasso", "SidesLasso", "CoupledLasso", "ScaleL1", "StrengthL1")),
        *((k, {"strength": -1.0}) for k in ("GuidedLasso", "AutoBalanced", "RelativeL2", "HyperbolicBias")),
        ("ExponentialBias", {"slope": 0.0}),
        ("ResourceL1", {"every": 0}),
        ("SeparatingL2", {"every": 0}),
        ("TrainabilityPreserving", {"step": -1.0}),
        ("ShrunkAnchor", {"rho": 0.0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=kind):
        getattr(penalties, kind)(**wrong)


def test_penalties_end_with_the_last_event() -> None:
    """From the cut on a run is that of the same weights without any penalty."""
    recipe = replace(methods.get("ssl"), schedule=OneShot(at=0.0), penalty=penalties.SidesLasso(1.0))
    with_it, without_it = run(recipe, 0.5), run(replace(recipe, penalty=None), 0.5)
    same(with_it[1], without_it[1])
