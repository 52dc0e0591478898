"""The sparse point of a splitting method, found by shrinking units instead of choosing them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import GroupTensors, RunningEvidence, Sources


class ShrunkEvidence(RunningEvidence):
    """F - U of alternating updates with Lagrange multipliers (Lin et al. 2019, arXiv:1901.07827): F is the proximal map
    of a group norm at W + U, U the sum of what W and F differ by.

    With p = W + U of a unit and t = strength / rho: F = max(0, 1 - t / ||p||) p for the norm l2,1, and p where ||p||^2
    is more than 2 t, else 0, for l2,0. Renewed every `every` steps. Before the first step U is zero. The asking part's
    fields: `norm`, `strength`, `rho`, `every`. Cost: two copies of the weights.
    """

    reads = "nothing"
    key: ClassVar[str] = "shrunk"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        told = sources.settings
        if store and sources.step % int(told.get("every", 100)):
            return
        tension = float(told["strength"]) / float(told["rho"])
        weights = {n: p.detach() for n, p in sources.parameters.items()}
        for group in sources.groups:
            key = f"{group.members[0].param}|{group.name}"
            w = group.views(group.with_role(*self.roles), weights)
            dual = store.get(f"{key}|dual", torch.zeros_like(w))
            point = w + dual
            norm = torch.linalg.vector_norm(point, dim=-1, keepdim=True)
            if told.get("norm") == "l20":
                shrunk = point * (norm.square() > 2 * tension)
            else:
                shrunk = point * (1 - tension / norm.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0)
            dual = point - shrunk if key in store else dual
            store[f"{key}|dual"], store[key] = dual, shrunk - dual

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, {})
        keys = {g.name: f"{g.members[0].param}|{g.name}" for g in sources.groups}
        return {n: store[k] for n, k in keys.items() if k in store}


Shrunk = Annotated[Float[Tensor, "*units k"], ShrunkEvidence()]
"""`[*units, k]`: F - U of alternating updates with Lagrange multipliers."""
