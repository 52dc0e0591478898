"""First derivatives of the outputs: the tangent kernel by parameters, and the Jacobian by inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.core.task import Task, inputs_of
from prunus.measure.derivatives import Masks, derivable, kept_entries, placed, trained
from prunus.measure.inputs import device_of

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class TangentKernel:
    """The empirical neural tangent kernel of some examples.

    Attributes:
        matrix: `[rows, rows]` in double precision; rows are examples, or examples times outputs (example by example).
        eigenvalues: all of them, the largest first.
        parameters: entries of parameters that derivatives were taken by.
        examples: how many.
    """

    matrix: Float[Tensor, "rows rows"]
    eigenvalues: tuple[float, ...]
    parameters: int
    examples: int

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues: the squared norm of the outputs' Jacobian by the parameters."""
        return float(self.matrix.trace())

    @property
    def condition(self) -> float:
        """The largest eigenvalue over the smallest; infinite where that is rounding."""
        first, last = self.eigenvalues[0], self.eigenvalues[-1]
        return first / last if last > 1e-14 * abs(first) else float("inf")


def tangent_kernel(
    model: nn.Module,
    task: Task,
    batch: Any,
    *,
    kept: Masks | None = None,
    outputs: Literal["each", "sum"] = "each",
    told: Told | None = None,
) -> TangentKernel:
    """K[(x, a), (y, b)] = <d f_a(x) / d theta, d f_b(y) / d theta> of the network as it is, in evaluation mode (Jacot,
    Gabriel & Hongler 2018, NeurIPS, arXiv:1806.07572).

    Args:
        kept: parameter -> True where it may move: the kernel of a sparse network is that of the weights it has.
        outputs: `each` takes every output of every example as a row, `sum` one row per example, the sum of its outputs.
        told: called with (rows done, rows in all).

    Cost: a forward, a backward per row, and `rows * parameters` numbers in memory, twice (once in float64).
    Errors: `DataError` for outputs that are no `[examples, ...]` of floating numbers or not finite.
    """
    with derivable(model):
        parameters = trained(model)
        where = kept_entries(parameters, kept)
        values = _rows(task.outputs(model, placed(batch, device_of(model, ()))))
        flat = values.sum(1) if outputs == "sum" else values.reshape(-1)
        listed = list(parameters.values())
        jacobian = torch.empty(len(flat), int(where.sum()), dtype=listed[0].dtype, device=listed[0].device)
        for row in range(len(flat)):
            found = torch.autograd.grad(flat[row], listed, retain_graph=row + 1 < len(flat), allow_unused=True)
            whole = [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(found, listed, strict=True)]
            jacobian[row] = torch.cat(whole)[where]
            if told is not None:
                told(row + 1, len(flat))
    exact = jacobian.double()
    matrix = (exact @ exact.T).cpu()
    spectrum = torch.linalg.eigvalsh(matrix).flip(0)
    return TangentKernel(matrix, tuple(spectrum.tolist()), jacobian.shape[1], values.shape[0])


@dataclass(frozen=True)
class JacobianValues:
    """Singular values of the Jacobian of a network's outputs by its input.

    Attributes:
        values: `[examples, min(outputs, inputs)]`, the largest of an example first.
        outputs, inputs: the Jacobian's shape.
    """

    values: Float[Tensor, "examples ranks"]
    outputs: int
    inputs: int

    @property
    def mean(self) -> float:
        """Over all singular values of all examples: near 1 where signals pass unchanged."""
        return float(self.values.mean())

    @property
    def largest(self) -> float:
        """Of any example."""
        return float(self.values.max())

    @property
    def smallest(self) -> float:
        """Of any example."""
        return float(self.values.min())


def jacobian_values(model: nn.Module, task: Task, batch: Any, *, told: Told | None = None) -> JacobianValues:
    """Singular values of d f(x) / d x for every example of a batch, in evaluation mode: how far a network is from
    dynamical isometry, which pruning breaks (Lee et al. 2020, ICLR, arXiv:1906.06307, section 3).

    Args:
        batch: its first entry (or the only tensor of a mapping) is the input; examples do not act on each other.
        told: called with (outputs done, outputs in all).

    Cost: a forward and a backward per output; a decomposition of `[outputs, inputs]` per example.
    Errors: `SpecError` for inputs that are no floating numbers (token ids have no derivative) or more than one,
        `DataError` for outputs as `tangent_kernel`.
    """
    args, kwargs = inputs_of(batch)
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    if len(given) != 1 or not given[0].is_floating_point():
        raise SpecError(
            "the Jacobian by the input needs one input of floating numbers: token ids, and several inputs, have none"
        )
    with derivable(model):
        x = given[0].detach().to(device_of(model, ())).requires_grad_(True)
        values = _rows(model(x) if args else model(**{k: x if t is given[0] else t for k, t in kwargs.items()}))
        rows = []
        for a in range(values.shape[1]):
            rows.append(torch.autograd.grad(values[:, a].sum(), x, retain_graph=a + 1 < values.shape[1])[0].flatten(1))
            if told is not None:
                told(a + 1, values.shape[1])
    jacobian = torch.stack(rows, dim=1).double()
    return JacobianValues(torch.linalg.svdvals(jacobian).cpu(), values.shape[1], jacobian.shape[2])


def _rows(output: Any) -> Tensor:
    """Outputs as `[examples, numbers]`."""
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 1:
        raise DataError(f"the network returns a {type(output).__name__}: derivatives are taken of a tensor of numbers")
    if not bool(torch.isfinite(found).all()):
        raise DataError("the network's outputs are not finite: there is no derivative to look at")
    return found.reshape(len(found), -1)
