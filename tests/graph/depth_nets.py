"""Networks in depth, and what every removal of blocks is held to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph import Edit, compact, masked_, replay_, verify
from prunus.graph.depth.blocks import Blocks, blocks
from tests.graph.proof import disturb


class Residual(nn.Module):
    """Pre-norm, and with an index of its own."""

    def __init__(self, width: int, index: int = 0) -> None:
        super().__init__()
        self.index, self.width = index, width
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x))))


class Stack(nn.Module):
    """What a language model looks like: a list of layers, their number twice, a configuration."""

    class Config:
        def __init__(self, layers: int) -> None:
            self.num_hidden_layers, self.num_heads = layers, layers
            self.layer_types = [("odd" if i % 2 else "even") for i in range(layers)]

    def __init__(self, config: Config, width: int = 8) -> None:
        super().__init__()
        self.config, self.n_layers = config, config.num_hidden_layers
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList(Residual(width, i) for i in range(config.num_hidden_layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(self.n_layers):
            # As key-value caches do, and fails where the layers are not numbered 0, 1, 2, ...
            assert self.layers[i].index == i and self.config.layer_types[i] in ("odd", "even")
            x = self.layers[i](x)
        return self.head(x)


def stack(layers: int = 4) -> Stack:
    return Stack(Stack.Config(layers))


def removed(found: Blocks, seed: int = 0) -> dict[str, Tensor]:
    """Masks that take about half of the blocks of every container away, and never too many."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in found.groups:
        count = max(1, min((group.units + 1) // 2, group.units - group.at_least))
        keep = torch.ones(group.units, dtype=torch.bool)
        keep[torch.randperm(group.units, generator=generator)[:count]] = False
        masks[group.name] = keep
    return masks


def proved(model: nn.Module, example: Any, factory: Callable[[], nn.Module] | None = None) -> tuple[Blocks, nn.Module]:
    """Find blocks, remove half, and hold everything that is promised: the oracle, the count, replay, training."""
    model = disturb(model).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = blocks(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    masks = removed(found)
    small, edits = compact(model, found.groups, masks, example)
    masked = masked_(copy.deepcopy(model), found.groups, masks)
    assert verify(masked, small, example) <= 1e-9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    gone = [
        f"{path}.{entry}".removeprefix(".") if g.twins else name
        for g in found.groups
        for name, entry, stays in zip(g.names, g.entries, masks[g.name].tolist(), strict=True)
        for path in (g.container, *g.twins)
        if not stays
    ]
    expected = sum(p.numel() for n, p in model.named_parameters() if not any(n.startswith(f"{g}.") for g in gone))
    assert gone and sum(p.numel() for p in small.parameters()) == expected
    plain = json.loads(json.dumps([edit.to_dict() for edit in edits]))
    fresh = replay_(factory() if factory else copy.deepcopy(model), [Edit.from_dict(p) for p in plain]).eval()
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        outputs = [m(**example) if isinstance(example, dict) else m(example) for m in (small, fresh)]
    first, second = (o if isinstance(o, Tensor) else o[0] for o in outputs)
    torch.testing.assert_close(first, second)
    small.train()
    out = small(**example) if isinstance(example, dict) else small(example)
    (out if isinstance(out, Tensor) else out[0]).sum().backward()
    torch.optim.SGD(small.parameters(), lr=0.01).step()
    assert any(p.grad is not None and bool(p.grad.any()) for p in small.parameters())
    return found, small


def where(found: Blocks) -> dict[str, tuple[int, ...]]:
    return {group.name: group.entries for group in found.groups}


def outputs_of(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return found
