"""Centripetal SGD: its step by a loop over filters, and what is left once clusters have met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import ClusterLargest
from prunus.parts.evidence.clusters import filled
from prunus.parts.penalty import Centripetal

X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(6) % 3
RATE, STRENGTH = 0.1, 0.4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.two = nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3)
        self.head = nn.Linear(5, 3)
        self.double()
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


TASK = Task(loss=loss, train=[(X, Y)], calib=[(X, Y)], example=(X,))


def even(n: int, k: int) -> list[int]:
    """The first ceil(n / k) or so belong to the first cluster, and so on."""
    return [i * k // n for i in range(n)]


def test_a_step_moves_a_cluster_as_one() -> None:
    """F_j <- F_j - rate (mean of dL/dF + strength (F_j - mean of F)), means over the cluster, filter by filter."""
    found = replace(methods.c_sgd, penalty=Centripetal(STRENGTH, "even"), criterion=ClusterLargest("even"))
    model, start = Net(), Net()
    session = prunus.Session(model, found, TASK, sparsity=0.5, steps=20)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    session.attach(optimizer)
    loss(model, (X, Y)).backward()
    optimizer.step()
    session.detach()
    loss(start, (X, Y)).backward()
    counts = {"one": 4, "two": 3}  # half of 7 and of 5, rounded up
    makers = {"one": ("one.weight", "one.bias", "norm.weight", "norm.bias"), "two": ("two.weight", "two.bias")}
    now, before = dict(model.named_parameters()), dict(start.named_parameters())
    for layer, names in makers.items():
        for name in names:
            p = before[name]
            cluster = even(len(p), counts[layer])
            for j in range(len(p)):
                mine = [i for i in range(len(p)) if cluster[i] == cluster[j]]
                g = torch.stack([p.grad[i] for i in mine]).mean(0)
                centre = torch.stack([p[i] for i in mine]).mean(0)
                expected = p[j] - RATE * (g + STRENGTH * (p[j] - centre))
                assert torch.allclose(now[name][j], expected, atol=1e-12), name
    assert torch.allclose(now["head.weight"], before["head.weight"] - RATE * before["head.weight"].grad)


@pytest.mark.parametrize("cluster", ["kmeans", "even"])
def test_nothing_is_lost_once_they_have_met(cluster: str) -> None:
    found = replace(methods.c_sgd, penalty=Centripetal(2.0, cluster), criterion=ClusterLargest(cluster))
    model = Net()
    session = prunus.Session(model, found, TASK, sparsity=0.5, steps=160)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    session.attach(optimizer)
    for step in range(160):
        if step == 159:
            model.eval()
            before = model(X).detach()
            clusters = {k: v.clone() for k, v in session.running["clusters"].items()}
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.zero_grad()
        loss(model, (X, Y)).backward()
        optimizer.step()
    result = session.result()
    kept = [int(m.sum()) for m in result.unit_masks.values()]
    assert kept == [4, 3] and [len(c.unique()) for c in clusters.values()] == [4, 3]
    assert torch.allclose(result.compact()(X), before, atol=1e-6)
    for keep, cluster in zip(result.unit_masks.values(), clusters.values(), strict=True):
        assert sorted(cluster[keep].tolist()) == sorted(set(cluster.tolist()))  # one of each


def test_no_cluster_is_empty() -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    cluster = filled(torch.tensor([0, 0, 0, 1]), points, 3)
    assert sorted(cluster.unique().tolist()) == [0, 1, 2] and cluster[3] == 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SpecError):
        Centripetal(strength=-1.0)
