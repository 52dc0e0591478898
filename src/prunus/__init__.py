"""Prunus prunes any PyTorch model, with any method of the field, and proves what it did.

>>> import prunus
>>> result = prunus.prune(model, task, "magnitude", sparsity=0.9)   # doctest: +SKIP

Importing the package is cheap: torch is loaded when something is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "Budget": "prunus.core.budget",
    "Event": "prunus.core.events",
    "Group": "prunus.core.groups",
    "Member": "prunus.core.groups",
    "Procedure": "prunus.core.procedure",
    "PrunusError": "prunus.core.errors",
    "Recipe": "prunus.core.recipe",
    "Result": "prunus.engine.result",
    "Session": "prunus.engine.session",
    "Task": "prunus.core.task",
    "densify": "prunus.deploy.sparse_modules",
    "groups": "prunus.engine.structure",
    "load": "prunus.deploy.files",
    "prune": "prunus.engine.prune",
    "recover_": "prunus.engine.recover_",
    "save": "prunus.deploy.files",
    "score": "prunus.engine.score",
    "sparsify": "prunus.deploy.sparsify_",
    "sparsify_": "prunus.deploy.sparsify_",
    "transfer": "prunus.engine.transfer",
}
_PACKAGES = ("core", "measure", "methods", "parts", "graph", "lab", "report")

if TYPE_CHECKING:
    from prunus import graph, lab, measure, methods, parts, report
    from prunus.core.budget import Budget, Clock, Prices
    from prunus.core.errors import PrunusError
    from prunus.core.events import Event
    from prunus.core.groups import Group, Member
    from prunus.core.part import Preparation
    from prunus.core.procedure import Procedure
    from prunus.core.recipe import Recipe
    from prunus.core.task import Task
    from prunus.deploy.files import load, save
    from prunus.deploy.sparse_modules import densify
    from prunus.deploy.sparsify_ import sparsify, sparsify_
    from prunus.engine.prune import prune
    from prunus.engine.recover_ import recover_
    from prunus.engine.result import Result
    from prunus.engine.score import score
    from prunus.engine.session import Session
    from prunus.engine.structure import groups
    from prunus.engine.transfer import transfer

__all__ = [
    "Budget",
    "Event",
    "Group",
    "Member",
    "Procedure",
    "PrunusError",
    "Recipe",
    "Result",
    "Session",
    "Task",
    "__version__",
    "densify",
    "graph",
    "groups",
    "lab",
    "load",
    "measure",
    "methods",
    "parts",
    "prune",
    "recover_",
    "report",
    "save",
    "score",
    "sparsify",
    "sparsify_",
    "transfer",
]


def recipe_named(name: str) -> Recipe:
    """A method's recipe by its name: the one door through which everything below learns of the methods."""
    from prunus import methods

    return methods.get(name)


def procedure_named(name: object) -> Procedure | None:
    """The procedure of a name, or None where it names none: the door for methods that are no recipes."""
    from prunus import methods
    from prunus.core.procedure import Procedure

    found = methods.find(name) if isinstance(name, str) else name
    return found if isinstance(found, Procedure) else None


def preparation_of(plain: Mapping[str, Any]) -> Preparation:
    """The preparation that a saved recipe tells of: the one door through which loading learns of the parts."""
    from prunus import parts
    from prunus.core.part import Preparation

    parts.load_all()
    return Preparation.from_dict(plain)


def layer_prices(model: Any, example: Any, clock: Clock | None, groups: tuple[Group, ...] = ()) -> Prices | None:
    """What prices widths without timing every one of them, where budgets go by this machine's own clock: the tables of
    its layers. Another clock may price them itself (`prices(model, example, groups)`); None where it does not.
    """
    from prunus.measure.clock import latency_share

    chosen = clock or default_clock()
    if chosen is not latency_share:
        priced: Prices | None = chosen.prices(model, example, groups) if hasattr(chosen, "prices") else None
        return priced
    from prunus.measure.prices import prices

    return prices(model, example, groups)


def default_clock() -> Clock:
    """What measures latency where a task names no clock: the one door through which the engine learns of measuring."""
    from prunus.measure.clock import latency_share

    return latency_share


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
