"""Reconstruction: after a selection, layer by layer in the order of the network, what stays makes up for what goes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from prunus.core.counting import full
from prunus.core.errors import PrunusWarning, StructureError, listed
from prunus.core.groups import Group, Member
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Masks
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.decide import sources_of
from prunus.parts.evidence.capture import Use, captured
from prunus.parts.evidence.curvature import second_moment
from prunus.parts.evidence.mode import averaged_over_ranks

if TYPE_CHECKING:
    from prunus.engine.session import Session


@torch.no_grad()
def rebuilt(session: "Session", masks: Masks) -> Masks:
    """The masks after the recipe's reconstruction has written new weights, which it may also have chosen by itself.

    A group at a time, in the order in which the network first uses what reads it: statistics of its readers' inputs are
    collected with the groups before it pruned and rebuilt and this one still whole, then its readers are rebuilt, then
    its units are zeroed. Cost: one forward over the calibration batches per group, and float64 `[in, in]` per layer.
    Groups that nothing visible reads keep their masks without a reconstruction; a warning names them.
    Errors: `StructureError` where that is so for every group.
    """
    part = session.recipe.reconstruct
    assert part is not None
    done: Masks = dict(masks)
    unseen: list[str] = []
    bare: list[str] = []
    for group in in_order(session):
        if full(masks[group.name]):
            continue
        found = list(layers(session, group, masks[group.name]))
        if not found:
            unseen.append(group.name)
        for spot, layer in found:
            update = part(layer, chooser(layer))
            if not write_(session, spot, update):
                bare.append(spot.use.name)
            done[group.name] = chosen(group, spot, layer, update, done[group.name])
        apply_(session.parameters, parameter_masks([group], done, session.parameters))
    report(type(part).__name__, unseen, bare, sum(not full(m) for m in masks.values()))
    return done


def report(part: str, unseen: list[str], bare: list[str], pruned: int) -> None:
    """Say which of the pruned groups were not rebuilt, and where there was no bias to write to."""
    if unseen and len(unseen) == pruned:
        raise StructureError(f"{part} rebuilds linear maps and convolutions, and sees none that reads {listed(unseen)}")
    if unseen:
        warnings.warn(
            PrunusWarning(f"pruned without a reconstruction, as nothing visible reads them: {listed(unseen)}"),
            stacklevel=3,
        )
    if bare:
        what = f"{part} would change a bias that is not there: {listed(list(dict.fromkeys(bare)))}"
        warnings.warn(PrunusWarning(what), stacklevel=3)


@dataclass(frozen=True, eq=False)
class Spot:
    """Where a layer lies: rows of a parameter that one group of a convolution owns, and how the matrix is turned."""

    use: Use
    member: Member
    rows: slice


def in_order(session: "Session") -> list[Group]:
    """The session's groups by when the first of their readers runs; those that nothing reads come last."""
    names = {m.param for g in session.groups for m in read_by(g)}
    sources = sources_of(session, session.recipe.criterion)
    sources.settings = {}
    uses = next(captured(sources, names), {})
    place = {n: i for i, n in enumerate(uses)}
    return sorted(session.groups, key=lambda g: min((place.get(m.param, len(place)) for m in read_by(g)), default=0))


def read_by(group: Group) -> tuple[Member, ...]:
    """The members in whose inputs a group's units show: the weight itself for single weights, else its readers.

    A weight that is tied, and so makes units as well as reads them, is not rewritten.
    """
    if not group.movable:
        return group.members[:1]
    others = {m.param for m in group.members if m.role != "in"}
    return tuple(m for m in group.with_role("in") if m.param not in others)


def layers(session: "Session", group: Group, mask: Bool[Tensor, "*units"]) -> Iterator[tuple[Spot, Layer]]:
    """What is to be rebuilt when a group is pruned, each with the statistics of its inputs as the model is now."""
    members = {m.param: m for m in read_by(group)}
    sources = sources_of(session, session.recipe.criterion)
    sources.settings = {}
    moments: dict[str, list[Moments]] = {}
    first: dict[str, Use] = {}
    for uses in captured(sources, members):
        for name, ones in uses.items():
            for use in ones:
                first.setdefault(name, use)
                found = [Moments.of(x) for x in use.columns()]
                before = moments.get(name)
                moments[name] = found if before is None else [a.and_(b) for a, b in zip(before, found, strict=True)]
    may = session.masks[group.name] | mask
    for name, use in first.items():
        member, p = members[name], session.parameters[name]
        pattern = blocks(session, group, use)
        if group.movable and (member.dim != use.in_axis or use.groups > 1):
            continue
        # One tensor axis of the parameter is the input, the other the output; kernels go with the input.
        whole = matrix(use, p.detach()).double()
        keep, allowed = (matrix(use, group.spread(member, m, p.shape)) for m in (mask, may))
        bias = None if use.bias is None else session.parameters[use.bias].detach().double()
        each = len(whole) // use.groups
        for g, total in enumerate(moments[name]):
            rows = slice(g * each, (g + 1) * each)
            mean = total.means()
            layer = Layer(
                name=name,
                w=whole[rows].clone(),
                bias=None if bias is None else bias[rows].clone(),
                keep=keep[rows].clone(),
                gram=mean.gram,
                mean=mean.sum,
                count=mean.n,
                unit=units_of(group, member, use, whole.shape[1]).to(whole.device),
                made_by=made_by(session, group),
                allowed=allowed[rows].clone(),
                block=None if pattern is None else pattern.to(whole.device),
                free=free(session, group, patterned=pattern is not None),
                parts=group.parts,
            )
            yield Spot(use, member, rows), layer


class Moments(NamedTuple):
    """Sums of x x^T and of x over n of them."""

    gram: Tensor
    sum: Tensor
    n: int

    @classmethod
    def of(cls, x: Float[Tensor, "samples in"]) -> "Moments":
        return cls(second_moment(x), x.sum(0, dtype=torch.float64), len(x))

    def and_(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.sum + other.sum, self.n + other.n)

    def means(self) -> "Moments":
        """Means instead of sums, over the samples of all processes of a distributed run."""
        both = averaged_over_ranks({"gram": self.gram / self.n, "sum": self.sum / self.n})
        return Moments(both["gram"], both["sum"], self.n)


def matrix(use: Use, tensor: Tensor) -> Shaped[Tensor, "out in"]:
    """A tensor of the parameter's shape as `[out, in]`, kernels with the input."""
    return (tensor if use.in_axis == 1 else tensor.T).reshape(tensor.shape[1 - use.in_axis], -1)


def blocks(session: "Session", group: Group, use: Use) -> Int[Tensor, "in"] | None:
    """Which block of the allocation's pattern each input belongs to; None where there is none, or not along inputs."""
    found = getattr(session.recipe.allocate, "blocks", None)
    if found is None or not group.elementwise or use.in_axis != 1:
        return None
    index: Tensor = found(group.weight)
    return index


def free(session: "Session", group: Group, *, patterned: bool) -> bool:
    """Whether a reconstruction may choose: single weights whose pattern, if any, is known; units with one reader."""
    if group.elementwise:
        return patterned or not session.recipe.allocate.pattern
    return group.movable and len(group.with_role("in")) == 1


def units_of(group: Group, member: Member, use: Use, columns: int) -> Tensor:
    """Which unit each column of the matrix belongs to, -1 for none."""
    unit = torch.full((columns,), -1)
    if group.movable:
        kernel = columns // (int(use.x.shape[1]) if use.conv is not None else columns)
        positions = member.positions(group.units)
        owner = torch.full((columns // kernel,), -1)
        owner[positions.reshape(-1)] = torch.arange(group.units).repeat_interleave(positions.shape[1])
        unit = owner.repeat_interleave(kernel)
    return unit


def made_by(session: "Session", group: Group) -> Float[Tensor, "units k"] | None:
    """The weights and biases that produce each unit."""
    members = [m for m in group.with_role("out", "bias") if m.param in session.parameters]
    if not group.movable or not members:
        return None
    return group.views(members, {m.param: session.parameters[m.param].detach() for m in members}).double()


def chooser(layer: Layer) -> Choose:
    """Selection for a reconstruction that scores by itself, with as many weights as the masks keep.

    Of a pattern, as many in every block of every row as there; where all rows of the masks keep equally many, as many
    in every row, spread evenly over the columns; else as many in the layer, spread likewise. Ties go to the earlier.
    Where the masks are not to be changed (`Layer.free`), they are what is chosen.
    """
    rows, width = layer.keep.shape
    each = layer.keep.sum(1)
    by_row = rows > 1 and bool((each == each[0]).all())
    taken = 0

    def choose(scores: Float[Tensor, "out b"], columns: slice) -> Bool[Tensor, "out b"]:
        nonlocal taken
        was = layer.keep[:, columns]
        if not layer.free or layer.whole_columns:
            return was
        if layer.allowed is not None:
            scores = scores.masked_fill(~layer.allowed[:, columns], -torch.inf)
        if layer.block is not None:
            keep = torch.zeros_like(was)
            for block in layer.block[columns].unique():
                inside = (layer.block[columns] == block).nonzero().squeeze(1)
                keep[:, inside] = best(scores[:, inside], was[:, inside].sum(1))
            return keep
        stop = columns.indices(width)[1]
        due = round(int(each[0] if by_row else each.sum()) * stop / width) - taken
        keep = best(scores if by_row else scores.reshape(1, -1), torch.tensor([due], device=scores.device))
        taken += int(keep[0].sum())
        return keep.reshape(was.shape)

    return choose


def best(scores: Float[Tensor, "rows n"], k: Int[Tensor, "_"]) -> Bool[Tensor, "rows n"]:
    """The k best of every row, ties to the earlier; -inf never stays."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))
    return (rank < k.unsqueeze(1)) & (scores > -torch.inf)


def write_(session: "Session", spot: Spot, update: Update) -> bool:
    """New weights, and a new bias where there is one, into the model; False where a bias would have to be there."""
    p = session.parameters[spot.use.name]
    whole = p.detach() if spot.use.in_axis == 1 else p.detach().T
    rows = whole[spot.rows]
    rows.copy_(update.w.reshape(rows.shape))
    if update.bias is None:
        return True
    if spot.use.bias is not None:
        session.parameters[spot.use.bias].detach()[spot.rows].copy_(update.bias)
    return spot.use.bias is not None


def chosen(group: Group, spot: Spot, layer: Layer, update: Update, mask: Tensor) -> Tensor:
    """The group's mask as a reconstruction that selects by itself left it."""
    if torch.equal(update.keep, layer.keep):
        return mask
    if group.members[0].tile is not None:
        raise StructureError(
            f"the units of {group.name} are boxes of a weight, and the reconstruction chose single ones: use one that "
            f"takes the mask as it is, or single weights (granularity=Element())"
        )
    if not layer.free:
        raise StructureError(f"the units of {group.name} are not {layer.name}'s alone to choose: take layer.keep")
    if group.elementwise:
        rows = mask.clone().reshape(-1, layer.w.shape[1]) if spot.use.in_axis == 1 else mask.T.clone()
        rows[spot.rows] = update.keep
        return (rows if spot.use.in_axis == 1 else rows.T).reshape(mask.shape)
    kept = torch.zeros(group.units, dtype=torch.bool, device=mask.device)
    kept[layer.unit[update.keep.any(0) & (layer.unit >= 0)]] = True
    return kept.reshape(mask.shape)
