"""Going back: snapshots of weights and learning rates, taken when a timeline will need them."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.engine.shards import laid_like


def target(event: Event) -> int | None:
    """The step an event goes back to, if it does."""
    return event.rewind if event.rewind is not None else event.replay


def horizon(events: Iterable[Event], steps: int) -> int:
    """How far the learning-rate clock ever runs in a timeline that is carried out as it stands."""
    longest, clock, last = 0, 0, 0
    for event in events:
        clock, last = clock + event.step - last, event.step
        longest = max(longest, clock)
        back = target(event)
        clock = back if back is not None else clock
    return max(longest, clock + steps - last)


class Rewinder:
    """Weights and learning rates of the steps that events to come go back to.

    Weights and buffers are those after a step. Learning rates are what the step after it is about to use: they are
    taken, and put back, just before an optimizer step, so that it does not matter where a loop has `scheduler.step()`.

    Attributes:
        weights: step -> parameters and buffers by name.
        rates: step -> what `_rates` gives.
        pending: the step whose learning rates are to be put back before the next step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.rates: dict[int, dict[str, Any]] = {}
        self.pending: int | None = None
        self._known: tuple[Sequence[Event], list[int]] = ((), [])

    def returning(self, events: Sequence[Event], fired: int) -> list[Event]:
        """The events after the first `fired` that go back to a step. Asked at every step, so it is looked up once:
        a timeline may have thousands of events.
        """
        if self._known[0] is not events:
            self._known = (events, [i for i, e in enumerate(events) if target(e) is not None])
        return [events[i] for i in self._known[1] if i >= fired]

    def keep_weights(self, step: int, events: Sequence[Event], fired: int) -> None:
        """After `step`: a snapshot if an event to come rewinds to here; what none will need is let go."""
        wanted = {e.rewind for e in self.returning(events, fired) if e.rewind is not None}
        self.weights = {k: v for k, v in self.weights.items() if k in wanted}
        if step in wanted and step not in self.weights:
            self.weights[step] = {n: t.detach().clone() for n, t in self.state().items()}

    def keep_rates(
        self,
        step: int,
        events: Sequence[Event],
        fired: int,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
    ) -> None:
        """Before step `step + 1`: put back what an event went back to, or remember what one will."""
        if self.pending is not None:
            put_back(self.rates[self.pending], optimizers, schedulers)
            self.pending = None
        if step not in self.rates and any(target(e) == step for e in self.returning(events, fired)):
            self.rates[step] = taken(optimizers, schedulers)

    @torch.no_grad()
    def restore(self, step: int, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Weights and buffers as they were after `step`, to the bit; optimizers forget what they gathered since."""
        now = self.state()
        for name, saved in self.weights[step].items():
            now[name].copy_(saved)
        for optimizer in optimizers:
            optimizer.state.clear()

    def load(self, stored: Mapping[str, Any]) -> None:
        """What a session's state holds of this (already checked), on the devices of the model."""
        now = self.state()
        self.weights = {
            int(k): {n: laid_like(t.to(now[n].device), now[n]).clone() for n, t in v.items()}
            for k, v in stored["weights"].items()
        }
        self.rates = {int(k): copy.deepcopy(v) for k, v in stored["rates"].items()}
        self.pending = None if stored["pending"] is None else int(stored["pending"])

    def state(self) -> dict[str, Tensor]:
        """The model's parameters and buffers by name, as they are now."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}


def check_schedulers(
    coming: Iterable[Event], optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]
) -> None:
    """Refuse what could not be rewound, where an event to come rewinds.

    Errors: `SpecError` for a scheduler without a state of plain values, or one that follows an optimizer and is not
    given.
    """
    # Going back to the step at hand undoes what was pruned there, and no learning rate.
    if not any((back := target(e)) is not None and back < e.step for e in coming):
        return
    if bad := [s for s in schedulers if not hasattr(s, "state_dict") or not hasattr(s, "load_state_dict")]:
        raise SpecError(f"a scheduler is rewound by its state_dict, and {type(bad[0]).__name__} has none")
    taken(optimizers, schedulers)
    # torch marks the step of an optimizer that a scheduler follows.
    if not schedulers and any(getattr(o.step, "_wrapped_by_lr_sched", False) for o in optimizers):
        raise SpecError(
            "this recipe rewinds the learning rate, and a scheduler sets that of this optimizer: "
            "attach(optimizer, scheduler)"
        )


def taken(optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> dict[str, Any]:
    """Every number of the parameter groups (schedulers also move momentum) and the schedulers' states, as JSON."""
    groups = [
        [
            {k: v for k, value in group.items() if k != "params" and (v := _number(value)) is not None}
            for group in optimizer.param_groups
        ]
        for optimizer in optimizers
    ]
    return {"groups": groups, "schedulers": [plain(s.state_dict(), type(s).__name__) for s in schedulers]}


def put_back(rates: Mapping[str, Any], optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
    """Undo what happened to learning rates since `taken`."""
    for saved, scheduler in zip(rates["schedulers"], schedulers, strict=True):
        scheduler.load_state_dict(like(saved, scheduler.state_dict()))
    for saved, optimizer in zip(rates["groups"], optimizers, strict=True):
        for numbers, group in zip(saved, optimizer.param_groups, strict=True):
            for key, value in numbers.items():
                if isinstance(group[key], Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = tuple(value) if isinstance(group[key], tuple) else value


def _number(value: Any) -> Any:
    """A float, int or tuple of them (betas); None for everything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    if isinstance(value, tuple | list) and all(_number(v) is not None for v in value):
        return [_number(v) for v in value]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def plain(value: Any, owner: str) -> Any:
    """JSON values only: mappings with keys other than strings become lists of pairs, tuples lists, scalars numbers.

    Errors: `SpecError` for anything else; `owner` names whose state it is.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value):
            return {k: plain(v, owner) for k, v in value.items()}
        return [[plain(k, owner), plain(v, owner)] for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [plain(v, owner) for v in value]
    raise SpecError(
        f"the state of {owner} holds a {type(value).__name__}, which cannot be saved without pickle: pass attach() a "
        f"scheduler whose state_dict() has plain values only"
    )


def like(value: Any, model: Any) -> Any:
    """`plain` undone, with the types that `model`, a value of the same kind, shows."""
    if isinstance(model, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else [(k, v) for k, v in value]
        rebuilt = {k: like(v, model[k]) if k in model else copy.copy(v) for k, v in pairs}
        if type(model) is dict:
            return rebuilt
        made: Any = type(model)
        return made(rebuilt)
    if isinstance(model, list | tuple) and isinstance(value, list) and len(model) == len(value):
        return type(model)(like(v, m) for v, m in zip(value, model, strict=True))
    if isinstance(model, list | tuple) and isinstance(value, list):
        return type(model)(value)
    return value
