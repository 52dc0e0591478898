"""Spectral norms of matrices, followed step by step."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from prunus.core.evidence import GroupTensors, RunningEvidence, Sources


class SpectralNormEvidence(RunningEvidence):
    """The spectral norm of every matrix of a unit that owns whole parameters (blocks, branches), u^T W v with u and v
    from one more step of the power iteration before every optimizer step, as in spectral normalization (Miyato et al.
    2018, ICLR, arXiv:1802.05957, algorithm 1); kernels are unfolded, `[out, in*kh*kw]`.

    v begins as the sum of the rows, or evenly where that is zero. Rows of units with fewer matrices end in zeros.
    Undefined for other units, and before the first step. Cost: two products with every matrix per step.
    """

    reads = "nothing"
    key: ClassVar[str] = "spectral"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        for group in sources.groups:
            for m in (m for m in group.with_role(*self.roles) if m.unit is not None):
                w = sources.parameters[m.param].detach()
                if w.ndim > 1:
                    w = w.flatten(1)
                    v = store.get(f"{m.param}|v", w.sum(0))
                    v = v if bool((v != 0).any()) else torch.ones_like(v)
                    store[m.param] = normalize(w @ normalize(v, dim=0), dim=0)
                    store[f"{m.param}|v"] = normalize(w.T @ store[m.param], dim=0)

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, {})
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            norms: list[list[Tensor]] = [[] for _ in range(group.units)]
            for m in group.with_role(*self.roles):
                if m.unit is not None and m.param in store and m.param in tensors:
                    u, v = store[m.param], store[f"{m.param}|v"]
                    norms[m.unit].append(u @ tensors[m.param].flatten(1) @ v)
            most = max(map(len, norms))
            if most:
                like = next(n[0] for n in norms if n)
                rows = [pad(torch.stack(n), (0, most - len(n))) if n else like.new_zeros(most) for n in norms]
                found[group.name] = torch.stack(rows)
        return found


SpectralNorms = Annotated[Float[Tensor, "units matrices"], SpectralNormEvidence()]
"""`[units, matrices]`: the spectral norms of the matrices that each block or branch owns."""
