"""`prunus latency`: what the layers of a network take at every width, measured once on this machine and kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from prunus.cli.output import DryRun, Json, Seed, planned, say, told_warnings
from prunus.cli.showing import check_out, counting, present

if TYPE_CHECKING:
    from torch import nn

    from prunus.measure.layers import LayerCall, LayerShape
    from prunus.measure.tables import LatencyTables
    from prunus.report.analysis import Analysis, Cell

CURVES = 8  # layers that are drawn, those that take longest


def latency(
    network: Network,
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per run.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: PyTorch's.")] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="eager, onnxruntime or openvino.")] = "eager",
    step: Annotated[int, typer.Option("--step", min=1, help="Channels that a kernel takes at once.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .html page, .svg picture, .json or .csv file.")
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fill and show the latency tables of a network's layers: milliseconds over input and output widths.

    `prunus prune --latency` fills those of eager by itself where they are missing.
    """
    from prunus.measure.layers import layers
    from prunus.measure.tables import LatencyTables, shapes_of

    check_out(out)
    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    model, example = built.model(), example_for(built, shape, seed)
    tried(model, built.name, example)
    batched = tuple(t.repeat(batch, *[1] * (t.ndim - 1)) if batch > 1 else t for t in example)
    with told_warnings():
        store = LatencyTables(runtime, threads=threads, step=step)
    calls = layers(model, batched)
    shapes = Counter(c.shape for c in calls)
    missing = store.missing(shapes)
    seconds = store.expected_seconds(missing)
    points = sum(len(shapes_of(s, step)) for s in missing)
    sentence = (
        f"{len(shapes)} shapes of {len(calls)} layers, {len(missing)} of them not measured yet: {points} widths, "
        f"about {seconds:.0f} s"
    )
    if dry_run:
        told = {"network": built.name, "shapes": len(shapes), "missing": len(missing), "widths": points}
        planned(json, {**told, "expected_seconds": seconds, "file": str(store.path)}, sentence)
        return
    say(sentence)
    began = time.perf_counter()
    with counting("layers measured") as advance:
        store.fill(shapes, advance)
    spent = time.perf_counter() - began
    present(analysis(built.name, batch, calls, shapes, store, len(missing), spent), json, out)


def fill_tables(model: nn.Module, example: tuple[Any, ...], runtime: str = "eager") -> None:
    """Fill the tables that a budget in latency goes by, and say how long that takes; nothing where they are there, or
    where such budgets go by another clock, or by a runtime without tables.
    """
    import prunus
    from prunus.measure.clock import latency_share
    from prunus.measure.layer_runs import RUNTIMES
    from prunus.measure.layers import layers
    from prunus.measure.tables import LatencyTables

    if (runtime == "eager" and prunus.default_clock() is not latency_share) or runtime not in RUNTIMES:
        return
    store = LatencyTables(runtime)
    missing = store.missing(c.shape for c in layers(model, example))
    if not missing:
        return
    say(f"{len(missing)} layer shapes are timed once on this machine, about {store.expected_seconds(missing):.0f} s")
    with counting("layers timed") as advance:
        store.fill(missing, advance)


def analysis(
    name: str,
    batch: int,
    calls: Sequence[LayerCall],
    shapes: Mapping[LayerShape, int],
    store: LatencyTables,
    measured: int,
    spent: float,
) -> Analysis:
    """The tables as they are shown: one row a shape, and curves over the output width of those that take longest."""
    from prunus.report.analysis import Analysis, Line, Plot, Table

    whole = {s: store[s].time(s.inputs, s.outputs) for s in shapes}
    order = sorted(shapes, key=lambda s: -whole[s] * shapes[s])
    total = sum(whole[s] * n for s, n in shapes.items())

    def row(s: LayerShape) -> tuple[Cell, ...]:
        half = store[s].time(s.inputs // 2, s.outputs // 2)
        rate = 2 * s.macs / whole[s] / 1e6
        return str(s), shapes[s], whole[s], rate, whole[s] * shapes[s] / total, half / whole[s]

    columns = ("layer", "times", "ms", "GFLOP/s", "share", "half the widths take")
    lines = []
    for s in order[:CURVES]:
        table = store[s]
        line = [(o / s.outputs, table.ms[-1][i]) for i, o in enumerate(table.outs)]
        tips = tuple(f"{o} outputs: {ms:.4g} ms" for o, (_, ms) in zip(table.outs, line, strict=True))
        lines.append(Line(str(s), tuple(line), tips))
    says = (
        f"The {len(calls)} layers take {total:.4g} ms in {store.runtime} with {store.threads} thread"
        f"{'s' if store.threads != 1 else ''}, each by itself; {measured} of {len(shapes)} shapes were measured now, "
        f"in {spent:.1f} s."
    )
    about = {k: str(v) for k, v in store.about.items()}
    return Analysis(
        name="latency",
        command="prunus latency",
        title=f"Layers of {name}, batch {batch}",
        source="tables of layers as in HALP: Shen et al. 2022, arXiv:2110.10811",
        says=(says,),
        tables=(Table("Layers, at their full widths", columns, tuple(row(s) for s in order)),),
        plots=(Plot("What a layer takes as it gets narrower", "share of the outputs", "ms", tuple(lines), log_y=True),),
        data={
            "network": name,
            "batch": batch,
            "file": str(store.path),
            "measured": measured,
            "seconds": spent,
            "about": about,
            "machine": store.machine.to_dict(),
            "layers": [{"param": c.param, "shape": str(c.shape)} for c in calls],
            "tables": {str(s): store[s].to_dict() for s in order},
        },
        facts={"machine": store.machine.cpu, **about, "file": str(store.path)},
    )
