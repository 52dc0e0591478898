"""`prunus export`: a network as a file of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.networks import (
    Built,
    Checkpoint,
    Classes,
    Input,
    Network,
    Options,
    Width,
    check_room,
    example_for,
    options_of,
    tried,
)
from prunus.cli.output import DryRun, Json, Seed, emit, planned, say
from prunus.core.errors import SpecError, UnknownNameError


def export(
    network: Network,
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, torch, executorch, mnn or coreml.")] = "onnx",
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs of one inference; the file's shape.")] = 1,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="int8: for onnx and openvino; ranges from random inputs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file. Default: model and what the kind ends in: model.onnx.")
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a network for another runtime, and check that the file computes what the network computes."""
    from prunus.deploy.atomic import check_writable
    from prunus.deploy.exporting import SUFFIXES
    from prunus.deploy.exporting import export as written

    if to not in SUFFIXES:
        raise UnknownNameError("kind of file", to, SUFFIXES)
    if quantize not in (None, "int8"):
        raise SpecError(f"--quantize {quantize}: int8, or left out")
    path = out or Path(f"model{SUFFIXES[to]}")
    check_writable(path.absolute().parent)
    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    model, example = built.model(), batched(example_for(built, shape, seed), batch)
    shapes = [list(t.shape) for t in example]
    if dry_run:
        told = {"network": built.name, "to": to, "input": shapes, "out": str(path), "precision": quantize or "float32"}
        planned(json, told, f"would write {built.name} for inputs of {shapes[0]} to {path}")
        return
    tried(model, built.name, example)
    done = written(model, example, path, to, precision=quantize or "float32")  # type: ignore[arg-type]  # checked above
    if json:
        emit({"network": built.name, "input": shapes, **{k: v for k, v in vars(done).items() if k != "path"}})
        return
    checked = f"not compared: {done.reason}" if done.error is None else f"{done.error:.1e} from eager PyTorch"
    say(f"written: {', '.join(map(str, done.files))} ({done.bytes:,} bytes; outputs {checked})")
    for note in done.notes:
        say(note)
    if done.flushed:
        say(f"{done.flushed:,} weights too small for full precision were written as zeros")


def batched(example: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """One input, as often as a batch has them. Errors: `SpecError` where that takes more memory than is free."""
    check_room(f"a batch of {batch:,}", batch * sum(t.nbytes for t in example))
    return tuple(t.repeat(batch, *[1] * (t.ndim - 1)) if batch > 1 else t for t in example)
