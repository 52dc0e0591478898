"""Peak memory of one inference."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus.core.errors import SpecError
from prunus.measure.inputs import Example, as_found, check_materialized, device_of, moved, run, tensors, uncompiled
from prunus.measure.parameters import place
from prunus.measure.storage import state_bytes


@dataclass(frozen=True)
class PeakMemory:
    """Bytes that one forward pass needs at its worst moment.

    activations: the most bytes of tensors made during the run that were alive at the same time.
    weights, inputs: bytes of parameters and buffers, and of the example's tensors; both live throughout.
    how: `tensors` (counted exactly from the tensors that operations return: the same on every run and machine, but
        without scratch space inside a kernel and without the allocator's rounding) or `cuda allocator` (what PyTorch's
        allocator had handed out at most beyond what was there before: with scratch space and rounding).
    """

    activations: int
    weights: int
    inputs: int
    how: str

    @property
    def total(self) -> int:
        """Weights, inputs and activations at the worst moment."""
        return self.activations + self.weights + self.inputs

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `total` included."""
        return {**asdict(self), "total": self.total}


class _Alive(TorchDispatchMode):
    """Adds up the bytes of the storages that operations create, from their birth to their last reference."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._born: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {self._address(t) for t in tree_leaves((args, kwargs)) if self._has_storage(t)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if self._has_storage(tensor) and self._address(tensor) not in given | self._born:
                self._arrive(tensor)
        return out

    @staticmethod
    def _has_storage(leaf: object) -> bool:
        return isinstance(leaf, Tensor) and leaf.layout == torch.strided

    @staticmethod
    def _address(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def _arrive(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = self._address(tensor), storage.nbytes()
        self._born.add(address)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._leave, address, size).atexit = False

    def _leave(self, address: int, size: int) -> None:
        self._born.discard(address)
        self.now -= size


def peak_memory(model: nn.Module, example: Example) -> PeakMemory:
    """Measure the peak memory of one forward pass in evaluation mode without gradients, on the model's device.

    What is measured depends on the device and is said in `how`; see `PeakMemory`. Compare only like with like.
    The model and the random state are as before, also after an exception. Cost: one forward pass (two on CUDA).
    Raises `DataError` if the model does not run on the example, `SpecError` for lazy or meta parameters.
    """
    model = uncompiled(model)
    check_materialized(model)
    device = device_of(model, example)
    if device.type == "meta":
        raise SpecError("the model is on the meta device, where nothing takes memory: load its weights first")
    weights = state_bytes(model).dense
    inputs = sum({place(t): t.numel() * t.element_size() for t in tensors(example)}.values())
    args, kwargs = moved(example, device)
    with as_found(model, device, inference=False):
        if device.type == "cuda":
            return PeakMemory(_on_cuda(model, args, kwargs, device), weights, inputs, "cuda allocator")
        alive = _Alive()
        with alive:
            run(model, args, kwargs)
        return PeakMemory(alive.most, weights, inputs, "tensors")


def _on_cuda(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> int:
    run(model, args, kwargs)  # libraries allocate their workspaces on first use
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(model, args, kwargs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
