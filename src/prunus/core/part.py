"""Parts: the words that recipes are made of.

A part is a frozen dataclass with a `__call__`. Equality, `repr`, copying with `dataclasses.replace`, and conversion
to and from plain JSON follow from that. Defining a concrete part registers it under its slot: there is no list to edit.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.events import Event
from prunus.core.groups import Group, Role
from prunus.core.needs import needs as needs

if TYPE_CHECKING:
    from prunus.core.evidence import Evidence
    from prunus.core.layer import Choose, Layer, Site, Update

Scores = Mapping[str, Float[Tensor, "*units"]]
Masks = dict[str, Bool[Tensor, "*units"]]
Thetas = Mapping[str, Float[Tensor, "..."]]
Space = Mapping[str, Group]
Reduce = Literal["sum", "mean", "l2", "max"]
P = TypeVar("P", bound="Part")
SLOTS: dict[str, type["Part"]] = {}
"""Slot -> the class that its parts derive from: the first one that derives from `Part` itself, which puts it here."""


class Part:
    """Base of everything that fills a slot of a recipe."""

    slot: ClassVar[str] = ""
    given: ClassVar[frozenset[str]] = frozenset()
    _registry: ClassVar[dict[str, dict[str, type["Part"]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Part in cls.__bases__ and cls.slot:
            SLOTS.setdefault(cls.slot, cls)
        elif cls.slot and not inspect.isabstract(cls) and "__call__" in dir(cls):
            Part._registry.setdefault(cls.slot, {})[cls.__name__] = cls

    def asks(self) -> Mapping[str, "Evidence"]:
        """What `__call__` wants to be told: parameter name -> evidence. A part that wraps another asks for it."""
        return needs(type(self))

    def settings(self) -> dict[str, Any]:
        """What evidence may know of the part that asks: its fields (a wrapper adds those of what it wraps)."""
        return {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}

    @classmethod
    def known(cls, slot: str | None = None) -> Mapping[str, type["Part"]]:
        """The registered parts of a slot, by class name."""
        return MappingProxyType(Part._registry.get(slot or cls.slot, {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: `{"part": class name, field: value, ...}`."""
        return {"part": type(self).__name__, **{f.name: _plain(getattr(self, f.name)) for f in fields(cast(Any, self))}}

    @classmethod
    def from_dict(cls: type[P], data: Mapping[str, Any]) -> P:
        """The part that `to_dict` described; unknown names and fields are refused, nothing is executed."""
        known = cls.known()
        name = data.get("part")
        kind = known.get(name) if isinstance(name, str) else None
        if kind is None:
            raise UnknownNameError(cls.slot, str(name), known)
        allowed = {f.name for f in fields(cast(Any, kind))}
        values = {k: v for k, v in data.items() if k != "part"}
        if unknown := sorted(set(values) - allowed):
            raise SpecError(f"{cls.slot} {name} has no field {', '.join(unknown)}; its fields are {sorted(allowed)}")
        return cast(P, kind(**{k: _restored(v) for k, v in values.items()}))


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return {"slot": value.slot, **value.to_dict()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and "part" in value:
        inner = SLOTS.get(str(value.get("slot")))
        if inner is None:
            raise UnknownNameError("slot", str(value.get("slot")), SLOTS)
        return inner.from_dict({k: v for k, v in value.items() if k != "slot"})
    return tuple(_restored(v) for v in value) if isinstance(value, list) else value


class Granularity(Part):
    """`(model, example) -> groups`: what one unit is.

    `reduce` says how element-wise scores become one score per unit (over the unit's scored slices).
    """

    slot: ClassVar[str] = "granularity"
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]]
    reduce: Reduce = "sum"

    def __call__(self, model: Any, example: Any) -> tuple[Group, ...]:
        raise SpecError(f"{type(self).__name__} does not say what its units are")

    def reasons(self, model: Any, example: Any) -> dict[str, str]:
        """Why weights of a model are in no group: name -> reason, empty where it cannot be said."""
        return {}


class Criterion(Part):
    """`(**evidence) -> scores`, higher = keep.

    Every evidence arrives as `[*units, k]`: the k entries of each unit. A score may have that shape (element-wise; the
    granularity reduces it) or be `[*units]` (the unit as a whole). What a criterion reads is said by its annotations.
    """

    slot: ClassVar[str] = "criterion"
    __call__: Callable[..., Tensor]


class Growth(Part):
    """`(**evidence) -> scores` of pruned units, higher = regrow first; evidence as for a criterion."""

    slot: ClassVar[str] = "grow"
    __call__: Callable[..., Tensor]


class Penalty(Part):
    """`(**evidence) -> scalar`, called once per group and added to the loss; evidence as for a criterion.

    `lasts`: whether it goes on after the last event.
    """

    slot: ClassVar[str] = "penalty"
    lasts: ClassVar[bool] = True
    __call__: Callable[..., Tensor]


class Prox(Part):
    """`(**evidence) -> factor`: what a unit is multiplied by after each optimizer step, `[*units]` or `[*units, 1]`.

    Proximal maps of separable and of group norms scale a unit and keep its direction, so a factor tells all of them:
    soft thresholds, hard thresholds, half-space projections, decay. Evidence as for a criterion; where it is undefined
    a group is left alone.

    Attributes:
        roles: the members that are scaled; those that produce a unit and its normalization and bias by default, so that
            a unit falls silent while what reads it stays as it is.
        on: "gradients" scales gradients before the step instead (gradient selection).
        freezes: with "gradients": a parameter whose gradient is then zero everywhere is left out of the step, so that
            decay and momentum do not move it either.
        lasts: whether it goes on after the last event.
    """

    slot: ClassVar[str] = "prox"
    lasts: ClassVar[bool] = True
    roles: ClassVar[tuple[Role, ...]] = ("out", "scale", "shift", "bias")
    on: ClassVar[Literal["weights", "gradients"]] = "weights"
    freezes: ClassVar[bool] = False
    __call__: Callable[..., Tensor]


class Redistribution(Part):
    """`(**evidence) -> shares`: how what was dropped is spread over the groups when it is regrown.

    Parameters are evidence of all groups at once, as for an allocation: group name -> tensor. Returns group name -> a
    share, not negative; the engine spreads the number dropped in proportion, exactly, and no further than groups have
    room. Without one every group regrows what it dropped.
    """

    slot: ClassVar[str] = "redistribute"
    __call__: Callable[..., Mapping[str, float]]


class Allocation(Part):
    """`(scores, density, space, **evidence) -> masks`: which units stay, given their scores.

    Further parameters are evidence, as for a criterion, but of all groups at once: group name -> tensor (what a unit
    costs, what a layer's features look like).

    `pattern` is True where the allocation itself imposes a semi-structured pattern (N:M). `pays`: a currency in which
    it solves for a budget by itself (`afford`); in all others the engine looks for the number of units that fits.
    `apart`: what it keeps of a group hangs on that group's scores alone, so that groups may come one by one.
    """

    slot: ClassVar[str] = "allocate"
    pays: ClassVar[str | None] = None
    given: ClassVar[frozenset[str]] = frozenset({"scores", "density", "space"})
    pattern: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    scope: ClassVar[Literal["global", "local"]] = "local"

    def __call__(self, *args: Any, **evidence: Any) -> Masks:
        """See the class: `(scores, density, space, **evidence)`."""
        raise SpecError(f"{type(self).__name__} does not say which units stay")

    def timed(self, measured: bool) -> "Allocation":
        """What takes its place where the budget is in latency and no other solver was asked for; by default itself.

        measured: whether this machine's tables tell what units take.
        """
        return self

    def line(self, scores: Scores, space: Space, **evidence: Any) -> Callable[[float], Masks]:
        """Share -> masks that grow with it, from every group at its minimum at 0 to all at 1: where a budget in latency
        is looked for. By default the share of the units.
        """
        return lambda share: self(scores, share, space, **evidence)

    def foresees(self) -> Mapping[str, "Evidence"]:
        """What `settled` wants to be told: evidence of the whole model, before anything is done at an event."""
        return {}

    def settled(self, density: float, space: Space, there: Mapping[str, int], **evidence: Any) -> "Allocation":
        """The same with every layer's density written down; `there`: how many units of a group are left."""
        return self

    def inside(self, path: str) -> "Allocation":
        """The same for a module as a model of its own: of what it says of layers by name, what lies in there."""
        return self

    def afford(self, scores: Scores, keep: float, space: Space, **evidence: Any) -> Masks:
        """The masks that leave at most the share `keep` of the dense model's cost in the currency that it pays."""
        raise SpecError(f"{type(self).__name__} meets no budget by itself")


class Schedule(Part):
    """`(density, steps) -> events`: when it happens. `density` is the final fraction kept, in any currency."""

    slot: ClassVar[str] = "schedule"

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        raise SpecError(f"{type(self).__name__} gives no events")


class Reconstruction(Part):
    """`(layer, choose) -> update`: new weights of one linear map, so that it computes what it did before.

    layer: see `prunus.core.layer.Layer`. choose: which weights stay, given scores of a block of columns, at the share
    that the allocation gave the layer; a reconstruction that does not select takes `layer.keep` as it is.
    `chooses`: it selects single weights anew, so that of masks only the number in each row, block or layer counts.
    `fed`: what the layers of a block are told of their inputs, where single weights go block by block: those that the
    block gives while it is whole, or once the layers before are pruned and rebuilt.
    One that goes by more than a layer's inputs asks for it (`asks`), and `moved` takes the place of the call.
    """

    slot: ClassVar[str] = "reconstruct"
    chooses: ClassVar[bool] = False
    fed: Literal["whole", "pruned"] = "pruned"

    def __call__(self, layer: "Layer", choose: "Choose") -> "Update":
        raise SpecError(f"{type(self).__name__} rebuilds nothing")

    def asks(self) -> Mapping[str, "Evidence"]:
        """What `moved` wants to be told, by parameter: evidence of the model before anything is removed."""
        return {}

    def moved(
        self, w: Float[Tensor, "n"], at: Int[Tensor, "units k"], gone: Bool[Tensor, "units"], **evidence: Any
    ) -> Float[Tensor, "n"]:
        """New weights of a parameter that makes units, flat, when those that are `gone` go; `at`: where the weights of
        a unit are in it. What is gone is zeroed afterwards.
        """
        return w


class Preparation(Part):
    """`(model, example, task) -> model`, in place: the same outputs from other modules, which give other units."""

    slot: ClassVar[str] = "prepare"
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "nothing"  # of the task; of the example without one

    def __call__(self, model: Any, example: Any, task: Any = None) -> Any:
        raise SpecError(f"{type(self).__name__} prepares nothing")

    def again(self, model: Any, names: Collection[str]) -> Any:
        """The same modules, for a model whose values are then read from a file that holds `names`."""
        return self(model, None)


class Recovery(Part):
    """What brings a pruned model back: what is done at once, and how it is trained afterwards.

    `__call__` runs after the last event, in place; the others shape the training steps that follow, in `prunus.prune`.
    `teacher`: whether it wants a copy of the dense model. `restarts`: whether optimizers forget what they gathered.
    `trains`: whether `__call__` trains by itself, and so needs a loss and batches.
    `throughout`: whether its `loss` is trained with from the first step on, while units are still being chosen.
    """

    slot: ClassVar[str] = "recover"
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "nothing"
    teacher: ClassVar[bool] = False
    restarts: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    throughout: bool = False

    def __call__(self, site: "Site") -> None:
        """Change `site.model` in place. Nothing by default."""

    def steps(self, steps: int, macs_ratio: Callable[[], float]) -> int:
        """How many steps to train after the last event where `steps` were asked for; the ratio is dense / pruned."""
        return steps

    def rate(self, progress: float) -> float | None:
        """The learning-rate factor at a fraction of the steps after the last event; None leaves it as it is."""
        return None

    def loss(self, site: "Site", batch: Any) -> Tensor | None:
        """The loss to train with after the last event, or `throughout`; None for the task's own."""
        return None


def plain_dataclass(part: Part) -> None:
    """Refuse a part that is not a frozen dataclass: equality and serialization rest on it."""
    if not is_dataclass(part) or not type(part).__dataclass_params__.frozen:
        raise SpecError(f"{type(part).__name__} must be a @dataclass(frozen=True)")
