"""Running a user's model for evidence without leaving a trace in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, listed
from prunus.core.task import Task
from prunus.graph.running import eager


@contextmanager
def evidence_mode(
    model: nn.Module, parameters: Mapping[str, Tensor], generator: torch.Generator, *, train: bool = False
) -> Iterator[None]:
    """Evaluation (or training) mode with gradients on `parameters`; everything is put back, also after an exception.

    In training mode, batch normalization would move its running statistics and dropout would draw from the global
    generator: buffers are restored, and the global generators are forked and seeded from the session's own. What is
    compiled inside the model runs as it was written: compiled code cannot be differentiated twice, nor watched.
    """
    training = {m: m.training for m in model.modules()}
    flags = {p: p.requires_grad for p in model.parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()} if train else {}
    seed = int(torch.randint(2**31, (1,), generator=generator))
    # The devices' own generators too: dropout on a GPU draws from them.
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), eager():
            torch.manual_seed(seed)
            model.train(train)
            for p in model.parameters():
                if p.is_leaf:  # copies of TorchScript modules hold others
                    p.requires_grad_(False)
            for scored in parameters.values():
                scored.requires_grad_(True)
            yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        for module, was in training.items():
            module.training = was
        with torch.no_grad():
            for name, b in model.named_buffers():
                if name in buffers:
                    b.copy_(buffers[name])


@contextmanager
def divided_outputs(model: nn.Module, temperature: float) -> Iterator[None]:
    """Divide the model's output tensor by a temperature while inside (logits smaller, softmax flatter)."""

    def divide(_module: nn.Module, _inputs: object, output: object) -> object:
        if isinstance(output, Tensor):
            return output / temperature
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and getattr(output, "loss", None) is None:
            output.logits = logits / temperature  # type: ignore[attr-defined]
        return output

    handle = model.register_forward_hook(divide) if temperature != 1.0 else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def batch_gradients(
    model: nn.Module, task: Task, batches: Iterable[object], names: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Gradients of the loss, one mapping per batch; zeros for parameters the loss does not reach."""
    for batch in batches:
        loss = task.loss_of(model, batch)
        if not loss.requires_grad:
            grads: tuple[Tensor | None, ...] = (None,) * len(names)
        else:
            grads = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        pairs = zip(names.items(), grads, strict=True)
        yield {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def averaged_over_ranks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all processes of a distributed run, so that every rank scores the same; a no-op on one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors.values():
            torch.distributed.all_reduce(tensor)
            tensor /= torch.distributed.get_world_size()
    return tensors


def check_reached(names: Sequence[str], here: Sequence[bool]) -> None:
    """Refuse, on all processes of a distributed run alike, what the data of some reaches and that of others does not.

    Errors: `DataError` naming it.
    """
    if ranks() < 2:
        return
    on_cuda = torch.distributed.get_backend() == "nccl"
    counts = torch.tensor(here, dtype=torch.float64, device="cuda" if on_cuda else "cpu")
    torch.distributed.all_reduce(counts)
    if some := [n for n, c in zip(names, counts.tolist(), strict=True) if 0 < c < ranks()]:
        raise DataError(
            f"only on some of the {ranks()} processes does the calibration data reach {listed(some)}: pass more of it, "
            f"or run fewer processes"
        )


def ranks() -> int:
    """How many processes a distributed run has; 1 without one."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1
