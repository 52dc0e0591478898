"""A folder in, a pruned folder out, with one block of the model in memory at a time."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path

from torch import nn

from prunus.core.budget import Budget
from prunus.core.counting import count
from prunus.core.errors import DataError, NothingScored, Problems, PrunusError, PrunusWarning, SpecError, listed
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.core.task import Batch
from prunus.deploy.atomic import check_replaceable, new_folder
from prunus.deploy.hf import NOTE
from prunus.engine.agreement import distributed
from prunus.engine.crew import Crew
from prunus.engine.prepare import resolve_budget, resolve_recipe
from prunus.engine.session import Session
from prunus.engine.sweep import block_seed
from prunus.engine.walk import Visit, blocks_in, check_repeatable, walk
from prunus.stream.ahead import settled, within
from prunus.stream.devices import devices_of
from prunus.stream.memory import give_back, tight
from prunus.stream.processes import by_first, own_part, rank
from prunus.stream.result import WEIGHTS, OnBlock, Streamed, digest_of, fingerprint_of
from prunus.stream.shards import INDEX, Checkpoint, write_shard
from prunus.stream.shelf import Shelf
from prunus.stream.shrunk import Run
from prunus.stream.skeleton import Skeleton
from prunus.stream.slopes import asked, gather, known, no_loss, told, untold
from prunus.stream.state import BlockRecord, State, begun, kept_if_begun
from prunus.stream.structured import shrunk_folder
from prunus.stream.towers import warn_unreached


def prune_folder(
    folder: str | Path,
    out: str | Path,
    recipe: Recipe | str,
    batches: Sequence[Batch],
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    resume: bool = False,
    memory: int | None = None,
    device: str | Sequence[str] = "cpu",
    on_block: OnBlock | None = None,
) -> Streamed:
    """Prune a transformers folder without ever holding more than a block of it, and what reaches that block.

    The model's own forward runs on all batches at once and waits at every block; a block's weights are read from its
    shards, pruned by the recipe as `prunus.prune` with `sweep="blocks"` does, and written to a shard of their own.
    What lies outside of the blocks is copied byte for byte, and read only where the forward needs it.
    In a distributed run (`torchrun`) every process is given the same, takes its part of the batches, and adds what it
    sees to what the others see: all find the same masks, which is checked, and rank 0 writes.

    A recipe that removes whole units or layers scores them on the dense model, block by block, chooses from all of them
    together, and then writes a smaller model, in one process on the CPU: see `prunus.stream.structured.prune_units`
    (heads, neurons) and `prunus.stream.depth.prune_layers`. One whose allocation deals out densities ahead (OWL,
    AlphaPruning, ECoFLaP) gathers what it goes by from the dense folder first: see `prunus.stream.ahead.settled`; one
    whose criterion goes by the gradients of the loss (GBLM-Pruner), these: see `prunus.stream.slopes.gather`.

    Args:
        folder: config.json and safetensors; only read.
        out: where to; an earlier folder of prunus is replaced in one step when all is done.
        recipe: prunes once, and single weights layer by layer.
        batches: calibration data as the model takes it (a dict of keywords, or a tensor of token ids); kept in memory.
            Those of a model of several towers may hold what one of them takes (`prunus.stream.by_tower`), or all.
            With `labels` where something goes by the loss, which is then what the model makes of them.
        sparsity, budget: how much, as in `prunus.prune`.
        seed: of what is drawn.
        resume: go on with an unfinished run of the same model, recipe and data; finished blocks are not pruned again,
            only run, and the result is the same to the bit.
        memory: bytes of activations that may wait in memory; beyond, they wait in files beside `out`. None: all.
        device: where the block under work is, with what it is fed at the time; what waits between blocks, and what lies
            outside of them, stays on the CPU. Several (`"cuda:0,cuda:1"`, a list; `"cuda"` is all GPUs) share the
            batches and the layers of a block, in one process; the result does not depend on how many there are.
        on_block: called after every block of every pass with (done, all, record).

    Returns: what was done; a `Shrunk` where units or layers are gone.
    Cost: reading and writing the blocks' weights once (tables outside of them are read when they are called, and
        copied; a pass ahead reads the blocks once more, one that goes by the loss once for every block), a forward, and
        the recipe's own; memory: a block, its scores and masks, what the recipe collects on it, and its inputs for all
        batches.
    Process: where whole blocks stay (no units or layers go), glibc's threshold for memory maps is set for the whole
        process, for good: tensors of 1 MB and more go back to the system at once (`prunus.stream.memory.tight`).
    Errors: `DataError` for a damaged folder or data that does not fit; `SpecError` for a recipe that is not local, or
        an unfinished run of something else; nothing is left half-written at `out`.
    """
    began = time.perf_counter()
    out = Path(out)
    recipe = resolve_recipe(recipe)
    smaller = recipe.structure == "structured"
    recipe = recipe if smaller else _divided(recipe, batches)
    budget = resolve_budget(recipe, sparsity, budget)
    if budget.currency != "units":
        raise SpecError(f"a budget in {budget.currency} is one of the whole model: give a sparsity, or prune in memory")
    if out.resolve() == Path(folder).resolve():
        raise SpecError(f"{out} is the folder that is read: write to another one")
    if not batches:
        raise DataError("the calibration data yields no batch: pass at least one")
    check_replaceable(out, mark=NOTE)
    devices = devices_of(device)
    if smaller:
        if devices != ("cpu",) or distributed():
            raise SpecError(f"{recipe.name} removes whole units, which one process does, on the CPU")
        return shrunk_folder(
            Path(folder),
            out,
            recipe,
            list(batches),
            budget=budget,
            seed=seed,
            resume=resume,
            memory=memory,
            on_block=on_block,
        )
    tight()
    checkpoint = Checkpoint(Path(folder))
    skeleton = Skeleton(checkpoint)
    skeleton.check_tokens(batches)
    blocks = blocks_in(skeleton.model)
    if "" in blocks:
        what = f"{type(skeleton.model).__name__} has no list of blocks: all of it is in memory at once"
        warnings.warn(PrunusWarning(what), stacklevel=2)
    part = out.parent / f".{out.name}.unfinished"
    fingerprint = fingerprint_of(checkpoint, recipe, budget, seed, batches)
    own = own_part(batches, fingerprint)
    state = by_first(lambda: begun(part, fingerprint, resume)) or State.read(part)
    resumed = len(state.done)
    run = Run(checkpoint, skeleton, recipe, budget, own, part, state, Shelf(part, memory), seed, on_block, devices[0])
    with kept_if_begun(part, state) if rank() == 0 else nullcontext(), ExitStack() as stack:
        run.crew = stack.enter_context(Crew(devices)) if len(devices) > 1 else None
        order = _swept(run, blocks)
    if all(g in b.skipped for b in state.done.values() for g in b.units):
        raise NothingScored(f"{recipe.name} scores nothing in any block of {type(skeleton.model).__name__}")
    warn_unreached(blocks, order, 2)
    records = tuple(state.done[n] for n in order)
    inside = {k for n in order for k in skeleton.keys(n)}
    sizes = {k: prod(e.shape) for k, e in checkpoint.entries.items()}
    made = Streamed(
        folder=out,
        recipe=recipe,
        blocks=records,
        inside=sum(sizes[k] for k in inside),
        outside=sum(n for k, n in sizes.items() if k not in inside),
        resumed=resumed,
        read=checkpoint.taken,
        written=checkpoint.bytes,
        activations=run.shelf.most,
        seconds=time.perf_counter() - began,
    )
    by_first(lambda: _finished(made, checkpoint, inside, part))
    if made.skipped:
        warnings.warn(
            PrunusWarning(
                f"{made.overall:.1%} of the weights in the blocks are pruned, not {made.sparsity:.1%}: "
                f"{len(made.skipped)} stayed whole, {listed([f'{n} ({why})' for n, why in made.skipped.items()], 2)}"
            ),
            stacklevel=2,
        )
    return made


def _divided(recipe: Recipe, batches: Sequence[Batch]) -> Recipe:
    """The recipe, block by block, or why it cannot be."""
    problems = Problems(f"{recipe.name} cannot be streamed")
    recipe = replace(recipe, sweep="blocks")
    if len(recipe.timeline(0.5, 0)) != 1 or recipe.trains:
        problems.add(f"{type(recipe.schedule).__name__} prunes more than once, and a block is there only once")
    for slot in ("gate", "prepare", "recover", "penalty", "prox"):
        if getattr(recipe, slot) is not None:
            problems.add(f"its {slot} ({type(getattr(recipe, slot)).__name__}) wants the whole model")
    ahead = recipe.allocate.foresees().values()
    by_loss = any(e.reads == "labels" for e in ahead)
    if by_loss and not all(hasattr(e, "trials") for e in ahead):
        problems.add(f"{type(recipe.allocate).__name__} deals out densities by gradients, which need the whole model")
    if by_loss and not all(isinstance(b, Mapping) and "labels" in b for b in batches):
        problems.add(f"{type(recipe.allocate).__name__} goes by the loss: every batch is a dict with labels")
    for why in untold(recipe, batches):
        problems.add(why)
    problems.raise_if_any(SpecError)
    return recipe


def _swept(run: Run, blocks: Mapping[str, nn.Module]) -> list[str]:
    """Prune and write one block after the other, each on what the pruned ones before it give; their order."""
    skeleton, state = run.skeleton, run.state
    recipe = settled(run)
    gather(run, blocks)
    before = len(blocks) if recipe is not run.recipe else 0
    order: list[str] = []

    def load(visit: Visit) -> None:
        """The dense block, or the pruned one where an earlier run left it."""
        done = state.done.get(visit.name)
        if run.crew is not None:
            run.crew.take_up(visit.block)
        skeleton.load_(skeleton.keys(visit.name), None if done is None else Checkpoint.of(run.part / done.shard))

    with skeleton.on_demand(blocks):
        reached = walk(skeleton.model, run.task, blocks, through=True, put=run.put, take=run.take, crew=run.crew)
        for visit in skeleton.loaded(reached, blocks, load):
            visit.block.to(run.device)
            order.append(visit.name)
            if visit.name not in state.done:
                if len(order) == 1:
                    check_repeatable(visit)
                state.done[visit.name] = _pruned(run, recipe, visit, f"model-{len(order):05d}.safetensors")
                by_first(lambda: state.write(run.part))
            if run.on_block is not None:
                run.on_block(before + len(order), before + len(blocks), state.done[visit.name])
    return order


def _pruned(run: Run, recipe: Recipe, visit: Visit, shard: str) -> BlockRecord:
    """Prune a loaded block and write it."""
    began, skeleton = time.perf_counter(), run.skeleton
    own = within(recipe, skeleton, visit.name)
    masks, units, skipped = ({}, {}, {}) if own is None else _masked(run, own, visit)
    kept = {n: count(masks[n]) if n in masks else units[n] for n in units}
    digest = digest_of(masks)
    del masks
    give_back()  # sessions are circles of objects that hold masks as large as a block
    sha = by_first(lambda: write_shard(run.part / shard, skeleton.stored(visit.name))) or ""
    return BlockRecord(visit.name, units, kept, skipped, digest, shard, sha, round(time.perf_counter() - began, 3))


def _masked(run: Run, recipe: Recipe, visit: Visit) -> tuple[Masks, dict[str, int], dict[str, str]]:
    """Prune a loaded block: its masks, how many units its groups have, and which of them were not scored, and why."""
    # Gradients of the loss are known ahead, so that the block is not asked for a loss of its own.
    task = replace(visit.task, forward=told, loss=no_loss) if asked(recipe) else visit.task
    session = Session(visit.block, recipe, task, run.budget, seed=block_seed(run.seed, visit.name))
    session.known, session.is_block = known(run, visit.name, recipe, session.groups), True
    session.crew = run.crew
    try:
        session.start()
        skipped = dict(session.skipped)
    except NothingScored as error:
        skipped = dict.fromkeys(session.masks, str(error))
    units = {n: m.numel() for n, m in session.masks.items()}
    return {n: m for n, m in session.masks.items() if n not in skipped}, units, skipped


def _finished(made: Streamed, checkpoint: Checkpoint, inside: set[str], part: Path) -> None:
    """Everything else of the folder, and the exchange of the two."""
    rest = [k for k in checkpoint.entries if k not in inside]
    table: dict[str, str] = {}
    try:
        for record in made.blocks:
            table |= dict.fromkeys(Checkpoint.of(part / record.shard).entries, record.shard)
        with new_folder(made.folder, mark=NOTE) as temporary:
            if rest:
                write_shard(temporary / "model-00000.safetensors", dict.fromkeys(rest, checkpoint))
                table |= dict.fromkeys(rest, "model-00000.safetensors")
            for record in made.blocks:
                (part / record.shard).rename(temporary / record.shard)
            index = {"metadata": {"total_size": checkpoint.bytes}, "weight_map": dict(sorted(table.items()))}
            (temporary / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            for file in sorted(checkpoint.folder.iterdir()):
                if file.is_file() and file.suffix not in WEIGHTS and file.name not in (INDEX, NOTE):
                    shutil.copyfile(file, temporary / file.name)
            (temporary / NOTE).write_text(json.dumps(made.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise PrunusError(
            f"could not write {made.folder}: {error}. All blocks are in {part}: free space and go on with resume=True"
        ) from error
    shutil.rmtree(part)
