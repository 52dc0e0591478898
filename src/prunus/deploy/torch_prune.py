"""State of `torch.nn.utils.prune` (`weight_orig` and `weight_mask`), both ways."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunus.core.errors import Problems, SpecError
from prunus.engine.result import Result
from prunus.graph.duplicate import duplicate
from prunus.graph.running import unwrap

_ORIG, _MASK = "_orig", "_mask"


@dataclass(frozen=True, eq=False)
class Plain:
    """A state without the pairs of `torch.nn.utils.prune`.

    Attributes:
        state: name -> tensor, as `prune.remove` on every module leaves it; `load_state_dict` of the model takes it. The
            versions of modules that PyTorch notes beside a state stay with it.
        masks: name of each pruned tensor -> bool of its shape, True = kept.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]


def from_torch_prune(source: nn.Module | Mapping[str, Tensor]) -> Plain:
    """Plain weights and masks of what `torch.nn.utils.prune` pruned; `source` is not changed.

    Args:
        source: a model that it works on, or the state that such a model saved.

    Cost: a copy of the pruned weights. Errors: `SpecError` for a mask or an original without its partner, of another
        shape, or with other numbers than 0 and 1.
    """
    given = source.state_dict() if isinstance(source, nn.Module) else source
    state = dict(given)
    problems = Problems("this is no state of torch.nn.utils.prune")
    found, masks = OrderedDict[str, Tensor](), dict[str, Tensor]()
    if (versions := getattr(given, "_metadata", None)) is not None:
        found._metadata = copy.copy(versions)  # type: ignore[attr-defined]
    for name, tensor in state.items():
        plain = name.removesuffix(_ORIG)
        if plain == name:
            if not (name.endswith(_MASK) and f"{name.removesuffix(_MASK)}{_ORIG}" in state):
                found[name] = tensor
            continue
        mask = state.get(plain + _MASK)
        if mask is None and f"{plain}_u" in state:
            found[name] = tensor  # of `torch.nn.utils.spectral_norm`, which calls what it divides by that name too
        elif mask is None:
            problems.add(f"{name} has no {plain}{_MASK}")
        elif mask.shape != tensor.shape:
            problems.add(f"{plain}{_MASK} is {tuple(mask.shape)} and {name} is {tuple(tensor.shape)}")
        elif not bool(((mask == 0) | (mask == 1)).all()):
            problems.add(f"{plain}{_MASK} holds other numbers than 0 and 1")
        elif plain in state:
            problems.add(f"{plain} is there beside {name}")
        else:
            # In this order and type, as torch computes it before every forward.
            found[plain], masks[plain] = mask.to(tensor.dtype) * tensor.detach(), mask.bool()
    problems.raise_if_any(SpecError)
    return Plain(found, masks)


def to_torch_prune(result: Result) -> nn.Module:
    """A copy of the masked model on which `torch.nn.utils.prune` carries the masks.

    Its `state_dict` has `weight_orig` and `weight_mask` for every parameter of `result.masks`; the originals are the
    pruned weights themselves, zeros included, for others are not known. `prune.remove` makes a module plain again.

    Errors: `SpecError` where a masked parameter is none of the model.
    """
    inner = unwrap(result.model)
    model = duplicate(inner)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            owners.setdefault(id(p), []).append((module, name))
    parameters = dict(model.named_parameters())
    for name, mask in result.masks.items():
        if name not in parameters:
            raise SpecError(f"{name} has a mask and is no parameter of {type(model).__name__}")
        shared: nn.Parameter | None = None
        for module, own in owners[id(parameters[name])]:
            if isinstance(module, torch.jit.ScriptModule):
                raise SpecError(f"{name} is of TorchScript, which torch.nn.utils.prune cannot work on")
            prune.custom_from_mask(module, own, mask.to(parameters[name].device))
            if shared is not None:  # tied weights stay tied
                setattr(module, own + _ORIG, shared)
            shared = getattr(module, own + _ORIG)
    return model


def is_torch_pruned(state: Mapping[str, Tensor]) -> bool:
    """Whether a state holds pairs of `torch.nn.utils.prune`."""
    return any(n.endswith(_ORIG) and n.removesuffix(_ORIG) + _MASK in state for n in state)
