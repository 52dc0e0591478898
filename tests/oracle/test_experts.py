"""Experts that lie in one tensor: each is scored by the tokens that are routed to it, whichever way it is computed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.core.errors import PrunusWarning

transformers = pytest.importorskip("transformers")

EXPERTS = 6


def mixture(implementation: str) -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    config._experts_implementation = implementation
    return transformers.MixtralForCausalLM(config).eval()


def tokens(count: int, batches: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(64, (1, count), generator=generator)} for _ in range(batches)]


def keep_by_row(w: Tensor, norm: Tensor) -> Tensor:
    """Wanda in a loop: the better half of each row by |w| ||x||, of equals the earlier."""
    keep = torch.zeros_like(w, dtype=torch.bool)
    for i, row in enumerate(w.double().abs() * norm):
        best = sorted(range(len(row)), key=lambda j, row=row: (-float(row[j]), j))[: len(row) - len(row) // 2]
        keep[i, best] = True
    return keep


def by_hand(model: Any, batches: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], set[int]]:
    """The masks of the first layer's experts, from what its router gave; and the experts that got nothing."""
    experts = model.model.layers[0].mlp.experts
    seen: list[tuple[Tensor, Tensor]] = []
    hook = experts.register_forward_pre_hook(lambda _m, args: seen.append((args[0].detach(), args[1].detach())))
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)
    hook.remove()
    into: list[list[Tensor]] = [[] for _ in range(EXPERTS)]
    for hidden, chosen in seen:
        for token, own in zip(hidden.reshape(-1, hidden.shape[-1]), chosen.reshape(-1, 2).tolist(), strict=True):
            for e in own:
                into[e].append(token)
    inner = []
    for e, rows in enumerate(into):
        outputs = [F.linear(x, experts.gate_up_proj[e]).detach() for x in rows]
        inner.append([F.silu(y[:24]) * y[24:] for y in outputs])
    masks = {}
    for name, given in (("gate_up_proj", into), ("down_proj", inner)):
        everything = torch.stack([x for rows in given for x in rows]).double().square().mean(0).sqrt()
        p = getattr(experts, name).detach()
        norms = [torch.stack(rows).double().square().mean(0).sqrt() if rows else everything for rows in given]
        masks[f"model.layers.0.mlp.experts.{name}"] = torch.stack([keep_by_row(p[e], norms[e]) for e in range(EXPERTS)])
    return masks, {e for e, rows in enumerate(into) if not rows}


@pytest.mark.parametrize("count", [40, 2])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_wanda_of_every_expert(implementation: str, count: int) -> None:
    model = mixture(implementation)
    expected, idle = by_hand(model, tokens(count))
    assert bool(idle) == (count == 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = prunus.prune(model, Task(calib=tokens(count)), "wanda", sparsity=0.5)
    for name, mask in expected.items():
        assert torch.equal(result.masks[name], mask), name
        assert bool((dict(result.model.named_parameters())[name] == 0).eq(~mask).all())
    said = [
        str(w.message) for w in told if issubclass(w.category, PrunusWarning) and "no token reached" in str(w.message)
    ]
    assert bool(said) == bool(idle)
    assert all(str(e) in said[0] for e in idle)


class Stack(nn.Module):
    """Matrices `[in, out]` in one tensor, one of them for each half of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(2, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:3] @ self.proj[0], torch.matmul(x[3:], self.proj[-1])])


def test_matrices_that_are_turned() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(6, 5)
    result = prunus.prune(model, Task(calib=[x]), "wanda", sparsity=0.5)
    for e, rows in enumerate((x[:3], x[3:])):
        norm = rows.double().square().mean(0).sqrt()
        scores = model.proj[e].detach().double().abs() * norm[:, None]
        keep = torch.zeros_like(scores, dtype=torch.bool)
        for i, row in enumerate(scores):  # stored as [in, out], rows are the parameter's own
            keep[i, row.argsort(descending=True, stable=True)[:2]] = True
        assert torch.equal(result.masks["proj"][e], keep)
