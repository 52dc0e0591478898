"""Criteria from second derivatives of the loss, or from the Fisher information in their place."""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import (
    FilterCurvature,
    FisherDiagonal,
    GateGrad,
    Grad,
    HessianDiagonal,
    HessianWeight,
    InverseFisher,
    InverseFisherBlock,
    OutputFisher,
    PairCurvature,
    SampleCount,
    UnitTaylor,
    Weight,
)
from prunus.parts.evidence.fisher import Kind


def check(part: Criterion) -> None:
    """Refuse fields that the evidence could not go by."""
    values = part.settings()
    for name, least in (("probes", 0), ("block", 1), ("damp", 0.0), ("examples", 0), ("rounds", 1)):
        if name in values and not values[name] >= least:
            raise SpecError(f"{type(part).__name__}({name}={values[name]}): at least {least}")
    if "fisher" in values and values["fisher"] not in get_args(Kind):
        raise SpecError(f"{type(part).__name__}(fisher={values['fisher']!r}): one of {', '.join(get_args(Kind))}")


@dataclass(frozen=True)
class DiagonalHessian(Criterion):
    """1/2 h w^2, h the second derivative of the loss: its rise when w is removed at a minimum, other weights left as
    they are and products between weights left out (OBD: LeCun, Denker & Solla 1989).

    Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network; may be negative away from a
    minimum. Cost: `probes` double backwards per batch. Differs: the paper propagates the diagonal through the layers,
    without its negative parts; here it is Hutchinson's unbiased estimate of the true diagonal.
    """

    probes: int = 10
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.probes < 1:
            raise SpecError(f"DiagonalHessian(probes={self.probes}): at least 1")

    def __call__(self, w: Weight, h: HessianDiagonal) -> Float[Tensor, "*units k"]:
        return 0.5 * h * w.square()


@dataclass(frozen=True)
class DiagonalFisher(Criterion):
    """1/2 F_ii w^2 with the diagonal of the Fisher information for the Hessian (Theis et al. 2018, arXiv:1801.05787,
    for single weights); with `gauss_newton` and a squared loss, OBD with the Levenberg-Marquardt approximation.

    Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network. Cost: one backward per batch, or
    with `gauss_newton` one per output (or `probes`).
    """

    fisher: Kind = "empirical"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, f: FisherDiagonal) -> Float[Tensor, "*units k"]:
        return 0.5 * f * w.square()


@dataclass(frozen=True)
class OutputDistortion(Criterion):
    """I_ii w^2, I = E[J^T J] of the model's outputs: how far they move when w is removed, weights taken one by one
    (Gao, Wang & Oh 2018, arXiv:1810.06401, the weighted objective with the diagonal of I).

    Shapes: `[*units, k] -> [*units, k]`. Units: squared outputs; comparable across the network. Reads inputs, no
    labels. Cost: a backward per output, or `probes` of them, for every batch. Fails: as its evidence.
    """

    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, i: OutputFisher) -> Float[Tensor, "*units k"]:
        return i * w.square()


@dataclass(frozen=True)
class GroupFisher(Criterion):
    """1/2 E[(dL_n/dm)^2], m a factor on everything coupled to the unit: gradients of coupled layers are summed, then
    squared (Group Fisher: Liu et al. 2021, arXiv:2108.00708).

    Shapes: `[units, samples] -> [units]`. Units: loss; comparable across the network, per cost with `CostNormalized`.
    Undefined where nothing visible reads the unit. Cost: one forward and backward per batch. Differs: the official
    code sums over samples, which changes no rank.
    """

    train_mode: bool = False

    def __call__(self, g: GateGrad) -> Float[Tensor, "units"]:
        return 0.5 * g.square().mean(-1)


@dataclass(frozen=True)
class WeightFisher(Criterion):
    """1/2 E[(sum w dL_n/dw)^2] over the unit's weights: theta^T F theta with the whole Fisher information of the unit,
    products between its weights included.

    For single weights `DiagonalFisher` with the empirical one. Shapes: `[*units, samples] -> [*units]`. Units: loss;
    comparable across the network. Cost: one forward and backward per batch.
    """

    train_mode: bool = False

    def __call__(self, g: UnitTaylor) -> Float[Tensor, "*units"]:
        return 0.5 * g.square().mean(-1)


@dataclass(frozen=True)
class SecondOrderProduct(Criterion):
    """|theta^T g| + 1/2 |theta^T H theta_all|, theta the unit's weights and theta_all those of all units (SOSP-H:
    Nonnenmacher et al. 2022, arXiv:2110.11395): correlations with every other unit, from a single product with H.

    Shapes: `[*units, k] -> [*units]`. Units: loss; comparable across the network. Cost: a backward and a double
    backward per batch.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad, h: HessianWeight) -> Float[Tensor, "*units"]:
        return (w * g).sum(-1).abs() + 0.5 * (w * h).sum(-1).abs()


@dataclass(frozen=True)
class SecondOrderPairs(Criterion):
    """|theta_m^T g| + 1/2 sum_m' |theta_m^T H theta_m'|, H the Gauss-Newton matrix or the empirical Fisher information,
    m' over all units of the network (SOSP-I: Nonnenmacher et al. 2022, arXiv:2110.11395).

    Shapes: `[*units, k] -> [*units]`. Units: loss; comparable across the network. Cost: a backward per batch and output
    (or probe), units^2 products of sample vectors: for channels, not for single weights.
    """

    fisher: Kind = "gauss_newton"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, g: Grad, pairs: PairCurvature) -> Float[Tensor, "*units"]:
        return (w * g).sum(-1).abs() + 0.5 * pairs.squeeze(-1)


@dataclass(frozen=True)
class ObsFisher(Criterion):
    """w^2 / (2 [F^-1]_ii): the rise of the loss when w is removed and the other weights of its block make up for it
    (OBS: Hassibi & Stork 1993; WoodFisher: Singh & Alistarh 2020, arXiv:2004.14340).

    F is the damped Fisher information in blocks of `block` consecutive weights; block=1 is its diagonal. Shapes:
    `[*units, k] -> [*units, k]`, float64. Units: loss; comparable across the network. Cost: one backward per batch,
    `block` numbers per weight, one inversion of every block.
    """

    block: int = 50
    damp: float = 1e-5
    fisher: Kind = "empirical"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, inverse: InverseFisher) -> Float[Tensor, "*units k"]:
        return w.double().square() / (2 * inverse)


@dataclass(frozen=True)
class BlockObsFisher(Criterion):
    """1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q: the same for the k weights of a unit that go together (oBERT: Kurtic et al. 2022,
    arXiv:2203.07259); for k = 1 `ObsFisher`.

    Shapes: `[*units, k], [*units, k, k] -> [*units]`. Units and cost as there, and k^3 per unit. Fails: `SpecError`
    where no unit lies in one block.
    """

    block: int = 50
    damp: float = 1e-7
    fisher: Kind = "empirical"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, inverse: InverseFisherBlock) -> Float[Tensor, "*units"]:
        wide = w.double()
        solved = torch.linalg.solve(inverse, wide.unsqueeze(-1)).squeeze(-1)
        rise: Tensor = 0.5 * (wide * solved).sum(-1)
        return rise


@dataclass(frozen=True)
class KroneckerFilter(Criterion):
    """What removing a filter costs in the Kronecker-factored Fisher information F = A (x) G: 1/2 [G]_ii w_i^T A w_i
    (C-OBD), or 1/2 w_i^T A w_i / [G^-1]_ii where the layer's other filters make up for it (C-OBS; EigenDamage: Wang
    et al. 2019, arXiv:1905.05934).

    Summed over the weights that make a coupled unit. Shapes: `[units, weights, 2] -> [units]`. Units: loss; comparable
    across the network. Undefined for single weights and grouped convolutions. Cost: a backward per batch (and output or
    probe), the two factors of every layer. Differs: biases are left out of A; the official code of C-OBS has w^2 A
    (entries squared first) for w^T A w and adds 1e-10 to the eigenvalues of G where `damp` is relative to their mean.
    """

    compensated: bool = True
    damp: float = 1e-3
    fisher: Kind = "gauss_newton"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, f: FilterCurvature) -> Float[Tensor, "units"]:
        return 0.5 * f[..., 1 if self.compensated else 0].sum(-1)


@dataclass(frozen=True)
class PosteriorDamage(Criterion):
    """(N h + delta) w^2: the posterior precision of a weight times its square, in a Laplace approximation with the
    diagonal Gauss-Newton matrix (OPD: Dhahri et al. 2024, arXiv:2402.15978).

    delta is the precision of the prior, one for each group, where the evidence is stationary: delta = gamma / sum w^2
    with gamma = sum N h / (N h + delta) (MacKay 1992), iterated `rounds` times. N is the number of training examples,
    those of the calibration batches if 0. Shapes: `[*units, k] -> [*units, k]`. Units: nats; comparable across the
    network. Cost: a backward per output (or probe) and batch. Differs: the paper learns delta by the gradient of the
    evidence while training, for layers, units or weights; here it is fitted to the weights as they are.
    """

    examples: int = 0
    rounds: int = 20
    fisher: Kind = "gauss_newton"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, h: FisherDiagonal, count: SampleCount) -> Float[Tensor, "*units k"]:
        precision = h.double() * (self.examples or count.double())
        squared = w.double().square()
        return (precision + prior(precision, squared, self.rounds)) * squared


@dataclass(frozen=True)
class ModelReduction(Criterion):
    """1/2 P w^2 - 1/2 log(P / delta): what the evidence loses when the prior of a weight shrinks to zero, in closed
    form (Bayesian model reduction: Friston & Penny 2011; for pruning: Beckers et al. 2022, arXiv:2210.09134).

    P = N h + delta is the posterior precision, delta that of the prior; both as in `PosteriorDamage`. A score below
    zero says that the data prefer a network without the weight. Shapes: `[*units, k] -> [*units, k]`. Units: nats;
    comparable across the network. Cost: as there. Differs: the paper's posterior is a variational one, trained with the
    network; here it is the Laplace approximation of a network that was trained as usual.
    """

    examples: int = 0
    rounds: int = 20
    fisher: Kind = "gauss_newton"
    probes: int = 0
    train_mode: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, w: Weight, h: FisherDiagonal, count: SampleCount) -> Float[Tensor, "*units k"]:
        precision = h.double() * (self.examples or count.double())
        squared = w.double().square()
        delta = prior(precision, squared, self.rounds)
        return 0.5 * (precision + delta) * squared - 0.5 * torch.log1p(precision / delta)


def prior(precision: Float[Tensor, "..."], squared: Float[Tensor, "..."], rounds: int) -> Float[Tensor, ""]:
    """The precision of a zero-mean prior on all weights of a group at which the evidence is stationary (MacKay 1992).

    The first guess is that the data determine all weights. Units that are pruned already count as zeros do.
    """
    least = torch.finfo(torch.float64).tiny
    total = squared.sum().clamp(min=least)
    delta = squared.numel() / total
    for _ in range(rounds):
        delta = ((precision / (precision + delta)).sum() / total).clamp(min=least)
    return delta
