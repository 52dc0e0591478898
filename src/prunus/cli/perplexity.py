"""`prunus perplexity`: how well language models predict a text, one beside the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.networks import Built, folders_of
from prunus.cli.output import DryRun, Json, Seed, console, emit, planned, say
from prunus.cli.setting import Pattern
from prunus.cli.stream import sizes


def perplexity(
    networks: Annotated[
        list[str], typer.Argument(help="hf:FOLDER, one or more; the others are compared with the first.")
    ],
    text: Annotated[Path, typer.Option("--text", help="What is predicted: a text file, or a folder (--pattern).")],
    pattern: Pattern = "**/*.txt",
    length: Annotated[
        int | None,
        typer.Option("--length", min=2, help="Tokens in a window. Default: 2048, or what the first model takes."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens between the beginnings of windows. Default: length.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows at a time.")] = 4,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A folder with tokenizer.json. Default: the first model's.")
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Perplexity on a text, with window length, stride and tokens stated, and paired differences from the first."""
    from prunus import measure
    from prunus.lab.data.calibration import read

    folders = folders_of(networks, "perplexity is measured of folders of transformers models")
    length = length or min(2048, sizes(folders[0])[1])
    found = read(text, tokenizer=tokenizer or folders[0], pattern=pattern)
    if dry_run:
        told = {"networks": networks, "text": str(found), "length": length, "stride": stride or length}
        planned(json, told, f"would measure {len(networks)} models on {found}, windows of {length}")
        return
    results = []
    for network in networks:
        model = Built(network, {}, seed=seed).model()
        results.append(
            measure.perplexity(model, found.ids, length=length, stride=stride, batch=batch, text_bytes=found.bytes)
        )
        del model
    pairs = [measure.paired(r, results[0]) for r in results[1:]]
    if json:
        rows = [
            {
                "network": n,
                "perplexity": r.perplexity,
                "nll": r.nll,
                "bits_per_byte": r.bits_per_byte,
                "tokens": r.tokens,
                "length": r.length,
                "stride": r.stride,
            }
            for n, r in zip(networks, results, strict=True)
        ]
        for row, pair in zip(rows[1:], pairs, strict=True):
            row |= {"difference": pair.difference, "standard_error": pair.error}
        emit({"text": str(found), "models": rows})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Perplexity, windows of {length} tokens, stride {stride or length}", title_justify="left")
    for name in ("model", "perplexity", "bits per byte", "nats per token more than the first"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for i, (network, result) in enumerate(zip(networks, results, strict=True)):
        apart = f"{pairs[i - 1].difference:+.4f} (standard error {pairs[i - 1].error:.4f})" if i else ""
        bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        table.add_row(escape(network), f"{result.perplexity:.3f}", bits, apart)
    console().print(table)
    say(f"{results[0].tokens:,} tokens counted, of {found}")
