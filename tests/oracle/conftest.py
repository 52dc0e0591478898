"""The network, the batch and the task that every oracle is asked about.

ResNet-20 in its CIFAR form, with batch normalization that is not the identity: scales, shifts and running statistics
of either sign, so that a method that forgets one of them comes to other masks. Images are 8 pixels wide: the weights,
which is what the masks are about, do not depend on it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.lab import zoo

Batch = tuple[Tensor, Tensor]


def unsettled(model: nn.Module, seed: int) -> nn.Module:
    """The model with normalizations that do something, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                n = module.num_features
                module.weight.copy_(0.5 + torch.rand(n, generator=generator))
                module.weight[::3].neg_()
                module.bias.copy_(0.2 * torch.randn(n, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(n, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(n, generator=generator))
    return model


def resnet20() -> nn.Module:
    torch.manual_seed(20)
    return unsettled(zoo.build("resnet20"), 21).eval()


@pytest.fixture
def net() -> nn.Module:
    return resnet20()


@pytest.fixture
def fresh() -> nn.Module:
    """As initialized, which is what methods that prune before training are given."""
    torch.manual_seed(20)
    return zoo.build("resnet20").eval()


@pytest.fixture
def batches() -> list[Batch]:
    """Two halves of a class-balanced batch, as GraSP and the sanity checks draw them."""
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(20, 3, 8, 8, generator=generator)
    y = torch.arange(10).repeat_interleave(2)
    return [(x[:10], y[:10]), (x[10:], y[10:])]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def task(batches: list[Batch]) -> prunus.Task:
    return prunus.Task(loss=cross_entropy, calib=batches, example=batches[0][0][:1])
