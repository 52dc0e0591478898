"""What whole layers or blocks are like, one number for each: what densities are dealt out by."""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.curvature import InputNormEvidence, ReaderWeightEvidence
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode, ranks

PIECE = 1 << 20
"""Numbers that are worked on at once."""


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
    visible layer reads a group. Cost: a forward per batch; the scores are computed twice, 8 MB of them at a time.
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
            if total := sum(weights[g.name].numel() for g in seen):
                pairs = [(weights[g.name], norms[g.name]) for g in seen]
                mean = torch.stack([s.sum() for pair in pairs for s in products(*pair)]).sum() / total
                above = torch.stack([(s > times * mean).sum() for pair in pairs for s in products(*pair)]).sum()
                found |= each(seen, above.double() / total)
        yield found


def products(weight: Float[Tensor, "units ..."], norm: Float[Tensor, "units ..."]) -> Iterator[Float[Tensor, "..."]]:
    """|w| ||x|| in float64, some rows at a time: of a whole block it would be several times as large as the block."""
    rows = max(1, PIECE // max(1, weight[0].numel()))
    for w, n in zip(weight.split(rows), norm.split(rows), strict=True):
        yield w.double().abs().mul_(n)


class LargeShareEvidence(Evidence):
    """The share of the weights of a layer that are above `times` the mean of their sizes there; 0-d, float64.

    Cost: two passes over the weights, 8 MB of them at a time.
    """

    blocks = True
    setting: ClassVar[str] = "times"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        times, found = float(sources.settings.get(self.setting, 5.0)), dict[str, Tensor]()
        for groups in self.populations(sources):
            weights = [p.detach().reshape(-1) for g in groups for p in makers(g, sources)]
            if total := sum(w.numel() for w in weights):
                place = weights[0].device
                mean = sum(float(s.double().abs().sum()) for w in weights for s in w.split(PIECE)) / total
                above = sum(int((s.double().abs() > times * mean).sum()) for w in weights for s in w.split(PIECE))
                found |= each(groups, torch.tensor(above / total, dtype=torch.float64, device=place))
        yield found

    def populations(self, sources: Sources) -> Iterable[list[Group]]:
        """Which groups have one share."""
        return ([g] for g in sources.groups)


class LargeShareOfBlockEvidence(LargeShareEvidence):
    """The same of the weights of a block together; `often` is the factor."""

    setting = "often"

    def populations(self, sources: Sources) -> Iterable[list[Group]]:
        return dealt_to(sources).values()


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
    n = weight.shape
    stack = weight.ndim == 3 and n[1] > 1 and group.shape == (n[0] * n[1], n[2])
    if weight.ndim > 2 and not stack:  # a convolution: a matrix for every kernel position, pooled
        values = [torch.linalg.svdvals(weight.double().flatten(2).permute(2, 0, 1)).square().flatten()]
    else:
        matrices = weight if stack else [weight] if weight.ndim > 1 else []
        values = [torch.linalg.svdvals(w.double()).square() for w in matrices]
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
    back bit by bit. Cost: 2 * draws forwards per weight and batch; one weight as it was, moved, and by what.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "two forwards per weight, batch and draw"
    random = True
    blocks = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        seed = self.seed(sources)
        slopes: dict[str, Tensor] = {}
        with evidence_mode(sources.model, {}, sources.generator), torch.no_grad():
            for group in sources.groups:
                trials = self.trials(sources, group, seed)
                slopes[group.name] = slope([(float(sources.task.loss_of(sources.model, b)), c) for b, c in trials])
        yield self.dealt(sources, slopes)

    def seed(self, sources: Sources) -> int:
        """By which the directions of all groups are drawn."""
        return int(torch.randint(2**31, (1,), generator=sources.generator))

    def per_batch_of(self, sources: Sources, group: Group) -> int:
        """How many trials a group has with each batch."""
        return 2 * int(sources.settings.get("draws", 1)) * len(makers(group, sources))

    def trials(self, sources: Sources, group: Group, seed: int) -> Iterator[tuple[Any, float]]:
        """Batches to find the loss of while a weight of the group is moved, to one side and then to the other, with
        what such a pair's difference counts; the weight is as it is told here until the next one is asked for. Each
        group has directions of its own, whatever was asked of the others.
        """
        eps, draws = float(sources.settings.get("eps", 1e-3)), int(sources.settings.get("draws", 1))
        generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
        for batch in sources.task.calibration():
            for p in makers(group, sources):
                size = float(p.abs().sum()) if sources.settings.get("weighted") else 1.0
                before = p.clone()
                for _ in range(draws):
                    z = torch.randn(p.shape, generator=generator).to(p)
                    try:
                        for way in (eps, -eps):
                            p.copy_(before + way * z)
                            yield batch, size / (2 * eps)
                    finally:
                        p.copy_(before)

    def dealt(self, sources: Sources, slopes: dict[str, Tensor]) -> GroupTensors:
        """Of groups that share a density, the mean over their units of all processes' slopes together: a run that goes
        on with more processes, or fewer, has numbers of both.
        """
        slopes = {n: s * ranks() for n, s in averaged_over_ranks(slopes).items()}
        found: dict[str, Tensor] = {}
        for groups in dealt_to(sources).values():
            total = torch.stack([slopes[g.name] for g in groups]).sum()
            found |= each(groups, total / sum(g.units for g in groups))
        return found


def slope(told: Sequence[tuple[float, float]]) -> Float[Tensor, ""]:
    """Of a group, from the losses of its trials in order, with what their differences count."""
    if not told:
        raise DataError(NO_BATCH)
    pairs = zip(told[::2], told[1::2], strict=True)
    return torch.tensor(sum(abs(above - below) * c for (above, c), (below, _) in pairs), dtype=torch.float64)
