"""What a part asks to be told, read off its annotations."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence

_NEEDS: dict[type, Mapping[str, Evidence]] = {}


def needs(part: type[Any]) -> Mapping[str, Evidence]:
    """What a part's `__call__` asks for: parameter name -> evidence, read from its annotations.

    Raises `SpecError` where a parameter is annotated with something that is no evidence.
    """
    if part in _NEEDS:
        return _NEEDS[part]
    hints = get_type_hints(part.__call__, include_extras=True)
    hints = {name: hint for name, hint in hints.items() if name not in {"return", *part.given}}
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
