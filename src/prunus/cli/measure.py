"""`prunus measure`: sizes, costs and speed of a network on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.networks import (
    Built,
    Checkpoint,
    Classes,
    Input,
    Network,
    Options,
    Width,
    example_for,
    options_of,
    tried,
)
from prunus.cli.output import DryRun, Json, Seed, console, emit, planned


def measure(
    network: Network,
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per timed inference.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: PyTorch's.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=30, help="Timed runs, at least 30.")] = 50,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure parameters, MACs, bytes, peak memory and latency (median and quartiles, threads and batch stated)."""
    from prunus import measure as tools

    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    model, example = built.model(), example_for(built, shape, seed)
    shapes = [list(t.shape) for t in example]
    if dry_run:
        planned(
            json,
            {"network": built.name, "input": shapes, "batch": batch, "runs": runs, "threads": threads},
            f"would measure {built.name} with an input of {shapes[0]} and time it {runs} times on a batch of {batch}",
        )
        return
    tried(model, built.name, example)
    one = tools.profile(model, example)
    batched = tuple(t.repeat(batch, *[1] * (t.ndim - 1)) if batch > 1 else t for t in example)
    time = tools.latency(model, batched, runs=runs, threads=threads, batch=batch)
    if json:
        emit({"network": built.name, "input": shapes, **one.to_dict(), "latency": time.to_dict()})
        return
    from rich.table import Table

    table = Table(title=f"{built.name}, input {shapes[0]}", title_justify="left", show_header=False)
    table.add_row("parameters", f"{one.params.total:,} ({one.params.nonzero:,} nonzero)")
    table.add_row("MACs per input", f"{one.macs.total:,} ({one.macs.effective:,} with nonzero weights)")
    if one.macs.uncounted_ops:
        table.add_row("not counted", ", ".join(one.macs.uncounted_ops))
    table.add_row("bytes of state", f"{one.bytes.dense:,}")
    table.add_row("peak memory", f"{one.memory.total:,} bytes, one input, weights included")
    table.add_row(
        "latency",
        f"{time.median_ms:.2f} ms median ({time.q25_ms:.2f} to {time.q75_ms:.2f} quartiles) over {time.runs} runs, "
        f"batch {batch}, {time.threads} thread{'s' if time.threads != 1 else ''}, {time.device}",
    )
    console().print(table)
