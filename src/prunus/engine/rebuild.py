"""Reconstruction: after a selection, layer by layer in the order of the network, what stays makes up for what goes."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from prunus.core.counting import count, count_rows, full
from prunus.core.errors import PrunusWarning, StructureError, listed
from prunus.core.groups import Group, Member
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Masks
from prunus.core.rows import rows_top_k
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.backwards import backwards
from prunus.engine.decide import sources_of
from prunus.engine.waves import Read, read_by, waves
from prunus.parts.evidence.capture import Use

if TYPE_CHECKING:
    from prunus.engine.session import Session


@torch.no_grad()
def rebuilt(session: "Session", masks: Mapping[str, Tensor]) -> Masks:
    """The masks after the recipe's reconstruction has written new weights, which it may also have chosen by itself.

    In the order in which the network first uses what reads them: statistics of a group's readers' inputs are those with
    the groups before it pruned and rebuilt and this one still whole, then its readers are rebuilt, then its units are
    zeroed. Groups fed by the same tensor share a pass and its moments (`waves`), which changes no bit of the result.
    Single weights of a block of a larger model (`session.is_block`) are rebuilt on what they are fed while all of it is
    whole, where the recipe's part says so (`Reconstruction.fed`), those that it uses last first (`backwards`).
    Cost: one forward over the calibration batches per wave, and half of a float64 `[in, in]` per distinct input of it.
    Groups that nothing visible reads keep their masks without a reconstruction; a warning names them.
    Where a reconstruction goes by more than inputs (`asks`), that is gathered instead, once, of the model as it was.
    Errors: `StructureError` where that is so for every group; `DataError` for NaN or infinite inputs.
    """
    part = session.recipe.reconstruct
    assert part is not None
    if part.asks():
        return moved(session, dict(masks))
    done: Masks = {}
    pruned = {n: not full(masks[n]) for n in masks}
    unseen: list[str] = []
    bare: list[str] = []
    told_whole = session.is_block and part.fed == "whole" and not any(g.movable for g in session.groups)
    for wave, read in (backwards if told_whole else waves)(session, lambda g: pruned[g.name]):

        def one(group: Group, read: Read = read) -> tuple[Tensor, int, list[str]]:
            own = masks[group.name].clone() if isinstance(masks, dict) else masks[group.name]  # which is made anew
            found = rebuilt_group(session, group, own.contiguous(), read)
            apply_(session.parameters, parameter_masks([group], {group.name: found[0]}, session.parameters))
            read.forget([m.param for m in read_by(group)] if group.elementwise else [])
            return found

        each = (
            map(one, wave) if session.crew is None else session.crew.solve(one, ((g.members[0].param, g) for g in wave))
        )
        for group, (mask, readers, without) in zip(wave, each, strict=True):
            done[group.name] = mask
            unseen += [] if readers else [group.name]
            bare += without
    report(type(part).__name__, unseen, bare, sum(pruned.values()))
    return {n: done[n] if n in done else masks[n] for n in masks}


def moved(session: "Session", masks: Masks) -> Masks:
    """The masks, after the recipe's reconstruction has moved the weights of each group by evidence of the whole model.

    Groups of whose weights it is told nothing keep their masks without; a warning names them.
    """
    part = session.recipe.reconstruct
    assert part is not None
    sources = sources_of(session, part)
    told = {name: next(iter(e.collect(sources))) for name, e in part.asks().items()}
    less = {g.name: session.masks[g.name] & ~masks[g.name] for g in session.groups}
    groups = [g for g in session.groups if bool(less[g.name].any())]
    unseen: list[str] = []
    for group in groups:
        makers = [m for m in group.with_role("out") if all(m.param in given for given in told.values())]
        for member in makers:
            p = session.parameters[member.param].detach()
            places = group.view(member, torch.arange(p.numel(), device=p.device).reshape(p.shape))
            gone, given = less[group.name].flatten().to(p.device), {n: t[member.param] for n, t in told.items()}
            p.copy_(part.moved(p.double().flatten(), places.reshape(group.units, -1), gone, **given).reshape(p.shape))
        unseen += [] if makers else [group.name]
    apply_(session.parameters, parameter_masks(groups, masks, session.parameters))
    report(type(part).__name__, unseen, [], len(groups))
    return masks


def rebuilt_group(
    session: "Session", group: Group, mask: Bool[Tensor, "*units"], read: Read
) -> tuple[Bool[Tensor, "*units"], int, list[str]]:
    """Rebuild the readers of one group: its mask, for which the one given may be written to, how many layers they are,
    and those without the bias to write to.
    """
    part = session.recipe.reconstruct
    assert part is not None
    own, count, bare = mask, 0, list[str]()
    for count, (spot, layer) in enumerate(layers(session, group, mask, read), 1):  # noqa: B007 (how many there were)
        update = part(layer, chooser(layer))
        if not write_(session, spot, update):
            bare.append(spot.use.name)
        keep = update.keep
        del update  # weights as large as the layer
        if not torch.equal(keep, layer.keep):
            own = chosen(group, spot, layer, keep, own)
    return own, count, bare


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
    """Where a layer lies: rows of a parameter that one group of a convolution, or one matrix of a stack, owns, and how
    the matrix is turned.
    """

    use: Use
    member: Member
    rows: slice


def layers(session: "Session", group: Group, mask: Bool[Tensor, "*units"], read: Read) -> Iterator[tuple[Spot, Layer]]:
    """What is to be rebuilt when a group is pruned, each with the statistics of its inputs."""
    members = {m.param: m for m in read_by(group)}
    before = session.masks[group.name]
    may = before if full(before) else before | mask
    for name, use in read.uses.items():
        if name not in members:
            continue
        member, p = members[name], session.parameters[name]
        pattern = blocks(session, group, use)
        if group.movable and (member.dim != use.in_axis or use.groups > 1):
            continue
        # One tensor axis of the parameter is the input, the other the output; kernels go with the input.
        keep, allowed = (group.spread(member, m, p.shape) for m in (mask, may))
        bias = None if use.bias is None else session.parameters[use.bias].detach().double()
        out, width = sizes(use, p)
        each = out // use.groups
        for g, mean in enumerate(read.means(name)):
            rows, place = slice(g * each, (g + 1) * each), mean.gram.device  # another one than the weight's, of a crew
            kept = own_rows(use, keep, rows).reshape(each, width).to(place)
            layer = Layer(
                name=name,
                w=copied(own_rows(use, p.detach(), rows).reshape(each, width).to(place)),
                bias=None if bias is None else bias[rows].to(place, copy=True),
                keep=kept,
                gram=mean.gram,  # type: ignore[arg-type]  # which reads as a tensor
                mean=mean.sum,
                count=mean.n,
                unit=units_of(group, member, use, width).to(place),
                made_by=None if (by := made_by(session, group)) is None else by.to(place),
                allowed=own_rows(use, allowed, rows).reshape(each, width).to(place),
                block=None if pattern is None else pattern.to(place),
                free=free(session, group, patterned=pattern is not None),
                box=None if (box := boxes(session, group, use)) is None else box.to(place),
                parts=group.parts,
                stored=p.dtype,
                own=group.elementwise and same_place(kept, own_rows(use, keep, rows)),
            )
            yield Spot(use, member, rows), layer


def same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at the same place of the same device's memory."""
    return a.device == b.device and a.data_ptr() == b.data_ptr()


def copied(w: Tensor) -> Tensor:
    """Weights that reading them as float64 copies, or a copy."""
    return w.clone() if w.dtype == torch.float64 else w


def sizes(use: Use, tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: kernels with the input, a stack's matrices below each other."""
    if use.shares:
        return len(tensor) * tensor.shape[3 - use.in_axis], tensor.shape[use.in_axis]
    out = tensor.shape[1 - use.in_axis]
    return out, tensor.numel() // out


def own_rows(use: Use, tensor: Tensor, rows: slice) -> Shaped[Tensor, "rows ..."]:
    """The view of a tensor of the parameter's shape in which these rows of its matrix lie."""
    if use.shares:
        one = tensor[rows.start // (rows.stop - rows.start)]
        return one if use.in_axis == 2 else one.T
    return (tensor if use.in_axis == 1 else tensor.T)[rows]


def blocks(session: "Session", group: Group, use: Use) -> Int[Tensor, "in"] | None:
    """Which block of the allocation's pattern each input belongs to; None where there is none, or not along inputs."""
    found = getattr(session.recipe.allocate, "blocks", None)
    if found is None or not group.elementwise or use.in_axis != (2 if use.shares else 1):
        return None
    index: Tensor = found(group.weight)
    return index[: group.weight[2]] if use.shares else index  # rows of a stack's matrices are alike


def boxes(session: "Session", group: Group, use: Use) -> Int[Tensor, "in"] | None:
    """Which box of its row each input belongs to, where units are boxes of one row each and no pattern chooses them."""
    tile, lead = group.members[0].tile, 2 if use.shares else 1
    if tile is None or session.recipe.allocate.pattern or use.in_axis != lead or any(n > 1 for n in tile[:lead]):
        return None
    across = tile[lead:]
    grid = [n // t for n, t in zip(group.weight[lead:], across, strict=True)]
    index = torch.arange(prod(grid)).reshape(grid)
    for along, length in enumerate(across):
        index = index.repeat_interleave(length, along)
    return index.reshape(-1)


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
    each = count_rows(layer.keep)
    by_row = rows > 1 and bool((each == each[0]).all())
    stands = not layer.free or layer.whole_columns
    out = None if layer.allowed is None or full(layer.allowed) else ~layer.allowed
    owner = [] if layer.block is None else layer.block.tolist()
    due_in = {} if layer.block is None else kept_in_blocks(layer.keep, layer.block)
    taken = 0

    def choose(scores: Float[Tensor, "out b"], columns: slice) -> Bool[Tensor, "out b"]:
        nonlocal taken
        was = layer.keep[:, columns]
        if stands:
            return was
        if out is not None:
            scores = scores.masked_fill(out[:, columns], -torch.inf)
        if due_in:
            here = owner[columns]
            if len(set(here)) == 1:
                return rows_top_k(scores, due_in[here[0]])
            keep = torch.zeros_like(was)
            for block in dict.fromkeys(here):
                inside = [i for i, b in enumerate(here) if b == block]
                keep[:, inside] = rows_top_k(scores[:, inside], due_in[block])
            return keep
        stop = columns.indices(width)[1]
        due = round(int(each[0] if by_row else each.sum()) * stop / width) - taken
        keep = rows_top_k(scores if by_row else scores.reshape(1, -1), due)
        taken += count(keep[0])
        return keep.reshape(was.shape)

    return choose


def kept_in_blocks(keep: Bool[Tensor, "out in"], block: Int[Tensor, "in"]) -> dict[int, int | Int[Tensor, "out"]]:
    """Block -> how many of its weights each row keeps; a number where all rows keep equally many."""
    number, width, most = int(block.max()) + 1, len(block), int(torch.bincount(block).max())
    kind = torch.uint8 if most < 256 else torch.int64
    across = keep.T.to(kind, memory_format=torch.contiguous_format)
    if torch.equal(block, torch.arange(width, device=block.device) // most) and width == number * most:
        found = across.reshape(number, most, len(keep)).sum(1, dtype=kind)
    else:
        found = torch.zeros(number, len(keep), dtype=kind, device=keep.device).index_add_(0, block, across)
    alike = (found == found[:, :1]).all(1).tolist()
    return {b: int(found[b, 0]) if same else found[b].long() for b, same in enumerate(alike)}


def write_(session: "Session", spot: Spot, update: Update) -> bool:
    """New weights, and a new bias where there is one, into the model; False where a bias would have to be there."""
    p = session.parameters[spot.use.name]
    rows = own_rows(spot.use, p.detach(), spot.rows)
    rows.copy_(update.w.reshape(rows.shape))
    if update.bias is None:
        return True
    if spot.use.bias is not None:
        session.parameters[spot.use.bias].detach()[spot.rows].copy_(update.bias)
    return spot.use.bias is not None


def chosen(group: Group, spot: Spot, layer: Layer, keep: Tensor, mask: Tensor) -> Tensor:
    """The group's mask as a reconstruction that selects by itself left it; written into the one that is given."""
    if layer.box is not None:
        kept, some = (f(keep[:, layer.box_columns], 2) for f in (torch.all, torch.any))
        if torch.equal(kept, some):
            mask[spot.rows] = kept
            return mask
    if group.members[0].tile is not None:
        raise StructureError(
            f"the units of {group.name} are boxes of a weight, and the reconstruction chose single ones: use one that "
            f"takes the mask as it is, or single weights (granularity=Element())"
        )
    if not layer.free:
        raise StructureError(f"the units of {group.name} are not {layer.name}'s alone to choose: take layer.keep")
    if group.elementwise:
        rows = own_rows(spot.use, mask.view(group.weight), spot.rows)
        rows.copy_(keep.reshape(rows.shape))
        return mask
    kept = torch.zeros(group.units, dtype=torch.bool, device=mask.device)
    kept[layer.unit[keep.any(0) & (layer.unit >= 0)]] = True
    return kept.reshape(mask.shape)
