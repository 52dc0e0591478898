"""`prunus prune hf:FOLDER --calib DATA`: a folder of any size, block by block."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.networks import folders_of
from prunus.cli.output import console, emit, planned, say, told_warnings
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.core.procedure import Procedure
    from prunus.core.recipe import Recipe
    from prunus.stream import Streamed

Calib = Annotated[
    list[Path] | None,
    typer.Option(
        "--calib",
        help="What to calibrate with, for hf:FOLDER: text, a file or folder (--pattern); tensors (*.safetensors named "
        "as the model's arguments, *.npy) and images, a file or folder. Repeat it for models of several towers. "
        "One block is in memory at a time.",
    ),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="With --calib: how many windows of text.")]
Together = Annotated[int, typer.Option("--together", min=1, help="With --calib: windows that run at once.")]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="With --calib: a folder with tokenizer.json. Default: the model's.")
]
Memory = Annotated[
    float | None,
    typer.Option("--memory", min=0, help="With --calib: GB of activations that wait in memory; the rest in files."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="With --calib: where the block under work is; the rest stays on the CPU. Several share it: cuda:0,cuda:1; "
        "cuda is all GPUs.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="With --calib: go on with the run that was stopped.")]


def patterned(recipe: Recipe | Procedure, sparsity: str | None) -> tuple[Recipe | Procedure, float | None]:
    """What `--sparsity` says: a fraction of the units, or a pattern such as 2:4, of which 2 of every 4 stay."""
    if sparsity is None:
        return recipe, None
    kept, colon, of = sparsity.partition(":")
    try:
        if not colon:
            return recipe, float(sparsity)
        from prunus.core.procedure import Procedure
        from prunus.parts.allocation import NofM

        if isinstance(recipe, Procedure):
            raise SpecError(
                f"{recipe.name} is a procedure, which chooses by itself: --sparsity {sparsity} is no option"
            )
        return replace(recipe, allocate=NofM(int(kept), int(of))), None
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"--sparsity {sparsity}: write a fraction such as 0.5, or a pattern such as 2:4") from None


def streamed(
    network: str,
    recipe: Recipe | Procedure,
    sparsity: float | None,
    calib: Sequence[Path],
    *,
    pattern: str,
    length: int | None,
    samples: int,
    together: int,
    tokenizer: Path | None,
    memory: float | None,
    resume: bool,
    device: str,
    out: Path,
    dry_run: bool,
    seed: int,
    json: bool,
) -> None:
    """Prune a transformers folder block by block and write another one that `from_pretrained` reads.

    Under `torchrun` every process runs its part of the text, and the first one writes and says what was done.
    """
    from prunus.core.procedure import Procedure
    from prunus.lab.data.calibration import calibration
    from prunus.lab.data.inputs import holds_inputs, inputs
    from prunus.stream import prune_folder
    from prunus.stream.processes import joined

    (folder,) = folders_of([network], "--calib is for folders of transformers models")
    if isinstance(recipe, Procedure):
        raise SpecError(f"{recipe.name} is a procedure, which wants the whole model: load it and prune it in memory")
    others = [inputs(place, folder, together=together) for place in calib if holds_inputs(place)]
    texts = [place for place in calib if not holds_inputs(place)]
    vocabulary, longest = sizes(folder)
    drawn = [
        calibration(
            texts[0] if len(texts) == 1 else texts,
            tokenizer=tokenizer or folder,
            pattern=pattern,
            count=samples,
            length=length or min(2048, longest),
            seed=seed,
            batch=together,
            vocabulary=vocabulary,
        )
        for _ in texts[:1]
    ]
    source = "; ".join(map(str, [*drawn, *others]))
    if dry_run:
        told = {"network": network, "method": recipe.name, "calibration": source, "out": str(out)}
        planned(json, told, f"would prune {folder} by {recipe.name} on {source} and write {out}")
        return
    # The loss of a language model, where densities or scores go by it, is that of predicting its own text.
    asked = (*recipe.allocate.foresees().values(), *recipe.criterion.asks().values())
    by_loss = any(e.reads == "labels" for e in asked)
    names = ("input_ids", "labels") if by_loss else ("input_ids",)
    batches = [dict.fromkeys(names, ids) for text in drawn for ids in text.batches]
    batches += [batch for one in others for batch in one.batches]
    with joined(device) as rank, told_warnings(), _bar(recipe.name) as on_block:
        made = prune_folder(
            folder,
            out,
            recipe,
            batches,
            sparsity=sparsity,
            seed=seed,
            resume=resume,
            memory=None if memory is None else int(memory * 1e9),
            device=device,
            on_block=on_block if rank == 0 else None,
        )
    if rank:
        return
    if json:
        digests = [*(d.digest for d in drawn), *(o.digest for o in others)]
        emit({"folder": str(out), "calibration": source, "calibration_sha256": "+".join(digests), **made.to_dict()})
        return
    _print(made, source)


def sizes(folder: Path) -> tuple[int | None, int]:
    """How many tokens the model knows, and how many it takes at once, by its config.json."""
    try:
        told = jsons.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = {**told, **told.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(f"{folder}: no config.json that can be read ({error})") from None
    known, longest = text.get("vocab_size"), text.get("max_position_embeddings") or text.get("n_positions")
    return (known if isinstance(known, int) else None), (longest if isinstance(longest, int) else 2048)


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """A bar over the blocks on a terminal, a line per block elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield lambda done, of, record: say(f"{what}: block {done} of {of}, {record.name}, {record.seconds:.1f} s")
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of, record: bar.update(task, completed=done, total=of, description=f"{what}: {record.name}")


def _print(made: Streamed, drawn: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from prunus.stream import Shrunk

    smaller = isinstance(made, Shrunk)
    what = "units are gone" if smaller else "weights in the blocks are zero"
    table = Table(title=f"{made.recipe.name}: {made.overall:.2%} of the {what}")
    for name in ("block", "units" if smaller else "weights", "kept", "whole", "seconds"):
        table.add_column(name, justify="left" if name == "block" else "right")
    for block in made.blocks:
        units, kept = sum(block.units.values()), sum(block.kept.values())
        row = (f"{units:,}", f"{kept:,}", str(len(block.skipped)) if block.skipped else "", f"{block.seconds:.1f}")
        table.add_row(escape(block.name), *row)
    console().print(table)
    say(f"calibrated on {drawn}")
    say(
        f"{made.inside:,} weights lie in blocks, {made.outside:,} outside and were copied; "
        f"{made.read / 1e6:,.1f} MB read, {made.written / 1e6:,.1f} MB written, "
        f"{made.activations / 1e6:,.1f} MB of activations, {made.seconds:.0f} s"
        + (f"; {made.resumed} blocks were done by an earlier run" if made.resumed else "")
    )
    reader = "from_pretrained"
    if isinstance(made, Shrunk):
        reader = made.loader
        fields = ", ".join(f"{n} {was} -> {now}" for n, (was, now) in made.changed.items())
        say(f"{made.bytes / 1e6:,.1f} MB of weights are left; {fields or made.reason or 'configuration unchanged'}")
        for name, why in made.spanning.items():
            say(f"{name} stays whole: {why}")
    say(f"written: {made.folder} ({reader} reads it), {made.folder / 'prunus.json'}")
