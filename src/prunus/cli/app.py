"""The command line's table of contents."""

from __future__ import annotations

from typing import Annotated

import typer

import prunus
from prunus.cli import (
    analyze,
    compare,
    contrast,
    deploy,
    doctor,
    evaluate,
    export,
    inspect_,
    latency,
    measure,
    methods,
    perplexity,
    plan,
    prune,
    quickstart,
    runs,
    unpack,
)
from prunus.cli.output import guarded

app = typer.Typer(
    name="prunus",
    help="Make neural networks smaller and faster by pruning, and prove what was done.",
    epilog=(
        "Every option is also read from the environment: PRUNUS_PRUNE_SPARSITY=0.9 is --sparsity 0.9 of prunus prune. "
        "Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."
    ),
    context_settings={"auto_envvar_prefix": "PRUNUS"},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"prunus {prunus.__version__}")
        raise typer.Exit
    return value


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make neural networks smaller and faster by pruning, and prove what was done."""


for _name, _command in (
    ("quickstart", quickstart.quickstart),
    ("prune", prune.prune),
    ("plan", plan.plan),
    ("compare", compare.compare),
    ("inspect", inspect_.inspect),
    ("methods", methods.methods),
    ("unpack", unpack.unpack),
    ("measure", measure.measure),
    ("latency", latency.latency),
    ("export", export.export),
    ("deploy", deploy.deploy),
    ("doctor", doctor.doctor),
    ("perplexity", perplexity.perplexity),
    ("evaluate", evaluate.evaluate),
):
    app.command(_name)(guarded(_command))

app.add_typer(analyze.app, name="analyze")
app.add_typer(contrast.app, name="contrast")
app.add_typer(runs.app, name="runs")
