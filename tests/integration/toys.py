"""Networks, data and loops small enough for hundreds of training steps, and what the tests compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

import prunus

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


class Conv(nn.Module):
    """Two convolutions with normalization, a residual, and a classifier."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.inner, self.inner_norm = nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.inner_norm(self.inner(x))).mean((2, 3)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def network(seed: int = 0, kind: Callable[[], nn.Module] = Conv) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def batch_at(step: int, shape: tuple[int, ...] = (2, 5, 5), count: int = 8) -> Batch:
    """The batch of a step: a function of the step alone, so that a resumed run reads what it would have read."""
    source = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(count, *shape, generator=source)
    return x, (x.flatten(1)[:, :3] + 0.1 * torch.randn(count, 3, generator=source)).argmax(1)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(shape: tuple[int, ...] = (2, 5, 5)) -> prunus.Task:
    return prunus.Task(loss=loss_of, calib=[batch_at(-1, shape), batch_at(-2, shape)])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)


def train(
    session: prunus.Session, optimizer: torch.optim.Optimizer, first: int, last: int, shape: tuple[int, ...] = (2, 5, 5)
) -> None:
    """Steps `first` + 1 to `last` of the plainest loop there is."""
    session.model.train()
    for step in range(first, last):
        optimizer.zero_grad()
        loss_of(session.model, batch_at(step, shape)).backward()
        optimizer.step()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal to the bit (signs of zeros aside)."""
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def zeros_hold(session: prunus.Session) -> None:
    """Every pruned weight is exactly zero, and there is one."""
    pruned = 0
    for group in session.groups:
        for member in group.members:
            if member.buffer:
                continue
            p = session.parameters[member.param]
            gone = ~group.spread(member, session.masks[group.name], p.shape)
            assert not p.detach()[gone].any(), f"{member.param} holds pruned weights that are not zero"
            pruned += int(gone.sum())
    assert pruned


def kept(session: prunus.Session) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in session.masks.items()}


# Storing anything made of mappings, lists, tensors and JSON values, without pickle


def pack(value: Any) -> bytes:
    """One file: the length of a JSON text, the text, and the tensors it points to as safetensors."""
    tensors: dict[str, Tensor] = {}

    def plain(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors[str(len(tensors))] = part.detach().cpu().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(part, Mapping):
            return {"pairs": [[key, plain(v)] for key, v in part.items()]}
        if isinstance(part, tuple):
            return {"tuple": [plain(v) for v in part]}
        return [plain(v) for v in part] if isinstance(part, list) else part

    text = json.dumps(plain(value), allow_nan=False).encode()
    return len(text).to_bytes(8, "little") + text + save(tensors)


def unpack(data: bytes) -> Any:
    size = int.from_bytes(data[:8], "little")
    tensors = load(data[8 + size :])

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(v) for v in part]
        if not isinstance(part, dict):
            return part
        if "tensor" in part:
            return tensors[part["tensor"]]
        return tuple(whole(v) for v in part["tuple"]) if "tuple" in part else {k: whole(v) for k, v in part["pairs"]}

    return whole(json.loads(data[8 : 8 + size]))
