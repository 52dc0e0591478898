"""Layers as products, and their components as units, against the singular value decomposition itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.factors import Factors
from prunus.parts.allocation import Uniform
from prunus.parts.granularity import Channel, Rank
from prunus.parts.prepare import Factorize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.hidden, self.head = nn.Linear(4, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(torch.relu(self.deep(torch.relu(self.conv(x))))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TASK = prunus.Task(example=(X,))


@pytest.mark.parametrize("split", ["even", "in", "out"])
def test_the_product_is_the_weight_and_outputs_stay(net: Net, split: str) -> None:
    before = net(X)
    weights = {n: m.weight.detach().clone() for n, m in net.named_children()}
    biases = {n: m.bias for n, m in net.named_children()}
    numbers = torch.get_rng_state()
    assert Factorize(split=split)(net, None) is net
    assert torch.equal(numbers, torch.get_rng_state())
    assert [n for n, m in net.named_children() if isinstance(m, Factors)] == ["conv", "point", "hidden", "head"]
    assert torch.allclose(net(X), before, rtol=1e-12, atol=1e-12)
    for name, module in net.named_children():
        assert module.bias is biases[name]
        assert torch.allclose(module.weight, weights[name], rtol=1e-12, atol=1e-12)
        if isinstance(module, Factors):
            values = torch.linalg.svdvals(weights[name].flatten(1))
            inner = module[0].weight.flatten(1).norm(dim=1)
            outer = module[1].weight.flatten(1).norm(dim=0)
            assert torch.allclose(inner * outer, values, rtol=1e-10)
            expected = {"even": values.sqrt(), "in": values, "out": torch.ones_like(values)}[split]
            assert torch.allclose(inner, expected, rtol=1e-10)


def test_what_is_left_is_the_best_approximation_of_its_rank(net: Net) -> None:
    recipe = replace(methods.svd_truncation, allocate=Uniform())
    result = prunus.prune(net, TASK, recipe, sparsity=0.5)
    for name in ("conv", "point", "hidden", "head"):
        weight = getattr(net, name).weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        k = -(-len(s) // 2)
        best = u[:, :k] * s[:k] @ v[:k]
        assert torch.allclose(getattr(result.model, name).weight.flatten(1), best, rtol=1e-10, atol=1e-12)
    small = result.compact()
    assert small.conv[0].out_channels == 3 and small.head[1].in_features == 3
    assert torch.allclose(small(X), result.model(X), rtol=1e-10, atol=1e-12)


def test_layers_compete_by_the_share_of_their_energy(net: Net) -> None:
    result = prunus.prune(net, TASK, "svd_truncation", sparsity=0.4)
    shares = []
    for name in ("conv", "point", "hidden", "head"):
        energy = torch.linalg.svdvals(getattr(net, name).weight.detach().flatten(1)).square()
        shares += [(float(e / energy.sum()), name, k) for k, e in enumerate(energy)]
    kept = sorted(shares, reverse=True)[: -(-len(shares) * 6 // 10)]
    for group in result.groups:
        name = group.name.split(".")[0]
        mask = result.unit_masks[group.name].tolist()
        assert [k for k, keep in enumerate(mask) if keep] == sorted(k for _, n, k in kept if n == name)


def test_rank_takes_components_only(net: Net) -> None:
    Factorize()(net, None)
    ranks = {g.name: g.units for g in Rank()(net, (X,))}
    assert sorted(ranks.values()) == [4, 4, 5, 6] and all(n.split(".")[0] != "deep" for n in ranks)
    both = {g.name for g in Channel()(net, (X,))}
    assert set(ranks) < both
    assert Rank()(Net().double(), (X,)) == ()


def test_twice_is_once(net: Net) -> None:
    Factorize()(net, None)
    names = [n for n, _ in net.named_parameters()]
    Factorize()(net, None)
    assert [n for n, _ in net.named_parameters()] == names


def test_what_cannot_be_taken_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.again = self.c
            self.attention = nn.MultiheadAttention(4, 2)

    model = Shared()
    Factorize()(model, None)
    assert isinstance(model.c, Factors) and model.again is model.c
    assert type(model.a) is type(model.b) is nn.Linear
    assert not any(isinstance(m, Factors) for m in model.attention.modules())
    with pytest.raises(SpecError, match="finds no layer"):
        Factorize()(nn.ReLU(), None)
    assert isinstance(Factorize(exclude=("0",))(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), None)[0], nn.Linear)
    last = Factorize(skip_last=True)(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), None)
    assert type(last[1]) is nn.Linear and type(Factorize(skip_last=True)(last, None)[1]) is nn.Linear


def test_a_layer_that_reads_weights_by_name_still_works() -> None:
    torch.manual_seed(2)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        Factorize()(model, None)
        assert torch.allclose(model(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("compact", [True, False])
def test_saved_and_loaded_it_is_the_same(net: Net, tmp_path: Path, compact: bool) -> None:
    result = prunus.prune(net, TASK, "svd_truncation", sparsity=0.5)
    folder = prunus.save(result, tmp_path / "it", compact=compact)
    plain = prunus.load(folder, lambda: Net().double())
    again = prunus.load(folder, lambda: Factorize()(Net().double(), None))
    with torch.no_grad():
        for loaded in (plain, again):
            assert torch.allclose(loaded(X), result.model.eval()(X), rtol=1e-10, atol=1e-12)


def test_an_optimizer_of_the_old_layers_is_refused(net: Net) -> None:
    task = prunus.Task(loss=lambda model, batch: model(batch).square().mean(), train=[X], example=(X,))
    with pytest.raises(SpecError, match="a function from parameters"):
        prunus.prune(net, task, "svd_truncation", sparsity=0.5, steps=1, optimizer=torch.optim.SGD(net.parameters()))
    result = prunus.prune(net, task, "svd_truncation", sparsity=0.5, steps=2)
    assert result.sparsity == pytest.approx(0.5, abs=0.06)
