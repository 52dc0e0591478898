"""How a pruned network is trained on: at which learning rate, for how long, towards what."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.layer import Site
from prunus.core.part import Recovery

Policy = Literal["constant", "cosine", "step", "cyclic"]


@dataclass(frozen=True)
class FineTune(Recovery):
    """A learning-rate policy for the training after pruning, as a factor on the optimizer's own rate.

    `constant`: `peak`. `cosine`: from `peak` to `low`. `step`: `peak`, times `drop` at each of `milestones`. `cyclic`:
    `cycles` times up from `low` to `peak` over the share `warm` and down again as a cosine (Le & Hua 2021,
    arXiv:2105.03193: fine-tuning wants a large rate). Milestones and cycles are laid over the whole schedule, which is
    entered at the fraction `begin`: the policy of the first training, with `begin` = 1 - t / T, is learning-rate
    rewinding to t of T epochs (Renda et al. 2020, arXiv:2003.02389); with `begin` = 0 it is the whole schedule squeezed
    into the steps there are. Cost: none.
    """

    policy: Policy = "constant"
    peak: float = 0.1
    low: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    warm: float = 0.1
    cycles: int = 1
    begin: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise SpecError(f"FineTune(policy={self.policy!r}): one of {', '.join(get_args(Policy))}")
        if not (0 <= self.low <= self.peak and 0 < self.warm < 1 and self.cycles >= 1 and 0 <= self.begin < 1):
            raise SpecError(f"{self}: 0 <= low <= peak, 0 < warm < 1, cycles >= 1, 0 <= begin < 1")

    def rate(self, progress: float) -> float:
        """The factor on the learning rate."""
        at = self.begin + (1 - self.begin) * progress
        if self.policy == "constant":
            return self.peak
        if self.policy == "step":
            return float(self.peak * self.drop ** sum(at >= m for m in self.milestones))
        if self.policy == "cyclic":
            at = at * self.cycles % 1.0
            if at < self.warm:
                return self.low + (self.peak - self.low) * at / self.warm
            at = (at - self.warm) / (1 - self.warm)
        return self.low + (self.peak - self.low) * (1 + math.cos(math.pi * at)) / 2


@dataclass(frozen=True)
class Scratch(Recovery):
    """The pruned network is initialized anew and trained from there (Liu et al. 2019, Rethinking the value of network
    pruning, arXiv:1810.05270, section 3).

    Every module's own `reset_parameters` draws from the session's generator; parameters of modules that have none stay
    as they are. `kind="E"` trains for the steps given, `kind="B"` for as many times more as the pruned network has
    fewer multiply-accumulates, `most` times at most. Optimizers forget what they gathered. Cost: none beyond training.
    """

    kind: Literal["E", "B"] = "E"
    most: float = 2.0
    restarts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("E", "B") or not self.most >= 1:
            raise SpecError(f"{self}: kind is 'E' (epochs) or 'B' (budget), most is at least 1")

    def __call__(self, site: Site) -> None:
        seed = int(torch.randint(2**31, (1,), generator=site.generator))
        devices = sorted({p.device.index for p in site.model.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for module in site.model.modules():
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if callable(reset):
                    reset()

    def steps(self, steps: int, macs_ratio: Callable[[], float]) -> int:
        """The steps given (E), or times the ratio of multiply-accumulates (B)."""
        return steps if self.kind == "E" else round(steps * min(max(macs_ratio(), 1.0), self.most))


@dataclass(frozen=True)
class Distill(Recovery):
    """(1 - weight) L + weight T^2 KL(softmax(teacher / T) || softmax(student / T)): training towards the outputs of the
    dense network as it was (Hinton et al. 2015, arXiv:1503.02531, section 2).

    `layers` names modules whose outputs are matched too: hidden times the mean of ||s - t||^2 / ||t||^2 is added, which
    a masked network can do without an adaptor. Outputs are a tensor or have `logits`; the last axis is the classes.
    `throughout` trains so from the first step on, while masks are learned, as movement pruning (arXiv:2005.07683), CoFi
    (arXiv:2204.00408) and VTrans (arXiv:2406.05276) do; in a loop of one's own by `session.loss(batch)`. With
    `weight=1` no label is read. Cost: a forward of the teacher per step, and its memory. Fails: `SpecError` for
    outputs that are no logits, and for names of layers that the network has not.
    """

    temperature: float = 4.0
    weight: float = 0.9
    layers: tuple[str, ...] = ()
    hidden: float = 1.0
    throughout: bool = False
    teacher: ClassVar[bool] = True
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "labels"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 <= self.weight <= 1 and self.hidden >= 0):
            raise SpecError(f"{self}: temperature > 0, 0 <= weight <= 1, hidden >= 0")

    def loss(self, site: Site, batch: Any) -> Tensor:
        """The task's loss and the distance to the teacher."""
        assert site.teacher is not None
        site.teacher.to(next(site.model.parameters()).device)
        with torch.no_grad(), Outputs(site.teacher, self.layers) as taught:
            site.task.outputs(site.teacher, batch)
        with Outputs(site.model, self.layers) as found:
            own = 0.0 if self.weight == 1 else (1 - self.weight) * site.task.loss_of(site.model, batch)
            if len(found.seen[""]) != 1:  # the loss was not asked for, or does not call the model once
                found.seen = {name: [] for name in found.seen}
                site.task.outputs(site.model, batch)
        student, target = logits(found.seen[""][-1]) / self.temperature, logits(taught.seen[""][-1]) / self.temperature
        apart = F.kl_div(student.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        total: Tensor = own + self.weight * self.temperature**2 * apart.mean()
        for name in self.layers:
            s, t = found.seen[name][-1], taught.seen[name][-1]
            total = total + self.hidden / len(self.layers) * (s - t).square().sum() / t.square().sum().clamp(min=1e-12)
        return total


class Outputs:
    """What a model, and some of its modules, put out while this is active, by name; the model's own name is empty."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        modules = dict(model.named_modules())
        if missing := [n for n in layers if n not in modules]:
            raise SpecError(f"Distill(layers=...): the network has no module {missing[0]!r}")
        self.modules = {"": model, **{n: modules[n] for n in layers}}
        self.seen: dict[str, list[Any]] = {n: [] for n in self.modules}

    def __enter__(self) -> "Outputs":
        self.handles = [
            m.register_forward_hook(lambda _m, _i, out, name=n: self.seen[name].append(out))
            for n, m in self.modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def logits(output: Any) -> Tensor:
    """The class scores in a model's output."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise SpecError(f"Distill needs logits: a tensor, or an output with .logits; got {type(output).__name__}")
    return found
