"""Whole layers: greedy elimination, losses and sensitivities of single ones, and merging, against loops over copies."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.engine.collapse import collapse_, cosine
from prunus.parts.criteria import ConsecutiveInfluence
from prunus.parts.granularity import Block, Coupled, Element, Inner, Middle
from prunus.parts.granularity.inner import stacks
from tests.oracle.language_nets import gpt2, language_task, llama, logits, next_token, tokens


def without(model: nn.Module, gone: set[int]) -> nn.Module:
    """A copy with layers really taken out; the others by their first places."""
    small = copy.deepcopy(model)
    small.model.layers = nn.ModuleList(m for i, m in enumerate(small.model.layers) if i not in gone)
    for i, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = i
    small.config.num_hidden_layers = len(small.model.layers)
    return small


def loss(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(next_token(model, b)) for b in tokens()) / 2


def test_sleb_by_taking_layers_out_of_copies() -> None:
    model = llama(5)
    gone: list[int] = []
    for _ in range(2):
        tried = {i: loss(without(model, {*gone, i})) for i in range(5) if i not in gone}
        gone.append(min(tried, key=lambda i: tried[i]))
    left = sorted((i for i in range(5) if i not in gone), key=lambda i: tried[i])
    # Without an event all but one layer are put in order; the first two places are those of the greedy search.
    places = prunus.score(model, language_task(), "sleb")["model.layers"]
    assert places.argsort().tolist()[:2] == gone
    result = prunus.prune(model, language_task(), "sleb", sparsity=0.4)
    assert (~result.unit_masks["model.layers"]).nonzero().flatten().tolist() == sorted(gone)
    for batch in tokens():
        torch.testing.assert_close(logits(result.compact(), batch), logits(without(model, set(gone)), batch))
    assert left  # and what stays was ranked by the last round


def test_greedy_is_not_one_by_one() -> None:
    """Two layers that undo each other: the one that matters most alone is the first that can go once its twin went."""

    class Adds(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.full((2, 2), by))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.by.sum()

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(map(Adds, (2.0, -1.5, 0.4, 0.1)))
            self.head = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    model, x = Sum().double(), torch.zeros(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        model.head.bias.fill_(0.0)
    target = model(x).detach()
    task = prunus.Task(loss=lambda m, b: (m(b[0]) - target).abs().mean(), calib=[(x,)], example=(x,))
    alone = prunus.score(model, task, "shortened_llama")["layers"]
    torch.testing.assert_close(alone, torch.tensor([8.0, 6.0, 1.6, 0.4], dtype=torch.float64))
    places = prunus.score(model, task, "sleb")["layers"]
    # 0.1 first (0.4 off), then 0.4 (2 off), then -1.5 (4 off) rather than 2 (10 off); one layer has to stay.
    assert places.argsort().tolist() == [3, 2, 1, 0]


def test_shortened_llama_by_gradients_of_whole_layers() -> None:
    model = llama(4)
    found = replace(methods.shortened_llama_taylor, granularity=Middle(of=Block(), first=0.25, last=0.25))
    ours = prunus.score(model, language_task(), found)
    assert list(ours) == ["model.layers"] and ours["model.layers"].shape == (2,)
    total = sum(next_token(model, b) for b in tokens()) / 2
    named = dict(model.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    slow = [
        sum(float((p.detach() * grads[n]).abs().sum()) for n, p in named.items() if f".{i}." in n and p.ndim > 1)
        for i in (1, 2)
    ]
    torch.testing.assert_close(ours["model.layers"], torch.tensor(slow, dtype=torch.float64))


def test_the_ends_of_every_stack() -> None:
    model = gpt2(8)
    assert list(stacks(model)) == [[f"transformer.h.{i}" for i in range(8)]]
    assert Middle(first=0.125, last=0.25).ends(model) == [f"transformer.h.{i}" for i in (0, 6, 7)]
    groups = Middle(of=Inner(), first=0.5, last=0.25)(model, tokens()[0])
    assert [g.name.split(".")[2] for g in groups] == ["4", "4", "5", "5"]
    # A unit that reaches into a layer at an end stays too: the stream, here.
    assert all(g.kind != "width" for g in Middle(of=Coupled(exact=False), first=0.5)(model, tokens()[0]))
    with pytest.raises(SpecError, match="can exclude"):
        Middle(of=Element())
    with pytest.raises(SpecError, match="less than 1"):
        Middle(first=0.5, last=0.5)


def collapsed(
    model: nn.Module, count: int, merge: int, interval: int, threshold: float
) -> tuple[nn.Module, list[Tensor]]:
    """The paper's algorithm on copies: layers are added up by their state dicts and deleted."""
    whole, merged, similar = model, copy.deepcopy(model), []
    at = len(merged.model.layers) - 1 - merge
    while at >= 1 and count:
        layers = merged.model.layers
        k = min(merge, len(layers) - 1 - at, count)
        trial = copy.deepcopy(merged)
        base, *after = (merged.model.layers[at + i].state_dict() for i in range(k + 1))
        summed = {n: w + sum(other[n] - w for other in after) for n, w in base.items()}
        trial.model.layers[at].load_state_dict(summed)
        trial = without(trial, set(range(at + 1, at + k + 1)))
        alike = torch.cat([cosine(last_state(whole, b), last_state(trial, b)) for b in tokens()]).mean()
        if alike > threshold:
            merged, count, at = trial, count - k, at - interval
            similar.append(alike)
        else:
            at -= 1
    assert not count
    return merged, similar


def last_state(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the last layer puts out, before the last norm."""
    seen = []
    handle = model.model.norm.register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach()))
    logits(model, batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("merge", "interval", "threshold"), [(1, 2, -1.0), (2, 1, -1.0), (1, 1, None)])
def test_laco_by_the_papers_algorithm(merge: int, interval: int, threshold: float | None) -> None:
    model = llama(6)
    if threshold is None:  # between the similarities of first merges, so that some place is refused
        each = []
        for at in (4, 3):
            one, group = copy.deepcopy(model), Block()(model, tokens()[0])[0]
            each.append(collapse_(one, language_task(), group, 1, merge=5 - at, threshold=-1.0, lowest=at)[0]["alike"])
        threshold = min(each) - 1e-9
    slow, similar = collapsed(model, 2, merge, interval, threshold)
    before = copy.deepcopy(model.state_dict())
    told = {"merge": merge, "interval": interval, "threshold": threshold}
    result = prunus.prune(model, language_task(), "laco", sparsity=1 / 3, **told)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    alike = [m["alike"] for m in result.history[-1]["merges"]]
    torch.testing.assert_close(torch.tensor(alike, dtype=torch.float64), torch.stack(similar), rtol=1e-6, atol=1e-6)
    small = result.compact()
    assert len(small.model.layers) == 4
    for batch in tokens():
        torch.testing.assert_close(logits(small, batch), logits(slow, batch), rtol=1e-9, atol=1e-9)


def test_laco_lowers_its_threshold_where_it_merges_too_few() -> None:
    result = prunus.prune(llama(4), language_task(), "laco", sparsity=0.5, threshold=0.9999)
    assert sum(len(m["merged"]) for m in result.history[-1]["merges"]) == 2
    with pytest.raises(SpecError, match="2 at most"):
        prunus.prune(llama(4), language_task(), "laco", sparsity=0.75)


def test_consecutive_layers_merge_into_the_difference_of_all() -> None:
    """w_l + (w_{l+1} - w_l) + (w_{l+2} - w_l), written out for one matrix."""
    model = llama(4)
    group = Block()(model, tokens()[0])[0]
    old = [layer.mlp.up_proj.weight.detach().clone() for layer in model.model.layers]
    collapse_(model, language_task(), group, 2, merge=2, threshold=-1.0)
    new = [layer.mlp.up_proj.weight for layer in model.model.layers]
    torch.testing.assert_close(new[1], old[2] + old[3] - old[1])
    assert not new[2].any() and not new[3].any() and torch.equal(new[0], old[0])


@pytest.mark.parametrize(("angular", "which"), [(False, "all"), (True, "last")])
def test_the_run_of_layers_that_does_least(angular: bool, which: str) -> None:
    model = llama(5)
    far = []
    for start in range(4):  # two of five layers go
        each = []
        for batch in tokens():
            seen: dict[str, Tensor] = {}
            first, last = model.model.layers[start], model.model.layers[start + 1]
            handles = [
                first.register_forward_pre_hook(lambda _m, x, seen=seen: seen.update(before=x[0])),
                last.register_forward_hook(lambda _m, _x, y, seen=seen: seen.update(after=y)),
            ]
            with torch.no_grad():
                model(**batch)
            for handle in handles:
                handle.remove()
            for sample in range(3):
                for token in range(8) if which == "all" else (7,):
                    x, y = seen["before"][sample, token], seen["after"][sample, token]
                    cosine = float(x @ y / (x.norm() * y.norm()))
                    each.append(math.acos(cosine) / math.pi if angular else 1 - cosine)
        far.append(sum(each) / len(each))
    start = far.index(min(far))
    recipe = replace(methods.llm_streamline, criterion=ConsecutiveInfluence(angular=angular, tokens=which))
    result = prunus.prune(model, language_task(), recipe, sparsity=0.4)
    assert (~result.unit_masks["model.layers"]).nonzero().flatten().tolist() == [start, start + 1]
    # Without an event a run is one layer, and the others are ranked by what they do alone.
    scores = prunus.score(model, language_task(), recipe)["model.layers"]
    assert int((scores == 0).sum()) == 1 and int((scores > 1).sum()) == 4


def test_minitron_in_depth_is_distilled() -> None:
    model = llama(3)
    task = language_task(train=tokens(3))
    result = prunus.prune(model, task, "minitron_depth", sparsity=1 / 3, steps=4)
    rises = [loss(without(model, {i})) for i in range(3)]
    gone = (~result.unit_masks["model.layers"]).nonzero().flatten().tolist()
    assert gone == [rises.index(min(rises))]
    before = prunus.prune(model, task, "minitron_depth", sparsity=1 / 3)
    wanted = [logits(model, b).softmax(-1) for b in tokens(3)]
    apart = [
        sum(float((logits(r.model, b).softmax(-1) - w).abs().sum()) for b, w in zip(tokens(3), wanted, strict=True))
        for r in (result, before)
    ]
    assert apart[0] < apart[1]
