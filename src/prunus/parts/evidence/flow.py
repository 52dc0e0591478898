"""Synaptic flow: the gradient of the network's total output when every weight and every input is positive."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError, StructureError, WeightsError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.parts.evidence.gradients import scored


class SynapticFlowEvidence(Evidence):
    """dR/d|w| with R = sum f(1; |theta|) (Tanaka et al. 2020, arXiv:2006.05467, eq. 1 and section 5).

    Float64 and evaluation mode on a copy: products of |w| over the depth overflow float32, and batch statistics of a
    constant input would cancel every score. The absolute value is taken of all saved state, running statistics
    included, as the official code does. Floating inputs become ones (batch of one); integer inputs (token ids) stay
    as the example has them. Reads no data: only the example's shape. Cost: one forward and backward in float64, a
    float64 copy of the model.
    """

    passes = "one forward and backward of one all-ones input"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        call = sources.task.example_inputs()
        if call is None:
            raise SpecError("synaptic flow needs the shape of an input: pass Task(example=...)")
        linear = copy.deepcopy(sources.model).double().eval()
        trained = {name for name, _ in linear.named_parameters(remove_duplicate=False)}
        with torch.no_grad():
            # A mask of -inf is no weight: its absolute value would let everything through.
            for name, state in linear.state_dict().items():
                if state.is_floating_point() and (name in trained or bool(torch.isfinite(state).all())):
                    state.abs_()
        linear.requires_grad_(False)
        named = dict(linear.named_parameters())
        weights = {n: named[n].requires_grad_(True) for n in scored(sources, self.roles)}
        args, kwargs = call
        device = next(iter(weights.values())).device
        with torch.enable_grad():
            output = linear(*_ones(args, device), **_ones(kwargs, device))
            flow = sum(t.sum() for t in _floating(output))
            if not isinstance(flow, Tensor) or not flow.requires_grad:
                raise StructureError("synaptic flow: the model's output does not depend on the scored weights")
            grads = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        result = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), grads, strict=True)}
        if bad := [n for n, g in result.items() if not torch.isfinite(g).all()]:
            raise WeightsError(f"synaptic flow is not finite in {bad[0]}: the products of |w| overflow even in float64")
        # |w| in float64 as well: the product of the two is what is ranked.
        yield self.by_group(sources, {n: g * weights[n].detach() for n, g in result.items()})


def _ones(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        if inputs.is_floating_point():
            return torch.ones((1, *inputs.shape[1:]), dtype=torch.float64, device=device)
        return inputs[:1].to(device) if inputs.ndim else inputs.to(device)
    if isinstance(inputs, Mapping):
        return {k: _ones(v, device) for k, v in inputs.items()}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return type(inputs)(_ones(v, device) for v in inputs)  # type: ignore[call-arg]
    return inputs


def _floating(output: Any) -> list[Tensor]:
    """The output tensor: itself, the `logits` of a record, else every floating tensor inside."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return [logits]
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [t for v in values for t in _floating(v)] if isinstance(values, list | tuple) else []


SynapticFlow = Annotated[Float[Tensor, "*units k"], SynapticFlowEvidence()]
"""`[*units, k]`: |w| dR/d|w|, the synaptic flow through each producing weight (float64)."""
