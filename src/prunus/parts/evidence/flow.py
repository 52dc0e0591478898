"""Synaptic flow: the gradient of the network's total output when every weight and every input is positive."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError, StructureError, WeightsError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.graph.duplicate import duplicate
from prunus.parts.evidence.gradients import NO_BATCH, scored
from prunus.parts.evidence.inputs import Call, each_tensor, example_call, floating_outputs
from prunus.parts.evidence.mode import evidence_mode


class SynapticFlowEvidence(Evidence):
    """dR/d|w| with R = sum f(1; |theta|) (Tanaka et al. 2020, arXiv:2006.05467, eq. 1 and section 5).

    Float64 and evaluation mode on a copy: products of |w| over the depth overflow float32, and batch statistics of a
    constant input would cancel every score. The absolute value is taken of all saved state, running statistics
    included, as the official code does. Floating inputs become ones (batch of one); integer inputs (token ids) stay
    as the example has them. Reads no data: only the example's shape. Cost: one forward and backward in float64, a
    float64 copy of the model.
    """

    power: ClassVar[int] = 1
    passes = "one forward and backward of one all-ones input"

    def inputs(self, sources: Sources) -> Call:
        """What runs through the positive network."""
        args, kwargs = example_call(sources, "synaptic flow")
        return tuple(each_tensor(a, _ones) for a in args), {k: each_tensor(v, _ones) for k, v in kwargs.items()}

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        args, kwargs = self.inputs(sources)
        linear = duplicate(sources.model).double().eval()
        trained = {name for name, _ in linear.named_parameters(remove_duplicate=False)}
        with torch.no_grad():
            # A mask of -inf is no weight: its absolute value would let everything through.
            for name, state in linear.state_dict().items():
                if state.is_floating_point() and (name in trained or bool(torch.isfinite(state).all())):
                    state.abs_().pow_(self.power)
        linear.requires_grad_(False)
        named = dict(linear.named_parameters())
        weights = {n: named[n].requires_grad_(True) for n in scored(sources, self.roles)}
        device = next(iter(weights.values())).device
        with torch.enable_grad():
            output = linear(
                *(each_tensor(a, lambda t: t.to(device)) for a in args),
                **{k: each_tensor(v, lambda t: t.to(device)) for k, v in kwargs.items()},
            )
            flow = sum(t.sum() for t in floating_outputs(output))
            if not isinstance(flow, Tensor) or not flow.requires_grad:
                raise StructureError("synaptic flow: the model's output does not depend on the scored weights")
            grads = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        result = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), grads, strict=True)}
        if bad := [n for n, g in result.items() if not torch.isfinite(g).all()]:
            raise WeightsError(f"synaptic flow is not finite in {bad[0]}: the products of |w| overflow even in float64")
        # |w| in float64 as well: the product of the two is what is ranked.
        yield self.by_group(sources, {n: g * weights[n].detach() for n, g in result.items()})


class PathFlowEvidence(SynapticFlowEvidence):
    """w^2 dR/dw^2 with R = sum f(1; theta^2): the squared products of all paths through a weight, summed (Gebhart et
    al. 2021, arXiv:2101.10552, SynFlow-L2).

    All saved state is squared, running variances included, so that a normalization squares its factor too. Otherwise
    as `SynapticFlowEvidence`.
    """

    power: ClassVar[int] = 2


class DataPathFlowEvidence(PathFlowEvidence):
    """As `PathFlowEvidence`, with the mean of x^2 over the calibration samples in place of the ones.

    Fails: `SpecError` where batches have inputs of different shapes. Cost: one more forward per batch, to see inputs.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch, one forward and backward of their mean square"

    def inputs(self, sources: Sources) -> Call:
        total: Any = None
        samples = 0
        for batch in sources.task.calibration():
            call, n = _seen(sources, batch)
            total = call if total is None else _added(total, call)
            samples += n
        if total is None:
            raise DataError(NO_BATCH)
        args, kwargs = each_tensor(total, lambda t: t / samples if t.is_floating_point() else t)
        return args, kwargs


def _ones(t: Tensor) -> Tensor:
    if t.is_floating_point():
        return torch.ones((1, *t.shape[1:]), dtype=torch.float64)
    return t[:1] if t.ndim else t


def _seen(sources: Sources, batch: Any) -> tuple[Call, int]:
    """What the model is called with on a batch, squared and summed over samples, and how many there were."""
    calls: list[Call] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handle = sources.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with evidence_mode(sources.model, {}, sources.generator), torch.no_grad():
            sources.task.outputs(sources.model, batch)
    finally:
        handle.remove()
    counted = [0]

    def summed(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t[:1] if t.ndim else t
        counted[0] = len(t)
        return t.detach().double().square().sum(0, keepdim=True)

    call = each_tensor(calls[0], summed)
    return call, counted[0] or 1


def _added(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        if a.shape != b.shape:
            raise SpecError(f"inputs of shapes {tuple(a.shape)} and {tuple(b.shape)} have no mean: use equal ones")
        return a + b if a.is_floating_point() else a
    if isinstance(a, dict):
        return {k: _added(v, b[k]) for k, v in a.items()}
    return type(a)(_added(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list | tuple) else a


SynapticFlow = Annotated[Float[Tensor, "*units k"], SynapticFlowEvidence()]
"""`[*units, k]`: |w| dR/d|w|, the synaptic flow through each producing weight (float64)."""

PathFlow = Annotated[Float[Tensor, "*units k"], PathFlowEvidence()]
"""`[*units, k]`: w^2 dR/dw^2, the sum of the squared products of the paths through each producing weight (float64)."""

DataPathFlow = Annotated[Float[Tensor, "*units k"], DataPathFlowEvidence()]
"""`[*units, k]`: as `PathFlow`, where a path begins with the mean square of its input."""
