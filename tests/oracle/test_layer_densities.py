"""Densities dealt out over blocks ahead, and scores with gradients in a sweep, on a small Llama and by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.engine.walk import blocks_in, walk
from prunus.parts.allocation import KernelPattern, NofM, OutlierDensities, PerLayer, Uniform
from prunus.parts.allocation.ahead import met, whole
from prunus.parts.evidence.ahead import hill
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import ObsUpdate

transformers = pytest.importorskip("transformers")

COLUMNS = {"mlp.down_proj.weight": 40}
Score = Callable[[str, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, prunus.Task]:
    """Later blocks have heavier tails, so that the densities differ."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval().double()
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            for p in layer.parameters():
                p *= (torch.randn(p.shape, dtype=p.dtype) * (0.2 + 0.4 * i)).exp() if p.ndim == 2 else 1.0
    batches = [{"input_ids": torch.randint(50, (2, 9))} for _ in range(3)]
    return model, prunus.Task(loss=lambda m, b: m(**b, labels=b["input_ids"]).loss, calib=batches)


def sums_of_squares(block: nn.Module, model: nn.Module, task: prunus.Task) -> dict[str, Tensor]:
    """Of every input of the linear maps in a block, over all tokens."""
    total: dict[str, Tensor] = {}
    names = {m: n for n, m in model.named_modules()}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        total[names[module]] = total.get(names[module], torch.zeros(x.shape[1], dtype=x.dtype)) + x.square().sum(0)

    hooks = [m.register_forward_pre_hook(note) for m in block.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for batch in task.calib or ():
            model(**batch)
    for hook in hooks:
        hook.remove()
    return total


def swept_by_hand(model: nn.Module, task: prunus.Task, kept: dict[str, float], score: Score) -> dict[str, Tensor]:
    """The masks of a sweep: in each row the best by `score(name, w, sums of squares)` at the layer's density."""
    model, masks = copy.deepcopy(model), {}
    for block in blocks_in(model).values():
        for name, squares in sums_of_squares(block, model, task).items():
            linear = model.get_submodule(name)
            w, columns = linear.weight.detach(), linear.in_features
            k = columns - int(round((1 - kept[f"{name}.weight"]) * columns, 6))
            order = score(f"{name}.weight", w, squares).argsort(dim=1, descending=True, stable=True)
            masks[f"{name}.weight"] = torch.zeros_like(w, dtype=torch.bool).scatter_(1, order[:, :k], True)
        for name, mask in masks.items():
            model.get_parameter(name).data.mul_(mask)
    return masks


def wanda(name: str, w: Tensor, squares: Tensor) -> Tensor:
    return w.abs() * squares.sqrt()


def targets(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Block -> its weights."""
    return {
        b: {f"{b}.{n}.weight": m.weight.detach() for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        for b, block in blocks_in(model).items()
    }


def same(found: prunus.Result, masks: dict[str, Tensor]) -> None:
    assert found.unit_masks.keys() == masks.keys()
    assert all(torch.equal(found.unit_masks[n], m) for n, m in masks.items())


def test_owl(setting: tuple[nn.Module, prunus.Task]) -> None:
    model, task = setting
    shares = []
    for block, weights in targets(model).items():
        squares = sums_of_squares(model.get_submodule(block), model, task)
        scores = torch.cat([wanda(n, w, squares[n.removesuffix(".weight")]).flatten() for n, w in weights.items()])
        shares.append(float((scores > 5 * scores.mean()).double().mean()) * 100)
    assert len(set(shares)) == 3
    ratio = [(d - min(shares)) / (max(shares) - min(shares)) * 0.08 * 2 for d in shares]
    ratio = [r - sum(ratio) / 3 + (1 - 0.7) for r in ratio]
    kept = {n: r for r, weights in zip(ratio, targets(model).values(), strict=True) for n in weights}
    found = prunus.prune(model, task, "owl", sparsity=0.7)
    same(found, swept_by_hand(model, task, kept, wanda))
    assert found.recipe == methods.owl and max(ratio) - min(ratio) == pytest.approx(0.16)
    for name, mask in found.unit_masks.items():
        assert (mask.sum(1) == math.ceil(round(kept[name] * mask.shape[1], 6))).all()


def test_alpha_pruning(setting: tuple[nn.Module, prunus.Task]) -> None:
    model, task = setting
    alphas = []
    for weights in targets(model).values():
        each = []
        for w in weights.values():
            eigenvalues = sorted(torch.linalg.eigvalsh(w @ w.T if len(w) <= w.shape[1] else w.T @ w).tolist())
            top = eigenvalues[len(eigenvalues) // 2 :]
            each.append(1 + len(top) / sum(math.log(e / top[0]) for e in top))
        alphas.append(sum(each) / len(each))
    place = [(a - min(alphas)) / (max(alphas) - min(alphas)) * 0.6 + 0.7 for a in alphas]
    eta = 0.6 * 3 / sum(place)
    kept = {n: 1 - eta * p for p, weights in zip(place, targets(model).values(), strict=True) for n in weights}
    found = prunus.prune(model, task, "alpha_pruning", sparsity=0.6)
    same(found, swept_by_hand(model, task, kept, wanda))
    assert found.sparsity == pytest.approx(0.6, abs=0.03)


def test_ecoflap(setting: tuple[nn.Module, prunus.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """With directions written down: the loss's slope along each, from two forwards of a copy."""
    model, task = setting
    task = replace(task, calib=list(task.calib or ())[:2])
    drawn: list[Tensor] = []
    plain = torch.randn

    def noted(*size: Any, **options: Any) -> Tensor:
        z = plain(*size, **options)
        drawn.append(z)
        return z

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", noted)
        found = prunus.prune(model, task, "ecoflap", sparsity=0.6)
    scores, directions = [], iter(drawn)
    for weights in targets(model).values():
        total = 0.0
        for name in weights:
            for batch in task.calib or ():
                z, losses = next(directions).double(), []
                for sign in (1, -1):
                    moved = copy.deepcopy(model)
                    moved.get_parameter(name).data.add_(sign * 1e-3 * z)
                    with torch.no_grad():
                        losses.append(float(task.loss_of(moved, batch)))
                total += abs(losses[0] - losses[1]) / 2e-3
        scores.append(total)
    assert next(directions, None) is None
    # Blocks are equally large: 0.3 of each stays anyway, and a tenth of all is dealt out in proportion.
    density = [0.3 + 0.1 * 3 * s / sum(scores) for s in scores]
    kept = {n: d for d, weights in zip(density, targets(model).values(), strict=True) for n in weights}
    same(found, swept_by_hand(model, task, kept, wanda))


@pytest.mark.parametrize("norm", [1, 2])
def test_gblm(setting: tuple[nn.Module, prunus.Task], norm: int) -> None:
    model, task = setting
    lengths: dict[str, Tensor] = {}
    for batch in task.calib or ():
        dense = copy.deepcopy(model)
        task.loss_of(dense, batch).backward()
        for name, p in dense.named_parameters():
            lengths[name] = lengths.get(name, 0) + p.grad.abs() ** norm / 3
    lengths = {n: g ** (1 / norm) for n, g in lengths.items()}
    found = replace(methods.gblm, criterion=replace(methods.gblm.criterion, norm=float(norm)))
    kept = {n: 0.5 for weights in targets(model).values() for n in weights}
    by_hand = swept_by_hand(model, task, kept, lambda n, w, s: w.abs() * ((s / 3).sqrt() + 100 * lengths[n]))
    same(prunus.prune(model, task, found, sparsity=0.5), by_hand)
    assert any(not torch.equal(m, by_hand[n]) for n, m in swept_by_hand(model, task, kept, wanda).items())


def test_regional_gradients(setting: tuple[nn.Module, prunus.Task]) -> None:
    """Each block's on what the pruned ones before it give, without a loss."""
    model, task = setting
    masks: dict[str, Tensor] = {}
    by_hand = copy.deepcopy(model)
    for visit in walk(by_hand, task, blocks_in(by_hand)):
        weights = {n: p for n, p in visit.block.named_parameters() if p.ndim == 2}
        total = {n: torch.zeros_like(p) for n, p in weights.items()}
        for call in visit.calls:
            norm = visit.block(*call.args, **call.kwargs).square().sum().sqrt()
            for n, g in zip(weights, torch.autograd.grad(norm, list(weights.values())), strict=True):
                total[n] += g.square() / 3
        squares = sums_of_squares(visit.block, by_hand, prunus.Task(calib=task.calib))
        for n, p in weights.items():
            name = f"{visit.name}.{n}"
            size = (squares[name.removesuffix(".weight")] / 3).sqrt()
            scores = p.detach().abs() * (size + 100 * total[n].sqrt())
            order = scores.argsort(dim=1, descending=True, stable=True)
            half = p.shape[1] // 2
            masks[name] = torch.zeros_like(p, dtype=torch.bool).scatter_(1, order[:, :half], True)
            p.data.mul_(masks[name])
    same(prunus.prune(model, prunus.Task(calib=task.calib), "wanda_pp", sparsity=0.5), masks)


def test_densities_go_with_any_choice_within_layers(setting: tuple[nn.Module, prunus.Task]) -> None:
    """SparseGPT's selection and update at OWL's densities: every layer has its number, met to the unit."""
    model, task = setting
    owl = prunus.prune(model, task, replace(methods.owl, allocate=OutlierDensities(of=Uniform())), sparsity=0.6)
    rebuilt = replace(methods.sparsegpt, allocate=OutlierDensities(of=Uniform()), reconstruct=ObsUpdate(block=8))
    found = prunus.prune(model, task, rebuilt, sparsity=0.6)
    assert {n: int(m.sum()) for n, m in found.unit_masks.items()} == {
        n: int(m.sum()) for n, m in owl.unit_masks.items()
    }
    assert len({round(float(m.double().mean()), 2) for m in found.unit_masks.values()}) == 3


def test_patterns_are_mixed(setting: tuple[nn.Module, prunus.Task]) -> None:
    """A block keeps 3, 4 or 5 of every 8, half of all in the mean, and SparseGPT chooses within them."""
    model, task = setting
    mixed = OutlierDensities(of=NofM(4, 8), spread=0.2)
    for recipe in (methods.owl, replace(methods.sparsegpt, reconstruct=ObsUpdate(block=8))):
        found = prunus.prune(model, task, replace(recipe, allocate=mixed))
        each = {}
        for name, mask in found.unit_masks.items():
            kept = mask.reshape(-1, 8).sum(1)
            assert (kept == kept[0]).all()
            each.setdefault(name.split(".")[2], set()).add(int(kept[0]))
        assert all(len(n) == 1 for n in each.values()) and found.sparsity == 0.5
        assert len({n for some in each.values() for n in some}) > 1
    # 0.3 and 0.45 of 8 are 2.4 and 3.6: the second is rounded up, and then there is no room for the first.
    shares, units = {"a": 0.3, "b": 0.3, "c": 0.45}, {"a": 50, "b": 50, "c": 100}
    assert whole(shares, units, 8, 0.375) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert whole({"a": 0.01}, {"a": 8}, 4, 0.01) == {"a": 0.25}


def test_without_blocks_every_layer_has_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)).double()
    with torch.no_grad():
        model[4].weight *= torch.randn(20, 20).double().exp()
    task = prunus.Task(calib=[torch.randn(30, 20).double()])
    one = replace(methods.owl, sweep="model", granularity=Element())
    found = prunus.prune(model, task, one, sparsity=0.5)
    assert len(set(found.densities.values())) > 1 and found.sparsity == pytest.approx(0.5, abs=0.05)


def test_all_asked_for_is_met_where_densities_are_cut() -> None:
    """One layer of three is full: what it cannot take goes to the others, and no more than there is."""
    levels = lambda t: {"a": t - 0.2, "b": t, "c": t + 0.4}  # noqa: E731
    units, there = {"a": 100, "b": 100, "c": 300}, {"a": 100, "b": 100, "c": 300}
    found = met(levels, 2.0, units, there, 0.8)
    assert found["c"] == 1.0 and found["b"] - found["a"] == pytest.approx(0.2)
    assert sum(found[n] * units[n] for n in units) == pytest.approx(400)
    assert met(levels, 2.0, units, {"a": 10, "b": 10, "c": 30}, 0.5) == {"a": 0.1, "b": 0.1, "c": 0.1}


def test_the_exponent_of_a_power_law_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    values = (1 - torch.rand(20000, generator=draw, dtype=torch.float64)) ** (-1 / 1.7)  # density ~ x^-2.7
    assert float(hill(values)) == pytest.approx(2.7, abs=0.05)


def test_what_cannot_be_dealt_out_is_refused(setting: tuple[nn.Module, prunus.Task]) -> None:
    model, task = setting
    with pytest.raises(SpecError, match="one density of its own"):
        OutlierDensities(of=KernelPattern())
    with pytest.raises(SpecError, match="one density in"):
        PerLayer(layers=("a",), densities=(1.5,))
    for name in ("owl", "gblm"):  # a block alone, as it is where a folder is streamed
        visit = next(iter(walk(model, task, blocks_in(model))))
        with pytest.raises(SpecError, match="wants to see the whole model first"):
            prunus.Session(visit.block, replace(methods.get(name), sweep="model"), visit.task, sparsity=0.5)
    with pytest.raises(SpecError, match="gradients of the loss"):
        prunus.prune(model, prunus.Task(calib=task.calib), "gblm", sparsity=0.5)


def test_every_expert_has_its_share(setting: tuple[nn.Module, prunus.Task]) -> None:
    """Experts lie in one tensor of a block: each row of each of them keeps what the block's density says."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model, (_, task) = transformers.MixtralForCausalLM(config).eval(), setting
    for name in ("owl", "alpha_pruning", "gblm", "wanda_pp"):
        found = prunus.prune(model, task, name, sparsity=0.5)
        rows = {n: m.sum(1) for n, m in found.unit_masks.items()}
        assert all((k == k[0]).all() for k in rows.values()) and set(found.skipped) == {"lm_head.weight"}
        for block in blocks_in(model):
            wide = {int(k[0]) for n, k in rows.items() if n.startswith(block) and "down_proj" not in n}
            assert len(wide) == 1  # of sixteen inputs, in attention and in every expert
        experts = found.unit_masks["model.layers.0.mlp.experts.down_proj"]
        assert experts.shape == (4 * 16, 24) and found.sparsity == pytest.approx(0.5, abs=0.05)
