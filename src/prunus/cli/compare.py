"""`prunus compare`: several methods under one protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.networks import Checkpoint, Network, Options, Width, options_of
from prunus.cli.output import DryRun, Json, Seed, console, emit, progress, say, told_warnings
from prunus.cli.setting import (
    UNTRAINED,
    Batch,
    Data,
    Download,
    Length,
    Pattern,
    Rate,
    Root,
    Steps,
    session_of,
    setup_from,
)
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.core.budget import Budget
    from prunus.core.recipe import Recipe
    from prunus.lab.experiment import Setup
    from prunus.lab.series import Entry
    from prunus.report.records import Curve, MethodRecord


Points = Annotated[
    str | None, typer.Option(help="Operating points in this currency instead: fractions kept, separated by commas.")
]


def compare(
    network: Network,
    methods: Annotated[str, typer.Option("--methods", "-m", help="Names separated by commas.")] = "magnitude,lamp,snip",
    sparsities: Annotated[
        str, typer.Option("--sparsities", "-s", help="Operating points, fractions separated by commas.")
    ] = "0.5,0.75,0.9",
    macs: Points = None,
    params: Points = None,
    bytes_: Annotated[str | None, typer.Option("--bytes", help="The same in stored bytes.")] = None,
    latency: Annotated[str | None, typer.Option("--latency", help="The same in measured latency.")] = None,
    checkpoint: Checkpoint = None,
    data: Data = None,
    root: Root = None,
    download: Download = False,
    steps: Steps = 0,
    lr: Rate = 0.02,
    batch_size: Batch = 128,
    width: Width = None,
    option: Options = None,
    pattern: Pattern = "**/*.py",
    length: Length = None,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help="Add random pruning.")] = True,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table, plot, report and models.")] = Path(
        "comparison"
    ),
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare methods: same weights, data, budget, training and measurements; random pruning is added as the floor.

    A finished trial is kept: an interrupted comparison goes on where it stopped, and a method can be added later.
    """
    recipes = _recipes(methods, baseline)
    points = _points(sparsities, {"macs": macs, "params": params, "bytes": bytes_, "latency": latency})
    from prunus.deploy.atomic import check_writable
    from prunus.lab.series import Entry

    check_writable(out)
    setup = setup_from(
        network,
        checkpoint,
        options_of(None, width, option),
        data,
        root,
        download=download,
        pattern=pattern,
        length=length,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    entries = [Entry(r, b, steps) for r in recipes for b in _own(r, points)]
    for recipe in recipes:
        # One session each, thrown away: what is wrong with the third method is said before the first one runs.
        session_of(setup, recipe, next(e.budget for e in entries if e.recipe is recipe), steps)
    if dry_run:
        _plan(setup, entries, out, json)
        return
    from prunus.lab.facts import dataset_facts, environment, network_facts, now
    from prunus.lab.series import run_series
    from prunus.report.records import Report
    from prunus.report.tables import print_table

    with told_warnings():
        records = run_series(setup, entries, out / "models", progress=progress, say=say)
    notes = ["One seed: differences of a point or less say nothing. Repeat with other --seed values before concluding."]
    if len(points) < 5:
        notes.append(
            f"{len(points)} operating points: five or more, an extreme one among them, make a fair comparison."
        )
    if setup.initial is not None:
        notes.append(UNTRAINED)
    report = Report(
        title=f"{len(recipes)} methods on {setup.network}",
        subtitle=f"{setup.dataset.name}, {steps} training steps each, one protocol",
        dataset=dataset_facts(setup.dataset),
        network=network_facts(setup),
        environment=environment(),
        methods=[_titled(e, m) for e, m in zip(entries, records, strict=True)],
        curves=_curves(recipes, entries, records, steps),
        commands=[],
        notes=notes,
        version=str(environment()["prunus"]),
        created=now(),
        seed=seed,
    )
    report.write(out)
    if json:
        emit(report.model_dump(mode="json"))
        return
    print_table(report, console())
    say(f"written: {out / 'report.html'}, the models in {out / 'models'}")


def _plan(setup: Setup, entries: list[Entry], out: Path, json: bool) -> None:
    if json:
        trials = [{"method": e.recipe.name, **_point(e), "steps": e.steps, "name": e.label} for e in entries]
        plan = {"network": setup.network, "data": setup.dataset.name, "trials": trials, "out": str(out)}
        emit({"dry_run": True, **plan, "seed": setup.seed})
        return
    out_lines = [f"{len(entries)} trials on {setup.network} and {setup.dataset.name}; nothing was changed:"]
    out_lines += [f"  {e.recipe.name} at {_words(e.budget)}, {e.steps} steps" for e in entries]
    console().print("\n".join([*out_lines, f"would write {out}"]), markup=False, soft_wrap=True)


def _point(entry: Entry) -> dict[str, float]:
    budget = entry.budget
    return {"sparsity": round(1 - budget.keep, 6)} if budget.currency == "units" else {budget.currency: budget.keep}


def _words(budget: Budget) -> str:
    return f"sparsity {1 - budget.keep:.4g}" if budget.currency == "units" else str(budget)


def _titled(entry: Entry, record: MethodRecord) -> MethodRecord:
    """The record under a title that tells a method's operating points apart."""
    return record.model_copy(update={"title": f"{_title(entry.recipe)}, {_removed(entry.budget)}"})


def _removed(budget: Budget) -> str:
    return f"{1 - budget.keep:.4g} removed" if budget.currency == "units" else f"at most {budget}"


def _title(recipe: Recipe) -> str:
    from prunus import methods

    if recipe.name in methods.names():
        return methods.card(recipe.name).title
    return f"Random {type(recipe.granularity).__name__.lower()}s"


def _curves(recipes: list[Recipe], entries: list[Entry], records: list[MethodRecord], steps: int) -> list[Curve]:
    from prunus.report.records import Curve, Point

    curves = []
    for recipe in recipes:
        own = [(e, m) for e, m in zip(entries, records, strict=True) if e.recipe is recipe]
        reached = [
            Point(sparsity=1 - e.budget.keep, accuracy=m.accuracy_after) for e, m in own if m.accuracy_after is not None
        ]
        units = own[0][0].budget.currency
        of = "" if units == "units" else f", against the share of the {units} that had to go"
        curves.append(Curve(name=recipe.name, points=reached, note=f"test accuracy after {steps} steps, one seed{of}"))
    return curves


def _recipes(names: str, baseline: bool) -> list[Recipe]:
    """The recipes asked for, and random pruning at each of their granularities."""
    from prunus import methods

    recipes = [methods.get(n) for n in dict.fromkeys(n.strip() for n in names.split(",")) if n]
    if not recipes:
        raise SpecError("--methods names no method")
    if not baseline:
        return recipes
    random = methods.get("random")
    floor: list[Recipe] = []
    for kind, granularity in {type(r.granularity): r.granularity for r in reversed(recipes)}.items():
        if kind is type(random.granularity):
            floor.insert(0, random)
        else:
            floor.append(replace(random, name=f"random_{kind.__name__.lower()}", granularity=granularity))
    return [*recipes, *(f for f in floor if f.name not in {r.name for r in recipes})]


def _points(sparsities: str, others: dict[str, str | None]) -> list[Budget]:
    """The operating points: in the one other currency that was given, else the sparsities."""
    from prunus.core.budget import Budget

    given = {k: v for k, v in others.items() if v is not None}
    if len(given) > 1:
        raise SpecError(f"{' and '.join(f'--{k}' for k in given)} contradict each other: give one")
    name, text = next(iter(given.items()), ("sparsities", sparsities))
    try:
        points = [float(s) for s in text.split(",") if s.strip()]
    except ValueError as error:
        raise SpecError(f"--{name} {text}: give fractions separated by commas, such as 0.5,0.9") from error
    if not points:
        raise SpecError(f"--{name} names no operating point")
    shares: list[dict[str, Any]] = [{name: p} for p in points]
    return list(dict.fromkeys(Budget(**s) if given else Budget.from_sparsity(s[name]) for s in shares))


def _own(recipe: Recipe, points: list[Budget]) -> list[Budget]:
    """The points a recipe can take: patterns such as 2:4 have one of their own."""
    from prunus.core.budget import Budget

    density = getattr(recipe.allocate, "density", None)
    return points if density is None else [Budget(density=density)]
