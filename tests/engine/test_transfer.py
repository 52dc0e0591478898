"""Tickets on networks of another depth and for another task."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Budget, Result
from prunus.core.errors import StructureError
from prunus.engine.transfer import stretched
from prunus.lab.zoo.resnet import resnet8, resnet14, resnet20, resnet32, resnet56

WIDTH = 0.25


def batches(classes: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 3, 8, 8, generator=draw), torch.randint(classes, (4,), generator=draw)) for _ in range(2)]


def task(classes: int = 10) -> prunus.Task:
    data = batches(classes)
    return prunus.Task(
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), train=data, example=(data[0][0],)
    )


def ticket(net: nn.Module, name: str = "magnitude") -> Result:
    return prunus.prune(net, task(), name, sparsity=0.8, steps=0 if name == "magnitude" else 6)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return resnet14(width=WIDTH)


def shorter(name: str) -> str:
    """Where a third block's parameter comes from, of two."""
    return re.sub(r"^(stages\.\d)\.2\.", r"\1.1.", name)


def names(net: nn.Module) -> list[str]:
    return [n for n, _ in net.named_parameters()]


@pytest.mark.parametrize(
    ("source", "target", "order", "expected"),
    [
        (resnet14, resnet20, "append", {0: 0, 1: 1, 2: 1}),
        (resnet20, resnet14, "append", {0: 0, 1: 1}),
        (resnet20, resnet32, "append", {0: 0, 1: 1, 2: 2, 3: 1, 4: 2}),
        (resnet20, resnet32, "interpolate", {0: 0, 1: 1, 2: 1, 3: 2, 4: 2}),
        # The mapping 0:0;1:1,2;2:3,4;3:5,6;4:7,8 of the official code's help.
        (resnet32, resnet56, "interpolate", {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 4, 8: 4}),
        (resnet14, resnet14, "append", None),
    ],
)
def test_blocks_are_repeated_or_left_out(source, target, order, expected) -> None:  # type: ignore[no-untyped-def]
    path = stretched(names(source(width=WIDTH)), names(target(width=WIDTH)), order=order)
    wanted = {f"stages.{s}.{j}": f"stages.{s}.{i}" for s in range(3) for j, i in (expected or {}).items()}
    assert path == wanted


def test_a_longer_network_gets_masks_and_initial_weights_block_by_block(net: nn.Module) -> None:
    torch.manual_seed(1)
    found, longer = ticket(net, "lth"), resnet20(width=WIDTH)
    before = copy.deepcopy(longer.state_dict())
    result = prunus.transfer(found, longer, initial=net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(longer.state_dict().values(), before.values(), strict=True))
    named = dict(result.model.named_parameters())
    for name, mask in result.masks.items():
        there = shorter(name)
        assert torch.equal(mask, found.masks[there]), name
        assert torch.equal(named[name], net.state_dict()[there] * mask)
    assert set(result.masks) == {n for n, p in named.items() if p.ndim > 1}
    assert 0.7 < result.sparsity < 0.9


def test_there_and_back_is_the_ticket_itself(net: nn.Module) -> None:
    found = ticket(net)
    longer = prunus.transfer(found, resnet20(width=WIDTH), initial=net.state_dict())
    back = prunus.transfer(longer, resnet14(width=WIDTH), initial=longer.model.state_dict())
    assert all(torch.equal(back.masks[n], m) for n, m in found.masks.items())
    assert all(
        torch.equal(p, found.masks.get(n, torch.tensor(1.0)) * net.state_dict()[n])
        for n, p in back.model.named_parameters()
    )


def test_another_task_keeps_its_own_head(net: nn.Module) -> None:
    torch.manual_seed(2)
    found, other = ticket(net), resnet14(width=WIDTH, num_classes=4)
    with pytest.raises(StructureError, match=r"'fc\.weight' is \(4, 16\)"):
        prunus.transfer(found, other)
    result = prunus.transfer(found, other, initial=net.state_dict(), new=("fc",))
    assert "fc.weight" not in result.masks and "fc.weight" not in result.unit_masks
    assert torch.equal(result.model.fc.weight, other.fc.weight)
    assert torch.equal(result.model.conv1.weight, net.conv1.weight * found.masks["conv1.weight"])


def test_trained_on_by_magnitude_the_mask_stays_what_it_is(net: nn.Module) -> None:
    from dataclasses import replace

    from prunus import methods
    from prunus.parts.granularity import Element

    found = ticket(net)
    carried = prunus.transfer(found, resnet14(width=WIDTH, num_classes=4), initial=net.state_dict(), new=("fc",))
    kept = sum(int(m.sum()) for m in carried.unit_masks.values()) / sum(m.numel() for m in carried.unit_masks.values())
    recipe = replace(methods.magnitude, granularity=Element(exclude=("fc",)))
    trained = prunus.prune(carried.model, task(4), recipe, budget=Budget(density=kept), steps=4)
    assert all(torch.equal(trained.masks[n], m) for n, m in carried.masks.items())
    assert not torch.equal(trained.model.conv1.weight, carried.model.conv1.weight)


def test_whole_channels_are_carried_over_and_still_compact(net: nn.Module) -> None:
    found = prunus.prune(net, task(), "l1_filter", sparsity=0.5)
    result = prunus.transfer(found, resnet20(width=WIDTH), initial=net.state_dict())
    for name, mask in result.masks.items():
        assert torch.equal(mask, found.masks[shorter(name)])
    small = result.compact()
    x = batches(10)[0][0]
    assert torch.allclose(small.eval()(x), result.model.eval()(x), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in result.model.parameters())


def test_what_does_not_fit_is_named_and_nothing_is_changed(net: nn.Module) -> None:
    found = ticket(net)
    with pytest.raises(StructureError, match=r"conv1\.weight"):
        prunus.transfer(found, resnet14(width=0.5))
    with pytest.raises(StructureError, match="initial lacks"):
        prunus.transfer(found, resnet14(width=WIDTH), initial={})
    # A stage of one block has only its first block to give, which downsamples.
    short = prunus.prune(resnet8(width=WIDTH), task(), "magnitude", sparsity=0.5)
    with pytest.raises(StructureError, match=r"stages\.1\.1\.conv1"):
        prunus.transfer(short, resnet14(width=WIDTH))


def test_the_procedure_finds_in_one_network_and_trains_another(net: nn.Module) -> None:
    torch.manual_seed(5)
    longer = resnet20(width=WIDTH, num_classes=4)
    result = prunus.prune(
        longer,
        task(4),
        "ticket_transfer",
        sparsity=0.8,
        steps=6,
        seed=1,
        found_on=task(10),
        found_in=net,
        new=("fc",),
    )
    found = prunus.prune(net, task(10), "lth", sparsity=0.8, steps=3, seed=1)
    assert "fc.weight" not in result.masks
    assert all(torch.equal(mask, found.masks[shorter(name)]) for name, mask in result.masks.items())
    assert result.recipe.name == "ticket_transfer" and result.cost["steps"] == 3
