"""Which optional libraries are there, in which version, and what would bring the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from prunus.core.errors import SpecError

_ENTRY = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*;\s*extra\s*==\s*['\"]([^'\"]+)['\"]")
GATHERING = ("all", "dev")  # extras that only gather others, or serve the development of prunus


@dataclass(frozen=True)
class Library:
    """An optional library: the extra that brings it, the versions that are wanted, the one that is there (or none)."""

    name: str
    extra: str
    wanted: str
    version: str | None


def libraries(package: str = "prunus") -> tuple[Library, ...]:
    """The libraries of every extra of `package`, as its own metadata names them, the extras in order of their names.

    Errors: `SpecError` where the package is not installed but run from its source.
    """
    try:
        required = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        raise SpecError(f"{package} runs from its source, so it has no list of its extras: pip install -e .") from None
    matches = [m for text in required if (m := _ENTRY.fullmatch(text.strip())) is not None]
    found = {(m[3], m[1]): Library(m[1], m[3], m[2], _version(m[1])) for m in matches if m[3] not in GATHERING}
    return tuple(found[key] for key in sorted(found))


def pip_line(missing: tuple[Library, ...]) -> str:
    """What installs the extras of these libraries; empty where none is missing."""
    extras = ",".join(dict.fromkeys(m.extra for m in missing))
    return f"pip install 'prunus[{extras}]'" if extras else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
