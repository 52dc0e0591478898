"""`prunus evaluate`: tasks of the language model evaluation harness, one model beside the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.networks import Built, folders_of
from prunus.cli.output import DryRun, Json, Seed, console, emit, planned, say
from prunus.core.errors import require


def evaluate(
    networks: Annotated[list[str], typer.Argument(help="hf:FOLDER, one or more.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names of the harness's tasks, with commas between them.")],
    include: Annotated[
        Path | None, typer.Option("--include", help="A folder of further tasks. They may name code, which is run.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples in the prompt. Default: what each task says.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions per task, for a quick look. Default: all.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Questions at a time.")] = 8,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A tokenizer's folder. Default: each model's own.")
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Scores on tasks of the language model evaluation harness (pip install 'prunus\\[evaluate]')."""
    folders = folders_of(networks, "the harness asks folders of transformers models")
    named = [t for t in (t.strip() for t in tasks.split(",")) if t]
    if dry_run:
        told = {"networks": networks, "tasks": named, "shots": shots, "limit": limit}
        planned(json, told, f"would ask {len(networks)} models the questions of {', '.join(named)}")
        return
    require("lm_eval", extra="evaluate")
    from prunus import measure

    loading = require("transformers", extra="evaluate").AutoTokenizer
    results = []
    for network, folder in zip(networks, folders, strict=True):
        words = loading.from_pretrained(str(tokenizer or folder), local_files_only=True)
        model = Built(network, {}, seed=seed).model()
        results.append(
            measure.harness(model, words, named, include=include, shots=shots, limit=limit, batch=batch, seed=seed)
        )
        del model
    if json:
        emit({"models": [{"network": n, **r.to_dict()} for n, r in zip(networks, results, strict=True)]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"lm_eval {results[0].library}", title_justify="left")
    for name in ("task", "metric", "shots", "questions", *networks):
        table.add_column(escape(name), justify="left" if name in ("task", "metric") else "right")
    for rows in zip(*(r.scores for r in results), strict=True):
        one = rows[0]
        cells = [f"{s.value:.4f}" + ("" if s.error is None else f" ± {s.error:.4f}") for s in rows]
        metric = one.metric if one.filter == "none" else f"{one.metric} ({one.filter})"
        table.add_row(escape(one.task), escape(metric), str(one.shots), f"{one.samples:,}", *cells)
    console().print(table)
    if limit is not None:
        say(f"only {limit} questions of each task were asked: a quick look, no result to report")
