"""Heads, neurons and other units within blocks out of a folder: scored in one streamed pass of the dense model, chosen
over the whole model, cut in a second pass.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.errors import NothingScored, PrunusError, PrunusWarning, SpecError, StructureError, listed
from prunus.core.evidence import Sources
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.core.task import Batch, Task
from prunus.deploy.hf_search import configurations, differences, refusals, uneven
from prunus.engine.prepare import check_weights
from prunus.engine.score import check_scores, rate, seeded
from prunus.engine.select import select
from prunus.engine.walk import Visit, blocks_in, called, check_repeatable, kinds
from prunus.graph import Edit, compact, replay_
from prunus.graph.running import FAILURES, mapped
from prunus.parts.granularity import Block
from prunus.parts.granularity.coupled import Coupled
from prunus.stream.compacted import manifest
from prunus.stream.cut import cut, visits
from prunus.stream.depth import prune_layers
from prunus.stream.proof import first_difference, reads, steps
from prunus.stream.result import OnBlock, fingerprint_of
from prunus.stream.shards import Checkpoint, write_shard
from prunus.stream.shelf import Shelf
from prunus.stream.shrunk import (
    CONFIG,
    IN_MEMORY,
    Run,
    Shrunk,
    bare,
    check_told,
    elements,
    in_model,
    laid,
    renamed,
    short,
    write_folder,
)
from prunus.stream.skeleton import META, Skeleton
from prunus.stream.state import BlockRecord, begun, kept_if_begun
from prunus.stream.towers import warn_unreached

_TRIES = 6
SHARED = "its forward reads a number of the configuration, which all layers share"
HIDDEN = "its block by itself does not show that it can be cut (what the block returns may have its size)"
SPANS = "its units run through several blocks, and a block can be cut only where it ends"


def shrunk_folder(
    folder: Path,
    out: Path,
    recipe: Recipe,
    batches: list[Batch],
    *,
    budget: Budget,
    seed: int,
    resume: bool,
    memory: int | None,
    on_block: OnBlock | None,
) -> Shrunk:
    """`prune_folder` for recipes that remove whole units or whole layers.

    Errors: `SpecError` for a recipe that one pass over the dense model cannot carry out, with every reason.
    """
    units = recipe.granularity
    if not isinstance(units, Block | Coupled):
        raise SpecError(
            f"{recipe.name} cannot be streamed: {type(units).__name__} is neither Block (layers) nor units within "
            f"blocks (Coupled, Channel, Head). Instead {IN_MEMORY}"
        )
    check_told(recipe, () if isinstance(units, Block) else ("reconstruct",))
    checkpoint = Checkpoint(folder)
    skeleton = Skeleton(checkpoint)
    skeleton.check_tokens(batches)
    if "" in blocks_in(skeleton.model):
        raise SpecError(f"{type(skeleton.model).__name__} has no list of blocks: {IN_MEMORY}")
    spanning, within = ({}, ()) if isinstance(units, Block) else _spanning(recipe, checkpoint, batches)
    part = out.parent / f".{out.name}.unfinished"
    state = begun(part, fingerprint_of(checkpoint, recipe, budget, seed, batches), resume)
    run = Run(checkpoint, skeleton, recipe, budget, batches, part, state, Shelf(part, memory), seed, on_block)
    return prune_layers(run, out) if isinstance(units, Block) else prune_units(run, out, spanning, within)


def prune_units(run: Run, out: Path, spanning: Mapping[str, str], within: Sequence[str]) -> Shrunk:
    """`prune_folder` for a recipe whose units lie within blocks (`Coupled`, `Channel`, `Head`).

    Which units there are is read off each block by itself, as it is called on the first `SHORT` tokens of the first
    sample (`prunus.graph.trace`). Units stay whole, and are named, that run through several blocks (a hidden width),
    whose number is one of the configuration (heads of Phi-3), or shows in what their block returns (heads where it
    returns attention weights as well: GPT-J, GPT-Neo).
    All units are scored on the dense model, block by block, and chosen from together: the masks are those of
    `prunus.prune` in memory with those groups excluded. In a second pass every block is masked, rebuilt where
    the recipe says so (on what the pruned blocks before it give), cut, proved to compute what the masked block
    computes (float64, on the short sample), and written.

    Where every layer keeps equally many, a configuration of the class says so, and the folder is one of
    `from_pretrained`: what that configuration builds is run block by block beside the dense model with the same units
    cut out, and must be given and return the same to the bit. Otherwise the folder is one of
    `prunus.deploy.from_pretrained`.

    Cost: reading the weights twice, and those that stay once more for the comparison; a forward over the data, and
    another one where the recipe rebuilds. Memory: a block, what the recipe collects on it, its inputs for all batches,
    and two float64 copies of it while it is traced and proved.
    Errors: as of `prune_folder`; `StructureError` where no unit lies within a block.
    """
    began, resumed = time.perf_counter(), len(run.state.done)
    groups, scores, order = _scored(run)
    found = {f"{b}.{g.name}" for b, own in groups.items() for g in own}
    spanning = {**spanning, **{n: HIDDEN for n in within if n not in found}}
    masks, skipped = _decided(run, groups, scores, spanning)
    edits = _edits(run.skeleton, groups, masks)
    small = Skeleton(run.checkpoint)
    replay_(small.model, edits)
    dense = run.skeleton.model.config
    reason = uneven(small.model, small.model.config)
    configs = [] if reason else list(islice(configurations(small.model, small.model.config), _TRIES))
    reason = reason or ("" if configs else "no configuration of this class gives these shapes")
    done, masks = cut(run, groups, masks, skipped, as_stored=not reason)
    inside = {k for n in order for k in run.skeleton.keys(n)}
    shards = [Checkpoint.of(run.part / "pruned" / done[n].shard) for n in order]
    rest = renamed(run.checkpoint, {k: k for k in run.checkpoint.entries if k not in inside})
    files = {"model-00000.safetensors": rest} | {done[n].shard: c for n, c in zip(order, shards, strict=True)}
    changed: dict[str, tuple[Any, Any]] = {}
    texts: dict[str, str] = {}
    if not reason:
        text, config = _proved(run, small, configs, laid(run.part, [rest, *shards]))
        texts, changed = {CONFIG: text}, differences(dense, config)
    made = Shrunk(
        folder=out,
        recipe=run.recipe,
        blocks=tuple(done[n] for n in order),
        inside=elements(run.checkpoint, inside),
        outside=elements(run.checkpoint, rest.entries),
        resumed=resumed,
        read=run.checkpoint.taken,
        written=sum(c.bytes for c in files.values()),
        activations=run.shelf.most,
        seconds=time.perf_counter() - began,
        spanning=dict(spanning),
        changed=changed,
        uniform=not reason,
        reason=reason,
        bytes=sum(c.bytes for c in files.values()),
    )
    if reason:
        edits = _edits(run.skeleton, groups, masks)
        files, texts = manifest(run, made, small, edits, masks, rest, shards)
    texts["prunus.json"] = json.dumps(made.to_dict(), indent=1) + "\n"
    write_folder(out, run.checkpoint, files, texts, run.part, indexed=made.uniform)
    if made.skipped or spanning:
        whole = [*made.skipped.items(), *spanning.items()]
        told = listed([f"{n} ({why})" for n, why in whole], 2)
        warnings.warn(PrunusWarning(f"{len(whole)} groups of units stayed whole: {told}"), stacklevel=4)
    warn_unreached(blocks_in(run.skeleton.model), order, 4)
    if run.notes:
        warnings.warn(PrunusWarning(listed(run.notes, 2)), stacklevel=4)
    return made


def _spanning(recipe: Recipe, checkpoint: Checkpoint, batches: Sequence[Batch]) -> tuple[dict[str, str], list[str]]:
    """The groups of units that run through several blocks, or lie outside of them: name -> why they stay; and the names
    of those that lie within blocks.

    Read off the whole model on the meta device; where that cannot be done (a forward that looks at numbers), none are
    named: they are not touched all the same.
    """
    model = Skeleton(checkpoint).model.to(META)
    prefixes = tuple(f"{n}." for n in blocks_in(model))
    found: tuple[Group, ...] = ()
    samples = [short(batch) for batch in kinds(Task(calib=batches))]
    if all(isinstance(s, Mapping) for s in samples):  # what one tower takes may not be enough for all of them
        samples = sorted(samples, key=len)
        samples += [{k: v for s in samples for k, v in s.items()}]
    for sample in reversed(samples):
        with suppress(PrunusError, *FAILURES):
            found = recipe.granularity(model, mapped(sample, lambda t: t.to(META)))
            break
    owners = {g.name: {next((p for p in prefixes if m.param.startswith(p)), "") for m in g.members} for g in found}
    named = {n: SPANS if len(o) > 1 else "it lies in no block" for n, o in owners.items() if len(o) > 1 or "" in o}
    if found and len(named) == len(found):
        told = listed([f"{n} ({why})" for n, why in named.items()], 2)
        raise StructureError(f"no units of {type(model).__name__} lie within a block: {told}. Instead {IN_MEMORY}")
    return named, [n for n in owners if n not in named]


def _scored(run: Run) -> tuple[dict[str, tuple[Group, ...]], dict[str, dict[str, Tensor]], list[str]]:
    """By block: its groups and their scores; and the blocks in the model's order."""
    groups: dict[str, tuple[Group, ...]] = {}
    scores: dict[str, dict[str, Tensor]] = {}
    data = run.recipe.scores_from != "nothing" and len(run.state.done) < len(blocks_in(run.skeleton.model))
    with kept_if_begun(run.part, run.state):
        for visit, example, calls in visits(run, run.batches if data else (), reads(run.skeleton)):
            at, name = len(groups) + 1, visit.name
            task = Task(calib=calls, forward=called, example=example)
            if at == 1:
                check_repeatable(visit)
            with bare(visit.block):
                groups[name] = _groups(run.recipe, visit, example)
                if name not in run.state.done:
                    run.state.done[name] = _score(run, visit, groups[name], task, f"scores-{at:05d}.safetensors")
                    run.state.write(run.part)
            held = Checkpoint.of(run.part / run.state.done[name].shard)
            scores[name] = {n: held.read(n) for n in held.entries}
            if run.on_block is not None:
                run.on_block(at, 2 * len(blocks_in(run.skeleton.model)), run.state.done[name])
    return groups, scores, list(groups)


def _groups(recipe: Recipe, visit: Visit, example: dict[str, Any]) -> tuple[Group, ...]:
    """The units of a block, by the names that they have within it."""
    units = recipe.granularity
    assert isinstance(units, Coupled)
    found = replace(units, exclude=())(visit.block, example)
    return tuple(g for g in found if not units.excluded(in_model(visit.name, g)))


def _score(run: Run, visit: Visit, groups: tuple[Group, ...], task: Task, shard: str) -> BlockRecord:
    """What the units of a loaded block are worth, written."""
    began = time.perf_counter()
    criterion = run.recipe.criterion
    scores: dict[str, Tensor] = {}
    shared = {g.name: SHARED for g in groups if not _own(visit.block, g)}
    skipped: dict[str, str] = {}
    units = {g.name: g.units for g in groups}
    if groups := tuple(g for g in groups if g.name not in shared):
        check_weights(visit.block, groups)
        parameters = dict(visit.block.named_parameters())
        sources = Sources(visit.block, task, groups, parameters, seeded(run.seed), criterion.settings())
        try:
            scores, skipped = rate(criterion, sources, run.recipe.granularity.reduce)
        except NothingScored as error:
            skipped = {g.name: str(error) for g in groups}
        check_scores(criterion, {f"{visit.name}.{n}": s for n, s in scores.items()})
    sha = write_shard(run.part / shard, {n: s.detach().cpu().contiguous() for n, s in scores.items()})
    seconds = round(time.perf_counter() - began, 3)
    return BlockRecord(visit.name, units, dict(units), skipped | shared, "", shard, sha, seconds)


def _own(block: nn.Module, group: Group) -> bool:
    """Whether all sizes that would change are attributes of the block's own modules."""
    modules = {n for n, _ in block.named_modules()}
    return all(m.param.rpartition(".")[0] in modules for m in getattr(group, "sizes", ()))


def _decided(
    run: Run,
    groups: Mapping[str, tuple[Group, ...]],
    scores: Mapping[str, Mapping[str, Tensor]],
    spanning: Mapping[str, str],
) -> tuple[dict[str, Masks], dict[str, dict[str, str]]]:
    """By block: the masks, all blocks' units chosen from together, and the groups that were not scored, with why."""
    allocate = run.recipe.allocate
    fits = getattr(allocate, "fits", None)
    skipped = {b: dict(run.state.done[b].skipped) for b in groups}
    space: list[Group] = []
    given: dict[str, Tensor] = {}
    for block, own in groups.items():
        for group in own:
            if group.name in scores[block] and fits is not None and not fits(group.shape, group.weight):
                skipped[block][group.name] = f"{allocate} does not fit {group.units} units"
            elif group.name in scores[block]:
                space.append(in_model(block, group))
                given[space[-1].name] = scores[block][group.name]
    if not space:
        why = [f"{b}.{n} ({w})" for b, own in skipped.items() for n, w in own.items()]
        why += [f"{n} ({w})" for n, w in spanning.items()]
        raise StructureError(
            f"no unit of {type(run.skeleton.model).__name__} lies within a block and is scored by {run.recipe.name}: "
            f"{listed(why or ['nothing can be cut'])}. Instead {IN_MEMORY}"
        )
    density = run.recipe.timeline(run.budget.keep, 0)[0].density
    found = select(given, allocate, run.budget.at(density), tuple(space), None, {})
    masks = {b: {g.name: found[f"{b}.{g.name}"] for g in own if f"{b}.{g.name}" in found} for b, own in groups.items()}
    return masks, skipped


def _edits(skeleton: Skeleton, groups: Mapping[str, tuple[Group, ...]], masks: Mapping[str, Masks]) -> tuple[Edit, ...]:
    """What the masks do to the model, read off its blocks without their weights."""
    edits: list[Edit] = []
    for name, own in masks.items():
        block = skeleton.model.get_submodule(name)
        _, found = compact(block, groups[name], own, verify=False)
        modules = {n for n, _ in block.named_modules()}
        if alien := [e.target for e in found if e.dim is None and e.target.rpartition(".")[0] not in modules]:
            raise StructureError(f"{name} cannot be cut by itself, as others share {listed(alien)}: {IN_MEMORY}")
        edits += [replace(e, target=f"{name}.{e.target}") for e in found]
    return tuple(edits)


def _proved(run: Run, small: Skeleton, configs: Sequence[Any], written: Checkpoint) -> tuple[str, Any]:
    """The configuration from which the class builds what was written, as text and by itself.

    Errors: `StructureError` where what is built computes something else by every one.
    """
    reason, names = "", list(blocks_in(small.model))
    errors: tuple[type[Exception], ...] = (PrunusError, *refusals())
    for config in configs:
        try:
            text = config.to_json_string(use_diff=True)
            (run.part / CONFIG).write_text(text, encoding="utf-8")
            made = Skeleton(written)
            found = None
            for example in run.examples:
                one = steps(small, example, reads(small, written), names)
                other = steps(made, example, reads(made), names)
                found = found or first_difference(one, other, {n: n for n in names})
        except errors as error:
            found = f"{type(error).__name__}: {error}"
        if found is None:
            return text, config
        reason = found
    raise StructureError(
        f"{type(small.model).__name__} computes something else by every configuration with these shapes ({reason}): "
        f"{IN_MEMORY}"
    )
