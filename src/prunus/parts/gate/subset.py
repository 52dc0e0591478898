"""A fixed number of units, drawn without replacement and relaxed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Noise, Weight


@dataclass(frozen=True)
class GumbelSubset(Gate):
    """sum over j < K of softmax(r_j / tau), r_0 = theta - log(-log u), r_{j+1} = r_j + log(1 - softmax(r_j / tau)): the
    relaxed K likeliest of all units together (differentiable subset pruning: Li, Cotterell & Sachan 2021, TACL,
    arXiv:2108.04657, section 3; Xie & Ermon 2019, arXiv:1901.10517).

    The values add up to K exactly, the number of units that the recipe's allocation would keep. tau falls from `hot` to
    `cold` as a geometric series over the share `cool` of the steps, so that they become a mask. Weights are trained
    along; what stays is multiplied by 1. Starts uniform within +-`spread`, the official initialization of 12 layers of
    12 heads. Adam, in float64.

    Shapes: theta `[*units]`. Units: log-weights of a draw, comparable everywhere. Cost: K softmaxes over all units and
    an allocation per step: for heads, not for single weights. Differs: which units stay is said by the allocation, so
    that minima are met; the official optimizer is AdamW.
    """

    hot: float = 1000.0
    cold: float = 1e-8
    cool: float = 0.7
    spread: float = 0.5
    lr: float = 0.5
    selects: ClassVar[bool] = True
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (self.hot >= self.cold > 0 and 0 < self.cool <= 1 and self.spread >= 0 and self.lr > 0):
            raise SpecError(f"{self}: hot >= cold > 0, 0 < cool <= 1, spread >= 0, lr > 0")

    def __call__(self, w: Weight, u: Noise) -> Float[Tensor, "*units"]:
        return self.spread * (2 * u[..., 0].to(w.dtype) - 1)

    def temperature(self, progress: float) -> float:
        """tau."""
        far = min(1.0, progress / self.cool)
        return math.exp((1 - far) * math.log(self.hot) + far * math.log(self.cold))

    def values(
        self, thetas: Mapping[str, Float[Tensor, "..."]], moments: Mapping[str, Moment]
    ) -> Mapping[str, Float[Tensor, "..."]]:
        keep = {n: k for n in thetas if (k := moments[n].keep) is not None}
        noise = {n: u for n in thetas if (u := moments[n].noise) is not None}
        if not noise:
            return {n: k.to(thetas[n].dtype) for n, k in keep.items()}
        drawn = [(t.double() - (-noise[n].double().clamp(min=1e-30).log()).log()).flatten() for n, t in thetas.items()]
        tau = self.temperature(next(iter(moments.values())).progress)
        values = relaxed(torch.cat(drawn), sum(int(k.sum()) for k in keep.values()), tau)
        pieces = values.split([t.numel() for t in thetas.values()])
        return {n: p.reshape(t.shape).to(t.dtype) for (n, t), p in zip(thetas.items(), pieces, strict=True)}

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


def relaxed(r: Float[Tensor, "n"], count: int, tau: float) -> Float[Tensor, "n"]:
    """The sum of `count` softmaxes, each with what the earlier ones took away; see `GumbelSubset`."""
    total = torch.zeros_like(r)
    for _ in range(count):
        share = (r / tau).softmax(0)
        total = total + share
        r = r + (1 - share).clamp(min=torch.finfo(r.dtype).tiny).log()
    return total
