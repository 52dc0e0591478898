"""Watch every ATen operation of one run and let the atoms of the parameters flow through it.

The operations are seen below autograd and below `nn.Module`, through `__torch_dispatch__`, so the source of the model
does not matter. Rules live in `rules_*.py`; an operation without a rule freezes what goes in and gives nothing out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.groups import Role
from prunus.graph.atoms import Atoms, Plane, compress, varying
from prunus.graph.lengths import Lengths
from prunus.graph.norms import Norm, find_norm

_RANK: dict[Role, int] = {"out": 0, "in": 1, "scale": 2, "shift": 3, "bias": 4, "other": 5}


@dataclass(frozen=True)
class Info:
    """What is known about a tensor: its planes, and whether it is computed from parameters alone (and which first)."""

    planes: tuple[Plane, ...] = ()
    source: str | None = None


NOTHING = Info()


@dataclass(frozen=True)
class Call:
    """One operation as the rules see it."""

    flow: Flow
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    where: str

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)

    @property
    def outputs(self) -> list[Tensor]:
        """The output tensors."""
        return [t for t in (self.out if isinstance(self.out, tuple | list) else (self.out,)) if isinstance(t, Tensor)]

    def reason(self, why: str) -> str:
        """`aten.softmax in layers.0.attn: ...`, the form of every freezing reason."""
        return f"{self.name} in {self.where or 'the model'}: {why}"

    def info(self, value: Any) -> Info:
        """What is known about an argument (nothing, if it is no tensor)."""
        return self.flow.info.get(value, NOTHING) if isinstance(value, Tensor) else NOTHING

    def freeze(self, value: Any, why: str) -> None:
        """No atom of this tensor may be removed."""
        for plane in self.info(value).planes:
            self.flow.atoms.freeze(plane, self.reason(why))

    def give(self, out: Tensor, planes: list[Plane], source: str | None = None) -> None:
        """Record what the output carries."""
        self.flow.record(out, planes, source)


Rule = Callable[[Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the overload packets with these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists, mappings and objects with fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name, None))


class Flow(TorchDispatchMode):
    """The dispatch mode that carries atoms along one run of `model`."""

    strict = False
    """Raise where a rule fails instead of freezing (for the tests of the rules)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True (PyTorch's default) makes the first operation import the whole of torch._dynamo, which takes seconds.
        return False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.atoms = Atoms()
        self.info: Any = WeakTensorKeyDictionary()
        self.macs: dict[str, int] = {}
        self.fixed_macs = 0
        self.roles: dict[int, Role] = {}
        self.used: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.marks: list[tuple[Plane, str]] = []
        self.norms: list[tuple[Plane, Norm]] = []
        self._norm_at: dict[str, Norm | None] = {}
        self.multiples: list[tuple[Plane, int]] = []
        self.model = model
        self.path: list[str] = []
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self.buffers = {n for n, _ in model.named_buffers()}
        self.asleep = 0
        self.lengths = Lengths(self)
        self._storages: dict[int, list[tuple[Tensor, str]]] = {}
        self._register()

    def _register(self) -> None:
        seen: dict[tuple[Any, ...], str] = {}
        named = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            key = _identity(tensor)
            if key in seen:
                self.aliases[seen[key]] = (*self.aliases[seen[key]], name)
                self.info.setdefault(tensor, self._leaf_of(seen[key]))
                continue
            seen[key] = name
            self.aliases[name] = (name,)
            planes: list[Plane] = []
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    lying = [1] * tensor.dim()
                    lying[dim] = size
                    planes.append(self.atoms.axis(name, dim, size).reshape(lying))
            self.info[tensor] = Info(tuple(planes), name)
            if tensor.device.type != "meta" and tensor.numel():
                self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append((tensor, name))

    def _leaf_of(self, name: str) -> Info:
        for info in self.info.values():
            if info.source == name:
                return Info(info.planes, name)
        return NOTHING

    # What modules run ------------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """The path of the innermost module that is running."""
        return self.path[-1] if self.path else ""

    # What operations do ----------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not self.asleep and name not in RULES and func.namespace == "aten" and func._can_decompose():
            # In inference mode compositions arrive whole; PyTorch itself says of what they are made.
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if self.asleep:
            return out
        inputs = list(tensors_in((args, kwargs)))
        if not inputs:
            return out
        for tensor in inputs:
            self._recognize(tensor)
        base = name if name.startswith("__") else name.rstrip("_")
        call = Call(self, base, func, args, kwargs, out, self.where)
        found = RULES.get(base)
        if found is None and torch.Tag.pointwise in func.tags:
            found = RULES["pointwise"]
        known = any(self.info.get(t, NOTHING) is not NOTHING for t in inputs)
        if found is not None and (known or base in _COUNTED):
            try:
                found(call)
            except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
                # A form of the operation that the rule was not written for. What it noted so far only ties more.
                if self.strict:
                    raise
                self._freeze_all(call, inputs, f"its rule does not fit ({type(error).__name__})")
        elif known:
            self._freeze_all(call, inputs, "no rule for this operation")
        return out

    def _freeze_all(self, call: Call, inputs: list[Tensor], why: str) -> None:
        for tensor in inputs:
            call.freeze(tensor, why)
        for tensor in tensors_in(call.out):
            self.info.pop(tensor, None)

    def _recognize(self, tensor: Tensor) -> None:
        """A tensor that shares memory with a parameter but did not come through an operation we saw."""
        if tensor in self.info or tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
            return
        try:
            pointer = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            return
        for leaf, _ in self._storages.get(pointer, ()):
            if _identity(leaf) == _identity(tensor):
                self.info[tensor] = self.info[leaf]
                return
        for leaf, name in self._storages.get(pointer, ()):
            for plane in self.info[leaf].planes:
                self.atoms.freeze(plane, f"a view of {name} that was made before the run")

    def planes_of(self, tensor: Tensor) -> tuple[Plane, ...]:
        """The planes of a tensor."""
        known: Info = self.info.get(tensor, NOTHING)
        return known.planes

    def source_of(self, tensor: Tensor) -> str | None:
        """The first parameter behind a tensor that is computed from parameters alone."""
        known: Info = self.info.get(tensor, NOTHING)
        return known.source

    def record(self, out: Tensor, planes: list[Plane], source: str | None = None) -> None:
        """Remember what a tensor carries; planes that say nothing are dropped."""
        kept: list[Plane] = []
        for plane in planes:
            if max(plane.shape, default=0) > 1 and plane.numel() and bool(plane.any()):
                self.atoms.box(plane)
                kept.append(plane)
        if kept or source is not None:
            self.info[out] = Info(tuple(kept), source)
        else:
            self.info.pop(out, None)

    def run_on_planes(self, call: Call, tensor: Tensor, move: Callable[[Tensor], Any]) -> list[list[Plane]]:
        """Run a data movement on every plane of `tensor`; one list of planes per output."""
        results: list[list[Plane]] = []
        for plane in self.info.get(tensor, NOTHING).planes:
            moved = move(plane.expand(tensor.shape))
            outputs = list(moved) if isinstance(moved, list | tuple) else [moved]
            for i, output in enumerate(outputs):
                if i == len(results):
                    results.append([])
                results[i].append(compress(output))
        return results

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations on planes between two operations of the model are not watched."""
        self.asleep += 1
        try:
            yield
        finally:
            self.asleep -= 1

    # Functions that are seen whole -----------------------------------------------------------------------------------

    def activations(self, args: tuple[Any, ...]) -> bool:
        """Whether these are two matrices (or batches of them) that carry atoms and are no parameters."""
        if len(args) != 2 or not all(isinstance(t, Tensor) and t.dim() >= 2 for t in args):
            return False
        infos = [self.info.get(t, NOTHING) for t in args]
        return all(i.source is None for i in infos) and any(i.planes for i in infos)

    def matmul(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """The product of two activations, seen whole: PyTorch takes it apart into copies and flat products."""
        if any(t.dim() > 10 for t in (a, b)):
            return
        RULES["activations"](Call(self, "matmul", torch.matmul, (a, b), {}, out, self.where))

    def fix_attention(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`nn.MultiheadAttention` takes the width of its projections from its input: no head can leave it."""
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        reason = f"multi_head_attention_forward in {self.where or 'the model'}: its width is that of its input"
        fixed = ("query", "key", "value", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v")
        for name in (*fixed, "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if isinstance(tensor := given.get(name), Tensor):
                for plane in self.info.get(tensor, NOTHING).planes:
                    self.atoms.freeze(plane, reason)
        for plane in self.info.get(given["out_proj_weight"], NOTHING).planes:
            if plane.shape[-1] > 1:
                self.atoms.freeze(plane, reason)

    def play(self, plane: Plane, role: Role, kind: str = "neuron") -> None:
        """Note what the axis behind this plane does (the most telling role is kept) and when it was first used."""
        atom = int(plane.reshape(-1)[0]) if plane.numel() else 0
        if not atom:
            atoms = plane[plane > 0]
            if not atoms.numel():
                return
            atom = int(atoms[0])
        axis = self.atoms.axis_of(atom)
        if self.atoms.axes[axis].name in self.buffers:
            role = "other"  # nothing masks a buffer, so nothing that it produces alone can be removed
        if _RANK[role] < _RANK[self.roles.get(axis, "other")] or axis not in self.roles:
            self.roles[axis] = role
            if role == "out":
                self.kinds[axis] = kind
        self.used.setdefault(axis, len(self.used))

    def averaged(self, plane: Plane) -> bool:
        """Note that the running module averages squares over this plane's axis; True if that can be put right."""
        where, size = self.where, plane.numel()
        if len(varying(plane)) != 1:
            return False
        if where not in self._norm_at:
            with self.paused():
                self._norm_at[where] = find_norm(where, self.model.get_submodule(where), size)
        norm = self._norm_at[where]
        if norm is None or self.shapes.get(norm.parameter) != (size,):
            return False
        self.norms.append((plane, norm))
        return True

    def require(self, plane: Plane, multiple: int) -> None:
        """Note that a kernel needs the number of these units to be a multiple of this."""
        self.multiples.append((plane, multiple))

    def mark(self, plane: Plane, kind: str) -> None:
        """Note what the units of these atoms are called, if they are more than channels or neurons."""
        self.marks.append((plane, kind))

    def count(self, source: str | None, macs: int) -> None:
        """Add multiply-accumulates to a parameter, or to those that belong to none."""
        if source is None:
            self.fixed_macs += macs
        else:
            self.macs[source] = self.macs.get(source, 0) + macs


# Contractions are counted even where no operand carries atoms.
_COUNTED = frozenset(
    ("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "vdot", "convolution", "addmv", "addbmm", "linear", "matmul")
) | frozenset(
    f"_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention",
        "flash_attention_for_cpu",
        "efficient_attention",
        "attention_math",
        "cudnn_attention",
    )
)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory in the same shape."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    pointer = tensor.untyped_storage().data_ptr()
    if pointer == 0:
        return (id(tensor),)
    return (str(tensor.device), pointer, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
