"""A two-layer network whose loss is written out for any pair of weights, and sessions over it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

torch.manual_seed(3)
X = torch.randn(16, 8, dtype=torch.float64)
Y = torch.randn(16, 4, dtype=torch.float64)
NAMES = ("0.weight", "2.weight")
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def net(seed: int = 0) -> nn.Sequential:
    """8 -> 6 -> 4 without biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False)).double()


def wide_net(seed: int = 0) -> nn.Sequential:
    """8 -> 4 -> 4: rows that divide into blocks of four."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)).double()


def loss_of(weights: list[Tensor]) -> Tensor:
    return (F.relu(X @ weights[0].T) @ weights[1].T - Y).square().mean()


def slopes(weights: list[Tensor]) -> list[Tensor]:
    """dL/dW of the weights that the network computes with, as if they were all there is."""
    used = [w.detach().clone().requires_grad_() for w in weights]
    return list(torch.autograd.grad(loss_of(used), used))


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters, whatever is computed from them."""
    return [dict(model.named_parameters())[n].detach().clone() for n in NAMES]


TASK = prunus.Task(loss=lambda m, b: (m(X) - Y).square().mean(), train=[0], example=(X,))


def attached(found: prunus.Recipe, model: nn.Module, steps: int, density: float | None = 0.4) -> Any:
    """A session that is attached to SGD with momentum and decay."""
    budget = None if density is None else prunus.Budget(density)
    session = prunus.Session(model, found, TASK, budget, steps=steps)
    return session.attach(torch.optim.SGD(model.parameters(), **SGD))


def step(session: Any) -> float:
    """One step of the loop; the loss before it."""
    (optimizer,) = session.optimizers
    optimizer.zero_grad()
    loss = TASK.loss(session.model, 0)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


class Slow:
    """SGD with momentum and decay over plain tensors, given the gradients."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.w, self.v = weights, [torch.zeros_like(w) for w in weights]
        self.first = True

    def step(self, gradients: list[Tensor]) -> None:
        for i, g in enumerate(gradients):
            g = g + SGD["weight_decay"] * self.w[i]
            self.v[i] = g if self.first else SGD["momentum"] * self.v[i] + g
            self.w[i] = self.w[i] - SGD["lr"] * self.v[i]
        self.first = False


def best(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """Of all tensors together: the floor(sparsity n) least go, of equals the later."""
    flat = torch.cat([s.flatten() for s in scores])
    order = sorted(range(len(flat)), key=lambda i: (-float(flat[i]), i))
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[order[: len(flat) - math.floor(sparsity * len(flat) + 1e-9)]] = True
    return [m.reshape(s.shape) for m, s in zip(keep.split([s.numel() for s in scores]), scores, strict=True)]


def best_each(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """The same in every tensor by itself."""
    return [best([s], sparsity)[0] for s in scores]
