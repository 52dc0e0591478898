"""Masks on parameters: where units lie, zeroing them, and keeping them zero."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError
from prunus.core.groups import Group, Role
from prunus.core.part import Masks
from prunus.engine.shards import local, part

NUMPY_DTYPES = (torch.float32, torch.float64)


def parameter_masks(
    groups: Iterable[Group], masks: Masks, parameters: Mapping[str, Tensor], roles: tuple[Role, ...] | None = None
) -> dict[str, Tensor]:
    """Parameter name -> bool mask of its shape (True = keep), every member of every removed unit included but
    those of the role `other`.

    roles: only members that play one of these (soft pruning zeroes what produces a unit and leaves its consumers
    alone, or no gradient would ever bring it back). A view of the group's mask where a parameter belongs to one group
    of single weights.
    """
    found: dict[str, Tensor] = {}
    for group in groups:
        keep = masks.get(group.name)
        if keep is None:
            continue
        for member in group.members:
            # What is neither scored nor a factor or summand of the unit stays: a direction of weight norm has no zero.
            if member.buffer or member.role == "other" or (roles is not None and member.role not in roles):
                continue
            one = group.spread(member, keep, parameters[member.param].shape)
            found[member.param] = found[member.param] & one if member.param in found else one
    return {n: m.contiguous() for n, m in found.items()}


@torch.no_grad()
def apply_(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Zero what is pruned, in place. Cost: one pass over the masked parameters, no memory."""
    for name, mask in masks.items():
        p, mask = local(parameters[name]), part(mask, parameters[name])
        if p.device.type == "cpu" and p.dtype in NUMPY_DTYPES and p.is_contiguous() and not is_wrapped(p):
            # torch multiplies numbers by a bool through a converted copy of it, five times slower than numpy.
            numbers = p.detach().numpy()
            np.multiply(numbers, mask.numpy(), out=numbers)
            torch.autograd.graph.increment_version(p)  # so that a backward over the old values is refused, as ever
        else:
            p.mul_(mask)


def is_wrapped(p: Tensor) -> bool:
    """A tensor whose numbers lie elsewhere (distributed, quantized, fake), so that only torch may touch them."""
    return type(p) not in (Tensor, nn.Parameter) or p.is_quantized


@torch.no_grad()
def mask_state_(optimizers: Iterable[torch.optim.Optimizer], masks: Mapping[Tensor, Tensor]) -> None:
    """Zero any optimizer's memory of pruned weights: every state tensor that has the parameter's shape."""
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            if p in masks:
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        local(value).mul_(part(masks[p], value))


def digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 of all masks, in order: equal digests mean equal masks."""
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(name.encode())
        sha.update(pack(masks[name]).cpu().numpy().tobytes())
    return sha.hexdigest()


def pack(mask: Tensor) -> Tensor:
    """Eight masks to a byte."""
    flat = mask.reshape(-1).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).reshape(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The masks that `pack` packed."""
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    size = 1
    for n in shape:
        size *= n
    return bits.reshape(-1)[:size].bool().reshape(shape)


def check_ranks(masks: Mapping[str, Tensor]) -> None:
    """Fail where the processes of a distributed run came to different masks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    device = next(iter(masks.values())).device
    own = torch.frombuffer(bytearray(bytes.fromhex(digest(masks))), dtype=torch.uint8).to(device)
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own)
    digests = [bytes(g.tolist()).hex() for g in gathered]
    if len(set(digests)) > 1:
        raise PrunusError(
            f"the {len(digests)} ranks chose different masks ({', '.join(d[:8] for d in digests)}): they must hold "
            f"equal weights, be given the same seed, and average their gradients"
        )
