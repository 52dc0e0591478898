"""Where a training run stands, for what acts at every step: what is kept by now, how far it is, how fast it goes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, RunningEvidence, Sources


class KeptEvidence(Evidence):
    """What is kept (or marked to be kept) by now; everything, before the first event. Cost: none."""

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            there = sources.parameters[group.members[0].param].device
            whole = torch.ones(group.shape, dtype=torch.bool, device=there)
            found[group.name] = sources.masks.get(group.name, whole).unsqueeze(-1)
        return found


class WantedEvidence(KeptEvidence):
    """What the next event would keep if it came now: the recipe's criterion scores, its allocation chooses.

    Undefined outside of a session. Cost: that of scoring and selecting, each time it is asked.
    """

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        return {} if sources.choose is None else {n: m.unsqueeze(-1) for n, m in sources.choose(None).items()}


class ClockEvidence(Evidence):
    """A number about the run, the same for all groups. Cost: none."""

    def __init__(self, read: Callable[[Sources], float]) -> None:
        self.read = read

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        value = torch.tensor(float(self.read(sources)))
        return {g.name: value for g in sources.groups}


class MomentumEvidence(Evidence):
    """What the optimizer has averaged gradients to: momentum buffers of SGD, first moments of Adam; undefined on
    groups of which it keeps none. Cost: none.
    """

    momenta: ClassVar[bool] = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.momenta)


class BeforeEvidence(RunningEvidence):
    """The weights before the optimizer step at hand. Cost: a copy of the weights, renewed at every step."""

    reads = "nothing"
    key: ClassVar[str] = "before"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        for n in gradients:
            if n in store:
                store[n].copy_(weights[n].detach())
            else:
                store[n] = weights[n].detach().clone()

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.running.get(self.key, {}))


class AnchorEvidence(RunningEvidence):
    """Z - U of the alternating direction method of multipliers: what a quadratic penalty draws the weights to (Boyd et
    al. 2011; Zhang et al. 2018, arXiv:1804.03294, eqs. 5 to 8).

    Every `every` steps Z becomes the projection of W + U onto the sparsity that the recipe's allocation gives at the
    density of the next event (of every unit all or nothing is kept, those of the largest Euclidean norm), and U grows
    by W - Z. Before the first training step Z is the projection of W, and U is zero. The asking part's field: `every`.
    Cost: two copies of the weights, and a selection every `every` steps.
    """

    reads = "nothing"
    key: ClassVar[str] = "anchor"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        """Nothing that gradients say: see `renew`."""

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        names = {m.param for g in sources.groups for m in g.with_role(*self.roles)}
        if (store and sources.step % int(sources.settings.get("every", 100))) or sources.choose is None:
            return
        dual = {n: store.get(f"{n}|dual", torch.zeros_like(sources.parameters[n])) for n in names}
        point = {n: sources.parameters[n].detach() + dual[n] for n in names}
        views = self.by_group(sources, point)
        keep = sources.choose({n: v.square().sum(-1) for n, v in views.items()})
        for group in sources.groups:
            for m in group.with_role(*self.roles):
                z = point[m.param] * group.spread(m, keep[group.name], point[m.param].shape)
                first = f"{m.param}|dual" not in store
                store[f"{m.param}|dual"] = dual[m.param] if first else point[m.param] - z
                store[m.param] = z - store[f"{m.param}|dual"]

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, tensors)
        return super().by_group(sources, {n: t for n, t in store.items() if "|" not in n})


Kept = Annotated[Bool[Tensor, "*units 1"], KeptEvidence()]
"""`[*units, 1]`: whether a unit is kept, or marked to be kept, by now."""

Wanted = Annotated[Bool[Tensor, "*units 1"], WantedEvidence()]
"""`[*units, 1]`: whether the next event would keep the unit if it came now."""

Progress = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.progress)]
"""How far the steps since the last event have come towards the next, in [0, 1]."""

Age = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.age)]
"""Optimizer steps since the last event."""

Steps = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.step)]
"""Optimizer steps since the beginning."""

LearningRate = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: 0.0 if s.rate is None else s.rate)]
"""The learning rate of the step at hand (of the optimizer's first group of parameters)."""

Momentum = Annotated[Float[Tensor, "*units k"], MomentumEvidence()]
"""`[*units, k]`: what the optimizer has averaged the gradients of each unit's weights to."""

Before = Annotated[Float[Tensor, "*units k"], BeforeEvidence()]
"""`[*units, k]`: the weights that produce each unit, before the optimizer step at hand."""

Anchor = Annotated[Float[Tensor, "*units k"], AnchorEvidence()]
"""`[*units, k]`: Z - U of the alternating direction method of multipliers."""
