"""A method is a sentence: a frozen record of named parts that holds no tensors and no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from prunus.core.errors import SpecError
from prunus.core.evidence import Reads
from prunus.core.gate import Gate
from prunus.core.part import (
    SLOTS,
    Allocation,
    Criterion,
    Granularity,
    Growth,
    Part,
    Penalty,
    Preparation,
    Prox,
    Reconstruction,
    Recovery,
    Redistribution,
    Schedule,
    plain_dataclass,
)
from prunus.core.taxonomy import taxonomy

READS_ORDER: tuple[Reads, ...] = ("nothing", "inputs", "labels")


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
        redistribute: how much each group regrows, where it is not what it dropped.
        penalty: a term added to the loss while training.
        prox: what units are multiplied by after each step.
        gate: learned masks.
        prepare: what is done to the model first, so that it has other units (its outputs stay the same).
        reconstruct: how the weights that stay make up for those that go, layer by layer.
        recover: what brings the model back afterwards, and how it is trained then.
        sweep: `model`: everything is scored, then everything pruned. `blocks`: a block (a layer of a transformer) is
            scored, pruned and rebuilt on what the pruned blocks before it give, then the next one. Densities of layers
            that the allocation deals out (`Allocation.settled`), and what the criterion reads of the loss, come from
            the model as it was before the first block.
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
    redistribute: Redistribution | None = None
    penalty: Penalty | None = None
    prox: Prox | None = None
    gate: Gate | None = None
    prepare: Preparation | None = None
    reconstruct: Reconstruction | None = None
    recover: Recovery | None = None
    sweep: Literal["model", "blocks"] = "model"
    on: Literal["initialized", "pretrained"] = "initialized"

    def __post_init__(self) -> None:
        for slot, part in self.parts().items():
            base = SLOTS["criterion" if slot == "start" else slot]
            if not isinstance(part, base):
                raise SpecError(f"recipe {self.name!r}: {slot} must be a {base.__name__}, not {part!r}")
            plain_dataclass(part)
        if self.on not in ("initialized", "pretrained"):
            raise SpecError(f"recipe {self.name!r}: on={self.on!r}, expected 'initialized' or 'pretrained'")
        if self.sweep not in ("model", "blocks"):
            raise SpecError(f"recipe {self.name!r}: sweep={self.sweep!r}, expected 'model' or 'blocks'")
        if self.sweep == "blocks" and (why := self._undivided()):
            raise SpecError(f"recipe {self.name!r}: sweep='blocks' prunes a block when it is reached, but {why}")
        if any(e.regrow or e.grow for e in self.timeline()) and self.grow is None:
            raise SpecError(f"recipe {self.name!r}: its schedule regrows units, so the grow slot must be filled")

    def parts(self) -> dict[str, Part]:
        """The filled slots, in order."""
        return {f.name: p for f in fields(self) if isinstance(p := getattr(self, f.name), Part)}

    def timeline(self, density: float = 0.5, steps: int = 1000) -> tuple[Any, ...]:
        """The schedule's events for a budget and a number of steps."""
        return self.schedule(density, steps)

    def _undivided(self) -> str:
        """Why a recipe cannot go through a model block by block; empty if it can."""
        if any(e.regrow or e.grow or e.mark or e.settle is not None for e in self.timeline()):
            return f"{type(self.schedule).__name__} does more than prune"
        if self.scope == "global":
            return f"with {type(self.allocate).__name__} units of all layers compete: take allocate=Uniform()"
        if "labels" in self._rebuilt_from():
            return f"{type(self.reconstruct).__name__} needs the loss, which is behind the last block"
        ahead = self.allocate.foresees()
        if any(e.reads == "labels" for n, e in self.allocate.asks().items() if n not in ahead):
            return f"{type(self.allocate).__name__} needs the loss, which is behind the last block"
        for part in (self.criterion, self.start):
            if part is not None and any(e.reads == "labels" and e.per_batch for e in part.asks().values()):
                return f"{type(part).__name__} needs the loss on each batch by itself, which is behind the last block"
        return ""

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
        falls on step 0, or gates are trained on weights that stay as they are. During: anything else.
        """
        events = self.timeline()
        back = (e for e in events if e.step > 0 and (e.rewind is not None or e.replay is not None))
        if self.on == "pretrained" or any(back):
            return "after"
        frozen = self.gate is not None and self.gate.freezes
        return "before" if frozen or all(e.step == 0 for e in events) else "during"

    @property
    def pace(self) -> Literal["one_shot", "iterative", "gradual", "prune_and_grow"]:
        """One event; several without training between or with rewinding; several in training; or with regrowth.

        Marking what the last event removes is no event by itself.
        """
        timeline = self.timeline()
        events = [e for e in timeline if not (e.mark and e.density == timeline[-1].density)]
        if any(e.regrow or e.grow for e in events):
            return "prune_and_grow"
        # Of events that wait for the masks to settle only one is carried out.
        if len(events) <= 1 or all(e.settle is not None for e in events):
            return "one_shot"
        rounds = any(e.rewind is not None or e.replay is not None for e in events)
        return "iterative" if rounds or all(e.step == events[0].step for e in events) else "gradual"

    @property
    def how(self) -> Literal["criteria", "learned"]:
        """By a criterion or learned through regularization or regrowth (survey sections 5 and 6)."""
        learned = (self.penalty, self.prox, self.grow, self.gate)
        return "learned" if any(part is not None for part in learned) else "criteria"

    @property
    def reads(self) -> Reads:
        """The most that any part reads: nothing, inputs, or labels (through the loss)."""
        parts = (self.criterion, self.start, self.grow, self.redistribute, self.penalty, self.prox, self.allocate)
        also = self._rebuilt_from()
        taught = self.recover is not None and self.recover.throughout
        also += [] if self.gate is None or taught else ["labels"]
        also += [] if self.prepare is None else [self.prepare.reads]
        return _most(*parts, also=also if self.recover is None else [*also, self.recover.reads])

    @property
    def scores_from(self) -> Reads:
        """The most that scoring, allocating and rebuilding read of the calibration data; growth goes by the gradients
        of training instead.
        """
        also = self._rebuilt_from()
        also += [] if self.prepare is None else [self.prepare.reads]
        return _most(self.criterion, self.start, self.allocate, also=also)

    def _rebuilt_from(self) -> list[Reads]:
        """What the reconstruction reads."""
        if self.reconstruct is None:
            return []
        return [e.reads for e in self.reconstruct.asks().values()] or ["inputs"]

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
        """Whether units compete across the network or within a layer, when they are chosen or when they are regrown."""
        across = any(e.across or e.jointly for e in self.timeline())
        return "global" if across else self.allocate.scope

    def taxonomy(self) -> dict[str, str]:
        """Where the method sits in the survey's taxonomy."""
        return taxonomy(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` restores an equal recipe."""
        plain = {k: getattr(self, k) for k in ("name", "source", "sweep", "on")}
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


def _most(*parts: Part | None, also: Sequence[Reads] = ()) -> Reads:
    evidence = [e.reads for p in parts if p is not None for e in p.asks().values()]
    return READS_ORDER[max((READS_ORDER.index(one) for one in (*evidence, *also)), default=0)]
