"""Blocks that are replaced or nested, and what recipes, files, budgets and training make of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError, StructureError
from prunus.graph import Edit, compact, compact_optimizer, masked_, replay_, trace
from prunus.graph.depth.blocks import blocks
from prunus.lab.zoo.resnet import resnet14, resnet20
from prunus.parts.allocation import GlobalRanking
from prunus.parts.granularity import Block
from tests.graph.depth_nets import Residual, proved, removed, stack, where
from tests.graph.nets import Net
from tests.graph.proof import disturb, some


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(6), Residual(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.two(self.one(x))


def test_blocks_that_are_no_entries_become_identities(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return Net(
            lambda s, x: s.head(s.layers[1](s.layers[0](s.deep(s.b(s.a(s.first(x))))))),
            first=nn.Linear(4, 6), a=Residual(6), b=Residual(6), deep=Nested(), head=nn.Linear(6, 2),
            layers=nn.ModuleList(Residual(6) for _ in range(2)),
        )  # fmt: skip

    net, example = build(), torch.randn(2, 4)
    found, small = proved(net, example, build)
    assert {g.name: g.names for g in found.groups} == {
        "*": ("a", "b"), "deep.*": ("deep.one", "deep.two"), "layers.*": ("layers.0", "layers.1")
    }  # fmt: skip
    assert all(group.replaced for group in found.groups) and [g.at_least for g in found.groups] == [0, 1, 1]
    assert sum(type(m) is nn.Identity for m in small.modules()) == 3
    small, edits = compact(net, found.groups, {"*": torch.tensor([True, False])}, example)
    assert edits == (Edit("b.*", 0, 3),) and type(small.b) is nn.Identity and type(small.a) is Residual
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(example).sum().backward()
    optimizer.step()
    masked_(net, found.groups, {"*": torch.tensor([True, False])})
    small, edits = compact(net, found.groups, {"*": torch.tensor([True, False])}, example)
    moved = compact_optimizer(optimizer, net, small, edits)
    momentum = moved.state[small.a.a.weight]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state[net.a.a.weight]["momentum_buffer"])
    recipe = replace(methods.l1_filter, granularity=Block(exclude=("layers", "deep")))
    result = prunus.prune(net, prunus.Task(example=example), recipe, sparsity=0.5)
    prunus.save(result, tmp_path / "model")
    back = prunus.load(tmp_path / "model", build)
    assert type(back.b) is nn.Identity
    torch.testing.assert_close(back(example), result.compact().eval()(example))
    with pytest.raises(StructureError, match=r"b\.\* is no container"):
        replay_(build(), [Edit("b.*", 0, 3, ((0, 1),))])


def test_shared_and_unused_blocks() -> None:
    shared = Residual(6)
    net = nn.Sequential(Residual(6), shared, shared, Residual(6), nn.Linear(6, 2))
    found = blocks(net, torch.randn(2, 6))
    assert where(found) == {"model": (0, 3)}
    net = nn.Sequential(Residual(6), Residual(6), Residual(6), nn.Linear(6, 2))
    net[2].a.weight = net[0].a.weight
    found, _ = proved(net, torch.randn(2, 6))
    assert where(found) == {"model": (0, 1, 2)}
    assert "0.a.weight" not in {m.param for m in found.groups[0].members}
    experts = Net(lambda s, x: s.e[1](s.e[0](x)), e=nn.ModuleList([Residual(6), nn.Linear(6, 2), Residual(6)]))
    assert "did not run" in blocks(experts, torch.randn(2, 6)).refused["e.2"]


def test_blocks_and_channels_together() -> None:
    net = disturb(resnet14(width=0.5)).eval()
    example = torch.randn(2, 3, 16, 16)
    structure, found = trace(net, example), blocks(net, example)
    groups = (*structure.groups, *found.groups)
    masks = {**some(structure, 0.4), **removed(found)}
    small, edits = compact(net, groups, masks, example)
    fresh = replay_(resnet14(width=0.5), edits).eval()
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh(example), small(example))


def test_a_recipe_prunes_compacts_and_comes_back_from_a_file(tmp_path: Path) -> None:
    net, example = stack(), torch.randn(2, 6)
    with torch.no_grad():
        net.layers[2].a.weight.mul_(0.01)
        net.layers[2].b.weight.mul_(0.01)
    recipe = replace(methods.l1_filter, granularity=Block())
    result = prunus.prune(net, prunus.Task(example=example), recipe, sparsity=0.25)
    assert result.unit_masks["layers"].tolist() == [True, True, False, True]
    assert not any(bool(p.any()) for p in result.model.layers[2].parameters())
    small = result.compact(verify=True)
    assert result.verified_error is not None and result.verified_error <= 1e-9
    assert result.to_dict()["params_kept"] == sum(p.numel() for p in small.parameters())
    prunus.save(result, tmp_path / "model")
    back = prunus.load(tmp_path / "model", stack)
    assert [layer.index for layer in back.layers] == [0, 1, 2] and back.n_layers == 3
    torch.testing.assert_close(back(example), small.eval()(example))


def test_gradients_budgets_and_training_see_blocks() -> None:
    net, example = resnet20(width=0.25), torch.randn(4, 3, 16, 16)
    batches = [(example, torch.tensor([0, 1, 2, 3]))]
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), train=batches)
    recipe = replace(methods.taylor_fo, granularity=Block(), allocate=GlobalRanking())
    for budget in (prunus.Budget(params=0.7), prunus.Budget(macs=0.7)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = prunus.prune(net, task, recipe, budget=budget, steps=2)
        small = result.compact()
        size = parameters if budget.currency == "params" else macs
        assert 0 < size(small) <= 0.7 * size(net) and sum(len(stage) for stage in small.stages) < 9


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module) -> int:
    structure = trace(model, torch.randn(1, 3, 16, 16), probe=False)
    return sum(structure.macs.values()) + structure.fixed_macs


def test_scores_are_those_of_the_blocks_own_weights() -> None:
    net = nn.Sequential(Residual(6), Residual(6), nn.Linear(6, 6), Residual(6))
    net[1].a = nn.Linear(6, 20)
    net[1].b = nn.Linear(20, 6)
    recipe = replace(methods.l1_filter, granularity=Block())
    scores = prunus.score(net, prunus.Task(example=torch.randn(2, 6)), recipe)["model"]
    expected = [sum(float(p.detach().abs().sum()) for p in net[i].parameters() if p.ndim == 2) for i in (0, 1, 3)]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_granularity_arguments() -> None:
    net, example = stack(), (torch.randn(2, 6),)
    assert [g.entries for g in Block(exclude=("layers.1", "*.3.a.weight"))(net, example)] == [(0, 2)]
    assert Block(at_least=3)(net, example)[0].at_least == 3
    for wrong in ({"at_least": 0}, {"reduce": "mean"}):
        with pytest.raises(SpecError):
            Block(**wrong)
    with pytest.raises(StructureError, match="no block of Sequential can be removed whole; 0: with its parameters"):
        Block()(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), example)
    with pytest.raises(SpecError, match="example"):
        Block()(net, None)
    with pytest.raises(StructureError, match="no values"):
        blocks(stack().to("meta"), torch.randn(2, 6))
    assert Block.from_dict(Block(exclude=("a",)).to_dict()) == Block(exclude=("a",))
