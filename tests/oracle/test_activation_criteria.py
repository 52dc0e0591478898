"""Criteria from activations and their gradients against loops over samples, from their papers' definitions."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core.part import Criterion
from prunus.core.task import Task
from prunus.engine.score import make_sources, rate
from prunus.parts import criteria
from prunus.parts.allocation import CostPenalized, GlobalRanking
from prunus.parts.allocation.together import normalized
from prunus.parts.granularity import Channel, Head
from tests.contract.models import CASES
from tests.oracle.test_activations import Attention, Batch, inputs_of, loss_of, made


class Net(nn.Module):
    """Two convolutions with normalization and ReLU, then a classifier over the flattened maps."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.two, self.last = nn.Conv2d(5, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.one(x)))
        return self.last(F.relu(self.two(maps)).flatten(1))


def scores_of(model: nn.Module, batches: list[Batch], part: Criterion, granularity: object = None) -> dict[str, Tensor]:
    found = granularity or Channel()
    groups = found(model, (batches[0][0],))
    sources = make_sources(model, Task(loss=loss_of, calib=batches), groups, torch.Generator().manual_seed(0), part)
    return rate(part, sources, "sum")[0]


def maps_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """`[batch, channels, positions]` as the next layer reads them."""
    return {
        "one": inputs_of(model, "two", x).flatten(2),
        "two": inputs_of(model, "last", x).unflatten(1, (4, 16)),
    }


def averaged(model: nn.Module, batches: list[Batch], of: Callable[[Tensor], float]) -> dict[str, Tensor]:
    """A statistic of `[batch, positions]` of every channel, averaged over batches."""
    rows = [
        {n: torch.tensor([of(m[:, c]) for c in range(m.shape[1])]) for n, m in maps_of(model, x).items()}
        for x, _ in batches
    ]
    return {n: torch.stack([r[n] for r in rows]).double().mean(0) for n in rows[0]}


def share(maps: Tensor) -> float:
    alive = sum(1 for row in maps for v in row if float(v) != 0.0)
    return alive / maps.numel()


def live(maps: Tensor) -> float:
    return sum(1 for row in maps if any(float(v) > 0 for v in row)) / len(maps)


def active() -> tuple[nn.Module, list[Batch]]:
    """Every channel speaks on every sample."""
    model, batches = made(Net)
    with torch.no_grad():
        model.norm.weight.fill_(1.0)
        model.norm.bias.fill_(0.5)
        model.two.bias.fill_(0.5)
    return model, batches


STATISTICS = {
    "MeanActivation": lambda m: float(m.abs().sum() / m.numel()),
    "ActivationDeviation": lambda m: float(((m - m.mean()) ** 2).mean().sqrt()),
    "NonzeroShare": share,
    "LiveShare": live,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_activations(name: str) -> None:
    model, batches = active()
    with torch.no_grad():
        model.norm.bias[0] = -20.0  # a channel that is never active
    ours = scores_of(model, batches, getattr(criteria, name)())
    for group, theirs in averaged(model, batches, STATISTICS[name]).items():
        torch.testing.assert_close(ours[group].double(), theirs, rtol=1e-6, atol=1e-9)
    if name in ("NonzeroShare", "LiveShare"):
        assert float(ours["one"][0]) == 0.0 < float(ours["one"][1:].min())


def test_apoz_threshold() -> None:
    model, batches = made(Net)
    ours = scores_of(model, batches, criteria.NonzeroShare(threshold=0.5))
    theirs = averaged(model, batches, lambda m: float((m.abs() > 0.5).double().mean()))
    torch.testing.assert_close(ours["two"], theirs["two"], rtol=1e-6, atol=1e-9)


def test_a_zero_channel_goes_without_a_trace() -> None:
    model, batches = active()
    with torch.no_grad():
        model.norm.bias[3] = -20.0
    task = Task(loss=loss_of, calib=batches, example=(batches[0][0],))
    result = prunus.prune(copy.deepcopy(model), task, "zero_channels", sparsity=0.12)
    assert not result.unit_masks["one"][3] and sum(int((~m).sum()) for m in result.unit_masks.values()) == 1
    small = result.compact()
    torch.testing.assert_close(small.eval()(batches[0][0]), model.eval()(batches[0][0]))


def elimination_rank(matrix: Tensor) -> int:
    rows, rank = matrix.clone(), 0
    for column in range(rows.shape[1]):
        pivot = max(range(rank, len(rows)), key=lambda i: abs(float(rows[i, column])), default=rank)
        if rank == len(rows) or abs(float(rows[pivot, column])) < 1e-9:
            continue
        rows[[rank, pivot]] = rows[[pivot, rank]]
        for i in range(rank + 1, len(rows)):
            rows[i] = rows[i] - rows[rank] * rows[i, column] / rows[rank, column]
        rank += 1
    return rank


def test_hrank_is_the_mean_rank_by_elimination() -> None:
    model, batches = made(Net)
    with torch.no_grad():
        model.norm.bias.fill_(-1.0)
        model.norm.weight.fill_(0.7)  # many zeros: ranks below the largest
    ours = scores_of(model, batches, criteria.FeatureRank())
    theirs = []
    for x, _ in batches:
        seen = inputs_of(model, "two", x)
        theirs.append([sum(elimination_rank(m) for m in seen[:, c]) / len(x) for c in range(5)])
    assert set(ours) == {"one"}  # the other is read by a linear layer
    torch.testing.assert_close(ours["one"], torch.tensor(theirs, dtype=torch.float64).mean(0))
    assert len(set(ours["one"].tolist())) > 1


def feedback(model: nn.Module, sample: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """`[channels, positions]` of one sample's maps and its own loss's gradients there."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., tuple[Tensor]]:
        def hook(_m: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            seen[name] = args[0].requires_grad_() if args[0].is_leaf else args[0]
            seen[name].retain_grad()
            return (seen[name],)

        return hook

    handles = [
        model.two.register_forward_pre_hook(keep("one")),
        model.last.register_forward_pre_hook(keep("two")),
    ]
    loss_of(model.eval(), sample).backward()
    for handle in handles:
        handle.remove()
    width = {"one": 5, "two": 4}
    return {n: (t.detach().reshape(width[n], -1), t.grad.reshape(width[n], -1)) for n, t in seen.items()}


def singles(batch: Batch) -> list[Batch]:
    return [(batch[0][n : n + 1], batch[1][n : n + 1]) for n in range(len(batch[0]))]


def over_samples(model: nn.Module, batches: list[Batch], of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """A number per channel of every sample's maps and gradients: mean over samples, then over batches."""
    means = []
    for batch in batches:
        rows = [{n: of(a, g) for n, (a, g) in feedback(model, s).items()} for s in singles(batch)]
        means.append({n: torch.stack([r[n] for r in rows]).mean(0) for n in rows[0]})
    return {n: torch.stack([m[n] for m in means]).mean(0) for n in means[0]}


def test_taylor_is_the_mean_of_each_samples_absolute_change() -> None:
    model, batches = made(Net)
    theirs = over_samples(model, batches, lambda a, g: (a * g).mean(1).abs())
    ours = scores_of(model, batches, criteria.TaylorActivation())
    for name in ("one", "two"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_taylor_per_batch_is_the_absolute_change_of_the_batch() -> None:
    model, batches = made(Net)
    one = batches[:1]
    signed = over_samples(model, one, lambda a, g: (a * g).mean(1))
    ours = scores_of(model, one, criteria.TaylorActivation(per="batch"))
    for name in ("one", "two"):
        torch.testing.assert_close(ours[name], signed[name].abs())


def test_class_heat_is_grad_cams_part_of_one_map() -> None:
    model, batches = made(Net)
    theirs = over_samples(model, batches, lambda a, g: (-g.mean(1, keepdim=True) * a).clamp(min=0).mean(1))
    ours = scores_of(model, batches, criteria.ClassHeat())
    for name in ("one", "two"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_head_importance_is_the_gradient_at_a_head_mask() -> None:
    model, batches = made(Attention)
    theirs = []
    for batch in batches:
        rows = []
        for x, y in singles(batch):
            mask = torch.ones(3, dtype=torch.float64, requires_grad=True)
            handle = model.out.register_forward_pre_hook(
                lambda _m, args, mask=mask: ((args[0].unflatten(-1, (3, 2)) * mask[:, None]).flatten(-2),)
            )
            loss_of(model.eval(), (x, y)).backward()
            handle.remove()
            rows.append(mask.grad.abs())
        theirs.append(torch.stack(rows).mean(0))
    ours = scores_of(model, batches, criteria.GateSensitivity(), Head())
    torch.testing.assert_close(ours["qkv"], torch.stack(theirs).mean(0))


def test_gate_decorator_is_the_change_when_the_gate_closes() -> None:
    """A gate behind the normalized channel, before the shift: gamma (c xhat) + beta, c from 1; per batch."""
    model, batches = made(Net)
    rows = []
    for batch in batches:
        gate = torch.ones(5, dtype=torch.float64, requires_grad=True)

        def gated(_m: nn.Module, _args: object, out: Tensor, gate: Tensor = gate) -> Tensor:
            shift = model.norm.bias[:, None, None]
            return (out - shift) * gate[:, None, None] + shift

        handle = model.norm.register_forward_hook(gated)
        loss_of(model.eval(), batch).backward()
        handle.remove()
        rows.append(gate.grad.abs())
    ours = scores_of(model, batches, criteria.ScaleSensitivity())
    torch.testing.assert_close(ours["one"], torch.stack(rows).mean(0))
    assert set(ours) == {"one"}  # the other has no normalization


def test_wifv_is_variance_times_squared_weights() -> None:
    model, batches = made(Net)
    x = torch.cat([b[0] for b in batches])
    seen = maps_of(model, x)
    ours = scores_of(model, batches, criteria.WeightedFluctuation())
    one = [
        float(seen["one"][:, c].var(correction=0) * model.two.weight[:, c].detach().square().sum()) for c in range(5)
    ]
    flat = seen["two"].flatten(1)
    column = [float(flat[:, j].var(correction=0) * model.last.weight[:, j].detach().square().sum()) for j in range(64)]
    two = [sum(column[16 * c : 16 * c + 16]) for c in range(4)]
    torch.testing.assert_close(ours["one"], torch.tensor(one, dtype=torch.float64))
    torch.testing.assert_close(ours["two"], torch.tensor(two, dtype=torch.float64))


def test_tailored_scale_is_gradient_descent_on_gates() -> None:
    model, batches = made(Net)
    gates = {n: torch.ones(k, dtype=torch.float64, requires_grad=True) for n, k in (("one", 5), ("two", 4))}

    def loss(batch: Batch) -> Tensor:
        maps = F.relu(model.norm(model.one(batch[0]))) * gates["one"][:, None, None]
        maps = F.relu(model.two(maps)) * gates["two"][:, None, None]
        return F.cross_entropy(model.last(maps.flatten(1)), batch[1])

    model.eval()
    for i in range(5):
        for gate, slope in zip(gates.values(), torch.autograd.grad(loss(batches[i % 2]), gates.values()), strict=True):
            gate.data -= 0.1 * slope
    slopes = torch.autograd.grad((loss(batches[0]) + loss(batches[1])) / 2, gates.values())
    before = copy.deepcopy(model.state_dict())
    ours = scores_of(model, batches, criteria.TailoredScale(rounds=5, rate=0.1))
    for (name, gate), slope in zip(gates.items(), slopes, strict=True):
        torch.testing.assert_close(ours[name], (gate * slope).abs().detach())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# The allocations that go with them.


def test_standardized_and_l2_normalized_scores() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 6.0, -torch.inf]), "b": torch.tensor([3.0, 3.0])}
    there = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    standard, l2 = normalized(scores, "standard"), normalized(scores, "l2")
    torch.testing.assert_close(standard["a"][:3], (there - 3) / (14 / 2) ** 0.5)
    torch.testing.assert_close(l2["a"][:3], there / 41**0.5)
    assert standard["a"][3] == l2["a"][3] == -torch.inf
    assert standard["b"].tolist() == [0.0, 0.0]


def test_cost_is_subtracted_from_normalized_scores() -> None:
    case = CASES["cnn"]
    model, task = case.model(), case.task()
    groups = Channel()(model, case.batches(1)[0][:1])
    space = {g.name: g for g in groups}
    scores = {n: torch.rand(g.units, generator=torch.Generator().manual_seed(1)) for n, g in space.items()}
    cost = {n: torch.full((g.units, 1), 1e6 * (i + 1)) for i, (n, g) in enumerate(space.items())}
    masks = CostPenalized(strength=0.2)(scores, 0.5, space, cost=cost)
    slow = {n: s.double() / s.double().norm() - 0.2 * (i + 1) for i, (n, s) in enumerate(scores.items())}
    assert all(torch.equal(m, GlobalRanking()(slow, 0.5, space)[n]) for n, m in masks.items())
    assert task.loss is not None and prunus.prune(model, task, "taylor_activation", sparsity=0.4).sparsity > 0.2
