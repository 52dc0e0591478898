"""Recovery without training: statistics of a network that has changed under them; several recoveries in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.layer import Site
from prunus.core.part import Recovery
from prunus.parts.evidence.mode import evidence_mode


@dataclass(frozen=True)
class BatchNormRecalibration(Recovery):
    """Running means and variances of normalizations anew, as plain averages over the calibration batches (adaptive
    batch normalization: EagleEye, Li et al. 2020, arXiv:2007.02491, section 3.3).

    Everything else runs in evaluation mode, and no weight changes; a network without running statistics is left alone.
    Cost: `passes` forwards per batch. Differs: EagleEye keeps the momentum; here all batches count equally.
    """

    passes: int = 1
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "inputs"

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise SpecError(f"BatchNormRecalibration(passes={self.passes}): at least 1")

    def __call__(self, site: Site) -> None:
        norms: list[Any] = [m for m in site.model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        try:
            with evidence_mode(site.model, {}, site.generator), torch.no_grad():
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a cumulative average
                    norm.training = True
                for _ in range(self.passes):
                    for batch in site.task.calibration():
                        site.task.outputs(site.model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@dataclass(frozen=True)
class Chain(Recovery):
    """Several recoveries in turn: each acts on the model as the one before left it.

    Steps pass through all of them; the learning rate and the loss are those of the first that has one, where losses
    that are trained with throughout come before others.
    """

    of: tuple[Recovery, ...] = ()

    def __call__(self, site: Site) -> None:
        for one in self.of:
            one(site)

    def steps(self, steps: int, macs_ratio: Callable[[], float]) -> int:
        """How many steps to train, each recovery being asked with the answer of the one before."""
        for one in self.of:
            steps = one.steps(steps, macs_ratio)
        return steps

    def rate(self, progress: float) -> float | None:
        """The factor of the first that has one."""
        return next((r for one in self.of if (r := one.rate(progress)) is not None), None)

    def loss(self, site: Site, batch: Any) -> Tensor | None:
        """The loss of the first that has one, those trained with throughout before others."""
        first = sorted(self.of, key=lambda one: not one.throughout)
        return next((found for one in first if (found := one.loss(site, batch)) is not None), None)

    @property
    def reads(self) -> Literal["nothing", "inputs", "labels"]:  # type: ignore[override]
        """The most that any of them reads."""
        return max((one.reads for one in self.of), key=("nothing", "inputs", "labels").index, default="nothing")

    @property
    def teacher(self) -> bool:  # type: ignore[override]
        """Whether any of them wants the dense model."""
        return any(one.teacher for one in self.of)

    @property
    def throughout(self) -> bool:  # type: ignore[override]
        """Whether any of them has a loss for the steps before the last event."""
        return any(one.throughout for one in self.of)

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Whether any of them trains by itself."""
        return any(one.trains for one in self.of)

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        """Whether any of them makes optimizers forget."""
        return any(one.restarts for one in self.of)
