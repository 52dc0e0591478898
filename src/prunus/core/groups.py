"""Where pruning happens: groups of units, and the views through which everything else sees them.

A `Group` is a set of parameter slices whose units must live or die together (the coupled structures of DepGraph, Fang
et al. 2023, arXiv:2301.12900). Each `Member` maps the group's units to slices of one parameter or buffer. Criteria,
allocations and masks only ever see tensors of the group's shape; this module is the only place that knows how a unit
lies in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from prunus.core.counting import count

Role = Literal["out", "in", "scale", "shift", "bias", "other"]
"""What a member is to its unit.

`out`: the slice of a weight that produces the unit (a filter, a neuron's row, a single weight). `in`: the slice of the
next weight that consumes it. `scale` and `shift`: the affine parameters of a normalization. `bias`: an additive bias.
`other`: parameters and buffers that go with the unit but say nothing about its worth (running statistics, tables).
"""


@dataclass(frozen=True, eq=False)
class Member:
    """One parameter's share of a group.

    Attributes:
        param: the full name of a parameter or buffer (`layer1.0.conv1.weight`).
        dim: the axis whose slices belong to units; None where every element is its own unit.
        index: `[units, r]`, the r positions along `dim` that each unit owns; None is the identity (unit u owns
            slice u).
        role: see `Role`.
        buffer: True where `param` names a buffer, which is compacted but neither scored nor masked.
        unit: the one unit that owns the whole parameter (blocks, layers), with `dim` and `index` left out; None where
            every unit owns slices of it.
        tile: for units that are boxes of the parameter (kernels, blocks): how long a box is along each axis of the
            parameter, which it divides. Units count through the boxes as numbers lie in memory. `dim` is left out.
    """

    param: str
    dim: int | None = None
    index: Int[Tensor, "units r"] | None = None
    role: Role = "out"
    buffer: bool = False
    unit: int | None = None
    tile: tuple[int, ...] | None = None

    def positions(self, units: int) -> Int[Tensor, "units r"]:
        """`[units, r]`: the positions along `dim` of every unit, with the identity written out."""
        return torch.arange(units).unsqueeze(1) if self.index is None else self.index


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are scored, allocated and masked together.

    Attributes:
        name: unique among the groups of a model; for single elements, the parameter's name.
        shape: the unit space. `(rows, columns)` for elements (a convolution's weight is `[out, in*kh*kw]`),
            `(channels,)` for channels, and so on.
        members: every slice that goes when a unit goes.
        weight: the shape of the main weight as it lies in the model (`[out, in, kh, kw]`), which layer-wise density
            rules such as Erdos-Renyi-Kernel need.
        at_least: units that are always kept (layer-collapse guard; 0 allows an empty group).
        multiple: the number of kept units must be a multiple of this.
        parts: the units form this many equal consecutive parts, which must keep equally many units each.
        kind: what one unit is called ("weight", "channel", "neuron", ...), for reports.
    """

    name: str
    shape: tuple[int, ...]
    members: tuple[Member, ...]
    weight: tuple[int, ...] = ()
    at_least: int = 0
    multiple: int = 1
    parts: int = 1
    kind: str = "channel"
    note: str = field(default="", compare=False)

    @property
    def units(self) -> int:
        """How many units there are."""
        return prod(self.shape)

    @property
    def elementwise(self) -> bool:
        """True where each unit is a single weight of a single parameter."""
        first = self.members[0]
        return first.dim is None and first.unit is None and first.tile is None

    @property
    def movable(self) -> bool:
        """False where units are scattered in a parameter, so that removing them leaves zeros and nothing to cut out."""
        return not self.elementwise and self.members[0].tile is None

    def with_role(self, *roles: Role) -> tuple[Member, ...]:
        """The scored members: parameters (not buffers) that play one of `roles`."""
        return tuple(m for m in self.members if m.role in roles and not m.buffer)

    def view(self, member: Member, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "... k"]:
        """`[*shape, k]`: a tensor of the parameter's shape, laid out by unit.

        A view without copying for elements and for identity members along axis 0; one gather otherwise. Of a parameter
        that one unit owns, the rows of the other units are zero.
        """
        if member.unit is not None:
            return self.views((member,), {member.param: tensor})
        if member.tile is not None:
            return _boxes(tensor, member.tile).reshape(*self.shape, -1)
        if member.dim is None:
            return tensor.reshape(*self.shape, 1)
        rows = tensor.movedim(member.dim, 0)
        if member.index is None:
            return rows.reshape(self.units, -1)
        index = member.index.to(tensor.device)
        return rows[index.reshape(-1)].reshape(self.units, -1)

    def views(self, members: Sequence[Member], tensors: Mapping[str, Shaped[Tensor, "..."]]) -> Shaped[Tensor, "... k"]:
        """`[*shape, k]`: the tensors of several members side by side, laid out by unit.

        Units that own whole parameters may own unequally many entries: their rows end in zeros. Cost: `view` for one
        member, a copy otherwise.
        """
        parts = [self.view(m, tensors[m.param]) for m in members if m.unit is None]
        owned: dict[int, list[Tensor]] = {}
        for m in members:
            if m.unit is not None:
                owned.setdefault(m.unit, []).append(tensors[m.param].reshape(-1))
        if owned:
            every = [t for own in owned.values() for t in own]
            longest = max(sum(t.numel() for t in own) for own in owned.values())
            dtype = reduce(torch.promote_types, (t.dtype for t in every))
            rows = torch.zeros(self.units, longest, dtype=dtype, device=every[0].device)
            for unit, own in owned.items():
                start = 0
                for t in own:
                    rows[unit, start : start + t.numel()] = t
                    start += t.numel()
            parts.append(rows.reshape(*self.shape, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def spread(
        self, member: Member, keep: Bool[Tensor, "..."], shape: tuple[int, ...] | torch.Size
    ) -> Bool[Tensor, "..."]:
        """The mask of a parameter of `shape` that keeps exactly the units in `keep` (slices of no unit stay)."""
        if member.unit is not None:
            return keep.reshape(-1)[member.unit].expand(shape)
        if member.tile is not None:
            grid = keep.reshape([n // t for n, t in zip(shape, member.tile, strict=True)])
            for along, length in enumerate(member.tile):
                grid = grid.repeat_interleave(length, along) if length > 1 else grid
            return grid
        if member.dim is None:
            return keep.reshape(shape)
        axis = self.axis_keep(member, keep, shape[member.dim])
        lying = [1] * len(shape)
        lying[member.dim] = -1
        return axis.reshape(lying).expand(shape)

    def axis_keep(self, member: Member, keep: Bool[Tensor, "units"], size: int) -> Bool[Tensor, "size"]:
        """`[size]`: which positions along the member's axis survive."""
        axis = torch.ones(size, dtype=torch.bool, device=keep.device)
        gone = member.positions(self.units).to(keep.device)[~keep.reshape(-1)]
        axis[gone.reshape(-1)] = False
        return axis


def _boxes(tensor: Shaped[Tensor, "..."], tile: tuple[int, ...]) -> Shaped[Tensor, "..."]:
    """A tensor cut into boxes: first the axes that count the boxes, then those inside one. A view."""
    cut = [n for size, length in zip(tensor.shape, tile, strict=True) for n in (size // length, length)]
    axes = range(len(tile))
    return tensor.reshape(cut).permute([*(2 * a for a in axes), *(2 * a + 1 for a in axes)])


def shapes_left(
    shapes: Mapping[str, tuple[int, ...]], groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "*units"]]
) -> dict[str, tuple[int, ...]]:
    """What compaction leaves of the parameters that `masks` (True = keep, by group name) touch; zeros where nothing.

    Single weights and boxes of them stay where they are. No slice may belong to two of the groups.
    """
    left: dict[str, list[int]] = {}
    for group in groups:
        keep = masks.get(group.name)
        if keep is None:
            continue
        gone = group.units - count(keep)
        for m in group.members if gone else ():
            if m.param not in shapes or (m.dim is None and m.unit is None):
                continue
            own = left.setdefault(m.param, list(shapes[m.param]))
            if m.unit is not None:
                own[:] = own if bool(keep.reshape(-1)[m.unit]) else [0] * len(own)
            elif m.dim is not None:
                own[m.dim] = max(0, own[m.dim] - gone * (1 if m.index is None else m.index.shape[1]))
    return {n: tuple(s) for n, s in left.items()}
