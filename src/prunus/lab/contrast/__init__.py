"""The survey's comparisons, as commands: what is compared, on what, under which rules, and what follows.

>>> from prunus.lab import contrast
>>> contrast.get("structure").title
'Unstructured and structured pruning'
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from prunus.core.errors import UnknownNameError
from prunus.lab.contrast import definitions
from prunus.lab.contrast.contrast import Arm, Claim, Contrast, arm
from prunus.lab.contrast.fairness import with_baselines
from prunus.lab.contrast.problem import TIERS, Problem, Tier, tier
from prunus.lab.contrast.sheet import Cell, Run, Sheet
from prunus.lab.contrast.trial import Environment, Record, Spec, here

__all__ = [
    "MISSING",
    "TIERS",
    "Arm",
    "Cell",
    "Claim",
    "Contrast",
    "Environment",
    "Problem",
    "Record",
    "Run",
    "Sheet",
    "Spec",
    "Tier",
    "arm",
    "get",
    "here",
    "names",
    "tier",
    "with_baselines",
]

MISSING: Mapping[str, str] = MappingProxyType(
    {
        "7.7, static and dynamic pruning": "methods that decide at run time, input by input, are not there yet",
    }
)
"""What of the survey's comparisons has no contrast here, and why."""


@cache
def _contrasts() -> dict[str, Contrast]:
    found = {}
    for module in pkgutil.iter_modules(definitions.__path__):
        contrast: Contrast = importlib.import_module(f"{definitions.__name__}.{module.name}").contrast
        found[contrast.name] = contrast
    return found


def names() -> tuple[str, ...]:
    """The names of all contrasts, in alphabetical order."""
    return tuple(sorted(_contrasts()))


def get(name: str) -> Contrast:
    """A contrast by its name, as its definition has it: without the mandatory baselines.

    Raises:
        UnknownNameError: there is none of this name; the message has the nearest ones.
    """
    if name not in _contrasts():
        raise UnknownNameError("contrast", name, _contrasts())
    return _contrasts()[name]
