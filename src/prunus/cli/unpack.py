"""`prunus unpack`: a saved folder with all tensors dense, for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.output import DryRun, Json, console, emit, planned


def unpack(
    folder: Annotated[Path, typer.Argument(help="A folder that prunus wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; an earlier one of prunus is replaced.")],
    limit: Annotated[
        float | None,
        typer.Option("--limit", min=0.0, help="Gigabytes that one tensor may take; default: half of the free memory."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a saved folder anew with every tensor dense: model.safetensors is then what any tool reads."""
    from prunus.deploy.unpacking import unpack_folder

    most = None if limit is None else int(limit * 1e9)
    made = unpack_folder(folder, out, limit=most, write=not dry_run)
    told = asdict(made) | {"folder": str(made.folder)}
    sentence = (
        f"{made.packed} of {made.tensors} tensors were packed: {made.before:,} bytes of weights become {made.after:,}"
    )
    if dry_run:
        planned(json, told, f"would write {out}: {sentence}")
    elif json:
        emit(told)
    else:
        console().print(f"{sentence}; written: {out / 'model.safetensors'}", soft_wrap=True)
