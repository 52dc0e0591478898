"""The vocabulary: one package per slot of a recipe, and the evidence that parts may ask for.

`prunus.parts.allocation.NofM(n=2, m=4)`, `prunus.parts.criteria.Magnitude()`, and so on. Importing a package
registers its parts.
"""

import importlib
from types import ModuleType

PACKAGES = (
    "evidence",
    "granularity",
    "criteria",
    "allocation",
    "schedule",
    "growth",
    "redistribute",
    "penalty",
    "prox",
    "gate",
    "reconstruct",
    "recover",
    "prepare",
)


def __getattr__(name: str) -> ModuleType:
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"prunus.parts has no package {name!r}; it has {', '.join(PACKAGES)}")


def load_all() -> None:
    """Import every slot package, so that every part is registered (needed before a recipe is read from JSON)."""
    for name in PACKAGES:
        importlib.import_module(f"{__name__}.{name}")
