"""An order of inputs in which patterns of n out of m keep more."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import require


def arranged(scores: Float[Tensor, "out in"], n: int, m: int) -> Int[Tensor, "in"]:
    """Which input comes first, second and so on, so that the n best of every m hold much of the score."""
    optimize = require("scipy.optimize", extra="solve", why="channel permutation solves linear assignments")
    worth = scores.masked_fill(~scores.isfinite(), 0.0)
    width = worth.shape[1]
    ranked = worth.sum(0).argsort(stable=True).reshape(m, width // m)
    ranked[1::2] = ranked[1::2].flip(1)
    blocks = ranked.T.contiguous()  # [blocks, m]: the inputs of each block
    for place in range(m):
        others = torch.cat([blocks[:, :place], blocks[:, place + 1 :]], 1)
        gain = gains(worth, blocks[:, place], others, n)
        _, given = optimize.linear_sum_assignment(gain.cpu().numpy(), maximize=True)
        blocks[:, place] = blocks[torch.from_numpy(given).to(blocks.device), place]
    return blocks.reshape(-1)


def gains(
    worth: Float[Tensor, "out in"], some: Int[Tensor, "blocks"], others: Int[Tensor, "blocks k"], n: int
) -> Float[Tensor, "blocks blocks"]:
    """`[block, input]`: what stays of the score beyond the n - 1 best others where an input joins a block: itself, or
    the n-th of the others, whichever is more.
    """
    joining = worth[:, some]
    edges = worth[:, others].sort(dim=2, descending=True).values[:, :, n - 1]
    return torch.stack([torch.maximum(joining, edge.unsqueeze(1)).sum(0) for edge in edges.T])
