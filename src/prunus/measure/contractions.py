"""Which operations multiply and accumulate, how often, and which do not by convention.

The formulas are those of `torch.utils.flop_counter` (two operations per multiply-accumulate) and, for what it leaves
out, the ones below. Convention of the literature: only contractions count (matrix products, convolutions, attention
products). Element-wise arithmetic, normalization, pooling, reductions, softmax, interpolation and look-ups do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten


def _matrix_vector(matrix: Tensor) -> int:
    return matrix.numel()


def _batched(a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]


def _grouped(a: Tensor, b: Tensor) -> int:
    return prod(a.shape[-2:]) * b.shape[-1] if b.dim() == 2 else _batched(a, b)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    # Grouped queries: every query head meets its own copy of a key head, so heads are the query's.
    heads = q.shape[1]
    fitted = [(t.shape[0], heads, *t.shape[2:]) for t in (k, v)]
    return int(sdpa_flop_count(tuple(q.shape), *fitted)) // 2


def _trilinear(args: Sequence[Any]) -> int:
    """`sum_ij x1[b,i] w[o,i,j] x2[b,j]`: one multiply-accumulate for every b, o, i, j."""
    operands: list[Tensor] = list(args[:3])
    for axes, at in zip(args[3:6], range(3), strict=True):
        for axis in axes:
            operands[at] = operands[at].unsqueeze(axis)
    return prod(torch.broadcast_shapes(*(t.shape for t in operands)))


# Multiply-accumulates by operation name, from the operation's positional arguments.
EXTRA: Mapping[str, Callable[[Sequence[Any]], int]] = {
    "aten.addmm_": lambda a: _batched(a[1], a[2]),
    "aten._addmm_activation": lambda a: _batched(a[1], a[2]),
    "aten._int_mm": lambda a: _batched(a[0], a[1]),
    "aten.baddbmm_": lambda a: _batched(a[1], a[2]),
    "aten.addbmm": lambda a: _batched(a[1], a[2]),
    "aten.addbmm_": lambda a: _batched(a[1], a[2]),
    # Experts: every token meets the matrix of one group, wherever the groups begin.
    "aten._grouped_mm": lambda a: _grouped(a[0], a[1]),
    "aten.mv": lambda a: _matrix_vector(a[0]),
    "aten.addmv": lambda a: _matrix_vector(a[1]),
    "aten.addmv_": lambda a: _matrix_vector(a[1]),
    "aten.dot": lambda a: _matrix_vector(a[0]),
    "aten.vdot": lambda a: _matrix_vector(a[0]),
    "aten._trilinear": _trilinear,
    "aten._scaled_dot_product_flash_attention_for_cpu": lambda a: _attention(*a[:3]),
    "aten._scaled_dot_product_fused_attention_overrideable": lambda a: _attention(*a[:3]),
}

# Where a parameter may stand in a contraction that visits each of its elements equally often.
WEIGHT_AT: Mapping[str, tuple[int, ...]] = {
    "aten.mm": (1, 0),
    "aten._int_mm": (1, 0),
    "aten.bmm": (1, 0),
    "aten.addmm": (2, 1),
    "aten.addmm_": (2, 1),
    "aten._addmm_activation": (2, 1),
    "aten.baddbmm": (2, 1),
    "aten.baddbmm_": (2, 1),
    "aten.addbmm": (2, 1),
    "aten.addbmm_": (2, 1),
    "aten.mv": (0, 1),
    "aten.addmv": (1, 2),
    "aten.addmv_": (1, 2),
    "aten.dot": (1, 0),
    "aten.vdot": (1, 0),
    "aten.convolution": (1,),
    "aten._convolution": (1,),
    "aten._trilinear": (1,),
}

# Values out are values in, perhaps of another type: a weight stays a weight.
COPIES = frozenset({"aten._to_copy", "aten.clone", "aten.contiguous", "aten.lift_fresh_copy"})
PRODUCTS = frozenset({"aten.mul"})

# No multiply-accumulates by convention; an operation neither here, pointwise, a view nor counted is reported.
# The in-place form of a name here is meant too.
# Creation and movement.
_MOVED = """
    transpose t squeeze unsqueeze swapaxes swapdims empty empty_like empty_strided empty_permuted new_empty
    new_empty_strided zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full arange linspace
    eye tril triu tril_indices triu_indices scalar_tensor _to_copy clone copy fill zero_ lift_fresh
    lift_fresh_copy cat stack index index_select index_put _index_put_impl_ index_add index_copy index_fill gather
    take scatter scatter_add scatter_reduce masked_select masked_scatter masked_fill nonzero repeat
    repeat_interleave roll flip rot90 pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle im2col col2im as_strided_ _unsafe_index unfold_copy _reshape_alias _unsafe_view
    select_scatter slice_scatter diagonal_copy embedding embedding_renorm_ _embedding_bag
    _embedding_bag_forward_only one_hot resize_ set_ meshgrid block_diag detach t_copy unsafe_split unsafe_chunk
    split_with_sizes
"""
# Reductions, order, normalization, pooling, interpolation.
_REDUCED = """
    sum mean prod amax amin max min aminmax argmax argmin any all var var_mean std std_mean norm
    linalg_vector_norm logsumexp cumsum cumprod cummax cummin sort argsort topk kthvalue median unique unique2
    _unique2 bincount searchsorted bucketize histc _softmax _safe_softmax _log_softmax native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update cudnn_batch_norm
    native_layer_norm native_group_norm _fused_rms_norm rms_norm max_pool2d_with_indices max_pool3d_with_indices
    max_pool1d_with_indices max_unpool2d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d mkldnn_max_pool2d
    mkldnn_adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d glu _prelu_kernel
    rrelu_with_noise hardswish floor_divide
"""
# Recurrent cells after their matrix products, randomness, questions about a tensor.
_OTHER = """
    _weight_norm_interface
    _thnn_fused_lstm_cell _thnn_fused_gru_cell bernoulli native_dropout rand rand_like randn randn_like randint
    randint_like randperm uniform_ normal exponential_ multinomial _local_scalar_dense item equal is_same_size
    allclose isin _assert_async _assert_scalar _assert_tensor_metadata sym_size sym_stride sym_numel is_pinned
    _pin_memory _nested_tensor_size size stride dim numel storage_offset is_contiguous
"""
FREE = frozenset(f"{_MOVED} {_REDUCED} {_OTHER}".split())


def name_of(operation: Any) -> str:
    """`aten.mm` for `torch.ops.aten.mm.default`."""
    return str(getattr(operation, "overloadpacket", operation))


def is_counted(operation: Any) -> bool:
    """Whether multiply-accumulates of `operation` are known."""
    return name_of(operation) in EXTRA or operation.overloadpacket in flop_registry


def multiply_accumulates(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """How many multiply-accumulates one call did: the formula's floating-point operations over two."""
    extra = EXTRA.get(name_of(operation))
    if extra is not None:
        return extra(args)
    if "_scaled_dot_product" in name_of(operation):
        return _attention(*args[:3])
    return int(flop_registry[operation.overloadpacket](*args, **kwargs, out_val=out)) // 2


def is_free(operation: Any) -> bool:
    """Whether `operation` multiplies and accumulates nothing by convention."""
    name = name_of(operation)
    space, _, short = name.partition(".")
    return (
        torch.Tag.pointwise in operation.tags
        or bool(operation.is_view)
        or space == "prim"
        or (space == "aten" and (short in FREE or short.removesuffix("_") in FREE))
    )
