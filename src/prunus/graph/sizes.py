"""Where the sizes in a forward come from: a tensor's shape, an attribute of a module, or the code itself.

A size that is read off a shape follows the tensor when that becomes smaller. One that a module keeps as an integer can
be repaired, if it is known which one it is. One that is written into the code cannot. So while a model is traced, the
integers that its modules keep and the shapes of tensors that carry atoms are integers of a kind that remembers where
it came from (`Size`), and a `TorchFunctionMode` sees them arrive in `view`, `split`, `expand`, `zeros` and the like.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
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

    def __pow__(self, other: Any, mod: Any = None) -> Any:
        self.lengths.counted(self)
        return int.__pow__(int(self), other)

    def __truediv__(self, other: Any) -> Any:
        self.lengths.counted(self)
        return int.__truediv__(int(self), other)

    def __rtruediv__(self, other: Any) -> Any:
        self.lengths.counted(self)
        return int.__rtruediv__(int(self), other)

    def __float__(self) -> float:
        self.lengths.counted(self)
        return int.__float__(self)

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
        "slice",
    )
)  # fmt: skip
_CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
_MATMUL = frozenset(("matmul", "__matmul__", "__rmatmul__", "bmm"))
_VIEWS = frozenset(("view", "reshape", "_unsafe_view", "expand", "broadcast_to"))
# Functions in Python that hand the sizes which they are given to the operation that the rules see.
_PASSED_ON = frozenset(("split", "unflatten", "pad", "layer_norm", "rms_norm"))
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
        if flow.hollow:
            flow.hollow.check(name, args)
        if name in _MATMUL and flow.activations(args):
            with flow.paused():
                pair = tuple(reversed(args)) if name == "__rmatmul__" else args
                out = flow.hollow.run(func, "matmul", pair, kwargs, pair) if flow.hollow else func(*args, **kwargs)
                flow.whole("activations", "matmul", func, pair, {}, out)
            return out
        if name == "scaled_dot_product_attention":
            return self._attention(func, args, kwargs)
        outer = flow.lengths.pending
        # Below a function that is itself written in Python nothing is known about where sizes come from.
        opaque = isinstance(func, types.FunctionType) and name not in _PASSED_ON
        flow.lengths.pending = None if opaque else list(integers((args, tuple(kwargs.values()))))
        parts = name in ("chunk", "tensor_split")  # their number stays, whatever their length
        if parts or (name == "__getitem__" and not _written(args[1])):
            flow.lengths.pending = None
        elif name == "slice":  # not the axis, which may be the same number
            flow.lengths.pending = list(integers(args[2:4]))
        elif name == "narrow" and flow.lengths.pending is not None and len(flow.lengths.pending) == 3:
            flow.lengths.pending.append(flow.lengths.pending[1] + flow.lengths.pending[2])
            del flow.lengths.pending[0], flow.lengths.pending[1]
        try:
            out = func(*args, **kwargs)
        finally:
            flow.lengths.pending = outer
        if name == "multi_head_attention_forward":
            flow.whole(name, name, func, args, kwargs, out)
        elif name in _VIEWS or name in _MAKES or name in _LIKE or name in ("unflatten", "repeat"):
            with flow.paused():
                self._control(name, out, args, kwargs)
        elif name in _CONVOLUTIONS or name == "group_norm":
            with flow.paused():
                self._parts(name, out, args, kwargs)
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

    def _attention(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Seen whole, because it divides by the square root of a width, of which its parts know only the number."""
        flow, names = self.flow, ("query", "key", "value", "attn_mask")
        given = (*args[:4], *(kwargs[n] for n in names[len(args) :] if n in kwargs))
        with flow.paused():
            products = flow.hollow.run(func, "attention", given[:3], {}, given[:3]) if flow.hollow else None
            out = func(*args, **kwargs) if products is None else products
            flow.whole("attention", "scaled_dot_product_attention", func, given, {}, out)
        return out

    def _parts(self, name: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Channels convolved or normalized in parts that leave whole: as many parts stay as an integer says."""
        given = args[1:2] if name == "group_norm" else args[6:7]
        parts = given[0] if given else kwargs.get("num_groups" if name == "group_norm" else "groups")
        if not isinstance(parts, Size) or parts.target is None or parts.target.endswith(("groups", "num_groups")):
            return  # what is called so beside a weight, `repair` puts right
        source = args[0] if args else kwargs["input"]
        spatial = out.dim() - 2 if name == "group_norm" else int(name[-2])
        dim = out.dim() - spatial - 1
        if name != "group_norm" and source.shape[dim] != parts:
            return  # several channels in each: some of each leave, and the number of parts stays
        for plane in self.flow.planes_of(out):
            if plane.shape[dim] > 1:
                self.flow.lengths.govern(plane.unflatten(dim, (int(parts), -1)), dim, parts)

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
        elif name == "repeat":
            self._repeat(out, args[0], _listed(args[1:], {"size": kwargs["repeats"]} if "repeats" in kwargs else {}))
            return
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

    def _repeat(self, out: Tensor, tensor: Tensor, times: list[int]) -> None:
        """An axis of length one that is repeated becomes as long as that; of a longer one the number has to stay."""
        for d, size in enumerate(times):
            if isinstance(size, Size) and out.shape[d] == int(size):
                self.flow.lengths.control(out, d, size, True)
            elif isinstance(size, Size):
                self.flow.lengths.forbid(size, "repeat: takes this size")


def _written(key: Any) -> bool:
    """Whether the positions in square brackets are numbers in the code (or sizes), and none is computed as a tensor."""
    if isinstance(key, tuple | list):
        return all(_written(item) for item in key)
    return key is None or key is Ellipsis or isinstance(key, int | slice)


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
