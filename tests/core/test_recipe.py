"""Recipes and parts are plain values: comparable, serializable, and refused where they make no sense."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

import prunus
from prunus import Recipe
from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.part import Allocation, Criterion, Part, Schedule, needs
from prunus.parts.allocation import NofM
from prunus.parts.criteria import Magnitude
from prunus.parts.evidence import Grad, Weight
from prunus.parts.granularity import Channel, Element
from prunus.parts.schedule import Gradual, Iterative, OneShot, PruneAndGrow, Repeated, Rounds

SNIP = prunus.methods.snip


@pytest.fixture(autouse=True)
def _no_type_checker() -> Any:
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


def plain(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(SNIP.to_dict())) | changes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "JSON object, got list"),
        ({"name": "x"}, "the recipe lacks allocate, criterion, granularity"),
        (plain(criterium={}), "no field 'criterium'"),
        (plain(criterion="Magnitude"), "must be an object with a 'part'"),
        (plain(criterion={"part": "Magnitud"}), "did you mean Magnitude"),
        (plain(criterion={"part": "Magnitude", "power": 2}), "has no field power"),
        (plain(criterion={"part": "OneShot"}), "unknown criterion 'OneShot'"),
        (plain(schedule={"part": "OneShot", "at": 1.5}), "fraction of the training steps"),
        (plain(on="somewhere"), "expected 'initialized' or 'pretrained'"),
        (plain(criterion={"part": "os.system"}), "unknown criterion 'os.system'"),
    ],
)
def test_a_damaged_description_is_refused_with_the_reason(data: Any, words: str) -> None:
    prunus.parts.load_all()
    with pytest.raises(SpecError, match=words.replace(".", r"\.")):
        Recipe.from_dict(data)


def test_slots_take_their_own_kind_of_part() -> None:
    with pytest.raises(SpecError, match="recipe 'snip': criterion must be a Criterion, not OneShot"):
        replace(SNIP, criterion=OneShot())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="the grow slot must be filled"):
        replace(SNIP, schedule=PruneAndGrow())


def test_a_part_is_a_frozen_dataclass() -> None:
    class Loose(Criterion):
        def __call__(self, w: Weight) -> Tensor:
            return w

    with pytest.raises(SpecError, match=r"Loose must be a @dataclass\(frozen=True\)"):
        replace(SNIP, criterion=Loose())
    Part._registry["criterion"].pop("Loose")


def test_needs_are_read_from_annotations() -> None:
    assert set(needs(type(SNIP.criterion))) == {"w", "g"} and needs(Magnitude)["w"].reads == "nothing"
    assert needs(type(SNIP.criterion))["g"].reads == "labels"

    @dataclass(frozen=True)
    class Vague(Criterion):
        def __call__(self, w: Tensor) -> Tensor:
            return w

    try:
        with pytest.raises(SpecError, match=r"parameter 'w' is annotated .* is no evidence.*prunus\.parts\.evidence"):
            needs(Vague)
    finally:
        Part._registry["criterion"].pop("Vague")


def test_a_part_registers_itself_and_works_at_once() -> None:
    @dataclass(frozen=True)
    class Powered(Criterion):
        power: float = 1.0

        def __call__(self, w: Weight, g: Grad) -> Tensor:
            return (w * g).abs() ** self.power

    try:
        recipe = replace(SNIP, criterion=Powered(power=2.0))
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert recipe.reads == "labels" and not recipe.data_free and recipe.when == "before"
    finally:
        Part._registry["criterion"].pop("Powered")


def test_the_taxonomy_is_derived() -> None:
    assert SNIP.taxonomy()["when"] == "before" and replace(SNIP, schedule=Rounds()).when == "after"
    assert replace(SNIP, schedule=Gradual()).when == "during" and replace(SNIP, on="pretrained").when == "after"
    assert replace(SNIP, granularity=Channel()).structure == "structured"
    assert replace(SNIP, allocate=NofM()).structure == "semi-structured"
    assert [replace(SNIP, schedule=s).pace for s in (OneShot(), Iterative(rounds=3), Gradual(), Rounds())] == [
        "one_shot", "iterative", "gradual", "iterative"]  # fmt: skip
    assert prunus.methods.rigl.pace == "prune_and_grow" and prunus.methods.rigl.how == "learned"
    assert prunus.methods.synflow.data_free and prunus.methods.random.data_free and not SNIP.data_free
    assert not replace(prunus.methods.magnitude, schedule=Gradual()).data_free  # something is trained before


EVERY_SCHEDULE = [OneShot(), OneShot(at=0.5), Iterative(rounds=7), Iterative(rounds=4, spacing="linear"), Gradual(),
                  Gradual(begin=0.2, end=0.9, power=1.0), PruneAndGrow(), Rounds(), Rounds(rewind=0.1, what="rate"),
                  Repeated(), Repeated(times=3, hold=True)]  # fmt: skip


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 17, 1000])
@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=str)
def test_every_timeline_is_in_order_and_ends_at_the_density_asked(schedule: Schedule, steps: int) -> None:
    for density in (1.0, 0.5, 0.1, 0.013):
        events = schedule(density, steps)
        assert events and events[-1].density == density and events[-1].hold
        assert all(0 <= e.step <= steps for e in events)
        assert all(a.step <= b.step and a.density >= b.density - 1e-12 for a, b in itertools.pairwise(events))
        assert all(e.rewind is None or e.rewind < e.step or steps == 0 for e in events)


def test_unfinished_parts_say_what_they_lack() -> None:
    with pytest.raises(SpecError, match="does not say which units stay"):
        Allocation()({}, 0.5, {})
    with pytest.raises(SpecError, match="at_least=0"):
        Channel(at_least=0)
    with pytest.raises(SpecError, match="0 < n < m"):
        NofM(4, 4)
    with pytest.raises(UnknownNameError, match="unknown granularity"):
        Element.from_dict({"part": "Pixel"})


def test_recipes_hold_no_tensors_and_compare_by_value() -> None:
    for name in prunus.methods.names():
        recipe = prunus.methods.get(name)
        assert recipe.name == name and recipe.source and hash(recipe) == hash(replace(recipe))
        assert "Tensor" not in repr(recipe) and not any(torch.is_tensor(v) for v in vars(recipe.criterion).values())
        assert prunus.methods.card(name).title and prunus.methods.card(name).use_when
