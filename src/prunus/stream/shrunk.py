"""What pruning whole units and whole layers of a folder have in common: what can be told block by block, and the
folder that is written in the end.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.errors import Problems, PrunusError, SpecError
from prunus.core.evidence import Evidence
from prunus.core.groups import Group
from prunus.core.recipe import Recipe
from prunus.core.task import Batch, Task
from prunus.deploy.atomic import new_folder
from prunus.deploy.hf import NOTE
from prunus.engine.crew import Crew
from prunus.engine.nested import moved
from prunus.engine.walk import Call, Visit, kinds
from prunus.graph.running import mapped, tensors_in
from prunus.parts.evidence.activations import ActivationEvidence
from prunus.parts.evidence.contributions import ConstantContributionsEvidence, ContributionsEvidence
from prunus.parts.evidence.coupling import (
    CoupledWeightEvidence,
    OutgoingKernelEvidence,
    OutgoingWeightEvidence,
    ShiftEvidence,
)
from prunus.parts.evidence.curvature import InputNormEvidence, InverseCurvatureEvidence, ReaderWeightEvidence
from prunus.parts.evidence.fluctuation import ReaderVarianceEvidence
from prunus.parts.evidence.hidden import HiddenStatesEvidence
from prunus.parts.evidence.weights import AffineEvidence, MakerEvidence, ParameterEvidence, ScaleEvidence
from prunus.stream.result import WEIGHTS, OnBlock, Streamed
from prunus.stream.shards import INDEX, Checkpoint, write_shard
from prunus.stream.shelf import Shelf
from prunus.stream.skeleton import Skeleton
from prunus.stream.state import State
from prunus.stream.towers import by_tower

CONFIG = "config.json"
SHORT = 64
"""Tokens of the sample on which structure is read and proofs are made."""

LOCAL: frozenset[type[Evidence]] = frozenset(
    (
        *(ParameterEvidence, ScaleEvidence, AffineEvidence, MakerEvidence, ShiftEvidence),
        *(OutgoingWeightEvidence, OutgoingKernelEvidence, CoupledWeightEvidence),
        *(
            ActivationEvidence,
            ReaderVarianceEvidence,
            InputNormEvidence,
            InverseCurvatureEvidence,
            ReaderWeightEvidence,
        ),
        *(ContributionsEvidence, ConstantContributionsEvidence, HiddenStatesEvidence),
    )
)
"""Evidence of which a block tells of its own units what the whole model tells of them: their weights, and what the
layers within it are fed by the dense model."""

IN_MEMORY = (
    "load the model and call result = prunus.prune(model, task, recipe, sparsity=...), then "
    "prunus.deploy.save_pretrained(result, folder)"
)


@dataclass(frozen=True)
class Shrunk(Streamed):
    """A folder whose model is smaller: fewer units, or fewer layers.

    Attributes:
        uniform: whether `from_pretrained` of transformers reads it by itself; otherwise `prunus.deploy.from_pretrained`
            does, and `prunus.load`.
        changed: field of the configuration -> its value in the dense model and now.
        reason: why it is not uniform.
        bytes: of the weights that are left.
        spanning: groups of units that no block holds whole, and why they stay.
    """

    uniform: bool = True
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    reason: str = ""
    bytes: int = 0
    spanning: dict[str, str] = field(default_factory=dict)

    @property
    def loader(self) -> str:
        """The Python function that reads the folder."""
        return "from_pretrained" if self.uniform else "prunus.deploy.from_pretrained"

    def to_dict(self) -> dict[str, Any]:
        more = {"uniform": self.uniform, "changed": self.changed, "reason": self.reason, "bytes": self.bytes}
        more["spanning"] = self.spanning
        return super().to_dict() | more


@dataclass
class Run:
    """What a run goes by: the arguments of `prune_folder`, checked, and where its state lies."""

    checkpoint: Checkpoint
    skeleton: Skeleton
    recipe: Recipe
    budget: Budget
    batches: list[Batch]
    part: Path
    state: State
    shelf: Shelf
    seed: int
    on_block: OnBlock | None
    device: str = "cpu"
    crew: Crew | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The calibration data, each batch for the towers that it has something for."""
        return Task(calib=self.batches, forward=by_tower)

    @property
    def examples(self) -> list[Any]:
        """The short samples: one of every kind of batch."""
        return [short(batch) for batch in kinds(self.task)]

    def put(self, value: Any) -> Any:
        """What a block gives, where it may wait."""
        return self.shelf.put(moved(value, "cpu"))

    def take(self, value: Any) -> Any:
        """The same, where the block under work is."""
        return moved(self.shelf.take(value), self.device)


def check_told(recipe: Recipe, allowed: tuple[str, ...] = ()) -> None:
    """Refuse a recipe that one streamed pass over the dense model cannot carry out, with every reason.

    allowed: slots beyond the criterion and the allocation that may be filled.
    Errors: `SpecError`.
    """
    problems = Problems(f"{recipe.name} cannot be streamed ({IN_MEMORY})")
    events = recipe.timeline(0.5, 0)
    if len(events) != 1 or recipe.trains:
        problems.add(f"{type(recipe.schedule).__name__} prunes more than once, each time on the model it has left")
    elif events[0].mark or events[0].settle is not None or events[0].below is not None:
        problems.add(f"{type(recipe.schedule).__name__} does more than prune once")
    for slot, part in recipe.parts().items():
        if slot not in ("granularity", "criterion", "allocate", "schedule", *allowed):
            problems.add(f"its {slot} ({type(part).__name__}) wants the whole model")
    for evidence in recipe.criterion.asks().values():
        name = type(evidence).__name__.removesuffix("Evidence")
        if evidence.reads == "labels" or "backward" in evidence.passes:
            problems.add(
                f"{type(recipe.criterion).__name__} scores with gradients or losses ({name}), and these need the "
                f"whole model in memory"
            )
        elif type(evidence) not in LOCAL:
            problems.add(f"{type(recipe.criterion).__name__} asks for {name}, which no block can tell by itself")
    if asked := recipe.allocate.asks():
        problems.add(f"{type(recipe.allocate).__name__} asks for {', '.join(asked)} of the whole model")
    problems.raise_if_any(SpecError)


def short(batch: Batch) -> Any:
    """The first sample of a batch, and of token ids the first `SHORT`."""
    sizes = [t.shape[0] for t in tensors_in(batch) if t.dim() > 0]
    rows = sizes[0] if sizes else 0

    def cut(tensor: Tensor) -> Tensor:
        found = tensor[:1] if tensor.dim() > 0 and tensor.shape[0] == rows and rows > 1 else tensor
        tokens = not tensor.is_floating_point() and tensor.dim() == 2
        return (found[:, :SHORT] if tokens else found).clone()

    return mapped(batch, cut)


class Scored(Sequence[Call]):
    """The calls of a block by the first `count` batches; those behind them are of the short samples."""

    def __init__(self, visit: Visit, count: int) -> None:
        self._calls, self._count = visit.calls, sum(i < count for i in visit.which)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Call]: ...
    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._calls[index]


def keywords(block: nn.Module, call: Call) -> dict[str, Any]:
    """A call as keywords, by the names that the block's forward gives its arguments.

    Errors: `SpecError` for a forward that takes any number of positional arguments and was given some.
    """
    names = inspect.signature(type(block).forward)
    bound = names.bind(block, *call.args, **call.kwargs).arguments
    found: dict[str, Any] = {}
    for at, (name, value) in enumerate(bound.items()):
        kind = names.parameters[name].kind
        if at == 0:
            continue
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY) and value:
            raise SpecError(f"{type(block).__name__}.forward takes arguments without names: {IN_MEMORY}")
        else:
            found[name] = value
    return found


def in_model(block: str, group: Group) -> Group:
    """A group of a block by the names that the model has for it."""
    start = f"{block}." if block else ""
    members = tuple(replace(m, param=f"{start}{m.param}") for m in group.members)
    return replace(group, name=f"{start}{group.name}", members=members)


@contextmanager
def bare(block: nn.Module) -> Iterator[None]:
    """The block with its own forward, not the one that `walk` puts in its place, so that copies of it are of it."""
    own = block.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if own is not None:
            block.__dict__["forward"] = own


def laid(folder: Path, parts: Iterable[Checkpoint]) -> Checkpoint:
    """Tensors of several checkpoints as one, with the folder's config.json."""
    made = Checkpoint.__new__(Checkpoint)
    made.folder, made.taken, made.entries = folder, 0, {}
    for one in parts:
        made.entries |= one.entries
    return made


def renamed(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """Tensors of a checkpoint under other names (new -> old); the others are left out."""
    made = laid(checkpoint.folder, ())
    made.entries = {new: checkpoint.entries[old] for new, old in names.items()}
    return made


def elements(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    """How many numbers these tensors hold."""
    return sum(prod(checkpoint.entries[n].shape) for n in names)


def write_folder(
    folder: Path,
    source: Checkpoint,
    files: Mapping[str, Checkpoint],
    texts: Mapping[str, str],
    part: Path,
    *,
    indexed: bool = True,
) -> None:
    """Put a folder together and exchange it for what is there; `part`, where its shards waited, is removed.

    Args:
        folder: where to.
        source: whose other files (tokenizer, generation settings) are copied.
        files: shard -> its tensors; a shard that lies ready in `part` under that name is linked, others are copied.
        texts: further files, which take the place of the source's.
        indexed: with the index that transformers reads.
    """
    table = {name: file for file, held in files.items() for name in held.entries}
    total = sum(e.size for held in files.values() for e in held.entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
    try:
        with new_folder(folder, mark=NOTE) as temporary:
            for file, held in files.items():
                origins = {e.file for e in held.entries.values()}
                ready = next(iter(origins)) if len(origins) == 1 else part
                # Only what this run wrote: the folder that is read may have shards of these names.
                if part not in ready.parents or ready.name != file or not _link(ready, temporary / file):
                    write_shard(temporary / file, dict.fromkeys(held.entries, held))
            if indexed:
                (temporary / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            for other in sorted(source.folder.iterdir()):
                if other.is_file() and other.suffix not in WEIGHTS and other.name not in (INDEX, NOTE, *texts):
                    shutil.copyfile(other, temporary / other.name)
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PrunusError(
            f"could not write {folder}: {error}. What was done is in {part}: free space and go on with resume=True"
        ) from error
    shutil.rmtree(part)


def _link(ready: Path, place: Path) -> bool:
    try:
        os.link(ready, place)
    except OSError:  # another disk, or a file system without links
        return False
    return True


def alike(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether two lists of tensors are the same to the bit (NaN is NaN)."""
    a, b = list(one), list(other)
    return len(a) == len(b) and all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and (torch.equal(x, y) or (x.is_floating_point() and torch.allclose(x, y, 0.0, 0.0, equal_nan=True)))
        for x, y in zip(a, b, strict=True)
    )
