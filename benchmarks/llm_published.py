"""The published loops of SparseGPT and Wanda over a small model, on the same calibration batches as ours.

Written here from the papers, with the layer routines of benchmarks/solvers.py: a block at a time, the inputs of all its
linear layers taken together in float32 while the blocks before it are pruned and it is whole, then each layer by
itself. The model is small, so it is run anew for every block; nothing of prunus is used but the list of its blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import solvers
import torch
from torch import Tensor, nn

from prunus.engine.walk import blocks_in

Pattern = tuple[int, int] | None


@torch.no_grad()
def published(model: nn.Module, batches: Sequence[Any], method: str, sparsity: float, pattern: Pattern) -> nn.Module:
    """A copy of the model, pruned by the published loop of `wanda` or `sparsegpt`."""
    model = copy.deepcopy(model).eval()
    for block in blocks_in(model).values():
        layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        grams = inputs_of(model, layers, batches)
        for name, layer in layers.items():
            w, gram = layer.weight.detach().float(), grams[name]
            if method == "sparsegpt":
                new = solvers.sparsegpt(w, gram, pattern, share=sparsity)
            else:
                new = solvers.wanda(w, w.abs() * gram.diagonal().sqrt(), pattern, share=sparsity)
            layer.weight.copy_(new)
    return model


def inputs_of(model: nn.Module, layers: dict[str, nn.Linear], batches: Sequence[Any]) -> dict[str, Tensor]:
    """2/n of the sum of x x^T for every layer, in float32; n counts samples."""
    grams: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def hook(name: str) -> Any:
        def add(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            x, samples = args[0].reshape(-1, args[0].shape[-1]).float(), len(args[0])
            old, counts[name] = counts[name], counts[name] + samples
            own = grams.setdefault(name, x.new_zeros(x.shape[1], x.shape[1]))
            own.mul_(old / counts[name]).addmm_(x.T, x, alpha=2 / counts[name])

        return add

    handles = [m.register_forward_hook(hook(n)) for n, m in layers.items()]
    for batch in batches:
        _ = model(**batch) if isinstance(batch, dict) else model(batch)
    for handle in handles:
        handle.remove()
    return grams
