"""Models without values: fake tensors are traced as meta tensors, and of these only what the forward makes is known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.task import Example
from prunus.graph.duplicate import duplicate
from prunus.graph.higher import Throughout, is_higher
from prunus.graph.running import mapped, tensors_in


def is_fake(model: nn.Module) -> bool:
    """Whether any parameter or buffer is a fake tensor."""
    return any(isinstance(t, FakeTensor) for t in (*model.parameters(), *model.buffers()))


def on_meta(model: nn.Module, example: Example | Tensor, run: Callable[[nn.Module, Example | Tensor], Any]) -> Any:
    """`run` on a copy of a fake model on the meta device, outside of any fake mode."""
    with unset_fake_temporarily():
        memo: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            bare = _bare(tensor)
            memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        return run(duplicate(model, memo), mapped(example, _bare))


def _bare(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")


# Their values do not depend on those of the tensor whose type, device or shape they take.
_FRESH = frozenset(
    ("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like")
)


def known(model: nn.Module) -> AbstractContextManager[Any]:
    """Within it, a model on the meta device can look at the numbers that it makes itself."""
    return Known() if any(t.is_meta for t in model.parameters()) else nullcontext()


class Known(Throughout):
    """Keeps the values of meta tensors that a forward makes itself (positions, masks), so that it may look at them.

    An operation on tensors with known values runs on the CPU as well. What depends on weights or inputs is not known.
    """

    _LARGEST = 2**22  # elements; nothing larger decides where code goes

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: Any = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_higher(func):
            return self.inside(func, args, kwargs)
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and inputs[0].is_meta:
            return self._number(inputs[0])
        known = all(not t.is_meta or t in self.values for t in inputs) or (name in _FRESH and inputs[0].is_meta)
        if not known or torch.Tag.nondeterministic_seeded in func.tags:
            self._forget(func, args)
            return func(*args, **kwargs)
        try:
            out = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):  # as many elements as there are values that are not zero
            return self._computed(func, args, kwargs, lambda twin: twin.to("meta"))
        if any(t.is_meta and t.numel() <= self._LARGEST for t in tensors_in(out)):
            fresh = iter(tensors_in(out))
            self._computed(func, args, kwargs, lambda twin: next(fresh))
        return out

    def _computed(self, func: Any, args: Any, kwargs: dict[str, Any], meta: Callable[[Tensor], Tensor]) -> Any:
        def shadow(value: Tensor) -> Tensor:
            if not value.is_meta:
                return value
            found: Tensor | None = self.values.get(value)
            return torch.empty(value.shape, dtype=value.dtype) if found is None else found

        def remember(twin: Tensor) -> Tensor:
            out = meta(twin)
            if out.is_meta:
                self.values[out] = twin
            return out

        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return tree_map_only(
            Tensor, remember, func(*tree_map_only(Tensor, shadow, args), **tree_map_only(Tensor, shadow, kwargs))
        )

    def _forget(self, func: Any, args: tuple[Any, ...]) -> None:
        """What is written to with values that are not known is not known either, nor is any view of it."""
        if not func._schema.is_mutable:
            return
        for tensor in tensors_in(args):
            if (old := self.values.get(tensor)) is not None:
                memory = old.untyped_storage().data_ptr()
                for other in [t for t, v in self.values.items() if v.untyped_storage().data_ptr() == memory]:
                    del self.values[other]

    def _number(self, tensor: Tensor) -> Any:
        found = self.values.get(tensor)
        if found is None:
            raise RuntimeError(
                "the code looks at a number that depends on weights or inputs, and these have no values on the meta "
                "device. Pass what it computes from them (an attention mask, say), or trace the model with weights"
            )
        return found.item()
