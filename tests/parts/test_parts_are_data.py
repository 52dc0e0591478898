"""Parts as data: registered by being defined, equal by value, written to JSON and read back, honest about what they
need.
"""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest
from jaxtyping import Float
from torch import Tensor

from prunus import methods, parts
from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.part import SLOTS, Allocation, Criterion, Part, Schedule, needs, plain_dataclass
from prunus.core.recipe import Recipe
from prunus.parts.allocation import (
    ERK,
    LAMP,
    CostNormalized,
    GlobalRanking,
    Isomorphic,
    LatencyKnapsack,
    LearnedAffine,
    NofM,
    PowerLaw,
    Protected,
    SensitivityScan,
    SmartRatio,
    StdQuality,
    Uniform,
)
from prunus.parts.criteria import ConnectionSensitivity, GradientSignal, Magnitude, TaylorWeight
from prunus.parts.evidence import Grad, Weight
from prunus.parts.gate import Annealed, Popup
from prunus.parts.granularity import Channel, Element
from prunus.parts.penalty import ScaleL1
from prunus.parts.schedule import EarlyBird, Gradual, Iterative, OneShot, PruneAndGrow, Relearned, Repeated, Rounds

parts.load_all()
OURS = [k for slot in SLOTS for k in Part.known(slot).values() if k.__module__.startswith("prunus.parts.")]
EDITED: list[Part] = [
    Element(exclude=("fc.*", "stem"), skip_last=True),
    Channel(reduce="l2", exclude=("head",), at_least=4, round_to=8),
    ConnectionSensitivity(train_mode=True),
    GradientSignal(temperature=1.0),
    TaylorWeight(train_mode=True),
    GlobalRanking(rounding="nearest", normalize="mean"),
    Isomorphic(rounding="ceil", normalize="sum"),
    LAMP(rounding="ceil"),
    ERK(kernel=False),
    SmartRatio(last=0.5, decay=True),
    Uniform(within="row"),
    NofM(n=1, m=8, along="input"),
    CostNormalized(of=Protected(of=LAMP(), floor=0.2), by="memory"),
    SensitivityScan(grid=(0.5, 0.25)),
    LearnedAffine(("a", "b"), (1.0, 2.0), (0.0, -1.0), power=1.0),
    LatencyKnapsack(table=(("a", (0.0, 1.0, 1.5)),), measured=True),
    PowerLaw(of=StdQuality(), points=4),
    OneShot(at=0.25),
    Iterative(rounds=3, spacing="linear", at=0.5),
    Gradual(begin=0.1, end=0.9, every=7, power=1.0),
    PruneAndGrow(every=3, until=0.5, drop=0.2, decay="none", skip_step=True),
    Rounds(per_round=0.5, rewind=0.1, what="rate"),
    Repeated(times=3, hold=True),
    ScaleL1(strength=1e-5),
    EarlyBird(probes=5, until=0.4, settle=0.2, window=2, rewind=0.0),
    Relearned(rounds=4, rewind=0.1),
    Annealed(start=-0.1, final=100.0),
    Popup(lr=1.0, decay=0.0),
]


def test_every_slot_has_parts() -> None:
    assert {k.slot for k in OURS} == set(SLOTS)
    assert len(OURS) >= 28


@pytest.mark.parametrize("part", [*(k() for k in OURS), *EDITED], ids=repr)
def test_a_part_is_a_value(part: Part) -> None:
    """Frozen, equal to its copy and to what its JSON says, and another one where a field is."""
    plain_dataclass(part)
    assert copy.deepcopy(part) == part == replace(part)  # type: ignore[type-var]
    assert hash(part) == hash(replace(part))  # type: ignore[type-var]
    text = json.dumps(part.to_dict())
    back = SLOTS[part.slot].from_dict(json.loads(text))
    assert back == part and type(back) is type(part)
    assert repr(back) == repr(part)
    for field in fields(part):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(part, field.name, None)


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_a_part_says_what_it_is(kind: type[Part]) -> None:
    assert kind.__doc__ and len(kind.__doc__) > 40
    assert not kind.__doc__.startswith(f"{kind.__name__}(")


@pytest.mark.parametrize(
    "kind", [k for k in OURS if k.slot in ("criterion", "grow", "penalty")], ids=lambda k: k.__name__
)
def test_what_a_part_needs_is_read_off_its_signature(kind: type[Part]) -> None:
    asked = needs(kind)
    assert asked
    assert all(e.reads in ("nothing", "inputs", "labels") for e in asked.values())


def test_needs_of_our_criteria() -> None:
    from prunus.parts import criteria

    reads = {k: {e.reads for e in needs(getattr(criteria, k)).values()} for k in criteria.__all__}
    labelled = {k for k, r in reads.items() if "labels" in r}
    assert labelled >= {"ConnectionSensitivity", "GradientSignal", "MetaSensitivity", "TaylorGate", "TaylorWeight"}
    assert not labelled & {"KernelSaliency", "Magnitude", "NoiseSensitivity", "Random", "SynapticSaliency"}
    assert list(needs(ConnectionSensitivity)) == ["w", "g"]


# A user's own part


@dataclass(frozen=True)
class Product(Criterion):
    """|w|^power |g|, written by a user of the library in a module of their own."""

    power: float = 2.0

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return w.abs() ** self.power * g.abs()


@dataclass(frozen=True)
class Nested(Allocation):
    """A part that holds a part."""

    inner: Allocation = GlobalRanking()
    names: tuple[str, ...] = ()


def test_a_users_part_registers_itself() -> None:
    assert Criterion.known()["Product"] is Product
    assert Criterion.from_dict({"part": "Product", "power": 3}) == Product(power=3)
    assert {e.reads for e in needs(Product).values()} == {"nothing", "labels"}
    recipe = replace(methods.snip, name="mine", criterion=Product())
    assert recipe.reads == "labels"
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_parts_inside_parts_go_through_json() -> None:
    part = Nested(inner=NofM(n=1, m=4), names=("a", "b"))
    assert Allocation.from_dict(json.loads(json.dumps(part.to_dict()))) == part


@pytest.mark.parametrize("name", methods.names())
def test_every_recipe_goes_through_json(name: str) -> None:
    recipe = methods.get(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


# What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"part": "Magnitud"}, "did you mean Magnitude"),
        ({}, "unknown criterion"),
        ({"part": "Magnitude", "power": 2}, "has no field power"),
        ({"part": "OneShot"}, "unknown criterion"),
    ],
)
def test_what_is_no_part_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Criterion.from_dict(data)


def test_values_that_a_part_refuses_are_refused_from_json() -> None:
    with pytest.raises(SpecError, match="fraction of the training steps"):
        Schedule.from_dict({"part": "OneShot", "at": 3.0})
    with pytest.raises(UnknownNameError, match="slot"):
        Allocation.from_dict({"part": "Nested", "inner": {"slot": "nowhere", "part": "ERK"}})


def test_a_signature_that_asks_for_no_evidence_is_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(Criterion):
        """Asks for a tensor of nobody knows what."""

        def __call__(self, w: Weight, other: Tensor) -> Tensor:
            return w * other

    with pytest.raises(SpecError, match="'other' is annotated"):
        needs(Wrong)


def test_a_part_that_is_no_frozen_record_is_refused() -> None:
    @dataclass
    class Mutable(Criterion):
        """Not frozen."""

    plain_dataclass(Magnitude())
    with pytest.raises(SpecError, match="frozen"):
        plain_dataclass(Mutable())


def test_an_unknown_package_of_parts_is_named() -> None:
    with pytest.raises(AttributeError, match="criteria"):
        _ = parts.criterions
