"""What units are worth by regression: the loss of many sub-models, each without a random part of the units."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.part import Criterion
from prunus.parts.evidence.damage import counted, measured, on_device, present
from prunus.parts.evidence.elimination import asked
from prunus.parts.evidence.mode import averaged_over_ranks


class PerturbedEvidence(Evidence):
    """The coefficient of every unit in a ridge regression of minus the loss on what sub-models hold.

    Of the units that are left those are doubted that the asking part's `prior` (a criterion) ranks lowest: `doubted`
    times as many as the event at hand removes, half of them where there is no event. `samples` sub-models lack half of
    the doubted units each: half of the sub-models draw those that stay without replacement, in proportion to the
    prior's rank, and every other one is the complement of the one before it (but for units that every group has to
    keep). beta = argmin mean (u_s - u - (a_s - a) beta)^2 + `ridge` ||beta||^2, a_s in {0, 1} who is there, u_s minus
    the loss on the calibration batches, u and a their means. Units that are not doubted are worth more than any that
    is, in the order of the prior; pruned ones 0. Undefined on single weights, and where the prior is. Cost: samples
    forwards per batch, and the prior's evidence.
    """

    reads: ClassVar[Reads] = "labels"
    random = True
    passes = "samples forwards per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        told = sources.settings
        groups = counted(sources)
        prior = rated(told["prior"], sources)
        units = [(g, u) for g in groups if g.name in prior for u in present(sources, g)]
        rank = torch.tensor([float(prior[g.name][u]) for g, u in units], dtype=torch.float64)
        order = rank.argsort(stable=True)
        wanted = asked(sources, groups) if sources.choose is not None else len(units) // 2
        doubted = order[: max(2, min(round(float(told["doubted"]) * wanted), len(units)))]
        rows, losses = [], []
        with measured(sources) as loss:
            for here in drawn(len(doubted), int(told["samples"]), sources.generator):
                keep = torch.ones(len(units), dtype=torch.bool)
                keep[doubted] = here
                masks = _masks(units, keep, sources)
                with _only(sources, masks):
                    losses.append(loss())
                there = torch.tensor([bool(masks[g.name][u]) for g, u in units])
                rows.append(there[doubted])
        beta = ridge(torch.stack(rows).double(), -torch.tensor(losses, dtype=torch.float64), float(told["ridge"]))
        worth = torch.empty(len(units), dtype=torch.float64)
        worth[order] = beta.max() + torch.arange(1, len(units) + 1, dtype=torch.float64)
        worth[doubted] = beta
        found = {g.name: torch.zeros(g.units, dtype=torch.float64) for g in groups if g.name in prior}
        for (g, u), w in zip(units, worth.tolist(), strict=True):
            found[g.name][u] = w
        yield averaged_over_ranks({g.name: on_device(sources, g, found[g.name]) for g in groups if g.name in found})


def drawn(units: int, samples: int, generator: torch.Generator) -> Iterator[Bool[Tensor, "units"]]:
    """Half of the units each, drawn in proportion to their place (1 for the first, the least), then the other half."""
    weights = torch.arange(1, units + 1, dtype=torch.float64)
    here = torch.zeros(units, dtype=torch.bool)
    for i in range(samples):
        if i % 2 == 0:
            here = torch.zeros(units, dtype=torch.bool)
            here[torch.multinomial(weights, units // 2, generator=generator)] = True
        else:
            here = ~here
        yield here


def ridge(a: Float[Tensor, "samples units"], u: Float[Tensor, "samples"], strength: float) -> Float[Tensor, "units"]:
    """The coefficients of a ridge regression with an intercept, by the smaller of the two systems."""
    a, u = a - a.mean(0), u - u.mean()
    n, k = a.shape
    eye = strength * torch.eye(min(n, k), dtype=a.dtype)
    found: Tensor = (
        torch.linalg.solve(a.T @ a / n + eye, a.T @ u / n)
        if k <= n
        else a.T @ torch.linalg.solve(a @ a.T / n + eye, u) / n
    )
    return found


def rated(part: Criterion, sources: Sources) -> dict[str, Float[Tensor, "units"]]:
    """What a criterion says of whole units, on the processor; averaged over batches where its evidence comes so."""
    evidence = part.asks()
    streams = {n: e.collect(sources) for n, e in evidence.items()}
    fixed = {n: next(s) for n, s in streams.items() if not evidence[n].per_batch}
    batched = [n for n in streams if n not in fixed]
    rounds = zip(*(streams[n] for n in batched), strict=True) if batched else iter([()])
    total: dict[str, Tensor] = {}
    for values in rounds:
        given: dict[str, Mapping[str, Any]] = fixed | dict(zip(batched, values, strict=True))
        for g in sources.groups:
            if all(g.name in one for one in given.values()):
                score = part(**{n: one[g.name] for n, one in given.items()})
                score = (score.sum(-1) if score.ndim > len(g.shape) else score).double().reshape(-1).cpu()
                total[g.name] = total[g.name] + score if g.name in total else score
    return total


def _masks(units: list[tuple[Any, int]], keep: Bool[Tensor, "n"], sources: Sources) -> dict[str, Bool[Tensor, "units"]]:
    """By group; a group keeps at least what it has to, the first of its units."""
    masks = {g.name: torch.zeros(g.units, dtype=torch.bool) for g, _ in units}
    for (g, u), k in zip(units, keep.tolist(), strict=True):
        masks[g.name][u] = k
    for g, u in units:
        if count(masks[g.name]) < g.at_least:
            masks[g.name][u] = True
    return masks


@contextmanager
def _only(sources: Sources, masks: Mapping[str, Bool[Tensor, "units"]]) -> Iterator[None]:
    """The model with these units only; weights are put back bit by bit."""
    touched = [(g, m) for g in sources.groups if g.name in masks for m in g.members if m.param in sources.parameters]
    saved = {m.param: sources.parameters[m.param].detach().clone() for _, m in touched}
    try:
        with torch.no_grad():
            for g, m in touched:
                p = sources.parameters[m.param]
                p.mul_(g.spread(m, masks[g.name].reshape(g.shape).to(p.device), p.shape))
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                sources.parameters[name].copy_(value)


Perturbed = Annotated[Float[Tensor, "*units 1"], PerturbedEvidence()]
"""`[*units, 1]`: by how much a unit's presence lowers the loss, in a regression over sub-models."""
