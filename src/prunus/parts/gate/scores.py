"""Gates over weights that keep their initial values: a network is found in a random one, not trained."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Noise, Weight


def descent(owner: str, lr: float, momentum: float, decay: float) -> None:
    """Refuse numbers that gradient descent cannot take."""
    if not (lr > 0 and 0 <= momentum < 1 and decay >= 0):
        raise SpecError(f"{owner}(lr={lr}, momentum={momentum}, decay={decay}): lr > 0, 0 <= momentum < 1, decay >= 0")


@dataclass(frozen=True)
class Popup(Gate):
    """1 for the units whose |theta| the allocation keeps and 0 for the others, trained straight through: dL/d|theta| is
    dL/dvalue (edge-popup: Ramanujan et al. 2020, CVPR, arXiv:1911.13299).

    For a single weight between neurons u and v the gradient of |theta| is dL/dI_v w Z_u, kept or not. Starts from
    Kaiming-uniform numbers, the default of linear layers: uniform within +-1/sqrt(fan in). SGD with a cosine rate.

    Shapes: theta `[*units]`. Units: none; the paper keeps the same share of every layer (`Uniform`). Cost: a selection
    per step, and the user's optimizer does nothing. Differs: the ranking is that of the recipe's allocation, of any
    kind; of two equals the earlier unit is kept. Biases and normalizations keep their values; the paper has none to
    train (affine=False, no biases). Running statistics go on.
    """

    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 1e-4
    freezes: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        descent(type(self).__name__, self.lr, self.momentum, self.decay)

    def __call__(self, u: Noise) -> Float[Tensor, "*units 1"]:
        return (2 * u - 1) / math.sqrt(u.shape[-2])

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        assert moment.keep is not None
        score = theta.abs()
        return moment.keep.to(score.dtype) + (score - score.detach())

    def worth(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return theta.abs()

    def rate(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.decay)


@dataclass(frozen=True)
class SignedPopup(Popup):
    """`Popup` over weights sign(w) sqrt(2 / (fan in * kept share)): signed Kaiming constants, with which the paper
    finds its best networks (Ramanujan et al. 2020, CVPR, arXiv:1911.13299).

    The weights take these values for good. Cost: that of `Popup`. Differs: the kept share is the layer's own.
    """

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        share = value.detach().expand_as(w).mean().clamp(min=1 / w.numel())
        return w.sign() * (2 / (w[0].numel() * share)).sqrt() * value


@dataclass(frozen=True)
class BinaryPopup(Popup):
    """`Popup` over alpha sign(w), alpha the mean |w| of the kept: multi-prize tickets with binary weights (biprop:
    Diffenderfer & Kailkhura 2021, ICLR, arXiv:2103.09377, algorithm 1).

    alpha = sum |w| value / sum value, a number per layer. The gradient is that of w value, as in the official code: it
    passes binarization by. At the end the weights are alpha sign(w), in their own type. Shapes, units, cost: those of
    `Popup`. Differs: activations are not binarized, and the share is not lowered step by step.
    """

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        real, hard = w * value, value.detach().expand_as(w)
        alpha = (w.detach().abs() * hard).sum() / hard.sum().clamp(min=1)
        return (alpha * w.sign() * hard).detach() + (real - real.detach())


@dataclass(frozen=True)
class Bernoulli(Gate):
    """1 with probability sigmoid(theta), drawn anew at every step, trained straight through: dL/dsigmoid is dL/dvalue
    (supermasks: Zhou et al. 2019, NeurIPS, arXiv:1905.01067).

    Starts from `start` everywhere; SGD with momentum, at the rate of the official command for a small
    multilayer perceptron on MNIST. Shapes: theta `[*units]`. Units: log-odds, comparable everywhere.
    Cost: one random number per unit and step; the user's optimizer does nothing. Differs: the paper judges by ten
    random masks; here the likeliest units are kept, exactly to the budget, and the values of weights stay as they are
    (no signed constants, no rescaling). Accumulated batches share one draw.
    """

    start: float = 0.0
    lr: float = 100.0
    momentum: float = 0.9
    freezes: ClassVar[bool] = True
    samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        descent("Bernoulli", self.lr, self.momentum, 0.0)

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.full_like(w[..., 0], self.start)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        chance = theta.sigmoid()
        drawn = torch.ones_like(chance) if moment.noise is None else (moment.noise < chance).to(chance.dtype)
        return drawn + (chance - chance.detach())

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
