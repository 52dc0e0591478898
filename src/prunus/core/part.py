"""Parts: the words that recipes are made of.

A part is a frozen dataclass with a `__call__`. Equality, `repr`, copying with `dataclasses.replace`, and conversion
to and from plain JSON follow from that. Defining a concrete part registers it under its slot: there is no list to edit.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.events import Event
from prunus.core.groups import Group

if TYPE_CHECKING:
    from prunus.core.evidence import Evidence

Scores = Mapping[str, Float[Tensor, "*units"]]
Masks = dict[str, Bool[Tensor, "*units"]]
Space = Mapping[str, Group]
Reduce = Literal["sum", "mean", "l2", "max"]
P = TypeVar("P", bound="Part")


class Part:
    """Base of everything that fills a slot of a recipe."""

    slot: ClassVar[str] = ""
    _registry: ClassVar[dict[str, dict[str, type["Part"]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.slot and not inspect.isabstract(cls) and "__call__" in dir(cls) and Part not in cls.__bases__:
            Part._registry.setdefault(cls.slot, {})[cls.__name__] = cls

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
    return list(value) if isinstance(value, tuple) else value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and "part" in value:
        inner = SLOTS.get(str(value.get("slot")))
        if inner is None:
            raise UnknownNameError("slot", str(value.get("slot")), SLOTS)
        return inner.from_dict({k: v for k, v in value.items() if k != "slot"})
    return tuple(value) if isinstance(value, list) else value


class Granularity(Part):
    """`(model, example) -> groups`: what one unit is.

    `reduce` says how element-wise scores become one score per unit (over the unit's scored slices).
    """

    slot: ClassVar[str] = "granularity"
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]]
    reduce: Reduce = "sum"

    def __call__(self, model: Any, example: Any) -> tuple[Group, ...]:
        raise SpecError(f"{type(self).__name__} does not say what its units are")


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
    """`(**evidence) -> scalar`, called once per group and added to the loss; evidence as for a criterion."""

    slot: ClassVar[str] = "penalty"
    __call__: Callable[..., Tensor]


class Allocation(Part):
    """`(scores, density, space) -> masks`: which units stay, given their scores.

    `pattern` is True where the allocation itself imposes a semi-structured pattern (N:M).
    """

    slot: ClassVar[str] = "allocate"
    pattern: ClassVar[bool] = False
    scope: ClassVar[Literal["global", "local"]] = "local"

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        raise SpecError(f"{type(self).__name__} does not say which units stay")


class Schedule(Part):
    """`(density, steps) -> events`: when it happens. `density` is the final fraction kept, in any currency."""

    slot: ClassVar[str] = "schedule"

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        raise SpecError(f"{type(self).__name__} gives no events")


SLOTS: dict[str, type[Part]] = {c.slot: c for c in (Granularity, Criterion, Growth, Penalty, Allocation, Schedule)}


_NEEDS: dict[type["Part"], Mapping[str, "Evidence"]] = {}


def needs(part: type[Part]) -> Mapping[str, "Evidence"]:
    """What a part's `__call__` asks for: parameter name -> evidence, read from its annotations.

    Raises `SpecError` where a parameter is annotated with something that is no evidence.
    """
    from prunus.core.evidence import Evidence

    if part in _NEEDS:
        return _NEEDS[part]
    hints = get_type_hints(part.__call__, include_extras=True)
    hints.pop("return", None)
    found: dict[str, Evidence] = {}
    for name, hint in hints.items():
        marks = [a for a in get_args(hint)[1:] if isinstance(a, Evidence)] if get_origin(hint) is Annotated else []
        if len(marks) != 1:
            raise SpecError(
                f"{part.__name__}.__call__ parameter {name!r} is annotated {hint}, which is no evidence; "
                f"use a type of prunus.parts.evidence (Weight, Grad, ...)"
            )
        found[name] = marks[0]
    _NEEDS[part] = MappingProxyType(found)
    return _NEEDS[part]


def plain_dataclass(part: Part) -> None:
    """Refuse a part that is not a frozen dataclass: equality and serialization rest on it."""
    if not is_dataclass(part) or not type(part).__dataclass_params__.frozen:
        raise SpecError(f"{type(part).__name__} must be a @dataclass(frozen=True)")
