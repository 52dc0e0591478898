"""The Fisher information and the generalized Gauss-Newton matrix: diagonals, units, blocks, inverses.

Which matrix is meant says the field `fisher` of the asking part: `empirical` (the samples' own gradients, for a loss
that is a mean over the batch) or `gauss_newton`, see `prunus.parts.evidence.samples.each_backward`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.counting import full
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.parts.evidence.foresight import kept_entries
from prunus.parts.evidence.gradients import scored
from prunus.parts.evidence.mode import averaged_over_ranks, ranks
from prunus.parts.evidence.samples import SampleGradients, by_whole_group, each_backward, owners, wide

Kind = Literal["empirical", "gauss_newton"]


class FisherEvidence(Evidence):
    """What is made of the gradients of single samples. Groups with a weight whose gradients cannot be told apart by
    sample are left out.
    """

    reads: ClassVar[Reads] = "labels"
    passes: ClassVar[str] = "one forward and backward per batch, more backwards for the Gauss-Newton matrix"

    def kind(self, sources: Sources) -> str:
        """What the asking part's `fisher` says."""
        return str(sources.settings.get("fisher", "empirical"))


class FisherDiagonalEvidence(FisherEvidence):
    """The diagonal: the mean over samples of the squared gradients. Cost: one backward per batch (of the Gauss-Newton
    matrix one per output or probe), a number per weight.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        diagonal, _ = self.diagonal(sources)
        shaped = {n: d.reshape(sources.parameters[n].shape) for n, d in diagonal.items()}
        yield by_whole_group(sources, shaped)

    def diagonal(self, sources: Sources) -> tuple[dict[str, Tensor], int]:
        """Name -> the flattened diagonal, and how many samples there were; in one pass for all who ask."""
        key = f"diagonal of {self.kind(sources)}"
        if key not in sources.shared:
            names = scored(sources, self.roles)
            total = {n: torch.zeros_like(wide(p.detach())).flatten() for n, p in names.items()}

            def take(found: SampleGradients) -> None:
                for n in set(total) - set(found.names):
                    del total[n]
                for n, t in total.items():
                    t += found.squares(n)

            count = each_backward(sources, names, self.kind(sources), take)
            sources.shared[key] = averaged_over_ranks({n: t / count for n, t in total.items()}), count
        found: tuple[dict[str, Tensor], int] = sources.shared[key]
        return found


class GeneralFisherEvidence(FisherDiagonalEvidence):
    """The same diagonal on the batches of `Task.general`. Fails: `SpecError` where the task has none."""

    general: ClassVar[bool] = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        if sources.task.general is None:
            raise SpecError("this weighs what the model should stay good at: pass Task(general=batches)")
        task = replace(sources.task, calib=sources.task.general)
        yield from super().collect(replace(sources, task=task, shared={}))


class OutputFisherEvidence(FisherDiagonalEvidence):
    """E[sum_j (df_j/dw)^2] over the model's outputs f, labels unread: the diagonal of I_w = E[J^T J] (Gao, Wang & Oh
    2018, arXiv:1810.06401). Exact for one output vector per sample; unbiased with `probes` random mixtures of outputs
    or with outputs at several positions.
    """

    reads: ClassVar[Reads] = "inputs"
    passes: ClassVar[str] = "one forward per batch, and a backward per output or probe"

    def kind(self, sources: Sources) -> str:
        return "outputs"


class SampleCountEvidence(FisherDiagonalEvidence):
    """How many samples the calibration batches hold (in a distributed run, of all processes), from the same pass as the
    diagonal.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        _, count = self.diagonal(sources)
        device = next(iter(sources.parameters.values())).device
        every = averaged_over_ranks({"": torch.tensor(float(count), device=device)})[""] * ranks()
        places = {g.name: sources.parameters[g.members[0].param].device for g in sources.groups}
        yield {g.name: every.to(places[g.name]).expand(*g.shape, 1) for g in sources.groups}


class UnitTaylorEvidence(FisherEvidence):
    """sum over a unit's weights of w dL_n/dw, for every sample n of a batch: the first-order rise of its loss if the
    unit were removed, negated. Cost: one backward per batch.
    """

    per_batch: ClassVar[bool] = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield from unit_sums(sources, "empirical")


class PairCurvatureEvidence(FisherEvidence):
    """sum over all units m' of all groups of |theta_m^T H theta_m'|, H the Fisher or Gauss-Newton matrix.

    theta_m are the weights that produce unit m. Cost: one backward per batch (of the Gauss-Newton matrix one per output
    or probe); units^2 products of as many numbers as there are samples, in slices.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        per_backward = list(unit_sums(sources, self.kind(sources)))
        names = list(per_backward[0])
        count = sources.shared["samples"]
        every = torch.cat([torch.cat([one[n].flatten(0, -2) for n in names]) for one in per_backward], 1)
        rows = []
        for part in every.split(max(1, 2**24 // max(1, len(every)))):
            pairs = averaged_over_ranks({"": part @ every.T / count})[""]
            rows.append(pairs.abs().sum(1))
        shapes = {g.name: g.shape for g in sources.groups}
        parts = torch.cat(rows).split([per_backward[0][n].flatten(0, -2).shape[0] for n in names])
        yield {n: one.reshape(*shapes[n], 1) for n, one in zip(names, parts, strict=True)}


def unit_sums(sources: Sources, kind: str) -> Iterator[dict[str, Tensor]]:
    """For every backward pass: group name -> `[*units, samples]`, the sums of w dL_n/dw over each unit's weights."""
    names = scored(sources, ("out",))
    made = {g.name: list(dict.fromkeys(m.param for m in g.with_role("out"))) for g in sources.groups}
    owner = {
        (g.name, n): owners(g, n, names[n].shape).to(names[n].device) for g in sources.groups for n in made[g.name]
    }
    found: list[dict[str, Tensor]] = []

    def take(gradients: SampleGradients) -> None:
        sums: dict[str, Tensor] = {}
        for group in sources.groups:
            if not made[group.name] or any(n not in gradients.names for n in made[group.name]):
                continue
            total: Tensor | None = None
            for n in made[group.name]:
                w, at = wide(names[n].detach()).flatten(), owner[group.name, n]
                parts = [
                    torch.zeros(len(rows), group.units + 1, dtype=w.dtype, device=w.device).index_add_(
                        1, at, (rows * w).to(w.dtype)
                    )
                    for rows in gradients.rows(n)
                ]
                one = torch.cat(parts)[:, : group.units].T
                total = one if total is None else total + one
            assert total is not None
            sums[group.name] = total.reshape(*group.shape, -1)
        found.append(sums)

    sources.shared["samples"] = each_backward(sources, names, kind, take)
    always = [n for n in found[0] if all(n in one for one in found)]
    yield from ({n: one[n] for n in always} for one in found)


class InverseFisherEvidence(FisherEvidence):
    """The diagonal of the inverse of damp I + mean g g^T in blocks of `block` consecutive weights of a layer
    (WoodFisher: Singh & Alistarh 2020, arXiv:2004.14340).

    The papers build the inverse by rank-one updates, one per gradient; the same matrix is inverted here at once, in
    float64. Gradients of weights that are pruned already count as zero, as in the papers' code: they move no more.
    The asking part's fields: `damp`, `block`. Cost: one backward per batch; `block` numbers per weight in memory, the
    inversion of all blocks.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        inverse = self.inverse(sources)
        shapes = {n: sources.parameters[n].shape for n in inverse}
        diagonal = {n: b.diagonal(dim1=1, dim2=2).flatten() for n, b in inverse.items()}
        yield by_whole_group(sources, {n: d[: shapes[n].numel()].reshape(shapes[n]) for n, d in diagonal.items()})

    def inverse(self, sources: Sources) -> dict[str, Float[Tensor, "blocks b b"]]:
        """Name -> the blocks of the inverse; the last one is filled up with weights that do not exist."""
        names = scored(sources, self.roles)
        kept = kept_entries(sources)
        there = {
            n: kept[n].flatten().to(p.device, p.dtype) for n, p in names.items() if n in kept and not full(kept[n])
        }
        block, damp = int(sources.settings.get("block", 50)), float(sources.settings.get("damp", 1e-5))
        size = {n: min(block, p.numel()) for n, p in names.items()}
        total = {
            n: torch.zeros(-(-p.numel() // size[n]), size[n], size[n], dtype=torch.float64, device=p.device)
            for n, p in names.items()
        }

        def take(found: SampleGradients) -> None:
            for n in set(total) - set(found.names):
                del total[n]
            for n, t in total.items():
                for rows in found.rows(n):
                    rows = rows * there[n] if n in there else rows
                    padded = torch.nn.functional.pad(rows.double(), (0, t.shape[0] * size[n] - rows.shape[1]))
                    blocks = padded.reshape(len(rows), -1, size[n]).transpose(0, 1)
                    t.baddbmm_(blocks.transpose(1, 2), blocks)

        count = each_backward(sources, names, self.kind(sources), take)
        total = averaged_over_ranks({n: t / count for n, t in total.items()})
        for t in total.values():
            t.diagonal(dim1=1, dim2=2).add_(damp)
        return {n: torch.cholesky_inverse(torch.linalg.cholesky(t)) for n, t in total.items()}


class InverseFisherMatrixEvidence(InverseFisherEvidence):
    """The blocks of the same inverse, `[blocks, b, b]`, by parameter instead of by group."""

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.inverse(sources)


class InverseFisherBlockEvidence(InverseFisherEvidence):
    """The rows and columns of the same inverse that belong to each unit, `[*units, k, k]` (oBERT: Kurtic et al. 2022,
    arXiv:2203.07259). Undefined where a unit's weights do not all lie in one block of one weight.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, Tensor] = {}
        inverse = self.inverse(sources)
        for group in sources.groups:
            members = group.with_role("out")
            if len(members) != 1 or members[0].param not in inverse:
                continue
            blocks, shape = inverse[members[0].param], sources.parameters[members[0].param].shape
            at = group.view(members[0], torch.arange(shape.numel()).reshape(shape)).to(blocks.device)
            which, inside = at // blocks.shape[1], at % blocks.shape[1]
            if bool((which == which[..., :1]).all()):
                found[group.name] = blocks[which[..., :1, None], inside[..., :, None], inside[..., None, :]]
        if not found:
            raise SpecError(
                f"no unit lies inside one block of {sources.settings.get('block')} weights: take a larger `block`, or "
                f"the score of single weights (ObsFisher), which a granularity sums over its units"
            )
        yield found


GeneralFisher = Annotated[Float[Tensor, "*units k"], GeneralFisherEvidence()]
"""`[*units, k]`: the diagonal of the Fisher information on the batches of `Task.general`."""

FisherDiagonal = Annotated[Float[Tensor, "*units k"], FisherDiagonalEvidence()]
"""`[*units, k]`: the diagonal of the Fisher information (or Gauss-Newton matrix) at each unit's weights."""

OutputFisher = Annotated[Float[Tensor, "*units k"], OutputFisherEvidence()]
"""`[*units, k]`: the mean squared gradient of the model's outputs at each unit's weights; no labels."""

SampleCount = Annotated[Float[Tensor, "*units 1"], SampleCountEvidence()]
"""`[*units, 1]`: how many calibration samples the Fisher information is a mean of."""

UnitTaylor = Annotated[Float[Tensor, "*units samples"], UnitTaylorEvidence()]
"""`[*units, samples]`: sum of w dL_n/dw over each unit's weights, for every sample of a batch."""

PairCurvature = Annotated[Float[Tensor, "*units 1"], PairCurvatureEvidence()]
"""`[*units, 1]`: sum over all units of |theta_m^T H theta_m'|."""

InverseFisher = Annotated[Float[Tensor, "*units k"], InverseFisherEvidence()]
"""`[*units, k]`: the diagonal of the inverse of the block-diagonal Fisher information (float64)."""

InverseFisherBlock = Annotated[Float[Tensor, "*units k k"], InverseFisherBlockEvidence()]
"""`[*units, k, k]`: each unit's rows and columns of the same inverse (float64)."""
