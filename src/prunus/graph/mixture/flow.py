"""Watch where a model chooses among experts, and run it with some of them out of the choice.

A router is a weight whose product with activations, one number per token and expert, reaches a softmax, a sigmoid or a
choice of the largest. The atoms of the dependency engine show that product, whatever the code around it looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.errors import StructureError
from prunus.graph.atoms import Plane, varying
from prunus.graph.flow import NOTHING, Flow, Info, tensors_in

_NORMALIZES = frozenset(("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax"))
_CHOOSES = frozenset(("topk", "sort", "argsort", "argmax", "max", "amax", "kthvalue"))
_GATES = frozenset(("sigmoid", "relu", "softplus", "exp"))


class _Routing(Flow):
    """A flow that follows logits through a softmax, which freezes them but moves nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.asleep:
            return out
        name = func.overloadpacket.__name__.rstrip("_")
        if name in _NORMALIZES and isinstance(out, Tensor):
            given = self.info.get(args[0], NOTHING)
            if given.source is None and given.planes:
                self.record(out, list(given.planes))
        self.after(name, args, kwargs or {}, out)
        return out

    def after(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """What a subclass does once an operation is done."""

    def averaged(self, plane: Plane) -> bool:
        """No normalization matters here."""
        return False


@dataclass
class Choice:
    """What is done with the logits along one axis of a weight.

    Attributes:
        experts: the axis' length.
        most: the most experts that are chosen at once, 0 where that is not to be seen.
        parts: the number of equal consecutive parts among which (and then within which) is chosen.
        each: how many are looked at within a part.
        chosen: whether they are normalized together or chosen from, and not only bounded one by one.
    """

    experts: int
    most: int = 0
    parts: int = 1
    each: int = 1
    chosen: bool = False


class Choices(_Routing):
    """Notes which axes of parameters give logits.

    Attributes:
        found: (parameter, axis) -> what is chosen by it, in the order of the model.
        ran: the paths of the modules that were called.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: dict[tuple[str, int], Choice] = {}
        self.ran: set[str] = set()

    def part(self, name: str, dim: int) -> str:
        """The role that an axis of a parameter plays; empty where it plays none."""
        axes = self.atoms.axes
        return next((role for i, role in self.roles.items() if (axes[i].name, axes[i].dim) == (name, dim)), "")

    def convolved(self, name: str) -> bool:
        """Whether the first axis of a parameter makes channels of a convolution, and so holds no experts."""
        axes = self.atoms.axes
        made = (i for i, kind in self.kinds.items() if kind == "channel")
        return any((axes[i].name, axes[i].dim) == (name, 0) for i in made)

    def met(self, router: str, dim: int) -> frozenset[str]:
        """The tensors with one number per expert that were combined with the logits of this router."""
        labels, _ = self.atoms.solve()
        places = {(a.name, a.dim): labels[a.start : a.start + a.size] for a in self.atoms.axes}
        own = places[router, dim]
        return frozenset(name for (name, _), theirs in places.items() if name != router and torch.equal(own, theirs))

    def after(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note a choice along an axis on which atoms lie."""
        self.ran.update(self.path)
        if name not in _NORMALIZES | _CHOOSES | _GATES or not args or not isinstance(args[0], Tensor):
            return
        tensor, ndim = args[0], args[0].dim()
        dim: Any = None
        if name not in _GATES and ndim:
            place = 2 if name in ("topk", "kthvalue") else 1
            dim = kwargs.get("dim", args[place] if len(args) > place else -1)
            dim = dim % ndim if type(dim) is int else None
        info: Info = self.info.get(tensor, NOTHING)
        for plane in info.planes if info.source is None else ():
            axes = varying(plane)
            if not axes or (dim is not None and dim not in axes):
                continue
            atoms = plane[plane > 0].unique()
            axis = self.atoms.axes[self.atoms.axis_of(int(atoms[0]))]
            if (
                axis.dim is None
                or atoms.numel() != axis.size
                or plane.numel() != axis.size
                or axis.name in self.buffers
            ):
                continue
            choice = self.found.setdefault((axis.name, axis.dim), Choice(axis.size))
            choice.chosen |= name not in _GATES
            if name in _CHOOSES and dim is not None:
                k = int(kwargs.get("k", args[1] if len(args) > 1 else 1)) if name == "topk" else 0
                if plane.shape[dim] == axis.size:
                    choice.most = max(choice.most, k)
                else:
                    choice.parts = max(choice.parts, axis.size // plane.shape[dim])
                    choice.each = max(choice.each, k)


@dataclass(frozen=True)
class Gate:
    """A tensor with one slice per expert that decides who is chosen.

    Attributes:
        tensor: the name of a parameter or buffer.
        dim: the axis of the experts.
    """

    tensor: str
    dim: int


class _Aside(_Routing):
    """Puts minus infinity wherever a gate meets activations, at the experts that are away."""

    def __init__(self, scope: nn.Module, gates: Mapping[str, int], away: Bool[Tensor, "units"]) -> None:
        self._gates = gates
        self._made: Any = WeakTensorKeyDictionary()
        self._away = torch.cat([torch.zeros(1, dtype=torch.bool), away.cpu()])  # atom 0 is no expert
        super().__init__(scope)

    def _register(self) -> None:
        experts = self._away.numel() - 1
        atoms = self.atoms.axis("experts", 0, experts)
        named = {
            **dict(self.model.named_parameters(remove_duplicate=False)),
            **dict(self.model.named_buffers(remove_duplicate=False)),
        }
        for name, dim in self._gates.items():
            if name not in named or named[name].dim() <= dim or named[name].shape[dim] != experts:
                raise StructureError(f"the model has no router {name!r} of {experts} experts")
        for name, tensor in named.items():
            # Other numbers per expert are told from numbers that have nothing to do with experts by what they meet.
            dim = self._gates.get(name, next((d for d, size in enumerate(tensor.shape) if size == experts), 0))
            if name not in self._gates and tensor.numel() != experts:
                continue
            lying = [1] * tensor.dim()
            lying[dim] = -1
            self.aliases[name] = (name,)
            self.info[tensor] = Info((atoms.reshape(lying),), name)
            if name in self._gates:
                self._made[tensor] = True
            if not tensor.is_meta:
                self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append((tensor, name))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = False
        for tensor in tensors_in((args, kwargs)):
            self._recognize(tensor)
            known |= tensor in self.info
        if not known:  # most operations have nothing to do with the choice
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def after(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Fill in what came out of the meeting of a gate and activations."""
        given = list(tensors_in((args, dict(kwargs))))
        if not any(t in self._made or self.info.get(t, NOTHING).source in self._gates for t in given):
            return
        for tensor in tensors_in(out):
            info: Info = self.info.get(tensor, NOTHING)
            if info.source is not None:
                self._made[tensor] = True
            elif tensor.is_floating_point():
                for plane in info.planes:
                    tensor.masked_fill_(self._away[plane].to(tensor.device), float("-inf"))


@contextmanager
def aside(model: nn.Module, scope: str, gates: tuple[Gate, ...], keep: Bool[Tensor, "units"]) -> Iterator[None]:
    """While this holds, the module at `scope` runs as if the logits of the experts that are not kept were minus
    infinity.

    Args:
        model: the model, dense or masked.
        scope: the path of a module that is called and holds all gates.
        gates: the tensors of which the logits, and the scores that are compared, are made.
        keep: which experts stay.
    """
    owner = model.get_submodule(scope)
    names = {g.tensor.removeprefix(f"{scope}." if scope else ""): g.dim for g in gates}
    inner: Callable[..., Any] = owner.forward
    had = vars(owner).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Aside(owner, names, ~keep):
            return inner(*args, **kwargs)

    vars(owner)["forward"] = forward
    try:
        yield
    finally:
        if had is None:
            vars(owner).pop("forward", None)
        else:
            vars(owner)["forward"] = had
