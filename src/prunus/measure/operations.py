"""Multiply-accumulates of one run of a model, with and without the zeros of its weights.

Counted while the model runs on the meta device (shapes without values: no memory, no arithmetic), because there every
contraction is visible: on a CPU the attention fast path and the fused recurrent kernels hide theirs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.core.errors import DataError
from prunus.graph.duplicate import duplicate
from prunus.graph.higher import Throughout, is_higher
from prunus.graph.running import eager, takes_hooks
from prunus.measure import contractions
from prunus.measure.inputs import (
    HOOK_TABLES,
    RUN_ERRORS,
    Example,
    as_found,
    batch_size,
    check_materialized,
    device_of,
    moved,
    run,
    uncompiled,
)
from prunus.measure.parameters import count_nonzero, named_parameters

META = torch.device("meta")


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates (MACs; two floating-point operations each) of the model on the example as given.

    total: every contraction at full size, as a dense kernel does it; causal attention counts its whole square.
    effective: a contraction with a weight (or a constant buffer) counts only its nonzero elements, each as often as it
        is used; zeros are followed through views, casts, copies and products with masks that are buffers. Activations
        that happen to be zero count. Weights on the meta device have no values: all count as nonzero.
    per_module, effective_per_module: by path, what runs in the module itself and not in a module inside it, so the
        values add up to the total; `""` is the root. `within` adds up a subtree.
    per_parameter: MACs by the weight they multiply with; products of two activations are in no entry.
    uncounted_ops: operations met that are neither counted nor known to be free of contractions.
    batch: examples in the batch, if known. how: `meta`, or `real: <why the model could not run on meta>`.
    """

    total: int
    effective: int
    per_module: dict[str, int]
    effective_per_module: dict[str, int]
    per_parameter: dict[str, int]
    uncounted_ops: tuple[str, ...]
    batch: int | None
    how: str

    @property
    def per_sample(self) -> float:
        """`total / batch`; the total itself where no batch dimension is known."""
        return self.total / (self.batch or 1)

    @property
    def effective_per_sample(self) -> float:
        """`effective / batch`; the effective count itself where no batch dimension is known."""
        return self.effective / (self.batch or 1)

    def within(self, path: str) -> int:
        """MACs of the module at `path` and of all modules inside it."""
        return sum(n for name, n in self.per_module.items() if not path or name == path or name.startswith(f"{path}."))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `per_sample` included."""
        return {**asdict(self), "per_sample": self.per_sample, "effective_per_sample": self.effective_per_sample}


@dataclass(frozen=True)
class _Source:
    """Where the values behind one storage are: `values()` has the strides of that storage, `shift` apart in offset."""

    values: Callable[[], Tensor]
    shift: int
    starts: tuple[int, ...]
    names: tuple[str, ...]

    def view(self, like: Tensor) -> Tensor:
        return self.values().as_strided(like.shape, like.stride(), int(like.storage_offset()) + self.shift)

    def name(self, like: Tensor) -> str:
        return self.names[max(bisect_right(self.starts, like.storage_offset()) - 1, 0)]


class _Weights:
    """Follows parameters through views, casts, copies and masking, to know which of their elements an operand holds."""

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}
        self._alive: list[Tensor] = []  # a freed storage's address could come back as another tensor
        self._seen: dict[tuple[object, ...], int] = {}

    def add(self, operand: Tensor, name: str, value: Tensor) -> None:
        """`operand` (what the run sees) holds the elements of `value` (the user's tensor, possibly the same)."""
        if value.layout != torch.strided:
            self._put(operand, _Source(lambda: value.to_dense(), 0, (0,), (name,)))
            return
        start = int(operand.storage_offset())
        shift = int(value.storage_offset()) - start
        old = self._sources.get(operand.untyped_storage()._cdata)
        spots = sorted({*(zip(old.starts, old.names, strict=True) if old else ()), (start, name)})
        starts, names = zip(*spots, strict=True)
        self._put(operand, _Source(lambda: value, shift, starts, names))

    def _put(self, operand: Tensor, source: _Source) -> None:
        self._alive.append(operand)
        self._sources[operand.untyped_storage()._cdata] = source

    def find(self, operand: Any) -> _Source | None:
        if not isinstance(operand, Tensor) or operand.layout != torch.strided:
            return None
        return self._sources.get(operand.untyped_storage()._cdata)

    def derive(self, out: Any, parents: list[Any]) -> None:
        """`out` is the product of `parents`, all of them weights, masks or numbers: zero where one of them is."""
        factors = [p for p in parents if isinstance(p, Tensor)]
        held = [(source, p) for p in factors if (source := self.find(p)) is not None]
        if not held or len(held) < len(factors) or not isinstance(out, Tensor) or self.find(out) is not None:
            return

        def values() -> Tensor:
            alive = torch.empty_strided(out.shape, out.stride(), dtype=torch.bool, device=held[0][0].values().device)
            alive.fill_(True)
            for source, parent in held:
                alive.logical_and_(source.view(parent).to(alive.device) != 0)
            return alive

        # Of two factors the larger is the weight, the smaller its scale; of equals the first.
        source, parent = max(held, key=lambda pair: pair[1].numel())
        self._put(out, _Source(values, -int(out.storage_offset()), (0,), (source.name(parent),)))

    def nonzero(self, operand: Tensor, source: _Source) -> int:
        if source.values().is_meta:
            return operand.numel()
        address = operand.untyped_storage()._cdata
        key = (address, operand.storage_offset(), tuple(operand.shape), operand.stride())
        if key not in self._seen:
            self._seen[key] = count_nonzero(source.view(operand))
        return self._seen[key]


Watch = Callable[[str, str, int, Any], Any]
"""`(weight's name, operation, place of the weight, arguments)` of every contraction with a weight -> what to note."""


class _Counter(Throughout):
    """Sees every operation of a run and books its multiply-accumulates on the module that is running."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.path: list[str] = [""]
        self.dense: dict[str, int] = defaultdict(int)
        self.effective: dict[str, int] = defaultdict(int)
        self.per_weight: dict[str, int] = defaultdict(int)
        self.uncounted: set[str] = set()
        self.watch: Watch | None = None
        self.noted: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_higher(func):
            return self.inside(func, args, kwargs)
        if not contractions.is_counted(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        name = contractions.name_of(func)
        if contractions.is_counted(func):
            self._book(name, args, contractions.multiply_accumulates(func, args, kwargs, out))
        elif name in contractions.COPIES:
            self.weights.derive(out, [args[0]])
        elif name in contractions.PRODUCTS:
            self.weights.derive(out, list(args[:2]))
        elif not contractions.is_free(func):
            self.uncounted.add(name)
        return out

    def _book(self, name: str, args: Any, macs: int) -> None:
        module = self.path[-1]
        self.dense[module] += macs
        candidates = [(args[at], source) for at in contractions.WEIGHT_AT.get(name, ())
                      if (source := self.weights.find(args[at])) is not None and args[at].numel()]  # fmt: skip
        effective = macs
        if candidates:
            operand, source = candidates[0]
            self.per_weight[source.name(operand)] += macs
            if self.watch is not None:
                at = next(i for i, a in enumerate(args) if a is operand)
                self.noted.append(self.watch(source.name(operand), name, at, args))
            # Each element of the weight is used equally often, so this division is exact.
            effective = min(macs * self.weights.nonzero(o, s) // o.numel() for o, s in candidates)
        self.effective[module] += effective


class _CopyToMeta(TorchFunctionMode):
    """Inside, `copy.deepcopy` gives tensors of the same shape and strides without values; it keeps the originals."""

    def __init__(self, memo: dict[int, Any], pairs: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.memo, self.pairs = memo, pairs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return self.swap(args[0])
        return func(*args, **(kwargs or {}))

    def swap(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.memo:
            plain = tensor.layout == torch.strided
            strides = tensor.stride() if plain else torch.empty(tensor.shape, device=META).stride()
            shadow: Tensor = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=META)
            if isinstance(tensor, nn.Parameter):
                shadow = nn.Parameter(shadow, requires_grad=False)
            self.memo[id(tensor)] = shadow
            self.pairs.append((tensor, shadow))
        result: Tensor = self.memo[id(tensor)]
        return result


def meta_copy(model: nn.Module) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A copy of `model` on the meta device without its forward hooks, and `(original, copy)` of every tensor met.

    Cost: the Python objects of the model, no memory for its weights. Raises what `copy.deepcopy` raises.
    """
    memo: dict[int, Any] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    swapper = _CopyToMeta(memo, pairs)
    for module in model.modules():
        for table in HOOK_TABLES:  # a hook may hold a whole training run, and must not run on shapes
            if table in module.__dict__:
                memo[id(module.__dict__[table])] = OrderedDict()
        for tensor in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(tensor, Tensor):
                swapper.swap(tensor)
    with swapper:
        twin = duplicate(model, memo)
    for module in twin.modules():
        module.training = False
    return twin, pairs


@contextmanager
def _exposed(*, kernels: bool) -> Iterator[None]:
    """No fused attention or encoder layer; with `kernels`, no fused recurrence and attention either. Restored after."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(eager())
        if kernels:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            # Not `mkldnn.flags`, which also sets TF32 and warns about it on every call.
            onednn = torch.backends.mkldnn.set_flags(False)[0]
            stack.callback(torch.backends.mkldnn.set_flags, onednn)
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _follow(model: nn.Module, counter: _Counter) -> None:
    """Keep `counter.path` at the module that is running. The hooks die with the copy, or with `as_found`."""
    for name, module in model.named_modules():
        if not takes_hooks(module):
            continue

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            counter.path.append(name)

        def leave(_module: nn.Module, _args: Any, _out: Any, name: str = name) -> None:
            while counter.path.pop() != name:  # an inner module whose exception the model caught never left
                pass

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def _counted(
    model: nn.Module, example: Example, device: torch.device, weights: _Weights, watch: Watch | None = None
) -> _Counter:
    counter = _Counter(weights)
    counter.watch = watch
    _follow(model, counter)
    args, kwargs = moved(example, device)
    with counter:
        run(model, args, kwargs)
    return counter


def _on_meta(model: nn.Module, example: Example, owners: dict[int, str], watch: Watch | None = None) -> _Counter:
    twin, pairs = meta_copy(model)
    weights = _Weights()
    for original, shadow in pairs:
        if id(original) in owners:
            weights.add(shadow, owners[id(original)], original)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _exposed(kernels=False):
        return _counted(twin, example, META, weights, watch)


def _on_device(model: nn.Module, example: Example, owners: dict[int, str], watch: Watch | None = None) -> _Counter:
    weights = _Weights()
    for tensor in _held(model):
        if id(tensor) in owners and tensor.layout == torch.strided:
            weights.add(tensor, owners[id(tensor)], tensor)
    device = device_of(model, example)
    with as_found(model, device, hooks=False, inference=False), _exposed(kernels=True):
        return _counted(model, example, device, weights, watch)


def _held(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(value, Tensor):
                yield value


def _owners(model: nn.Module) -> dict[int, str]:
    """The name each weight is counted under: parameters, buffers, and what a hook or a mask left as an attribute."""
    owners = {id(p): owner for _, owner, p in named_parameters(model)}
    for path, module in model.named_modules():
        for name, value in (*module._buffers.items(), *module.__dict__.items()):
            if isinstance(value, Tensor):
                owners.setdefault(id(value), f"{path}.{name}" if path else name)
    return owners


def counted(model: nn.Module, example: Example, watch: Watch | None = None) -> tuple[_Counter, str]:
    """What one run books, and how it was run: on meta, or for real where the model does not run there; see `macs`."""
    check_materialized(model)
    owners = _owners(model)
    try:
        return _on_meta(model, example, owners, watch), "meta"
    except (DataError, *RUN_ERRORS) as error:
        if device_of(model, example) == META:
            raise
        cause = error.__cause__ or error
        how = f"real: {(str(cause).strip() or type(cause).__name__).splitlines()[0]}"
        return _on_device(model, example, owners, watch), how


def macs(model: nn.Module, example: Example, *, batch: int | None = None) -> MacCount:
    """Multiply-accumulates of one forward pass in evaluation mode on `example` (a tensor, tuple, or dict of inputs).

    The model is copied without its values and run on the meta device with the fused paths off. A model that cannot run
    there (control flow that depends on values) runs once for real, and `how` says why. Forward hooks of the user do
    not run. `batch` overrides the batch size, which is the first dimension if all tensors of the example share it.

    The model, its hooks, flags, buffers and the random state are as before, also after an exception.
    Cost: the Python of one forward pass, and one pass over the weights to count zeros; no memory for values.
    Raises `DataError` if the model does not run on the example, `SpecError` for lazy parameters.
    """
    model = uncompiled(model)
    buffers = {name for name, _ in model.named_buffers()}
    counter, how = counted(model, example)
    return MacCount(
        total=sum(counter.dense.values()),
        effective=sum(counter.effective.values()),
        per_module={k: v for k, v in counter.dense.items() if v},
        effective_per_module={k: v for k, v in counter.effective.items() if counter.dense[k]},
        per_parameter={n: counter.per_weight[n] for n in counter.per_weight if n not in buffers},
        uncounted_ops=tuple(sorted(counter.uncounted)),
        batch=batch_size(example) if batch is None else batch,
        how=how,
    )
