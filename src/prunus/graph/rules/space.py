"""Rules for what acts over space and frequency: folds, unpooling, turns, Fourier transforms and complex numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.graph.atoms import Plane, compress, varying
from prunus.graph.flow import Call, rule
from prunus.graph.rules.math import merge, without


@rule("rot90")
def turn(call: Call) -> None:
    """A transposition and a flip."""
    tensor, rest, kwargs = call.args[0], call.args[1:], call.kwargs
    moved = call.flow.run_on_planes(call, tensor, lambda plane: call.func(plane, *rest, **kwargs))
    call.give(call.out, moved[0] if moved else [], call.info(tensor).source)


@rule("col2im")
def fold(call: Call) -> None:
    """`[..., channels * kernel, blocks]` to `[..., channels, height, width]`: a channel owns its whole kernel."""
    tensor, out = call.args[0], call.out
    channels, size = out.shape[-3], tensor.shape[-2]
    planes = []
    for plane in without(call, tensor, [-1], "puts windows together"):
        if plane.shape[-2] == 1:
            planes.append(plane.unsqueeze(-1))
            continue
        split = plane.unflatten(-2, (channels, size // channels))
        fixed = call.flow.atoms.fix(split, [split.dim() - 2], call.reason("puts windows together"))
        if fixed is not None:
            planes.append(fixed)
    call.give(out, planes)


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> None:
    """Values go back to where the largest ones came from, channel by channel."""
    tensor, index = call.args[:2]
    space = [-1 - i for i in range(2 if call.name == "max_unpool2d" else 3)]
    for value in (tensor, index):
        without(call, value, space, "slides over this axis")
    planes = [p for p in merge(call, [tensor, index], tensor.dim()) if all(p.shape[d] == 1 for d in space)]
    call.give(call.out, planes)


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(call: Call) -> None:
    """Every coefficient depends on all positions along the transformed axes."""
    tensor = call.args[0]
    planes = without(call, tensor, list(call.get(1, "dim")), "transforms along a prunable axis")
    call.give(call.out, planes, call.info(tensor).source)


@rule("view_as_complex")
def as_complex(call: Call) -> None:
    """Real and imaginary part, the last axis, become one number."""
    tensor = call.args[0]
    planes = without(call, tensor, [-1], "joins real and imaginary parts")
    call.give(call.out, [p.squeeze(-1) for p in planes], call.info(tensor).source)


@rule("view_as_real", "_neg_view")
def as_real(call: Call) -> None:
    """One number becomes its real and imaginary part, along a new last axis."""
    tensor = call.args[0]
    planes = list(call.info(tensor).planes)
    if call.out.dim() > tensor.dim():
        planes = [p.unsqueeze(-1) for p in planes]
    call.give(call.out, planes, call.info(tensor).source)


@rule("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
def new(call: Call) -> None:
    """A tensor that takes only type and device from another.

    PyTorch's own code (circular padding) makes its results with `new_empty` and writes into them, with the axes of the
    tensor that it is given wherever the size is the same.
    """
    tensor, out = call.args[0], call.out
    planes: list[Plane] = []
    if call.name == "new_empty" and out.dim() == tensor.dim():
        same = [d for d in range(out.dim()) if out.shape[d] == tensor.shape[d]]
        planes = [p for p in call.info(tensor).planes if set(varying(p)) <= set(same)]
    call.give(out, planes)


@rule("_cdist_forward", "_pdist_forward", "_euclidean_dist")
def distances(call: Call) -> None:
    """All features enter every distance."""
    for value in _tensors(call):
        call.freeze(value, "a distance runs over this axis")
    call.give(call.out, [])


def _tensors(call: Call) -> list[Any]:
    return [v for v in call.args if isinstance(v, Tensor)]


@rule("unfold")
def unfold(call: Call) -> None:
    tensor, dim = call.args[0], call.get(1, "dimension") % call.args[0].dim()
    planes = without(call, tensor, [dim], "windows over this axis")
    size, step = call.get(2, "size"), call.get(3, "step")
    call.give(call.out, [compress(p.expand(tensor.shape).unfold(dim, size, step)) for p in planes])


@rule("im2col")
def im2col(call: Call) -> None:
    tensor = call.args[0]
    kernel = call.out.shape[-2] // tensor.shape[-3]
    planes = []
    for plane in call.info(tensor).planes:
        fixed = call.flow.atoms.fix(plane, [tensor.dim() - 1, tensor.dim() - 2], call.reason("windows over space"))
        if fixed is not None:
            planes.append(fixed.squeeze(-1).repeat_interleave(kernel, dim=-2) if fixed.shape[-3] > 1 else fixed[..., 0])
    call.give(call.out, planes)


@rule("tril", "triu")
def triangle(call: Call) -> None:
    tensor = call.args[0]
    planes = without(call, tensor, [tensor.dim() - 1], "triangle")
    planes = [
        q for p in planes if (q := call.flow.atoms.fix(p, [tensor.dim() - 2], call.reason("triangle"))) is not None
    ]
    call.give(call.out, planes)
