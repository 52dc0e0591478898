"""Fisher information and Gauss-Newton matrix: samples taken one by one, outputs taken one by one, dense inverses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.parts.criteria import (
    BlockObsFisher,
    DiagonalFisher,
    GroupFisher,
    ModelReduction,
    ObsFisher,
    OutputDistortion,
    PosteriorDamage,
    SecondOrderPairs,
    WeightFisher,
)
from prunus.parts.granularity import Channel, Element, Tile
from tests.oracle.second_order_nets import (
    SHAPES,
    batches,
    build,
    cross_entropy,
    flat,
    gauss_newton,
    gradients,
    sample_gradients,
    samples,
    scores,
    task_of,
    weights,
)

NETS = sorted(SHAPES)


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].reshape(value.shape), value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_the_diagonal_is_the_mean_of_squared_gradients_of_single_samples(name: str) -> None:
    model, data = build(name), batches(name)
    every = sample_gradients(model, data)
    fisher = {n: torch.stack([g[n].square() for g in every]).mean(0) for n in weights(model)}
    theirs = {n: 0.5 * f * weights(model)[n].square() for n, f in fisher.items()}
    close(scores(model, task_of(data), DiagonalFisher(), Element()), theirs)


def test_batches_of_unequal_size_count_by_their_samples() -> None:
    model, data = build("mlp"), batches("mlp", 1)
    uneven = [(data[0][0][:2], data[0][1][:2]), (data[0][0][2:], data[0][1][2:])]
    ours = scores(model, task_of(uneven), DiagonalFisher(), Element())
    close(ours, scores(model, task_of(data), DiagonalFisher(), Element()))


def test_few_samples_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build("conv"), batches("conv")
    before = scores(model, task_of(data), DiagonalFisher(), Element())
    taylor = scores(model, task_of(data), WeightFisher(), Element())
    monkeypatch.setattr("prunus.parts.evidence.samples.AT_ONCE", 60)
    close(scores(model, task_of(data), DiagonalFisher(), Element()), before)
    close(scores(model, task_of(data), WeightFisher(), Element()), taylor)


@pytest.mark.parametrize("name", NETS)
def test_the_gauss_newton_diagonal_is_exact(name: str) -> None:
    model, data = build(name), batches(name, size=3)
    diagonal = gauss_newton(model, data).diagonal()
    theirs = 0.5 * diagonal * flat(weights(model)).square()
    ours = scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton"), Element())
    torch.testing.assert_close(flat(ours), theirs, rtol=1e-7, atol=1e-12)


def test_random_probes_of_the_gauss_newton_matrix_are_right_on_average() -> None:
    model, data = build("mlp"), batches("mlp", 1, 3)
    exact = flat(scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton"), Element()))
    drawn = flat(scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton", probes=150), Element()))
    assert abs(float(drawn.sum() / exact.sum()) - 1) < 0.1
    assert float((exact - drawn).abs().sum() / exact.sum()) < 0.3


@pytest.mark.parametrize("name", NETS)
def test_the_output_fisher_is_the_sum_of_squared_output_gradients(name: str) -> None:
    model, data = build(name), batches(name, size=3)
    total = torch.zeros_like(flat(weights(model)))
    for x, _ in samples(data):
        for output in model(x)[0]:
            total += flat(gradients(model, output)).square()
    theirs = total / len(samples(data)) * flat(weights(model)).square()
    task = prunus.Task(calib=data, example=(data[0][0],))  # no loss at all
    torch.testing.assert_close(flat(scores(model, task, OutputDistortion(), Element())), theirs, rtol=1e-7, atol=1e-12)


def test_outputs_of_a_linear_model_move_by_what_its_score_says() -> None:
    """For f = w x the distortion of removing a weight is exactly E[x_i^2] w_i^2: the paper's linear case."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False).double()
    data = [(torch.randn(6, 4, dtype=torch.float64), torch.zeros(6))]
    ours = scores(model, prunus.Task(calib=data), OutputDistortion(), Element())["weight"]
    for i in range(2):
        for j in range(4):
            w = model.weight.detach().clone()
            w[i, j] = 0.0
            moved = (data[0][0] @ (w - model.weight.detach()).T).square().sum(1).mean()
            torch.testing.assert_close(ours[i, j], moved)


# Whole units


def unit_products(model: nn.Module, group: Group, gradient: dict[str, Tensor]) -> Tensor:
    """`[units]`: the sum of w g over each unit's producing weights, entry by entry."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.with_role("out"):
        products = (weights(model)[member.param] * gradient[member.param]).movedim(member.dim or 0, 0).flatten(1).sum(1)
        for unit, rows in enumerate(member.positions(group.units)):
            total[unit] += products[rows].sum()
    return total


@pytest.mark.parametrize("name", NETS)
def test_whole_units_are_squared_after_they_are_summed(name: str) -> None:
    model, data = build(name), batches(name)
    groups = Channel()(model, (data[0][0],))
    every = sample_gradients(model, data)
    theirs = {g.name: sum(0.5 * unit_products(model, g, one).square() for one in every) / len(every) for g in groups}
    close(scores(model, task_of(data), WeightFisher(), Channel()), theirs)


def test_group_fisher_squares_gradients_of_one_gate_on_all_that_is_coupled() -> None:
    """Equation 6: a mask in front of both readers of a residual stream, its gradient for every sample by itself."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inside, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.enter(x))
            return self.head(h + torch.tanh(self.inside(h)))

    torch.manual_seed(0)
    model = Residual().double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    total = torch.zeros(4, dtype=torch.float64)
    for i in range(6):
        gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
        h = torch.tanh(model.enter(x[i : i + 1]))
        out = model.head((h + torch.tanh(model.inside(h * gate))) * gate)
        F.cross_entropy(out, y[i : i + 1]).backward()
        assert gate.grad is not None
        total += gate.grad.square()
    ours = scores(model, task_of([(x, y)]), GroupFisher(), Channel())
    (coupled,) = [s for s in ours.values() if len(s) == 4]
    torch.testing.assert_close(coupled, 0.5 * total / 6)


@pytest.mark.parametrize("fisher", ["empirical", "gauss_newton"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_sosp_i_sums_pairs_of_units_over_the_network(name: str, fisher: Any) -> None:
    model, data = build(name), batches(name, size=3)
    groups = Channel()(model, (data[0][0],))
    every = sample_gradients(model, data)
    if fisher == "empirical":
        stacked = torch.stack([flat(g) for g in every])
        matrix = stacked.T @ stacked / len(every)
    else:
        matrix = gauss_newton(model, data)
    mean = torch.stack([flat(g) for g in every]).mean(0)
    vectors = []
    for group in groups:
        for unit in range(group.units):
            theta = {n: torch.zeros_like(w) for n, w in weights(model).items()}
            for member in group.with_role("out"):
                for row in member.positions(group.units)[unit]:
                    theta[member.param][row] = weights(model)[member.param][row]
            vectors.append(flat(theta))
    theirs = torch.stack([(v @ mean).abs() + 0.5 * sum((v @ matrix @ u).abs() for u in vectors) for v in vectors])
    ours = scores(model, task_of(data), SecondOrderPairs(fisher=fisher), Channel())
    torch.testing.assert_close(torch.cat([ours[g.name] for g in groups]), theirs, rtol=1e-7, atol=1e-12)


# Inverses


def rank_one_inverse(rows: Tensor, damp: float) -> Tensor:
    """The papers' recursion: one gradient after the other."""
    inverse = torch.eye(rows.shape[1], dtype=torch.float64) / damp
    for g in rows:
        v = inverse @ g
        inverse = inverse - torch.outer(v, v) / (len(rows) + g @ v)
    return inverse


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_woodfisher_divides_by_the_inverse_that_rank_one_updates_build(block: int) -> None:
    model, data = build("conv"), batches("conv")
    every = sample_gradients(model, data)
    ours = scores(model, task_of(data), ObsFisher(block=block, damp=1e-3), Element())
    for n, w in weights(model).items():
        rows = torch.stack([g[n].flatten() for g in every])
        parts = [rank_one_inverse(part, 1e-3).diagonal() for part in rows.split(block, 1)]
        theirs = w.square().flatten() / (2 * torch.cat(parts))
        torch.testing.assert_close(ours[n].flatten(), theirs, rtol=1e-6, atol=1e-12)


def test_obs_is_the_least_rise_of_a_quadratic_loss_under_the_constraint() -> None:
    """Removing a weight of a loss 1/2 v^T F v and moving all the others as they like costs w^2 / 2 [F^-1]_ii."""
    model, data = build("mlp"), batches("mlp")
    rows = torch.stack([g["4.weight"].flatten() for g in sample_gradients(model, data)])
    fisher = rows.T @ rows / len(rows) + 1e-2 * torch.eye(12, dtype=torch.float64)
    ours = scores(model, task_of(data), ObsFisher(block=12, damp=1e-2), Element())["4.weight"].flatten()
    w = weights(model)["4.weight"].flatten()
    for q in range(12):
        rest = [i for i in range(12) if i != q]
        best = torch.linalg.solve(fisher[rest][:, rest], fisher[rest, q] * w[q])  # the others' reply to v_q = -w_q
        v = torch.zeros(12, dtype=torch.float64)
        v[q], v[rest] = -w[q], best
        torch.testing.assert_close(ours[q], 0.5 * v @ fisher @ v)


def test_obert_removes_blocks_of_weights_at_the_least_rise() -> None:
    model, data = build("mlp"), batches("mlp")
    rows = torch.stack([g["0.weight"].flatten() for g in sample_gradients(model, data)])
    w = weights(model)["0.weight"].flatten()
    ours = scores(model, task_of(data), BlockObsFisher(block=10, damp=1e-2), Tile((1, 2), exclude=("2.*",)))["0.weight"]
    assert ours.shape == (5, 2)
    for pair in range(10):
        at = [2 * pair, 2 * pair + 1]
        start = 2 * pair // 10 * 10
        fisher = rows[:, start : start + 10]
        inverse = torch.linalg.inv(fisher.T @ fisher / len(rows) + 1e-2 * torch.eye(10, dtype=torch.float64))
        inside = [i - start for i in at]
        worth = 0.5 * w[at] @ torch.linalg.inv(inverse[inside][:, inside]) @ w[at]
        torch.testing.assert_close(ours.flatten()[pair], worth)


def test_blocks_of_one_weight_are_woodfishers() -> None:
    model, data = build("mlp"), batches("mlp")
    single = scores(model, task_of(data), ObsFisher(block=4, damp=1e-4), Element())
    close(scores(model, task_of(data), BlockObsFisher(block=4, damp=1e-4), Element()), single)


def test_units_that_cross_blocks_are_refused() -> None:
    model, data = build("mlp"), batches("mlp")
    with pytest.raises(SpecError, match="block"):
        scores(model, task_of(data), BlockObsFisher(block=3), Channel())


# Posterior


def test_the_prior_maximizes_the_evidence_of_the_laplace_approximation() -> None:
    """log evidence in delta, up to a constant: 1/2 sum log delta - 1/2 sum log(N h + delta) - 1/2 delta sum w^2."""
    model, data = build("mlp"), batches("mlp")
    h = scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton"), Element())
    ours = scores(model, task_of(data), PosteriorDamage(rounds=2000), Element())
    for n, w in weights(model).items():
        precision = 2 * h[n] / w.square() * len(samples(data))
        delta = (ours[n] / w.square() - precision).flatten()
        torch.testing.assert_close(delta, delta[:1].expand_as(delta), rtol=1e-6, atol=1e-9)
        d = delta[0].clone().requires_grad_(True)
        evidence = 0.5 * (d.log() - (precision + d).log() - d * w.square()).sum()
        (slope,) = torch.autograd.grad(evidence, d)
        assert abs(float(slope * d.detach())) < 1e-3


def test_model_reduction_is_the_evidence_that_a_vanishing_prior_loses() -> None:
    """log of the integral of posterior x reduced prior / prior, on a grid, for a reduced prior that is nearly zero."""
    model, data = build("mlp"), batches("mlp")
    criterion = ModelReduction(examples=300, rounds=200)
    ours = scores(model, task_of(data), criterion, Element())["4.weight"].flatten()
    w = weights(model)["4.weight"].flatten()
    h = scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton"), Element())["4.weight"].flatten()
    damage = scores(model, task_of(data), PosteriorDamage(examples=300, rounds=200), Element())["4.weight"].flatten()
    for i in range(0, 12, 3):
        post = float(damage[i] / w[i] ** 2)
        prior = post - float(2 * h[i] / w[i] ** 2) * 300
        width = 1e-4
        grid = torch.linspace(-8 * width, 8 * width, 4001, dtype=torch.float64)
        log = 0.5 * torch.tensor(post / (2 * torch.pi)).log() - 0.5 * post * (grid - w[i]) ** 2
        log = log - 0.5 * grid**2 / width**2 - torch.tensor(width).log() + 0.5 * prior * grid**2
        log = log - 0.5 * torch.tensor(prior).log()
        gain = (torch.logsumexp(log, 0) + (grid[1] - grid[0]).log()).item()
        assert float(ours[i]) == pytest.approx(-gain, rel=1e-2, abs=1e-3)


def test_more_examples_make_the_data_count_for_more() -> None:
    model, data = build("mlp"), batches("mlp")
    few = flat(scores(model, task_of(data), PosteriorDamage(examples=10), Element()))
    many = flat(scores(model, task_of(data), PosteriorDamage(examples=10**12), Element()))
    plain = flat(scores(model, task_of(data), DiagonalFisher(fisher="gauss_newton"), Element()))
    assert torch.equal(many.argsort(), plain.argsort()) and not torch.equal(few.argsort(), plain.argsort())


# What cannot be told apart


def test_a_table_that_is_tied_to_the_head_is_left_out() -> None:
    """Rows of a table that are looked up have gradients that no linear map shows."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inside = nn.Embedding(5, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.inside(self.table(ids)))).mean(1)

    torch.manual_seed(0)
    model, ids = Tied().double(), torch.arange(12).reshape(4, 3) % 5
    task = task_of([(ids, torch.arange(4))])
    groups = (
        Group("table.weight", (5, 4), (Member("table.weight"),)),
        Group("inside.weight", (4, 4), (Member("inside.weight"),)),
    )
    from prunus.engine.score import make_sources, rate, seeded

    found, skipped = rate(DiagonalFisher(), make_sources(model, task, groups, seeded(0), DiagonalFisher()), "sum")
    assert set(found) == {"inside.weight"} and set(skipped) == {"table.weight"}
    every = [gradients(model, cross_entropy(model, one))["inside.weight"] for one in samples([(ids, torch.arange(4))])]
    theirs = 0.5 * torch.stack(every).square().mean(0) * model.inside.weight.detach().square()
    torch.testing.assert_close(found["inside.weight"], theirs)


def test_fields_that_mean_nothing_are_refused() -> None:
    for bad in (
        lambda: ObsFisher(block=0),
        lambda: ObsFisher(damp=-1.0),
        lambda: PosteriorDamage(rounds=0),
        lambda: OutputDistortion(probes=-1),
    ):
        with pytest.raises(SpecError):
            bad()
