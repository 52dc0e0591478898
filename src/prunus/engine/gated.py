"""A module that reads its weights through gates, and how the numbers of units lie over a weight."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member

FLAT = ("_flat_weights", "_flat_weight_refs")


def gated(kind: type[nn.Module], names: Mapping[str, str], weigh: Callable[[str, Tensor], Tensor]) -> type[nn.Module]:
    """A subclass of a module's class that reads some of its weights through gates.

    names: attribute -> parameter name. weigh: what the network computes with in the place of a named parameter.
    """

    def read(attribute: str, name: str) -> property:
        return property(lambda self: weigh(name, self._parameters[attribute]))

    def copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        # A copy is a plain module with the values of this moment in its weights: it computes what this one does.
        twin: nn.Module = kind.__new__(kind)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy({k: v for k, v in vars(self).items() if k not in FLAT}, memo))
        with torch.no_grad():
            for attribute, name in names.items():
                own, theirs = self._parameters[attribute], twin._parameters[attribute]
                assert own is not None and theirs is not None
                theirs.copy_(weigh(name, own))
        twin.__dict__.update({k: [] for k in FLAT if k in vars(self)})
        reread(twin)
        return twin

    def refused(self: nn.Module, protocol: Any) -> Any:
        raise SpecError("a module with gates in it is not pickled: save its state_dict() and the session's")

    fields: dict[str, Any] = {attribute: read(attribute, name) for attribute, name in names.items()}
    fields |= {"__deepcopy__": copied, "__reduce_ex__": refused, "_gated_by": weigh, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), fields)


def reread(module: nn.Module) -> None:
    """Let a recurrent cell look its weights up anew: it keeps a list of those that it ran with."""
    renew = getattr(module, "_init_flat_weights", None)
    if callable(renew):
        renew()


def spread(group: Group, member: Member, value: Tensor, like: Tensor) -> Tensor:
    """Values of units, laid out over a parameter's shape so that they multiply it; 1 where no unit is."""
    value = value.to(device=like.device, dtype=like.dtype)
    if member.unit is not None:
        return value.reshape(-1)[member.unit]
    if member.tile is not None:
        grid = value.reshape([n // t for n, t in zip(like.shape, member.tile, strict=True)])
        for along, length in enumerate(member.tile):
            grid = grid.repeat_interleave(length, along) if length > 1 else grid
        return grid
    if member.dim is None:
        return value.reshape(like.shape)
    if member.index is None and group.units == like.shape[member.dim]:
        axis = value.reshape(-1)
    else:
        index = member.positions(group.units).to(like.device)
        axis = value.new_ones(like.shape[member.dim])
        axis = axis.index_put((index.reshape(-1),), value.reshape(-1).repeat_interleave(index.shape[1]))
    lying = [1] * like.ndim
    lying[member.dim] = -1
    return axis.reshape(lying)


def owned(group: Group, parameters: Mapping[str, Tensor]) -> float:
    """How many weights one unit of a group owns, on average: of what produces it and of what reads it."""
    members = [m for m in group.with_role("out", "in") if m.param in parameters]
    total = 0.0
    for m in members:
        size = parameters[m.param].numel()
        whole = m.dim is None or m.index is None
        total += size if whole else size * m.positions(group.units).numel() / parameters[m.param].shape[m.dim or 0]
    return total / group.units


def left_of(
    groups: Iterable[Group], shapes: Mapping[str, torch.Size], shares: Mapping[str, Tensor]
) -> tuple[Tensor, float]:
    """How many numbers of all matrices that groups lie over are left, each times the product of what its units count
    for, and how many there are. Units of one axis of a matrix are multiplied before it is summed, so that no product is
    as large as a matrix but where single weights are units.

    shapes: of parameters. shares: group name -> `[*units]`.
    """
    over: dict[str, dict[int | None, Tensor]] = {}
    for group in (g for g in groups if g.name in shares):
        for m in group.members:
            if m.buffer or m.role == "other" or len(shapes.get(m.param, ())) < 2:
                continue
            value = shares[group.name]
            own = spread(group, m, value.expand(group.shape), value.new_empty(()).expand(shapes[m.param]))
            axis = m.dim if m.unit is None and m.tile is None else None
            lying = over.setdefault(m.param, {})
            lying[axis] = lying[axis] * own if axis in lying else own
    left, whole = [], 0
    for name, lying in over.items():
        size, rest = shapes[name].numel(), lying.pop(None, None)
        whole += size
        if rest is not None and rest.numel() > 1:
            for own in lying.values():
                rest = rest * own
            left.append(rest.sum())
            continue
        product = next(iter(shares.values())).new_tensor(float(size))
        for axis, own in lying.items():
            product = product * own.sum() / shapes[name][axis or 0]
        left.append(product if rest is None else product * rest.sum())
    return torch.stack(left).sum(), float(whole)


def wide(theta: Tensor, w: Tensor) -> Tensor:
    """A copy in the weight's type, but single precision at least: small steps of a gate are lost in half precision."""
    return theta.detach().to(torch.promote_types(w.dtype, torch.float32)).clone()
