"""Make a pruned model physically smaller, as a list of edits that can be replayed on a fresh instance.

Parameters and buffers are sliced; the integers in which modules repeat those sizes are repaired (`repair.py`); whole
blocks are dropped last (`depth/drop.py`), so every edit names things as they are in the dense model. The model that is
passed in is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from prunus.core.errors import Problems, SpecError, StructureError
from prunus.core.groups import Group, Member
from prunus.core.task import Example
from prunus.graph.depth.drop import CONTAINERS, BlockGroup, container_of, drop_, drops, entries_of, unshare_
from prunus.graph.duplicate import duplicate
from prunus.graph.mixture.group import ExpertGroup, recount
from prunus.graph.norms import put_right_
from prunus.graph.repair import read, repairs, shapes_of, write_
from prunus.graph.running import computed, unwrap
from prunus.graph.verify import masked_, precise, prove, reference


@dataclass(frozen=True)
class Edit:
    """One structural change, in values that JSON can hold.

    Attributes:
        target: a parameter or buffer (`layer1.0.conv1.weight`), an attribute of a module (`layer1.0.conv1.groups`), or
            the entries of a container (`layer1.*`), by the names that the dense model has. A module of which no entry
            is left becomes an `nn.Identity`.
        dim: the sliced axis (0 for entries); None for an attribute.
        size: the length of that axis, or the number of entries, before.
        keep: half-open ranges of positions along it that stay.
        old: the attribute's value before.
        new: the attribute's value after; of a module that is replaced, what `Nothing` returns in its place.
    """

    target: str
    dim: int | None = None
    size: int = 0
    keep: tuple[tuple[int, int], ...] = ()
    old: Any = None
    new: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        fields = ("target", "dim", "size", "keep") if self.dim is not None else ("target", "old", "new")
        plain = {k: v for k, v in asdict(self).items() if k in fields or (k == "new" and v is not None)}
        return {k: _listed(v) for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Edit:
        """The inverse of `to_dict`, also after a way through JSON."""
        unknown = set(plain) - {"target", "dim", "size", "keep", "old", "new"}
        if unknown or not isinstance(plain.get("target"), str):
            raise SpecError(f"not an edit: {dict(plain)!r}")
        ranges = tuple((int(a), int(b)) for a, b in plain.get("keep", ()))
        return cls(**{**plain, "keep": ranges})

    def positions(self) -> Int[Tensor, "kept"]:
        """The kept positions written out."""
        return torch.tensor([i for a, b in self.keep for i in range(a, b)], dtype=torch.long)


def compact(
    model: nn.Module,
    groups: Sequence[Group],
    masks: Mapping[str, Bool[Tensor, "..."]],
    example: Example | Tensor | None = None,
    verify: bool = True,
) -> tuple[nn.Module, tuple[Edit, ...]]:
    """A smaller copy of `model` without the units that `masks` (True = keep, by group name) removes, and the edits.

    Types, devices, `requires_grad` and ties between parameters are kept. Root-mean-square normalizations over a pruned
    axis are put right (`norms.py`), which rounds their weights once in their own type. With `verify` and an `example`,
    the copy is proved to compute what the masked model computes (`prunus.graph.verify`). Cost: one pass over the kept
    weights, and for the proof two float64 copies and runs.

    Raises:
        SpecError: a mask that fits no group, or that keeps fewer units than the group must keep.
        StructureError: a slice that does not exist in this model, or a copy that no longer runs.
        VerificationError: the copy computes something else.
    """
    inner = unwrap(model)
    slices = slice_edits(inner, groups, masks)
    dropped = _drop_edits(inner, groups, masks)
    small = _copied(inner, slices)
    edits = (*slices, *attribute_edits(inner, small, groups, masks), *dropped)
    for edit in edits:
        if edit.dim is None:
            write_(small, edit.target, edit.new)
    norms = [n for g in groups if g.name in masks for n in getattr(g, "norms", ())]
    changed = put_right_(small, dict(inner.named_parameters(remove_duplicate=False)), norms)
    edits = (*edits, *(Edit(target, old=old, new=new) for target, old, new in changed))
    drop_(small, *_kept(dropped))
    if verify and example is not None:
        prove_compact(inner, groups, masks, small, edits, example)
    return small, edits


def prove_compact(
    model: nn.Module,
    groups: Sequence[Group],
    masks: Mapping[str, Bool[Tensor, "..."]],
    small: nn.Module,
    edits: Iterable[Edit],
    example: Example | Tensor,
) -> float:
    """The largest relative difference between what `small` and the masked model compute, in float64 (`verify`).

    Raises:
        VerificationError: it is larger than round-off.
        StructureError: the small model does not run.
    """
    inner = unwrap(model)
    # Norms that were put right are exact in real numbers, but rounded in the type of the weights.
    rounded = any(isinstance(edit.old, float) for edit in edits) or any(getattr(g, "norms", ()) for g in groups)

    def both(wide: bool) -> tuple[nn.Module, nn.Module]:
        masked = masked_(precise(inner, wide), groups, masks)
        other = compact(masked, groups, masks, verify=False)[0] if rounded else precise(small, wide)
        return reference(masked, groups, masks), other

    return prove(both, example)


def slice_edits(
    model: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]
) -> tuple[Edit, ...]:
    """The slices that `masks` remove, one edit per axis of a parameter or buffer. Nothing is changed."""
    problems = Problems("cannot compact")
    known = {group.name for group in groups}
    for name in sorted(set(masks) - known):
        problems.add(f"the mask {name!r} belongs to no group")
    keeps: dict[tuple[str, int], Tensor] = {}
    tensors = _named(model)
    for group in groups:
        if group.name not in masks:
            continue
        mask = _checked(group, masks[group.name], problems)
        if mask is None:
            continue
        for member in (m for m in group.members if m.unit is None):
            tensor = tensors.get(member.param)
            if tensor is None or member.dim is None or member.dim >= tensor.dim():
                problems.add(f"group {group.name!r}: the model has no axis {member.dim} of {member.param!r}")
                continue
            _remove(keeps, (member.param, member.dim), group, member, mask, tensor.shape[member.dim], problems)
    problems.raise_if_any(StructureError if all("mask" not in p for p in problems.found) else SpecError)
    return tuple(
        Edit(name, dim, keep.numel(), _ranges(keep)) for (name, dim), keep in keeps.items() if not bool(keep.all())
    )


def _drop_edits(
    model: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]
) -> tuple[Edit, ...]:
    """The blocks that `masks` remove, one edit per container. Nothing is changed."""
    edits = []
    for group in groups:
        if isinstance(group, BlockGroup) and group.name in masks:
            mask = masks[group.name].cpu().reshape(-1)
            if group.replaced:
                units = group.instead or tuple(((name, None),) for name in group.names)
                away = [part for unit, stays in zip(units, mask.tolist(), strict=True) if not stays for part in unit]
                for name, new in away:
                    target = entries_of(name)
                    edits.append(Edit(target, 0, len(container_of(model, target)._modules), new=new))
                continue
            keep = torch.ones(group.length, dtype=torch.bool)
            keep[torch.tensor(group.entries)[~mask]] = False
            for target in group.targets:
                found = len(container_of(model, target)._modules)
                if found != group.length:
                    raise StructureError(f"cannot compact: {target} are {found} entries, not {group.length}")
                if not bool(keep.all()):
                    edits.append(Edit(target, 0, group.length, _ranges(keep)))
        elif isinstance(group, ExpertGroup) and group.name in masks:
            keep = masks[group.name].cpu().reshape(-1)
            for target in group.targets if not bool(keep.all()) else ():
                found = len(container_of(model, target)._modules)
                if found != group.units:
                    raise StructureError(f"cannot compact: {target} are {found} experts, not {group.units}")
                edits.append(Edit(target, 0, group.units, _ranges(keep)))
    return tuple(edits)


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _checked(group: Group, mask: Bool[Tensor, "..."], problems: Problems) -> Bool[Tensor, "units"] | None:
    if not group.movable:
        what = "single weights, alone or in boxes"
        problems.add(f"group {group.name!r} consists of {what}: only structured masks can be made physical")
        return None
    if mask.dtype != torch.bool or tuple(mask.shape) != group.shape:
        problems.add(f"the mask of group {group.name!r} is {mask.dtype} {tuple(mask.shape)}, not bool {group.shape}")
        return None
    mask = mask.detach().cpu().reshape(-1)
    least = min(group.at_least if isinstance(group, BlockGroup) else max(group.at_least, 1), group.units)
    if int(mask.sum()) < least:
        problems.add(f"the mask of group {group.name!r} keeps {int(mask.sum())} of {group.units} units")
        return None
    return mask


def _remove(
    keeps: dict[tuple[str, int], Tensor],
    key: tuple[str, int],
    group: Group,
    member: Member,
    mask: Bool[Tensor, "units"],
    size: int,
    problems: Problems,
) -> None:
    gone = member.positions(group.units)[~mask].reshape(-1)
    if member.positions(group.units).max() >= size:
        problems.add(f"group {group.name!r} reaches beyond axis {member.dim} of {member.param!r} ({size})")
        return
    keeps.setdefault(key, torch.ones(size, dtype=torch.bool))[gone] = False


def attribute_edits(
    model: nn.Module, small: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]
) -> tuple[Edit, ...]:
    """What modules repeat of the sizes that changed between `model` and `small`."""
    smaller = {n.rpartition(".")[0] for g in groups if g.name in masks for n in getattr(g, "statistics", ())}
    found = repairs(model, shapes_of(model), shapes_of(small), smaller)
    edits = [Edit(target, old=old, new=new) for target, old, new in found]
    known = {edit.target for edit in edits}
    edits += [Edit(t, old=old, new=new) for t, old, new in recount(model, groups, masks) if t not in known]
    sizes: dict[str, Tensor] = {}
    for group in groups:
        for member in getattr(group, "sizes", ()):
            if group.name in masks:
                gone = member.positions(group.units)[~masks[group.name].cpu().reshape(-1)].reshape(-1)
                old = read(model, member.param)
                sizes.setdefault(member.param, torch.ones(old, dtype=torch.bool))[gone] = False
    edits += [
        Edit(target, old=keep.numel(), new=int(keep.sum())) for target, keep in sizes.items() if not bool(keep.all())
    ]
    return tuple(edits)


def _copied(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """A deep copy whose sliced tensors are never copied whole. Sharing is kept: a copy is made once per object."""
    by_name: dict[str, list[Edit]] = {}
    for edit in edits:
        by_name.setdefault(edit.target, []).append(edit)
    tensors = _named(model)
    same: dict[tuple[Any, ...], Tensor] = {}
    memo: dict[int, Any] = computed(model)
    for name, own in by_name.items():
        tensor = tensors[name]
        small = tensor.detach()
        for edit in own:
            assert edit.dim is not None
            small = small.index_select(edit.dim, edit.positions().to(small.device))
        same[_memory(tensor)] = small
    for tensor in tensors.values():
        found = same.get(_memory(tensor))
        if found is not None and id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, found)
    try:
        return duplicate(model, memo)
    except (RuntimeError, TypeError) as error:
        raise StructureError(f"the model cannot be copied ({error}); compaction works on a deep copy") from error


def _like(old: Tensor, data: Tensor) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return data
    fresh = nn.Parameter(data, requires_grad=old.requires_grad)
    if type(old) is not nn.Parameter:
        fresh.__class__ = type(old)
    fresh.__dict__.update(vars(old))
    return fresh


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.is_meta or tensor.untyped_storage().data_ptr() == 0:
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def replay_(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """Apply recorded edits to a fresh instance of the model's class, in place; returns it.

    Values of the weights do not matter (they are loaded afterwards). Every edit is checked before the first is applied.

    Raises:
        StructureError: an edit does not fit this model (another architecture or other constructor arguments).
    """
    edits = tuple(edits)
    problems = Problems("the recorded structure does not fit this model")
    tensors = _named(model)
    for edit in edits:
        if edit.dim is None:
            if (found := read(model, edit.target)) != _tupled(edit.old):
                problems.add(f"{edit.target} is {found!r}, not {edit.old!r}")
            continue
        if drops(edit.target):
            container = container_of(model, edit.target)
            if len(container._modules) != edit.size:
                problems.add(f"{edit.target} are {len(container._modules)} blocks, but there were {edit.size}")
            elif edit.keep and not isinstance(container, CONTAINERS):
                problems.add(f"{edit.target} is no container of blocks")
            continue
        tensor = tensors.get(edit.target)
        if tensor is None or edit.dim >= tensor.dim() or tensor.shape[edit.dim] != edit.size:
            shape = None if tensor is None else tuple(tensor.shape)
            problems.add(f"{edit.target} has shape {shape}, but axis {edit.dim} was {edit.size}")
    problems.raise_if_any(StructureError)
    same: dict[tuple[Any, ...], list[Tensor]] = {}
    for tensor in {id(t): t for t in tensors.values()}.values():
        same.setdefault(_memory(tensor), []).append(tensor)
    unshare_(model)
    for edit in edits:
        if edit.dim is None:
            write_(model, edit.target, _tupled(edit.new))
            continue
        if drops(edit.target):
            continue
        tensor = tensors[edit.target]
        shared = same[_memory(tensor)]
        small = tensor.detach().index_select(edit.dim, edit.positions().to(tensor.device))
        for twin in shared:
            twin.data = small
            twin.grad = None
        same[_memory(tensor)] = shared
    drop_(model, *_kept(edit for edit in edits if drops(edit.target)))
    return model


def _kept(dropped: Iterable[Edit]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """What `drop_` takes."""
    dropped = tuple(dropped)
    instead = {edit.target: edit.new for edit in dropped if edit.new is not None}
    return {edit.target: edit.positions().tolist() for edit in dropped}, instead


def _ranges(keep: Bool[Tensor, "size"]) -> tuple[tuple[int, int], ...]:
    kept = keep.nonzero().reshape(-1).tolist()
    if not kept:
        return ()
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(kept)) if b != a + 1]
    return tuple((kept[i], kept[j - 1] + 1) for i, j in pairwise([0, *cuts, len(kept)]))


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple | list) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
