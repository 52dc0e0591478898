"""Evidence that is gathered at every training step: movement, moving averages of sensitivities."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import GroupTensors, RunningEvidence, Sources
from prunus.core.groups import Group, Role
from prunus.parts.evidence.gradients import NO_BATCH, scored
from prunus.parts.evidence.mode import averaged_over_ranks, batch_gradients, evidence_mode, ranks


class Gathered(RunningEvidence):
    """Running evidence, or what the calibration batches give at the weights as they are, where nothing was trained."""

    passes: ClassVar[str] = "none in training; without, one forward and backward per batch"

    def store(self, sources: Sources) -> Mapping[str, Tensor]:
        """What was gathered, parameters' names as keys; the same on every rank."""
        store = sources.running.get(self.key)
        if store:
            return averaged_over_ranks({n: t.clone() for n, t in store.items()}) if ranks() > 1 else store
        fresh: dict[str, Tensor] = {}
        names = scored(sources, self.roles)
        if not names:
            return fresh
        train = bool(sources.settings.get("train_mode", False))
        with evidence_mode(sources.model, names, sources.generator, train=train), torch.no_grad():
            for gradients in _batches(sources, names):
                self.step(fresh, sources.groups, names, gradients, sources.settings)
        if not fresh:
            raise DataError(NO_BATCH)
        return averaged_over_ranks(fresh)

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, self.store(sources))


def _batches(sources: Sources, names: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    with torch.enable_grad():
        yield from batch_gradients(sources.model, sources.task, sources.task.calibration(), names)


class MovementEvidence(Gathered):
    """-sum over steps of w dL/dw: how far training has pulled a weight away from zero (Sanh, Wolf & Rush 2020,
    arXiv:2005.07683, the scores' learning rate left out). Cost: one product per step, a number per weight.
    """

    key: ClassVar[str] = "movement"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        for n, g in gradients.items():
            step = -(weights[n].detach() * g)
            store[n] = store[n] + step if n in store else step


class SensitivityBoundEvidence(Gathered):
    """Moving averages of |w dL/dw| and of its distance from that average, `[*units, k, 2]` (PLATON: Zhang et al. 2022,
    arXiv:2206.12562); both start at zero. The asking part's fields: `beta1`, `beta2`.
    Cost: a few products per step, two numbers per weight.
    """

    key: ClassVar[str] = "sensitivity"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        beta1, beta2 = float(settings.get("beta1", 0.85)), float(settings.get("beta2", 0.95))
        for n, g in gradients.items():
            now, wild = (weights[n].detach() * g).abs(), f"{n}|uncertainty"
            store[n] = torch.lerp(now, store.get(n, torch.zeros_like(now)), beta1)
            store[wild] = torch.lerp((now - store[n]).abs(), store.get(wild, torch.zeros_like(now)), beta2)

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        store = self.store(sources)
        mean = self.by_group(sources, {n: t for n, t in store.items() if "|" not in n})
        wild = self.by_group(sources, {n.split("|")[0]: t for n, t in store.items() if "|" in n})
        yield {name: torch.stack([mean[name], wild[name]], -1) for name in mean}


class SensitivityMeanEvidence(Gathered):
    """The moving average of |w dL/dw|, from zero; the asking part's field: `beta`. Cost: a product per step, a number
    per weight.
    """

    key: ClassVar[str] = "sensitivity_mean"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        beta = float(settings.get("beta", 0.85))
        for n, g in gradients.items():
            now = (weights[n].detach() * g).abs()
            store[n] = torch.lerp(now, store.get(n, torch.zeros_like(now)), beta)


class RunningTaylorEvidence(Gathered):
    """The moving average of (sum over a unit's parameters of p dL/dp)^2, one number per unit; it starts at the first
    step's (Molchanov et al. 2019, arXiv:1906.10771). The asking part's field: `momentum`.
    Cost: one product per step, a number per unit.
    """

    key: ClassVar[str] = "taylor"

    def step(
        self,
        store: dict[str, Tensor],
        groups: tuple[Group, ...],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        momentum = float(settings.get("momentum", 0.9))
        for group in groups:
            members = [m for m in group.with_role(*self.roles) if m.param in gradients]
            if not members:
                continue
            products = {m.param: weights[m.param].detach() * gradients[m.param] for m in members}
            now = group.views(members, products).sum(-1, keepdim=True).square()
            key = f"{members[0].param}|{group.name}"
            store[key] = torch.lerp(now, store[key], momentum) if key in store else now

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield {key.split("|", 1)[1]: value for key, value in self.store(sources).items()}


class RunningTaylorGateEvidence(RunningTaylorEvidence):
    """As `RunningTaylorEvidence`, of a gate behind the normalization: of its scale and shift."""

    key: ClassVar[str] = "taylor_gate"
    roles: tuple[Role, ...] = ("scale", "shift")  # type: ignore[misc]


class TickSensitivityEvidence(Gathered):
    """|gamma dL/dgamma| added up along the last share `tick` (the asking part's field) of the steps before an event
    (Gate decorator: You et al. 2019, arXiv:1909.08174, and the official code). Cost: a product per gate and step.
    """

    key: ClassVar[str] = "tick"
    roles: tuple[Role, ...] = ("scale",)  # type: ignore[misc]

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        for n, g in gradients.items():
            found = (weights[n].detach() * g).abs()
            store[n] = store[n] + found if n in store else found

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        if sources.progress < 1 - float(sources.settings.get("tick", 0.1)):
            store.clear()


Movement = Annotated[Float[Tensor, "*units k"], MovementEvidence()]
"""`[*units, k]`: -sum of w dL/dw over the training steps so far."""

SensitivityBound = Annotated[Float[Tensor, "*units k 2"], SensitivityBoundEvidence()]
"""`[*units, k, 2]`: moving averages of |w dL/dw| and of its distance from that average."""

SensitivityMean = Annotated[Float[Tensor, "*units k"], SensitivityMeanEvidence()]
"""`[*units, k]`: moving average of |w dL/dw|."""

RunningTaylor = Annotated[Float[Tensor, "*units 1"], RunningTaylorEvidence()]
"""`[*units, 1]`: moving average of the squared first-order effect of each unit's weights."""

RunningTaylorGate = Annotated[Float[Tensor, "*units 1"], RunningTaylorGateEvidence()]
"""`[*units, 1]`: the same of each unit's normalization; undefined without one."""

TickSensitivity = Annotated[Float[Tensor, "*units k"], TickSensitivityEvidence()]
"""`[*units, k]`: |gamma dL/dgamma| of each unit's gates, added up along the last steps before an event."""
