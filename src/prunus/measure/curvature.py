"""The spectrum of the loss's Hessian: exact for small networks, by Lanczos for large ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.task import Task
from prunus.measure.derivatives import Hessian, Masks, derivable

Operator = Callable[[Tensor], Tensor]
OnProduct = Callable[[int, int], None]
LIMIT = 512  # parameters up to which every eigenvalue is worked out


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the Hessian of the mean loss.

    Attributes:
        size: parameters that it is taken over.
        exact: whether all eigenvalues were worked out; else they are Ritz values of Lanczos.
        largest, smallest: the ends, from the outermost inwards.
        largest_error, smallest_error: an eigenvalue lies within so much of each (the residual of the Ritz vector, and
            rounding; 0 where exact).
        trace: the sum of all; with `trace_error`, its standard error over probes (0 where exact, NaN of one probe).
        nodes: (value, share): how eigenvalues are spread; shares sum to 1.
        loss_products: Hessian products that it took.
    """

    size: int
    exact: bool
    largest: tuple[float, ...]
    smallest: tuple[float, ...]
    largest_error: tuple[float, ...]
    smallest_error: tuple[float, ...]
    trace: float
    trace_error: float
    nodes: tuple[tuple[float, float], ...]
    loss_products: int

    @property
    def negative(self) -> float:
        """Share of the eigenvalues below zero by more than a hundredth of the largest magnitude: most lie about
        zero, on either side of it by no more than the resolution of Lanczos.
        """
        floor = 1e-2 * max(abs(self.largest[0]), abs(self.smallest[0]))
        return sum(share for value, share in self.nodes if value < -floor)

    def density(self, at: Sequence[float], width: float) -> tuple[float, ...]:
        """The spectrum as a density at some points: every node a Gaussian of this standard deviation."""
        scale = 1.0 / (width * math.sqrt(2 * math.pi))
        return tuple(
            sum(s * scale * math.exp(-0.5 * min(((x - v) / width) ** 2, 1e3)) for v, s in self.nodes) for x in at
        )


def hessian_spectrum(
    model: nn.Module,
    task: Task,
    batches: Sequence[Any],
    *,
    kept: Masks | None = None,
    top: int = 5,
    iterations: int = 40,
    probes: int = 4,
    limit: int = LIMIT,
    seed: int = 0,
    told: OnProduct | None = None,
) -> Spectrum:
    """The spectrum of the Hessian of the mean loss over batches, in evaluation mode.

    Up to `limit` parameters all eigenvalues of the whole matrix. Beyond, stochastic Lanczos quadrature: `probes`
    random signs of `iterations` products each, whose Ritz values carry the density (Ghorbani, Krishnan & Xiao 2019,
    ICML, arXiv:1901.10159, section 2) and whose outermost ones are the extreme eigenvalues.

    Args:
        kept: parameter -> True where it may move. Pruned weights are held at zero, so the curvature that a sparse
            network meets is the block of the others.
        top: how many from each end.
        told: called with (products done, products in all at most).

    Cost: `probes * iterations` Hessian products (`size` of them where exact), each a forward, a backward and a double
    backward per batch; memory: `iterations` vectors of the parameters' size, all of a run, for orthogonality.
    Errors: `SpecError` for masks that fit nothing or counts below 1, `DataError` for no batch or a loss that is none.
    Differs: an eigenvalue that occurs several times is found once by Lanczos; `exact` spectra list all.
    """
    if min(top, iterations, probes) < 1:
        raise SpecError(f"top={top}, iterations={iterations}, probes={probes}: each must be 1 or more")
    with derivable(model):
        product = Hessian(model, task, batches, kept)
        like = next(iter(product.parameters.values()))
        if product.size <= limit:
            return _whole(product, like, top, told)
        draw = torch.Generator().manual_seed(seed)
        steps, runs = min(iterations, product.size), []
        for probe in range(probes):
            start = (torch.randint(2, (product.size,), generator=draw) * 2 - 1).to(like)

            def advance(done: int, probe: int = probe) -> None:
                if told is not None:
                    told(probe * steps + done, probes * steps)

            runs.append(lanczos(product, start, steps, advance))
    return _from_runs(runs, product.size, top)


@dataclass(frozen=True)
class Ritz:
    """What a run of Lanczos found, smallest value first: values, squared first entries (shares), and residuals."""

    values: Float[Tensor, "steps"]
    shares: Float[Tensor, "steps"]
    residuals: Float[Tensor, "steps"]


def lanczos(
    product: Operator, start: Float[Tensor, "n"], steps: int, told: Callable[[int], None] | None = None
) -> Ritz:
    """Ritz values of a symmetric operator in the Krylov space of `start`, every vector orthogonalized against all
    before it, twice (Golub & Van Loan, Matrix Computations, section 10.3); stops early where the space is exhausted.
    """
    q = start / start.norm()
    basis, diagonal, beside = q.new_empty(steps + 1, len(q)), list[float](), list[float]()
    basis[0] = q
    for step in range(steps):
        w, whole = product(basis[step]), basis[: step + 1]
        diagonal.append(float(torch.dot(w, basis[step])))
        for _ in range(2):
            w = w - whole.T @ (whole @ w)
        rest = float(w.norm())
        beside.append(rest)
        if told is not None:
            told(step + 1)
        # What is left is rounding: the space holds no further direction.
        if rest <= 1e3 * torch.finfo(w.dtype).eps * max(1e-300, max(map(abs, diagonal + beside))):
            beside[-1] = 0.0
            break
        basis[step + 1] = w / rest
    inner = torch.tensor(beside[:-1], dtype=torch.float64)
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(inner, 1) + torch.diag(inner, -1)
    values, vectors = torch.linalg.eigh(small)
    rounding = torch.finfo(start.dtype).eps * float(values.abs().max())
    return Ritz(values, vectors[0] ** 2, abs(beside[-1]) * vectors[-1].abs() + rounding)


def _from_runs(runs: Sequence[Ritz], size: int, top: int) -> Spectrum:
    traces = [size * float((r.shares * r.values).sum()) for r in runs]
    mean = sum(traces) / len(traces)
    spread = math.nan
    if len(traces) > 1:
        spread = math.sqrt(sum((t - mean) ** 2 for t in traces) / (len(traces) - 1) / len(traces))
    high, low = max(runs, key=lambda r: float(r.values[-1])), min(runs, key=lambda r: float(r.values[0]))
    nodes = [(float(v), float(s) / len(runs)) for r in runs for v, s in zip(r.values, r.shares, strict=True)]
    return Spectrum(
        size=size,
        exact=False,
        largest=tuple(high.values.flip(0)[:top].tolist()),
        smallest=tuple(low.values[:top].tolist()),
        largest_error=tuple(high.residuals.flip(0)[:top].tolist()),
        smallest_error=tuple(low.residuals[:top].tolist()),
        trace=mean,
        trace_error=spread,
        nodes=tuple(sorted(nodes)),
        loss_products=sum(len(r.values) for r in runs),
    )


def _whole(product: Hessian, like: Tensor, top: int, told: OnProduct | None) -> Spectrum:
    columns = []
    for i in range(product.size):
        unit = torch.zeros(product.size, dtype=like.dtype, device=like.device)
        unit[i] = 1.0
        columns.append(product(unit).double().cpu())
        if told is not None:
            told(i + 1, product.size)
    matrix = torch.stack(columns)
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    n, ends = product.size, min(top, product.size)
    return Spectrum(
        size=n,
        exact=True,
        largest=tuple(values.flip(0)[:ends].tolist()),
        smallest=tuple(values[:ends].tolist()),
        largest_error=(0.0,) * ends,
        smallest_error=(0.0,) * ends,
        trace=float(values.sum()),
        trace_error=0.0,
        nodes=tuple((v, 1.0 / n) for v in values.tolist()),
        loss_products=n,
    )
