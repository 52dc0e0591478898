"""Small networks and their pruned results, one of each kind that a folder may hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prunus
from prunus import Result, methods
from prunus.lab import zoo


class Toy(nn.Module):
    """A convolutional network with batch normalization, a tied pair of weights and a buffer that is not saved."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 5)
        self.tied = nn.Linear(2 * width, 5, bias=False)
        self.tied.weight = self.fc.weight
        self.register_buffer("gain", torch.linspace(0.5, 1.5, 2 * width).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (self.bn2(self.conv2(x)) * self.gain).relu().mean((2, 3))
        return self.fc(x) + self.tied(x)


def toy() -> nn.Module:
    """A `Toy` whose weights and statistics follow from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Toy()
        with torch.no_grad():
            for bn in (model.bn1, model.bn2):
                bn.running_mean.normal_()
                bn.running_var.uniform_(0.5, 2.0)
                bn.weight.uniform_(0.5, 1.5)
                bn.bias.normal_()
    return model.eval()


def half() -> nn.Module:
    """The same in bfloat16."""
    return toy().to(torch.bfloat16)


def gpt() -> nn.Module:
    """A decoder whose embedding and output layer are one tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return zoo.build("gpt_tiny").eval()


def tokens() -> Tensor:
    return torch.arange(32).view(2, 16)


def pixels(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(3)).to(dtype)


KINDS = {
    "unstructured": (toy, pixels(), "magnitude", 0.7),
    "semi-structured": (gpt, tokens(), "n_of_m", None),
    "structured": (toy, pixels(), "l1_filter", 0.5),
    "tied": (gpt, tokens(), "l1_filter", 0.5),
    "bfloat16": (half, pixels(torch.bfloat16), "magnitude", 0.5),
    "bfloat16 structured": (half, pixels(torch.bfloat16), "l1_filter", 0.5),
}


def pruned(kind: str) -> Result:
    factory, example, name, sparsity = KINDS[kind]
    budget = {} if sparsity is None else {"sparsity": sparsity}
    recipe = methods.get(name)
    return prunus.prune(factory(), prunus.Task(example=(example,)), recipe, **budget)
