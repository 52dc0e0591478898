"""SynFlow against Synaptic-Flow's loop, entry by entry on ResNet-20, one round and a hundred.

The published loop, in evaluation mode: zero what is pruned; take the absolute value of the whole state (running
statistics too); one forward of ones, summed, backwards; score |g w|; remove the int((1 - d^(k/K)) n) lowest of the
network. Its published state runs it in float32 (the double precision lines are commented out, the authors advise them
for deep networks); here both sides run in float64.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import CollapseWarning
from prunus.parts.schedule import Iterative, OneShot
from tests.oracle.rules import above_threshold, count, differences, joined, weights

ONE_SHOT = replace(methods.synflow, schedule=OneShot())
SIDE = 12  # of the image: the smallest at which one round empties layers


@pytest.fixture
def task() -> prunus.Task:
    return prunus.Task(example=torch.zeros(1, 3, SIDE, SIDE))


def published(model: nn.Module, density: float, rounds: int) -> tuple[dict[str, Tensor], list[int]]:
    """Masks after the last round, and what was left after each."""
    model = copy.deepcopy(model).double().eval()
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items()}
    left = []
    for k in range(1, rounds + 1):
        with torch.no_grad():
            for n, w in weights(model).items():
                w.mul_(masks[n])
        signs = {n: t.sign() for n, t in model.state_dict().items()}
        for t in model.state_dict().values():
            t.abs_()
        for w in weights(model).values():
            w.grad = None
        model(torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64)).sum().backward()
        scores = {n: (w.grad * w).detach().abs() for n, w in weights(model).items()}
        for n, t in model.state_dict().items():
            t.mul_(signs[n])
        masks = above_threshold(scores, int((1.0 - density ** (k / rounds)) * joined(scores).numel()))
        left.append(count(masks))
    return masks, left


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_one_round_is_the_published(net: nn.Module, task: prunus.Task, sparsity: float) -> None:
    theirs, _ = published(net, 1.0 - sparsity, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        ours = prunus.prune(net, task, ONE_SHOT, sparsity=sparsity)
    assert differences(ours.masks, theirs) == {}


def test_a_hundred_rounds_are_the_published(fresh: nn.Module, task: prunus.Task) -> None:
    """Equal masks after the last round and equal counts after every one; and no layer is empty, and nothing is said."""
    theirs, left = published(fresh, 1.0 - 0.95, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = prunus.prune(fresh, task, "synflow", sparsity=0.95)
    assert differences(ours.masks, theirs) == {}
    assert [event["kept"] for event in ours.history] == left
    assert ours.collapsed == ()
    assert all(bool(m.any()) for m in ours.masks.values())


def test_one_round_at_95_percent_collapses_layers_and_names_them(fresh: nn.Module, task: prunus.Task) -> None:
    theirs, _ = published(fresh, 1.0 - 0.95, 1)
    empty = tuple(n for n, m in theirs.items() if not m.any())
    assert len(empty) >= 2
    with pytest.warns(CollapseWarning) as caught:
        ours = prunus.prune(fresh, task, ONE_SHOT, sparsity=0.95)
    assert ours.collapsed == empty
    assert all(name in str(caught[0].message) for name in empty[:5])


def test_one_iterative_round_is_one_shot(net: nn.Module, task: prunus.Task) -> None:
    once = prunus.prune(net, task, replace(methods.synflow, schedule=Iterative(rounds=1)), sparsity=0.8)
    assert differences(once.masks, prunus.prune(net, task, ONE_SHOT, sparsity=0.8).masks) == {}


def test_no_data_and_no_rescaling_changes_the_scores(net: nn.Module, task: prunus.Task) -> None:
    """Scores depend on no data (the example is ones whatever it holds), and a layer twice as large before one half as
    large leaves them as they are (conservation, theorem 1)."""
    ours = prunus.score(net, task, "synflow")
    other = prunus.score(net, replace(task, example=torch.full((1, 3, SIDE, SIDE), torch.nan)), "synflow")
    block = net.get_submodule("stages.1.1")
    with torch.no_grad():
        block.bn1.weight.mul_(4.0)
        block.bn1.bias.mul_(4.0)
        block.conv2.weight.div_(4.0)
    scaled = prunus.score(net, task, "synflow")
    for name, s in ours.items():
        assert torch.equal(s, other[name])
        torch.testing.assert_close(s, scaled[name], rtol=1e-12, atol=0.0)
