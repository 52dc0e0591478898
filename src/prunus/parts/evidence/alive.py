"""What live units cost, counted anew while a network is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import GroupTensors, RunningEvidence, Sources
from prunus.parts.evidence.cost import UnitCostEvidence, UnitCurrency, element_prices, kept_positions


class AliveCostEvidence(RunningEvidence):
    """The share of the dense network's cost that would be saved if a unit were the only one to go, of the units that
    are alive: kept, and with a normalization scale of more than `threshold` in magnitude.

    Units without a normalization are alive while they are kept. Counted anew every `every` steps. The asking part's
    fields: `currency`, `threshold`, `every`. Cost: one traced run of the example, once; then one pass over the scales
    and the groups at each count.
    """

    reads = "nothing"
    key: ClassVar[str] = "alive"
    passes = "one run of the example"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        currency = cast(UnitCurrency, sources.settings.get("currency", "macs"))
        if not store:
            prices = element_prices(sources, currency)
            store |= {f"{n}|price": torch.tensor(p, dtype=torch.float64) for n, p in prices.items()}
            store |= self.costs(store, sources, currency)
        elif sources.step % int(sources.settings.get("every", 1)) == 0:
            store |= self.costs(store, sources, currency)

    def costs(self, store: Mapping[str, Tensor], sources: Sources, currency: UnitCurrency) -> dict[str, Tensor]:
        """First parameter and name of every group -> `[units, 1]`."""
        prices = {n.rsplit("|", 1)[0]: float(p) for n, p in store.items() if n.endswith("|price")}
        total = sum(p * sources.parameters[n].numel() for n, p in prices.items())
        there = replace(sources, masks=self.alive(sources))
        keeps, unit = kept_positions(there), UnitCostEvidence(currency)
        found = {g: unit.of(g, prices, keeps, there) / max(total, 1e-300) for g in sources.groups}
        return {f"{g.members[0].param}|{g.name}": c.unsqueeze(-1) for g, c in found.items()}

    def alive(self, sources: Sources) -> dict[str, Tensor]:
        """Group name -> which units are kept and have a scale that counts."""
        found = dict(sources.masks)
        for group in sources.groups:
            if scales := group.with_role("scale"):
                gamma = group.views(scales, sources.parameters).detach().abs().amax(-1)
                live = gamma > float(sources.settings.get("threshold", 0.0))
                found[group.name] = found[group.name] & live if group.name in found else live
        return found

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, {})
        keys = {g.name: f"{g.members[0].param}|{g.name}" for g in sources.groups}
        return {n: store[k].to(sources.parameters[k.split("|")[0]]) for n, k in keys.items() if k in store}


AliveCost = Annotated[Float[Tensor, "*units 1"], AliveCostEvidence()]
"""`[*units, 1]`: the share of the dense cost that removing each unit saves, among the units that are alive."""
