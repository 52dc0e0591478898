"""`prunus methods`: the taxonomy as a filterable table."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.output import DryRun, Json, Seed, console, emit, planned, say
from prunus.core.errors import SpecError

AXES = ("structure", "when", "how", "pace", "scope", "data")


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method whole: recipe, card, taxonomy.")] = None,
    structure: Annotated[str | None, typer.Option(help="unstructured, semi-structured or structured.")] = None,
    when: Annotated[str | None, typer.Option(help="before, during or after training.")] = None,
    how: Annotated[str | None, typer.Option(help="criteria or learned.")] = None,
    pace: Annotated[str | None, typer.Option(help="one_shot, iterative, gradual or prune_and_grow.")] = None,
    data: Annotated[str | None, typer.Option(help="nothing, inputs or labels: the most it reads.")] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """List pruning methods by where they sit in the taxonomy. Nothing here is random: --seed is taken and not used."""
    from prunus import methods as registry

    wanted = {"structure": structure, "when": when, "how": how, "pace": pace, "data": data}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    if name is not None:
        if wanted:
            raise SpecError(f"{name} names one method and --{' --'.join(wanted)} filters many: give one or the other")
        recipe = registry.get(name)
        if dry_run:
            planned(json, {"methods": [recipe.name]}, f"would show {recipe.name}")
            return
        _one(recipe.name, json)
        return
    recipes = [registry.get(n) for n in registry.names()]
    for key, value in wanted.items():
        values = sorted({r.taxonomy()[key] for r in recipes})
        if value not in values:
            raise SpecError(f"--{key} {value}: no method is {value!r}; there are {', '.join(values)}")
    found = [r for r in recipes if all(r.taxonomy()[k] == v for k, v in wanted.items())]
    if dry_run:
        planned(json, {"methods": [r.name for r in found]}, f"would list {len(found)} of {len(recipes)} methods")
        return
    if json:
        emit(
            [{"name": r.name, "title": registry.card(r.name).title, "source": r.source, **r.taxonomy()} for r in found]
        )
        return
    from rich import box
    from rich.table import Table

    table = Table(title=f"{len(found)} of {len(recipes)} methods", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("name", *AXES):
        table.add_column(column, no_wrap=True)
    table.add_column("source", overflow="fold")
    for r in sorted(found, key=lambda r: (r.structure, r.when, r.name)):
        t = r.taxonomy()
        own = {k: v for k, v in t.items() if k in AXES}
        table.add_row(f"[bold]{r.name}[/]", *(own[k] for k in AXES), _short(r.source))
    console().print(table)
    say("one method whole: prunus methods NAME")


def _short(source: str) -> str:
    """The first paper of a source; `prunus methods NAME` shows all of it."""
    return source.split(";")[0]


def _one(name: str, json: bool) -> None:
    from prunus import methods as registry

    recipe, card = registry.get(name), registry.card(name)
    if json:
        emit({"recipe": recipe.to_dict(), "taxonomy": recipe.taxonomy(), "card": vars(card)})
        return
    from rich.markup import escape
    from rich.table import Table

    out = console()
    out.print(f"[bold]{escape(card.title)}[/]  {escape(recipe.source)}")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for slot, part in recipe.parts().items():
        table.add_row(slot, escape(repr(part)))
    for key, value in recipe.taxonomy().items():
        table.add_row(key, value)
    out.print(table)
    out.print(f"Use it when {escape(card.use_when)}.")
    out.print(f"Avoid it when {escape(card.avoid_when)}.")
    if card.deviations:
        out.print(f"Differs: {escape(card.deviations)}")
