"""A method is a sentence: a frozen record of named parts that holds no tensors and no state."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from prunus.core.errors import SpecError
from prunus.core.part import (
    SLOTS,
    Allocation,
    Criterion,
    Granularity,
    Growth,
    Part,
    Penalty,
    Schedule,
    needs,
    plain_dataclass,
)

READS_ORDER = ("nothing", "inputs", "labels")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pruning method.

    Attributes:
        name: the method's name, as in `prunus.methods`.
        source: paper, venue, arXiv number.
        granularity: what a unit is.
        criterion: what a unit is worth.
        allocate: which units stay, given the scores.
        schedule: when.
        start: the criterion of the first event where it differs (dynamic sparse training starts from a random mask).
        grow: what is regrown, for schedules that regrow.
        penalty: a term added to the loss while training.
        on: whether the method expects initial or trained weights.

    A variant is an edit: `dataclasses.replace(snip, granularity=Channel())`.
    """

    name: str
    source: str
    granularity: Granularity
    criterion: Criterion
    allocate: Allocation
    schedule: Schedule
    start: Criterion | None = None
    grow: Growth | None = None
    penalty: Penalty | None = None
    on: Literal["initialized", "pretrained"] = "initialized"

    def __post_init__(self) -> None:
        for slot, part in self.parts().items():
            base = SLOTS["criterion" if slot == "start" else slot]
            if not isinstance(part, base):
                raise SpecError(f"recipe {self.name!r}: {slot} must be a {base.__name__}, not {part!r}")
            plain_dataclass(part)
        if self.on not in ("initialized", "pretrained"):
            raise SpecError(f"recipe {self.name!r}: on={self.on!r}, expected 'initialized' or 'pretrained'")
        if any(e.regrow for e in self.timeline()) and self.grow is None:
            raise SpecError(f"recipe {self.name!r}: its schedule regrows units, so the grow slot must be filled")

    def parts(self) -> dict[str, Part]:
        """The filled slots, in order."""
        return {f.name: p for f in fields(self) if isinstance(p := getattr(self, f.name), Part)}

    def timeline(self, density: float = 0.5, steps: int = 1000) -> tuple[Any, ...]:
        """The schedule's events for a budget and a number of steps."""
        return self.schedule(density, steps)

    # What follows is derived from the parts, never declared.

    @property
    def structure(self) -> Literal["unstructured", "semi-structured", "structured"]:
        """Specific or universal speed-up (survey section 3)."""
        granularity = self.granularity.structure
        return "semi-structured" if granularity == "unstructured" and self.allocate.pattern else granularity

    @property
    def when(self) -> Literal["before", "during", "after"]:
        """Relative to training (survey section 4), read off the timeline.

        After: the weights are trained first, whether by someone else or by rounds that rewind. Before: every event
        falls on step 0. During: anything else.
        """
        events = self.timeline()
        if self.on == "pretrained" or any(e.rewind is not None or e.replay is not None for e in events):
            return "after"
        return "before" if all(e.step == 0 for e in events) else "during"

    @property
    def pace(self) -> Literal["one_shot", "iterative", "gradual", "prune_and_grow"]:
        """One event; several without training between or with rewinding; several in training; or with regrowth."""
        events = self.timeline()
        if any(e.regrow for e in events):
            return "prune_and_grow"
        if len(events) <= 1:
            return "one_shot"
        rounds = any(e.rewind is not None or e.replay is not None for e in events)
        return "iterative" if rounds or all(e.step == events[0].step for e in events) else "gradual"

    @property
    def how(self) -> Literal["criteria", "learned"]:
        """By a criterion or learned through regularization or regrowth (survey sections 5 and 6)."""
        return "learned" if self.penalty is not None or self.grow is not None else "criteria"

    @property
    def reads(self) -> Literal["nothing", "inputs", "labels"]:
        """The most that any evidence reads: nothing, inputs, or labels (through the loss)."""
        return _most(self.criterion, self.start, self.grow, self.penalty)

    @property
    def scores_from(self) -> Literal["nothing", "inputs", "labels"]:
        """The most that scoring reads of the calibration data; growth goes by the gradients of training instead."""
        return _most(self.criterion, self.start)

    @property
    def data_free(self) -> bool:
        """No evidence reads data and nothing is trained before scoring."""
        return self.reads == "nothing" and self.when == "before"

    @property
    def trains(self) -> bool:
        """True where the events need optimizer steps between or before them."""
        return any(e.step > 0 for e in self.timeline())

    @property
    def scope(self) -> Literal["global", "local"]:
        """Whether units compete across the network or within a layer."""
        return self.allocate.scope

    def taxonomy(self) -> dict[str, str]:
        """Where the method sits in the survey's taxonomy."""
        return {
            "structure": self.structure,
            "when": self.when,
            "how": self.how,
            "pace": self.pace,
            "scope": self.scope,
            "data": self.reads,
            "weights": self.on,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` restores an equal recipe."""
        plain = {k: getattr(self, k) for k in ("name", "source", "on")}
        return plain | {slot: part.to_dict() for slot, part in self.parts().items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` described. Nothing but registered parts can be named; nothing is executed."""
        if not isinstance(data, Mapping):
            raise SpecError(f"a recipe is a JSON object, got {type(data).__name__}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise SpecError(f"a recipe has no field {', '.join(map(repr, unknown))}; its fields are {sorted(known)}")
        required = {"name", "source", "granularity", "criterion", "allocate", "schedule"}
        if missing := sorted(required - set(data)):
            raise SpecError(f"the recipe lacks {', '.join(missing)}")
        values: dict[str, Any] = {}
        for key, value in data.items():
            slot = "criterion" if key == "start" else key
            if slot in SLOTS:
                if not isinstance(value, Mapping):
                    raise SpecError(f"recipe field {key!r} must be an object with a 'part', got {value!r}")
                values[key] = SLOTS[slot].from_dict(value)
            else:
                values[key] = value
        return cls(**values)


def _most(*parts: Part | None) -> Literal["nothing", "inputs", "labels"]:
    evidence = [e for p in parts if p is not None for e in needs(type(p)).values()]
    most = max((READS_ORDER.index(e.reads) for e in evidence), default=0)
    return cast(Literal["nothing", "inputs", "labels"], READS_ORDER[most])
