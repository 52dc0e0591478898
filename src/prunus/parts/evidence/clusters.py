"""Units that are to become one: clusters that are made once, before the first training step."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, RunningEvidence, Sources
from prunus.core.groups import Role


class ClusterEvidence(RunningEvidence):
    """Which cluster each unit of a group belongs to: as many clusters as the next event keeps units, by k-means on the
    weights that make them, or evenly in their order (centripetal SGD: Ding et al. 2019, CVPR, arXiv:1904.03837,
    section 3.1).

    Made before the first step of training, and kept; of a network that was not trained, made anew. k-means begins with
    the longest unit, then ever the farthest from those chosen. No cluster is empty. Units that form equal parts are
    clustered part by part. The asking part's field: `cluster` ("kmeans" or "even"). Cost: once, at most a hundred
    rounds over the distances of units to centres.
    """

    reads = "nothing"
    key: ClassVar[str] = "clusters"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        if not store:
            store.update(clustered(sources))

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key) or clustered(sources)
        keys = {g.name: f"{g.members[0].param}|{g.name}" for g in sources.groups}
        return {n: store[k] for n, k in keys.items() if k in store}


def clustered(sources: Sources) -> dict[str, Int[Tensor, "units"]]:
    """`[units]`: the number of each unit's cluster, by group; half as many as units where no event says how many."""
    some = {g.name: sources.parameters[g.members[0].param].new_zeros(g.shape) for g in sources.groups if g.movable}
    counts = {n: -(-s.numel() // 2) for n, s in some.items()}
    if sources.choose is not None:
        counts = {n: int(m.sum()) for n, m in sources.choose(some).items() if n in some}
    weights = {n: p.detach() for n, p in sources.parameters.items()}
    found: dict[str, Tensor] = {}
    for group in (g for g in sources.groups if g.name in counts):
        w = group.views(group.with_role("out"), weights).reshape(group.units, -1)
        each, most = group.units // group.parts, max(1, counts[group.name] // group.parts)
        even = torch.arange(each, device=w.device) * most // each
        parts = [even if sources.settings.get("cluster") == "even" else made(p, most) for p in w.double().split(each)]
        labels = torch.cat([p + i * most for i, p in enumerate(parts)])
        found[f"{group.members[0].param}|{group.name}"] = labels
    return found


def k_means(points: Float[Tensor, "n d"], k: int, first: int = 0, rounds: int = 100) -> Int[Tensor, "n"]:
    """The cluster of every point; starts from one point and then always the farthest from those chosen."""
    chosen = [first]
    near = (points - points[first]).norm(dim=1)
    while len(chosen) < k:
        chosen.append(int(near.argmax()))
        near = torch.minimum(near, (points - points[chosen[-1]]).norm(dim=1))
    centers = points[chosen]
    cluster = torch.cdist(points, centers).argmin(1)
    for _ in range(rounds):
        means = [points[cluster == c].mean(0) if bool((cluster == c).any()) else centers[c] for c in range(k)]
        centers = torch.stack(means)
        moved = torch.cdist(points, centers).argmin(1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return cluster


def made(points: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n"]:
    """k clusters, none of them empty; beginning with the longest point, so that their order does not matter."""
    return filled(k_means(points, k, int(points.norm(dim=1).argmax())), points, k)


def filled(cluster: Int[Tensor, "n"], points: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n"]:
    """The same clusters, none of them empty: an empty one takes a point of the largest, that farthest from its mean."""
    cluster = cluster.clone()
    for c in range(k):
        if not bool((cluster == c).any()):
            mine = (cluster == cluster.bincount(minlength=k).argmax()).nonzero().squeeze(1)
            away = (points[mine] - points[mine].mean(0)).norm(dim=1)
            cluster[mine[away.argmax()]] = c
    return cluster


class MakerGradEvidence(Evidence):
    """The gradient of the step at hand of all that makes a unit. Undefined outside of training. Cost: a copy of it."""

    reads = "labels"
    roles: tuple[Role, ...] = ("out", "scale", "shift", "bias")  # type: ignore[misc]

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        there = sources.gradients
        if there is None:
            return {}
        return super().by_group(sources, {n: there.get(n, torch.zeros_like(t)) for n, t in tensors.items()})


Clusters = Annotated[Int[Tensor, "units"], ClusterEvidence()]
"""`[units]`: the cluster of each unit, by number."""

MakerGrad = Annotated[Float[Tensor, "*units k"], MakerGradEvidence()]
"""`[*units, k]`: gradients of all that makes each unit, laid out as `Maker`."""
