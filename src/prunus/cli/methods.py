"""`prunus methods`: the taxonomy as a filterable table."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.output import DryRun, Json, Seed, console, emit, planned, say
from prunus.core.errors import SpecError

AXES = ("structure", "when", "how", "pace", "scope", "data")


def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[show NAME]", help="Show one method whole: formula, parts, cost.")
    ] = None,
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

    name = shown(names or [])
    wanted = {"structure": structure, "when": when, "how": how, "pace": pace, "data": data}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    if name is not None:
        if wanted:
            raise SpecError(f"{name} names one method and --{' --'.join(wanted)} filters many: give one or the other")
        registry.find(name)
        if dry_run:
            planned(json, {"methods": [name]}, f"would show {name}")
            return
        _one(name, json)
        return
    recipes = [registry.find(n) for n in (*registry.names(), *registry.procedures())]
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
    say("one method whole: prunus methods show NAME")


def _short(source: str) -> str:
    """The first paper of a source; `prunus methods show NAME` shows all of it."""
    return source.split(";")[0]


def shown(names: list[str]) -> str | None:
    """The one method that is asked for: `snip` and `show snip` are the same."""
    if names[:1] == ["show"]:
        if len(names) != 2:
            raise SpecError("show takes the name of one method: prunus methods show snip")
        return names[1]
    if len(names) > 1:
        raise SpecError(f"one method at a time: prunus methods show {names[0]}")
    return names[0] if names else None


def _one(name: str, json: bool) -> None:
    from prunus import methods as registry
    from prunus.core.recipe import Recipe
    from prunus.report.sheet import sheet

    method, card = registry.find(name), registry.card(name)
    page = sheet(method, card, registry.measured(name))
    if json:
        told = {k: v for k, v in vars(page).items() if k not in ("title", "name", "source", "parts")}
        recipe = method.to_dict() if isinstance(method, Recipe) else {"procedure": name, "source": method.source}
        emit({"recipe": recipe, "taxonomy": method.taxonomy(), "card": vars(card), "page": told})
        return
    from rich.markup import escape
    from rich.table import Table

    out = console()
    out.print(f"[bold]{escape(page.title)}[/]  {escape(page.source)}")
    out.print(escape(page.sentence))
    if page.formula:
        out.print(f"[bold]Computes[/] {escape(page.formula)}.")
    out.print(f"[bold]Use it when[/] {escape(page.use_when)}.")
    out.print(f"[bold]Avoid it when[/] {escape(page.avoid_when)}.")
    if page.deviations:
        out.print(f"[bold]Differs:[/] {escape(page.deviations)}")
    out.print(f"[bold]In 1,000 steps:[/] {page.timeline}. Expects {method.on} weights.")
    out.print(f"[bold]Cost:[/] {escape('; '.join(page.cost) or 'no evidence is collected')}.")
    for title, rows in (("Parts", page.parts), ("Measured in this repository", page.measured)):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(escape, row))
        if rows:
            out.print(table)
