"""What blocks do to the hidden state, against a loop over tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core.evidence import Sources
from prunus.core.task import Task
from prunus.parts.criteria import BlockInfluence, SynapticSaliency
from prunus.parts.criteria.depth import cka, cut, token_distance
from prunus.parts.evidence.hidden import HiddenStatesEvidence
from prunus.parts.granularity import Block, Branch, Channel


class Layer(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.mix, self.mlp = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Deep(nn.Module):
    def __init__(self, sizes: tuple[float, ...] = (1.0, 0.2, 2.0, 0.5)) -> None:
        super().__init__()
        self.up, self.layers, self.head = nn.Linear(4, 6), nn.ModuleList(Layer(s) for s in sizes), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Conv(nn.Module):
    """Residual blocks of two widths in one container, with one in between that cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Same(4), Same(4), nn.Conv2d(4, 6, 3, 2, 1), Same(6))
        self.stem, self.head = nn.Conv2d(2, 4, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Same(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(wide, wide, 3, padding=1), nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))


def influence(before: Tensor, after: Tensor) -> float:
    """1 - mean cosine over all tokens, one at a time; `[batch, tokens, features]`."""
    total = 0.0
    for sample_x, sample_y in zip(before, after, strict=True):
        for x, y in zip(sample_x, sample_y, strict=True):
            total += float(x @ y / (x.norm() * y.norm()))
    return 1 - total / (before.shape[0] * before.shape[1])


def task_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Task:
    return Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), calib=batches, example=(batches[0][0],))


def batches_of(*shape: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(torch.randn(n, *shape).double(), torch.randint(3, (n,))) for n in (3, 2)]


def deep() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(6)
    return Deep().double(), batches_of(5, 4)


def test_block_influence_token_by_token() -> None:
    model, batches = deep()
    slow = []
    for x, _ in batches:
        state, row = model.up(x), []
        for layer in model.layers:
            after = layer(state)
            row.append(influence(state.detach(), after.detach()))
            state = after
        slow.append(row)
    ours = prunus.score(model, task_of(model, batches), "shortgpt")
    theirs = torch.tensor(slow, dtype=torch.float64).mean(0)
    torch.testing.assert_close(ours["layers"], theirs)
    # The two least influential blocks go, and the compact network computes what the masked one does.
    result = prunus.prune(model, task_of(model, batches), "shortgpt", sparsity=0.5)
    gone = sorted(range(4), key=lambda u: float(theirs[u]))[:2]
    assert (~result.unit_masks["layers"]).nonzero().flatten().tolist() == sorted(gone)
    small = result.compact()
    assert len(small.layers) == 2
    torch.testing.assert_close(small.eval()(batches[0][0]), result.model.eval()(batches[0][0]))


def test_of_a_branch_the_sum_is_what_leaves() -> None:
    model, batches = deep()
    sources = Sources(
        model,
        task_of(model, batches),
        Branch()(model, (batches[0][0],)),
        dict(model.named_parameters()),
        torch.Generator(),
    )
    found = next(iter(HiddenStatesEvidence().collect(sources)))
    state = model.up(batches[0][0])
    for u, layer in enumerate(model.layers):
        middle = state + layer.mix(layer.norm1(state))
        after = middle + layer.mlp(layer.norm2(middle))
        pairs = {"layers.*.mix": (state, middle), "layers.*.mlp": (middle, after), "layers.*.mlp.2": (middle, after)}
        for name, states in found.items():
            for got, expected in zip(states[u].unbind(-1), pairs[name], strict=True):
                torch.testing.assert_close(got, expected.detach())
        state = after
    assert len(found) == 2


def test_feature_maps_are_compared_at_every_position() -> None:
    torch.manual_seed(6)
    model, batches = Conv().double(), batches_of(2, 6, 6)
    ours = prunus.score(model, task_of(model, batches[:1]), "shortgpt")["body"]
    state, slow = model.stem(batches[0][0]), []
    for block in model.body:
        after = block(state)
        if isinstance(block, Same):
            slow.append(influence(*(t.detach().flatten(2).transpose(1, 2) for t in (state, after))))
        state = after
    torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64))


def test_angles_and_padding() -> None:
    states = torch.zeros(1, 1, 3, 2, 2, dtype=torch.float64)
    states[0, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # before (1, 0), after (0, 2): a right angle
    states[0, 0, 1] = torch.tensor([[1.0, 3.0], [0.0, 0.0]])  # the same direction
    assert math.isclose(float(token_distance(states, "cosine")[0]), 0.5)  # the third token is none
    assert math.isclose(float(token_distance(states, "angular")[0]), 0.25)
    assert math.isclose(float(BlockInfluence(angular=True)(states)[0]), 0.25)


def test_channels_have_no_hidden_states() -> None:
    model, batches = deep()
    groups = Channel()(model, (batches[0][0],))
    sources = Sources(model, task_of(model, batches), groups, dict(model.named_parameters()), torch.Generator())
    assert all(not found for found in HiddenStatesEvidence().collect(sources))


def test_segments_are_the_cheapest_of_all_cuts() -> None:
    for seed in range(5):
        apart = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        apart = (apart + apart.T).fill_diagonal_(0.0)
        for count in (1, 2, 3, 6):
            prices = {}
            for inner in itertools.combinations(range(1, 6), count - 1):
                ends = [0, *inner, 6]
                parts = list(itertools.pairwise(ends))
                prices[inner] = sum(
                    float(sum(apart[p, q] for p in range(i, j) for q in range(i, j))) / (j - i) for i, j in parts
                )
            segment = cut(apart, count).tolist()
            ours = tuple(i for i in range(1, 6) if segment[i] != segment[i - 1])
            assert math.isclose(prices[ours], min(prices.values()), rel_tol=1e-12, abs_tol=1e-12)


def test_cka_by_its_definition() -> None:
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centre = torch.eye(5, dtype=torch.float64) - 1 / 5

    def hsic(k: Tensor, m: Tensor) -> float:
        return float(torch.trace(k @ centre @ m @ centre))

    grams = [f @ f.T for f in features]
    for i, j in itertools.product(range(3), range(3)):
        slow = hsic(grams[i], grams[j]) / math.sqrt(hsic(grams[i], grams[i]) * hsic(grams[j], grams[j]))
        assert math.isclose(float(cka(features)[i, j]), slow, rel_tol=1e-9)


def test_of_every_segment_the_block_with_the_largest_flow_stays() -> None:
    model, batches = deep()
    task = task_of(model, batches[:1])
    groups = prunus.methods.shortgpt.granularity(model, (batches[0][0],))
    sources = Sources(model, task, groups, dict(model.named_parameters()), torch.Generator())
    found = next(iter(HiddenStatesEvidence().collect(sources)))["layers"]
    segment = cut(1 - cka(found[..., 1].mean(2)), 2).tolist()
    flow = prunus.score(model, task, replace(prunus.methods.shortgpt, criterion=SynapticSaliency()))["layers"]
    first = [max((u for u in range(4) if segment[u] == s), key=lambda u: float(flow[u])) for s in (0, 1)]
    result = prunus.prune(model, task, "layer_segments", sparsity=0.5)
    assert result.unit_masks["layers"].nonzero().flatten().tolist() == sorted(first)


class Added(nn.Module):
    """Layers that return what their container adds to the state."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


def test_what_leaves_a_block_that_is_added_up_is_the_sum() -> None:
    torch.manual_seed(5)
    net, x = Added().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    (group,) = Block()(net, (x,))
    assert group.additive  # type: ignore[attr-defined]
    scores = prunus.score(net, Task(calib=[x], example=(x,)), "shortgpt")[group.name]
    state, expected = net.up(x), []
    for layer in net.layers:
        after = state + layer(state)
        expected.append(1 - F.cosine_similarity(state, after, dim=-1).mean())
        state = after
    assert torch.allclose(scores, torch.stack(expected).detach())
