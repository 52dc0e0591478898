"""What whole layers or blocks are like, one number for each: what densities are dealt out by."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.curvature import InputNormEvidence, ReaderWeightEvidence
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode


def dealt_to(sources: Sources) -> dict[str, list[Group]]:
    """The groups that share a density: those of a block where the asking part has `per="block"` and the model has
    blocks, else each by itself.
    """
    together: dict[str, list[Group]] = defaultdict(list)
    blocks = sources.blocks if sources.settings.get("per", "block") == "block" else {}
    for group in sources.groups:
        together[blocks.get(group.name, group.name)].append(group)
    return together


def makers(group: Group, sources: Sources) -> list[Tensor]:
    """The weights that produce a group's units."""
    return [sources.parameters[m.param] for m in group.with_role("out") if m.param in sources.parameters]


def each(groups: Iterable[Group], value: Tensor) -> dict[str, Tensor]:
    """The same number for all of them."""
    return {g.name: value for g in groups}


class OutlierShareEvidence(Evidence):
    """The share of |w| ||x|| in a layer or block that is above `times` its mean there; 0-d, float64.

    All its groups that are read together are one population (OWL's layer is a transformer block). Undefined where no
    visible layer reads a group. Cost: a forward per batch; the scores of a block in float64.
    """

    reads: ClassVar[Reads] = "inputs"
    passes = "one forward per batch"
    blocks = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        times = float(sources.settings.get("times", 5.0))
        norms, weights = next(InputNormEvidence().collect(sources)), next(ReaderWeightEvidence().collect(sources))
        found: dict[str, Tensor] = {}
        for groups in dealt_to(sources).values():
            seen = [g for g in groups if g.name in norms]
            scores = [weights[g.name].double().abs() * norms[g.name] for g in seen]
            if total := sum(s.numel() for s in scores):
                mean = torch.stack([s.sum() for s in scores]).sum() / total
                found |= each(seen, torch.stack([(s > times * mean).sum() for s in scores]).sum().double() / total)
        yield found


class TailExponentEvidence(Evidence):
    """The Hill estimate of the exponent of the power law that the larger half of a weight's squared singular values
    follows, averaged over the weights of a layer or block; 0-d, float64.

    alpha = 1 + n / sum of ln(l_j / l_i) over the n = N - i largest of N values, l_i the least of them, i = N // 2.
    Matrices of a stack are averaged, those of a convolution's kernel positions pooled. Undefined for weights with fewer
    than two singular values. Cost: the singular values of every weight.
    """

    blocks = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, Tensor] = {}
        for groups in dealt_to(sources).values():
            known = [a for g in groups for p in makers(g, sources) for a in exponents(p.detach(), g)]
            if known:
                found |= each(groups, torch.stack(known).mean())
        yield found


def exponents(weight: Float[Tensor, "..."], group: Group) -> list[Float[Tensor, ""]]:
    """Of each matrix that a weight holds."""
    wide = weight.double()
    stack = wide.ndim == 3 and wide.shape[1] > 1 and group.shape == (wide.shape[0] * wide.shape[1], wide.shape[2])
    if wide.ndim > 2 and not stack:  # a convolution: a matrix for every kernel position, pooled
        values = [torch.linalg.svdvals(wide.flatten(2).permute(2, 0, 1)).square().flatten()]
    else:
        values = list(torch.linalg.svdvals(wide).square().reshape(-1, min(wide.shape[-2:]))) if wide.ndim > 1 else []
    return [hill(v) for v in values if len(v) > 1]


def hill(values: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The exponent of their larger half; values of zero count as the least there is."""
    ordered = values.sort().values
    top = ordered.clamp(min=float(ordered[-1].clamp(min=1e-300)) * 1e-30)[len(ordered) // 2 :].log()
    return 1 + len(top) / (top - top[0]).sum().clamp(min=1e-12)


class ForwardDifferenceEvidence(Evidence):
    """Sum over the weights of a layer or block, and over batches, of |L(w + eps z) - L(w - eps z)| / (2 eps), one
    weight moved at a time along z ~ N(0, 1), divided by how many units there are; 0-d, float64.

    `eps`, `draws` (of z per batch) and `weighted` (multiply by the sum of |w|) are the asking part's. Weights are put
    back bit by bit. Cost: 2 * draws forwards per weight and batch; a copy of one weight.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "two forwards per weight, batch and draw"
    random = True
    blocks = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        slopes: Mapping[str, Tensor] = averaged_over_ranks(
            {g.name: self.slope(sources, makers(g, sources)) for g in sources.groups}
        )
        found: dict[str, Tensor] = {}
        for groups in dealt_to(sources).values():
            total = torch.stack([slopes[g.name] for g in groups]).sum()
            found |= each(groups, total / sum(g.units for g in groups))
        yield found

    def slope(self, sources: Sources, weights: list[Tensor]) -> Float[Tensor, ""]:
        """Of one group, summed over its weights and the batches."""
        eps, draws = float(sources.settings.get("eps", 1e-3)), int(sources.settings.get("draws", 1))
        total, batches = 0.0, 0
        with evidence_mode(sources.model, {}, sources.generator), torch.no_grad():
            for batch in sources.task.calibration():
                batches += 1
                for p in weights:
                    size = float(p.abs().sum()) if sources.settings.get("weighted") else 1.0
                    total += size * sum(abs(self.difference(sources, batch, p, eps)) for _ in range(draws))
        if not batches:
            raise DataError(NO_BATCH)
        return torch.tensor(total, dtype=torch.float64)

    def difference(self, sources: Sources, batch: object, p: Tensor, eps: float) -> float:
        """Along one direction."""
        before = p.clone()
        z = torch.randn(p.shape, generator=sources.generator).to(p)
        try:
            p.copy_(before + eps * z)
            above = float(sources.task.loss_of(sources.model, batch))
            p.copy_(before - eps * z)
            return (above - float(sources.task.loss_of(sources.model, batch))) / (2 * eps)
        finally:
            p.copy_(before)
