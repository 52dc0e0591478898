"""`prunus plan hf:FOLDER`: what pruning a folder will take, without reading a weight of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from prunus.cli.networks import Network, folders_of
from prunus.cli.output import Json, console, emit
from prunus.cli.stream import patterned
from prunus.core.errors import SpecError


def plan(
    network: Network,
    method: Annotated[str, typer.Option("--method", "-m", help="magnitude_uniform, wanda, gblm, sparsegpt or such.")],
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", help="As for prune; with a pattern (2:4) experts need not be scored."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Windows of calibration text.")] = 128,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a window.")] = 2048,
    flops: Annotated[
        float | None,
        typer.Option("--flops", min=1, help="FLOP/s to reckon with for all that is computed. Default: measured here."),
    ] = None,
    disk: Annotated[float | None, typer.Option("--disk", min=1, help="Bytes per second of the disk.")] = None,
    json: Json = False,
) -> None:
    """Plan the pruning of a folder: bytes, memory, operations and hours, from config.json and the index alone."""
    from prunus import methods
    from prunus.core.recipe import Recipe
    from prunus.stream.plan import Rates, described, lines, measured_rates
    from prunus.stream.plan import plan as planned

    (folder,) = folders_of([network], "plans are for folders of transformers models")
    recipe, _ = patterned(methods.get(method), sparsity)
    if not isinstance(recipe, Recipe):
        raise SpecError(f"{method} is a procedure, which wants the whole model: there is no plan for it")
    if flops is None:
        rates = measured_rates(next(described(folder)[2].parameters()).dtype)
    else:
        rates = Rates(flops, flops, flops, told=f"{flops:.3g} FLOP/s given; 1 GB/s of disk and 1e8 weights/s assumed")
    if disk is not None:
        rates = replace(rates, disk=disk, told=f"{rates.told}; {disk:.3g} B/s of disk given")
    made = planned(folder, recipe, samples=samples, length=length, rates=rates)
    if json:
        emit(made.to_dict())
        return
    from rich.table import Table

    table = Table(show_header=False)
    for row in lines(made):
        table.add_row(*row)
    console().print(table)
