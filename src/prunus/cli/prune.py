"""`prunus prune`: one network, one method, one budget, a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.latency import fill_tables
from prunus.cli.networks import Checkpoint, Network, Options, Width, budget_from, options_of, values_of
from prunus.cli.output import DryRun, Json, Seed, console, emit, planned, progress, say, told_warnings
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
from prunus.cli.stream import Calib, Device, Memory, Resume, Samples, Together, Tokenizer, patterned, streamed
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.core.budget import Budget, Clock, Currency
    from prunus.core.procedure import Procedure
    from prunus.core.recipe import Recipe
    from prunus.lab.experiment import Setup

Sparsity = Annotated[
    str | None,
    typer.Option("--sparsity", help="Fraction of the method's units to remove, [0, 1); or 2:4: 2 of every 4 stay."),
]
Macs = Annotated[float | None, typer.Option("--macs", help="Fraction of the multiply-accumulates to keep, (0, 1].")]
Params = Annotated[float | None, typer.Option("--params", help="Fraction of all parameters to keep, (0, 1].")]
Bytes = Annotated[float | None, typer.Option("--bytes", help="Fraction of the stored bytes to keep, (0, 1].")]
Latency = Annotated[
    float | None, typer.Option("--latency", help="Fraction of the dense latency to keep, measured here, (0, 1].")
]
Solver = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help="How --latency is met by recipes that rank channels: knapsack (the most valuable for the time they take), "
        "or own (the recipe's ranking).",
        show_default="knapsack",
    ),
]
Unit = Annotated[
    str | None,
    typer.Option("--unit", "-u", help="What one unit is, in place of the method's: channel, head, width, block, ..."),
]
UnitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-option",
        metavar="NAME=VALUE",
        help="An option of the unit: round_to=8, exact=false, 'exclude=[\"head*\"]'; may be repeated.",
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="TARGET",
        help="Round kept units to what a runtime likes, and measure --latency on it: onnxruntime, openvino, "
        "openvino-bf16, ... (see prunus deploy); or a kind of file: onnx.",
    ),
]
Ablate = Annotated[
    str | None,
    typer.Option(
        "--ablate",
        help="Leave out what should matter: shuffle (masks within layers), reinit (weights), invert (scores).",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; an earlier one of prunus is replaced.")]


def prune(
    network: Network,
    method: Annotated[str, typer.Option("--method", "-m", help="A name of `prunus methods`.")] = "magnitude",
    checkpoint: Checkpoint = None,
    data: Data = None,
    root: Root = None,
    download: Download = False,
    unit: Unit = None,
    unit_option: UnitOptions = None,
    target: For = None,
    ablate: Ablate = None,
    sparsity: Sparsity = None,
    macs: Macs = None,
    params: Params = None,
    bytes_: Bytes = None,
    latency: Latency = None,
    solver: Solver = None,
    steps: Steps = 0,
    lr: Rate = 0.02,
    batch_size: Batch = 128,
    width: Width = None,
    option: Options = None,
    pattern: Pattern = "**/*.py",
    length: Length = None,
    calib: Calib = None,
    samples: Samples = 128,
    together: Together = 8,
    tokenizer: Tokenizer = None,
    memory: Memory = None,
    resume: Resume = False,
    device: Device = "cpu",
    out: Out = Path("pruned"),
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Prune a network and write it to a folder: weights, masks, manifest, report."""
    from prunus import methods
    from prunus.core.recipe import Recipe
    from prunus.deploy.atomic import check_replaceable

    recipe, fraction = patterned(with_unit(methods.find(method), unit, unit_option, target), sparsity)
    if calib:
        other = {"--checkpoint": checkpoint, "--data": data, "--macs": macs, "--params": params, "--bytes": bytes_}
        clash = [n for n, v in (other | {"--latency": latency, "--ablate": ablate}).items() if v is not None]
        if clash or steps:
            raise SpecError(f"--calib prunes a folder once, block by block: leave out {', '.join(clash) or '--steps'}")
        streamed(
            network,
            recipe,
            fraction,
            calib,
            pattern=pattern,
            length=length,
            samples=samples,
            together=together,
            tokenizer=tokenizer,
            memory=memory,
            resume=resume,
            device=device,
            out=out,
            dry_run=dry_run,
            seed=seed,
            json=json,
        )
        return
    if resume:
        raise SpecError("--resume goes on with a folder that is pruned block by block: it needs --calib")
    if device != "cpu":
        raise SpecError("--device is for a folder that is pruned block by block: it needs --calib")
    if ablate is not None:
        if not isinstance(recipe, Recipe):
            raise SpecError(f"{recipe.name} is a procedure, whose masks and scores are its own: nothing to ablate")
        recipe = methods.ablated(recipe, ablate)
    budget = budget_from(recipe, fraction, macs=macs, params=params, bytes=bytes_, latency=latency, solver=solver)
    check_replaceable(out)
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
    if latency is not None and getattr(recipe, "structure", "") == "structured":
        setup = replace(setup, clock=clock_of(target))
        fill_tables(setup.build(), setup.timed_inputs, (target or "eager") if setup.clock is not None else "eager")
    if dry_run:
        with told_warnings():
            _plan(setup, recipe, budget, steps, out, json)
        return
    from prunus.deploy.files import save
    from prunus.deploy.manifest import read_manifest
    from prunus.lab.experiment import run, timed
    from prunus.lab.facts import dataset_facts, environment, network_facts, now
    from prunus.report.records import Report
    from prunus.report.tables import print_table

    with told_warnings(), progress(max(1, steps), method) as advance:
        trial = run(setup, recipe, budget, steps=steps, on_step=lambda done, _total, loss: advance(done, loss))
    records = timed(setup, [trial])
    report = Report(
        title=f"{setup.network} pruned by {records[0].title}",
        subtitle=records[0].budget,
        dataset=dataset_facts(setup.dataset),
        network=network_facts(setup),
        environment=environment(),
        methods=records,
        curves=[],
        commands=[],
        notes=[] if setup.initial is None else [UNTRAINED],
        version=str(environment()["prunus"]),
        created=now(),
        seed=seed,
    )
    assert trial.result is not None
    texts = {"report.html": report.html(), "report.md": report.markdown(), "report.json": report.to_json()}
    source = setup.source(recipe)
    save(
        trial.result,
        out,
        parent=source,
        metrics={"test_accuracy": (records[0].accuracy_before, records[0].accuracy_after)},
        notes=setup.notes(records[0].accuracy_after or 0.0),
        texts=texts,
    )
    sizes = read_manifest(out).sizes
    assert sizes is not None
    if json:
        emit(report.model_dump(mode="json"))
        return
    print_table(report, console())
    if setup.initial is not None:
        say(UNTRAINED)
    say(
        f"weights: {sizes.stored:,} bytes stored, {sizes.dense:,} dense; the entropy bound of what is left is "
        f"{sizes.bound:,}"
    )
    say(f"written: {out} (in Python: prunus.load({str(out)!r}, factory)), {out / 'report.html'}")


def clock_of(target: str | None) -> Clock | None:
    """What a budget in latency is measured by: the runtime of `--for`, eager PyTorch where it names none."""
    from prunus.deploy.clock import RuntimeClock
    from prunus.deploy.widths import FILES

    return None if target is None or target == "eager" or target in FILES else RuntimeClock(target)


def with_unit(
    recipe: Recipe | Procedure, unit: str | None, options: list[str] | None, target: str | None = None
) -> Recipe | Procedure:
    """The recipe with another granularity, or other values of its own; under the same name.

    target: a runtime for which counts are rounded, where `options` do not say how.
    """
    from prunus.core.part import Granularity
    from prunus.core.procedure import Procedure

    values = values_of(options, "--unit-option", "round_to=8")
    if unit is None and not values and target is None:
        return recipe
    if isinstance(recipe, Procedure):
        raise SpecError(f"{recipe.name} is a procedure: its units are its own, and --unit has nothing to change")
    own = recipe.granularity.to_dict()
    if unit is not None:
        names = {name.lower(): name for name in Granularity.known()}
        chosen = names.get(unit.lower(), unit)
        own = own if chosen == own["part"] else {"part": chosen}
    chosen_unit = Granularity.from_dict({**own, **values})
    if target is not None:
        from prunus.deploy.widths import multiples

        steps = multiples(target)
        if not hasattr(chosen_unit, "round_to"):
            raise SpecError(
                f"--for {target}: {recipe.name} removes no channels, so there is nothing to round, and dense runtimes "
                f"multiply with zeros: nothing gets faster. Take a method of `prunus methods --structure structured`"
            )
        if "round_to" not in values:
            first, *others = steps
            small = f", {' or '.join(map(str, others))} in small groups" if others else ""
            say(f"--for {target}: counts are multiples of {first}{small}")
            chosen_unit = Granularity.from_dict({**chosen_unit.to_dict(), "round_to": list(steps)})
    return replace(recipe, granularity=chosen_unit)


def _plan(setup: Setup, recipe: Recipe | Procedure, budget: Budget, steps: int, out: Path, json: bool) -> None:
    """What would be done: which groups, how much of them, at what cost."""
    from prunus.core.procedure import Procedure
    from prunus.engine.cost import cost_of

    if isinstance(recipe, Procedure):
        told = {"network": setup.network, "method": recipe.name, "budget": str(budget), "steps": steps, "out": str(out)}
        planned(json, told, f"would run {recipe.name} on {setup.network} for {budget}; what stays is found by running")
        return
    session = session_of(setup, recipe, budget, steps)
    costs: dict[str, float] = {}
    at_once = all(e.step == 0 for e in session.events)
    if at_once:
        session.start()
        currencies: list[Currency] = ["params", "macs"]
        for currency in [*currencies, budget.currency] if budget.currency == "bytes" else currencies:
            costs[currency] = cost_of(session.model, session.task, currency).fraction(session.groups, session.masks)
        costs |= {k: v for k, v in session.history[-1].items() if k == "latency"}
    groups = [
        {
            "name": g.name,
            "units": g.units,
            "kind": g.kind,
            "keep": int(session.masks[g.name].sum()) if at_once else None,
        }
        for g in session.groups
    ]
    if json:
        plan: dict[str, Any] = {
            "dry_run": True,
            "network": setup.network,
            "method": recipe.name,
            "budget": str(budget),
            "events": [e._asdict() for e in session.events],
            "groups": groups,
            "kept": costs,
            "steps": steps,
            "out": str(out),
            "seed": setup.seed,
        }
        emit(plan)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{recipe.name} on {setup.network}, {budget}: nothing was changed", title_justify="left")
    table.add_column("group")
    table.add_column("units", justify="right")
    table.add_column("would keep", justify="right")
    for g in groups:
        kept = "decided in training" if g["keep"] is None else f"{g['keep']:,}"
        table.add_row(escape(str(g["name"])), f"{g['units']:,} {g['kind']}s", kept)
    console().print(table)
    for name, fraction in costs.items():
        what = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "latency": "latency, as measured,"}[name]
        console().print(f"{fraction:.2%} of the {what} would be kept")
    times = len(session.events)
    console().print(f"pruned in {times} step{'s' if times != 1 else ''}, {steps} of training; would write {out}")
