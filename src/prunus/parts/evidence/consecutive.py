"""Which consecutive blocks together do least to the hidden state."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.damage import on_device, present
from prunus.parts.evidence.hidden import HiddenStatesEvidence
from prunus.parts.evidence.mode import averaged_over_ranks


class ConsecutiveEvidence(Evidence):
    """0 for the blocks of the run that does least, and above 1 for all others: 1 plus what they do alone.

    A run are as many consecutive blocks of a container as the event at hand removes of it (one, where there is no
    event); what it does is the mean over batches and tokens of 1 - cos between what enters its first and what leaves
    its last block, or of arccos(cos) / pi where the asking part's `angular` says so, of the last tokens alone where its
    `tokens` do. Undefined as hidden states are. Cost: one forward per batch; the states of all blocks of a batch.
    """

    reads: ClassVar[Reads] = "inputs"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        angular, last = bool(sources.settings.get("angular")), sources.settings.get("tokens") == "last"
        long = {g.name: _asked(sources, g) for g in sources.groups}
        units = {g.name: present(sources, g) for g in sources.groups}
        found: dict[str, list[Tensor]] = {}
        for states in HiddenStatesEvidence().collect(sources):
            for name, s in states.items():
                one = [distance(s[u, ..., 0], s[u, ..., 1], angular, last) for u in units[name]]
                runs = zip(units[name], units[name][long[name] - 1 :], strict=False)
                far = [distance(s[a, ..., 0], s[b, ..., 1], angular, last) for a, b in runs]
                found.setdefault(name, []).append(torch.stack([*one, *far]).cpu())
        mean = averaged_over_ranks({n: torch.stack(f).mean(0) for n, f in found.items()})
        laid: dict[str, Tensor] = {}
        for group in sources.groups:
            if group.name in mean:
                own = units[group.name]
                one, far = mean[group.name].split([len(own), len(mean[group.name]) - len(own)])
                scores = torch.zeros(group.units, dtype=torch.float64)
                scores[own] = 1 + one
                first = int(far.argmin())
                scores[own[first : first + long[group.name]]] = 0.0
                laid[group.name] = on_device(sources, group, scores)
        yield laid


def distance(
    x: Float[Tensor, "batch tokens features"], y: Float[Tensor, "batch tokens features"], angular: bool, last: bool
) -> Float[Tensor, ""]:
    """The mean over tokens of the distance of two states, tokens that are zero on both sides left out."""
    x, y = (t[:, -1:].double() if last else t.double() for t in (x, y))
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(-1.0, 1.0)
    there = (x != 0).any(-1) | (y != 0).any(-1)
    apart = cosine.arccos() / torch.pi if angular else 1 - cosine
    mean: Tensor = (apart * there).sum() / there.sum().clamp(min=1)
    return mean


def _asked(sources: Sources, group: Group) -> int:
    """How many units the event at hand removes of a group, if all units tie; at least 1."""
    if sources.choose is None:
        return 1
    tie = {g.name: on_device(sources, g, torch.zeros(g.units)).squeeze(-1) for g in sources.groups}
    return max(1, len(present(sources, group)) - count(sources.choose(tie)[group.name]))


Consecutive = Annotated[Float[Tensor, "*units 1"], ConsecutiveEvidence()]
"""`[*units, 1]`: 0 for the consecutive blocks that together do least, more than 1 for the others."""
