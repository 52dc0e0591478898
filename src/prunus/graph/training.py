"""Take an optimizer along when a model becomes smaller, so that training goes on without a jump.

What an optimizer remembers of a parameter (momentum, second moments) is laid out like the parameter. It is cut by the
edits that cut the parameter, so every kept weight takes the step that it would have taken in the masked model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from prunus.core.errors import Problems, SpecError, StructureError
from prunus.graph.compact import Edit
from prunus.graph.depth.drop import CONTAINERS, container_of, drops, names_after
from prunus.graph.running import unwrap

Cuts = dict[int, Int[Tensor, "kept"]]
"""Axis of a parameter -> the positions along it that stay."""

O = TypeVar("O", bound=torch.optim.Optimizer)  # noqa: E741 - the usual name would be no clearer


@dataclass(frozen=True, eq=False)
class _Move:
    """One parameter's way from the old model into the new one.

    Attributes:
        name: its name in the old model.
        old: the parameter there.
        new: the parameter in the new model; None if the block that held it was dropped.
        cuts: what stays of it.
    """

    name: str
    old: Tensor
    new: Tensor | None
    cuts: Cuts = field(default_factory=dict)


def compact_optimizer(optimizer: O, old_model: nn.Module, new_model: nn.Module, edits: Iterable[Edit]) -> O:
    """A new optimizer of the same class over the compact model, with what the old one remembers of the kept weights.

    Args:
        optimizer: what trained `old_model`; it is not changed. Options of its parameter groups (learning rates, decay)
            are copied. Step hooks, and the scheduler that follows the old one, are not: make a scheduler for the new
            one and load the old one's `state_dict`, or use `compact_optimizer_`, which needs neither.
        old_model: the masked model that `compact` was given.
        new_model: the model that `compact` gave, on whatever device it is now.
        edits: what `compact` recorded.

    Tensors of a parameter's shape are cut as the parameter is; numbers and tensors of one entry (step counts) are
    copied; factored ones (row and column statistics, as of Adafactor, Shazeer & Stern 2018, arXiv:1804.04235) are cut
    along the axes that they keep. Parameters of other modules (a loss with weights) stay as they are.

    With masks held (gradients of removed weights zero), training goes on exactly as in the masked model for every
    method that treats weights one by one (SGD, Adam, AdamW, RMSprop, ...). Methods that average over a whole tensor
    (Adafactor, LAMB) average over the kept weights only from now on, and the weights of a normalization that compaction
    put right are other numbers, which take other steps.
    Cost: one copy of the kept part of the state.

    Raises:
        SpecError: the optimizer holds no parameter of `old_model`.
        StructureError: the edits do not lead from the old model to the new one, or a state tensor is laid out in a way
            that cannot be derived from the parameter's shape. Nothing was changed.
    """
    return _moved(optimizer, old_model, new_model, edits, in_place=False)


def compact_optimizer_(optimizer: O, old_model: nn.Module, new_model: nn.Module, edits: Iterable[Edit]) -> O:
    """`compact_optimizer` in place: the same object now trains `new_model`; returns it.

    Schedulers, gradient scalers and wrappers that hold the optimizer go on with it. The old model is no longer trained.
    """
    return _moved(optimizer, old_model, new_model, edits, in_place=True)


def _moved(optimizer: O, old_model: nn.Module, new_model: nn.Module, edits: Iterable[Edit], in_place: bool) -> O:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SpecError(f"a torch.optim.Optimizer can be compacted, this is a {type(optimizer).__name__}")
    family = _family(optimizer)
    moves = _moves(unwrap(old_model), unwrap(new_model), tuple(edits))
    held = {id(p) for o in family for group in o.param_groups for p in group["params"]}
    if not held & moves.keys():
        raise SpecError(
            f"this {type(optimizer).__name__} holds none of the old model's parameters: it was made for another copy "
            "of the model, or was compacted already"
        )
    memo = _memo(moves, old_model, new_model)
    problems = Problems("cannot compact the optimizer")
    states = [_state(o, moves, memo, problems, in_place) for o in family]
    problems.raise_if_any(StructureError)
    if in_place:
        target = optimizer
    else:
        target = _twin(optimizer, memo)
        family = _family(target)
    for group in {id(g): g for o in family for g in o.param_groups}.values():
        _regroup_(group, moves)
    for one, state in zip(family, states, strict=True):
        one.state.clear()
        one.state.update(state)
    return target


# From one model to the other ------------------------------------------------------------------------------------------


def _moves(old: nn.Module, new: nn.Module, edits: tuple[Edit, ...]) -> dict[int, _Move]:
    """The way of every parameter of the old model, by its id."""
    problems = Problems("the edits do not lead from the old model to the new one")
    rename = _renamer(old, tuple(e for e in edits if e.dim is not None and drops(e.target)))
    names = dict(old.named_parameters(remove_duplicate=False))
    there = dict(new.named_parameters(remove_duplicate=False))
    cuts: dict[tuple[Any, ...], Cuts] = {}
    for edit in edits:
        parameter = names.get(edit.target)
        if edit.dim is None or parameter is None:
            continue
        positions, own = edit.positions(), cuts.setdefault(_memory(parameter), {})
        if edit.dim >= parameter.dim() or parameter.shape[edit.dim] != edit.size:
            problems.add(f"{edit.target} has shape {tuple(parameter.shape)}, but axis {edit.dim} was {edit.size}")
        elif edit.dim in own and not torch.equal(own[edit.dim], positions):
            problems.add(f"{edit.target} is cut in two ways along axis {edit.dim}")
        own[edit.dim] = positions
    problems.raise_if_any(StructureError)
    moves: dict[int, _Move] = {}
    for name, parameter in names.items():
        own = cuts.get(_memory(parameter), {})
        target = rename(name)
        if target is None:
            moves.setdefault(id(parameter), _Move(name, parameter, None))
            continue
        expected = tuple(len(own[d]) if d in own else n for d, n in enumerate(parameter.shape))
        found = there.get(target)
        if found is None or tuple(found.shape) != expected:
            shape = "missing" if found is None else tuple(found.shape)
            problems.add(f"{target} is {shape} in the new model and should be {expected}")
        # A shared parameter stays as long as one of its names does.
        elif id(parameter) not in moves or moves[id(parameter)].new is None:
            moves[id(parameter)] = _Move(name, parameter, found, own)
    problems.raise_if_any(StructureError)
    return moves


def _renamer(old: nn.Module, dropped: tuple[Edit, ...]) -> Callable[[str], str | None]:
    """How names change where entries of containers were dropped; None for what went with them."""
    tables: dict[str, dict[str, str | None]] = {}
    replaced: set[str] = set()
    for edit in dropped:
        container, path = container_of(old, edit.target), edit.target.removesuffix("*")
        if not isinstance(container, CONTAINERS):
            replaced.add(path)  # a block that stands as an attribute: nothing of it is left
            continue
        table: dict[str, str | None] = dict.fromkeys(container._modules)
        table |= names_after(container, edit.positions().tolist())
        tables[path] = table

    def rename(name: str) -> str | None:
        steps, path = [], ""
        for step in name.split("."):
            now = tables.get(path, {}).get(step, step)
            if now is None or path in replaced:
                return None
            steps.append(now)
            path += f"{step}."
        return ".".join(steps)

    return rename


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two names of one tensor have in common, also where two parameters were laid over the same values."""
    if tensor.is_meta or tensor.untyped_storage().data_ptr() == 0:
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


# The optimizer --------------------------------------------------------------------------------------------------------


def _family(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """An optimizer and those that it steps itself (look-ahead, sharpness-aware and other wrappers)."""
    found = {id(optimizer): optimizer}
    waiting = [optimizer]
    while waiting:
        for value in vars(waiting.pop()).values():
            if isinstance(value, torch.optim.Optimizer) and id(value) not in found:
                found[id(value)] = value
                waiting.append(value)
    # A wrapper that only passes its inner optimizer's state on has none of its own.
    return list({id(o.state): o for o in found.values()}.values())


def _memo(moves: Mapping[int, _Move], old_model: nn.Module, new_model: nn.Module) -> dict[int, Any]:
    """For deep copies: what refers to the old model refers to the new one afterwards."""
    memo: dict[int, Any] = {k: m.old if m.new is None else m.new for k, m in moves.items()}
    return memo | {id(old_model): new_model, id(unwrap(old_model)): unwrap(new_model)}


def _twin(optimizer: O, memo: dict[int, Any]) -> O:
    """An optimizer like this one over the new parameters; its state is to be filled in."""
    memo = dict(memo)
    for one in _chain(optimizer):
        memo[id(one)] = type(one).__new__(type(one))
        # Parameters of other modules are trained on, not copied.
        memo |= {id(p): memo.get(id(p), p) for group in one.param_groups for p in group["params"]}
    for one in _chain(optimizer):
        twin = memo[id(one)]
        own = {
            k: v
            for k, v in vars(one).items()
            # Hooks belong to the old optimizer, and so does a step() that a scheduler has wrapped.
            if k != "state" and not k.startswith("_optimizer_") and not callable(getattr(type(one), k, None))
        }
        try:
            vars(twin).update({k: copy.deepcopy(v, memo) for k, v in own.items()})
        except (TypeError, RuntimeError) as error:
            raise StructureError(
                f"this {type(one).__name__} cannot be copied ({error}): use compact_optimizer_, which changes it"
            ) from error
        if "state" in vars(one):
            vars(twin)["state"] = copy.copy(one.state)
            vars(twin)["state"].clear()
        twin.__setstate__({})
    made: O = memo[id(optimizer)]
    return made


def _chain(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """The optimizer after those that it holds."""
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer):
            yield from _chain(value)
    yield optimizer


def _regroup_(group: dict[str, Any], moves: Mapping[int, _Move]) -> None:
    """Replace the parameters of one group, in place; those of dropped blocks leave it, with their names."""
    kept = []
    for i, old in enumerate(group["params"]):
        # What is in no move is of another module, or new already.
        new = moves[id(old)].new if id(old) in moves else old
        if new is not None:
            kept.append((i, new))
    if "param_names" in group:
        group["param_names"] = [group["param_names"][i] for i, _ in kept]
    group["params"][:] = [p for _, p in kept]


# Its state ------------------------------------------------------------------------------------------------------------


def _state(
    optimizer: torch.optim.Optimizer,
    moves: Mapping[int, _Move],
    memo: Mapping[int, Any],
    problems: Problems,
    in_place: bool,
) -> dict[Any, Any]:
    """The state that belongs to the new parameters. Nothing is changed."""
    if isinstance(optimizer, torch.optim.LBFGS):
        problems.add(
            "L-BFGS keeps directions over all weights in one vector: make a new one for the compact model, its "
            "curvature is gathered again within its history"
        )
        return {}
    found: dict[Any, Any] = {}
    for key, value in optimizer.state.items():
        move = moves.get(id(key))
        if move is None:
            found[key] = value if in_place else copy.deepcopy(value, dict(memo))
        elif move.new is not None:
            plain = in_place and not move.cuts
            found[move.new] = value if plain else _cut(value, move, dict(memo), problems, f"{move.name}: the state")
    return found


def _cut(value: Any, move: _Move, memo: dict[int, Any], problems: Problems, where: str) -> Any:
    """One value of a parameter's state, of whatever nesting, without what was removed."""
    if isinstance(value, Tensor):
        cuts = _along(value, move, where)
        if cuts is None:
            problems.add(
                f"{where} is {tuple(value.shape)}, of which it cannot be said how it lies along a parameter of "
                f"{tuple(move.old.shape)}: drop it from the optimizer's state, or make a new optimizer"
            )
            return value
        return _sliced(value, cuts).to(move.new.device if value.device == move.old.device else value.device)  # type: ignore[union-attr]
    if isinstance(value, Mapping) and type(value) is dict:
        return {k: _cut(v, move, memo, problems, f"{where} {k!r}") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cut(v, move, memo, problems, f"{where}[{i}]") for i, v in enumerate(value))
    return copy.deepcopy(value, memo)


def _along(value: Shaped[Tensor, "..."], move: _Move, where: str) -> Cuts | None:
    """What stays of a state tensor, axis by axis; None where its shape does not tell."""
    shape, own = tuple(move.old.shape), tuple(value.shape)
    if own == shape:
        return move.cuts
    if value.numel() == 1:
        return {}
    if len(own) == len(shape) and all(n in (1, size) for n, size in zip(own, shape, strict=True)):
        return {d: keep for d, keep in move.cuts.items() if own[d] != 1}
    ways = [axes for axes in combinations(range(len(shape)), len(own)) if tuple(shape[a] for a in axes) == own]
    found = [{i: move.cuts[a] for i, a in enumerate(axes) if a in move.cuts} for axes in ways]
    if found and all(_same(found[0], other) for other in found[1:]):
        return found[0]
    # Of a square matrix the shape does not tell rows from columns, but the name may: the statistics of rows are
    # averages over the last axis, those of columns over the last but one.
    for word, dropped in (("row", len(shape) - 1), ("col", len(shape) - 2)):
        axes = tuple(a for a in range(len(shape)) if a != dropped)
        if where.endswith(f"_{word}'") and axes in ways:
            return found[ways.index(axes)]
    return None


def _same(a: Cuts, b: Cuts) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _sliced(value: Shaped[Tensor, "..."], cuts: Cuts) -> Shaped[Tensor, "..."]:
    """A copy with the kept positions of every cut axis, in the memory format of the original."""
    if not cuts:
        return value.detach().clone()
    with torch.no_grad():
        for dim, keep in cuts.items():
            value = value.index_select(dim, keep.to(value.device))
    return value.detach()
