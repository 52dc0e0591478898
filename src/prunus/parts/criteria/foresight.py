"""Criteria for networks that are not trained yet: what will the training to come need, without or with little data."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import (
    DataPathFlow,
    GateGrad,
    Grad,
    InitialWeight,
    KernelGrad,
    MetaGrad,
    NoiseGrad,
    PathFlow,
    Weight,
)


@dataclass(frozen=True)
class NoiseSensitivity(Criterion):
    """|g w| with the gradient at standard normal inputs: SNIP without data (labels as in Lee et al. 2020,
    arXiv:1906.06307, where `labels="uniform"`: the cross entropy with the uniform distribution over the classes).

    `labels="random"` draws a class for every output instead. The last axis of the model's output are the classes; the
    task's own loss is not asked. Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network.
    Cost: one forward and backward of `samples` inputs. Differs: Lee et al. keep the inputs and do without labels alone.
    """

    labels: Literal["random", "uniform"] = "random"
    samples: int = 64

    def __post_init__(self) -> None:
        if self.labels not in ("random", "uniform") or self.samples < 1:
            raise SpecError(f"{self}: labels are 'random' or 'uniform', samples at least 1")

    def __call__(self, w: Weight, g: NoiseGrad) -> Float[Tensor, "*units k"]:
        return (g * w).abs()


@dataclass(frozen=True)
class UnitSensitivity(Criterion):
    """|dL/dc| at c = 1, c a gate on the whole unit: connection sensitivity of channels (3SP: van Amersfoort et al.
    2020, arXiv:2007.00389; SNAP-it: Verdenius et al. 2020, arXiv:2006.00896).

    Averaged over batches. The gate scales the unit where its readers see it. Shapes: `[units, batch] -> [units]`.
    Units: loss; comparable across the network. Undefined where a reader is not seen, and for single weights. Cost: one
    forward and backward per batch. Differs: SNAP puts gates on inputs and outputs of layers alike; 3SP and SNAP take
    one batch.
    """

    train_mode: bool = False

    def __call__(self, g: GateGrad) -> Float[Tensor, "units"]:
        return g.mean(1).abs()


@dataclass(frozen=True)
class RevivingSensitivity(Criterion):
    """|g w_0|: the gradient at the pruned network, but the weight as it was before pruning, so that pruned weights
    compete too (FORCE: de Jorge et al. 2021, arXiv:2006.09081).

    Belongs to a schedule that revives, `Iterative(revive=True)`; without one pruned weights stay pruned and it is
    iterative SNIP. Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network. Cost: one forward
    and backward per batch and round, a copy of the weights.
    """

    train_mode: bool = False

    def __call__(self, w: InitialWeight, g: Grad) -> Float[Tensor, "*units k"]:
        return (g * w).abs()


@dataclass(frozen=True)
class KernelSaliency(Criterion):
    """|d/dm ||f(theta * m) - f((theta + epsilon n) * m)||^2|: how much the trace of the neural tangent kernel hangs on
    a weight's position, whatever its value (NTK-SAP: Wang et al. 2023, arXiv:2304.02840).

    Weights, inputs and perturbations are drawn anew every time, `draws` times (the official code: 1); the model's own
    weights do not matter. Shapes: `[*units, k] -> [*units, k]`. Units: squared outputs; comparable across the network.
    Cost: three forwards and a backward in float64 per draw. Differs: initialization is the modules' own
    `reset_parameters`; inputs are `samples` in one batch, where the official code takes as many as the calibration set.
    """

    epsilon: float = 0.01
    draws: int = 1
    samples: int = 64

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.draws < 1 or self.samples < 2:
            raise SpecError(f"{self}: epsilon > 0, draws at least 1, samples at least 2 (normalizations need two)")

    def __call__(self, k: KernelGrad) -> Float[Tensor, "*units k"]:
        return k.abs()


@dataclass(frozen=True)
class MetaSensitivity(Criterion):
    """|dL(w_M)/dm| at m = 1: SNIP with the loss after M steps of training instead of the loss now (ProsPr: Alizadeh et
    al. 2022, arXiv:2202.08132), differentiated through the steps.

    `first_order=True` leaves second derivatives out. Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable
    across the network. Cost: M + 1 forwards and backwards and a backward through all of them, whose activations are in
    memory at once (the official code runs it on the CPU). Differs: evaluation mode unless `train_mode`; calibration
    batches in turn, where the command line of the official code takes one batch for all steps (here: give one); for
    structured pruning the sum of a unit's magnitudes, where the official code has one gate per unit.
    """

    steps: int = 3
    rate: float = 0.1
    momentum: float = 0.0
    first_order: bool = False
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate <= 0 or not 0.0 <= self.momentum < 1.0:
            raise SpecError(f"{self}: steps at least 0, rate > 0, 0 <= momentum < 1")

    def __call__(self, m: MetaGrad) -> Float[Tensor, "*units k"]:
        return m.abs()


@dataclass(frozen=True)
class PathSaliency(Criterion):
    """w^2 dR/dw^2 with R the sum over all paths of their squared products: synaptic flow in the squared network
    (SynFlow-L2: Gebhart et al. 2021, arXiv:2101.10552), which ranks by the trace of the path kernel.

    Conserved from layer to layer like synaptic flow. Shapes: `[*units, k] -> [*units, k]`. Units: squared outputs of
    the all-ones input; comparable across the network. Cost: one forward and backward in float64 on a copy. Differs:
    half of w dR/dw, which is the same order; the codes of PHEW (arXiv:2010.11354) and others rank |w| dR/dw^2, and
    square parameters only.
    """

    def __call__(self, flow: PathFlow) -> Float[Tensor, "*units k"]:
        return flow.abs()


@dataclass(frozen=True)
class DataPathSaliency(Criterion):
    """The same with paths that begin with the mean of x^2 over the calibration inputs instead of one (the
    data-weighted form of SynFlow-L2, Gebhart et al. 2021, arXiv:2101.10552).

    Shapes: `[*units, k] -> [*units, k]`. Units: squared outputs; comparable across the network. Cost: a forward per
    batch, one forward and backward in float64 on a copy. Fails: `SpecError` for inputs of different shapes. Where
    inputs are token ids it is `PathSaliency`.
    """

    def __call__(self, flow: DataPathFlow) -> Float[Tensor, "*units k"]:
        return flow.abs()
