"""Which activations are zero at the positions of units that are masked.

A sum or a p-norm over an axis does not change when zeros leave it (as a mean or a maximum does), so units may leave
that axis if what they would have contributed is zero. Masked weights, biases and scales are zero; here it is followed
how far that zero reaches: through sums, products and functions with f(0) = 0, and no further. What is not known to be
zero is taken not to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.graph.atoms import varying

if TYPE_CHECKING:
    from prunus.graph.flow import Call, Flow

# Zero where all their operands are.
_KEEPS = frozenset(
    (
        # data movement
        "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze",
        "expand", "alias", "flip", "repeat", "movedim", "pixel_shuffle", "pixel_unshuffle", "detach", "clone",
        "contiguous", "_to_copy", "lift_fresh", "slice", "select", "unbind", "split", "split_with_sizes",
        "chunk", "cat", "stack", "roll", "index", "index_select", "gather", "embedding", "as_strided", "im2col",
        "col2im", "unfold", "channel_shuffle", "native_channel_shuffle", "native_dropout", "dropout",
        # reductions over other axes, and what acts over space
        "sum", "mean", "amax", "amin", "norm", "linalg_vector_norm", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "reflection_pad2d",
        "replication_pad2d", "mkldnn_max_pool2d",
        # functions of one or two numbers
        "neg", "abs", "sqrt", "sign", "relu", "gelu", "silu", "mish", "tanh", "sin", "erf", "expm1", "log1p",
        "hardswish", "leaky_relu", "elu", "celu", "selu", "prelu", "_prelu_kernel", "hardtanh", "softshrink", "round",
        "floor", "ceil",
    )
)  # fmt: skip
_NORMS = {"native_batch_norm": 1, "_native_batch_norm_legit_no_training": 1, "cudnn_batch_norm": 1,
          "native_group_norm": 1, "native_layer_norm": 2, "_fused_rms_norm": 2}  # fmt: skip
# The first factor of a product; the second one follows it.
_PRODUCTS = {"mul": 0, "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "matmul": 0, "convolution": 0, "linear": 0,
             "addmm": 1, "baddbmm": 1, "addmv": 1}  # fmt: skip


class Zeros:
    """The tensors of one run that are zero wherever a masked unit of theirs lies."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._known: Any = WeakTensorKeyDictionary()
        self._written: set[int] = set()
        for parameter in flow.model.parameters():
            self._known[parameter] = True

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether it is zero there (and where no unit lies along it, nothing is asked)."""
        if not self.flow.planes_of(tensor):
            return True
        return bool(self._known.get(tensor, False)) and _memory(tensor) not in self._written

    def after(self, call: Call, inputs: Sequence[Tensor]) -> bool:
        """Whether the output will be zero there; to be asked before the rule changes what is known of the inputs."""
        name, args = call.name, call.args
        if name in _PRODUCTS:
            return self._product(call, _PRODUCTS[name])
        if name in _NORMS:
            vectors = [v for v in args[_NORMS[name] : _NORMS[name] + 2] if isinstance(v, Tensor)]
            axis = args[0].dim() - 1 if _NORMS[name] == 2 else 1
            along = all(varying(p) == (axis,) for p in self.flow.planes_of(args[0]))
            return bool(vectors) and along and all(v in self for v in vectors)
        if not all(t in self for t in inputs):
            return False
        numbers = [v for v in (*args[1:], *call.kwargs.values()) if isinstance(v, int | float)]
        if name in ("add", "sub", "rsub", "maximum", "minimum"):
            return isinstance(call.get(1, "other"), Tensor) and len({self._axes(t) for t in inputs}) == 1
        if name == "copy":
            return bool(self.flow.planes_of(args[1]))
        if name == "div":
            other = call.get(1, "other")
            return not isinstance(other, Tensor) or not self.flow.planes_of(other)
        if name == "pow":
            return len(numbers) == 1 and numbers[0] > 0
        if name in ("clamp", "clamp_min", "hardtanh"):
            low, high = call.get(1, "min"), call.get(2, "max")
            return not (isinstance(low, int | float) and low > 0) and not (isinstance(high, int | float) and high < 0)
        if name in ("constant_pad_nd", "masked_fill"):
            return bool(call.get(2, "value", 0) == 0)
        return name in _KEEPS

    def note(self, call: Call, outputs: Sequence[Tensor], zero: bool) -> None:
        """Remember it of the outputs."""
        if not zero and call.func is not None and getattr(getattr(call.func, "_schema", None), "is_mutable", False):
            # What else looks at this memory is not zero any more.
            self._written.update(_memory(t) for t in outputs)
        for tensor in outputs:
            self._known[tensor] = zero

    def _axes(self, tensor: Tensor) -> frozenset[int]:
        """The axes along which units lie, counted from the end."""
        return frozenset(d - p.dim() for p in self.flow.planes_of(tensor) for d in varying(p))

    def _product(self, call: Call, first: int) -> bool:
        """Zero if every axis along which units lie has a factor that is zero there; what is added is zero as well."""
        a, b = call.args[first], call.args[first + 1] if len(call.args) > first + 1 else None
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return not isinstance(a, Tensor) or a in self
        added = call.args[:first] if first else call.args[2:3]
        if not all(t in self for t in added if isinstance(t, Tensor)):
            return False
        convolved = call.name == "convolution"
        zero: set[int] = set()
        other: set[int] = set()
        for tensor, summed in ((a, -1), (b, -1 if call.name == "linear" or b.dim() == 1 else -2)):
            for plane in self.flow.planes_of(tensor):
                axes = {d - plane.dim() for d in varying(plane)}
                if convolved:
                    axes = {d for d in varying(plane) if d != 1 or tensor.shape[1] == 1}
                    axes = {1 if tensor is b and d == 0 else d for d in axes}
                elif call.name != "mul":
                    axes -= {summed}
                    axes = {-1 if call.name == "linear" and tensor is b else d for d in axes}
                (zero if tensor in self else other).update(axes)
        return other <= zero


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
