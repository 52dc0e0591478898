"""The curvature of a layer's output error, H = E[x x^T], and its inverse: what optimal brain surgeon goes by."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import PrunusWarning
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.capture import captured
from prunus.parts.evidence.mode import averaged_over_ranks

LEAST = 1e-10
ROWS = 1 << 15


def damped(gram: Float[Tensor, "in in"], damp: float) -> Float[Tensor, "in in"]:
    """H + damp mean(diag H) I."""
    level = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram + eye * (damp * (level if level > 0 else 1.0))


def solvable(gram: Float[Tensor, "in in"], damp: float, name: str) -> Float[Tensor, "in in"]:
    """H with the damping asked for, or, where it has no Cholesky factor then, with the least power of ten that helps.

    Says so in a warning: fewer samples than inputs, or inputs that are always zero, leave H singular.
    """
    matrix, used = damped(gram, damp), damp
    while int(torch.linalg.cholesky_ex(matrix).info) != 0 or _lost(matrix):
        used = max(used * 10, LEAST)
        matrix = damped(gram, used)
    if used != damp:
        warnings.warn(
            PrunusWarning(
                f"the inputs of {name} are linearly dependent (too few samples?): {used:.0e} of their mean square was "
                f"added to each, instead of {damp:g}"
            ),
            stacklevel=4,
        )
    return matrix


def _lost(matrix: Tensor) -> bool:
    """Whether a factor that exists is nothing but rounding: pivots at the edge of float64."""
    pivots = torch.linalg.cholesky_ex(matrix).L.diagonal()
    return not float(pivots.min()) > 1e-7 * float(pivots.max())


def inverse(gram: Float[Tensor, "in in"], damp: float, name: str) -> Float[Tensor, "in in"]:
    """H^-1, damped as `solvable` does."""
    return torch.cholesky_inverse(torch.linalg.cholesky(solvable(gram, damp, name)))


class ReaderWeightEvidence(Evidence):
    """The weights that read each unit: its columns of the layers after it; a single weight is its own.

    Undefined where no linear map or convolution is seen to read the unit along its input axis. Cost: a forward per
    batch, shared with `InverseCurvature`.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        seen = moments(sources)
        yield self.laid(sources, {n: sources.parameters[n].detach() for n in seen})

    def laid(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        """Tensors of the parameters' shapes by unit; groups of which a reader is missing are left out."""
        readers = {g.name: readers_of(g, moments(sources)) for g in sources.groups}
        return {g.name: g.views(readers[g.name], tensors) for g in sources.groups if readers[g.name]}


class InverseCurvatureEvidence(ReaderWeightEvidence):
    """[H^-1]_jj of the input j that each reading weight multiplies, laid out as `ReaderWeight`.

    H = E[x x^T] + damp mean(diag) I in float64 over all samples and positions; `damp` is the asking part's (0.01).
    Cost: a forward per batch; `[in, in]` float64 per layer, all layers at once, and its inversion.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        damp = float(sources.settings.get("damp", 0.01))
        diagonals: dict[str, Tensor] = {}
        for name, seen in moments(sources).items():
            p = sources.parameters[name]
            rows = p.shape[1 - seen.in_axis] // len(seen.grams)
            whole = torch.cat([inverse(g, damp, name).diagonal().expand(rows, -1) for g in seen.grams])
            diagonals[name] = whole.T if seen.in_axis == 0 else whole.reshape(p.shape)
        yield self.laid(sources, diagonals)


class Seen(NamedTuple):
    """How a weight was used: the axis summed over, and E[x x^T] for each group of a convolution."""

    in_axis: int
    grams: list[Tensor]
    samples: int


def second_moment(x: Float[Tensor, "samples in"]) -> Float[Tensor, "in in"]:
    """Sum of x x^T in float64, a few rows at a time: a convolution has very many patches."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for some in x.split(ROWS):
        wide = some.double()
        total += wide.T @ wide
    return total


class InputNormEvidence(ReaderWeightEvidence):
    """sqrt(E[x_j^2]) of the input j that each reading weight multiplies, laid out as `ReaderWeight`; float64.

    Over all samples and positions. Cost: a forward per batch, and the products of `InverseCurvature` without their
    inversion.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        sizes: dict[str, Tensor] = {}
        for name, seen in moments(sources).items():
            p = sources.parameters[name]
            rows = p.shape[1 - seen.in_axis] // len(seen.grams)
            whole = torch.cat([g.diagonal().sqrt().expand(rows, -1) for g in seen.grams])
            sizes[name] = whole.T if seen.in_axis == 0 else whole.reshape(p.shape)
        yield self.laid(sources, sizes)


def readers_of(group: Group, seen: Mapping[str, Seen]) -> tuple[Member, ...]:
    """The members in whose inputs a group's units show, if all of them were seen."""
    if not group.movable:
        return group.members[:1] if group.members[0].param in seen else ()
    members = group.with_role("in")
    fits = (m.param in seen and m.unit is None and m.dim == seen[m.param].in_axis for m in members)
    return members if all(fits) and all(len(seen[m.param].grams) == 1 for m in members) else ()


def moments(sources: Sources) -> dict[str, Seen]:
    """What was seen of every reader, by parameter name; gathered once per asking part."""
    if "moments" not in sources.shared:
        members = [m for g in sources.groups for m in (g.with_role("in") if g.movable else g.members[:1])]
        sums: dict[str, Seen] = {}
        for uses in captured(sources, dict.fromkeys(m.param for m in members)):
            for name, ones in uses.items():
                for use in ones:
                    x = use.columns()
                    grams, was = [second_moment(one) for one in x], sums.get(name)
                    if was is not None:
                        grams = [a + b for a, b in zip(was.grams, grams, strict=True)]
                    sums[name] = Seen(use.in_axis, grams, x.shape[1] + (was.samples if was is not None else 0))
        sources.shared["moments"] = {n: s._replace(grams=_means(s)) for n, s in sums.items()}
    found: dict[str, Seen] = sources.shared["moments"]
    return found


def _means(seen: Seen) -> list[Tensor]:
    return list(averaged_over_ranks({str(i): g / seen.samples for i, g in enumerate(seen.grams)}).values())


ReaderWeight = Annotated[Float[Tensor, "*units k"], ReaderWeightEvidence()]
"""`[*units, k]`: the weights that multiply each unit's activation; k = 1 for a single weight, which is its own."""

InverseCurvature = Annotated[Float[Tensor, "*units k"], InverseCurvatureEvidence()]
"""`[*units, k]`: [H^-1]_jj of the input that each of these weights multiplies; float64."""

InputNorm = Annotated[Float[Tensor, "*units k"], InputNormEvidence()]
"""`[*units, k]`: the root mean square of the input that each of these weights multiplies; float64."""
