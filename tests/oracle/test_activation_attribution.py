"""Attribution, Shapley values, walks and clusters against their definitions on small networks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core.part import Criterion
from prunus.core.task import Task
from prunus.engine.score import make_sources, rate
from prunus.parts.allocation.information import InformationConcentration, entropy_of
from prunus.parts.criteria import (
    AbsoluteAttribution,
    FunctionalContribution,
    NeuronImportance,
    ShapleyValue,
    StationaryHead,
)
from prunus.parts.criteria.attribution import stationary
from prunus.parts.evidence.attribution import AttributionEvidence
from prunus.parts.evidence.clusters import k_means
from prunus.parts.evidence.propagated import inf_fs
from prunus.parts.granularity import Channel, Head
from tests.oracle.test_activation_criteria import Net, maps_of, scores_of
from tests.oracle.test_activations import Attention, Batch, collected, inputs_of, loss_of, made, sources_of


class Chain(nn.Module):
    """Two hidden layers, each with its own nonlinearity."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(F.relu(self.a(x)))))


# DeepLIFT


def by_hand(model: Chain, x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Contributions of the hidden units to the largest output, one sample, multipliers written out."""
    zero = torch.zeros_like(x)
    pre_a, pre_a0 = model.a(x), model.a(zero)
    a, a0 = F.relu(pre_a), F.relu(pre_a0)
    pre_b, pre_b0 = model.b(a), model.b(a0)
    b, b0 = torch.tanh(pre_b), torch.tanh(pre_b0)
    y, y0 = model.c(b), model.c(b0)
    top = int(y.argmax())
    m_b = model.c.weight[top]  # linear rule
    m_pre_b = [m_b[j] * (b[j] - b0[j]) / (pre_b[j] - pre_b0[j]) for j in range(5)]  # rescale rule
    m_a = [sum(m_pre_b[j] * model.b.weight[j, i] for j in range(5)) for i in range(6)]
    of_a = torch.stack([m_a[i] * (a[i] - a0[i]) for i in range(6)])
    return of_a.detach(), (m_b * (b - b0)).detach(), float(y[top] - y0[top])


def test_deeplift_is_the_rescale_rule_and_complete() -> None:
    model, batches = made(Chain)
    found = collected(AttributionEvidence(), sources_of(model, batches, Channel()))
    for parts, (x, _) in zip(found, batches, strict=True):
        for n in range(len(x)):
            of_a, of_b, difference = by_hand(model, x[n])
            torch.testing.assert_close(parts["a"][:, n], of_a)
            torch.testing.assert_close(parts["b"][:, n], of_b)
            assert math.isclose(float(parts["a"][:, n].sum()), difference, rel_tol=1e-9)  # summation to delta
            assert math.isclose(float(parts["b"][:, n].sum()), difference, rel_tol=1e-9)
    ours = scores_of(model, batches, AbsoluteAttribution())
    slow = torch.stack([torch.stack([by_hand(model, row)[0] for row in x]).abs().mean(0) for x, _ in batches]).mean(0)
    torch.testing.assert_close(ours["a"], slow)


def test_deeplift_of_convolutions_sums_to_the_difference() -> None:
    model, batches = made(Net)
    found = collected(AttributionEvidence(), sources_of(model, batches, Channel()))
    for parts, (x, _) in zip(found, batches, strict=True):
        y, y0 = model.eval()(x), model(torch.zeros_like(x))
        difference = (y - y0).gather(1, y.argmax(1, keepdim=True)).squeeze(1).detach()
        for name in ("one", "two"):
            torch.testing.assert_close(parts[name].sum(0), difference)


def test_deeplift_reads_no_labels_and_leaves_no_trace() -> None:
    model, batches = made(Chain)
    blind = [(x, torch.full_like(y, -100)) for x, y in batches]
    ours, theirs = (scores_of(model, b, AbsoluteAttribution()) for b in (batches, blind))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert all(p.grad is None for p in model.parameters())


# NISP


def spearman(a: list[float], b: list[float]) -> float:
    ranks = [[sum(w < v for w in x) + (1 + sum(w == v for w in x)) / 2 for v in x] for x in (a, b)]
    return float(torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1])


def paths(values: Tensor, mixing: float) -> Tensor:
    """Infinite feature selection as the sum over all lengths of paths, term by term."""
    d = values.shape[1]
    sigma = [float(((c - c.mean()) ** 2).mean().sqrt()) for c in values.T]
    sigma = [v / max(sigma) for v in sigma]
    a = torch.zeros(d, d, dtype=torch.float64)
    for i in range(d):
        for j in range(d):
            alike = abs(spearman(values[:, i].tolist(), values[:, j].tolist()))
            a[i, j] = mixing * max(sigma[i], sigma[j]) + (1 - mixing) * (1 - alike)
    a = 0.9 / float(torch.linalg.eigvals(a).abs().max()) * a
    power, total = a.clone(), torch.zeros_like(a)
    for _ in range(400):
        total, power = total + power, power @ a
    return total.sum(1)


def test_infinite_feature_selection_is_the_sum_over_paths() -> None:
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    values[3] = values[2]  # ties
    torch.testing.assert_close(inf_fs(values, 0.3), paths(values, 0.3))


def test_nisp_goes_back_through_absolute_weights() -> None:
    model, batches = made(Chain)
    final = inf_fs(torch.cat([inputs_of(model, "c", x) for x, _ in batches]))
    ours = scores_of(model, batches, NeuronImportance())
    torch.testing.assert_close(ours["b"].squeeze(-1), final)
    torch.testing.assert_close(ours["a"].squeeze(-1), model.b.weight.detach().abs().T @ final)


def test_nisp_sums_over_the_positions_of_a_map() -> None:
    model, batches = made(Net)
    final = inf_fs(torch.cat([inputs_of(model, "last", x) for x, _ in batches])).reshape(4, 4, 4)
    kernel = model.two.weight.detach().abs()
    channel = torch.zeros(5, dtype=torch.float64)
    for c, o, i, j, y, x in itertools.product(range(5), range(4), range(3), range(3), range(4), range(4)):
        channel[c] += kernel[o, c, i, j] * final[o, y, x]
    ours = scores_of(model, batches, NeuronImportance())
    torch.testing.assert_close(ours["two"].squeeze(-1), final.sum((1, 2)))
    torch.testing.assert_close(ours["one"].squeeze(-1), channel)


# Shapley


def without(model: nn.Module, layer: str, gone: set[int], batches: list[Batch]) -> float:
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _m, args: (args[0] * torch.tensor([u not in gone for u in range(args[0].shape[1])]),)
    )
    loss = sum(float(loss_of(model.eval(), b).detach()) for b in batches) / len(batches)
    handle.remove()
    return loss


def test_shapley_values_over_all_orders_are_exact() -> None:
    """With every order as likely, permutation sampling has the Shapley value as its mean; 5 units, 120 orders."""
    model, batches = made(Chain)
    reader = "c"
    loss = {
        frozenset(s): without(model, reader, set(s), batches)
        for k in range(6)
        for s in itertools.combinations(range(5), k)
    }
    exact = torch.zeros(5, dtype=torch.float64)
    for order in itertools.permutations(range(5)):
        for at, unit in enumerate(order):
            exact[unit] += (loss[frozenset(order[: at + 1])] - loss[frozenset(order[:at])]) / 120
    few = scores_of(model, batches, ShapleyValue(permutations=3))["b"].squeeze(-1)
    total = loss[frozenset(range(5))] - loss[frozenset()]
    assert math.isclose(float(few.sum()), total, rel_tol=1e-9) and math.isclose(float(exact.sum()), total, rel_tol=1e-9)
    many = scores_of(model, batches, ShapleyValue(permutations=400))["b"].squeeze(-1)
    assert float((many - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert float((many - exact).abs().max()) < float((few - exact).abs().max())


# Random walks


def test_stationary_distribution_by_walking() -> None:
    weight = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = weight / weight.sum(1, keepdim=True)
    here = torch.full((5,), 0.2, dtype=torch.float64)
    for _ in range(500):
        here = here @ step
    torch.testing.assert_close(stationary(weight), here)
    two = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # has a period
    torch.testing.assert_close(stationary(two), torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(stationary(torch.zeros(4, 4).double()), torch.full((4,), 0.25, dtype=torch.float64))


def test_heads_are_worth_how_much_they_resemble_the_others() -> None:
    """Of symmetric weights the stationary distribution is each node's share of all weights."""
    model, batches = made(Attention)
    slow = []
    for x, _ in batches:
        heads = inputs_of(model, "out", x).unflatten(-1, (3, 2)).movedim(-2, 0).flatten(1)
        alike = [[abs(float(F.cosine_similarity(heads[i], heads[j], dim=0))) for j in range(3)] for i in range(3)]
        degree = [sum(alike[i][j] for j in range(3) if j != i) for i in range(3)]
        slow.append([d / sum(degree) for d in degree])
    ours = scores_of(model, batches, StationaryHead(), Head())["qkv"]
    torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64).mean(0))


# Clusters


def test_k_means_finds_plain_clusters() -> None:
    near = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.1, 0.0], [0.0, 9.0], [9.1, 0.0], [0.0, 9.2]], dtype=torch.float64)
    cluster = k_means(near, 3).tolist()
    assert cluster[0] == cluster[2] and cluster[1] == cluster[4] and cluster[3] == cluster[5]
    assert len(set(cluster)) == 3


def test_of_every_function_the_largest_contribution_stays() -> None:
    torch.manual_seed(2)
    base = torch.rand(3, 4, 10, dtype=torch.float64)
    a = torch.stack([base[0], 2 * base[0], 3 * base[1], base[2], 0.5 * base[1], 4 * base[0]])
    pair = torch.stack([a, torch.ones_like(a)], -1)
    score = FunctionalContribution(clusters=0.5)(pair)
    worth = a.abs().mean((1, 2))
    assert score.argsort(descending=True).tolist()[:3] == sorted([5, 2, 3], key=lambda u: -float(worth[u]))
    assert [math.floor(float(s)) for s in score] == [-2, -1, 0, 0, -1, 0]
    torch.testing.assert_close(score[5], torch.tensor(0.5, dtype=torch.float64))


# Information concentration


def test_entropy_of_a_histogram() -> None:
    values = torch.tensor([0.0, 0.1, 0.9, 1.0, 1.0, 0.5])
    counts = {0: 2, 2: 1, 3: 3}  # four bins on [0, 1], the last one closed
    slow = -sum(c / 6 * math.log(c / 6) for c in counts.values()) / math.log(4)
    assert math.isclose(entropy_of(values, 4), slow, rel_tol=1e-6)
    assert entropy_of(torch.ones(5), 4) == 0.0


def test_layers_are_dealt_units_by_their_concentration() -> None:
    model, batches = made(Net)
    sources = sources_of(model, batches, Channel())
    space = {g.name: g for g in sources.groups}
    scores = {n: torch.rand(g.units, generator=torch.Generator().manual_seed(7)) for n, g in space.items()}
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(5, 2, 6, 1, generator=generator) * torch.rand(5, 2, 1, 6, generator=generator)  # rank one
    full = torch.rand(4, 2, 6, 6, generator=generator)
    part = InformationConcentration(bins=16)
    shares = part.concentration({"one": low, "two": full})
    entropy = {n: entropy_of(m, 16) for n, m in (("one", low), ("two", full))}
    top = max(entropy.values())
    for name, rank in (("one", 1 / 6), ("two", 1.0)):
        e = entropy[name] / top
        assert math.isclose(shares[name], 2 * e * rank / (e + rank), rel_tol=1e-9)
    masks = part(scores, 0.5, space, maps={"one": low, "two": full})
    kept = {n: int(m.sum()) for n, m in masks.items()}
    assert sum(kept.values()) == 5 and kept == {"one": 1, "two": 4}
    assert bool(masks["one"][scores["one"].argmax()])
    whole = part(scores, 0.5, space, maps={})  # no maps: all layers alike
    assert abs(int(whole["one"].sum()) - int(whole["two"].sum())) <= 1


@pytest.mark.parametrize("part", [ShapleyValue(permutations=2), AbsoluteAttribution(), FunctionalContribution()])
def test_nothing_is_left_behind(part: Criterion) -> None:
    model, batches = made(Net)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    groups = Channel()(model, (batches[0][0],))
    sources = make_sources(model, Task(loss=loss_of, calib=batches), groups, torch.Generator().manual_seed(0), part)
    rate(part, sources, "sum")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert maps_of(model, batches[0][0])["one"].shape == (4, 5, 36) and prunus.methods.names()
