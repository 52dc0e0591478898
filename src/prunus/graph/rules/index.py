"""Rules for looking up, writing to and routing rows: tables, gathers, scatters and masked writes.

An index names positions, so the axis along which it picks keeps its size; the other axes pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.graph.atoms import Plane, aligned, compress, match, varying
from prunus.graph.flow import Call, rule
from prunus.graph.rules.math import merge, pointwise, without


@rule("embedding")
def embedding(call: Call) -> None:
    """The rows of a table: the row axis is fixed, the other axis produces features."""
    table, picked = call.args[0], call.get(1, "indices")
    call.freeze(picked, "used as an index")
    call.give(call.out, [aligned(plane[0], call.out.dim()) for plane in _features(call, table)])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> None:
    """Sums, means or maxima of rows of a table."""
    for value in call.args[1:]:
        call.freeze(value, "used as an index or a weight of rows")
    call.give(call.outputs[0], _features(call, call.args[0]))


@rule("embedding_renorm")
def embedding_renorm(call: Call) -> None:
    """Rows that are too long are shortened in place, which depends on all their entries."""
    call.freeze(call.args[0], "scales rows by their norm")


def _features(call: Call, table: Tensor) -> list[Plane]:
    planes = []
    for plane in call.info(table).planes:
        if plane.shape[0] > 1:
            call.flow.atoms.freeze(plane, call.reason("its rows are looked up"))
        else:
            call.flow.play(plane, "out")
            planes.append(plane)
    return planes


@rule("masked_fill")
def masked_fill(call: Call) -> None:
    """A mask that is computed from a prunable tensor goes along with it."""
    pointwise(call)


@rule("index", "_unsafe_index")
def index(call: Call) -> None:
    """`x[i, :, j]`: fixed along the indexed axes; the values of the indices matter only where atoms lie along these."""
    tensor, indices = call.args[0], list(call.get(1, "indices"))
    dims: list[int] = []
    cursor = 0
    for entry in indices:
        call.freeze(entry, "used as an index")
        width = 1 if entry is None or not _is_mask(entry) else entry.dim()
        dims += () if entry is None else range(cursor, cursor + width)
        cursor += width
    planes = []
    for plane in call.info(tensor).planes:
        if len(dims) == 1 and plane.shape[dims[0]] > 1 and (ends := _named(call, indices, plane.shape[dims[0]])):
            for start, length in ends:
                call.flow.lengths.govern(plane.narrow(dims[0], start, length), dims[0], length)
        elif call.flow.atoms.fix(plane, dims, call.reason("picks positions")) is None:
            continue
        if all(plane.shape[d] == 1 for d in dims):
            planes.append(torch.ops.aten.index.Tensor(plane, _first(indices)))
        elif any(e is not None and e.is_meta for e in indices):
            call.flow.atoms.freeze(plane, call.reason("picks positions that are not known"))
        else:
            here = [None if e is None else e.cpu() for e in indices]
            planes.append(compress(torch.ops.aten.index.Tensor(plane.expand(tensor.shape), here)))
    call.give(call.out, planes, call.info(tensor).source)


def _named(call: Call, indices: list[Any], size: int) -> list[tuple[int, int]]:
    """What must stay of an axis (start, length) from which the code itself takes few positions, such as `x[:, [-1]]`.

    Positions are counted from the beginning, or from the end where they are negative. None if they are computed.
    """
    places = [entry for entry in indices if entry is not None]
    if len(places) != 1 or places[0].is_meta or _is_mask(places[0]) or not 0 < places[0].numel() < size:
        return []
    values = places[0].reshape(-1).tolist()
    known = call.flow.lengths.sizes_of(values)
    if known is None or any(type(v) is not int for v in known):
        return []
    head, tail = max(values) + 1, -min(values)
    return [(0, head)] * (head > 0) + [(size - tail, tail)] * (tail > 0)


def _is_mask(entry: Tensor) -> bool:
    return entry.dtype in (torch.bool, torch.uint8)


def _first(indices: list[Any]) -> list[Any]:
    """Indices of the same form that pick the first position (no index at all may be among the real ones)."""
    found: list[Any] = []
    for entry in indices:
        if entry is None:
            found.append(None)
        else:
            found += (
                [torch.zeros(1, dtype=torch.long)] * entry.dim()
                if _is_mask(entry)
                else [torch.zeros((1,) * entry.dim(), dtype=torch.long)]
            )
    return found


@rule("index_select")
def index_select(call: Call) -> None:
    """One axis is picked from."""
    tensor, dim, picked = call.args[0], call.get(1, "dim") % call.args[0].dim(), call.get(2, "index")
    call.freeze(picked, "used as an index")
    planes = []
    for plane in call.info(tensor).planes:
        if call.flow.atoms.fix(plane, [dim], call.reason("picks positions")) is None:
            continue
        if plane.shape[dim] == 1:
            planes.append(plane)
        elif picked.is_meta:
            call.flow.atoms.freeze(plane, call.reason("picks positions that are not known"))
        else:
            planes.append(compress(plane.expand(tensor.shape).index_select(dim, picked.cpu())))
    call.give(call.out, planes, call.info(tensor).source)


@rule("gather", "take_along_dim")
def gather(call: Call) -> None:
    """`out[..., i, ...] = x[..., index[..., i, ...], ...]`: fixed along `dim`, element by element elsewhere."""
    x, dim, index = call.args[0], call.get(1, "dim"), call.get(2, "index")
    if not isinstance(dim, int) or x.dim() != index.dim():
        for value in (x, index):
            call.freeze(value, "picks positions")
        call.give(call.out, [])
        return
    _same_extent(call, x, index, dim)
    planes, given = without(call, x, [dim], "picks positions"), without(call, index, [dim], "used as an index")
    for plane in [p for p in given if match(p, planes) is None]:
        if any(x.shape[d] > 1 for d in varying(plane)):  # fewer indices would take the first of what is there
            call.flow.atoms.freeze(plane, call.reason("meets a tensor of fixed size"))
    call.give(call.out, _joined(call, [*planes, *given]))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> None:
    """The inverse of `gather`; `src` and what it is written into tie outside `dim`."""
    x, dim, index, src = call.args[0], call.get(1, "dim"), call.get(2, "index"), call.get(3, "src")
    if x.dim() != index.dim():
        for value in (x, index, src):
            call.freeze(value, "writes positions")
        call.give(call.out, [])
        return
    sides = [x, index] + ([src] if isinstance(src, Tensor) and src.dim() == x.dim() else [])
    for value in sides[1:]:
        _same_extent(call, x, value, dim)
    kept = [without(call, value, [dim], "writes positions") for value in sides]
    if len(sides) == 3:
        _meet(call, kept[0], sides[0], kept[2], sides[2], dim)
    call.give(call.out, _joined(call, [plane for own in kept for plane in own]))


@rule("index_add", "index_copy", "index_reduce")
def index_add(call: Call) -> None:
    """Rows of `src` are added to rows of `x`: fixed along `dim`, element by element elsewhere."""
    x, dim, index, src = call.args[0], call.get(1, "dim"), call.get(2, "index"), call.get(3, "source")
    call.freeze(index, "used as an index")
    kept = [without(call, value, [dim], "writes positions") for value in (x, src)]
    _meet(call, kept[0], x, kept[1], src, dim)
    call.give(call.out, _joined(call, [*kept[0], *kept[1]]))


@rule("index_fill")
def index_fill(call: Call) -> None:
    """A constant is written to some rows."""
    call.freeze(call.get(2, "index"), "used as an index")
    call.give(call.out, without(call, call.args[0], [call.get(1, "dim")], "writes positions"))


@rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> None:
    """Writes where indices say: along their axes nothing is removed, elsewhere the values tie.

    A mask of the shape of the tensor itself (`y[y < 0] = 0`) is a choice element by element.
    """
    x, indices, values = call.args[0], list(call.get(1, "indices")), call.get(2, "values")
    if len(indices) == 1 and indices[0].shape == x.shape and values.numel() == 1:
        call.give(call.out, merge(call, [x, indices[0]], x.dim()), call.info(x).source)
        return
    dims: list[int] = []
    cursor = 0
    for entry in indices:
        if entry is None:
            cursor += 1
            continue
        call.freeze(entry, "used as an index")
        width = entry.dim() if _is_mask(entry) else 1
        dims += range(cursor, cursor + width)
        cursor += width
    planes = without(call, x, dims, "writes positions")
    rest = [d for d in range(x.dim()) if d not in dims]
    if dims != list(range(len(dims))):
        # Values lie in another order; what is said of them is said of the axes behind the indices only.
        for plane in (*planes, *call.info(values).planes):
            call.flow.atoms.freeze(plane, call.reason("writes positions"))
        call.give(call.out, [])
        return
    written = without(call, values, list(range(max(values.dim() - len(rest), 0))), "writes positions")
    short = [p.reshape(p.shape[max(p.dim() - len(rest), 0) :]) for p in written]
    kept = [p.reshape([p.shape[d] for d in rest]) for p in planes]
    tail = values.shape[max(values.dim() - len(rest), 0) :]
    own = [aligned(p, len(rest)) for p in short]
    _tie_all(call, kept, [x.shape[d] for d in rest], own, [1] * (len(rest) - len(tail)) + list(tail))
    call.give(call.out, planes)


def _same_extent(call: Call, x: Tensor, other: Tensor, dim: int) -> None:
    """Where the other tensor covers only the beginning of an axis, this axis is fixed."""
    for d in range(x.dim()):
        if d != dim % x.dim() and x.shape[d] != other.shape[d]:
            for value in (x, other):
                without(call, value, [d], "covers a part of this axis")


def _meet(call: Call, a: list[Plane], x: Tensor, b: list[Plane], y: Tensor, dim: int) -> None:
    sizes = [[1 if d == dim % t.dim() else n for d, n in enumerate(t.shape)] for t in (x, y)]
    _tie_all(call, a, sizes[0], b, sizes[1])


def _tie_all(call: Call, a: list[Plane], a_shape: Any, b: list[Plane], b_shape: Any) -> None:
    """Planes of two tensors that meet element by element; one whose axes are fixed in the other is frozen."""
    why = call.reason("meets a tensor of fixed size")
    for own, others, shape in ((a, b, b_shape), (b, a, a_shape)):
        for plane in own:
            found = match(plane, others)
            if found is not None:
                call.flow.atoms.tie(plane, others[found], why)
            elif any(shape[d] > 1 for d in varying(plane)):
                call.flow.atoms.freeze(plane, why)


def _joined(call: Call, planes: list[Plane]) -> list[Plane]:
    """One plane per axis: those that speak of the same axes tie."""
    kept: list[Plane] = []
    for plane in planes:
        found = match(plane, kept)
        if found is None:
            kept.append(plane)
        else:
            call.flow.atoms.tie(plane, kept[found], call.reason("meets a tensor of fixed size"))
    return kept
