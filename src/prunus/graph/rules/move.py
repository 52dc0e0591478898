"""Rules for operations that move data: they are run on the planes themselves.

Where an operation names positions along an axis (a slice, a split, a selection), removing other positions would shift
what it takes. Such axes are tied into equal parts where that keeps the operation right, and frozen otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.graph.atoms import Plane, compress, first, varying
from prunus.graph.flow import Call, rule
from prunus.graph.sizes import Size


def source_of(call: Call, *values: Any) -> str | None:
    """The first parameter behind the operands if all of them are computed from parameters alone."""
    sources = [call.info(v).source for v in values]
    return sources[0] if sources and all(s is not None for s in sources) else None


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "reshape_copy", "_reshape_copy")
def view(call: Call) -> None:
    tensor, shape = call.args[0], tuple(call.out.shape)
    if tensor.numel() != call.out.numel():  # a view of other numbers (`view.dtype`)
        call.freeze(tensor, "reads the bytes as another type")
        call.give(call.out, [])
        return
    # Not a view of the plane, whose constant axes have no memory behind them.
    moved = call.flow.run_on_planes(call, tensor, lambda plane: plane.reshape(shape))
    call.give(call.out, moved[0] if moved else [], call.info(tensor).source)


@rule(
    "permute", "transpose", "t", "numpy_T", "unsqueeze", "squeeze", "expand", "alias", "flip", "movedim", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "permute_copy",
)  # fmt: skip
def move(call: Call) -> None:
    tensor = call.args[0]
    rest, kwargs = call.args[1:], call.kwargs
    moved = call.flow.run_on_planes(call, tensor, lambda plane: call.func(plane, *rest, **kwargs))
    call.give(call.out, moved[0] if moved else [], call.info(tensor).source)


@rule(
    "detach", "clone", "contiguous", "_to_copy", "lift_fresh", "lift", "zeros_like", "ones_like", "full_like",
    "rand_like", "randn_like", "empty_like", "detach_copy", "alias_copy", "masked_fill", "bernoulli", "dropout",
    "native_dropout",
    "fill", "zero", "_conj", "resolve_conj", "resolve_neg", "nan_to_num", "normal", "uniform", "lift_fresh_copy",
)  # fmt: skip
def keep(call: Call) -> None:
    tensor = call.args[0]
    for other in call.args[1:]:
        if isinstance(other, Tensor) and call.info(other).planes:
            call.freeze(other, "a mask of fixed size lies over this axis")
    info = call.info(tensor)
    for out in call.outputs:
        planes = list(info.planes) if out.shape == tensor.shape else []
        if not planes:
            call.freeze(tensor, "the shape changes")
        if call.name == "masked_fill":
            mask = call.get(1, "mask")
            planes = _not_along(call, planes, mask)
        call.give(out, planes, None if call.name in _FRESH else info.source)


# These take the shape of their input, not its values.
_FRESH = frozenset(f"{kind}_like" for kind in ("zeros", "ones", "full", "rand", "randn", "empty")) | {
    "bernoulli",
    "normal",
    "uniform",
}


def _not_along(call: Call, planes: list[Plane], mask: Any) -> list[Plane]:
    """Freeze the planes along whose axes a mask of fixed size lies."""
    kept = []
    for plane in planes:
        if isinstance(mask, Tensor) and any(
            d >= plane.dim() - mask.dim() and mask.shape[d - plane.dim()] > 1 for d in varying(plane)
        ):
            call.flow.atoms.freeze(plane, call.reason("a mask lies along this axis"))
        else:
            kept.append(plane)
    return kept


def _in_parts(call: Call, tensor: Tensor, dim: int, parts: int, inner: bool, why: str) -> list[Plane]:
    """The planes of a tensor whose axis `dim` consists of `parts` equal parts of which the same positions stay.

    `inner` says whether the parts interleave (every parts-th position) instead of following each other.
    """
    planes = []
    for plane in call.info(tensor).planes:
        if plane.shape[dim] == 1:
            planes.append(plane)
            continue
        size = plane.shape[dim]
        lying = (size // parts, parts) if inner else (parts, size // parts)
        split = plane.unflatten(dim, lying)
        fixed = call.flow.atoms.fix(split, [dim + 1 if inner else dim], call.reason(why))
        if fixed is not None:
            planes.append(plane)
    return planes


def _without(call: Call, tensor: Tensor, dim: int, why: str) -> list[Plane]:
    """The planes of a tensor whose axis `dim` keeps its size."""
    fixed = [call.flow.atoms.fix(plane, [dim], call.reason(why)) for plane in call.info(tensor).planes]
    return [plane for plane in fixed if plane is not None]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> None:
    tensor, groups = call.args[0], call.get(1, "groups")
    planes = _in_parts(call, tensor, 1, groups, False, "the number of groups is fixed")
    mixed = [p.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2) if p.shape[1] > 1 else p for p in planes]
    call.give(call.out, mixed)


@rule("slice")
def slice_(call: Call) -> None:
    tensor = call.args[0]
    dim = call.get(1, "dim", 0) % tensor.dim()
    size = tensor.shape[dim]
    start, stop = call.get(2, "start"), call.get(3, "end")
    step = call.get(4, "step", 1)
    start = 0 if start is None else max(start + size if start < 0 else start, 0)
    stop = size if stop is None else min(max(stop + size if stop < 0 else stop, 0), size)
    length = stop - start
    why = f"takes positions {start}:{stop}" + (f":{step}" if step > 1 else "") + f" of {size}"
    bounds = [v for v in (start, stop) if 0 < v < size] if step == 1 else []
    raw_stop = call.get(3, "end")
    tail = raw_stop if isinstance(raw_stop, int) and raw_stop < 0 and start == 0 and step == 1 else 0
    known = _bounds(call, [tail] if tail else bounds)
    if start == 0 and length == size and step == 1:
        planes = list(call.info(tensor).planes)
    elif known is not None and tail and not isinstance(known[0], Size):
        planes = list(call.info(tensor).planes)
        for plane in [p for p in planes if p.shape[dim] > 1]:
            call.flow.lengths.govern(plane.narrow(dim, size + tail, -tail), dim, -tail)
    elif known is not None and not tail:
        planes = list(call.info(tensor).planes)
        for plane in [p for p in planes if p.shape[dim] > 1]:
            for bound in known:
                call.flow.lengths.govern(plane.narrow(dim, 0, int(bound)), dim, bound)
    elif step > 1 and start < step and stop == size and size % step == 0:
        planes = _in_parts(call, tensor, dim, step, True, why)
    elif step == 1 and length > 0 and size % length == 0 and start % length == 0:
        planes = _in_parts(call, tensor, dim, size // length, False, why)
    else:
        planes = _without(call, tensor, dim, why)
    taken = [_part(p, tensor, dim, slice(start, stop, step)) for p in planes]
    call.give(call.out, taken, call.info(tensor).source)


def _part(plane: Plane, tensor: Tensor, dim: int, positions: slice) -> Plane:
    """Some positions along one axis of a tensor (perhaps none: an expert that no token was sent to)."""
    if plane.shape[dim] == 1:
        return plane
    return compress(plane.expand(tensor.shape)[(slice(None),) * dim + (positions,)])


def _bounds(call: Call, values: list[int]) -> list[int] | None:
    """The bounds of a slice where it is known what they measure, or that they are numbers in the code."""
    found = call.flow.lengths.sizes_of(values) if values else None
    if found is None or any(isinstance(v, Size) and v.free() for v in found):
        return None
    return found


@rule("as_strided")
def as_strided(call: Call) -> None:
    """Other steps for axes of length one: pooling to one pixel marks its output as channels-last so."""
    tensor, shape, steps = call.args[0], tuple(call.args[1]), tuple(call.args[2])
    dense = 1
    for size, step in reversed([pair for pair in zip(shape, steps, strict=True) if pair[0] > 1]):
        if step != dense:
            break
        dense *= size
    # Shape and order of the entries are what they were: all of them, the last axis first.
    held = tensor.untyped_storage().nbytes() // tensor.itemsize
    if shape != tuple(tensor.shape) or not dense == tensor.numel() == held:
        call.freeze(tensor, "steps through memory in its own way")
        call.give(call.out, [])
    else:
        call.give(call.out, list(call.info(tensor).planes), call.info(tensor).source)


@rule("select")
def select(call: Call) -> None:
    tensor = call.args[0]
    dim, index = call.get(1, "dim") % tensor.dim(), call.get(2, "index")
    why = call.reason("takes one position")
    planes = []
    for plane in call.info(tensor).planes:
        if varying(plane) == (dim,):
            call.flow.owe(call.out, plane, why)
        elif call.flow.atoms.fix(plane, [dim], why) is not None:
            planes.append(plane)
    call.give(call.out, [compress(p.expand(tensor.shape).select(dim, index)) for p in planes], call.info(tensor).source)


def _fixed_along(call: Call, tensor: Tensor, dim: int, why: str) -> list[Plane]:
    """The original planes (with their own atoms along `dim`) that survive the wish that `dim` keeps its size."""
    return [
        plane for plane in call.info(tensor).planes if call.flow.atoms.fix(plane, [dim], call.reason(why)) is not None
    ]


@rule("unbind")
def unbind(call: Call) -> None:
    tensor = call.args[0]
    dim = call.get(1, "dim", 0) % tensor.dim()
    planes = _fixed_along(call, tensor, dim, "the code takes every position along this axis on its own")
    for i, out in enumerate(call.out):
        call.give(out, [compress(p.expand(tensor.shape).select(dim, i)) for p in planes], call.info(tensor).source)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def split(call: Call) -> None:
    tensor = call.args[0]
    dim = call.get(2, "dim", 0) % tensor.dim()
    sizes = [out.shape[dim] for out in call.out]
    why = f"splits {tensor.shape[dim]} positions into {sizes}"
    known = call.flow.lengths.sizes_of(sizes)
    if known is None and len(set(sizes)) == 1 and (every := call.flow.lengths.sizes_of(sizes[:1])) is not None:
        known = every * len(sizes)
    if len(sizes) == 1:
        planes = list(call.info(tensor).planes)
    elif known is not None and _leaves_one_free(known):
        planes = list(call.info(tensor).planes)
        for plane in [p for p in planes if p.shape[dim] > 1]:
            start = 0
            for part in known:
                if not (isinstance(part, Size) and part.free()):
                    call.flow.lengths.govern(plane.narrow(dim, start, int(part)), dim, part)
                start += int(part)
    elif len(set(sizes)) == 1:
        planes = _in_parts(call, tensor, dim, len(sizes), False, why)
    else:
        planes = _without(call, tensor, dim, why)
    start = 0
    for out, size in zip(call.out, sizes, strict=True):
        taken = [_part(p, tensor, dim, slice(start, start + size)) for p in planes]
        call.give(out, taken, call.info(tensor).source)
        start += size


def _leaves_one_free(parts: list[int]) -> bool:
    """Whether it is known what each part of a split measures, but for one that can be the rest."""
    free = [isinstance(v, Size) and v.free() for v in parts]
    named = [isinstance(v, Size) and v.target is not None for v in parts]
    return not any(free) or (sum(free) == 1 and all(f or n for f, n in zip(free, named, strict=True)))


@rule("glu")
def glu(call: Call) -> None:
    tensor = call.args[0]
    dim = call.get(1, "dim", -1) % tensor.dim()
    planes = _in_parts(call, tensor, dim, 2, False, "halves")
    call.give(call.out, [p.narrow(dim, 0, p.shape[dim] // 2) if p.shape[dim] > 1 else p for p in planes])


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> None:
    dim = call.get(1, "dim", 0)
    # Empty parts may be without atoms (one-dimensional ones fit anything, a legacy rule of PyTorch).
    parts = [t for t in call.args[0] if t.dim() == call.out.dim() and (t.shape[dim] > 0 or call.info(t).planes)]
    _join(call, parts, [call.info(t).planes for t in parts], dim % call.out.dim(), [tuple(t.shape) for t in parts])


@rule("stack")
def stack(call: Call) -> None:
    dim = call.get(1, "dim", 0) % call.out.dim()
    planes = [tuple(p.unsqueeze(dim) for p in call.info(t).planes) for t in call.args[0]]
    shapes = [(*t.shape[:dim], 1, *t.shape[dim:]) for t in call.args[0]]
    _join(call, list(call.args[0]), planes, dim, shapes)


def _join(
    call: Call, parts: list[Tensor], planes: list[tuple[Plane, ...]], dim: int, shapes: list[tuple[int, ...]]
) -> None:
    """Concatenate along `dim`: planes that lie over the same other axes continue each other, or freeze."""
    why = "joined with a part of fixed size"
    atoms = call.flow.atoms
    plain = [[p for p in own if varying(p) in ((), (dim,))] for own in planes]
    across = [[p for p in own if varying(p) not in ((), (dim,))] for own in planes]
    given: list[Plane] = []
    while any(across):
        first_of = next(own[0] for own in across if own)
        others = set(varying(first_of)) - {dim}
        row: list[Plane | None] = []
        for own in across:
            found = next((p for p in own if set(varying(p)) & others), None)
            own[:] = [p for p in own if p is not found]
            row.append(found)
        if all(p is not None for p in row):
            if all(p is not None and p.shape[dim] == 1 for p in row):
                for p in row[1:]:
                    atoms.tie(first_of, p, call.reason(why))  # type: ignore[arg-type]
                given.append(first_of)
            else:
                given.append(_strung([[p] if p is not None else [] for p in row], shapes, dim))
            continue
        for i, plane in enumerate(row):
            # Along the other axes some part has no atoms, so these are fixed; what varies along `dim` alone is left.
            fixed = None if plane is None else atoms.fix(plane, others, call.reason(why))
            if fixed is not None:
                plain[i].append(fixed)
    if any(plain):
        for own in plain:
            for extra in own[1:]:
                atoms.freeze(extra, call.reason("units of two kinds lie along one axis"))
        given.append(_strung(plain, shapes, dim))
    source = source_of(call, *parts)
    for info in (call.info(part) for part in parts):
        for plane in info.planes if source is None and info.source is not None else ():
            call.flow.play(plane, "bias")  # a learned token beside computed ones: masked, it is zero like these
    call.give(call.out, given, source)


def _strung(planes: list[list[Plane]], shapes: list[tuple[int, ...]], dim: int) -> Plane:
    """The first plane of each part one after the other along `dim`; a part without any has no atoms."""
    pieces = [
        own[0].expand(shape) if own else torch.zeros((), dtype=torch.long).expand(shape)
        for own, shape in zip(planes, shapes, strict=True)
    ]
    # Broadcast axes are shrunk before joining, so that large activations cost nothing.
    small = [d for d in range(len(shapes[0])) if d != dim and all(p.stride(d) == 0 for p in pieces)]
    return compress(torch.cat([first(p, small) for p in pieces], dim))


@rule("constant_pad_nd")
def pad(call: Call) -> None:
    tensor, amounts = call.args[0], list(call.get(1, "pad"))
    given = call.flow.lengths.sizes_of(amounts) or amounts
    planes = []
    for plane in call.info(tensor).planes:
        padded = plane
        for i in range(len(amounts) // 2):
            dim = tensor.dim() - 1 - i
            low, high = amounts[2 * i : 2 * i + 2]
            if plane.shape[dim] == 1 or (low == 0 and high == 0):
                continue
            if low < 0 or high < 0:
                call.flow.atoms.freeze(plane, call.reason(f"cuts {low}, {high} positions off"))
                padded = torch.zeros_like(padded)
                break
            before, after = _filler(call, given[2 * i], low), _filler(call, given[2 * i + 1], high)
            lying = [1] * padded.dim()
            pieces = []
            for filler, size in ((before, low), (after, high)):
                lying[dim] = size
                shape = [size if d == dim else s for d, s in enumerate(padded.shape)]
                pieces.append(filler.reshape(lying).expand(shape))
            padded = torch.cat([pieces[0], padded, pieces[1]], dim)
        planes.append(padded)
    call.give(call.out, planes, None)


def _filler(call: Call, amount: int, size: int) -> Plane:
    """The atoms of padded zeros: those of the integer that a module keeps; of a number in the code there are none."""
    if isinstance(amount, Size) and not amount.free() and (atoms := amount.atoms()) is not None:
        return atoms
    return torch.zeros(size, dtype=torch.long)


@rule("roll")
def roll(call: Call) -> None:
    tensor = call.args[0]
    shifts, dims = call.get(1, "shifts"), call.get(2, "dims", [])
    dims = [dims] if isinstance(dims, int) else list(dims)
    planes = list(call.info(tensor).planes)
    if not dims:
        call.freeze(tensor, "rolls the flattened tensor")
        planes = []
    for dim in dims:
        planes = [p for p in planes if call.flow.atoms.fix(p, [dim % tensor.dim()], call.reason("rolls")) is not None]
    call.give(call.out, [compress(torch.roll(p.expand(tensor.shape), shifts, dims)) for p in planes])
