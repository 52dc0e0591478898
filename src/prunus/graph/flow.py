"""Watch every ATen operation of one run and let the atoms of the parameters flow through it.

The operations are seen below autograd and below `nn.Module`, through `__torch_dispatch__`, so the source of the model
does not matter. Rules live in `rules/`; an operation without a rule freezes what goes in and gives nothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.groups import Role
from prunus.graph.atoms import Atoms, Plane, compress, varying
from prunus.graph.causes import Causes
from prunus.graph.higher import Throughout, is_higher
from prunus.graph.hollow import Hollow
from prunus.graph.lengths import Lengths
from prunus.graph.norms import Norm, find_norm
from prunus.graph.running import identity
from prunus.graph.running import tensors_in as tensors_in
from prunus.graph.zeros import Zeros

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
        reason = f"{self.name} in {self.where or 'the model'}: {why}"
        return self.flow.causes.told(reason, list(tensors_in(self.args)))

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
    """Register a rule for operations: ATen's by their names (`relu`), others with their library's (`mine::twice`).

    A rule is called after the operation has run. `call.info(tensor).planes` says to which atom (a position along an
    axis of a parameter; 0 is none) each element of an argument belongs; `call.give(out, planes)` says it of an output;
    `call.flow.atoms.tie` and `call.freeze` note what has to go together and what must stay. What it gets wrong, the
    trial removal of `trace` finds out.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Flow(Throughout):
    """The dispatch mode that carries atoms along one run of `model`."""

    strict = False
    """Raise where a rule fails instead of freezing (for the tests of the rules)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True (PyTorch's default) makes the first operation import the whole of torch._dynamo, which takes seconds.
        return False

    def __init__(self, model: nn.Module, exact: bool = True, hollow: Hollow | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.exact, self.hollow = exact, hollow
        self.atoms = Atoms()
        self.info: Any = WeakTensorKeyDictionary()
        self.macs: dict[str, int] = {}
        self.fixed_macs = 0
        self.roles: dict[int, Role] = {}
        self.used: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.touched: set[str] = set()
        self.trained = False
        self.made: list[Plane] = []
        self.marks: list[tuple[Plane, str]] = []
        self.norms: list[tuple[Plane, Norm]] = []
        self._norm_at: dict[str, Norm | None] = {}
        self.statistics: list[tuple[Plane, str]] = []
        self.owed: Any = WeakTensorKeyDictionary()
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
        self.causes = Causes(self)
        self.zeros = Zeros(self)

    def _register(self) -> None:
        seen: dict[tuple[Any, ...], str] = {}
        named = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            key = identity(tensor)
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
        if is_higher(func):
            return self.inside(func, args, kwargs)
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace != "aten":  # someone's own operation, whatever its name
            name = f"{func.namespace}::{name}"
        if not self.asleep and name not in RULES and func.namespace == "aten" and func._can_decompose():
            # In inference mode compositions arrive whole; PyTorch itself says of what they are made.
            with self:
                return func.decompose(*args, **kwargs)
        inputs = [] if self.asleep else list(tensors_in((args, kwargs)))
        if not inputs:
            return func(*args, **kwargs)
        before = args
        if torch.Tag.inplace_view in func.tags and isinstance(args[0], Tensor):  # as it was, with the shape that it had
            before = (args[0].detach(), *args[1:])
            self.info[before[0]] = self.info.get(args[0], NOTHING)
        out = self.hollow.run(func, name, args, kwargs, inputs) if self.hollow else func(*args, **kwargs)
        for tensor in inputs:
            self._recognize(tensor)
            if (source := self.source_of(tensor)) is not None:
                self.touched.add(source)
            self.settle(tensor)
        base = name if name.startswith("__") else name.rstrip("_")
        call = Call(self, base, func, before, kwargs, out, self.where)
        found = RULES.get(base)
        if found is None and torch.Tag.pointwise in func.tags:
            found = RULES["pointwise"]
        known = any(self.info.get(t, NOTHING) is not NOTHING for t in inputs)
        if known or (found is not None and base in _COUNTED):
            self._apply(found, call, inputs)
        else:
            self.causes.pass_on(inputs, list(tensors_in(out)), None)
        return out

    def _apply(self, found: Rule | None, call: Call, inputs: list[Tensor]) -> None:
        """Run a rule; then note where its outputs are zero and why they have no atoms, if they have none."""
        zero, noted = self.zeros.after(call, inputs), self.atoms.noted
        try:
            if found is None:
                self._freeze_all(call, inputs, "no rule for this operation (prunus.graph.rule registers one)")
            else:
                found(call)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            # A form of the operation that the rule was not written for. What it noted so far only ties more.
            if self.strict:
                raise
            self._freeze_all(call, inputs, f"its rule does not fit ({type(error).__name__})")
        outputs = list(tensors_in(call.out))
        self.zeros.note(call, outputs, zero)
        if call.name in _COUNTED:  # what leaves a product with a weight is as wide as the weight is
            inputs = [t for t in inputs if self.source_of(t) is not None] or inputs
        self.causes.pass_on(inputs, outputs, self.atoms.since(noted))

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
            if identity(leaf) == identity(tensor):
                self.info[tensor] = self.info[leaf]
                return
        for leaf, name in self._storages.get(pointer, ()):
            for plane in self.info[leaf].planes:
                self.atoms.freeze(plane, f"a view of {name} that was made before the run")

    def owe(self, tensor: Tensor, plane: Plane, reason: str) -> None:
        """This plane may not shrink if the numbers in `tensor` are used; asking for its shape does no harm."""
        self.owed.setdefault(tensor, []).append((plane, reason))

    def settle(self, tensor: Tensor) -> None:
        """The numbers of this tensor are used."""
        for plane, reason in self.owed.pop(tensor, ()) if self.owed else ():
            self.atoms.freeze(plane, reason)

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
        if len(args) != 2 or not all(isinstance(t, Tensor) and 2 <= t.dim() <= 10 for t in args):
            return False
        infos = [self.info.get(t, NOTHING) for t in args]
        return all(i.source is None for i in infos) and any(i.planes for i in infos)

    def whole(self, key: str, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Run the rule `key` for a function of which the operations alone do not say enough."""
        self._apply(RULES[key], Call(self, name, func, args, kwargs, out, self.where), list(tensors_in((args, kwargs))))

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
        if role == "out":
            self.made.append(plane)
        if _RANK[role] < _RANK[self.roles.get(axis, "other")] or axis not in self.roles:
            self.roles[axis] = role
            if role == "out":
                self.kinds[axis] = kind
        self.used.setdefault(axis, len(self.used))

    def averaged(self, plane: Plane) -> bool:
        """Note that the running module averages over this plane's axis; True if that can be put right."""
        where, size = self.where, plane.numel()
        if len(varying(plane)) != 1:
            return False
        if where not in self._norm_at:
            module = self.model.get_submodule(where)
            with self.paused():
                self._norm_at[where] = find_norm(where, module, size, plane.dim(), varying(plane)[0])
        norm = self._norm_at[where]
        if norm is None or max(self.shapes.get(norm.parameter, ()), default=0) != size:
            return False
        self.norms.append((plane, norm))
        return True

    def loosened(self, plane: Plane, weight: object) -> bool:
        """Note that a mean and a variance run over this plane's axis; True if they may be those of what is kept."""
        name = self.source_of(weight) if isinstance(weight, Tensor) else None
        if self.exact or name is None or self.shapes.get(name) != (plane.numel(),):
            return False
        self.statistics.append((plane, name))
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
