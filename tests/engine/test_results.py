"""What comes back: both denominators, warnings about collapse, groups, and masks in memory."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.core.counting import count, full
from prunus.core.errors import CollapseWarning, PrunusWarning, SpecError
from prunus.engine.apply_ import apply_, digest, pack, unpack
from prunus.engine.result import effective_sparsity
from prunus.parts.granularity import Channel, Element
from prunus.parts.schedule import Iterative
from tests.contract.models import CASES

CNN = CASES["cnn"]


def lopsided() -> nn.Module:
    """A network in which global magnitude empties the small middle layer."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 8)).double()
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    return model


def test_a_layer_that_is_emptied_is_named_and_reported() -> None:
    with pytest.warns(CollapseWarning, match=r"magnitude leaves no weight in 1\.weight.*ERK, LAMP"):
        result = prunus.prune(lopsided(), recipe="magnitude", sparsity=0.8)
    assert result.collapsed == ("1.weight",) == tuple(result.to_dict()["collapsed"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prunus.prune(lopsided(), recipe="lamp", sparsity=0.8).collapsed == ()


def test_a_layer_that_stays_empty_is_not_reported_again() -> None:
    recipe = replace(prunus.methods.magnitude, schedule=Iterative(rounds=5))
    with pytest.warns(CollapseWarning) as caught:
        result = prunus.prune(lopsided(), recipe=recipe, sparsity=0.8)
    assert len([w for w in caught if w.category is CollapseWarning]) == 1 and result.collapsed == ("1.weight",)


def test_both_denominators_are_given() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Linear(10, 10)).double()
    result = prunus.prune(model, recipe="magnitude", sparsity=0.5)
    total = 200 + 20 + 20
    assert result.sparsity == 0.5
    assert result.weight_sparsity == pytest.approx(100 / total)
    assert effective_sparsity(dict(result.model.named_parameters())) == pytest.approx(
        (100 + 10) / total
    )  # the norm's bias
    record = result.to_dict()
    assert (record["params_dense"], record["params_kept"]) == (total, total - 100)
    assert json.loads(json.dumps(record)) == record
    assert "50.00%" in result._repr_html_() and "200" in result._repr_html_()


def test_skipped_groups_are_in_neither_the_masks_nor_the_first_denominator() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.normed, self.norm, self.head = (
                nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.normed(self.plain(x).relu())).relu().mean((2, 3)))

    example = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    with pytest.warns(PrunusWarning):
        result = prunus.prune(Mixed().double(), prunus.Task(example=example), "network_slimming", sparsity=0.5)
    assert set(result.unit_masks) == {"normed"} and "NormScale is undefined" in result.skipped["plain"]
    assert result.sparsity == 0.5
    assert result.compact().normed.weight.shape[:2] == (4, 6)


def test_compacting_single_weights_says_that_nothing_gets_smaller() -> None:
    result = prunus.prune(CNN.model(), recipe="magnitude", sparsity=0.5)
    with pytest.warns(PrunusWarning, match="unstructured.*keeps its shapes"):
        small = result.compact()
    assert small is not result.model
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), result.model.parameters(), strict=True))


def test_an_iterator_is_not_robbed_of_its_first_batch() -> None:
    batches = iter(CNN.batches(3))
    result = prunus.prune(CNN.model(), CNN.task(calib=None, train=batches, example=None), "magnitude", sparsity=0.5)
    assert len(list(batches)) == 3 and result.example is None


def test_groups_at_both_granularities() -> None:
    model, example = CNN.model(), CNN.batches(1)[0][0]
    single = prunus.groups(model, granularity=Element())
    assert [g.name for g in single] == [n for n, p in model.named_parameters() if p.ndim > 1]
    assert all(g.elementwise and g.weight == tuple(model.get_parameter(g.name).shape) for g in single)
    channels = prunus.groups(model, example)
    stem = next(g for g in channels if any(m.param == "stem.weight" for m in g.members))
    coupled = {m.param for m in stem.members}
    assert stem.shape == (8,) and stem.kind == "channel" and stem.at_least == 1
    # The residual sum ties the stem to the block's output, and with it go the norms and the next layers' inputs.
    assert {"stem.weight", "bn.weight", "bn.running_mean", "body.0.conv1.weight", "body.0.conv2.weight"} <= coupled
    assert not any(m.param == "head.weight" and m.dim == 0 for g in channels for m in g.members)
    with pytest.raises(SpecError, match=r"Task\(example="):
        prunus.groups(model)


def test_scores_come_in_the_shapes_of_what_they_rank() -> None:
    model, task = CNN.model(), CNN.task()
    single = prunus.score(model, task, "magnitude")
    assert all(torch.equal(s, model.get_parameter(n).detach().abs()) for n, s in single.items())
    channels = prunus.score(model, task, "l1_filter")
    assert all(s.ndim == 1 for s in channels.values())
    grads = prunus.score(model, task, replace(prunus.methods.snip, granularity=Channel()))
    assert set(grads) == set(channels)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5), (2, 3, 4)])
def test_packing_masks_loses_nothing(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    assert torch.equal(unpack(pack(mask), shape), mask)
    assert len(pack(mask)) == -(-mask.numel() // 8)


def test_equal_masks_have_equal_digests_and_others_have_not() -> None:
    a = {"x": torch.tensor([True, False, True]), "y": torch.tensor([[True]])}
    b = {"y": torch.tensor([[True]]), "x": torch.tensor([True, False, True])}
    assert digest(a) == digest(b) != digest(a | {"y": torch.tensor([[False]])})


def test_counting() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert count(mask) == count(mask.t()) == 3 and not full(mask)
    spread = torch.ones((), dtype=torch.bool).expand(4, 5)
    assert count(spread) == 20 and full(spread) and count(~spread) == 0
    assert count(torch.ones(0, dtype=torch.bool)) == 0 and full(torch.ones(0, dtype=torch.bool))
    assert count(torch.tensor(True)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_zeroing_is_exact_in_every_type_and_layout(dtype: torch.dtype, channels_last: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    p = nn.Parameter(torch.randn(4, 3, 2, 2, generator=draw).to(dtype))
    if channels_last:
        p.data = p.data.to(memory_format=torch.channels_last)
    mask = torch.rand(p.shape, generator=draw) > 0.5
    expected = torch.where(mask, p.detach(), torch.zeros((), dtype=dtype))
    version = p._version
    apply_({"p": p}, {"p": mask})
    assert torch.equal(p.detach(), expected) and p._version > version
    apply_({"p": p}, {"p": mask})
    assert torch.equal(p.detach(), expected)


def test_a_backward_over_weights_that_were_zeroed_meanwhile_is_refused() -> None:
    layer = nn.Linear(3, 3)
    hidden = layer(torch.randn(2, 3, requires_grad=True))
    apply_({"w": layer.weight}, {"w": torch.eye(3) > 0})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()
