"""Rules for products of two activations: attention, fused or by hand, where whole heads live and die together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.graph.atoms import Plane, aligned, match, varying
from prunus.graph.flow import Call, rule

_HEAD = "only whole heads can be removed from attention"
_FIXED = "the number of heads is fixed"


def heads_only(call: Call, planes: Sequence[Plane], free: Sequence[int]) -> list[Plane]:
    """The planes without what varies outside `free` (the axes over which products are batched)."""
    kept = []
    for plane in planes:
        inner = [d for d in varying(plane) if d not in free]
        fixed = call.flow.atoms.fix(plane, inner, call.reason(_HEAD))
        if fixed is not None:
            kept.append(fixed)
    return kept


def together(call: Call, sides: Sequence[Sequence[Plane]], kind: str = "head") -> list[Plane]:
    """Tie the planes of several operands over the same axes; one that has no partner is frozen."""
    atoms = call.flow.atoms
    kept = list(sides[0])
    for side in sides[1:]:
        for plane in side:
            found = match(plane, kept)
            if found is None:
                atoms.freeze(plane, call.reason(_FIXED))
            else:
                atoms.tie(plane, kept[found], call.reason(_FIXED))
        for plane in [p for p in kept if match(p, side) is None]:
            atoms.freeze(plane, call.reason(_FIXED))
    for plane in kept:
        call.flow.mark(plane, kind)
    return kept


@rule("attention", "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(call: Call) -> None:
    """`[..., heads, positions, width]`: heads of queries, keys, values and of the bias tie, widths stay.

    With fewer heads of keys than of queries, each of them serves consecutive heads of queries (grouped queries).
    """
    query, key, value = call.args[:3]
    rows = query.shape[:-1].numel()
    call.flow.count(None, rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    ndim = query.dim()
    batch = list(range(ndim - 2))
    sides: list[list[Plane]] = []
    for i, tensor in enumerate((query, key, value)):
        planes = list(call.info(tensor).planes)
        if i == 2 and not any(d in batch for p in planes for d in varying(p)):
            continue
        if i == 1 and ndim == tensor.dim() > 3 and tensor.shape[-3] == 1:  # one head of keys for all queries
            heads_only(call, planes, batch)
            continue
        planes = heads_only(call, planes, batch)
        if tensor.dim() == ndim > 3 and tensor.shape[-3] != query.shape[-3]:
            share = query.shape[-3] // tensor.shape[-3]
            planes = [p.repeat_interleave(share, -3) if p.shape[-3] > 1 else p for p in planes]
        sides.append(planes)
    given = together(call, sides)
    passing = [] if len(sides) == 3 else [p for p in call.info(value).planes if varying(p) == (ndim - 1,)]
    passing = _unless_headed(call, passing, given)
    for tensor in call.args[3:]:
        if isinstance(tensor, Tensor):
            _bias(call, tensor, given, ndim)
    for name in ("attn_bias", "attn_mask"):
        if isinstance(tensor := call.kwargs.get(name), Tensor):
            _bias(call, tensor, given, ndim)
    outputs = call.outputs
    call.give(outputs[0], [*given, *passing])
    for scratch in outputs[1:]:
        call.give(scratch, [])


@rule("multi_head_attention_forward")
def module(call: Call) -> None:
    """`nn.MultiheadAttention` takes the width of its projections from its input: no head can leave it."""
    given = inspect.signature(call.func).bind(*call.args, **call.kwargs).arguments
    why = call.reason("its width is that of its input")
    fixed = ("query", "key", "value", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v")
    for name in (*fixed, "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        for plane in call.info(given.get(name)).planes:
            call.flow.atoms.freeze(plane, why)
    for plane in call.info(given["out_proj_weight"]).planes:
        if plane.shape[-1] > 1:
            call.flow.atoms.freeze(plane, why)


def _bias(call: Call, tensor: Tensor, heads: list[Plane], ndim: int) -> None:
    """A bias of the scores: full along the heads it must have atoms there, and these tie."""
    shape = (1,) * (ndim - tensor.dim()) + tuple(tensor.shape)
    own = heads_only(call, [aligned(p, ndim) for p in call.info(tensor).planes], range(ndim - 2))
    for plane in own:
        if match(plane, heads) is None:
            call.flow.atoms.freeze(plane, call.reason(_FIXED))
    for plane in heads:
        found = match(plane, own)
        if found is not None:
            call.flow.atoms.tie(plane, own[found], call.reason(_FIXED))
        elif any(shape[d] > 1 for d in varying(plane)):
            call.flow.atoms.freeze(plane, call.reason("a bias of fixed size lies along the heads"))


def _unless_headed(call: Call, values: list[Plane], heads: Sequence[Plane]) -> list[Plane]:
    """The width of values that all heads share: the axis into which both are joined shrinks by heads, so it stays."""
    for plane in values if heads else ():
        call.flow.atoms.freeze(plane, call.reason(_HEAD))
    return [] if heads else values


def multiply(call: Call, a: Tensor, b: Tensor, la: str, lb: str, lo: str, batch: str) -> list[Plane]:
    """`einsum(la,lb->lo)` of two activations, each with letters for its axes; returns the planes of the output.

    Planes that vary along a batched axis become whole heads. Elsewhere contracted axes tie and outer axes pass.
    """
    atoms = call.flow.atoms
    order = lo + "".join(dict.fromkeys(c for c in la + lb if c not in lo))
    heads: list[list[Plane]] = [[], []]
    inner: list[list[Plane]] = [[], []]
    given: list[Plane] = []
    for side, (tensor, letters) in enumerate(((a, la), (b, lb))):
        for plane in call.info(tensor).planes:
            lifted = lift(plane, letters, order)
            dims = varying(lifted)
            if any(order[d] in batch for d in dims):
                heads[side] += heads_only(call, [lifted], [order.index(c) for c in batch])
            elif any(order[d] not in lo for d in dims):
                fixed = atoms.fix(lifted, [d for d in dims if order[d] in lo], call.reason("contracted in part"))
                inner[side] += [] if fixed is None else [fixed]
            else:
                given.append(lifted)
    for side in (0, 1):
        for plane in inner[side]:
            found = match(plane, inner[1 - side])
            if found is None:
                atoms.freeze(plane, call.reason("contracted with a tensor of fixed size"))
            else:
                atoms.tie(plane, inner[1 - side][found], call.reason("contracted with a tensor of fixed size"))
    shared = [order.index(c) for c in batch if c in la and c in lb]
    alone = [p for side in heads for p in side if not set(varying(p)) & set(shared)]
    for plane in alone:  # the other operand is broadcast over these heads
        call.flow.mark(plane, "head")
    together(call, [[p for p in side if not any(p is q for q in alone)] for side in heads])
    given = _unless_headed(call, given, alone) + [p for side in heads for p in side]
    return _without_twins([p.reshape(p.shape[: len(lo)]) for p in given])


def _without_twins(planes: list[Plane]) -> list[Plane]:
    """One of several tied planes over the same axes is enough."""
    kept: list[Plane] = []
    for plane in planes:
        if not any(varying(plane) == varying(other) for other in kept):
            kept.append(plane)
    return kept


@rule("activations")
def matmul(call: Call) -> None:
    """`a @ b` of two activations with leading axes that are batched or broadcast."""
    a, b = call.args
    lead = "abcdefgh"[: call.out.dim() - 2]
    letters = []
    for tensor, tail in ((a, "xy"), (b, "yz")):
        own = lead[len(lead) - (tensor.dim() - 2) :]
        letters.append("".join(c for c, size in zip(own, tensor.shape, strict=False) if size > 1) + tail)
    squeezed = [t.reshape([n for d, n in enumerate(t.shape) if n > 1 or d >= t.dim() - 2]) for t in (a, b)]
    for tensor, flat in zip((a, b), squeezed, strict=True):
        keep = [d for d, n in enumerate(tensor.shape) if n > 1 or d >= tensor.dim() - 2]
        planes = [p.reshape([p.shape[d] for d in keep]) for p in call.info(tensor).planes]
        call.flow.record(flat, planes)
    present = "".join(c for c in lead if any(c in own for own in letters))
    planes = multiply(call, squeezed[0], squeezed[1], letters[0], letters[1], present + "xz", present)
    lying = [1 if c in lead and c not in present else -1 for c in lead + "xz"]
    given = []
    for plane in planes:
        sizes = iter(plane.shape)
        given.append(plane.reshape([1 if n == 1 else next(sizes) for n in lying]))
    call.flow.count(None, call.out.numel() * a.shape[-1])
    call.give(call.out, given)


def lift(plane: Plane, letters: str, every: str) -> Plane:
    """The plane with one axis per letter of `every`."""
    order = sorted(range(len(letters)), key=lambda d: every.index(letters[d]))
    moved = plane.permute(order)
    shape = [1] * len(every)
    for size, position in zip(moved.shape, order, strict=True):
        shape[every.index(letters[position])] = size
    return torch.reshape(moved, shape)
