"""The loss's gradient and Hessian as operators on flat vectors, over all parameters or over those that pruning kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.core.errors import DataError, SpecError
from prunus.core.task import Task
from prunus.measure.inputs import as_found, device_of, moved

Masks = Mapping[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that derivatives are taken by: those that require a gradient, tied ones once.

    Errors: `SpecError` where there is none.
    """
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    if not found:
        raise SpecError("no parameter of this model requires a gradient: there is nothing to take derivatives by")
    return found


def zeros_as_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks as the weights show them: parameter -> True where it is not zero, of weights that hold a zero.

    Vectors (biases, normalization) are left out: zeros are ordinary numbers there.
    """
    found = {n: p.detach() != 0 for n, p in model.named_parameters() if p.ndim >= 2}
    return {n: m for n, m in found.items() if not bool(m.all())}


def kept_entries(parameters: Parameters, kept: Masks | None) -> Bool[Tensor, "n"]:
    """One flag for every entry of the parameters in order: False where a mask says that it is pruned.

    Errors: `SpecError` for a mask of no parameter, or of another shape.
    """
    given = {} if kept is None else dict(kept)
    odd = [n for n, m in given.items() if n not in parameters or m.shape != parameters[n].shape]
    if odd:
        raise SpecError(f"the mask {odd[0]!r} belongs to no trained parameter of this model, or has another shape")
    parts = [given.get(n, torch.ones((), dtype=torch.bool)).to(p.device).expand(p.shape) for n, p in parameters.items()]
    return torch.cat([m.bool().reshape(-1) for m in parts])


@contextmanager
def derivable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, attention in the form that has second derivatives; all as found afterwards."""
    with as_found(model, device_of(model, ()), inference=False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def placed(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    (found,), _ = moved((batch,), device)
    return found


def gradient(
    model: nn.Module, task: Task, batches: Sequence[Any], parameters: Parameters
) -> tuple[float, list[Float[Tensor, "..."]]]:
    """The mean of the batches' losses, and its gradient by parameter. Call it within `derivable`.

    Errors: `DataError` for no batch, or a loss that is not finite.
    """
    total, grads = 0.0, [torch.zeros_like(p) for p in parameters.values()]
    for batch in checked(batches):
        loss = task.loss_of(model, placed(batch, device_of(model, ())))
        total += finite(loss) / len(batches)
        found = torch.autograd.grad(loss / len(batches), list(parameters.values()), allow_unused=True)
        for sum_, g in zip(grads, found, strict=True):
            if g is not None:
                sum_ += g
    return total, grads


class Hessian:
    """v -> Hv of the mean loss over batches, among the kept entries; zero elsewhere. Use it within `derivable`.

    Cost of a product: a forward, a backward and a double backward per batch.
    """

    def __init__(self, model: nn.Module, task: Task, batches: Sequence[Any], kept: Masks | None) -> None:
        self.model, self.task, self.batches = model, task, checked(batches)
        self.parameters = trained(model)
        self.kept = kept_entries(self.parameters, kept)
        self.size = int(self.kept.sum())
        if not self.size:
            raise SpecError("the masks keep nothing: there is no direction left to measure a curvature along")

    def __call__(self, v: Float[Tensor, "kept"]) -> Float[Tensor, "kept"]:
        listed = list(self.parameters.values())
        whole = torch.zeros(len(self.kept), dtype=listed[0].dtype, device=listed[0].device)
        whole[self.kept] = v.to(whole)
        sizes = [p.numel() for p in listed]
        parts = [t.view_as(p).to(p.dtype) for t, p in zip(whole.split(sizes), listed, strict=True)]
        product = torch.zeros_like(whole)
        for batch in self.batches:
            loss = self.task.loss_of(self.model, placed(batch, whole.device)) / len(self.batches)
            finite(loss)
            grads = torch.autograd.grad(loss, listed, create_graph=True, allow_unused=True)
            along = sum((g * t).sum() for g, t in zip(grads, parts, strict=True) if g is not None)
            # Of a loss that is linear in the weights (a network without a hidden layer, say) nothing is left to derive.
            if isinstance(along, Tensor) and along.requires_grad:
                found = torch.autograd.grad(along, listed, allow_unused=True)
                product += torch.cat(
                    [(torch.zeros_like(p) if h is None else h).reshape(-1) for h, p in zip(found, listed, strict=True)]
                ).to(product)
        return product[self.kept].to(v.dtype)


def checked(batches: Sequence[Any]) -> Sequence[Any]:
    """The batches, at least one of them."""
    if not len(batches):
        raise DataError("no batch was given: derivatives of the loss need at least one")
    return batches


def finite(loss: Tensor) -> float:
    """The loss as a number that is one."""
    value = float(loss.detach())
    if value - value != 0:
        raise DataError(f"the loss is {value}: a network whose loss is not finite has no gradient to look at")
    return value
