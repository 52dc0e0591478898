"""Counting masks: asked after every event for every layer, so it must cost next to nothing."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


def count(mask: Bool[Tensor, "..."]) -> int:
    """How many entries are True.

    On the CPU numpy counts: `Tensor.sum` of a bool mask first makes 64-bit numbers of it, some forty times slower. A
    mask that is one value spread over a shape (`all_kept`) is not read at all.
    """
    if mask.numel() and not any(mask.stride()) and mask.ndim:
        return mask.numel() * int(mask[(0,) * mask.ndim])
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.detach().numpy()))
    return int(mask.count_nonzero())


def count_rows(mask: Bool[Tensor, "rows n"]) -> Int[Tensor, "rows"]:
    """How many entries of every row are True."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.detach().numpy(), axis=1))
    return mask.sum(1)


def full(mask: Bool[Tensor, "..."]) -> bool:
    """Whether every entry is True."""
    return count(mask) == mask.numel()
