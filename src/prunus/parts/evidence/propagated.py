"""Importance that is propagated from the last responses before the classifier back to every unit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.core.errors import DataError, StructureError
from prunus.core.evidence import GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member
from prunus.core.task import Task
from prunus.graph.duplicate import duplicate
from prunus.parts.evidence.activations import ActivationGradEvidence, names_of, read, readers
from prunus.parts.evidence.attribution import POINTWISE
from prunus.parts.evidence.capture import Use, captured
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.inputs import each_tensor, example_call
from prunus.parts.evidence.mode import averaged_over_ranks


class _Reader(TorchFunctionMode):
    """Notes what a linear map by one weight is given, as part of the graph, and lets importance through pointwise
    nonlinearities as it is.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.x: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and args[1] is self.weight:
            self.x = args[0]
        if func in POINTWISE and args:
            y = func(args[0].clone(), *args[1:], **(kwargs or {}))
            return y.detach() + args[0] - args[0].detach()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class PropagatedImportanceEvidence(ActivationGradEvidence):
    """s_k = |W_{k+1}|^T s_{k+1}, summed over a unit's positions and readers (NISP: Yu et al. 2018,
    arXiv:1711.05908), from the importance of the final responses: the inputs of the last linear map.

    These are ranked by infinite feature selection (`inf_fs`) of their values on the calibration data. Propagation is
    the gradient of their weighted sum in a float64 copy whose weights are absolute values, on one input of ones:
    absolute weights, normalization scales over deviations, averages at poolings; pointwise nonlinearities let it
    through as it is, anything else by its gradient. Cost: one forward per batch, a forward and backward in float64, a
    float64 copy; responses^3.
    """

    reads: ClassVar[Reads] = "inputs"
    per_batch: ClassVar[bool] = False
    passes: ClassVar[str] = "one forward per batch, and one forward and backward of an all-ones input"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        last, responses = final_responses(sources)
        weight_of = inf_fs(responses, float(sources.settings.get("mixing", 0.5)))
        positive = duplicate(sources.model).double().eval()
        with torch.no_grad():
            for state in (*positive.parameters(), *positive.buffers()):
                if state.is_floating_point() and bool(torch.isfinite(state).all()):
                    state.abs_()
        args, kwargs = example_call(sources, "propagated importance")
        device = responses.device

        def one(t: Tensor) -> Tensor:
            return (torch.ones_like(t, dtype=torch.float64) if t.is_floating_point() else t)[:1].to(device)

        def target(model: nn.Module, _: Any) -> Tensor:
            with _Reader(dict(model.named_parameters())[last]) as reader:
                model(*(each_tensor(a, one) for a in args), **{k: each_tensor(v, one) for k, v in kwargs.items()})
            assert reader.x is not None
            total: Tensor = (reader.x * weight_of).sum()
            return total

        aimed = replace(sources, model=positive, parameters=dict(positive.named_parameters()), task=Task(loss=target))
        for uses in captured(aimed, names_of(sources, self.roles), gradients=True, batches=[None]):
            for use in uses.get(last, ()):
                use.gx = weight_of.expand(use.x.shape)
            found = {g.name: self.of(g, readers(g, uses), None) for g in sources.groups}
            yield averaged_over_ranks({name: value for name, value in found.items() if value is not None})

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        if not seen or {m.param for m in group.with_role("in")} != {m.param for m, _ in seen}:
            return None
        slopes = [(m, use, torch.zeros_like(use.x) if use.gx is None else use.gx) for m, use in seen]
        return torch.stack([read(group, m, use, gx).sum((1, 2)) for m, use, gx in slopes]).sum(0).unsqueeze(-1)


def final_responses(sources: Sources) -> tuple[str, Float[Tensor, "samples features"]]:
    """The name of the last linear map's weight, and its inputs on the calibration data, in float64."""
    names = [n for n, p in sources.parameters.items() if p.ndim == 2]
    last, rows = "", []
    for uses in captured(sources, names):
        linear = [name for name, seen in uses.items() if seen[0].conv is None and seen[0].in_axis == 1]
        if not linear:
            raise StructureError("importance is propagated from the inputs of the last linear layer, and there is none")
        last = last or linear[-1]
        rows += [use.x.reshape(-1, use.x.shape[-1]).double() for use in uses[last]]
    if not rows:
        raise DataError(NO_BATCH)
    return last, torch.cat(rows)


def inf_fs(values: Float[Tensor, "samples features"], mixing: float = 0.5) -> Float[Tensor, "features"]:
    """Infinite feature selection (Roffo et al. 2015): row sums of (I - r A)^-1 - I, r = 0.9 / the largest eigenvalue of
    A; A_ij = mixing max(sigma_i, sigma_j) + (1 - mixing) (1 - |Spearman_ij|), sigma over the largest.
    """
    deviation = values.std(0, correction=0)
    deviation = deviation / deviation.max().clamp(min=torch.finfo(values.dtype).tiny)
    ranks = torch.stack([_ranks(column) for column in values.T], 1)
    centred = torch.nn.functional.normalize(ranks - ranks.mean(0), dim=0)
    spread = torch.maximum(deviation.unsqueeze(0), deviation.unsqueeze(1))
    a = mixing * spread + (1 - mixing) * (1 - (centred.T @ centred).abs().clamp(max=1.0))
    radius = float(torch.linalg.eigvalsh(a).abs().max())
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    if radius == 0:
        return torch.ones(len(a), dtype=a.dtype, device=a.device)
    paths: Tensor = torch.linalg.inv(identity - 0.9 / radius * a) - identity
    return paths.sum(1)


def _ranks(column: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Ranks from 1, equal values at the mean of theirs."""
    _, inverse, counts = column.unique(return_inverse=True, return_counts=True)
    middle: Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return middle[inverse]


PropagatedImportance = Annotated[Float[Tensor, "units 1"], PropagatedImportanceEvidence()]
"""`[units, 1]`: NISP's importance of every unit, from that of the final responses."""
