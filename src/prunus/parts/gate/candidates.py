"""Patterns that are chosen among all there are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.gate import Gate, Moment
from prunus.core.part import Criterion, needs
from prunus.parts.evidence import Weight


@dataclass(frozen=True)
class Candidates(Gate):
    """softmax((scale theta - log(-log u)) / tau) over the candidates of every m consecutive weights, which are all ways
    to keep n of them, and the mask that this makes on average; with the penalty -kappa (1 - t) sum (w mask)^2, t the
    progress (MaskLLM: Fang et al. 2024, NeurIPS, arXiv:2409.17481, section 3.2, and its official scripts).

    tau and scale go straight from their first to their second number. theta starts from prior * std * (how many weights
    a candidate shares with a given mask, less n^2 / m, the mean), the given mask being the n best by `worth_of`, or by
    |w|. All parameters of the model stay as they are; at the end the likeliest candidate is the mask. Adam with a
    cosine rate down to a tenth.

    Shapes: theta `[rows, columns / m, candidates]`; worth `[rows, columns]`: 1 for the likeliest candidate, and below
    that half of a weight's probability, so that `NofM(n, m)` keeps that candidate. Units: within a block. Cost: as many
    numbers as candidates, per block. Differs: theta starts without the official normal noise of deviation std; scale
    makes up for the small std, as there. Groups whose rows are no multiple of m have no gate and stay dense.
    """

    n: int = 2
    m: int = 4
    tau: tuple[float, float] = (4.0, 0.05)
    scale: tuple[float, float] = (100.0, 500.0)
    std: float = 0.01
    prior: float = 3.0
    kappa: float = 1e-5
    lr: float = 5e-4
    freezes: ClassVar[bool] = True
    sees: ClassVar[bool] = True
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (0 < self.n < self.m and min(*self.tau, *self.scale, self.std, self.lr) > 0 and self.kappa >= 0):
            raise SpecError(f"{self}: 0 < n < m; tau, scale, std and lr positive; kappa not negative")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows divide into blocks."""
        return len(shape) == 2 and shape[-1] % self.m == 0

    def __call__(self, w: Weight) -> Float[Tensor, "rows blocks candidates"]:
        return self.prior * self.std * shared(w.abs(), self.n, self.m)

    def value(self, theta: Float[Tensor, "rows blocks candidates"], moment: Moment) -> Float[Tensor, "rows columns"]:
        return mixed(theta, moment, patterns(self.n, self.m, theta), self.tau, self.scale).flatten(1)

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        left = [(seen(m) * self.value(thetas[n], m)).square().sum() for n, m in moment.others.items()]
        return -self.kappa * (1 - moment.progress) * torch.stack(left).sum()

    def worth(self, theta: Float[Tensor, "rows blocks candidates"]) -> Float[Tensor, "rows columns"]:
        options = patterns(self.n, self.m, theta)
        return (options[likeliest(theta)] + (self.scale[1] * theta).softmax(-1) @ options / 2).flatten(1)

    def rate(self, progress: float) -> float:
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=(0.9, 0.95))


@dataclass(frozen=True)
class GivenCandidates(Candidates):
    """`Candidates` whose given mask is the n best of every block by the criterion `of` (the paper: SparseGPT's mask).

    Shapes, units: those of `Candidates`. Cost, fails: also those of the criterion's evidence.
    """

    of: Criterion | None = None
    given: ClassVar[frozenset[str]] = frozenset({"evidence"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of is not None and not isinstance(self.of, Criterion):
            raise SpecError(f"GivenCandidates(of={self.of!r}) takes a criterion")

    def asks(self) -> Mapping[str, Evidence]:
        return needs(Candidates) if self.of is None else self.of.asks()

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({} if self.of is None else self.of.settings())

    def __call__(  # type: ignore[override]
        self, **evidence: Any
    ) -> Float[Tensor, "rows blocks candidates"]:
        worth = evidence["w"].abs() if self.of is None else self.of(**evidence)
        return self.prior * self.std * shared(worth, self.n, self.m)


def shared(worth: Float[Tensor, "..."], n: int, m: int) -> Float[Tensor, "rows blocks candidates"]:
    """How many weights every candidate shares with the n best of its block, less n^2 / m."""
    blocks = worth.reshape(len(worth), -1, m)
    best = blocks.argsort(dim=-1, descending=True, stable=True)[..., :n]
    given = torch.zeros_like(blocks).scatter_(-1, best, 1.0)
    return given @ patterns(n, m, blocks).T - n**2 / m


def mixed(
    theta: Float[Tensor, "rows blocks candidates"],
    moment: Moment,
    options: Float[Tensor, "candidates m"],
    taus: tuple[float, float],
    scales: tuple[float, float],
) -> Float[Tensor, "rows blocks m"]:
    """Every block's likeliest candidate, or the candidates as a relaxed draw of one of them mixes them."""
    if moment.noise is None:
        return options[likeliest(theta)]
    tau, scale = (a + (b - a) * moment.progress for a, b in (taus, scales))
    drawn = scale * theta - (-moment.noise.clamp(min=1e-30).log()).log()
    return (drawn / tau).softmax(-1) @ options


def patterns(n: int, m: int, like: Tensor) -> Float[Tensor, "candidates m"]:
    """All ways to keep n of m, the earliest first."""
    chosen = torch.tensor(list(combinations(range(m), n)), device=like.device)
    return torch.zeros(len(chosen), m, dtype=like.dtype, device=like.device).scatter_(1, chosen, 1.0)


def likeliest(theta: Float[Tensor, "rows blocks candidates"]) -> Int[Tensor, "rows blocks"]:
    """Every block's likeliest candidate, of equals the earlier."""
    return theta.argsort(dim=-1, descending=True, stable=True)[..., 0]


def seen(moment: Moment) -> Float[Tensor, "rows columns"]:
    """The weights behind the gates of a group."""
    assert moment.w is not None
    return moment.w[..., 0]
