"""The systems of the surveys, with what of each is there: the second half of docs/coverage.md.

docs/systems.json holds the systems: number, name, where they are cited, what they remove, when, and, for those that
are missing or are there only in part, why. Which methods stand for a system is said by the methods' own cards.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prunus import methods
from prunus.core.recipe import Recipe
from prunus.report.markdown import escaped, table

FILE = Path(__file__).resolve().parent / "systems.json"
INTRO = """## System by system

The {total} systems that two surveys and the first one's later list of papers name: A is the survey above, B a second
one of the same kind, *list* the later list; the numbers are their references. A line may stand for several systems of
one kind. *Recipe*: a record of parts; *procedure*: an algorithm that no such record can tell; *in part*: some of what
the line names, the rest being named as missing. Methods that are "inspired by" a system say so in their card.

{counts}

{systems}"""


def told(text: str) -> str:
    """Plain text as Markdown; code in it stays code."""
    return re.sub(r"\\`(.*?)\\`", lambda code: f"`{code[1].replace(chr(92), '')}`", escaped(text))


def systems() -> list[dict[str, Any]]:
    """The systems as they are stored."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def standing() -> dict[int, list[str]]:
    """The methods that stand for each system, by its number."""
    found: dict[int, list[str]] = {}
    for name in (*methods.names(), *methods.procedures()):
        for row in methods.card(name).rows:
            found.setdefault(row, []).append(name)
    return {row: sorted(names) for row, names in found.items()}


def state(system: dict[str, Any], names: list[str]) -> str:
    """Recipe, procedure, in part, or missing."""
    if not names:
        return "elsewhere" if system.get("elsewhere") else "missing"
    kind = "recipe" if any(isinstance(methods.find(n), Recipe) for n in names) else "procedure"
    return f"{kind}, in part" if system["missing"] else kind


def systems_section() -> str:
    """Every system with its state and the file that holds it, or the reason why there is none."""
    found, every = standing(), systems()
    if unknown := sorted(set(found) - {s["n"] for s in every}):
        raise SystemExit(f"cards name systems that docs/systems.json lacks: {unknown}")
    rows, counts = [], dict.fromkeys(("recipe", "procedure", "recipe, in part", "procedure, in part"), 0)
    for system in every:
        names = found.get(system["n"], [])
        kind = state(system, names)
        counts[kind] = counts.get(kind, 0) + 1
        files = ", ".join(f"[{n}](../src/prunus/methods/{n}.py)" for n in names)
        why = told(system.get("elsewhere") or system["missing"])
        where = f"{files}; missing: {why}" if files and why else files or why or "not there yet"
        cells = (str(system["n"]), escaped(system["system"]), system["cited"], system["units"], system["when"])
        rows.append((*cells, kind, where))
    summed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    header = ("No.", "System", "Cited", "Removes", "When", "State", "Where, or why not")
    return INTRO.format(total=len(every), counts=f"{summed}.", systems=table(header, rows, right=(0,)))
