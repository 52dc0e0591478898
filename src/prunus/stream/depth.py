"""Whole layers out of a folder: scored in one streamed pass of the dense model, then shards copied tensor by tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import NothingScored, PrunusError, StructureError, listed
from prunus.core.evidence import Sources
from prunus.core.groups import Member
from prunus.core.part import Masks
from prunus.core.task import Task
from prunus.deploy.hf_search import differences, refusals
from prunus.engine.score import check_scores, rate, seeded
from prunus.engine.select import select
from prunus.engine.walk import Visit, blocks_in, called, check_repeatable, walk
from prunus.graph.depth.blocks import role_of
from prunus.graph.depth.drop import BlockGroup, drop_, entries_of, names_after
from prunus.graph.running import FAILURES, tensors_in
from prunus.parts.granularity import Block
from prunus.parts.granularity.tried import with_parts
from prunus.stream.memory import give_back
from prunus.stream.proof import first_difference, reads, steps
from prunus.stream.renumber import configurations, renumbered
from prunus.stream.result import digest_of
from prunus.stream.shards import Checkpoint, write_shard
from prunus.stream.shrunk import CONFIG, IN_MEMORY, Run, Scored, Shrunk, alike, elements, laid, renamed, write_folder
from prunus.stream.skeleton import Skeleton
from prunus.stream.state import BlockRecord, kept_if_begun
from prunus.stream.towers import warn_unreached

GIVES = "it gives other layers more than its output (a table of positions, say), which would be gone with it"


@dataclass
class Layers:
    """The entries of a list of layers.

    Attributes:
        path: of the list.
        names: the entries' paths, in order.
        scores: of those that can be removed.
        gone: those that are to be removed.
    """

    path: str
    names: list[str]
    scores: dict[str, Tensor] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    @property
    def stay(self) -> list[int]:
        """Positions of the entries that stay."""
        return [i for i, n in enumerate(self.names) if n not in self.gone]


def prune_layers(run: Run, out: Path) -> Shrunk:
    """`prune_folder` for a recipe whose units are layers (`Block`).

    A layer can be removed if, with its parameters at zero, it returns its input, and nothing else that it returns hangs
    on them: tried on the first `SHORT` tokens of the first sample. What is chosen among these is what `prunus.prune`
    chooses in memory. The layers that stay are renumbered, and the configuration is cut where it counts or lists
    layers. Before a weight is written, the smaller model is run on the short sample beside the dense one with the
    removed layers at zero: every layer must be given the same, to the bit.

    Cost: a forward over the data; reading the weights twice, and those that stay once more for the comparison and once
    for the copy. Memory: a block and its inputs for all batches; two blocks while the models are compared.
    Errors: as of `prune_folder`; `StructureError` where no layer can be removed, or no configuration of the class says
    what is left.
    """
    began, resumed = time.perf_counter(), len(run.state.done)
    checkpoint, skeleton, state, recipe = run.checkpoint, run.skeleton, run.state, run.recipe
    lists = _lists(skeleton.model)
    order = _scored(run, lists)
    masks = _decided(run, lists)
    names, text, changed = _smaller(run, lists)
    blocks = {k: n for n in order for k in skeleton.keys(n)}
    places: dict[str, dict[str, str]] = {}
    for new, old in names.items():
        at = order.index(blocks[old]) + 1 if old in blocks else 0
        places.setdefault(f"model-{at:05d}.safetensors", {})[new] = old
    files = {name: renamed(checkpoint, own) for name, own in sorted(places.items())}
    size = sum(held.bytes for held in files.values())
    gone = {n for one in lists for n in one.gone}
    records = [replace(r, kept={g: int(n not in gone) for g in r.units}) for n in order for r in [state.done[n]]]
    made = Shrunk(
        folder=out,
        recipe=recipe,
        blocks=tuple(replace(r, masks=digest_of(masks)) for r in records),
        inside=elements(checkpoint, blocks),
        outside=elements(checkpoint, checkpoint.entries.keys() - blocks.keys()),
        resumed=resumed,
        read=checkpoint.taken,
        written=size,
        activations=run.shelf.most,
        seconds=time.perf_counter() - began,
        changed=changed,
        bytes=size,
    )
    report = made.to_dict() | {"removed": sorted(gone, key=order.index)}
    texts = {CONFIG: text, "prunus.json": json.dumps(report, indent=1) + "\n"}
    write_folder(out, checkpoint, files, texts, run.part)
    warn_unreached(blocks_in(skeleton.model), order, 4)
    return made


def _lists(model: nn.Module) -> list[Layers]:
    found: dict[str, Layers] = {}
    for name in blocks_in(model):
        path = name.rpartition(".")[0]
        found.setdefault(path, Layers(path, [])).names.append(name)
    return list(found.values())


def _scored(run: Run, lists: Sequence[Layers]) -> list[str]:
    """Score every layer that can be removed, in one pass of the dense model; returns the layers' order."""
    skeleton, state = run.skeleton, run.state
    blocks = blocks_in(skeleton.model)
    granularity = run.recipe.granularity
    assert isinstance(granularity, Block)
    paths = [n for n, _ in (*skeleton.model.named_modules(), *skeleton.model.named_parameters())]
    excluded = set(with_parts(skeleton.model, granularity.matched(paths)))
    list_of = {n: one for one in lists for n in one.names}
    data = run.recipe.scores_from != "nothing" and len(state.done) < len(blocks)
    batches = run.batches if data else []
    task = replace(run.task, calib=[*batches, *run.examples])
    order: list[str] = []
    before: nn.Module | None = None
    waiting: tuple[BlockRecord, list[Tensor]] | None = None

    def settle(given: Iterable[Tensor]) -> None:
        """Write down the block before, now that it is known what the next one is given of it."""
        if waiting is not None:
            record, more = waiting
            if not record.skipped and any(alike([t], [m]) for m in more for t in given):
                record = replace(record, skipped=dict.fromkeys(record.units, GIVES))
            state.done[record.name] = record
            state.write(run.part)

    with kept_if_begun(run.part, state), skeleton.on_demand(blocks):
        for visit in walk(skeleton.model, task, blocks, through=True, put=run.shelf.put, take=run.shelf.take):
            if before is not None:
                skeleton.evict_(before)
            settle(list(tensors_in(tuple(visit.calls[-1]))))
            waiting, before = None, visit.block
            skeleton.release_(blocks)
            give_back()
            order.append(visit.name)
            if visit.name not in state.done:
                why = "it is excluded" if visit.name in excluded else None
                waiting = _score(run, visit, list_of[visit.name].path, len(order), len(batches), why)
            else:
                skeleton.load_(skeleton.keys(visit.name))
            if run.on_block is not None:
                run.on_block(len(order), len(blocks), state.done.get(visit.name) or waiting[0])  # type: ignore[index]
        settle(())
    for at, name in enumerate(order, 1):
        if not state.done[name].skipped:
            score = Checkpoint.of(run.part / f"scores-{at:05d}.safetensors")
            list_of[name].scores[name] = score.read(list_of[name].path or "model")
    return order


def _score(run: Run, visit: Visit, path: str, at: int, count: int, why: str | None) -> tuple[BlockRecord, list[Tensor]]:
    """Load a block, and write what it is worth, or why it stays; and what it returns beyond its first tensor that hangs
    on its parameters.
    """
    began = time.perf_counter()
    skeleton, name = run.skeleton, path or "model"
    at_zero = None if why else _outputs_at_zero(skeleton, visit)
    skeleton.load_(skeleton.keys(visit.name))
    if at == 1:
        check_repeatable(visit)
    scores: dict[str, Tensor] = {}
    more: list[Tensor] = []
    if isinstance(at_zero, list):
        why, more = _refused(visit, at_zero), _more(visit, at_zero)
    else:
        why = why or at_zero
    if why is None:
        try:
            scores = {name: _worth(run, visit, name, Scored(visit, count))}
        except NothingScored as error:
            why = str(error)
    shard = f"scores-{at:05d}.safetensors"
    sha = write_shard(run.part / shard, scores)
    skipped = {} if why is None else {name: why}
    seconds = round(time.perf_counter() - began, 3)
    return BlockRecord(visit.name, {name: 1}, {name: 1}, skipped, "", shard, sha, seconds), more


class _Alone(nn.Module):
    """A model of one block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


def _worth(run: Run, visit: Visit, name: str, calls: Scored) -> Tensor:
    """The score of a loaded block, by what the dense model gives it."""
    model = _Alone(visit.block).eval()
    parameters = dict(model.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    members = sorted((Member(n, role=role_of(n, shapes), unit=0) for n in shapes), key=lambda m: m.role != "out")
    group = BlockGroup(name, (1,), tuple(members), kind="block", names=("block",), entries=(0,), length=2)
    task = Task(calib=calls, forward=called)
    criterion = run.recipe.criterion
    sources = Sources(model, task, (group,), parameters, seeded(run.seed), criterion.settings())
    scores, _ = rate(criterion, sources, run.recipe.granularity.reduce)
    return scores[name].detach().cpu().contiguous()


def zeroed_(skeleton: Skeleton, visit: Visit) -> None:
    """Give a block parameters of zeros, and the buffers that its folder holds."""
    for module in visit.block.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), requires_grad=False)
    own = {f"{visit.name}.{n}" for n, _ in visit.block.named_buffers()}
    skeleton.load_([k for k in skeleton.keys(visit.name) if skeleton.targets[k] in own])


def _outputs_at_zero(skeleton: Skeleton, visit: Visit) -> list[Tensor] | str:
    """What a block returns for the short sample with its parameters at zero, or why it returns nothing."""
    zeroed_(skeleton, visit)
    try:
        with torch.no_grad():
            return [t.clone() for t in tensors_in(called(visit.block, visit.calls[-1]))]
    except FAILURES as error:
        return f"with parameters at zero it does not run ({type(error).__name__}: {error})"
    finally:
        skeleton.evict_(visit.block)


def _refused(visit: Visit, at_zero: list[Tensor]) -> str | None:
    """Why a block cannot be removed, by what it returns at zero; None if that is its input."""
    call = visit.calls[-1]
    given = next(tensors_in(tuple(call)), None)
    if given is None or not at_zero or at_zero[0].shape != given.shape:
        return "its output has another shape than its input"
    if not bool(at_zero[0].isfinite().all()):
        return "with its parameters at zero its output is not a number"
    if not bool(at_zero[0].any()):
        return "with its parameters at zero its output is zero: nothing leads around it, or a norm follows the sum"
    error = float((at_zero[0] - given).abs().max() / given.abs().max())
    if error > 1e-6:
        return f"with its parameters at zero it is not the identity (it changes its input by {error:.1e})"
    return None


def _more(visit: Visit, at_zero: list[Tensor]) -> list[Tensor]:
    """What a loaded block returns of the short sample beyond its first tensor, where it hangs on its parameters."""
    with torch.no_grad():
        found = list(tensors_in(called(visit.block, visit.calls[-1])))
    if len(found) != len(at_zero):
        return found[1:]
    return [t for t, zero in zip(found[1:], at_zero[1:], strict=True) if not alike([t], [zero])]


def _decided(run: Run, lists: Sequence[Layers]) -> Masks:
    """Choose among the layers that can be removed, those of all lists together."""
    groups: list[BlockGroup] = []
    scores: dict[str, Tensor] = {}
    granularity, recipe = run.recipe.granularity, run.recipe
    assert isinstance(granularity, Block)
    for one in lists:
        own = [n for n in one.names if n in one.scores]
        least = min(max(granularity.at_least - (len(one.names) - len(own)), 0), len(own))
        if least == len(own):
            continue
        name, entries = one.path or "model", tuple(one.names.index(n) for n in own)
        members = tuple(Member(n, unit=i) for i, n in enumerate(own))
        groups.append(
            BlockGroup(name, (len(own),), members, at_least=least, kind="block", names=tuple(own), entries=entries)
        )
        scores[name] = torch.cat([one.scores[n].reshape(1) for n in own])
    if not groups:
        why = [f"{n}: {w}" for n, r in run.state.done.items() for w in r.skipped.values()]
        raise StructureError(f"no layer of {type(run.skeleton.model).__name__} can be removed; {listed(why)}")
    check_scores(recipe.criterion, scores)
    density = recipe.timeline(run.budget.keep, 0)[0].density
    masks = select(scores, recipe.allocate, run.budget.at(density), tuple(groups), None, {})
    for group in groups:
        one = next(o for o in lists if (o.path or "model") == group.name)
        one.gone = {n for n, stays in zip(group.names, masks[group.name].tolist(), strict=True) if not stays}
    return masks


def _smaller(run: Run, lists: Sequence[Layers]) -> tuple[dict[str, str], str, dict[str, tuple[Any, Any]]]:
    """The tensors that stay (new name -> old), and the configuration of the model that they make, proved."""
    checkpoint, skeleton = run.checkpoint, run.skeleton
    names = {k: k for k in checkpoint.entries}
    twins: dict[str, str] = {}
    for one in lists:
        if one.gone:
            table = renumbered(skeleton, one.path, one.names, one.stay)
            names = {k: moved for k, n in names.items() if (moved := table(n)) is not None}
            entries = names_after(skeleton.model.get_submodule(one.path), one.stay)
            twins |= {f"{one.path}.{a}".strip("."): f"{one.path}.{b}".strip(".") for a, b in entries.items()}
        else:
            twins |= {n: n for n in one.names}
    new = {n: old for old, n in names.items()}
    dropped = Skeleton(checkpoint)
    drop_(dropped.model, {entries_of(one.path): one.stay for one in lists if one.gone}, {})
    virtual = laid(run.part, [renamed(checkpoint, new)])

    def dense(visit: Visit) -> None:
        if visit.name in twins:
            skeleton.load_(skeleton.keys(visit.name))
        else:
            zeroed_(skeleton, visit)

    reason = "no configuration was tried"
    errors: tuple[type[Exception], ...] = (PrunusError, *refusals())
    for config in configurations(dropped.model.config, {len(o.names): o.stay for o in lists if o.gone}):
        try:
            text = config.to_json_string(use_diff=True)
            (run.part / CONFIG).write_text(text, encoding="utf-8")
            made = Skeleton(virtual)
            found = None
            for example in run.examples:
                whole = steps(skeleton, example, dense, [n for o in lists for n in o.names])
                found = found or first_difference(whole, steps(made, example, reads(made), twins.values()), twins)
        except errors as error:
            found = f"{type(error).__name__}: {error}"
        if found is None:
            checkpoint.taken += virtual.taken
            return new, text, differences(skeleton.model.config, config)
        reason = found
    gone = listed([n for o in lists for n in o.names if n in o.gone])
    raise StructureError(
        f"{type(skeleton.model).__name__} without {gone} is not what it is with these layers at zero, by any "
        f"configuration that was tried ({reason}): exclude layers, or {IN_MEMORY}"
    )
