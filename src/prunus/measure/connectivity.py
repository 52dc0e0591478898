"""Linear mode connectivity: the error on the straight line between two networks' weights."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.core.task import Task
from prunus.graph.duplicate import duplicate

Error = Callable[[nn.Module], float]


def between(one: nn.Module, other: nn.Module, alpha: float) -> nn.Module:
    """The network with weights alpha * one + (1 - alpha) * other; floating-point buffers too, others are `one`'s.

    Errors: `SpecError` where the two are not the same network.
    """
    if not 0.0 <= alpha <= 1.0:
        raise SpecError(f"alpha={alpha} lies on no line between two networks: 0 is the second, 1 the first")
    mixed = duplicate(one)
    ours, theirs = _numbers(mixed), _numbers(other)
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        odd = sorted(n for n in ours.keys() | theirs.keys() if n not in ours or n not in theirs)
        raise SpecError(
            f"there is no line between two different networks: {odd[0] if odd else 'a tensor'} is not in both, or has "
            f"another shape"
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            if tensor.is_floating_point():
                tensor.mul_(alpha).add_(theirs[name].to(tensor.device), alpha=1.0 - alpha)
    return mixed


def line_errors(
    one: nn.Module,
    other: nn.Module,
    error: Error,
    *,
    points: int = 30,
    recalibrate: Task | None = None,
) -> tuple[tuple[float, float], ...]:
    """`(alpha, error(alpha * one + (1 - alpha) * other))` at evenly spaced alpha, both ends included.

    Args:
        error: of a network; it sees a copy in evaluation mode.
        points: how many networks are tried.
        recalibrate: whose calibration batches the running statistics of normalizations are computed from, anew at every
            alpha, ends included; None takes those on the line between the two networks' (which barriers of networks
            with batch normalization depend on).
    Cost: one `error` per point, and one pass over the calibration batches where asked.
    """
    if points < 3:
        raise SpecError(f"points={points}: a line has two ends and something between")
    found = []
    for i in range(points):
        alpha = i / (points - 1)
        mixed = between(one, other, alpha)
        if recalibrate is not None:
            recalibrate_(mixed, recalibrate)
        found.append((alpha, float(error(mixed.eval()))))
    return tuple(found)


def instability(
    one: nn.Module, other: nn.Module, error: Error, *, points: int = 30, recalibrate: Task | None = None
) -> float:
    """max over alpha of the error on the line, less the mean of the errors at its ends (linear interpolation
    instability: Frankle et al. 2020, ICML, arXiv:1912.05671, section 2).

    Units: those of `error`. Two copies that were trained from one point with different data order are stable where it
    is about zero, which is where rewinding finds tickets. The ends count as points of the line, so it is never
    negative. See `line_errors` for the arguments.
    """
    return barrier(line_errors(one, other, error, points=points, recalibrate=recalibrate))


def barrier(errors: Sequence[tuple[float, float]]) -> float:
    """The instability that `line_errors` come to."""
    values = [value for _, value in errors]
    return max(values) - (values[0] + values[-1]) / 2


@torch.no_grad()
def recalibrate_(model: nn.Module, task: Task) -> None:
    """Compute the running statistics of normalizations anew: the average over the calibration batches, in place.

    Only the modules that have such statistics are in training mode meanwhile, so that dropout does nothing.
    """
    norms: list[Any] = [m for m in model.modules() if hasattr(m, "reset_running_stats") and hasattr(m, "momentum")]
    if not norms:
        return
    training, momenta = {m: m.training for m in model.modules()}, [m.momentum for m in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
            norm.training = True
        empty = True
        for batch in task.calibration():
            empty = False
            task.outputs(model, batch)
        if empty:
            raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, was in training.items():
            module.training = was


def twins(
    model: nn.Module,
    task: Task,
    steps: int,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *,
    seeds: tuple[int, int] = (0, 1),
) -> tuple[nn.Module, nn.Module]:
    """Two copies of a network, trained alike but for the order of `task.train` (and dropout): what `instability`
    compares. Zeros of weights stay zero, so that a ticket stays one.

    Cost: twice `steps` steps; the batches are in memory at once.
    """
    if task.train is None:
        raise SpecError("two copies are trained: pass Task(loss=..., train=batches)")
    batches = list(task.train)
    if not batches:
        raise DataError("Task.train yields no batch")
    made = []
    for seed in seeds:
        copied = duplicate(model).train()
        keep = {p: p.detach() != 0 for p in copied.parameters() if p.dim() > 1 and bool((p == 0).any())}
        opt, order = optimizer(copied.parameters()), torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=sorted({p.device.index for p in copied.parameters() if p.is_cuda})):
            torch.manual_seed(seed)
            queue: list[int] = []
            for _ in range(steps):
                queue = queue or torch.randperm(len(batches), generator=order).tolist()
                opt.zero_grad(set_to_none=True)
                task.loss_of(copied, batches[queue.pop()]).backward()
                opt.step()
                with torch.no_grad():
                    for p, mask in keep.items():
                        p.mul_(mask)
        made.append(copied)
    return made[0], made[1]


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
