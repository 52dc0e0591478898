"""Gates on whole residual branches: found by doubling, and a factor on what the branch returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.graph.depth.branches import branches
from prunus.parts.gate import SoftMask, SparseScale
from prunus.parts.granularity import Branch
from prunus.parts.schedule import OneShot
from tests.oracle.language_nets import gpt2, language_task, llama, logits, next_token, tokens

X = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.Dropout(0.1))

    def attended(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return self.attn(y, y, y, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attended(x)
        return x + self.mlp(self.norm2(x))


class Deep(nn.Module):
    def __init__(self, last: type[nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(6, 3)
        if last is not None:
            for layer in self.layers:
                layer.mlp.append(last())
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


TASK = Task(loss=loss, train=[X], forward=lambda m, b: m(b), example=(X,))


def test_what_a_branch_ends_in() -> None:
    by_place = {g.name: g for g in branches(Deep(), (X,)).groups}
    attn, mlp = by_place["layers.*.attn"], by_place["layers.*.mlp"]
    assert mlp.ends == tuple((f"layers.{i}.mlp.2.weight", f"layers.{i}.mlp.2.bias") for i in range(3))
    assert attn.ends == tuple((f"layers.{i}.attn.out_proj.weight", f"layers.{i}.attn.out_proj.bias") for i in range(3))
    bent = {g.name: g for g in branches(Deep(nn.Tanh), (X,)).groups}
    assert set(bent["layers.*.mlp"].ends) == {()} and bent["layers.*.attn"].ends == attn.ends


def test_a_gate_is_a_factor_on_what_the_branch_returns() -> None:
    found = replace(methods.sss, granularity=Branch(), gate=SparseScale(strength=0.0))
    model, plain = Deep(), Deep()
    session = prunus.Session(model, found, TASK, sparsity=0.3, steps=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    session.attach(optimizer)
    factors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, theta in session.gating.thetas.items():
            theta.copy_(torch.tensor([0.3, 0.0, 1.7]))
            factors[name] = theta.detach().clone()
        x = X
        for i, layer in enumerate(plain.layers):
            x = x + factors["layers.*.attn"][i] * layer.attended(x)
            x = x + factors["layers.*.mlp"][i] * layer.mlp(layer.norm2(x))
        assert torch.allclose(model(X), plain.head(x.mean(1)))
    session.detach()
    assert torch.allclose(model(X), plain(X))


def test_the_mask_takes_whole_branches_away() -> None:
    """Of three layers the last returns nothing: its factors feel no gradient, fall to zero, and go without a loss."""
    model = Deep()
    with torch.no_grad():
        for p in (*model.layers[2].attn.parameters(), *model.layers[2].mlp.parameters()):
            p.zero_()
        model.layers[2].attn.in_proj_weight.normal_()
    found = replace(methods.gal, granularity=Branch(), gate=SoftMask(strength=1e-3, lr=4.0, wait=1))
    result = prunus.prune(model, TASK, found, sparsity=0.34, steps=60, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    gone = {g.names[i] for g in result.groups for i in range(g.units) if not result.unit_masks[g.name][i]}
    assert gone == {"layers.2.attn", "layers.2.mlp"} and result.history[-1]["open"] < 1.0
    assert torch.allclose(result.compact().eval()(X), result.model.eval()(X))
    assert F.mse_loss(result.model(X), model(X)) < 0.05


def test_branches_without_an_end_get_no_gate() -> None:
    found = replace(methods.sss, granularity=Branch(exclude=("layers.*.attn",)))
    with pytest.raises(SpecError):
        prunus.Session(Deep(nn.Tanh), found, TASK, sparsity=0.3, steps=4).start()


@pytest.mark.parametrize("build", [llama, gpt2], ids=["llama", "gpt2"])
def test_super_tickets_are_heads_and_whole_feed_forward_layers(build: Any) -> None:
    """E |dL_n/dnu| over samples, nu a factor on what a feed-forward layer returns, sample by sample; and what goes are
    the units with the least of it over the norm of their group.
    """
    model = build()
    task = language_task()
    scores = prunus.score(model, task, "super_tickets")
    (layers,) = [n for n in scores if "*" in n]
    assert layers.endswith("mlp") and len(scores) == 3  # the heads of two layers, and no attention as a whole
    found = [m for n, m in model.named_modules() if n.endswith(".mlp")]
    nu = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in found]
    handles = [m.register_forward_hook(lambda _m, _i, y, f=f: f * y) for m, f in zip(found, nu, strict=True)]
    each = []
    for batch in tokens():
        for i in range(3):
            one = {k: v[i : i + 1] for k, v in batch.items()}
            each.append(torch.stack(torch.autograd.grad(next_token(model, one), nu)).abs())
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(scores[layers], torch.stack(each).mean(0).to(scores[layers]), rtol=1e-5, atol=1e-9)
    shares = torch.cat([s / s.norm() for s in scores.values()])
    result = prunus.prune(model, task, replace(methods.super_tickets, schedule=OneShot()), sparsity=1 / 6)
    kept = torch.cat(list(result.unit_masks.values()))
    gone = round(len(shares) / 6)
    assert int((~kept).sum()) == gone and float(shares[kept].min()) >= float(shares[~kept].max())
    batch = tokens()[1]
    torch.testing.assert_close(logits(result.compact(), batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)
