"""Every error Prunus raises on purpose: what is wrong, where, why, and what to do about it.

All of them derive from `PrunusError`, so a caller can catch one type. Those that report a wrong argument also derive
from `ValueError`, because that is what the standard library would have raised.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType


class PrunusError(Exception):
    """Base class of all deliberate errors."""


class SpecError(PrunusError, ValueError):
    """An argument, recipe or budget that cannot be used as given; nothing was changed."""


class UnknownNameError(SpecError):
    """A name (of a method, network, data set, part) that does not exist; carries the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.known)}."
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class NothingScored(SpecError):
    """A criterion whose evidence is defined on none of the groups at hand."""


class BudgetError(SpecError):
    """A budget that no mask of this recipe on this model can meet; the message names the best reachable."""


class WeightsError(PrunusError, ValueError):
    """Weights that cannot be ranked (NaN or infinite), named one by one; nothing was changed."""


class DataError(PrunusError, ValueError):
    """Data that is missing, of the wrong shape, corrupt, or was only partly downloaded."""


class StructureError(PrunusError):
    """A network whose structure could not be determined, pruned or compacted; names the operation and the module."""


class VerificationError(PrunusError):
    """The compact model does not compute what the masked model computes, or a file is not what its digest says."""


class CollapseWarning(UserWarning):
    """Masks that remove every unit of a layer: the network can no longer pass signal through it."""


class PrunusWarning(UserWarning):
    """Something a user should know although the request was carried out."""


class MissingExtraError(PrunusError, ImportError):
    """An optional library that is not installed; the message is the pip line that installs it."""


class Problems:
    """Collects every problem found before anything is changed, so that a user sees all of them at once.

    >>> problems = Problems("cannot prune")
    >>> problems.add("weight 'fc.weight' holds 3 NaN values")
    >>> problems.raise_if_any(WeightsError)
    Traceback (most recent call last):
    ...
    prunus.core.errors.WeightsError: cannot prune: weight 'fc.weight' holds 3 NaN values
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        self.found.append(problem)

    def raise_if_any(self, error: type[PrunusError] = SpecError) -> None:
        if len(self.found) == 1:
            raise error(f"{self.what}: {self.found[0]}")
        if self.found:
            listing = "\n".join(f"  - {p}" for p in self.found)
            raise error(f"{self.what}, {len(self.found)} problems:\n{listing}")


def require(module: str, *, extra: str, why: str = "") -> ModuleType:
    """Import an optional library, or raise `MissingExtraError` with the pip line that provides it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A library that is present but lacks one of its own dependencies needs the same extra.
        reason = f" ({why})" if why else ""
        raise MissingExtraError(
            f"{module.split('.')[0]} is not installed{reason}: pip install 'prunus[{extra}]'", name=error.name
        ) from error


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 4 more`: a list that stays readable in an error message."""
    head = ", ".join(names[:most])
    return head if len(names) <= most else f"{head} and {len(names) - most} more"
