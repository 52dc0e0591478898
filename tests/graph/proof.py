"""What every test of the dependency engine asserts: refused or equal, never wrong."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.graph import Structure, compact, masked_, trace, verify
from prunus.graph.running import computed
from prunus.graph.verify import NARROW, outputs, precise, reference, typed

TIGHT = 1e-9


def some(structure: Structure, fraction: float, seed: int = 1) -> dict[str, Tensor]:
    """Random masks that remove `fraction` of the units of every group, at least one and never all."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in structure.groups:
        count = min(max(round(fraction * group.units), 1), group.units - 1)
        if group.multiple > 1:
            count = group.units - max(round((group.units - count) / group.multiple), 1) * group.multiple
        keep = torch.ones(group.units, dtype=torch.bool)
        keep[torch.randperm(group.units, generator=generator)[:count]] = False
        masks[group.name] = keep
    return masks


def disturb(model: nn.Module) -> nn.Module:
    """Weights without zeros, ones and other constants behind which a mistake could hide."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def check_partition(model: nn.Module, structure: Structure) -> None:
    """Every position along every axis belongs to at most one unit, and exists."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    seen: dict[tuple[str, int], set[int]] = {}
    names = [group.name for group in structure.groups]
    assert len(set(names)) == len(names)
    for group in structure.groups:
        assert group.units >= 2 and group.members[0].role == "out" and not group.members[0].buffer
        for member in group.members:
            assert member.dim is not None
            own = member.positions(group.units).reshape(-1).tolist()
            taken = seen.setdefault((member.param, member.dim), set())
            assert len(set(own)) == len(own) and not taken & set(own)
            assert min(own) >= 0 and max(own) < tensors[member.param].shape[member.dim]
            taken |= set(own)


def prove(model: nn.Module, example: Any, fraction: float = 0.4, exact: bool = True) -> tuple[Structure, nn.Module]:
    """Trace, remove random units of every group, and assert that compact equals masked in float64.

    Unless `exact`, the masked model is run with the statistics of its normalizations taken over what is kept.
    """
    model = disturb(model).eval()
    structure = trace(model, example, exact=exact)
    check_partition(model, structure)
    masks = some(structure, fraction)
    small, _ = compact(model, structure.groups, masks, example, verify=False)
    tol = tolerance(model, example)
    unscaled = unrounded(model, structure, masks, small) if tol == TIGHT else small
    masked = masked_(copy.deepcopy(model, computed(model)), structure.groups, masks)
    assert verify(reference(masked, structure.groups, masks), unscaled, example, tol) <= tol
    for name, parameter in small.named_parameters():
        assert parameter.is_leaf and parameter.dtype == dict(model.named_parameters())[name].dtype
    return structure, small


def unrounded(model: nn.Module, structure: Structure, masks: dict[str, Tensor], small: nn.Module) -> nn.Module:
    """`small`, or where the weights of norms were scaled (and so rounded in their own type), the same in float64."""
    if not any(getattr(group, "norms", ()) for group in structure.groups):
        return small
    return compact(precise(model), structure.groups, masks, verify=False)[0]


def tolerance(model: nn.Module, example: Any) -> float:
    """1e-9, or what float32 allows where a kernel of the model does not exist in float64."""
    try:
        outputs(precise(model), typed(example, True))
    except DataError:
        return NARROW
    return TIGHT


def producers(structure: Structure) -> set[str]:
    """The weights of which units can be removed."""
    return {m.param for group in structure.groups for m in group.with_role("out")}
