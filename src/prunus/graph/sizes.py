"""Where the sizes in a forward come from: a tensor's shape, an attribute of a module, or the code itself.

A size that is read off a shape follows the tensor when that becomes smaller. One that a module keeps as an integer can
be repaired, if it is known which one it is. One that is written into the code cannot. So while a model is traced, the
integers that its modules keep and the shapes of tensors that carry atoms are integers of a kind that remembers where
it came from (`Size`), and a `TorchFunctionMode` sees them arrive in `view`, `split`, `expand`, `zeros` and the like.
"""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.atoms import Plane, varying

if TYPE_CHECKING:
    from prunus.graph.flow import Flow
    from prunus.graph.lengths import Lengths


class Size(int):
    """An integer that remembers what it measures.

    Attributes:
        lengths: those of the run that it belongs to.
        target: the attribute that holds it (`layers.0.attn.num_heads`), if it is one.
        planes: the planes of the tensor whose axis it measures, if it is such an axis' length.
        axis: that axis.
        factors: what it is the product of.
        terms: what it is the sum of.
        ratio: what it is the quotient of, if both are attributes.
        derived: computed in another way from such integers, so nothing is known but that it may follow.
    """

    lengths: Lengths
    target: str | None
    planes: tuple[Plane, ...]
    axis: int
    factors: tuple[int, ...]
    terms: tuple[int, ...]
    ratio: tuple[Size, Size] | None
    derived: bool

    @classmethod
    def make(cls, lengths: Lengths, value: int, **known: Any) -> Size:
        """A size with what is known about it."""
        size = cls(value)
        size.lengths = lengths
        size.target = known.get("target")
        size.planes = known.get("planes", ())
        size.axis = known.get("axis", 0)
        size.factors = known.get("factors", ())
        size.terms = known.get("terms", ())
        size.ratio = known.get("ratio")
        size.derived = known.get("derived", False)
        return size

    def atoms(self) -> Plane | None:
        """The atoms along the axis that it measures, `[self]`; None where there is no such axis or it has none."""
        if self.target is not None:
            return self.lengths.size_axis(self.target, int(self))
        along = [p for p in self.planes if p.shape[self.axis] > 1]
        if len(along) == 1 and len(varying(along[0])) == 1:
            return along[0].reshape(-1)
        return None

    def free(self) -> bool:
        """Whether it follows what it is computed from in a way that is not known."""
        if self.derived:
            return True
        return any(p.shape[self.axis] > 1 and len(varying(p)) > 1 for p in self.planes)

    def _new(self, value: Any, **known: Any) -> Any:
        return Size.make(self.lengths, value, **known) if type(value) is int else value

    def __mul__(self, other: Any) -> Any:
        value = int.__mul__(self, other)
        return self if _is(other, 1) else self._new(value, factors=(self, other))

    def __rmul__(self, other: Any) -> Any:
        value = int.__rmul__(self, other)
        return self if _is(other, 1) else self._new(value, factors=(other, self))

    def __add__(self, other: Any) -> Any:
        value = int.__add__(self, other)
        return self if _is(other, 0) else self._new(value, terms=(self, other))

    def __radd__(self, other: Any) -> Any:
        value = int.__radd__(self, other)
        return self if _is(other, 0) else self._new(value, terms=(other, self))

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, int):
            for i, factor in enumerate(self.factors):
                if len(self.factors) == 2 and type(other) is type(factor) and int(other) == int(factor):
                    return self.factors[1 - i]
        if isinstance(other, Size) and self.target is not None and other.target is not None and self % other == 0:
            return self._new(int.__floordiv__(self, other), ratio=(self, other), derived=True)
        return self if _is(other, 1) else self._new(int.__floordiv__(self, other), derived=True)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._new(int.__rfloordiv__(self, other), derived=True)

    def __sub__(self, other: Any) -> Any:
        return self if _is(other, 0) else self._new(int.__sub__(self, other), derived=True)

    def __rsub__(self, other: Any) -> Any:
        return self._new(int.__rsub__(self, other), derived=True)

    def __mod__(self, other: Any) -> Any:
        return self._new(int.__mod__(self, other), derived=True)

    def __neg__(self) -> Any:
        return self._new(int.__neg__(self), derived=True)

    def __index__(self) -> int:
        return int.__index__(self)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)
        if same is True:
            self.lengths.compared(self, other)
        return same

    def __ne__(self, other: object) -> bool:
        differ = int.__ne__(self, other)
        if differ is False:
            self.lengths.compared(self, other)
        return differ

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __copy__(self) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


# Attributes of modules ------------------------------------------------------------------------------------------------

_OPAQUE = (nn.Module, Tensor, type, enum.Enum, types.FunctionType, types.MethodType, types.ModuleType, torch.dtype)


@contextmanager
def remembered(model: nn.Module, lengths: Lengths) -> Iterator[None]:
    """Integers that modules (and plain objects that modules hold, such as a configuration) keep, as `Size`s."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in list(vars(module).items()):
            if name.startswith("__") or name in _NEVER:
                continue
            _remember(vars(module), name, value, prefix + name, lengths, before)
            if not isinstance(value, _OPAQUE) and isinstance(inner := getattr(value, "__dict__", None), dict):
                if id(value) in seen:
                    continue
                seen.add(id(value))
                for key, item in list(inner.items()):
                    _remember(inner, key, item, f"{prefix}{name}.{key}", lengths, before)
    # einops keeps the sizes it has computed by value, and so would hand those of one module to the next.
    einops: Any = sys.modules.get("einops.einops")
    cached = getattr(einops, "_reconstruct_from_shape", None)
    plain = getattr(einops, "_reconstruct_from_shape_uncached", None)
    try:
        if cached is not None and plain is not None:
            einops._reconstruct_from_shape = plain
        yield
    finally:
        if cached is not None and plain is not None:
            einops._reconstruct_from_shape = cached
        for holder, name, value in before:
            holder[name] = value


_NEVER = frozenset(("training", "_version", "_parameters", "_buffers", "_modules", "_is_full_backward_hook"))


def _remember(
    holder: dict[str, Any],
    name: str,
    value: Any,
    target: str,
    lengths: Lengths,
    before: list[tuple[dict[str, Any], str, Any]],
) -> None:
    new: Any
    if type(value) is int and value > 1:
        new = Size.make(lengths, value, target=target)
    elif type(value) in (tuple, list) and 0 < len(value) <= 64 and all(type(v) is int for v in value):
        sizes = [Size.make(lengths, v, target=f"{target}[{i}]") if v > 1 else v for i, v in enumerate(value)]
        new = type(value)(sizes)
    else:
        return
    before.append((holder, name, value))
    holder[name] = new


# Functions that take sizes --------------------------------------------------------------------------------------------

# Functions whose integers say nothing about the length of an axis that atoms lie along, or that rules and `repair`
# know all about.
_HARMLESS = frozenset(
    (
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "dropout",
        "layer_norm", "rms_norm", "group_norm", "batch_norm", "embedding", "softmax", "log_softmax", "interpolate",
        "pad", "max_pool2d", "max_pool1d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool1d",
        "adaptive_max_pool2d", "unsqueeze", "squeeze", "transpose", "permute", "flatten", "cat", "stack", "mean",
        "sum", "select", "unbind", "roll", "gelu", "relu", "leaky_relu", "multi_head_attention_forward", "lstm", "gru",
        "rnn_tanh", "rnn_relu", "movedim", "flip", "size", "dim", "__getitem__", "narrow", "split", "chunk",
        "split_with_sizes", "tensor_split", "scaled_dot_product_attention", "pixel_shuffle", "pixel_unshuffle",
        "unfold", "fold", "__setitem__", "amax", "amin", "max", "min", "var", "std", "norm", "normalize", "glu", "to",
        "dropout2d", "add", "sub", "mul", "div", "__add__", "__mul__", "__truediv__", "__sub__", "__pow__", "pow",
        "__rmul__", "__radd__", "__rsub__", "__rtruediv__", "__eq__", "eq", "ne", "ge", "gt", "le", "lt", "clamp",
        "__lt__", "__gt__", "__ge__", "__le__", "__ne__", "channel_shuffle", "native_channel_shuffle", "instance_norm",
        "_assert", "is_floating_point", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "local_response_norm",
    )
)  # fmt: skip
_MATMUL = frozenset(("matmul", "__matmul__", "__rmatmul__", "bmm"))
_VIEWS = frozenset(("view", "reshape", "_unsafe_view", "expand", "broadcast_to"))
_LIKE = frozenset(("expand_as", "view_as", "reshape_as"))
_MAKES = frozenset(
    ("zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full")
)


class Watch(TorchFunctionMode):
    """Sees the arguments of PyTorch's functions before they become plain numbers."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(
        self, func: Callable[..., Any], types_: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # `view.default` in exported graphs
        flow = self.flow
        if name == "__get__" or name == "size":
            return self._shape(func(*args, **kwargs), args, kwargs)
        if name in _MATMUL and flow.activations(args):
            with flow.paused():
                out = func(*args, **kwargs)
                flow.matmul(out, *(reversed(args) if name == "__rmatmul__" else args))
            return out
        outer = flow.lengths.pending
        # Below a function that is itself written in Python nothing is known about where sizes come from.
        opaque = isinstance(func, types.FunctionType) and name not in ("split", "unflatten", "pad")
        flow.lengths.pending = None if opaque else list(integers((args, tuple(kwargs.values()))))
        if name in ("chunk", "tensor_split"):  # the number of parts stays, whatever their length
            flow.lengths.pending = None
        elif name == "narrow" and flow.lengths.pending is not None and len(flow.lengths.pending) == 3:
            flow.lengths.pending.append(flow.lengths.pending[1] + flow.lengths.pending[2])
            del flow.lengths.pending[0], flow.lengths.pending[1]
        try:
            out = func(*args, **kwargs)
        finally:
            flow.lengths.pending = outer
        if name == "multi_head_attention_forward":
            flow.fix_attention(func, args, kwargs)
        elif name in _VIEWS or name in _MAKES or name in _LIKE or name == "unflatten":
            with flow.paused():
                self._control(name, out, args, kwargs)
        elif name == "narrow" and len(args) == 4 and isinstance(args[1], int):
            with flow.paused():
                flow.lengths.control(out, int(args[1]) % out.dim(), args[3], False)
        elif name not in _HARMLESS:
            for size in integers((args, tuple(kwargs.values()))):
                if isinstance(size, Size):
                    flow.lengths.forbid(size, f"{name}: takes this size")
        return out

    def _shape(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args or not isinstance(args[0], Tensor):
            return out
        info = self.flow.info.get(args[0])
        if info is None or not info.planes:
            return out
        if type(out) is torch.Size:
            return torch.Size([self._length(info.planes, d, n) for d, n in enumerate(out)])
        if type(out) is int:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return self._length(info.planes, int(dim) % args[0].dim(), out) if isinstance(dim, int) else out
        return out

    def _length(self, planes: tuple[Plane, ...], dim: int, value: int) -> int:
        if any(p.shape[dim] > 1 for p in planes):
            return Size.make(self.flow.lengths, value, planes=planes, axis=dim)
        return value

    def _control(self, name: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(out, Tensor):
            return
        if name in _MAKES:
            start = 1 if name.startswith("new_") else 0
            sizes = _listed(args[start:], kwargs)
        elif name in _LIKE:
            other = args[1] if len(args) > 1 else kwargs["other"]
            sizes = list(self._shape(other.shape, (other,), {}))
        elif name == "unflatten":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            inner = list(kwargs.get("sizes", args[2] if len(args) > 2 else ()))
            before = int(dim) % args[0].dim() if isinstance(dim, int) else None
            if before is None:
                return
            sizes = [-1] * before + inner + [-1] * (out.dim() - before - len(inner))
        else:
            sizes = _listed(args[1:], kwargs)
        if len(sizes) != out.dim():
            return
        made = name in _MAKES
        source = args[0] if args and isinstance(args[0], Tensor) else None
        for d, size in enumerate(sizes):
            if type(size) is int and size == -1:
                continue
            grows = made or (
                name in ("expand", "broadcast_to", "expand_as")
                and source is not None
                and (d < out.dim() - source.dim() or source.shape[d - out.dim()] == 1)
            )
            self.flow.lengths.control(out, d, size, grows, made)


def _listed(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    found = kwargs.get("size", kwargs.get("shape"))
    if found is None:
        found = args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args
    found = [found] if isinstance(found, int) else list(found)
    return [v if isinstance(v, int) else -1 for v in found]


def integers(value: Any) -> Iterator[int]:
    """Every integer inside nested tuples, lists and slices."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from integers(item)
    elif isinstance(value, slice):
        yield from integers((value.start, value.stop, value.step))
