"""The README's table of methods, generated from the recipes and their cards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from prunus.report import words
from prunus.report.markdown import escaped, table


@runtime_checkable
class Described(Protocol):
    """What this table reads of a `Recipe`; a protocol, so that documents can be made without importing torch."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def taxonomy(self) -> dict[str, str]:
        """Axis -> value."""


@runtime_checkable
class Carded(Protocol):
    """What this table reads of a `Card`."""

    @property
    def title(self) -> str: ...

    @property
    def use_when(self) -> str: ...


def methods_markdown(recipes: Iterable[Described], cards: Iterable[Carded]) -> str:
    """One row per (recipe, card): unstructured to structured, then before, during, after training, then by name.

    Fails: `ValueError` if there are more recipes than cards, or the reverse.
    """
    structures, whens = list(words.STRUCTURE), list(words.WHEN)

    def place(pair: tuple[Described, Carded]) -> tuple[int, int, str]:
        taxonomy = pair[0].taxonomy()
        structure, when = taxonomy.get("structure", ""), taxonomy.get("when", "")
        return (
            structures.index(structure) if structure in structures else len(structures),
            whens.index(when) if when in whens else len(whens),
            pair[0].name,
        )

    rows = []
    for recipe, card in sorted(zip(recipes, cards, strict=True), key=place):
        taxonomy = recipe.taxonomy()
        cells = [words.value(axis, taxonomy.get(axis, "")) for axis in ("structure", "when", "pace", "scope", "data")]
        rows.append(
            (
                f"`{recipe.name}`",
                escaped(card.title),
                *map(escaped, cells),
                escaped(card.use_when),
                escaped(recipe.source),
            )
        )
    header = ("Name", "Method", "Removes", "When", "Pace", "Budget shared", "Data read", "Use it when", "Source")
    return table(header, rows)
