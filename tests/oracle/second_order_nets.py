"""Tiny networks and slow derivatives that the second-order oracles share: one sample, one output at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import prunus
from prunus.core.part import Criterion, Granularity
from prunus.engine.score import make_sources, rate, seeded

Batch = tuple[Tensor, Tensor]


class Conv(nn.Module):
    """Two convolutions, the second with stride, groups and padding, and a classifier behind pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(x)).mean((2, 3)))


class Tokens(nn.Module):
    """A linear layer over positions, used twice, then a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(self.enter(x))))).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


SHAPES: dict[str, tuple[int, ...]] = {"mlp": (4,), "conv": (2, 7, 7), "tokens": (5, 3)}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = {"mlp": mlp, "conv": Conv, "tokens": Tokens}[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
    return model


def batches(name: str, count: int = 2, size: int = 5) -> list[Batch]:
    draw = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(size, *SHAPES[name], generator=draw, dtype=torch.float64),
            torch.randint(3, (size,), generator=draw),
        )
        for _ in range(count)
    ]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task_of(data: list[Batch], loss: Callable[[nn.Module, Any], Tensor] = cross_entropy) -> prunus.Task:
    return prunus.Task(loss=loss, calib=data, example=(data[0][0],))


def scores(
    model: nn.Module, task: prunus.Task, criterion: Criterion, granularity: Granularity, seed: int = 0
) -> dict[str, Tensor]:
    """What a criterion gives, group by group."""
    groups = granularity(model, (task.calib[0][0],))  # type: ignore[index]
    found, _ = rate(criterion, make_sources(model, task, tuple(groups), seeded(seed), criterion), granularity.reduce)
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}


def samples(data: list[Batch]) -> list[Batch]:
    """Every sample as a batch of its own."""
    return [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    names = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    found = torch.autograd.grad(value, list(names.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(names.items(), found, strict=True)}


def sample_gradients(model: nn.Module, data: list[Batch]) -> list[dict[str, Tensor]]:
    return [gradients(model, cross_entropy(model, one)) for one in samples(data)]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def gauss_newton(model: nn.Module, data: list[Batch]) -> Tensor:
    """E[J^T (diag p - p p^T) J] over the flattened weights, one sample and one output at a time (cross entropy)."""
    total: Tensor | None = None
    for x, _ in samples(data):
        out = model(x)[0]
        jacobian = torch.stack([flat(gradients(model, o)) for o in out])
        p = out.detach().softmax(0)
        one = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        total = one if total is None else total + one
    assert total is not None
    return total / len(samples(data))


def hessian(model: nn.Module, data: list[Batch]) -> Tensor:
    """The Hessian of the mean loss over the flattened weights."""
    start = weights(model)

    def loss(v: Tensor) -> Tensor:
        parts = v.split([w.numel() for w in start.values()])
        given = {n: part.reshape(w.shape) for part, (n, w) in zip(parts, start.items(), strict=True)}
        terms = [F.cross_entropy(functional_call(model, given, (x,)), y) for x, y in data]
        return torch.stack(terms).mean()

    return torch.func.hessian(loss)(flat(start))
