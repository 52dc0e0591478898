"""The curvature of a layer's output error, H = E[x x^T], and its inverse: what optimal brain surgeon goes by."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError, PrunusWarning, listed
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.capture import Use, captured
from prunus.parts.evidence.mode import averaged_over_ranks, check_reached

LEAST, MOST = 1e-10, 1.0
"""The least damping that is tried where none was asked for, and the most there is, as shares of the mean diagonal."""
LEAST_PIVOT = 1e-7
"""How small the least of a factor's diagonal may be beside the largest: below, it is nothing but rounding."""
ROWS = 1 << 15


def damped(gram: Float[Tensor, "in in"], damp: float) -> Float[Tensor, "in in"]:
    """H + damp mean(diag H) I."""
    level = float(gram.diagonal().mean())
    matrix = gram.clone()
    matrix.diagonal().add_(damp * (level if level > 0 else 1.0))
    return matrix


Factorize = Callable[[Tensor], tuple[Tensor, bool]]
"""A damped H -> its triangular factor, which may take its place, and whether it has one."""


def lower(matrix: Float[Tensor, "in in"]) -> tuple[Float[Tensor, "in in"], bool]:
    """L with H = L L^T."""
    found = torch.linalg.cholesky_ex(matrix)
    return found.L, int(found.info) == 0


def settled(
    gram: Float[Tensor, "in in"], damp: float, name: str, factorize: Factorize = lower
) -> tuple[Float[Tensor, "in in"], float]:
    """The factor of H with the damping asked for, or, where it has none then, with the least power of ten of it that
    helps; and the damping used. `name` is whose inputs these are.

    Says so in a warning: fewer samples than inputs, or inputs that are always zero, leave H singular. A factor that is
    nothing but rounding (pivots at the edge of float64) counts as none. Errors: `DataError` where H holds NaN or
    infinite values, or has no factor even with its mean diagonal added.
    """
    factor = gram

    def attempt(used: float) -> Tensor | None:
        nonlocal factor
        factor, there = factorize(damped(gram, used))
        pivots = factor.diagonal()
        return pivots if there and float(pivots.min()) > LEAST_PIVOT * float(pivots.max()) else None

    used = searched(attempt, damp, name, finite=bool(gram.sum().isfinite()))
    return factor, used


def searched(attempt: Callable[[float], Tensor | None], damp: float, name: str, *, finite: bool) -> float:
    """The damping with which there is a factor, the one asked for or more: see `settled`. `attempt` gives the factor's
    diagonal, or None where it is none.
    """
    if not finite:
        raise DataError(
            f"the inputs of {name} hold NaN or infinite values, or values whose squares are: look at the calibration "
            f"data, and at the weights before {name}"
        )
    used = damp
    while attempt(used) is None:
        if used >= MOST:
            raise DataError(
                f"the mean of x x^T over the inputs x of {name} has no Cholesky factor even with {used:g} times its "
                f"mean diagonal added to its diagonal: it is not a matrix of that kind"
            )
        used = min(max(used * 10, LEAST), MOST)
    if used != damp:
        warnings.warn(
            PrunusWarning(
                f"the inputs of {name} are linearly dependent (too few samples?): {used:.0e} of their mean square was "
                f"added to each, instead of {damp:g}"
            ),
            stacklevel=6,
        )
    return used


def solvable(gram: Float[Tensor, "in in"], damp: float, name: str) -> Float[Tensor, "in in"]:
    """H, damped as `settled` does."""
    return damped(gram, settled(gram, damp, name)[1])


def inverse(gram: Float[Tensor, "in in"], damp: float, name: str) -> Float[Tensor, "in in"]:
    """H^-1, damped as `settled` does."""
    return torch.cholesky_inverse(settled(gram, damp, name)[0])


class ReaderWeightEvidence(Evidence):
    """The weights that read each unit: its columns of the layers after it; a single weight is its own.

    Undefined where no linear map, convolution or stack of experts is seen to read the unit along its input axis. Cost:
    a forward per batch, shared with `InputNorm`, and with `InverseCurvature` where that was asked for before.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.laid(sources, {n: sources.parameters[n].detach() for n in squares(sources)})

    def laid(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        """Tensors of the parameters' shapes by unit; groups of which a reader is missing are left out."""
        readers = {g.name: readers_of(g, squares(sources)) for g in sources.groups}
        return Laid({g.name: (g, readers[g.name]) for g in sources.groups if readers[g.name]}, tensors)


class Laid(Mapping[str, Tensor]):
    """Tensors of parameters by unit, each laid out when it is asked for: a stack's does not fit a view."""

    def __init__(self, readers: Mapping[str, tuple[Group, tuple[Member, ...]]], tensors: Mapping[str, Tensor]) -> None:
        self.readers, self.tensors = readers, tensors

    def __getitem__(self, name: str) -> Tensor:
        group, members = self.readers[name]
        return group.views(members, self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.readers

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


class InverseCurvatureEvidence(ReaderWeightEvidence):
    """[H^-1]_jj of the input j that each reading weight multiplies, laid out as `ReaderWeight`.

    H = E[x x^T] + damp mean(diag) I in float64 over all samples and positions; `damp` is the asking part's (0.01).
    Cost: a forward per batch; `[in, in]` float64 per layer (and per expert), all layers at once, and its inversion.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        damp = float(sources.settings.get("damp", 0.01))
        found = moments(sources)
        yield self.laid(
            sources,
            {
                name: seen.spread([inverse(g, damp, name).diagonal() for g in seen.means], sources.parameters[name])
                for name, seen in found.items()
            },
        )


class InputNormEvidence(ReaderWeightEvidence):
    """sqrt(E[x_j^2]) of the input j that each reading weight multiplies, laid out as `ReaderWeight`; float64.

    Over all samples and positions that the weight multiplies. Cost: a forward per batch.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found = squares(sources).items()
        yield self.laid(sources, {n: s.spread([v.sqrt() for v in s.means], sources.parameters[n]) for n, s in found})


class InputLengthEvidence(ReaderWeightEvidence):
    """sqrt(mean over batches of the sum of x_j^2) of the input j that each reading weight multiplies, laid out as
    `ReaderWeight`; float64: the length of the input over all positions of a batch.

    Cost: a forward per batch.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.laid(
            sources,
            {
                n: s.spread([(v * r).sqrt() for v, r in zip(s.means, s.rows, strict=True)], sources.parameters[n])
                for n, s in squares(sources).items()
            },
        )


@dataclass(frozen=True)
class Seen:
    """What a weight multiplied.

    Attributes:
        in_axis: the axis summed over.
        means: E[x x^T] or E[x^2], for each group of a convolution and each matrix of a stack.
        stacked: whether the weight is a stack of matrices.
        rows: how many x each of `means` is a mean of, per batch.
    """

    in_axis: int
    means: list[Tensor]
    stacked: bool
    rows: tuple[float, ...]

    def spread(self, vectors: Sequence[Float[Tensor, "in"]], p: Tensor) -> Float[Tensor, "..."]:
        """Numbers of inputs, a vector for each of `means`, laid out as the weight."""
        if self.stacked:
            whole = torch.stack(list(vectors)).unsqueeze(1).expand(-1, p.shape[3 - self.in_axis], -1)  # a view
            return whole if self.in_axis == 2 else whole.mT
        each = [v.expand(p.shape[1 - self.in_axis] // len(vectors), -1) for v in vectors]
        whole = each[0] if len(each) == 1 else torch.cat(each)  # a view, where it can be one
        return whole.T if self.in_axis == 0 else whole.reshape(p.shape)


def second_moment(x: Float[Tensor, "samples in"]) -> Float[Tensor, "in in"]:
    """Sum of x x^T in float64, a few rows at a time: a convolution has very many patches."""
    return add_second_moment_(torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device), x)


def add_second_moment_(total: Float[Tensor, "in in"], x: Float[Tensor, "samples in"]) -> Float[Tensor, "in in"]:
    """The same added to a sum, in its place: of wide layers a second one would not fit beside it."""
    for some in x.split(ROWS):
        wide = some.double()
        total.addmm_(wide.T, wide)
    return total


def square(x: Float[Tensor, "samples in"]) -> Float[Tensor, "in"]:
    """Sum of x^2 in float64, a few rows at a time."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for some in x.split(ROWS):
        total += some.double().square().sum(0)
    return total


def readers_of(group: Group, seen: Mapping[str, Seen]) -> tuple[Member, ...]:
    """The members in whose inputs a group's units show, if all of them were seen."""
    if not group.movable:
        return group.members[:1] if group.members[0].param in seen else ()
    members = group.with_role("in")
    fits = (m.param in seen and m.unit is None and m.dim == seen[m.param].in_axis for m in members)
    return members if all(fits) and all(len(seen[m.param].means) == 1 for m in members) else ()


def squares(sources: Sources) -> dict[str, Seen]:
    """E[x^2] of what every reader multiplies, by parameter name; gathered once per asking part."""
    if "squares" not in sources.shared:
        if "moments" in sources.shared:
            grams: dict[str, Seen] = sources.shared["moments"]
            found = {n: replace(s, means=[g.diagonal() for g in s.means]) for n, s in grams.items()}
        else:
            found = _gathered(sources, square)
        sources.shared["squares"] = found
    known: dict[str, Seen] = sources.shared["squares"]
    return known


def moments(sources: Sources) -> dict[str, Seen]:
    """E[x x^T] of what every reader multiplies, by parameter name; gathered once per asking part."""
    if "moments" not in sources.shared:
        sources.shared["moments"] = _gathered(sources, second_moment)
    known: dict[str, Seen] = sources.shared["moments"]
    return known


def _gathered(sources: Sources, of: Callable[[Tensor], Tensor]) -> dict[str, Seen]:
    members = [m for g in sources.groups for m in (g.with_role("in") if g.movable else g.members[:1])]
    sums: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, list[int]] = {}
    first: dict[str, Use] = {}
    batches = 0
    for uses in captured(sources, dict.fromkeys(m.param for m in members), stacks=True, stay=True):
        batches += 1
        for use in (u for ones in uses.values() for u in ones):
            rows, total = use.rows(), sums.setdefault(use.name, {})
            # A stack whose matrices are taken out one by one has a use of each, with no rows for the others.
            for i, x in enumerate(rows):
                if len(x) or not use.shares:
                    own = of(x).to(sources.parameters[use.name].device)
                    total[i] = own if i not in total else total[i] + own
            counts[use.name] = [a + len(x) for a, x in zip(counts.get(use.name, [0] * len(rows)), rows, strict=True)]
            first.setdefault(use.name, replace(use, x=use.x.new_empty(0)))
    names = list(dict.fromkeys(m.param for m in members))  # in an order that all processes have
    here = [n in first and any(counts[n]) for n in names]  # a weight may be used on no rows at all
    check_reached(names, here)
    found: dict[str, Seen] = {}
    for name in (n for n, reached in zip(names, here, strict=True) if reached):
        use = first[name]
        like = next(iter(sums[name].values()))
        each = [sums[name].get(i, torch.zeros_like(like)) for i in range(len(counts[name]))]
        known = [n for n in counts[name] if n]
        rows_of = tuple((n or sum(known) / len(known)) / batches for n in counts[name])
        found[name] = Seen(use.in_axis, means(name, each, counts[name]), bool(use.shares), rows_of)
    return found


def means(name: str, sums: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Means from sums, over all processes of a distributed run.

    A matrix of a stack that multiplied nothing (an expert to which no token was routed) gets the mean of all the
    others; a warning names it.
    """
    numbers = torch.tensor(counts, dtype=torch.float64, device=sums[0].device)
    both = averaged_over_ranks({"counts": numbers, **{str(i): s for i, s in enumerate(sums)}})
    numbers = both.pop("counts")
    if bool((numbers == 0).any()) and bool((numbers > 0).any()):
        idle = [str(i) for i, n in enumerate(numbers.tolist()) if n == 0]
        warnings.warn(
            PrunusWarning(
                f"no token reached {len(idle)} of the {len(sums)} experts of {name} ({listed(idle)}): they are scored "
                f"as if they were fed what the others are; more calibration data may reach them"
            ),
            stacklevel=5,
        )
        rest = torch.stack(list(both.values())).sum(0) / numbers.sum()
        return [s / n if n else rest for s, n in zip(both.values(), numbers.tolist(), strict=True)]
    return [s / n for s, n in zip(both.values(), numbers.tolist(), strict=True)]


ReaderWeight = Annotated[Float[Tensor, "*units k"], ReaderWeightEvidence()]
"""`[*units, k]`: the weights that multiply each unit's activation; k = 1 for a single weight, which is its own."""

InverseCurvature = Annotated[Float[Tensor, "*units k"], InverseCurvatureEvidence()]
"""`[*units, k]`: [H^-1]_jj of the input that each of these weights multiplies; float64."""

InputNorm = Annotated[Float[Tensor, "*units k"], InputNormEvidence()]
"""`[*units, k]`: the root mean square of the input that each of these weights multiplies; float64."""

InputLength = Annotated[Float[Tensor, "*units k"], InputLengthEvidence()]
"""`[*units, k]`: the length over a batch of the input that each of these weights multiplies; float64."""
