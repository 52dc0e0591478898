"""Where a training run stands, for what acts at every step: what is kept by now, how far it is, how fast it goes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.counting import full
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


class MarkedShareEvidence(KeptEvidence):
    """Which share of all units that are marked to go lies in the group; 0 where none are. Cost: none."""

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        gone = {n: (~k).sum().double() for n, k in super().by_group(sources, tensors).items()}
        total = sum(float(g) for g in gone.values())
        return {n: g / max(total, 1.0) for n, g in gone.items()}


class WantedEvidence(KeptEvidence):
    """What the next event would keep if it came now: the recipe's criterion scores, its allocation chooses.

    Undefined outside of a session. Cost: that of scoring and selecting, each time it is asked.
    """

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        return {} if sources.choose is None else {n: m.unsqueeze(-1) for n, m in sources.choose(None).items()}


class ActiveEvidence(KeptEvidence):
    """What the next event would keep now, were a unit worth its |g w|, with the gradients of the step at hand.

    Undefined outside of training. Cost: one product per weight, and a selection, each time it is asked.
    """

    reads = "labels"

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        if sources.choose is None or sources.gradients is None:
            return {}
        worth = {n: (g * sources.parameters[n].detach()).abs() for n, g in sources.gradients.items()}
        scores = {n: v.sum(-1) for n, v in Evidence.by_group(self, sources, worth).items()}
        found = sources.choose(scores)
        return {n: found[n].unsqueeze(-1) for n in scores}


class ClockEvidence(Evidence):
    """A number about the run, the same for all groups. Cost: none."""

    def __init__(self, read: Callable[[Sources], float]) -> None:
        self.read = read

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        value = torch.tensor(float(self.read(sources)), dtype=torch.float64)
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


class MakerBeforeEvidence(BeforeEvidence):
    """The same of everything that makes a unit: its weights, normalization, and bias."""

    roles = ("out", "scale", "shift", "bias")
    key: ClassVar[str] = "before_all"


class AnchorEvidence(RunningEvidence):
    """Z - U of the alternating direction method of multipliers: what a quadratic penalty draws the weights to (Boyd et
    al. 2011; Zhang et al. 2018, arXiv:1804.03294, eqs. 5 to 8).

    Every `every` steps Z becomes the projection of W + U onto the sparsity that the recipe's allocation gives at the
    density of the next event (of every unit all or nothing is kept, those of the largest Euclidean norm), and U grows
    by W - Z. At first Z is the projection of W, and U is zero; the same again at the beginning of each of `rounds`
    equal spans of the steps until the next event, where the penalty's strength changes and the scaled U with it (so the
    official code does it). Weights of which nothing would go are their own anchor. The asking part's fields: `every`,
    `rounds`. Cost: two copies of the weights, and a selection every `every` steps.
    """

    reads = "nothing"
    key: ClassVar[str] = "anchor"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        anew = not store or round_of(sources) != round_of(sources, sources.age - 1)
        if sources.choose is None or not (anew or sources.step % int(sources.settings.get("every", 100)) == 0):
            return
        names = {m.param for g in sources.groups for m in g.with_role(*self.roles)}
        point = {n: sources.parameters[n].detach() for n in names}
        if not anew:
            point = {n: p + store[f"{n}|dual"] if f"{n}|dual" in store else p for n, p in point.items()}
        keep = sources.choose({n: v.square().sum(-1) for n, v in super().by_group(sources, point).items()})
        store.clear()
        masks: dict[str, Tensor] = {}
        for group in sources.groups:
            for m in group.with_role(*self.roles) if not full(keep[group.name]) else ():
                one = group.spread(m, keep[group.name], point[m.param].shape)
                masks[m.param] = masks[m.param] & one if m.param in masks else one
        for name, mask in masks.items():
            z = point[name] * mask
            store[f"{name}|dual"] = torch.zeros_like(z) if anew else point[name] - z
            store[name] = z - store[f"{name}|dual"]

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, {})
        return super().by_group(sources, {n: store.get(n, t.detach()) for n, t in tensors.items()})


def round_of(sources: Sources, age: int | None = None) -> int:
    """Which of the equal spans between two events a step falls into, counted from 0; the step at hand, or another."""
    age, rounds = sources.age if age is None else age, int(sources.settings.get("rounds", 1))
    return max(0, age) * rounds // max(1, sources.age + sources.left)


Kept = Annotated[Bool[Tensor, "*units 1"], KeptEvidence()]
"""`[*units, 1]`: whether a unit is kept, or marked to be kept, by now."""

MarkedShare = Annotated[Float[Tensor, ""], MarkedShareEvidence()]
"""Which share of all units that are marked to go lies in the group."""

Wanted = Annotated[Bool[Tensor, "*units 1"], WantedEvidence()]
"""`[*units, 1]`: whether the next event would keep the unit if it came now."""

Active = Annotated[Bool[Tensor, "*units 1"], ActiveEvidence()]
"""`[*units, 1]`: whether the next event would keep the unit now, were it worth |g w|, g the gradient of the step."""

Progress = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.progress)]
"""How far the steps since the last event have come towards the next, in [0, 1]."""

Age = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.age)]
"""Optimizer steps since the last event."""

Left = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.left)]
"""Optimizer steps, the one at hand included, until the next event that does more than mark."""

Round = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: round_of(s))]
"""Which of `rounds` (the asking part's field) equal spans between two events a step falls into, from 0."""

Steps = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: s.step)]
"""Optimizer steps since the beginning."""

LearningRate = Annotated[Float[Tensor, ""], ClockEvidence(lambda s: 0.0 if s.rate is None else s.rate)]
"""The learning rate of the step at hand (of the optimizer's first group of parameters)."""

Momentum = Annotated[Float[Tensor, "*units k"], MomentumEvidence()]
"""`[*units, k]`: what the optimizer has averaged the gradients of each unit's weights to."""

Before = Annotated[Float[Tensor, "*units k"], BeforeEvidence()]
"""`[*units, k]`: the weights that produce each unit, before the optimizer step at hand."""

MakerBefore = Annotated[Float[Tensor, "*units k"], MakerBeforeEvidence()]
"""`[*units, k]`: the same of all that makes each unit, its normalization and bias included: see `Maker`."""

Anchor = Annotated[Float[Tensor, "*units k"], AnchorEvidence()]
"""`[*units, k]`: Z - U of the alternating direction method of multipliers."""
