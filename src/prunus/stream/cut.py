"""Cut units out of the blocks of a folder: masked, rebuilt, proved and written, one block after the other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunus.core.counting import count, full
from prunus.core.errors import PrunusWarning
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.core.task import Batch, Task
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.rebuild import rebuilt
from prunus.engine.select import all_kept
from prunus.engine.session import Session
from prunus.engine.walk import Visit, blocks_in, called, walk
from prunus.graph import compact
from prunus.stream.proof import Load
from prunus.stream.result import digest_of
from prunus.stream.shards import Checkpoint, write_shard
from prunus.stream.shrunk import Run, Scored, bare, keywords
from prunus.stream.skeleton import Skeleton
from prunus.stream.state import BlockRecord, begun


def visits(run: Run, batches: Sequence[Batch], load: Load) -> Iterator[tuple[Visit, dict[str, Any], Scored]]:
    """The blocks, loaded, at which batches and short samples wait; a short sample's call as keywords; the batches'."""
    skeleton = run.skeleton
    blocks = blocks_in(skeleton.model)
    task = replace(run.task, calib=[*batches, *run.examples])
    with skeleton.on_demand(blocks):
        reached = walk(skeleton.model, task, blocks, through=True, put=run.shelf.put, take=run.shelf.take)
        for visit in skeleton.loaded(reached, blocks, load):
            yield visit, keywords(visit.block, visit.calls[-1]), Scored(visit, len(batches))


def cut(
    run: Run,
    groups: Mapping[str, tuple[Group, ...]],
    masks: Mapping[str, Masks],
    skipped: Mapping[str, Mapping[str, str]],
    *,
    as_stored: bool,
) -> tuple[dict[str, BlockRecord], dict[str, Masks]]:
    """Write every block without the units that go, proved; by the folder's names of tensors, or by the model's.

    Returns: the records, and the masks as the reconstruction left them.
    """
    part = run.part / "pruned"
    state = begun(part, run.state.fingerprint, resume=True)
    rebuilds, skeleton = run.recipe.reconstruct is not None, run.skeleton
    final = {b: dict(m) for b, m in masks.items()}

    def load(visit: Visit) -> None:
        """A block's weights: the dense ones, or those that an earlier run rebuilt."""
        record = state.done.get(visit.name)
        rebuilt_ = None if record is None or not rebuilds else Checkpoint.of(part / f"whole-{record.shard}")
        skeleton.load_(skeleton.keys(visit.name), rebuilt_)

    for at, (visit, example, calls) in enumerate(visits(run, run.batches if rebuilds else (), load), 1):
        own, keep = groups[visit.name], final[visit.name]
        began = time.perf_counter()
        if visit.name in state.done:
            held = Checkpoint.of(part / f"masks-{at:05d}.safetensors")
            final[visit.name] = keep = {n: held.read(n) for n in held.entries}
            _mask_(visit.block, own, keep)
        else:
            with bare(visit.block):
                if rebuilds and any(not full(m) for m in keep.values()):
                    keep |= _rebuilt(run, visit, own, keep, Task(calib=calls, forward=called, example=example))
                _mask_(visit.block, own, keep)
                small, _ = compact(visit.block, own, keep, example, verify=bool(keep))
            shard = f"model-{at:05d}.safetensors"
            if rebuilds:
                write_shard(part / f"whole-{shard}", skeleton.stored(visit.name))
            write_shard(part / f"masks-{at:05d}.safetensors", keep)
            sha = write_shard(part / shard, _tensors(skeleton, visit.name, small, as_stored=as_stored))
            units = {g.name: g.units for g in own}
            kept = {n: count(keep[n]) if n in keep else units[n] for n in units}
            seconds = round(time.perf_counter() - began, 3)
            why = dict(skipped[visit.name])
            state.done[visit.name] = BlockRecord(visit.name, units, kept, why, digest_of(keep), shard, sha, seconds)
            state.write(part)
        if run.on_block is not None:
            run.on_block(len(groups) + at, 2 * len(groups), state.done[visit.name])
    return state.done, final


def _mask_(block: nn.Module, groups: tuple[Group, ...], masks: Masks) -> None:
    parameters = dict(block.named_parameters())
    apply_(parameters, parameter_masks(groups, masks, parameters))


def _rebuilt(run: Run, visit: Visit, groups: tuple[Group, ...], masks: Masks, task: Task) -> Masks:
    """The masks after the recipe's reconstruction has written a block's new weights."""
    # A session of single weights knows the block; the units are those that were found in it.
    session = Session(visit.block, "magnitude", task, run.budget, seed=run.seed)
    session.recipe, session.groups = run.recipe, tuple(g for g in groups if g.name in masks)
    session.masks = all_kept(session.groups, session.parameters)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", PrunusWarning)
        found = rebuilt(session, masks)
    run.notes += [f"{visit.name}: {w.message}" for w in told]
    return found


def _tensors(skeleton: Skeleton, name: str, small: nn.Module, *, as_stored: bool) -> dict[str, Tensor]:
    """The tensors of a block that was cut, as the folder names and cuts them, or as the model does."""
    if not as_stored:
        return {f"{name}.{n}": t.detach().contiguous() for n, t in small.state_dict().items()}
    path, _, key = name.rpartition(".")
    entries = skeleton.model.get_submodule(path)._modules
    dense = entries[key]
    try:
        entries[key] = small
        return skeleton.stored(name)
    finally:
        entries[key] = dense
