"""The folder of a model whose layers keep unequally many units: that of `prunus.save`, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus import __version__
from prunus.core.counting import count
from prunus.core.errors import StructureError, listed
from prunus.core.part import Masks
from prunus.deploy.atomic import MARK
from prunus.deploy.files import MASKS, WEIGHTS
from prunus.deploy.hf import described
from prunus.deploy.manifest import Manifest
from prunus.engine.apply_ import pack
from prunus.graph import Edit
from prunus.stream.shards import Checkpoint, write_shard
from prunus.stream.shrunk import IN_MEMORY, Run, Shrunk, laid, renamed
from prunus.stream.skeleton import Skeleton


def manifest(
    run: Run,
    made: Shrunk,
    small: Skeleton,
    edits: Sequence[Edit],
    masks: Mapping[str, Masks],
    rest: Checkpoint,
    shards: Sequence[Checkpoint],
) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """The files of the folder: those of tensors, waiting in `run.part`, and texts with the manifest among them.

    Args:
        run: the run.
        made: what was done.
        small: the model as it is now, without weights.
        edits: what was done to the dense model.
        masks: by block, by the names that groups have within it.
        rest: the tensors outside of the blocks.
        shards: the blocks, by the model's names of tensors.

    Cost: the weights that are left, written once more.
    Errors: `StructureError` where the folder and the model cut what lies outside of the blocks differently.
    """
    tensors, aliases = _stored(run, small, rest, shards)
    digests = {WEIGHTS: write_shard(run.part / WEIGHTS, dict.fromkeys(tensors.entries, tensors))}
    every = {f"{b}.{n}": m for b, own in masks.items() for n, m in own.items()}
    digests[MASKS] = write_shard(run.part / MASKS, {n: pack(m).cpu() for n, m in every.items()})
    notes, texts = described(run.skeleton.model, made.folder.name, made.reason)
    plain = {
        "prunus": __version__,
        "torch": torch.__version__,
        "compacted": True,
        "result": _result(run, made, small, every),
        "edits": [e.to_dict() for e in edits],
        "aliases": aliases,
        "masks": {n: tuple(m.shape) for n, m in every.items()},
        "files": {n: {"sha256": d, "bytes": (run.part / n).stat().st_size} for n, d in digests.items()},
        "notes": notes,
    }
    sealed = Manifest.model_validate(plain).sealed().decode()
    return {n: Checkpoint.of(run.part / n) for n in digests}, {**texts, MARK: sealed}


def _stored(
    run: Run, small: Skeleton, rest: Checkpoint, shards: Sequence[Checkpoint]
) -> tuple[Checkpoint, dict[str, str]]:
    """Every tensor of the model once, by its name in it, and the further names of those that are shared."""
    names: dict[str, str] = {}
    for key in rest.entries:
        name = small.targets[key]
        if name in names:
            raise StructureError(f"{key} and {names[name]} make one tensor of the model together: {IN_MEMORY}")
        if name is not None:
            names[name] = key
    found = laid(run.part, [renamed(rest, names), *shards])
    aliases: dict[str, str] = {}
    for name in list(found.entries):
        for other in small.tied(name):
            if other != name and name not in aliases:
                aliases[other] = name
                found.entries.pop(other, None)
    state = small.model.state_dict()
    own: dict[str, Tensor] = {n: t for n, t in state.items() if n not in found.entries and n not in aliases}
    if lost := [n for n, t in own.items() if t.is_meta]:
        raise StructureError(f"{listed(lost)} are not in the folder by these names: {IN_MEMORY}")
    if own:  # what transformers computes and keeps in the state
        write_shard(run.part / "computed.safetensors", {n: t.contiguous() for n, t in own.items()})
        found = laid(run.part, [found, Checkpoint.of(run.part / "computed.safetensors")])
    return found, aliases


def _result(run: Run, made: Shrunk, small: Skeleton, masks: Masks) -> dict[str, Any]:
    """What `Result.to_dict` says of a model pruned in memory."""
    dense, kept = (sum(p.numel() for p in s.model.parameters()) for s in (run.skeleton, small))
    return {
        "recipe": run.recipe.to_dict(),
        "taxonomy": run.recipe.taxonomy(),
        "budget": {k: v for k, v in vars(run.budget).items() if v is not None},
        "sparsity": made.sparsity,
        "weight_sparsity": 1 - kept / dense,
        "params_dense": dense,
        "params_kept": kept,
        "densities": {n: count(m) / m.numel() for n, m in masks.items()},
        "skipped": made.skipped | made.spanning,
        "collapsed": [],
        "history": [],
        "cost": {"seconds": made.seconds, "steps": 0},
        "seed": run.seed,
    }
