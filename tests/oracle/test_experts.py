"""Experts that lie in one tensor: each is scored by the tokens that are routed to it, whichever way it is computed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.core.errors import PrunusWarning
from prunus.parts.allocation import Uniform

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


class Upright(nn.Module):
    """Matrices `[out, in]` in one tensor, one of them for each half of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x[:3], self.proj[0]), F.linear(x[3:], self.proj[1])])


class Apart(nn.Module):
    """A linear map for each matrix."""

    def __init__(self, matrices: list[Tensor]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(5, 4, bias=False) for _ in range(2))
        for own, w in zip(self.maps, matrices, strict=True):
            own.weight.data = w.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.maps[0](x[:3]), self.maps[1](x[3:])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [Stack, Upright])
def test_sparsegpt_of_every_matrix(kind: type[Stack | Upright], dtype: torch.dtype) -> None:
    """What each matrix would become as a layer of its own, with as many weights kept."""
    torch.manual_seed(0)
    stack, x = kind().to(dtype), [torch.randn(6, 5, dtype=dtype) for _ in range(4)]
    turned = kind is Stack
    recipe = replace(prunus.methods.get("sparsegpt"), sweep="model")
    if not turned:
        recipe = replace(recipe, allocate=Uniform(within="row"))
    ours = prunus.prune(stack, Task(calib=x), recipe, sparsity=0.4)
    for e in range(2):
        apart = Apart([m.T if turned else m for m in stack.proj])
        mask, w = (t[e].T if turned else t[e] for t in (ours.masks["proj"], ours.model.proj))
        share = 1 - float(mask.double().mean())
        theirs = prunus.prune(apart, Task(calib=x), recipe, sparsity=share)
        assert torch.equal(mask, theirs.masks[f"maps.{e}.weight"])
        assert torch.equal(w, theirs.model.maps[e].weight)


@pytest.mark.parametrize("count", [40, 2])
def test_sparsegpt_rebuilds_experts(count: int) -> None:
    """Whichever way they are computed, and better than the same masks without new weights."""
    found = {}
    for implementation in ("eager", "grouped_mm"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            result = prunus.prune(mixture(implementation), Task(calib=tokens(count)), "sparsegpt", sparsity=0.5)
        assert not [w for w in told if "without a reconstruction" in str(w.message)]
        found[implementation] = result
    eager, grouped = (r.model.state_dict() for r in found.values())
    assert all(torch.allclose(eager[n], grouped[n], atol=1e-4) for n in eager)
    name = "model.layers.0.mlp.experts.down_proj"
    assert float((eager[name] == 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    dense = mixture("eager").state_dict()[name]
    assert not torch.equal(eager[name], dense * found["eager"].masks[name])
