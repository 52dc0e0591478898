"""A method on one page: what it does, by which formulas, when to take it, what it costs, and what was measured here."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

from prunus.core.card import Card
from prunus.core.part import Part
from prunus.core.procedure import Procedure
from prunus.core.recipe import Recipe
from prunus.report import words


@dataclass(frozen=True)
class Sheet:
    """What is told of a method, in plain text.

    Attributes:
        title: the method's usual name.
        name: as in `prunus.methods`.
        source: paper, venue, arXiv number.
        sentence: what it does, in words.
        parts: (slot, the part as it is written in a recipe, what it means); empty for a procedure.
        formula: what is computed: the criterion's meaning, or what the card says.
        use_when, avoid_when, deviations: see `Card`.
        timeline: its events in a run of 1,000 steps.
        cost: what it reads and how often it runs the network.
        measured: (what, value) of this repository's own run; empty where there is none.
    """

    title: str
    name: str
    source: str
    sentence: str
    parts: tuple[tuple[str, str, str], ...]
    formula: str
    use_when: str
    avoid_when: str
    deviations: str
    timeline: str
    cost: tuple[str, ...]
    measured: tuple[tuple[str, str], ...]


def sheet(method: Recipe | Procedure, card: Card, measured: Mapping[str, Any] | None = None) -> Sheet:
    """The page of a method; `measured` is its row of the committed results."""
    recipe = method if isinstance(method, Recipe) else None
    told = () if recipe is None else tuple((slot, spelled(p), meaning(p)) for slot, p in recipe.parts().items())
    return Sheet(
        card.title,
        method.name,
        method.source,
        words.sentence(method.taxonomy()),
        told,
        card.formula or ("" if recipe is None else meaning(recipe.criterion)),
        card.use_when,
        card.avoid_when,
        card.deviations,
        "an algorithm of its own, without a timeline" if recipe is None else timeline(recipe),
        ("as its algorithm says",) if recipe is None else evidence(recipe),
        () if measured is None else results(measured),
    )


def spelled(part: Part) -> str:
    """A part as it is written in a recipe: the class and the fields that differ from their defaults."""
    told = []
    for field in fields(cast(Any, part)):
        value = getattr(part, field.name)
        default = field.default if field.default is not MISSING else None
        if value != default:
            told.append(f"{field.name}={spelled(value) if isinstance(value, Part) else repr(value)}")
    return f"{type(part).__name__}({', '.join(told)})"


def meaning(part: Part) -> str:
    """The first sentence of a part's docstring, on one line, without its citation."""
    text = " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
    text = re.sub(r" \([^()]*arXiv[^()]*\)", "", text)
    return re.split(r"(?<!al)\. (?=[A-Z])", text)[0].rstrip(".")


def timeline(recipe: Recipe) -> str:
    """When a recipe prunes in a run of 1,000 steps to a density of one tenth (a pattern: its own density)."""
    density = getattr(recipe.allocate, "density", None) or 0.1
    events = recipe.timeline(density, 1000)
    steps = [e.step for e in events]
    if len(events) == 1:
        return f"one event, at step {steps[0]:,}"
    span = f"all at step {steps[0]:,}" if len(set(steps)) == 1 else f"from step {steps[0]:,} to step {steps[-1]:,}"
    if all(e.settle is not None for e in events):
        return f"one of {len(events)} events, {span}: the first whose masks have settled"
    return f"{len(events)} events, {span}"


def evidence(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe's parts ask for, and the passes over the network that it takes."""
    told = []
    for slot, part in recipe.parts().items():
        if slot in ("start", "criterion", "grow", "penalty", "allocate"):
            for one in part.asks().values():
                name = type(one).__name__.removesuffix("Evidence")
                told.append(f"{slot}: {name}, {'no pass' if one.passes == 'none' else one.passes}")
    if recipe.reconstruct is not None and (more := recipe.reconstruct.asks().values()):
        told += [f"reconstruct: {type(e).__name__.removesuffix('Evidence')}, {e.passes}" for e in more]
    elif recipe.reconstruct is not None:
        told.append("reconstruct: a forward per batch and group, a Gram matrix of each layer's inputs")
    return tuple(told)


def results(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A row of the committed results, in words."""
    if "note" in row:
        return ((f"on the {row['network']}", f"not run: {row['note']}"),)
    seeds = f"mean of {row['seeds']} seeds"
    if "options" in row:
        seeds += f", with {row['options']}"
    told = [
        ("where", f"{row['network']} on {row.get('data', 'the test problem')}, {seeds}"),
        ("removed", f"{row['sparsity']:.1%} of the units, {row['weights']:.1%} of all parameters masked"),
        ("dense", f"{row['dense']:.2%} test accuracy"),
    ]
    if "pruned" in row:
        told.append(("pruned", f"{row['pruned']:.2%}, before any training; {row['seconds']:.1f} s of processor time"))
    told.append(("trained", f"{row['trained']:.2%} (standard deviation {row['spread']:.2%}), after all steps"))
    return tuple(told)
