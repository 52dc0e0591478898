"""A small trainer for the experiments of this package: cross-entropy, a learning-rate curve, exact resumption.

It is no trainer for users; pruning attaches to whatever loop they have (`prunus.Session.attach`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunus.core.errors import PrunusError, SpecError, UnknownNameError
from prunus.lab import trainer_checkpoint as checkpoints

CURVES = ("constant", "cosine", "one-cycle", "step")
Logits = Float[Tensor, "*batch classes"]


@runtime_checkable
class Batches(Protocol):
    """What the trainer reads from: `prunus.lab.data.Loader` is one."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class State:
    """What the progress callback is told after every step.

    Attributes:
        step, steps: Optimizer steps done, and in all.
        epoch, epochs: The epoch that is running, counted from 1, and how many there are.
        loss: Mean loss of this epoch so far.
        accuracy: Mean training accuracy of this epoch so far, between 0 and 1.
        lr: Learning rate of the first parameter group at this step.
        seconds: Since training started or was resumed.
        seconds_left: At the mean speed since then.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    seconds_left: float


Progress = Callable[[State], None]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy between 0 and 1, mean cross-entropy in nats, and the number of predictions they are means over."""

    accuracy: float
    loss: float
    count: int


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: training loss and accuracy while the weights moved, and the evaluation after it."""

    epoch: int
    loss: float
    accuracy: float
    valid: Evaluation | None = None


@dataclass(frozen=True)
class History:
    """What `train` returns: its epochs (those before a resumption included), and the seconds this call took."""

    epochs: tuple[Epoch, ...]
    steps: int
    seconds: float
    resumed_at: int = 0
    checkpoint: Path | None = field(default=None, compare=False)


def factor(curve: str, step: int, steps: int) -> float:
    """The learning rate at optimizer step `step` of `steps`, as a fraction of the largest one.

    - `constant`: 1.
    - `cosine`: `(1 + cos(pi t)) / 2` with `t = step / steps` (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5).
    - `one-cycle`: rises as a cosine from 1/25 over the first quarter, then falls as a cosine to 0 (Smith & Topin 2018,
      arXiv:1708.07120; the shape with cosines).
    - `step`: 1, then 1/10 from half, then 1/100 from three quarters on (He et al. 2016, arXiv:1512.03385, section 4.2).

    Raises:
        UnknownNameError: no such curve.
    """
    t = step / max(1, steps)
    if curve == "constant":
        return 1.0
    if curve == "cosine":
        return (1 + math.cos(math.pi * t)) / 2
    if curve == "one-cycle":
        rise = 0.25
        if t < rise:
            return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * t / rise)) / 2
        return (1 + math.cos(math.pi * (t - rise) / (1 - rise))) / 2
    if curve == "step":
        return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01
    raise UnknownNameError("learning-rate curve", curve, CURVES)


def sgd(model: nn.Module, lr: float = 0.1, *, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
    """SGD with Nesterov momentum on what needs a gradient; vectors (biases, normalization) do not decay."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in wanted if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=momentum, nesterov=momentum > 0)


def cross_entropy(logits: Logits, targets: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over all predictions, whether one per image or one per token."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def train(
    model: nn.Module,
    loader: Batches,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer | None = None,
    lr_schedule: str = "cosine",
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    valid: Batches | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    progress: Progress | None = None,
    checkpoint: Path | str | None = None,
    resume: bool = True,
    extra: checkpoints.Stateful | None = None,
    seed: int = 0,
    bf16: bool = False,
    channels_last: bool = False,
    device: torch.device | str = "cpu",
) -> History:
    """Train a network in place.

    An interrupted run that is started again with the same arguments continues after its last finished epoch and ends
    with the same bits: weights, buffers, optimizer state and the order of the data are all restored, and random layers
    are seeded by `seed` and the epoch.

    Args:
        model: Trained in place; left in evaluation mode.
        loader: Training batches of `(inputs, targets)`.
        epochs: Passes over the loader.
        optimizer: Its learning rates are the largest ones, `lr_schedule` scales them; `sgd(model)` when left out.
        lr_schedule: See `factor`; set before every step, over `epochs * len(loader)` steps.
        loss: From outputs and targets to a scalar.
        valid: Evaluated after each epoch when given.
        on_step: Called with the number of finished steps and the model after each step.
        progress: Called with a `State` after each step.
        checkpoint: Folder for the state after each epoch; none is written when left out.
        resume: Continue from the checkpoint if there is one; start anew otherwise.
        extra: Something with `state_dict` and `load_state_dict` that is saved too (tensors and JSON values).
        bf16: Autocast to bfloat16. Faster only where the processor has instructions for it (AMX): without them
            ResNet-20 took 1.7 to 2.2 times as long as in float32.
        channels_last: Memory format of images and weights. On 2 cores with AVX-512, ResNet-20 at width 1, 1/2, 1/4 took
            1.03, 1.4, 1.4 times as long with it.
        device: Where to train.

    Raises:
        SpecError: no epoch, or an unknown curve.
        PrunusError: the loss became NaN or infinite (the message says at which step), or the checkpoint folder cannot
            be written, which is found out before the first step.
        VerificationError: the checkpoint's content does not have the digest that was recorded.
    """
    if epochs < 1:
        raise SpecError(f"epochs must be at least 1, not {epochs}")
    factor(lr_schedule, 0, 1)
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        checkpoints.make_writable(folder)
    steps = epochs * len(loader)
    where = torch.device(device)
    model.to(where)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(model) if optimizer is None else optimizer
    largest = [float(group["lr"]) for group in optimizer.param_groups]
    plan = {"epochs": epochs, "steps": steps, "lr_schedule": lr_schedule, "seed": seed, "lr": largest}
    finished: list[Epoch] = []
    if folder is not None and resume and (saved := checkpoints.read(folder)) is not None:
        checkpoints.restore(saved, plan, model, optimizer, extra)
        finished = [_epoch_from(e) for e in saved.meta["history"]]
    begin = len(finished)
    started = time.perf_counter()
    for epoch in range(begin, epochs):
        model.train()
        total, right, count = 0.0, 0.0, 0
        with _seeded(seed, epoch):
            for index, (inputs, targets) in enumerate(loader.batches(epoch)):
                step = epoch * len(loader) + index
                for group, lr in zip(optimizer.param_groups, largest, strict=True):
                    group["lr"] = lr * factor(lr_schedule, step, steps)
                outputs, value = _step(model, inputs, targets, optimizer, loss, where, bf16, channels_last)
                here = float(value)
                if not math.isfinite(here):
                    raise PrunusError(
                        f"training diverged: the loss is {here} at step {step + 1} of {steps}; "
                        "use a smaller learning rate"
                    )
                predictions = targets.numel()
                total += here * predictions
                right += float((outputs.argmax(-1).cpu() == targets.cpu()).sum())
                count += predictions
                if on_step is not None:
                    on_step(step + 1, model)
                if progress is not None:
                    seconds = time.perf_counter() - started
                    left = seconds / (step + 1 - begin * len(loader)) * (steps - step - 1)
                    lr_now = float(optimizer.param_groups[0]["lr"])
                    mean, accuracy = total / count, right / count
                    progress(State(step + 1, steps, epoch + 1, epochs, mean, accuracy, lr_now, seconds, left))
        result = None if valid is None else evaluate(model, valid, device=where, channels_last=channels_last)
        finished.append(Epoch(epoch + 1, total / count, right / count, result))
        if folder is not None:
            meta: dict[str, Any] = {"plan": plan, "history": [_epoch_to(e) for e in finished]}
            checkpoints.write(folder, epoch + 1, meta, model, optimizer, extra)
    for group, lr in zip(optimizer.param_groups, largest, strict=True):
        group["lr"] = lr
    model.eval()
    return History(tuple(finished), steps, time.perf_counter() - started, begin, folder)


def _step(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    bf16: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    inputs, targets = _placed(inputs, device, channels_last), targets.to(device)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        outputs = model(inputs)
        value = loss(outputs, targets)
    value.backward()
    optimizer.step()
    return outputs.detach(), value.detach()


def _placed(inputs: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    if channels_last and inputs.ndim == 4:
        return inputs.to(device, memory_format=torch.channels_last)
    return inputs.to(device)


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
    """Random layers (dropout) read torch's global generator: seed it for one epoch, then put back what was there."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        yield


def evaluate(
    model: nn.Module, loader: Batches, *, device: torch.device | str = "cpu", channels_last: bool = False
) -> Evaluation:
    """Accuracy and mean cross-entropy over the loader's examples, in evaluation mode; the model's modes are put back.

    Raises:
        SpecError: the loader has no batch.
    """
    where = torch.device(device)
    modes: Mapping[nn.Module, bool] = {m: m.training for m in model.modules()}
    right, total, count = 0.0, 0.0, 0
    model.eval()
    try:
        with torch.inference_mode():
            for inputs, targets in loader.batches(0):
                outputs = model(_placed(inputs, where, channels_last)).float()
                targets = targets.to(where)
                total += float(F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum"))
                right += float((outputs.argmax(-1) == targets).sum())
                count += targets.numel()
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise SpecError("nothing to evaluate: the loader has no batch")
    return Evaluation(right / count, total / count, count)


def _epoch_to(epoch: Epoch) -> dict[str, Any]:
    valid = epoch.valid
    record = None if valid is None else {"accuracy": valid.accuracy, "loss": valid.loss, "count": valid.count}
    return {"epoch": epoch.epoch, "loss": epoch.loss, "accuracy": epoch.accuracy, "valid": record}


def _epoch_from(record: dict[str, Any]) -> Epoch:
    valid = None if record["valid"] is None else Evaluation(**record["valid"])
    return Epoch(record["epoch"], record["loss"], record["accuracy"], valid)
