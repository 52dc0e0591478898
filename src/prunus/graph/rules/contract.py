"""Rules for contractions: matrix products and convolutions. Contracted axes tie, outer axes pass."""

from __future__ import annotations

from math import prod

from torch import Tensor

from prunus.graph.atoms import Plane, alike, match, overlap, varying
from prunus.graph.flow import Call, rule
from prunus.graph.rules.attention import lift, multiply
from prunus.graph.rules.math import tie_vector, without
from prunus.graph.rules.move import source_of

_FIXED = "contracted with a tensor of fixed size"


def contract(call: Call, a: Tensor, b: Tensor, la: str, lb: str, lo: str) -> list[Plane]:
    """`einsum(la,lb->lo)` on planes; returns the planes of the output."""
    atoms = call.flow.atoms
    every = "".join(dict.fromkeys(la + lb))
    sizes = dict(zip(la + lb, (*a.shape, *b.shape), strict=True))
    sides = [(a, la), (b, lb)]
    weights = [call.info(t).source is not None for t, _ in sides]
    macs = prod(sizes.values())
    batched = "".join(c for c in la if c in lb and c in lo)
    source = call.info(b if weights[1] else a).source
    call.flow.count(source, macs)
    if source is None or any(_headed(call, t, letters, batched) for t, letters in sides):
        for (tensor, letters), own in zip(sides, weights, strict=True):
            for plane in call.info(tensor).planes if own and not all(weights) else ():
                inside = any(letters[d] not in lo for d in varying(plane))
                call.flow.play(plane, "in" if inside else "out")
        return multiply(call, a, b, la, lb, lo, batched)
    inner = [i for i, letter in enumerate(every) if letter in la and letter in lb and letter not in lo]
    batch = [i for i, letter in enumerate(every) if letter in la and letter in lb and letter in lo]
    contracted: list[list[Plane]] = [[], []]
    outer: list[list[Plane]] = [[], []]
    for side, (tensor, letters) in enumerate(sides):
        for plane in call.info(tensor).planes:
            lifted = lift(plane, letters, every)
            if any(lifted.shape[i] > 1 for i in inner):
                rest = [i for i in range(len(every)) if i not in inner]
                fixed = atoms.fix(lifted, rest, call.reason("part of a reshaped axis is contracted"))
                assert fixed is not None
                contracted[side].append(fixed)
                if weights[side]:
                    call.flow.play(fixed, "in")
            else:
                outer[side].append(lifted)
                if weights[side] and not all(weights):
                    call.flow.play(lifted, "out")
    _tie_sides(call, contracted)
    given = []
    for side in (0, 1):
        for plane in outer[side]:
            shared = [i for i in batch if plane.shape[i] > 1]
            found = match(plane, outer[1 - side]) if shared else None
            if shared and found is None:
                atoms.freeze(plane, call.reason(_FIXED))
                continue
            if found is not None:
                atoms.tie(plane, outer[1 - side][found], call.reason(_FIXED))
                if side == 1:
                    continue
            given.append(
                plane.permute([every.index(c) for c in lo] + inner).reshape([plane.shape[every.index(c)] for c in lo])
            )
    return given


def _headed(call: Call, tensor: Tensor, letters: str, batched: str) -> bool:
    """Whether it is an axis taken apart that lies along the batched axes and others: heads, also of a parameter."""
    dims = [{letters[d] in batched for d in varying(plane)} for plane in call.info(tensor).planes]
    return any(len(kinds) == 2 for kinds in dims)


def _tie_sides(call: Call, sides: list[list[Plane]]) -> None:
    for side in (0, 1):
        for plane in sides[side]:
            others = [q for q in sides[1 - side] if overlap(plane, q)]
            if len(others) > 1:  # several axes flattened into one, each with its own plane
                others = [q for q in others if alike(plane, q)] or others
            if not others:
                call.flow.atoms.freeze(plane, call.reason(_FIXED))
            for q in others:
                call.flow.atoms.tie(plane, q, call.reason(_FIXED))


def _product(call: Call, a: Tensor, b: Tensor, la: str, lb: str, lo: str, bias: Tensor | None = None) -> None:
    planes = contract(call, a, b, la, lb, lo)
    out = call.out
    if bias is not None and bias.dim() > 0:
        planes = _add_bias(call, planes, bias, out.dim())
    call.give(out, planes, source_of(call, a, b))


def _add_bias(call: Call, planes: list[Plane], bias: Tensor, ndim: int) -> list[Plane]:
    kept = []
    shape = (1,) * (ndim - bias.dim()) + tuple(bias.shape)
    info = call.info(bias)
    own = [p.reshape((1,) * (ndim - p.dim()) + tuple(p.shape)) for p in info.planes]
    for plane in planes:
        full = [d for d in range(ndim) if plane.shape[d] > 1 and shape[d] > 1]
        found = match(plane, own)
        if found is not None:
            call.flow.atoms.tie(plane, own[found], call.reason("a bias of fixed size"))
            if info.source is not None:
                call.flow.play(own[found], "bias")
        elif full:
            call.flow.atoms.freeze(plane, call.reason("a bias of fixed size"))
            continue
        kept.append(plane)
    for plane in own:
        if match(plane, planes) is None:
            call.flow.atoms.freeze(plane, call.reason("added to an axis of fixed size"))
    return kept


@rule("mm")
def mm(call: Call) -> None:
    _product(call, call.args[0], call.args[1], "nk", "km", "nm")


@rule("addmm")
def addmm(call: Call) -> None:
    _product(call, call.args[1], call.args[2], "nk", "km", "nm", call.args[0])


@rule("bmm")
def bmm(call: Call) -> None:
    _product(call, call.args[0], call.args[1], "bnk", "bkm", "bnm")


@rule("baddbmm")
def baddbmm(call: Call) -> None:
    _product(call, call.args[1], call.args[2], "bnk", "bkm", "bnm", call.args[0])


@rule("_grouped_mm", "grouped_mm")
def grouped_mm(call: Call) -> None:
    """`[tokens, in] x [experts, in, out]`: rows of the first are multiplied with the matrix of their expert.

    Neurons are one unit across all experts, because their matrices lie in one tensor.
    """
    x, weight = call.args[:2]
    info = call.info(weight)
    if x.dim() != 2 or weight.dim() != 3:
        call.freeze(x, "a form of grouped product that is not known")
        call.freeze(weight, "a form of grouped product that is not known")
        call.give(call.out, [])
        return
    flat = weight[0]
    planes = without(call, weight, [0], "the number of experts is fixed")
    call.flow.record(flat, [p[0] for p in planes], info.source)
    _product(call, x, flat, "nk", "km", "nm")
    for plane in (*call.info(x).planes, *call.info(call.out).planes):  # rows must begin at multiples of 16 bytes
        call.flow.require(plane, max(1, 16 // weight.element_size()))


@rule("mv")
def mv(call: Call) -> None:
    _product(call, call.args[0], call.args[1], "nk", "k", "n")


@rule("addmv")
def addmv(call: Call) -> None:
    _product(call, call.args[1], call.args[2], "nk", "k", "n", call.args[0])


@rule("dot", "vdot")
def dot(call: Call) -> None:
    _product(call, call.args[0], call.args[1], "k", "k", "")


@rule("linear")
def linear(call: Call) -> None:
    tensor, weight = call.args[0], call.args[1]
    free = "abcdefgh"[: tensor.dim() - 1]
    _product(
        call, tensor, weight, free + "k", "mk"[-weight.dim() :], free + "m"[: weight.dim() - 1], call.get(2, "bias")
    )


@rule("convolution", "cudnn_convolution", "mkldnn_convolution", "_convolution")
def convolution(call: Call) -> None:
    """`[out, in/groups, *kernel]` (transposed: `[in, out/groups, *kernel]`).

    groups = 1: inputs tie with the contracted axis. One channel per group: input, filter and output are one unit and
    `groups` shrinks. In between: the same offsets in all groups are one unit and `groups` stays.
    """
    atoms = call.flow.atoms
    x, weight, bias = call.args[0], call.args[1], call.get(2, "bias")
    transposed, groups = bool(call.get(6, "transposed")), int(call.get(8, "groups"))
    info = call.info(weight)
    spatial = x.shape if transposed else call.out.shape
    call.flow.count(info.source, weight.numel() * x.shape[0] * prod(spatial[2:]))
    entering = without(call, x, [d for d in range(x.dim()) if d != 1], "slides over this axis")
    for extra in entering[1:]:
        atoms.freeze(extra, call.reason("units of two kinds lie along one axis"))
    inputs = entering[0].reshape(-1) if entering else None
    kernel = _flat_axes(call, weight)
    leading, second = kernel.get(0), kernel.get(1)
    if info.source is None:
        for tensor in (x, weight):
            call.freeze(tensor, "the kernel is no parameter")
        call.give(call.out, [])
        return
    in_axis, out_axis = (leading, second) if transposed else (second, leading)
    channels, per_group = x.shape[1], x.shape[1] // groups
    if per_group == 1 and groups > 1:
        outputs = _depthwise(call, inputs, leading, second, channels, call.out.shape[1], transposed)
    else:
        if inputs is not None and groups > 1:
            _same_offsets(call, inputs, groups)
        if transposed and in_axis is not None and groups > 1:
            _same_offsets(call, in_axis, groups)
        elif in_axis is not None and groups > 1:
            in_axis = in_axis.repeat(groups)
        if out_axis is not None and groups > 1:
            if transposed:
                out_axis = out_axis.repeat(groups)
            else:
                _same_offsets(call, out_axis, groups)
        _tie_or_freeze(call, inputs, in_axis)
        outputs = out_axis
        if in_axis is not None:
            call.flow.play(in_axis, "in")
    if outputs is None:
        if isinstance(bias, Tensor):
            call.freeze(bias, _FIXED)
        call.give(call.out, [])
        return
    call.flow.play(outputs if leading is None or per_group > 1 or groups == 1 else leading, "out", "channel")
    plane = outputs.reshape(1, -1, *(1,) * (call.out.dim() - 2))
    if isinstance(bias, Tensor):
        tie_vector(call, plane, 1, bias, "bias")
    call.give(call.out, [plane])


def _flat_axes(call: Call, weight: Tensor) -> dict[int, Plane]:
    """The atoms along the first and the second axis of a kernel; those along its spatial axes are frozen."""
    axes: dict[int, Plane] = {}
    for plane in call.info(weight).planes:
        fixed = call.flow.atoms.fix(plane, range(2, weight.dim()), call.reason("the extent of a kernel is fixed"))
        if fixed is None:
            continue
        dim = 0 if fixed.shape[0] > 1 else 1
        if dim in axes or (fixed.shape[0] > 1 and fixed.shape[1] > 1):
            call.flow.atoms.freeze(fixed, call.reason("units of two kinds lie along one axis"))
            continue
        axes[dim] = fixed.reshape(-1)
    return axes


def _same_offsets(call: Call, axis: Plane, groups: int) -> None:
    if axis.numel() > 1:
        call.flow.atoms.fix(axis.reshape(groups, -1), [0], call.reason("the number of groups is fixed"))


def _tie_or_freeze(call: Call, a: Plane | None, b: Plane | None) -> None:
    if a is not None and b is not None:
        call.flow.atoms.tie(a, b, call.reason(_FIXED))
        return
    for plane in (a, b):
        if plane is not None:
            call.flow.atoms.freeze(plane, call.reason(_FIXED))


def _depthwise(
    call: Call,
    inputs: Plane | None,
    leading: Plane | None,
    second: Plane | None,
    channels: int,
    out: int,
    transposed: bool,
) -> Plane | None:
    """One input channel per group: it owns `out / channels` outputs."""
    if second is not None and second is not leading:
        call.flow.atoms.freeze(second, call.reason("the outputs of a group are fixed"))
    if leading is None:
        _tie_or_freeze(call, inputs, None)
        return None
    if inputs is None:
        call.flow.atoms.freeze(leading, call.reason(_FIXED))
        return None
    repeated = inputs.repeat_interleave(out // channels)
    call.flow.atoms.tie(inputs if transposed else repeated, leading, call.reason(_FIXED))
    return repeated if transposed else leading
