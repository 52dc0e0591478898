"""A folder in, a pruned folder out, with one block of the model in memory at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import __version__
from prunus.core.budget import Budget
from prunus.core.counting import count
from prunus.core.errors import DataError, NothingScored, Problems, PrunusError, PrunusWarning, SpecError, listed
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.core.task import Batch, Task
from prunus.deploy.atomic import check_replaceable, new_folder
from prunus.deploy.hf import NOTE
from prunus.engine.agreement import distributed
from prunus.engine.prepare import resolve_budget, resolve_recipe
from prunus.engine.session import Session
from prunus.engine.sweep import block_seed
from prunus.engine.walk import Visit, blocks_in, check_repeatable, walk
from prunus.stream.memory import give_back, tight
from prunus.stream.processes import by_first, own_part, rank
from prunus.stream.shards import INDEX, Checkpoint, bytes_of, write_shard
from prunus.stream.shelf import Shelf, moved
from prunus.stream.skeleton import Skeleton
from prunus.stream.state import BlockRecord, State, begun, kept_if_begun

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
OnBlock = Callable[[int, int, BlockRecord], None]


@dataclass(frozen=True)
class Streamed:
    """A pruned folder.

    Attributes:
        folder: where it lies; `from_pretrained` reads it.
        recipe: what was done.
        blocks: a record per block, in the order of the model.
        outside: how many weights lie in no block and were copied as they are.
        inside: how many weights the blocks have.
        resumed: how many blocks an earlier run had done.
        read: bytes of weights that were read for the blocks and for what is called outside of them.
        written: bytes of weights; those outside of the blocks were copied.
        activations: the most bytes of activations that waited between blocks, in memory or in files.
        seconds: wall time of this run.
    """

    folder: Path
    recipe: Recipe
    blocks: tuple[BlockRecord, ...]
    inside: int
    outside: int
    resumed: int
    read: int
    written: int
    activations: int
    seconds: float

    @property
    def sparsity(self) -> float:
        """Of the units that were scored."""
        counts = [(n, b.kept[g]) for b in self.blocks for g, n in b.units.items() if g not in b.skipped]
        return 1 - sum(kept for _, kept in counts) / sum(n for n, _ in counts)

    @property
    def overall(self) -> float:
        """Of all units in the blocks, those included that nothing scored."""
        kept = sum(n for b in self.blocks for n in b.kept.values())
        return 1 - kept / sum(n for b in self.blocks for n in b.units.values())

    @property
    def skipped(self) -> dict[str, str]:
        """The groups that were not scored, with their blocks' paths, and why."""
        return {f"{b.name}.{g}": why for b in self.blocks for g, why in b.skipped.items()}

    @property
    def masks(self) -> str:
        """SHA-256 over the masks of all blocks."""
        return hashlib.sha256("".join(b.masks for b in self.blocks).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "prunus": __version__,
            "recipe": self.recipe.to_dict(),
            "sparsity": self.sparsity,
            "sparsity_of_all_in_blocks": self.overall,
            "weights_in_blocks": self.inside,
            "weights_outside": self.outside,
            "masks": self.masks,
            "resumed": self.resumed,
            "bytes_read": self.read,
            "bytes_written": self.written,
            "bytes_of_activations": self.activations,
            "seconds": self.seconds,
            "blocks": [asdict(b) for b in self.blocks],
        }


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
    device: str = "cpu",
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
    (heads, neurons) and `prunus.stream.depth.prune_layers`.

    Args:
        folder: config.json and safetensors; only read.
        out: where to; an earlier folder of prunus is replaced in one step when all is done.
        recipe: prunes once, without gradients of the loss, and single weights layer by layer.
        batches: calibration data as the model takes it (a dict of keywords, or a tensor of token ids); kept in memory.
        sparsity, budget: how much, as in `prunus.prune`.
        seed: of what is drawn.
        resume: go on with an unfinished run of the same model, recipe and data; finished blocks are not pruned again,
            only run, and the result is the same to the bit.
        memory: bytes of activations that may wait in memory; beyond, they wait in files beside `out`. None: all.
        device: where the block under work is, with what it is fed at the time; what waits between blocks, and what lies
            outside of them, stays on the CPU.
        on_block: called after every block with (done, all, record).

    Returns: what was done; a `Shrunk` where units or layers are gone.
    Cost: reading and writing the blocks' weights once (tables outside of them are read when they are called, and
        copied), a forward, and the recipe's own; memory: a block, its scores and masks, what the recipe collects on it,
        and its inputs for all batches. Frees memory to the system at once from then on (`prunus.stream.memory.tight`).
    Errors: `DataError` for a damaged folder or data that does not fit; `SpecError` for a recipe that is not local, or
        an unfinished run of something else; nothing is left half-written at `out`.
    """
    began = time.perf_counter()
    out = Path(out)
    recipe = resolve_recipe(recipe)
    smaller = recipe.structure == "structured"
    recipe = recipe if smaller else _divided(recipe)
    budget = resolve_budget(recipe, sparsity, budget)
    if budget.currency != "units":
        raise SpecError(f"a budget in {budget.currency} is one of the whole model: give a sparsity, or prune in memory")
    if out.resolve() == Path(folder).resolve():
        raise SpecError(f"{out} is the folder that is read: write to another one")
    if not batches:
        raise DataError("the calibration data yields no batch: pass at least one")
    check_replaceable(out, mark=NOTE)
    _usable(device)
    if smaller:
        if device != "cpu" or distributed():
            raise SpecError(f"{recipe.name} removes whole units, which one process does, on the CPU")
        from prunus.stream.structured import shrunk_folder

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
    fingerprint = _fingerprint(checkpoint, recipe, budget, seed, batches)
    task = Task(calib=own_part(batches, fingerprint))
    state = by_first(lambda: begun(part, fingerprint, resume)) or State.read(part)
    resumed = len(state.done)
    run = replace(recipe, sweep="model")
    order: list[str] = []
    shelf = Shelf(part, memory)
    put, take = (lambda v: shelf.put(moved(v, "cpu"))), (lambda v: moved(shelf.take(v), device))
    with kept_if_begun(part, state) if rank() == 0 else nullcontext(), skeleton.on_demand(blocks):
        visits = walk(skeleton.model, task, blocks, through=True, put=put, take=take)
        for visit in _loaded(visits, skeleton, blocks, state, part):
            visit.block.to(device)
            order.append(visit.name)
            if visit.name not in state.done:
                if len(order) == 1:
                    check_repeatable(visit)
                shard = f"model-{len(order):05d}.safetensors"
                state.done[visit.name] = _pruned(visit, skeleton, run, budget, seed, part, shard)
                by_first(lambda: state.write(part))
            if on_block is not None:
                on_block(len(order), len(blocks), state.done[visit.name])
    if all(g in b.skipped for b in state.done.values() for g in b.units):
        raise NothingScored(f"{recipe.name} scores nothing in any block of {type(skeleton.model).__name__}")
    records = tuple(state.done[n] for n in order)
    inside = {k for n in order for k in skeleton.keys(n)}
    sizes = {k: _count(e.shape) for k, e in checkpoint.entries.items()}
    made = Streamed(
        folder=out,
        recipe=recipe,
        blocks=records,
        inside=sum(sizes[k] for k in inside),
        outside=sum(n for k, n in sizes.items() if k not in inside),
        resumed=resumed,
        read=checkpoint.taken,
        written=checkpoint.bytes,
        activations=shelf.most,
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


def _usable(device: str) -> None:
    """Errors: `SpecError` for what is no device of this machine."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]})") from None


def _divided(recipe: Recipe) -> Recipe:
    """The recipe, block by block, or why it cannot be."""
    problems = Problems(f"{recipe.name} cannot be streamed")
    recipe = replace(recipe, sweep="blocks")
    if len(recipe.timeline(0.5, 0)) != 1 or recipe.trains:
        problems.add(f"{type(recipe.schedule).__name__} prunes more than once, and a block is there only once")
    for slot in ("gate", "prepare", "recover", "penalty", "prox"):
        if getattr(recipe, slot) is not None:
            problems.add(f"its {slot} ({type(getattr(recipe, slot)).__name__}) wants the whole model")
    problems.raise_if_any(SpecError)
    return recipe


def _loaded(
    visits: Iterator[Visit], skeleton: Skeleton, blocks: Mapping[str, nn.Module], state: State, part: Path
) -> Iterator[Visit]:
    """The visits, each block with its weights until the next one: the pruned ones where an earlier run left them."""
    before: nn.Module | None = None
    for visit in visits:
        if before is not None:
            skeleton.evict_(before)
        skeleton.release_(blocks)
        done = state.done.get(visit.name)
        if done is None:
            skeleton.load_(skeleton.keys(visit.name))
        else:
            skeleton.load_(skeleton.keys(visit.name), Checkpoint.of(part / done.shard))
        before = visit.block
        give_back()
        yield visit
    if before is not None:
        skeleton.evict_(before)


def _pruned(
    visit: Visit, skeleton: Skeleton, recipe: Recipe, budget: Budget, seed: int, part: Path, shard: str
) -> BlockRecord:
    """Prune a loaded block and write it."""
    began = time.perf_counter()
    session = Session(visit.block, recipe, visit.task, budget, seed=block_seed(seed, visit.name))
    try:
        session.start()
        skipped = dict(session.skipped)
    except NothingScored as error:
        skipped = dict.fromkeys(session.masks, str(error))
    masks = {n: m for n, m in session.masks.items() if n not in skipped}
    units = {n: m.numel() for n, m in session.masks.items()}
    kept = {n: count(masks[n]) if n in masks else units[n] for n in units}
    digest = _digest(masks)
    del session, masks
    give_back()  # sessions are circles of objects that hold masks as large as a block
    sha = by_first(lambda: write_shard(part / shard, skeleton.stored(visit.name))) or ""
    return BlockRecord(visit.name, units, kept, skipped, digest, shard, sha, round(time.perf_counter() - began, 3))


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
                if file.is_file() and file.suffix not in _WEIGHTS and file.name not in (INDEX, NOTE):
                    shutil.copyfile(file, temporary / file.name)
            (temporary / NOTE).write_text(json.dumps(made.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise PrunusError(
            f"could not write {made.folder}: {error}. All blocks are in {part}: free space and go on with resume=True"
        ) from error
    shutil.rmtree(part)


def _fingerprint(checkpoint: Checkpoint, recipe: Recipe, budget: Budget, seed: int, batches: Any) -> str:
    sha = hashlib.sha256(checkpoint.digest().encode())
    told = {"recipe": recipe.to_dict(), "budget": asdict(budget), "seed": seed, "prunus": __version__}
    sha.update(json.dumps(told, sort_keys=True, default=str).encode())
    for batch in batches:
        _feed(sha, batch)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
        sha.update(bytes_of(value))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            sha.update(str(key).encode())
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _feed(sha, one)
    elif isinstance(value, str | int | float | bool | None):
        sha.update(repr(value).encode())
    else:
        raise DataError(f"a calibration batch holds a {type(value).__name__}: pass tensors in dicts, lists or tuples")


def _digest(masks: Masks) -> str:
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(name.encode())
        sha.update(bytes_of(masks[name]))
    return sha.hexdigest()


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
