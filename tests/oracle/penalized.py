"""Small networks, and the runs that penalties are compared on: a session's, and descent written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

Named = dict[str, Tensor]
LR, MOMENTUM, DECAY, STEPS = 0.05, 0.9, 0.01, 8
draw = torch.Generator().manual_seed(5)
X = torch.randn(6, 2, 5, 5, generator=draw, dtype=torch.float64)
Y = torch.randint(2, (6,), generator=draw)


class Tiny(nn.Module):
    """Two convolutions of four filters and a classifier: what makes, normalizes and reads a filter is easily named."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Deep(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.head(x.mean((2, 3)))


LAYERS = (("conv1", "bn1", "conv2"), ("conv2", "bn2", "head"))  # weight, its normalization, its reader


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    model = kind().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.4)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def loss(model: nn.Module, batch: Any = None) -> Tensor:
    return F.cross_entropy(model(X), Y)


TASK = prunus.Task(loss=loss, train=[0], example=(X,))


def root(*tensors: Tensor) -> Tensor:
    """The Euclidean norm of everything together; its slope at zero is zero."""
    total = torch.stack([(t**2).sum() for t in tensors]).sum()
    return total.sqrt() if float(total.detach()) else total


def filters(p: Named) -> list[list[tuple[Tensor, Tensor, list[Tensor]]]]:
    """Layer by layer, filter by filter: its weights, the weights that read it, and its normalization and bias."""
    return [
        [
            (
                p[f"{a}.weight"][u],
                p[f"{c}.weight"][:, u],
                [p[f"{n}.weight"][u], p[f"{n}.bias"][u], *([p[f"{a}.bias"][u]] if f"{a}.bias" in p else [])],
            )
            for u in range(4)
        ]
        for a, n, c in LAYERS
    ]


@dataclass
class Now:
    """What a term may know of the run by hand: steps made, steps since the last event, what is kept or marked."""

    step: int = 0
    begun: int = 0
    keep: list[list[bool]] = field(default_factory=lambda: [[True] * 4, [True] * 4])
    memory: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def age(self) -> int:
        return self.step - self.begun


Term = Callable[[Named, Now], Tensor]
Score = Callable[[Named], list[list[float]]]


def each(function: Callable[[Tensor, Tensor, list[Tensor]], Tensor]) -> Term:
    """A sum over all filters."""
    return lambda p, now: sum(function(*unit) for layer in filters(p) for unit in layer)  # type: ignore[return-value]


def score(function: Callable[[Tensor, Tensor, list[Tensor]], Tensor]) -> Score:
    return lambda p: [[float(function(*unit)) for unit in layer] for layer in filters(p)]


def pick(scores: list[list[float]], density: float, local: bool, keep: list[list[bool]]) -> list[list[bool]]:
    """The best filters, of each layer or of both together, one per layer at least; what is gone stays gone."""
    known = [[s if k else -math.inf for s, k in zip(*pair, strict=True)] for pair in zip(scores, keep, strict=True)]
    if local:
        return [[s in sorted(layer)[-round(4 * density) :] for s in layer] for layer in known]
    guarded = [[math.inf if s == max(layer) else s for s in layer] for layer in known]
    flat = sorted(s for layer in guarded for s in layer)
    count = 8 - math.floor(8 * (1 - density) + 1e-9)
    return [[s >= flat[-count] for s in layer] for layer in guarded]


def cut(p: Named, keep: list[list[bool]]) -> None:
    """Zero everything that makes or reads a filter that is not kept."""
    for layer, kept in zip(filters(p), keep, strict=True):
        for (own, reads, rest), stays in zip(layer, kept, strict=True):
            for t in (own, reads, *rest):
                t.mul_(float(stays))


def by_hand(recipe: prunus.Recipe, term: Term, worth: Score, density: float) -> list[Named]:
    """Descent with momentum, the term added to the loss until the last event; parameters after every step."""
    model, now, seen = built(Tiny), Now(), []
    named = dict(model.named_parameters())
    velocity = {n: torch.zeros_like(p) for n, p in named.items()}
    events, local, held = list(recipe.timeline(density, STEPS)), recipe.scope == "local", False
    for step in range(STEPS + 1):
        while events and events[0].step <= step:
            event = events.pop(0)
            before = [[True] * 4, [True] * 4] if event.revive else now.keep
            now.keep, now.begun, held = pick(worth(detached(named)), event.density, local, before), step, not event.mark
        with torch.no_grad():
            if held:
                cut(detached(named), now.keep), cut(velocity, now.keep)
        seen.append({n: p.detach().clone() for n, p in named.items()})
        now.step = step
        total = loss(model) + (term(named, now) if events else 0.0)
        grads = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
        if held:
            cut(grads, now.keep)
        with torch.no_grad():
            for n, p in named.items():
                velocity[n] = MOMENTUM * velocity[n] + grads[n] + DECAY * p
                p -= LR * velocity[n]
    return seen


def detached(p: Named) -> Named:
    return {n: t.detach() for n, t in p.items()}


def run(recipe: prunus.Recipe, density: float, kind: type[nn.Module] = Tiny) -> tuple[prunus.Session, list[Named]]:
    model = built(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    session = prunus.Session(model, recipe, TASK, prunus.Budget(density), steps=STEPS).attach(optimizer)
    seen = [{n: p.detach().clone() for n, p in model.named_parameters()}]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
    session.detach()
    return session, seen


def same(ours: list[Named], theirs: list[Named]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for n in a:
            torch.testing.assert_close(a[n], b[n], rtol=1e-9, atol=1e-12, msg=f"{n} after {step} steps")


def l1(own: Tensor, *_: Any) -> Tensor:
    return own.abs().sum()
