"""Whether a folder that was written computes what it should: two models run block by block side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.core.task import Batch, Task
from prunus.engine.walk import Visit, tensors, walk
from prunus.stream.shards import Checkpoint
from prunus.stream.shrunk import alike
from prunus.stream.skeleton import Skeleton
from prunus.stream.towers import by_tower

Load = Callable[[Visit], None]
Step = tuple[str, list[Tensor]]


def steps(skeleton: Skeleton, batch: Batch, load: Load, names: Iterable[str]) -> Iterator[Step]:
    """Run a batch through a model of which one block is in memory at a time, by `load` (which is given the visit).
    `names` are the paths of the blocks.

    Yields the path of each block with all tensors that it is called with, and at last the path "" with what the model
    returns. Cost: the blocks' weights are read once.
    """
    last: list[Tensor] = []

    def forward(model: nn.Module, batch: Batch) -> Any:
        output = by_tower(model, batch)
        last.extend(tensors(output))
        return output

    blocks = {n: skeleton.model.get_submodule(n) for n in names}
    before: nn.Module | None = None
    with skeleton.on_demand(blocks):
        for visit in walk(skeleton.model, Task(calib=[batch], forward=forward), blocks, through=True):
            if before is not None:
                skeleton.evict_(before)
            skeleton.release_(blocks)
            yield visit.name, [t.clone() for t in tensors(visit.calls[0])]
            load(visit)
            before = visit.block
    if before is not None:
        skeleton.evict_(before)
    yield "", last


def reads(skeleton: Skeleton, source: Checkpoint | None = None) -> Load:
    """Read a block as it is reached, from the skeleton's own folder or from another checkpoint."""
    return lambda visit: skeleton.load_(skeleton.keys(visit.name), source)


def first_difference(one: Iterator[Step], other: Iterator[Step], names: Mapping[str, str]) -> str | None:
    """The first block of `one` that is not given, to the bit, what its namesake of `other` is given; None if all are,
    and both models return the same.

    names: path in `one` -> path in `other`; blocks of `one` without a namesake are run and not compared.
    """
    try:
        for name, given in one:
            if name and name not in names:
                continue
            path, there = next(other)
            if path != names.get(name, name):
                return f"{path or 'its end'} is reached instead of {names.get(name, name) or 'its end'}"
            if not alike(given, there):
                return f"{path} is given something else" if path else "it returns something else"
        return None
    finally:
        for steps_left in (one, other):
            steps_left.close()  # type: ignore[attr-defined]  # unwinds the forward that waits
