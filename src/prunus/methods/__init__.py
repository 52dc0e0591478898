"""The sentences: one recipe per file, file name = recipe name, with its card.

>>> from prunus import methods
>>> methods.snip.when
'before'
"""

import importlib
import pkgutil

from prunus.core.card import Card
from prunus.core.errors import UnknownNameError
from prunus.core.recipe import Recipe

_RECIPES: dict[str, Recipe] = {}
_CARDS: dict[str, Card] = {}
for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    _RECIPES[_found.name] = getattr(_module, _found.name)
    _CARDS[_found.name] = _module.card


def names() -> tuple[str, ...]:
    """Every method's name, in alphabetical order."""
    return tuple(sorted(_RECIPES))


def get(name: str) -> Recipe:
    """A method's recipe; an unknown name comes back with the nearest ones."""
    if name not in _RECIPES:
        raise UnknownNameError("method", name, _RECIPES)
    return _RECIPES[name]


def card(name: str) -> Card:
    """A method's card."""
    return _CARDS[get(name).name]


def __getattr__(name: str) -> Recipe:
    raise AttributeError(str(UnknownNameError("method", name, _RECIPES)))


# The loop above left the modules under their own names; a name means its recipe.
globals().update(_RECIPES)
