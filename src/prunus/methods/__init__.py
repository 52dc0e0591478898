"""The sentences: one method per file, file name = the method's name, with its card.

>>> from prunus import methods
>>> methods.snip.when
'before'

Most are recipes; the few that are algorithms of their own are procedures (`procedures()`).
"""

import importlib
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from prunus.core.card import Card
from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.procedure import Procedure
from prunus.core.recipe import Recipe

_METHODS: dict[str, Recipe | Procedure] = {}
_CARDS: dict[str, Card] = {}
for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    _METHODS[_found.name] = getattr(_module, _found.name)
    _CARDS[_found.name] = _module.card


def names() -> tuple[str, ...]:
    """The names of all recipes, in alphabetical order."""
    return tuple(sorted(n for n, m in _METHODS.items() if isinstance(m, Recipe)))


def procedures() -> tuple[str, ...]:
    """The names of all procedures, in alphabetical order."""
    return tuple(sorted(n for n, m in _METHODS.items() if isinstance(m, Procedure)))


def find(name: str) -> Recipe | Procedure:
    """A method by its name, whichever it is; an unknown name comes back with the nearest ones."""
    if name not in _METHODS:
        raise UnknownNameError("method", name, _METHODS)
    return _METHODS[name]


def get(name: str) -> Recipe:
    """A method's recipe; an unknown name comes back with the nearest ones."""
    found = find(name)
    if not isinstance(found, Recipe):
        raise SpecError(
            f"{name} is a procedure, which has no timeline of parts: prunus.prune(model, task, {name!r}, ...) runs it; "
            f"sessions and edits take recipes"
        )
    return found


def ablated(recipe: Recipe | str, without: str) -> Recipe:
    """The recipe without one of the things that are said to make it work (Frankle et al. 2021, arXiv:2009.08576).

    Args:
        recipe: a recipe or its name; the ablated one's name ends in what was done.
        without: "shuffle": every layer keeps as many units, drawn at random. Where all rounds come before training or
            the last one rewinds, the final masks are shuffled; where pruned weights are lost, those of every event.
            "reinit": the masks stay, the weights are drawn anew. "invert": what would be removed first stays.

    Errors: `SpecError` for another word, for a shuffle of masks that keep moving, for new weights where the recipe has
    a recovery of its own.
    """
    from prunus.parts.allocation import Inverted, Shuffled
    from prunus.parts.recover import Scratch
    from prunus.parts.schedule import Returning

    found = get(recipe) if isinstance(recipe, str) else recipe
    named = replace(found, name=f"{found.name}_{without}")
    events = found.timeline()
    if without == "invert":
        return replace(named, allocate=Inverted(found.allocate))
    if without == "reinit":
        if found.recover is not None:
            raise SpecError(f"{found.name!r} has a recovery of its own, {found.recover}: new weights would undo it")
        return replace(named, recover=Scratch())
    if without != "shuffle":
        raise SpecError(f"ablated({found.name!r}, {without!r}): 'shuffle', 'reinit' or 'invert'")
    if any(e.regrow or e.grow for e in events):
        raise SpecError(f"the masks of {found.name!r} move throughout training, so there are none to shuffle")
    if len(events) > 1 and all(e.step == 0 for e in events):
        return replace(named, allocate=Shuffled(found.allocate, when="last"), schedule=Returning(found.schedule))
    back = events[-1].rewind is not None
    return replace(named, allocate=Shuffled(found.allocate, when="last" if back else "every"))


def card(name: str) -> Card:
    """A method's card."""
    return _CARDS[find(name).name]


@cache
def _measurements() -> Mapping[str, Any]:
    made = json.loads((resources.files(__name__) / "measured.json").read_text(encoding="utf-8"))
    return {row["method"]: {"data": made["made"]["data"], **row} for row in made["rows"]}


def measured(name: str) -> Mapping[str, Any] | None:
    """What `benchmarks/methods.py` measured of a method, or None where it has not been run."""
    return _measurements().get(find(name).name)


def __getattr__(name: str) -> Recipe | Procedure:
    raise AttributeError(str(UnknownNameError("method", name, _METHODS)))


# The loop above left the modules under their own names; a name means its method.
globals().update(_METHODS)
