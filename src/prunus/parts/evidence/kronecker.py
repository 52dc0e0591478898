"""The Fisher information of a layer as a Kronecker product, and what it says about whole filters."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import GroupTensors, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.fisher import FisherEvidence
from prunus.parts.evidence.gradients import scored
from prunus.parts.evidence.mode import averaged_over_ranks
from prunus.parts.evidence.samples import SampleGradients, each_backward, split


class Factors(NamedTuple):
    """F = inputs (x) outputs, for the weight as a matrix `[out, in*kernel]`.

    Attributes:
        inputs: `[in, in]`, the mean over samples of the sum over positions of x x^T.
        outputs: `[out, out]`, the mean over samples and positions of g g^T, g the gradient of a sample's loss with
            respect to y.
    """

    inputs: Float[Tensor, "in in"]
    outputs: Float[Tensor, "out out"]


class KroneckerEvidence(FisherEvidence):
    """What a filter costs in the Kronecker-factored Fisher information (K-FAC: Martens & Grosse 2015, arXiv:1503.05671;
    convolutions: Grosse & Martens 2016, arXiv:1602.01407), `[units, weights, 2]` for each weight that makes the unit:

    0. tr(G_uu W_u A W_u^T): the quadratic form of the filter's weights, other weights left as they are.
    1. tr(([G^-1]_uu)^-1 W_u A W_u^T): the same, if the other filters of the layer make up for it.

    W_u are the unit's rows of the weight, usually one. G^-1 is that of G + damp mean(diag G) I. Positions (of a
    convolution, of tokens) count as uncorrelated. Undefined on single weights, on grouped convolutions, and where a
    weight is used twice. Cost: one backward per batch (with `fisher="gauss_newton"` one per output or probe); for
    every layer in^2 + out^2 numbers, a product of that with its weights and one inversion. Float64.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        factors = self.factors(sources)
        damp = float(sources.settings.get("damp", 1e-3))
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            members = group.with_role("out")
            if not members or any(not rows_of(m) or m.param not in factors for m in members):
                continue
            each = [self.costs(group, m, sources.parameters[m.param], factors[m.param], damp) for m in members]
            found[group.name] = torch.stack(each, 1)
        yield found

    def costs(self, group: Group, member: Member, weight: Tensor, factors: Factors, damp: float) -> Tensor:
        """`[units, 2]` for one weight."""
        w = weight.detach().double().flatten(1)
        forms = w @ factors.inputs @ w.T
        g = factors.outputs
        level = float(g.diagonal().mean()) or 1.0
        inverse = torch.linalg.inv(g + damp * level * torch.eye(len(g), dtype=g.dtype, device=g.device))
        at = member.positions(group.units).to(w.device)
        own, forms, inverse = (m[at[:, :, None], at[:, None, :]] for m in (g, forms, inverse))
        free = torch.linalg.inv(inverse)
        return torch.stack([(own * forms).sum((1, 2)), (free * forms).sum((1, 2))], -1)

    def factors(self, sources: Sources) -> dict[str, Factors]:
        """The factors of every scored weight for which they are defined."""
        names = scored(sources, self.roles)
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        bad: set[str] = set()
        last: list[object] = []

        def take(found: SampleGradients) -> None:
            fresh = not last or last[-1] is not found.uses  # the same inputs serve every backward of a batch
            last[:] = [found.uses]
            bad.update(set(names) - set(found.names))
            for n, uses in found.uses.items():
                pair = split(uses[0], found.samples) if len(uses) == 1 and uses[0].groups == 1 else None
                if pair is None or uses[0].in_axis != 1:
                    bad.add(n)
                    continue
                gy, x = pair[1][0].double() * found.scale, pair[2][0].double()
                add(outputs, n, torch.einsum("npo,npq->oq", gy, gy) / x.shape[1])
                if fresh:
                    add(inputs, n, torch.einsum("npi,npj->ij", x, x))

        count = each_backward(sources, names, self.kind(sources), take)
        defined = [n for n in names if n in inputs and n in outputs and n not in bad]
        a = averaged_over_ranks({n: inputs[n] / count for n in defined})
        g = averaged_over_ranks({n: outputs[n] / count for n in defined})
        return {n: Factors(a[n], g[n]) for n in defined}


def rows_of(member: Member) -> bool:
    """Whether a member's units are rows of its weight."""
    return member.dim == 0 and member.unit is None and member.tile is None


def add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to a sum that may not have begun."""
    totals[name] = totals[name] + value if name in totals else value


FilterCurvature = Annotated[Float[Tensor, "units weights 2"], KroneckerEvidence()]
"""`[units, weights, 2]`: quadratic forms of each filter in the Kronecker-factored Fisher information, without and with
the other filters making up for it."""
