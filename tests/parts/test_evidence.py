"""Evidence against loops, finite sums over paths and torch.func; and that collecting it leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import prunus
from prunus.core.errors import DataError, SpecError, StructureError, WeightsError
from prunus.core.evidence import Sources
from prunus.core.groups import Group, Member
from prunus.core.part import Criterion, needs
from prunus.core.task import Task
from prunus.engine.score import make_sources, rate
from prunus.parts.criteria import ConnectionSensitivity, GradientSignal, Random, SynapticSaliency, TaylorWeight
from prunus.parts.evidence import mode
from prunus.parts.evidence.gradients import mean_gradient
from prunus.parts.granularity import Element

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Two layers with dropout and batch normalization between them: both misbehave when the mode is wrong."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(dropout)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(torch.tanh(self.norm(self.first(x)))))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    model = Net().double()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
    model.first.bias.requires_grad_(False)
    return model


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.randint(3, (6,), generator=generator))
        for _ in range(3)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sources_of(model: nn.Module, part: Criterion, calib: Any = None, **task: Any) -> Sources:
    groups = Element()(model)
    return make_sources(model, Task(loss=loss_of, calib=calib, **task), groups, torch.Generator().manual_seed(0), part)


def collected(part: Criterion, sources: Sources) -> dict[str, dict[str, Tensor]]:
    """Evidence name -> parameter name -> tensor of the parameter's shape."""
    found = {}
    for name, evidence in needs(type(part)).items():
        values = next(evidence.collect(sources))
        found[name] = {n: v.reshape(sources.parameters[n].shape) for n, v in values.items()}
    return found


# Values


def test_gradient_is_the_mean_over_batches_of_torch_func(net: Net, batches: list[Batch]) -> None:
    part = ConnectionSensitivity()
    found = collected(part, sources_of(net, part, batches))
    state = {n: p.detach() for n, p in net.named_parameters()}
    net.eval()
    expected: dict[str, Tensor] = {}
    for batch in batches:
        grads = torch.func.grad(lambda p, b=batch: F.cross_entropy(functional_call(net, p, (b[0],)), b[1]))(state)
        expected = {n: expected.get(n, torch.zeros_like(g)) + g / 3 for n, g in grads.items()}
    for name in ("first.weight", "last.weight"):
        torch.testing.assert_close(found["g"][name], expected[name])
        assert torch.equal(found["w"][name], state[name])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hessian_gradient_is_that_of_torch_func(batches: list[Batch], temperature: float) -> None:
    """H and g of the mean loss over all weight matrices, in full, and their product."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    part = GradientSignal(temperature=temperature)
    names = ["0.weight", "2.weight"]
    shapes = [net.get_parameter(n).shape for n in names]
    joined = torch.cat([net.get_parameter(n).detach().flatten() for n in names])

    def mean_loss(vector: Tensor) -> Tensor:
        parts = vector.split([s.numel() for s in shapes])
        weights = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        losses = [F.cross_entropy(functional_call(net, weights, (x,)) / temperature, y) for x, y in batches]
        return torch.stack(losses).mean()

    expected = hessian(mean_loss)(joined) @ torch.func.grad(mean_loss)(joined)
    found = collected(part, sources_of(net, part, batches))["h"]
    torch.testing.assert_close(torch.cat([found[n].flatten() for n in names]), expected, rtol=1e-9, atol=1e-14)


def test_hessian_gradient_does_not_hang_on_what_is_scored(batches: list[Batch]) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    part = GradientSignal()
    all_of_it = collected(part, sources_of(net, part, batches))["h"]
    sources = sources_of(net, part, batches)
    sources.groups = sources.groups[:1]
    torch.testing.assert_close(collected(part, sources)["h"]["0.weight"], all_of_it["0.weight"])


def test_hessian_of_a_linear_loss_is_zero() -> None:
    """Nothing to differentiate twice: zero, not an error."""
    net = nn.Linear(3, 2, bias=False)
    part = GradientSignal()
    task = Task(loss=lambda m, b: m(b).sum(), calib=[torch.randn(5, 3)])
    scores, _ = rate(part, make_sources(net, task, Element()(net), torch.Generator(), part), "sum")
    assert not scores["weight"].any()


def test_second_derivatives_go_through_fused_attention() -> None:
    torch.manual_seed(4)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(2, 5, 2, 12).transpose(1, 2).chunk(3, -1)
            mixed = F.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.out(mixed.transpose(1, 2).reshape(2, 5, 8).mean(1))
            return out

    net = Attention()
    part = GradientSignal()
    found = collected(part, sources_of(net, part, [(torch.randn(2, 5, 8), torch.tensor([0, 1]))]))["h"]
    assert all(bool(h.any()) and bool(h.isfinite().all()) for h in found.values())


def test_synaptic_flow_is_a_sum_over_paths() -> None:
    """R = sum over all paths of the product of |w| along them (biases are paths that begin inside); the flow through
    a weight is the share of the paths that cross it."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    part = SynapticSaliency()
    found = collected(part, sources_of(net, part, example=torch.randn(1, 3)))["flow"]
    a, b, c = (net.get_parameter(f"{i}.weight").detach().double().abs() for i in (0, 2, 4))
    bias_a, bias_b = (net.get_parameter(f"{i}.bias").detach().double().abs() for i in (0, 2))
    expected = {
        n: torch.zeros(s.shape, dtype=torch.float64) for n, s in (("0.weight", a), ("2.weight", b), ("4.weight", c))
    }
    for i, j, k, o in itertools.product(range(3), range(4), range(3), range(2)):
        path = a[j, i] * b[k, j] * c[o, k]
        expected["0.weight"][j, i] += path
        expected["2.weight"][k, j] += path
        expected["4.weight"][o, k] += path
    for j, k, o in itertools.product(range(4), range(3), range(2)):
        expected["2.weight"][k, j] += bias_a[j] * b[k, j] * c[o, k]
        expected["4.weight"][o, k] += bias_a[j] * b[k, j] * c[o, k]
    for k, o in itertools.product(range(3), range(2)):
        expected["4.weight"][o, k] += bias_b[k] * c[o, k]
    for name, flow in expected.items():
        torch.testing.assert_close(found[name], flow, rtol=1e-12, atol=0.0)
        assert found[name].dtype == torch.float64


def test_synaptic_flow_without_an_example_or_a_way_through() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(SpecError, match="example"):
        collected(SynapticSaliency(), sources_of(net, SynapticSaliency()))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(StructureError, match="does not depend"):
        collected(SynapticSaliency(), sources_of(Constant(), SynapticSaliency(), example=torch.ones(1, 3)))


def test_synaptic_flow_that_overflows_is_refused() -> None:
    net = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(12)]).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1e30)
    with pytest.raises(WeightsError, match="overflow"):
        collected(SynapticSaliency(), sources_of(net, SynapticSaliency(), example=torch.ones(1, 4)))


def test_synaptic_flow_leaves_masks_of_minus_infinity_alone() -> None:
    """A causal mask kept as a buffer: made absolute, it would let everything through and end in NaN."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return torch.softmax(y @ y.transpose(1, 2) + self.mask, -1) @ y

    found = collected(SynapticSaliency(), sources_of(Causal(), SynapticSaliency(), example=torch.ones(1, 4, 4)))
    assert bool(found["flow"]["inner.weight"].isfinite().all())


def test_evidence_of_a_member_is_laid_out_by_unit() -> None:
    """Channels along axis 1 through an index of two positions per unit, and several members side by side."""
    weight = nn.Parameter(torch.arange(24.0).reshape(3, 8))
    other = nn.Parameter(torch.arange(4.0) + 100)
    model = nn.Module()
    model.weight, model.other = weight, other
    index = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]])
    group = Group(
        "g", (4,), (Member("weight", 1, index, "out"), Member("other", 0, None, "out"), Member("other", 0, None, "in"))
    )
    part = ConnectionSensitivity()
    sources = Sources(model, Task(), (group,), dict(model.named_parameters()), torch.Generator())
    (values,) = next(needs(type(part))["w"].collect(sources)).values()
    assert values[1].tolist() == [1.0, 9.0, 17.0, 5.0, 13.0, 21.0, 101.0]


# Modes and traces


def state_of(model: nn.Module) -> list[Any]:
    """Python's own generator is left out: the checker of the signatures draws from it in the tests."""
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return [
        tensors,
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_hooks) for m in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - it is the global one that must not move
        torch.is_grad_enabled(),
        [p.grad for p in model.parameters()],
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Failed(Exception):
    """Raised by a loss, in the midst of collecting."""


PARTS: list[Criterion] = [
    ConnectionSensitivity(),
    ConnectionSensitivity(train_mode=True),
    GradientSignal(),
    GradientSignal(train_mode=True),
    TaylorWeight(),
    TaylorWeight(train_mode=True),
    SynapticSaliency(),
    Random(),
]


@pytest.mark.parametrize("part", PARTS, ids=repr)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_evidence_leaves_no_trace(net: Net, batches: list[Batch], part: Criterion, training: bool, fails: bool) -> None:
    """Mode of every module, gradients asked for, buffers, hooks, generators: as before, also where the loss raises in
    the second batch."""
    net.train(training)
    net.drop.train(not training)
    before, seen = state_of(net), []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(model.training)
        value = loss_of(model, batch)
        if fails and len(seen) == 2:
            raise Failed
        return value

    sources = sources_of(net, part, batches, example=torch.ones(1, 4))
    sources.task = Task(loss=loss, calib=batches, example=torch.ones(1, 4))
    reads_labels = any(e.reads == "labels" for e in needs(type(part)).values())
    if fails and reads_labels:
        with pytest.raises(Failed):
            rate(part, sources, "sum")
    else:
        rate(part, sources, "sum")
    assert same(before, state_of(net))
    assert set(seen) <= {bool(getattr(part, "train_mode", False))}


def test_a_criterion_that_raises_between_batches_leaves_no_trace(net: Net, batches: list[Batch]) -> None:
    """Per-batch evidence is handed out while it is being collected; whoever takes it may fail, and the mode must be
    back by then, not when the generator is collected as garbage."""
    part = TaylorWeight()
    net.train()
    before = state_of(net)
    stream = needs(TaylorWeight)["g"].collect(sources_of(net, part, batches))
    next(stream)
    assert same(before, state_of(net))
    next(stream)
    stream.close()
    assert same(before, state_of(net))


def test_training_mode_is_seeded_by_the_session_alone(net: Net, batches: list[Batch]) -> None:
    """Dropout inside the evidence: equal for equal generators whatever the global one is at, and other for others."""
    part = ConnectionSensitivity(train_mode=True)
    found = []
    for seed, global_seed in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(global_seed)
        sources = sources_of(net, part, batches)
        sources.generator.manual_seed(seed)
        found.append(collected(part, sources)["g"]["last.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_noise_is_seeded_by_the_session_alone(net: Net) -> None:
    draws = []
    for seed, global_seed in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(global_seed)
        sources = sources_of(net, Random())
        sources.generator.manual_seed(seed)
        draws.append(collected(Random(), sources)["u"]["first.weight"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0 <= float(draws[0].min()) < float(draws[0].max()) < 1


def test_evidence_is_collected_where_gradients_are_off(net: Net, batches: list[Batch]) -> None:
    part = ConnectionSensitivity()
    on = collected(part, sources_of(net, part, batches))["g"]["last.weight"]
    with torch.no_grad():
        off = collected(part, sources_of(net, part, batches))["g"]["last.weight"]
    assert torch.equal(on, off)
    assert bool(on.any())


def test_gradients_of_the_training_step_are_used_as_they_are(net: Net) -> None:
    part = ConnectionSensitivity()
    sources = sources_of(net, part)
    sources.gradients = {"last.weight": torch.full((3, 5), 7.0)}
    found = next(needs(type(part))["g"].collect(sources))
    assert set(found) == {"last.weight"}
    assert bool((found["last.weight"] == 7).all())


def test_what_the_loss_does_not_reach_has_no_gradient(net: Net, batches: list[Batch]) -> None:
    part = ConnectionSensitivity()
    sources = sources_of(net, part, batches)
    sources.task = Task(loss=lambda m, b: m.first(b[0]).square().mean(), calib=batches)
    grads = mean_gradient(sources, {n: sources.parameters[n] for n in ("first.weight", "last.weight")})
    assert bool(grads["first.weight"].any()) and not grads["last.weight"].any()
    sources.task = Task(loss=lambda m, b: torch.zeros(()), calib=batches)
    assert not mean_gradient(sources, {"last.weight": sources.parameters["last.weight"]})["last.weight"].any()


@pytest.mark.parametrize("part", [ConnectionSensitivity(), GradientSignal(), TaylorWeight()], ids=repr)
def test_no_batch_is_said(net: Net, part: Criterion) -> None:
    with pytest.raises(DataError, match="no batch"):
        rate(part, sources_of(net, part, []), "sum")


def test_batches_that_come_only_once_are_said(net: Net, batches: list[Batch]) -> None:
    def once() -> Iterator[Batch]:
        yield from batches

    with pytest.raises(DataError, match="only once"):
        rate(GradientSignal(), sources_of(net, GradientSignal(), once()), "sum")


def test_temperature_divides_tensors_and_logits() -> None:
    class Record:
        def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
            self.logits, self.loss = logits, loss

    class Recorded(nn.Module):
        def __init__(self, loss: Tensor | None) -> None:
            super().__init__()
            self.given = loss

        def forward(self, x: Tensor) -> Record:
            return Record(x, self.given)

    x = torch.ones(2)
    plain = nn.Identity()
    with mode.divided_outputs(plain, 4.0):
        assert plain(x).tolist() == [0.25, 0.25]
    assert plain(x).tolist() == [1.0, 1.0]
    for loss, expected in ((None, 0.25), (torch.ones(()), 1.0)):
        model = Recorded(loss)
        with mode.divided_outputs(model, 4.0):
            assert model(x).logits.tolist() == [expected] * 2


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "ria"])
def test_weights_that_multiply_no_rows_are_skipped(method: str) -> None:
    """What reads the tokens of images, given text: it runs, on none."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.cat([self.a(x), self.idle(x[x.sum(-1) > 1e9])]).relu())
            return out

    result = prunus.prune(Towers(), Task(calib=[torch.randn(16, 8)] * 2), method, sparsity=0.5)
    assert set(result.skipped) == {"idle.weight"}
    assert {n: int(m.sum()) for n, m in result.unit_masks.items()} == {"a.weight": 24, "b.weight": 12}
