"""Reasons name what fixed a size in the first place, and a training run that fails frees nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph import trace
from tests.graph.nets import Net
from tests.graph.proof import producers, prove


class Auxiliary(nn.Module):
    """A second head that only training runs, and only on batches that are large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        if self.training:
            y = self.first(x)
            if len(x) < 4:
                raise ValueError("too few samples")
            return torch.cat([self.head(x), self.second(y)], -1)
        return self.head(x)


class Dropped(nn.Module):
    """Masks that were drawn before, one row for every sample, are used in training only."""

    masks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 12), nn.Linear(12, 4)
        self.register_buffer("masks", (torch.rand(32, 12) > 0.2).float())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        return self.head(x * self.masks[: len(x)] if self.training else x)


def test_buffers_that_only_training_reads_are_cut() -> None:
    structure, small = prove(Dropped(), torch.randn(3, 8))
    assert producers(structure) == {"body.weight"}
    assert small.train()(torch.randn(3, 8)).shape == (3, 4)


def test_the_first_cause_is_named() -> None:
    net = Net(
        lambda s, x: s.h((y := s.n(s.a(x))) + s.b(F.relu(s.c(y)))),
        a=nn.Linear(8, 12), n=nn.LayerNorm(12), b=nn.Linear(10, 12), c=nn.Linear(12, 10), h=nn.Linear(12, 4),
    )  # fmt: skip
    frozen = trace(net, torch.randn(2, 5, 8)).frozen
    assert frozen["b.weight"].startswith("add in the model: combined element by element with a tensor of fixed size")
    assert frozen["b.weight"].endswith(", which was fixed by native_layer_norm in n: its statistics run over this axis")


def test_a_standardized_weight_is_named() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias, padding=1)

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Standardized(8, 6, 3), nn.Conv2d(6, 2, 1))
    structure = trace(net, torch.randn(2, 3, 8, 8))
    assert producers(structure) == {"1.weight"}
    assert "weights are standardized" in structure.frozen["0.weight"]


def test_what_a_failed_training_run_began_stays() -> None:
    structure = trace(Auxiliary(), torch.randn(2, 8))
    assert producers(structure) == {"body.weight"}
    assert "too few samples" in structure.frozen["first.weight"]
    structure = trace(Auxiliary(), torch.randn(4, 8))
    assert producers(structure) == {"body.weight", "first.weight"}
