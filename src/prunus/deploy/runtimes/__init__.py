"""Runtimes: one file each, which holds its values in `RUNTIMES`; a new file is a new runtime."""

import importlib
import pkgutil

from prunus.core.errors import SpecError, UnknownNameError
from prunus.deploy.runtimes.base import PRECISIONS, Pattern, Precision, Runtime, Session, Subject

__all__ = ["PRECISIONS", "Pattern", "Precision", "Runtime", "Session", "Subject", "known", "named", "register"]

_OTHERS: dict[str, Runtime] = {}


def known() -> dict[str, Runtime]:
    """Every runtime by its title, whether it can run here or not. Imports none of their libraries."""
    found: dict[str, Runtime] = {}
    for module in pkgutil.iter_modules(__path__):
        for runtime in getattr(importlib.import_module(f"{__name__}.{module.name}"), "RUNTIMES", ()):
            found[runtime.title] = runtime
    return dict(sorted((found | _OTHERS).items()))


def register(runtime: Runtime) -> Runtime:
    """Add a runtime of one's own. Errors: `SpecError` where its title is taken."""
    if runtime.title in known():
        raise SpecError(f"there is a runtime {runtime.title} already: give yours another name")
    _OTHERS[runtime.title] = runtime
    return runtime


def named(title: str) -> Runtime:
    """The runtime of a title. Errors: `UnknownNameError`."""
    every = known()
    if title not in every:
        raise UnknownNameError("runtime", title, every)
    return every[title]
