"""Training by hand beside a session: weights, momentum and masks in a dictionary each, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.func import functional_call

import prunus
from prunus import Recipe

Batch = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]
RATE, MOMENTUM = 0.2, 0.9


def mlp(seed: int = 41) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 10), nn.Tanh(), nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def batches(number: int = 4, shape: tuple[int, ...] = (7,)) -> list[Batch]:
    draw = torch.Generator().manual_seed(42)
    return [
        (torch.randn(24, *shape, generator=draw, dtype=torch.float64), torch.randint(3, (24,), generator=draw))
        for _ in range(number)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Twin:
    """The same training, by hand: SGD with momentum in float64, and whatever masks the oracle decides on."""

    def __init__(self, model: nn.Module, lr: float = RATE, momentum: float = MOMENTUM) -> None:
        self.model, self.lr, self.momentum = model, lr, momentum
        self.p: Tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.first = {n: p.clone() for n, p in self.p.items()}
        self.names = [n for n, p in self.p.items() if p.ndim > 1]
        self.masks: Tensors = {n: torch.ones_like(self.p[n], dtype=torch.bool) for n in self.names}
        self.buffers: Tensors = {}

    def gradients(self, batch: Batch) -> Tensors:
        """Dense, at the weights as they are."""
        leaves = {n: p.clone().requires_grad_() for n, p in self.p.items()}
        output = functional_call(self.model, leaves, (batch[0],))
        found = torch.autograd.grad(nn.functional.cross_entropy(output, batch[1]), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        for n, g in gradients.items():
            mask = self.masks.get(n)
            g = g if mask is None else g * mask
            self.buffers[n] = self.momentum * self.buffers[n] + g if n in self.buffers else g.clone()
            self.p[n] = self.p[n] - self.lr * self.buffers[n]
            if mask is not None:
                self.p[n] = self.p[n] * mask

    def mask(self, masks: Mapping[str, Tensor]) -> None:
        """From now on: weights and momentum outside are zero."""
        for n, m in masks.items():
            self.masks[n] = m.clone()
            self.p[n] = self.p[n] * m
            if n in self.buffers:
                self.buffers[n] = self.buffers[n] * m


class Run:
    """A session and its twin, step by step over the same batches."""

    def __init__(
        self,
        recipe: Recipe,
        density: float,
        steps: int,
        *,
        model: nn.Module | None = None,
        data: list[Batch] | None = None,
        lr: float = RATE,
        momentum: float = MOMENTUM,
        seed: int = 3,
    ) -> None:
        self.model, self.data, self.steps = model or mlp(), data or batches(), steps
        self.twin = Twin(self.model, lr, momentum)
        self.task = prunus.Task(loss=loss_of, train=self.data)
        self.session = prunus.Session(self.model, recipe, self.task, prunus.Budget(density), steps=steps, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.session.attach(self.optimizer)

    def masks(self) -> Tensors:
        """The session's, in the shape of the weights."""
        return {n: self.session.masks[n].reshape(self.twin.p[n].shape).clone() for n in self.twin.names}

    def start(self) -> None:
        """Take over the masks that the session drew at random before the first step."""
        self.twin.mask(self.masks())

    def __iter__(self) -> Iterator[tuple[int, Tensors]]:
        """(step, dense gradients) after the session and the twin both made the step; the twin's events are to come."""
        for step in range(1, self.steps + 1):
            batch = self.data[(step - 1) % len(self.data)]
            dense = self.twin.gradients(batch)
            self.optimizer.zero_grad()
            loss_of(self.model, batch).backward()
            self.optimizer.step()
            self.twin.step(dense)
            yield step, dense

    def agree(self, step: int) -> None:
        """Masks to the bit, weights to round-off."""
        for n, mask in self.masks().items():
            assert torch.equal(mask, self.twin.masks[n]), f"masks of {n} differ after step {step}"
        for n, p in self.model.named_parameters():
            assert torch.allclose(p, self.twin.p[n], rtol=0, atol=1e-12), f"{n} differs after step {step}"


# Choosing, in its slowest form: sorted lists of (value, place), ties to the earlier place.


def flat(t: Tensor) -> list[float]:
    return [float(v) for v in t.flatten()]


def best(values: Tensor, among: Tensor, number: int) -> Tensor:
    """Mask of the `number` largest values among some places."""
    v, a = flat(values), among.flatten().tolist()
    places = sorted((i for i in range(len(v)) if a[i]), key=lambda i: (-v[i], i))[:number]
    mask = torch.zeros(len(v), dtype=torch.bool)
    mask[places] = True
    return mask.reshape(values.shape)


def best_of_all(values: Mapping[str, Tensor], among: Mapping[str, Tensor], number: int) -> Tensors:
    """The same over all layers together."""
    whole = best(
        torch.cat([v.flatten() for v in values.values()]), torch.cat([a.flatten() for a in among.values()]), number
    )
    parts = whole.split([v.numel() for v in values.values()])
    return {n: part.reshape(v.shape) for part, (n, v) in zip(parts, values.items(), strict=True)}


def without_least(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """A layer's mask without the floor(share * kept) kept places of least value."""
    kept = int(mask.sum())
    return best(values, mask, kept - int(share * kept))


def stays(density: float, size: int) -> int:
    """How many are left when floor(sparsity * size) are removed."""
    return math.ceil(density * size - 1e-9)


def hamilton(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Largest remainders in exact fractions, where every layer has room enough."""
    whole = sum(Fraction(s) for s in shares.values())
    quota = {n: Fraction(s) * total / whole for n, s in shares.items()}
    found = {n: math.floor(q) for n, q in quota.items()}
    order = sorted(quota, key=lambda n: found[n] - quota[n])
    for n in order[: total - sum(found.values())]:
        found[n] += 1
    return found


def total(masks: Mapping[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())
