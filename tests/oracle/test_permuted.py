"""Channel permutation for N:M: assignments by trying all of them, and channels that are moved without a trace."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.arrangement import arranged
from prunus.core.errors import SpecError, StructureError
from prunus.core.groups import Group, Member
from prunus.parts.allocation import NofM, Permuted, Uniform
from prunus.parts.prepare import Arranged

pytest.importorskip("scipy")


def kept(scores: Tensor, blocks: list[list[int]], n: int) -> float:
    """The sum of the n best of every block in every row."""
    return sum(sum(sorted((float(row[j]) for j in block), reverse=True)[:n]) for row in scores for block in blocks)


def by_trying(scores: Tensor, n: int, m: int) -> list[list[int]]:
    """Dealt out to and fro by the sums of columns; then, place by place, the best of all ways to give the inputs there
    to the blocks.
    """
    order = sorted(range(scores.shape[1]), key=lambda j: (float(scores[:, j].sum()), j))
    size = len(order) // m
    places = [order[i * size : (i + 1) * size][:: 1 if i % 2 == 0 else -1] for i in range(m)]
    for place in range(m):

        def blocks(given: tuple[int, ...], place: int = place) -> list[list[int]]:
            return [[given[b] if i == place else places[i][b] for i in range(m)] for b in range(size)]

        places[place] = list(max(permutations(places[place]), key=lambda g: kept(scores, blocks(g), n)))
    return [[places[i][b] for i in range(m)] for b in range(size)]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_is_the_best_assignment_place_by_place(n: int, m: int, seed: int) -> None:
    scores = torch.rand(5, 4 * m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    order = arranged(scores, n, m)
    assert order.sort().values.tolist() == list(range(4 * m))
    blocks = by_trying(scores, n, m)
    # Where one of four stays, an input that is best nowhere may stand anywhere, and what follows hangs on where.
    slack = 1e-2 if (n, m) == (1, 4) else 1e-12
    assert kept(scores, order.reshape(-1, m).tolist(), n) == pytest.approx(kept(scores, blocks, n), rel=slack)
    assert kept(scores, blocks, n) > kept(scores, torch.arange(4 * m).reshape(-1, m).tolist(), n)


def test_masks_hold_the_pattern_in_that_order() -> None:
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    group = Group("w", (6, 16), (Member("w"),), weight=(6, 16), kind="weight")
    mask = Permuted(NofM(2, 4))({"w": scores}, 0.5, {"w": group})["w"]
    assert (mask[:, arranged(scores.double(), 2, 4)].reshape(-1, 4).sum(1) == 2).all()
    assert not (mask.reshape(-1, 4).sum(1) == 2).all()
    plain = NofM(2, 4)({"w": scores}, 0.5, {"w": group})["w"]
    assert float(scores[mask].sum()) > float(scores[plain].sum())
    with pytest.raises(SpecError, match="a pattern of inputs"):
        Permuted(Uniform())


class Mlp(nn.Module):
    """Hidden neurons can change places; inputs and outputs cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))


def test_hidden_neurons_are_moved_with_all_that_belongs_to_them() -> None:
    torch.manual_seed(0)
    model, x = Mlp().eval(), torch.randn(30, 6)
    with torch.no_grad():
        for t in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var):
            t.copy_(torch.rand(16) + 0.1)
        read = torch.relu(model.norm(model.up(x))).double().square().mean(0).sqrt()
    w = model.down.weight.detach().double().abs()
    worth = (w / w.sum(0) + w / w.sum(1, keepdim=True)) * read**0.5
    moved = Arranged()(copy.deepcopy(model), (x,), prunus.Task(calib=[(x,)]))
    order = arranged(worth, 2, 4)
    assert not torch.equal(order, torch.arange(16))
    assert torch.equal(moved.down.weight, model.down.weight[:, order])
    assert torch.equal(moved.up.weight, model.up.weight[order]) and torch.equal(moved.up.bias, model.up.bias[order])
    assert torch.equal(moved.norm.running_mean, model.norm.running_mean[order])
    with torch.no_grad():
        assert torch.allclose(moved(x), model(x), atol=1e-6)
    pruned = prunus.prune(
        model, prunus.Task(calib=[(x,)]), replace(methods.ria, sweep="model", prepare=Arranged(), allocate=NofM(2, 4))
    )
    assert (pruned.unit_masks["down.weight"].reshape(-1, 4).sum(1) == 2).all()


class Placed(nn.Module):
    """Hidden neurons of which each counts by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)
        self.places = torch.arange(8).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)) + self.places.to(x))


def test_what_would_compute_something_else_is_left_where_it_is() -> None:
    torch.manual_seed(0)
    model, x = Placed(), torch.randn(9, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match="no channels of Placed can change places"):
        Arranged()(model, (x,), prunus.Task(calib=[(x,)]))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_llama_computes_the_same_and_keeps_more() -> None:
    """The residual stream and the hidden neurons move, heads stay; every weight is 2:4 where it lies."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    task = prunus.Task(calib=[{"input_ids": torch.randint(50, (2, 12))} for _ in range(2)])
    batch = next(iter(task.calib or ()))
    moved = Arranged()(copy.deepcopy(model), batch, task)
    with torch.no_grad():
        assert torch.allclose(moved(**batch).logits, model(**batch).logits, atol=1e-5)
    stays = {n for n, p in model.named_parameters() if torch.equal(p, moved.get_parameter(n))}
    assert all("norm" in n for n in stays)  # whose scales are all one
    recipe = replace(methods.ria, prepare=Arranged(), allocate=NofM(2, 4), sweep="model")
    found = prunus.prune(model, task, recipe)
    assert all((m.reshape(-1, 4).sum(1) == 2).all() for m in found.unit_masks.values())
    plain, arranged_ = (prunus.score(m, task, replace(methods.ria, sweep="model")) for m in (model, moved))
    best = lambda s: float(s.reshape(-1, 4).topk(2, 1).values.sum())  # noqa: E731
    kept_ = sum(float(arranged_[n][m].sum()) for n, m in found.unit_masks.items())
    each = sum(best(s[:, arranged(s.double(), 2, 4)]) for s in plain.values())  # an order for every layer
    assert sum(best(s) for s in plain.values()) < kept_ < each
