"""Rules for arithmetic: element-wise operations, reductions, softmax, normalization and everything over space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunus.core.groups import Role
from prunus.graph.atoms import Plane, aligned, match, varying
from prunus.graph.flow import Call, rule
from prunus.graph.rules.move import source_of
from prunus.graph.sizes import Size

_ADDING = frozenset(("add", "sub", "rsub", "where", "addcmul", "addcdiv", "lerp"))


# Element-wise, but not tagged so by PyTorch.
@rule(
    "pointwise", "copy", "prelu", "_prelu_kernel", "rrelu_with_noise", "hardswish", "floor_divide", "polar", "complex",
    "log_sigmoid_forward", "special_expit",
)  # fmt: skip
def pointwise(call: Call) -> None:
    """Equal positions tie. What has a fixed size where another operand has atoms freezes them."""
    outputs = call.outputs
    operands = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, Tensor)]
    if call.name == "copy":
        operands = operands[:2]
    if not outputs or any(isinstance(v, list | tuple) and any(isinstance(t, Tensor) for t in v) for v in call.args):
        for value in operands:
            call.freeze(value, "several tensors at once")
        return
    # A weight times a mask that is a buffer stays the weight: it is the parameter that is scored and masked.
    operands.sort(key=lambda v: call.info(v).source in call.flow.buffers)
    planes = merge(call, operands, outputs[0].dim())
    source = source_of(call, *(v for v in operands if v.dim() > 0)) if any(v.dim() for v in operands) else None
    if source is None:
        _play(call, operands)
    for out in outputs:
        if out.shape == outputs[0].shape:  # the second output of logsigmoid is scratch memory
            call.give(out, planes, source)


def _play(call: Call, operands: list[Tensor]) -> None:
    role: Role = "scale" if call.name in ("mul", "div") else "bias" if call.name in _ADDING else "other"
    for value in operands:
        info = call.info(value)
        if info.source is not None:
            for plane in info.planes:
                call.flow.play(plane, role)


def merge(call: Call, operands: list[Tensor], ndim: int) -> list[Plane]:
    """The planes of an element-wise combination of `operands` that broadcast to `ndim` axes."""
    atoms = call.flow.atoms
    merged: list[Plane] = []
    owner: list[int] = []
    for i, value in enumerate(operands):
        own = [aligned(p, ndim) for p in call.info(value).planes]
        for found_plane in own:
            bound = _meets_fixed(call, found_plane, i, operands, ndim)
            why = call.reason("combined element by element with a tensor of fixed size")
            plane = atoms.fix(found_plane, bound, why)
            if plane is None:
                continue
            candidates = [j for j in range(len(merged)) if owner[j] != i]
            found = match(plane, [merged[j] for j in candidates])
            if found is None:
                merged.append(plane)
                owner.append(i)
                continue
            j = candidates[found]
            small, large = sorted((plane, merged[j]), key=lambda p: len(varying(p)))
            merged[j] = large
            meet(call, small, large, "combined element by element with a tensor of fixed size")
    return merged


def meet(call: Call, small: Plane, large: Plane, why: str) -> None:
    """Tie two planes; a vector that is broadcast over another axis of the larger plane only follows it.

    A vector along the width of heads must not tie all heads with each other before it is known along which of both
    axes units are removed.
    """
    own = varying(small)
    if len(own) == 1 and own[0] in varying(large) and len(varying(large)) > 1:
        call.flow.atoms.follow(large, own[0], small.reshape(-1), call.reason(why), in_order=True)
    else:
        call.flow.atoms.tie(small, large, call.reason(why))


def _meets_fixed(call: Call, plane: Plane, i: int, operands: list[Tensor], ndim: int) -> list[int]:
    """The axes of `plane` along which some other operand has its full size but no atoms."""
    fixed: set[int] = set()
    for j, other in enumerate(operands):
        if j == i or other is operands[i]:
            continue
        shape = (1,) * (ndim - other.dim()) + tuple(other.shape)
        there = {d for q in call.info(other).planes for d in varying(aligned(q, ndim))}
        fixed |= {
            d for d in varying(plane) if shape[d] > 1 and d not in there and not _stretched(call, other, d - ndim)
        }
    return sorted(fixed)


def _stretched(call: Call, tensor: Tensor, dim: int) -> bool:
    """Whether PyTorch's own code repeated a tensor along this axis, as far as another one reaches (`F.normalize`)."""
    return call.flow.lengths.pending is None and tensor.stride(dim) == 0


def without(call: Call, tensor: Tensor, dims: list[int], why: str) -> list[Plane]:
    """The planes of `tensor` that do not depend on `dims` (what does is frozen or tied)."""
    inner = {d % max(tensor.dim(), 1) for d in dims}
    fixed = [call.flow.atoms.fix(plane, inner, call.reason(why)) for plane in call.info(tensor).planes]
    return [plane for plane in fixed if plane is not None]


def _dims(value: Any, ndim: int) -> list[int]:
    if value is None or (isinstance(value, list | tuple) and not value):
        return list(range(ndim))
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]


@rule(
    "sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin", "var", "std", "var_mean",
    "std_mean", "logsumexp", "norm", "linalg_vector_norm", "nansum", "aminmax", "count_nonzero", "median",
)  # fmt: skip
def reduce(call: Call) -> None:
    """Reductions pass what is constant over the reduced axes; a parameter's own sums of zeros stay exact."""
    tensor = call.args[0]
    position, name = (2, "dim") if call.name in ("norm", "linalg_vector_norm") else (1, "dim")
    given = call.get(position, name)
    if isinstance(given, Tensor):  # max(a, b) is element-wise
        pointwise(call)
        return
    outputs = call.outputs
    dims = [d % max(tensor.dim(), 1) for d in _dims(given, tensor.dim())]
    source = call.info(tensor).source
    if source is not None and call.name in ("sum", "norm", "linalg_vector_norm"):
        planes = [p for p in call.info(tensor).planes if not set(varying(p)) & set(dims)]
    else:
        keep = list(call.info(tensor).planes)
        if call.name == "mean" and len(dims) == 1:
            keep = [p for p in keep if not (varying(p) == (dims[0],) and call.flow.averaged(p))]
        elif _adds_up(call) and tensor in call.flow.zeros:  # zeros that are left out make no difference
            keep = [p for p in keep if not set(varying(p)) <= set(dims)]
        fixed = [call.flow.atoms.fix(p, dims, call.reason(_reduced(call.name, source))) for p in keep]
        planes = [p for p in fixed if p is not None]
    for out in outputs:
        if out.dim() == tensor.dim():
            call.give(out, planes, source)
        else:
            left = [d for d in range(tensor.dim()) if d not in dims]
            call.give(out, [p.permute(*left, *dims).reshape([p.shape[d] for d in left]) for p in planes], source)


def _adds_up(call: Call) -> bool:
    """Whether it is a sum, or a p-norm with p > 0."""
    order = call.get(1, "ord" if call.name == "linalg_vector_norm" else "p", 2)
    if call.name in ("norm", "linalg_vector_norm"):
        return isinstance(order, int | float) and order > 0
    return call.name in ("sum", "nansum")


def _reduced(name: str, source: str | None) -> str:
    """Why nothing can leave an axis that is reduced."""
    if name in ("mean", "var", "std", "var_mean", "std_mean"):
        what = "weights are normalized over this axis" if source is not None else "averages over this axis"
        return f"{what}, so that what is left depends on how many positions there are"
    return "reduces over this axis, where what is masked need not be zero"


@rule(
    "_softmax", "softmax", "_log_softmax", "log_softmax", "cumsum", "cumprod", "sort", "topk", "argsort",
    "logcumsumexp", "cummax", "cummin", "_safe_softmax", "_sparse_softmax", "kthvalue",
)  # fmt: skip
def along_one_axis(call: Call) -> None:
    tensor = call.args[0]
    position = 2 if call.name in ("topk", "kthvalue") else 1
    dim = call.get(position, "dim", -1)
    dims = list(range(tensor.dim())) if not isinstance(dim, int) or isinstance(dim, bool) else [dim]
    planes = without(call, tensor, dims, "mixes all positions along this axis")
    for out in call.outputs:
        call.give(out, planes if out.dim() == tensor.dim() else [])


def _space(names: int) -> list[int]:
    return [-1 - i for i in range(names)]


@rule(*(f"{kind}{n}d{tail}" for kind in ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_avg_pool",
      "adaptive_max_pool", "fractional_max_pool", "reflection_pad", "replication_pad", "upsample_nearest",
      "_upsample_nearest_exact", "upsample_bilinear", "upsample_linear", "upsample_trilinear", "upsample_bicubic",
      "_upsample_bilinear", "_upsample_bicubic", "mkldnn_max_pool", "mkldnn_adaptive_avg_pool")
      for n in (1, 2, 3) for tail in ("", "_with_indices", "_aa")))  # fmt: skip
def over_space(call: Call) -> None:
    """Pooling, padding by copies and resizing act on each channel alone."""
    tensor = call.args[0]
    digit = next(int(c) for c in call.name if c in "123")
    planes = without(call, tensor, _space(digit), "slides over this axis")
    for out in call.outputs:
        call.give(out, planes)


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def grid(call: Call) -> None:
    call.freeze(call.args[1], "used as a sampling grid")
    tensor = call.args[0]
    call.give(call.out, without(call, tensor, _space(tensor.dim() - 2), "slides over this axis"))


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_no_update", "batch_norm", "_native_batch_norm_legit_functional", "miopen_batch_norm",
    "_batch_norm_with_update",
)  # fmt: skip
def batch_norm(call: Call) -> None:
    """Channels are normalized one by one: the per-channel vectors tie with the channels."""
    tensor = call.args[0]
    why = "normalizes over this axis"
    if call.info(tensor).source is not None:
        why = "weights are standardized: the mean and the variance of each filter run over its inputs"
    planes = without(call, tensor, [d for d in range(tensor.dim()) if d != 1], why)
    channel = planes[0] if planes else None
    for extra in planes[1:]:
        call.flow.atoms.freeze(extra, call.reason("units of two kinds lie along one axis"))
    names = ("weight", "bias", "running_mean", "running_var")
    for i, name in enumerate(names):
        vector = call.get(1 + i, name)
        if not isinstance(vector, Tensor):
            continue
        role: Role = "scale" if name == "weight" else "shift" if name == "bias" else "other"
        tie_vector(call, channel, 1, vector, role)
    vectors = [v for v in (call.get(1, "weight"), call.get(2, "bias")) if isinstance(v, Tensor)]
    # Weights may be normalized too (weight standardization); batch statistics keep them computed from parameters.
    call.give(call.outputs[0], [channel] if channel is not None else [], source_of(call, tensor, *vectors))


def tie_vector(call: Call, plane: Plane | None, dim: int, vector: Tensor, role: Role) -> None:
    """Tie a per-channel vector to the channels along axis `dim`; one without the other is frozen."""
    own = call.info(vector).planes
    if plane is None:
        call.freeze(vector, "the normalized axis is fixed")
        return
    if vector.numel() == 1 and plane.shape[dim] == 1:
        return
    if not own:
        call.flow.atoms.freeze(plane, call.reason("a vector of fixed size lies along this axis"))
        return
    call.flow.play(own[0], role)
    lying = [1] * plane.dim()
    lying[dim] = -1
    call.flow.atoms.tie(plane, own[0].reshape(lying), call.reason("a vector of fixed size lies along this axis"))


@rule("native_layer_norm", "layer_norm", "_fused_layer_norm")
def layer_norm(call: Call) -> None:
    """The statistics run over the normalized axes, so nothing can leave these, unless they may become others."""
    tensor, shape = call.args[0], call.get(1, "normalized_shape")
    last = tensor.dim() - 1
    along = [p for p in call.info(tensor).planes if p.shape[-1] > 1]
    weight, bias = call.get(2, "weight"), call.get(3, "bias")
    single = len(shape) == len(along) == 1 and varying(along[0]) == (last,)
    if single and call.name != "rms_norm" and call.flow.loosened(along[0], weight):
        for vector, role in ((weight, "scale"), (bias, "shift")):
            if isinstance(vector, Tensor):
                tie_vector(call, along[0], last, vector, "scale" if role == "scale" else "shift")
        _sized(call, along[0], shape)
        call.flow.mark(along[0], "width")
        call.give(call.outputs[0], list(call.info(tensor).planes))
        return
    planes = without(call, tensor, _space(len(shape)), "its statistics run over this axis")
    for vector in (weight, bias):
        if isinstance(vector, Tensor):
            call.freeze(vector, "its statistics run over this axis")
    call.give(call.outputs[0], planes)


def _sized(call: Call, plane: Plane, shape: Sequence[int]) -> None:
    """The axis follows the size that the code gave; what a module keeps beside its own weight is repaired anyway."""
    for size in call.flow.lengths.sizes_of(shape) or ():
        target = size.target if isinstance(size, Size) else None
        if target is None or target.partition("[")[0].rpartition(".")[2] != "normalized_shape":
            call.flow.lengths.govern(plane, plane.dim() - 1, size)


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(call: Call) -> None:
    """The mean of squares over one axis can be put right when positions leave it (`norms.py`)."""
    tensor, weight = call.args[0], call.get(2, "weight")
    along = [p for p in call.info(tensor).planes if varying(p) == (tensor.dim() - 1,)]
    if len(call.get(1, "normalized_shape")) != 1 or len(along) != 1 or not isinstance(weight, Tensor):
        layer_norm(call)
    elif call.flow.averaged(along[0]):
        tie_vector(call, along[0], tensor.dim() - 1, weight, "scale")
        _sized(call, along[0], call.get(1, "normalized_shape"))
        call.give(call.outputs[0], list(call.info(tensor).planes))
    else:
        layer_norm(call)


@rule("native_group_norm")
def group_norm(call: Call) -> None:
    """Whole groups of channels may leave: nothing else keeps the statistics of the others."""
    tensor, weight, bias = call.args[0], call.get(1, "weight"), call.get(2, "bias")
    parts = int(call.get(6, "group"))
    planes = without(call, tensor, [d for d in range(tensor.dim()) if d != 1], "its statistics run over this axis")
    channel = planes[0] if planes else None
    if channel is not None:
        size = channel.shape[1] // parts
        whole = channel.unflatten(1, (parts, size))
        if size > 1 and varying(channel) == (1,) and call.flow.loosened(channel, weight):
            # As many positions of every part, so that the parts stay equally large.
            call.flow.atoms.fix(whole, [1], call.reason("the parts that it normalizes are equally large"))
        elif call.flow.atoms.fix(whole, [2], call.reason("its statistics run over this axis")) is None:
            channel = None
    for vector, role in ((weight, "scale"), (bias, "shift")):
        if isinstance(vector, Tensor):
            tie_vector(call, channel, 1, vector, "scale" if role == "scale" else "shift")
    call.give(call.out[0], [channel] if channel is not None else [])


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> None:
    """`g * v / |v|`. What makes a unit zero is its `g`: a `v` of zeros would be no direction, so only `g` is masked.

    Along the other axes removed slices of v are zeros in the norm, so the norm of what stays does not change.
    """
    v, g = call.args[0], call.args[1]
    planes = list(call.info(v).planes)
    for plane in call.info(g).planes:
        found = match(plane, planes)
        if found is None:
            call.freeze(g, "no matching axis")
        else:
            call.flow.atoms.tie(plane, planes[found], call.reason("no matching axis"))
            planes[found] = plane
    call.give(call.outputs[0], planes, source_of(call, v))


@rule("_trilinear")
def trilinear(call: Call) -> None:
    """What `nn.Bilinear` runs: `[..., 1, in1, 1] x [out, in1, in2] x [..., 1, 1, in2]`, summed over the inputs."""
    x, weight, y = call.args[:3]
    atoms, why = call.flow.atoms, call.reason("contracted with a tensor of fixed size")
    if tuple(tuple(dims) for dims in call.args[3:7]) != ((1, 3), (0,), (1, 2), (2, 3)) or weight.dim() != 3:
        for tensor in (x, weight, y):
            call.freeze(tensor, "multiplies three tensors")
        call.give(call.out, [])
        return
    outputs = []
    for plane in call.info(weight).planes:
        if plane.shape[0] > 1:
            call.flow.play(plane, "out")
            outputs.append(plane.reshape(1, -1))
    for dim, tensor in ((1, x), (2, y)):
        own = [p.reshape(-1) for p in call.info(weight).planes if p.shape[dim] > 1]
        given = [p.reshape(-1) for p in without(call, tensor, [0], "a batch is fixed")]
        for plane in (*own, *given):
            if not own or not given:
                atoms.freeze(plane, why)
        if own and given:
            call.flow.play(own[0], "in")
            atoms.tie(own[0], given[0], why)
    call.flow.count(call.info(weight).source, call.out.shape[0] * weight.numel())
    call.give(call.out, outputs)
