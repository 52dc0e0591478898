"""Activation evidence against module hooks, one sample at a time, and explicit gates that are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, Sources
from prunus.core.groups import Group
from prunus.core.part import Granularity
from prunus.core.task import Task
from prunus.parts.evidence import activations
from prunus.parts.granularity import Channel, Head

Batch = tuple[Tensor, Tensor]


class Plain(nn.Module):
    """A depthwise and a grouped convolution on the way, and a flatten before the linear layer."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.grouped, self.c = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.deep(F.relu(self.norm(self.a(x)))))))
        x = F.relu(self.c(torch.tanh(self.grouped(x))))
        return self.last(x.flatten(1))


class Residual(nn.Module):
    """Units with two readers: the stem's are read by the branch and, through the sum, by the head."""

    shape = (2, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 5, 1)
        self.head = nn.Conv2d(5, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x + self.two(F.relu(self.one(x)))
        return self.head(x).flatten(1)


class Attention(nn.Module):
    shape = (5, 4)

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.out, self.head = nn.Linear(4, 18), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(mixed).mean(1))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def made(kind: type[nn.Module]) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(5)
    model = kind().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2)
    batches = [(torch.randn(n, *kind.shape).double(), torch.randint(3, (n,))) for n in (4, 3)]
    return model, batches


def sources_of(model: nn.Module, batches: Sequence[Batch], granularity: Granularity) -> Sources:
    task = Task(loss=loss_of, calib=batches)
    groups = granularity(model, (batches[0][0],))
    return Sources(model, task, groups, dict(model.named_parameters()), torch.Generator().manual_seed(0))


def collected(evidence: Evidence, sources: Sources) -> list[dict[str, Tensor]]:
    return [dict(found) for found in evidence.collect(sources)]


def owned(group: Group, model: nn.Module, reader: str, x: Tensor, unit: int) -> Tensor:
    """Which entries of a reader's input belong to a unit: those that do not matter once its weights are zero."""
    module = model.get_submodule(reader)
    member = next(m for m in group.members if m.param == f"{reader}.weight")
    weight = torch.zeros_like(module.weight)
    where = member.positions(group.units)[unit]
    weight.index_fill_(1, where, 1.0)
    probe = x.detach().clone().requires_grad_(True)
    if isinstance(module, nn.Linear):
        y = F.linear(probe, weight)
    else:
        y = F.conv2d(probe, weight, None, module.stride, module.padding, module.dilation, module.groups)
    (grad,) = torch.autograd.grad(y.sum(), probe)
    return grad != 0


def inputs_of(model: nn.Module, reader: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(reader).register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    model.eval()(x)
    handle.remove()
    return seen[0]


def gated(model: nn.Module, group: Group, readers: Sequence[str], sample: Batch, unit: int) -> float:
    """dL/dgate at 1, the gate multiplying what all readers see of the unit; for one sample alone."""
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def scale(reader: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> Tensor:
            mine = owned(group, model, reader, args[0], unit)
            return torch.where(mine, args[0] * gate, args[0])

        return hook

    handles = [model.get_submodule(r).register_forward_pre_hook(scale(r)) for r in readers]
    loss = loss_of(model.eval(), sample)
    for handle in handles:
        handle.remove()
    (grad,) = torch.autograd.grad(loss, gate, allow_unused=True)
    return 0.0 if grad is None else float(grad)


READERS = {
    Plain: {"a": ["b"], "b": ["grouped"], "grouped": ["c"], "c": ["last"]},
    Residual: {"stem": ["one", "head"], "one": ["two"]},
    Attention: {"qkv": ["out"]},
}
CASES = [(kind, name) for kind, groups in READERS.items() for name in groups]


def granularity_of(kind: type[nn.Module]) -> Granularity:
    return Head() if kind is Attention else Channel()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_activation_is_what_the_first_reader_sees(kind: type[nn.Module], name: str) -> None:
    model, batches = made(kind)
    sources = sources_of(model, batches, granularity_of(kind))
    group = next(g for g in sources.groups if g.name == name)
    for found, (x, _) in zip(collected(activations.ActivationEvidence(), sources), batches, strict=True):
        reader = READERS[kind][name][0]
        seen = inputs_of(model, reader, x)
        for unit in range(group.units):
            mine = owned(group, model, reader, seen, unit)
            for n in range(len(x)):
                torch.testing.assert_close(found[name][unit, n].sort().values, seen[n][mine[n]].sort().values)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_gate_gradient_is_that_of_real_gates_sample_by_sample(kind: type[nn.Module], name: str) -> None:
    model, batches = made(kind)
    sources = sources_of(model, batches, granularity_of(kind))
    group = next(g for g in sources.groups if g.name == name)
    for found, (x, y) in zip(collected(activations.GateGradEvidence(), sources), batches, strict=True):
        slow = [
            [gated(model, group, READERS[kind][name], (x[n : n + 1], y[n : n + 1]), u) for n in range(len(x))]
            for u in range(group.units)
        ]
        torch.testing.assert_close(found[name], torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_activation_and_its_gradient_are_those_at_the_first_reader(kind: type[nn.Module], name: str) -> None:
    model, batches = made(kind)
    sources = sources_of(model, batches, granularity_of(kind))
    group = next(g for g in sources.groups if g.name == name)
    values = collected(activations.ActivationEvidence(), sources)
    pairs = collected(activations.ActivationGradEvidence(), sources)
    for value, pair, (x, y) in zip(values, pairs, batches, strict=True):
        a, g = pair[name].unbind(-1)
        torch.testing.assert_close(a, value[name])
        product = (a * g).sum(-1) * len(x)
        first = READERS[kind][name][:1]
        slow = [
            [gated(model, group, first, (x[n : n + 1], y[n : n + 1]), u) for n in range(len(x))]
            for u in range(group.units)
        ]
        torch.testing.assert_close(product, torch.tensor(slow, dtype=torch.float64))


def test_feature_maps_are_the_maps_of_the_next_convolution() -> None:
    model, batches = made(Plain)
    sources = sources_of(model, batches, Channel())
    for found, (x, _) in zip(collected(activations.FeatureMapEvidence(), sources), batches, strict=True):
        assert set(found) == {"a", "b", "grouped"}  # the last is read by a linear layer
        torch.testing.assert_close(found["a"], inputs_of(model, "b", x).transpose(0, 1))
        seen = inputs_of(model, "grouped", x)  # units are pairs of channels, one of each group
        torch.testing.assert_close(
            found["b"],
            torch.stack([seen[:, :4], seen[:, 4:]], 2)
            .flatten(1, 2)
            .new_tensor([[seen[n, c].tolist() for n in range(len(x)) for c in (u, u + 4)] for u in range(4)]),
        )


def test_tokens_in_one_list_are_joined_to_samples() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.down(torch.tanh(self.up(x.flatten(0, 1))))
            return self.head(tokens.reshape(x.shape).mean(1))

    torch.manual_seed(3)
    model, x, y = Flat().double(), torch.randn(4, 5, 4).double(), torch.randint(3, (4,))
    sources = sources_of(model, [(x, y)], Channel())
    gates = collected(activations.GateGradEvidence(), sources)[0]["up"]
    group = next(g for g in sources.groups if g.name == "up")
    slow = [[gated(model, group, ["down"], (x[n : n + 1], y[n : n + 1]), u) for n in range(4)] for u in range(6)]
    torch.testing.assert_close(gates, torch.tensor(slow, dtype=torch.float64))
    assert collected(activations.ActivationEvidence(), sources)[0]["up"].shape == (6, 4, 5)


def test_units_with_a_reader_that_is_not_seen_have_no_gate_gradient() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.mix = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.up(x))
            return self.head(x + self.mix(x, x, x, need_weights=False)[0]).mean(1)

    torch.manual_seed(3)
    sources = sources_of(Hidden().double(), [(torch.randn(4, 5, 4).double(), torch.randint(3, (4,)))], Channel())
    assert all(not found for found in collected(activations.GateGradEvidence(), sources))


def test_no_batch_is_an_error() -> None:
    model, batches = made(Residual)
    sources = sources_of(model, batches, Channel())
    sources.task = Task(loss=loss_of, calib=[])
    with pytest.raises(DataError, match="no batch"):
        collected(activations.ActivationEvidence(), sources)


def test_nothing_is_left_behind() -> None:
    model, batches = made(Plain)
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for evidence in (activations.GateGradEvidence(), activations.ActivationEvidence()):
        collected(evidence, sources_of(model, batches, Channel()))
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
