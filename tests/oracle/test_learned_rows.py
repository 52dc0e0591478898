"""BESA against a slow version: loops over rows, ranks and candidates, and a module written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.allocation import LearnedRows
from prunus.parts.allocation.rows import dealt
from prunus.parts.reconstruct import ObsUpdate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def by_hand(model: Net, batches: list[Tensor], target: float, step: float, rounds: int) -> dict[str, list[float]]:
    """The sparsity of every row after training, from the paper's formulas."""
    count = round(1 / step)
    candidates = [1 - d / count for d in range(count + 1)]
    weights = {"a": model.a.weight.detach(), "b": model.b.weight.detach()}
    x = torch.cat(batches)
    norms = {"a": x.square().mean(0).sqrt(), "b": torch.tanh(model.a(x)).detach().square().mean(0).sqrt()}
    logits = {n: torch.zeros(len(w), count + 1, requires_grad=True) for n, w in weights.items()}
    optimizer = torch.optim.AdamW(list(logits.values()), lr=0.05, weight_decay=0.0)

    def rows(name: str) -> tuple[Tensor, Tensor]:
        """The mask and the sparsities."""
        w, masks, alphas = weights[name], [], []
        for i, row in enumerate(w):
            share = torch.softmax(torch.sigmoid(logits[name][i]), 0)
            alpha = sum(s * c for s, c in zip(share, candidates, strict=True))
            order = sorted(range(len(row)), key=lambda j: (float(row[j].abs() * norms[name][j]), -j))
            entries: list[Tensor] = [torch.zeros(())] * len(row)
            for rank, j in enumerate(order):
                reached = [s for s, c in zip(share, candidates, strict=True) if rank < int(c * len(row) + 1e-4)]
                likely = 1 - (sum(reached) if reached else torch.zeros(()))
                hard = 0.0 if rank < int(float(alpha) * len(row) + 1e-4) else 1.0
                entries[j] = hard + likely - likely.detach()
            masks.append(torch.stack(entries))
            alphas.append(alpha)
        return torch.stack(masks), torch.stack(alphas)

    for _ in range(rounds):
        for batch in batches:
            dense = model(batch).detach()
            (mask_a, alpha_a), (mask_b, alpha_b) = rows("a"), rows("b")
            hidden = torch.tanh(batch @ (weights["a"] * mask_a).T + model.a.bias.detach())
            y = hidden @ (weights["b"] * mask_b).T + model.b.bias.detach()
            l2 = (((dense - y) / dense.norm(dim=0)) ** 2).sum() / dense.shape[1]
            sparsity = (alpha_a.sum() * 6 + alpha_b.sum() * 5) / 50
            loss = l2 + ((sparsity - target) / target) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {n: rows(n)[1].tolist() for n in weights}


def test_rows_are_what_the_formulas_give() -> None:
    torch.manual_seed(0)
    model, batches = Net(), [torch.randn(20, 6) for _ in range(4)]
    part = LearnedRows(step=0.1, rounds=6, rate=0.05)
    recipe = replace(methods.besa, sweep="model", allocate=part)
    found = prunus.prune(model, prunus.Task(calib=batches), recipe, sparsity=0.6)
    learned = by_hand(model, batches, 0.6, 0.1, 6)
    wanted = torch.tensor([(1 - a) * 6 for a in learned["a"]] + [(1 - a) * 5 for a in learned["b"]])
    assert float(wanted.std()) > 0.05
    counts = dealt(wanted.double(), torch.tensor([6] * 5 + [5] * 4), 20)
    kept = torch.cat([found.unit_masks["a.weight"].sum(1), found.unit_masks["b.weight"].sum(1)])
    assert kept.tolist() == counts.tolist() and int(kept.sum()) == 20
    scores = prunus.score(model, prunus.Task(calib=batches), recipe)
    for name, mask in found.unit_masks.items():
        for row, keep in zip(scores[name], mask, strict=True):
            assert not keep.any() or not (~keep).any() or float(row[keep].min()) >= float(row[~keep].max())


def test_learning_lowers_the_error() -> None:
    """One row hangs on one weight, the other on all: the second one keeps more than the first."""
    torch.manual_seed(1)
    model = nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.cat([torch.ones(1) * 3, torch.full((11,), 1e-3)]), torch.ones(12)]))
    task = prunus.Task(calib=[torch.randn(64, 12) for _ in range(40)])
    found = prunus.prune(
        model, task, replace(methods.besa, sweep="model", allocate=LearnedRows(rounds=3, rate=0.05)), sparsity=0.5
    )
    one, other = found.unit_masks["weight"].sum(1).tolist()
    assert one + other == 12 and one < other


def test_counts_are_dealt_to_the_last_one() -> None:
    wanted, most = torch.tensor([1.0, 2.0, 3.0, 10.0]).double(), torch.tensor([4, 4, 4, 6])
    assert dealt(wanted, most, 12).tolist() == [1, 2, 3, 6]
    assert int(dealt(wanted, most, 13).sum()) == 13
    assert dealt(wanted, most, 99).tolist() == [4, 4, 4, 6]
    with pytest.raises(SpecError, match="step is in"):
        LearnedRows(step=0.0)


def test_a_llama_has_what_was_asked_block_by_block() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    task = prunus.Task(calib=[{"input_ids": torch.randint(50, (2, 12))} for _ in range(3)])
    recipe = replace(methods.besa, allocate=LearnedRows(step=0.05, rounds=2, rate=0.1))
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = prunus.prune(model, task, recipe, sparsity=0.6)
    for i in range(2):
        block = {n: m for n, m in found.unit_masks.items() if n.startswith(f"model.layers.{i}.")}
        units = sum(m.numel() for m in block.values())
        assert len(block) == 7 and sum(int(m.sum()) for m in block.values()) == units - int(0.6 * units + 1e-9)
        assert len({int(k) for m in block.values() for k in m.sum(1)}) > 2
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    rebuilt = prunus.prune(model, task, replace(recipe, reconstruct=ObsUpdate(select="masks")), sparsity=0.6)
    first = [n for n in found.unit_masks if n.startswith("model.layers.0.")]
    assert all(torch.equal(rebuilt.unit_masks[n], found.unit_masks[n]) for n in first)
