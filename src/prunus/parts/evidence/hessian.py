"""The Hessian of the loss, by double backward: its diagonal, and its product with the weights that are scored."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.parts.evidence.gradients import NO_BATCH, hessian_product, scored
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode

Vectors = dict[str, Tensor]


class HessianDiagonalEvidence(Evidence):
    """E[v * Hv] over random signs v (Hutchinson's estimator; Bekas, Kokiopoulou & Saad 2007), `probes` of them for each
    batch; unbiased, and exact where H is diagonal.

    Signs come from the seeded generator. The model runs in evaluation mode unless the asking part has
    `train_mode=True`. Cost: a forward, and a backward and double backward per probe, for every batch.
    """

    reads: ClassVar[Reads] = "labels"
    random: ClassVar[bool] = True
    passes: ClassVar[str] = "a forward and `probes` double backwards per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        probes = int(sources.settings.get("probes", 10))

        def signs() -> Vectors:
            drawn = {n: torch.randint(2, p.shape, generator=sources.generator) * 2 - 1 for n, p in names.items()}
            return {n: d.to(device=names[n].device, dtype=names[n].dtype) for n, d in drawn.items()}

        vectors = [signs() for _ in range(probes)]
        products = hessian_products(sources, names, vectors, lambda v, h: v * h)
        yield self.by_group(sources, {n: t / probes for n, t in products.items()})


class HessianWeightEvidence(Evidence):
    """H theta, theta the weights of all units that are scored, everything else zero: one product for all of them
    (SOSP-H: Nonnenmacher et al. 2022, arXiv:2110.11395). Cost: a forward and a double backward per batch.
    """

    reads: ClassVar[Reads] = "labels"
    passes: ClassVar[str] = "a forward and a double backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        theta = {n: torch.zeros_like(p) for n, p in names.items()}
        for group in sources.groups:
            gone = torch.zeros(group.shape, dtype=torch.bool, device=next(iter(theta.values())).device)
            for member in group.with_role(*self.roles):
                p = names[member.param].detach()
                if member.unit is None:
                    owned = ~group.spread(member, gone, p.shape)
                    theta[member.param] = torch.where(owned, p, theta[member.param])
                else:
                    theta[member.param] = p
        yield self.by_group(sources, hessian_products(sources, names, [theta], lambda v, h: h))


def hessian_products(
    sources: Sources,
    names: Mapping[str, Tensor],
    vectors: list[Vectors],
    take: Callable[[Tensor, Tensor], Tensor],
) -> Vectors:
    """The sum over vectors v of take(v, Hv), averaged over the calibration batches; H among `names` alone."""
    train = bool(sources.settings.get("train_mode", False))
    total = {n: torch.zeros_like(p) for n, p in names.items()}
    count = 0
    # Fused attention has no second derivative; the plain form of it has.
    with evidence_mode(sources.model, names, sources.generator, train=train), sdpa_kernel(SDPBackend.MATH):
        for batch in sources.task.calibration():
            for v in vectors:
                loss = sources.task.loss_of(sources.model, batch)
                for n, h in hessian_product(loss, names, names, v).items():
                    total[n] += take(v[n], h)
            count += 1
    if not count:
        raise DataError(NO_BATCH)
    return averaged_over_ranks({n: t / count for n, t in total.items()})


HessianDiagonal = Annotated[Float[Tensor, "*units k"], HessianDiagonalEvidence()]
"""`[*units, k]`: an unbiased estimate of the second derivatives of the loss at each unit's weights."""

HessianWeight = Annotated[Float[Tensor, "*units k"], HessianWeightEvidence()]
"""`[*units, k]`: the Hessian times the weights of all scored units, at each unit's weights."""
