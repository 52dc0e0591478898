"""The layers of a network as a timer sees them: one contraction with one weight, by its shape alone.

Seen while the model runs on shapes without values, operation by operation (`operations.py`), so whatever module or
function calls them. What has no shape here (stacks of matrices, products of activations, everything element-wise) is
left to the rest of a network's time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from prunus.measure.inputs import Example, uncompiled
from prunus.measure.operations import counted

# Where matrix products have their operands: the weight's partner by the weight's place.
PRODUCTS: Mapping[str, tuple[int, int]] = {"aten.mm": (0, 1), "aten.addmm": (1, 2), "aten._addmm_activation": (1, 2)}
CONVOLUTIONS = frozenset({"aten.convolution", "aten._convolution"})


@dataclass(frozen=True)
class LayerShape:
    """What the time of one layer hangs on.

    Attributes:
        inputs, outputs: channels or features.
        rows: how many inputs at once: images of a convolution, rows (tokens) of a matrix product.
        size: of a convolution's input along its other axes; empty for a matrix product, as are those that follow.
        kernel, stride, padding, dilation, output_padding: of a convolution, one number per axis.
        groups: of a convolution.
        transposed: whether a convolution is the transpose of one.
        bias: whether one is added.
        dtype: `float32`, `bfloat16`, ...
    """

    inputs: int
    outputs: int
    rows: int
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    dtype: str = "float32"

    @property
    def conv(self) -> bool:
        """Whether it is a convolution; a matrix product otherwise."""
        return bool(self.kernel)

    @property
    def tied(self) -> bool:
        """Whether every group has one input, so that inputs, outputs and groups shrink together (depthwise)."""
        return self.groups > 1 and self.groups == self.inputs

    @property
    def weight(self) -> tuple[int, ...]:
        """The weight's shape, as PyTorch keeps it."""
        a, b = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return (a, b // self.groups, *self.kernel)

    @property
    def positions(self) -> int:
        """Output positions of one channel: images times places, or rows."""
        places = []
        for n, k, s, p, d, o in zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        ):
            reach = d * (k - 1) + 1
            places.append((n - 1) * s - 2 * p + reach + o if self.transposed else (n + 2 * p - reach) // s + 1)
        return int(self.rows * prod(places))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        where = self.rows * prod(self.size) if self.transposed else self.positions
        return where * prod(self.weight)

    def at(self, inputs: int, outputs: int) -> LayerShape:
        """The same layer with other widths; one that is tied has as many groups as inputs."""
        return replace(self, inputs=inputs, outputs=outputs, groups=inputs if self.tied else self.groups)

    def key(self) -> str:
        """Equal for equal shapes: JSON without what is left at its default."""
        plain = LayerShape(0, 0, 0)
        return json.dumps({k: v for k, v in asdict(self).items() if v != getattr(plain, k)}, sort_keys=True)

    def __str__(self) -> str:
        if not self.conv:
            return f"{self.inputs} -> {self.outputs}, {self.rows} rows"
        kind = "transposed " if self.transposed else ""
        kernel = "x".join(map(str, self.kernel))
        more = [f"stride {self.stride[0]}"] if max(self.stride) > 1 else []
        more += ["depthwise"] if self.tied else [f"{self.groups} groups"] if self.groups > 1 else []
        where = "x".join(map(str, self.size))
        return ", ".join([f"{self.inputs} -> {self.outputs}, {kind}{kernel}", *more, f"on {self.rows} of {where}"])


@dataclass(frozen=True)
class LayerCall:
    """One use of a weight in a run: its name, the axes of outputs and inputs in it, its own shape, the layer's."""

    param: str
    out_axis: int
    in_axis: int
    full: tuple[int, ...]
    shape: LayerShape

    def narrowed(self, left: Sequence[int]) -> LayerShape | None:
        """The layer where of the weight a tensor of shape `left` is left; None where nothing is.

        A weight does not tell whether whole groups of a convolution are gone or outputs of every group. Where all
        inputs of a group are left and the outputs are those of whole groups, groups are taken to be gone.
        """
        if not all(left):
            return None
        shape = self.shape
        outs, ins = left[self.out_axis] / self.full[self.out_axis], left[self.in_axis] / self.full[self.in_axis]
        if shape.groups == 1:
            return shape.at(max(1, round(shape.inputs * ins)), max(1, round(shape.outputs * outs)))
        groups = shape.groups
        each_in, each_out = shape.inputs // groups, shape.outputs // groups
        whole = ins if shape.transposed else outs
        if (ins if not shape.transposed else outs) == 1.0 and whole < 1.0 and round(groups * whole * 64) % 64 == 0:
            groups = max(1, round(groups * whole))
            return replace(shape, inputs=groups * each_in, outputs=groups * each_out, groups=groups)
        return replace(
            shape, inputs=groups * max(1, round(each_in * ins)), outputs=groups * max(1, round(each_out * outs))
        )


def layers(model: nn.Module, example: Example) -> tuple[LayerCall, ...]:
    """Every contraction with a parameter in one run of `model`, in their order, the model left as it was.

    example: a tensor, tuple, or dict of inputs, batch included. Cost and errors: those of `measure.macs`.
    """
    model = uncompiled(model)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}

    def note(name: str, operation: str, place: int, args: Any) -> LayerCall | None:
        if name not in shapes or len(shapes[name]) < 2:
            return None
        if operation in CONVOLUTIONS:
            return _convolution(name, shapes[name], args)
        return _product(name, shapes[name], operation, place, args) if operation in PRODUCTS else None

    counter, _ = counted(model, example, note)
    return tuple(call for call in counter.noted if call is not None)


def _convolution(name: str, full: tuple[int, ...], args: Any) -> LayerCall | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    spatial = weight.dim() - 2
    if x.dim() != spatial + 2 or len(full) != weight.dim():
        return None

    def each(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(v) for v in values) * (spatial if len(values) == 1 else 1)

    shape = LayerShape(
        inputs=int(x.shape[1]),
        outputs=int(weight.shape[1] * groups if transposed else weight.shape[0]),
        rows=int(x.shape[0]),
        size=tuple(int(n) for n in x.shape[2:]),
        kernel=tuple(int(n) for n in weight.shape[2:]),
        stride=each(stride),
        padding=each(padding),
        dilation=each(dilation),
        output_padding=each(output_padding) if transposed else (0,) * spatial,
        groups=int(groups),
        transposed=bool(transposed),
        bias=bias is not None,
        dtype=_name(weight),
    )
    return LayerCall(name, int(transposed), 1 - int(transposed), full, shape)


def _product(name: str, full: tuple[int, ...], operation: str, place: int, args: Any) -> LayerCall | None:
    first, second = PRODUCTS[operation]
    a, b = args[first], args[second]
    weight = args[place]
    if len(full) != 2 or a.dim() != 2 or b.dim() != 2 or place not in (first, second):
        return None
    inputs, outputs = (a.shape[1], a.shape[0]) if place == first else (b.shape[0], b.shape[1])
    rows = b.shape[1] if place == first else a.shape[0]
    # Which axis of the operand is summed over, and whether the operand is the parameter turned.
    summed = 1 if place == first else 0
    turned = weight.stride(0) < weight.stride(1) or (weight.shape[0] != full[0] and weight.shape[::-1] == full)
    in_axis = 1 - summed if turned else summed
    shape = LayerShape(int(inputs), int(outputs), int(rows), bias=operation != "aten.mm", dtype=_name(weight))
    return LayerCall(name, 1 - in_axis, in_axis, full, shape)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
