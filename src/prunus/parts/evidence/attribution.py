"""DeepLIFT: what units contribute to the difference from a baseline, through every nonlinearity's own slope."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.core.errors import DataError
from prunus.core.evidence import GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member
from prunus.core.task import Task
from prunus.parts.evidence.activations import ActivationGradEvidence, by_sample, names_of, read, readers, samples_of
from prunus.parts.evidence.capture import Use, captured
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.inputs import each_tensor, floating_outputs

POINTWISE = {
    *(F.relu, torch.relu, Tensor.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish),
    *(F.softplus, F.softsign, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.sigmoid, F.tanh),
    *(torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh),
}
NEAR = 1e-6
"""Where the two inputs of a nonlinearity are closer than this, its derivative takes the place of the slope."""


class Rescaled(TorchFunctionMode):
    """Pointwise nonlinearities whose gradient is the slope between the sample and the baseline: (y - y0) / (x - x0).

    The first half of every batch are samples, the second half their baselines. Values stay what they are.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in POINTWISE or not args or not args[0].ndim or len(args[0]) % 2:
            return func(*args, **kwargs)
        x = args[0]
        y = func(x.clone(), *args[1:], **kwargs)
        dx, dy = (a - b for a, b in (x.detach().chunk(2), y.detach().chunk(2)))
        far = dx.abs() > NEAR
        slope = torch.where(far, dy / dx.masked_fill(~far, 1.0), 0.0)
        both = torch.cat([slope, slope]), torch.cat([far, far])
        line = x * both[0]
        return torch.where(both[1], y.detach() + line - line.detach(), y)


@dataclass(frozen=True)
class AttributionEvidence(ActivationGradEvidence):
    """The DeepLIFT contribution of each unit to the largest output (Shrikumar et al. 2017, arXiv:1704.02685, Rescale
    rule): the sum over readers and positions of (x - x0) times the multiplier of x, for every sample.

    Baseline: the input of zeros (token ids 0). Target: the output that is largest on the sample, summed over positions
    where there are several. Multipliers: slopes at pointwise nonlinearities, gradients at everything else (for linear
    maps that is the rule; max pooling, softmax, attention and layer normalization are approximated by it, as are
    nonlinearities in place, `relu_`). Cost: one forward and backward of twice the batch.
    """

    reads: ClassVar[Reads] = "inputs"
    passes: ClassVar[str] = "one forward and backward of each batch and its baseline"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names, task = names_of(sources, self.roles), sources.task

        def target(model: nn.Module, batch: Any) -> Tensor:
            with Rescaled():
                output = floating_outputs(task.outputs(model, batch))[0]
            rows = output[: len(output) // 2]
            return rows.gather(-1, rows.argmax(-1, keepdim=True)).sum()

        aimed = replace(sources, task=Task(loss=target))
        empty = True
        for batch in task.calibration():
            empty = False
            pair = each_tensor(batch, lambda t: torch.cat([t, torch.zeros_like(t)]) if t.ndim else t)
            for uses in captured(aimed, names, gradients=True, batches=[pair]):
                found = {g.name: self.of(g, readers(g, uses), samples_of(batch)) for g in sources.groups}
                yield {name: value for name, value in found.items() if value is not None}
        if empty:
            raise DataError(NO_BATCH)

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        if not seen or {m.param for m in group.with_role("in")} != {m.param for m, _ in seen}:
            return None
        each = []
        for member, use in seen:
            gx = torch.zeros_like(use.x) if use.gx is None else use.gx
            (x, base), slope = use.x.chunk(2), gx.chunk(2)[0]
            each.append(by_sample(read(group, member, use, (x - base) * slope), samples).sum(-1))
        return None if any(one.shape != each[0].shape for one in each) else torch.stack(each).sum(0)


Attribution = Annotated[Float[Tensor, "units batch"], AttributionEvidence()]
"""`[units, batch]`: what each unit contributes to the largest output of every sample, against the zero input."""
