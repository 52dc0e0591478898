"""`prunus deploy`: the dense and the pruned network on every runtime of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunus.cli.export import batched
from prunus.cli.networks import Built, Checkpoint, Classes, Input, Network, Options, Width, example_for, options_of
from prunus.cli.output import DryRun, Json, Seed, planned
from prunus.cli.showing import check_out, counting, present
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.deploy.deployment import Deployment
    from prunus.deploy.runtimes.base import Precision
    from prunus.report.analysis import Analysis


def deploy(
    network: Network,
    dense: Annotated[
        str | None,
        typer.Option("--dense", help="The dense network. Default: the one that the folder was saved from."),
    ] = None,
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", "-r", help="Only this one; may be repeated. Default: all that are installed."),
    ] = None,
    quantize: Annotated[
        list[str] | None, typer.Option("--quantize", "-q", help="Also in int8, or bf16; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per inference.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: PyTorch's.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=30, help="Timed runs of each model, at least 30.")] = 50,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a .html page, or the data as .json or .csv.")
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run a pruned network and its dense one on every runtime installed: checked, timed in turns, ranked.

    What is missing, or fails, is listed with its reason. Where nothing turns the zeros into speed, that is said first.
    """
    check_out(out)
    if out is not None and out.suffix == ".svg":
        raise SpecError(f"--out {out}: .html, .json or .csv; there is no picture of this")
    precisions: dict[str, Precision] = {"bf16": "bfloat16", "int8": "int8"}
    if odd := [q for q in quantize or [] if q not in precisions]:
        raise SpecError(f"--quantize {odd[0]}: int8 or bf16")
    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    if dense is None and built.saved is None:
        raise SpecError(
            f"{network} is no folder that prunus wrote: say with --dense which network it is compared with, or give "
            f"the folder"
        )
    pruned = built.model()
    whole = built.dense() if dense is None else Built(dense, options_of(classes, width, option), seed=seed).model()
    example = batched(example_for(built, shape, seed), batch)
    from prunus.deploy.deploying import chosen_from
    from prunus.deploy.deploying import deploy as on_all

    chosen = chosen_from(runtime or None, [precisions[q] for q in quantize or []])
    if dry_run:
        names = [r.title for r in chosen]
        shapes = [list(t.shape) for t in example]
        told = {"network": built.name, "runtimes": names, "input": shapes, "runs": runs, "threads": threads}
        planned(json, told, f"would run {built.name}, dense and pruned, on {', '.join(names)} as far as installed")
        return
    with counting("deploy") as step:
        found = on_all(
            whole,
            pruned,
            example,
            runtimes=chosen,
            threads=threads,
            runs=runs,
            on_step=step,
        )
    present(shown(found, built.name), json, out)


def shown(found: Deployment, network: str) -> Analysis:
    """A deployment in the form in which results are shown: a table of runtimes, a table of those that are absent."""
    from prunus.report.analysis import Analysis, Table

    columns = ("runtime", "dense ms", "pruned ms", "dense / pruned", "dense eager / pruned", "efficiency", "quartiles",
               "error", "inputs per s", "MB loaded", "peak MB")  # fmt: skip
    rows = tuple(
        (
            r.runtime,
            r.dense.median_ms,
            r.pruned.median_ms,
            # A verdict holds the ratio, but for this one.
            f"not faster ({r.ratio.median:.2f}x)" if r.ratio.verdict == "not faster" else r.ratio.verdict,
            r.over_eager.median,
            r.efficiency,
            f"{r.pruned.q25_ms:.3g} to {r.pruned.q75_ms:.3g}",
            r.pruned.error,
            round(r.per_second) if r.per_second >= 100 else r.per_second,
            r.pruned.bytes / 1e6,
            None if r.pruned.memory is None else r.pruned.memory / 1e6,
        )
        for r in found.rows
    )
    plural = "s" if found.threads != 1 else ""
    title = f"{network}: batch {found.batch}, {found.threads} thread{plural}, MACs {found.left.macs_ratio:.2f}x fewer"
    tables = [Table(title, columns, rows, digits=".3g")]
    if found.absent:
        tables.append(Table("Not run", ("runtime", "why"), tuple((a.runtime, a.reason) for a in found.absent)))
    notes = ["efficiency: ratio of the times / ratio of the MACs. error: largest difference to eager float32 outputs."]
    notes += [f"{r.runtime}: {note}." for r in found.rows for note in r.notes]
    if found.flushed:
        count = sum(found.flushed.values())
        notes.append(f"{count:,} weights too small for full precision (denormal) were run as zeros: they run slowly.")
    return Analysis(
        name="deploy",
        command="prunus deploy",
        title=f"{network} on the runtimes of this machine",
        source="docs/deployment.md says what each column is.",
        says=found.says,
        tables=tuple(tables),
        plots=(),
        data=found.to_dict(),
        notes=tuple(notes),
        facts={"cpu": str(found.machine.get("cpu")), "batch": found.batch, "threads": found.threads},
    )
