"""LLM-Pruner, Minitron and Bonsai: scores of coupled units of tiny language models, unit by unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import AggregatedActivation, GroupTaylor, LossRise, PerturbativeRegression, Random
from prunus.parts.evidence.perturbed import drawn, ridge
from prunus.parts.granularity import Coupled, Inner
from tests.oracle.language_nets import gpt2, language_task, llama, logits, next_token, tokens

LLAMA = "model.layers.1."


def gradients(model: nn.Module) -> list[dict[str, Tensor]]:
    names = dict(model.named_parameters())
    return [
        dict(zip(names, torch.autograd.grad(next_token(model, b), list(names.values())), strict=True)) for b in tokens()
    ]


def slices(model: nn.Module, unit: int, kind: str) -> list[tuple[str, tuple[object, ...]]]:
    """Where a unit of the second layer lies: the index into every weight."""
    if kind == "neuron":
        return [
            (LLAMA + "mlp.gate_proj.weight", (unit,)),
            (LLAMA + "mlp.up_proj.weight", (unit,)),
            (LLAMA + "mlp.down_proj.weight", (slice(None), unit)),
        ]
    # Four heads of queries, two of keys and values, four dimensions each.
    q, kv = slice(8 * unit, 8 * unit + 8), slice(4 * unit, 4 * unit + 4)
    at = LLAMA + "self_attn."
    return [
        (at + "q_proj.weight", (q,)),
        (at + "k_proj.weight", (kv,)),
        (at + "v_proj.weight", (kv,)),
        (at + "o_proj.weight", (slice(None), q)),
    ]


@pytest.mark.parametrize("order", ["vector", "first", "second", "mixed"])
def test_llm_pruner_slice_by_slice(order: str) -> None:
    model = llama()
    grads, weights = gradients(model), dict(model.named_parameters())
    mean = {n: (grads[0][n] + grads[1][n]) / 2 for n in weights}
    square = {n: (grads[0][n] ** 2 + grads[1][n] ** 2) / 2 for n in weights}

    def worth(name: str, at: tuple[object, ...]) -> float:
        w, g, h = weights[name].detach()[at], mean[name][at], square[name][at]
        entry = {"vector": w * g, "first": (w * g).abs(), "second": w * w * h, "mixed": (w * g - w * w * h / 2).abs()}
        return abs(float(entry[order].sum()))

    for over in ("sum", "prod", "max", "last"):
        recipe = replace(methods.llm_pruner, criterion=GroupTaylor(order=order, over=over))
        ours = prunus.score(model, language_task(), recipe)
        assert len(ours) == 4  # attention and feed-forward of two layers, and no stream
        for kind, name, units in (("neuron", "mlp.gate_proj", 24), ("kv group", "self_attn.q_proj", 2)):
            each = [[worth(*s) for s in slices(model, u, kind)] for u in range(units)]
            how = {"sum": sum, "prod": lambda e: float(torch.tensor(e).double().prod()), "max": max}
            slow = [e[-1] if over == "last" else how[over](e) for e in each]
            torch.testing.assert_close(ours[LLAMA + name], torch.tensor(slow, dtype=torch.float64))


def test_llm_pruner_removes_as_many_of_every_layer_and_compacts() -> None:
    for model in (llama(), gpt2()):
        result = prunus.prune(model, language_task(), "llm_pruner", sparsity=0.5)
        assert set(result.densities.values()) == {0.5}
        small = result.compact()
        for batch in tokens():
            torch.testing.assert_close(logits(small, batch), logits(result.model, batch), rtol=1e-10, atol=1e-11)


def inputs(model: nn.Module, ends: str) -> list[Tensor]:
    """What the modules whose names end so are given, `[samples, positions, features]` each, batches joined."""
    seen: dict[nn.Module, list[Tensor]] = {}
    handles = [
        m.register_forward_pre_hook(lambda module, x: seen.setdefault(module, []).append(x[0].detach()))
        for n, m in model.named_modules()
        if n.endswith(ends)
    ]
    for batch in tokens():
        with torch.no_grad():
            model(**batch)
    for handle in handles:
        handle.remove()
    return [torch.cat(x) for x in seen.values()]


@pytest.mark.parametrize(("positions", "samples"), [("mean", "l2"), ("l2", "mean"), ("var", "mean"), ("mean", "var")])
def test_minitron_position_by_position(positions: str, samples: str) -> None:
    model = llama()
    recipe = replace(methods.minitron_width, criterion=AggregatedActivation(positions=positions, samples=samples))
    ours = prunus.score(model, language_task(), recipe)

    def over(values: list[float], how: str) -> float:
        mean = sum(values) / len(values)
        if how == "mean":
            return mean
        if how == "l2":
            return (sum(v * v for v in values) / len(values)) ** 0.5
        return sum((v - mean) ** 2 for v in values) / len(values)

    def aggregated(x: Tensor, channels: slice) -> float:
        """Of one input `[samples, positions, features]`: the unit's size over positions, then over samples."""
        return over([over([float(p[channels].norm()) for p in sample], positions) for sample in x], samples)

    down, out = inputs(model, "mlp.down_proj")[1], inputs(model, "self_attn.o_proj")[1]
    slow = [aggregated(down, slice(i, i + 1)) for i in range(24)]
    torch.testing.assert_close(ours[LLAMA + "mlp.gate_proj"], torch.tensor(slow, dtype=torch.float64))
    slow = [aggregated(out, slice(8 * i, 8 * i + 8)) for i in range(2)]
    torch.testing.assert_close(ours[LLAMA + "self_attn.q_proj"], torch.tensor(slow, dtype=torch.float64))
    # A channel of the stream: what every norm puts out, once each, whoever reads it.
    normed = [*inputs(model, "self_attn.q_proj"), *inputs(model, "mlp.up_proj"), *inputs(model, "lm_head")]
    slow = [sum(aggregated(x, slice(i, i + 1)) for x in normed) for i in range(16)]
    torch.testing.assert_close(ours["model.embed_tokens"], torch.tensor(slow, dtype=torch.float64))


def test_minitron_is_regular_and_compacts() -> None:
    result = prunus.prune(llama(), language_task(), "minitron_width", sparsity=0.5)
    assert set(result.densities.values()) == {0.5}
    small = result.compact()
    assert small.lm_head.weight.shape == (31, 8) and small.model.layers[0].mlp.up_proj.weight.shape == (12, 8)
    for batch in tokens():
        torch.testing.assert_close(logits(small, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)
    with pytest.raises(
        (SpecError, TypeError), match="mean"
    ):  # the tests' own check of types comes first, where it is on
        AggregatedActivation(samples="max")


def test_flap_channel_by_channel_with_new_biases(tmp_path: Path) -> None:
    model = llama()
    ours = prunus.score(model, language_task(), "flap_heads")
    assert len(ours) == 4

    def metric(ends: str) -> Tensor:
        x = inputs(model, ends)[1].flatten(0, 1)
        weight = model.get_submodule(LLAMA + ends).weight.detach()
        each = [
            float(((x[:, j] - x[:, j].mean()) ** 2).mean()) * float((weight[:, j] ** 2).sum())
            for j in range(x.shape[1])
        ]
        return torch.tensor(each, dtype=torch.float64)

    heads, neurons = metric("self_attn.o_proj") ** 2, metric("mlp.down_proj")
    heads, neurons = ((m - m.mean()) / m.std() for m in (heads, neurons))
    torch.testing.assert_close(ours[LLAMA + "self_attn.q_proj"], heads.reshape(2, 8).mean(1))
    torch.testing.assert_close(ours[LLAMA + "mlp.gate_proj"], neurons)
    result = prunus.prune(model, language_task(), "flap_heads", budget=prunus.Budget(params=0.8))
    named = dict(result.model.named_parameters())
    biases = {n.split(".", 3)[3] for n in named if n.endswith("bias")}
    assert biases == {"self_attn.o_proj.bias", "mlp.down_proj.bias"}
    bare = prunus.prune(
        model,
        language_task(),
        replace(methods.flap_heads, prepare=None, reconstruct=None),
        budget=prunus.Budget(params=0.8),
    )
    same = [torch.equal(result.unit_masks[n], bare.unit_masks[n]) for n in bare.unit_masks]
    assert all(same)
    apart = [sum(float((logits(r.model, b) - logits(model, b)).norm()) for b in tokens()) for r in (result, bare)]
    assert apart[0] < apart[1]  # on the calibration data, means are made up for
    small = result.compact()
    prunus.save(result, tmp_path / "small")
    again = prunus.load(tmp_path / "small", llama)
    for batch in tokens():
        torch.testing.assert_close(logits(small, batch), logits(result.model, batch), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(logits(again, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)


class Additive(nn.Module):
    """Neurons whose outputs are added up: the loss is linear in who is there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 6), nn.Linear(3, 4), nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.first(x), self.second(x)], 1))


def test_bonsai_finds_what_units_add_where_they_add_up() -> None:
    torch.manual_seed(3)
    model, x = Additive().double(), torch.randn(5, 3, dtype=torch.float64)
    task = prunus.Task(loss=lambda m, b: -m(b).mean(), calib=[x], example=(x,))
    exact = prunus.score(model, task, replace(methods.car, granularity=Coupled(), criterion=LossRise()))
    regression = PerturbativeRegression(samples=64, ridge=1e-12, prior=Random(), doubted=3.0)
    ours = prunus.score(model, task, replace(methods.bonsai, criterion=regression))
    assert set(ours) == set(exact) and sum(map(len, ours.values())) == 10
    # Sub-models are equally large, so that only differences between units are told.
    found, wanted = (torch.cat([one[n] for n in exact]) for one in (ours, exact))
    torch.testing.assert_close(found - found.mean(), wanted - wanted.mean(), rtol=1e-6, atol=1e-8)


def test_bonsai_doubts_only_what_the_prior_ranks_low() -> None:
    task, model = language_task(), llama()
    prior = prunus.score(model, task, replace(methods.flap, granularity=Inner()))
    recipe = replace(methods.bonsai, criterion=PerturbativeRegression(samples=16, doubted=1.0))
    ours = prunus.score(model, task, recipe)
    joined = torch.cat([prior[n] for n in ours])
    found = torch.cat(list(ours.values()))
    low = joined.argsort()[: len(joined) // 2]
    sure = joined.argsort()[len(joined) // 2 :]
    assert float(found[sure].min()) > float(found[low].max())
    assert torch.equal(found[sure].argsort(), torch.arange(len(sure)))  # in the order of the prior
    result = prunus.prune(model, task, replace(recipe, schedule=methods.llm_pruner.schedule), sparsity=0.25)
    for batch in tokens():
        torch.testing.assert_close(logits(result.compact(), batch), logits(result.model, batch), rtol=1e-10, atol=1e-11)


def test_sub_models_and_their_complements() -> None:
    draws = list(drawn(7, 6, torch.Generator().manual_seed(1)))
    for one, other in zip(draws[::2], draws[1::2], strict=True):
        assert int(one.sum()) == 3 and torch.equal(one, ~other)
    often = sum(d.double() for d in list(drawn(6, 4000, torch.Generator().manual_seed(2)))[::2]) / 2000
    assert bool((often.diff() > 0).all())  # the prior's favourites stay more often


def test_the_regression_by_its_normal_equations() -> None:
    draw = torch.Generator().manual_seed(0)
    for samples, units in ((9, 4), (4, 9)):
        a = (torch.rand(samples, units, generator=draw) < 0.5).double()
        u = torch.randn(samples, generator=draw, dtype=torch.float64)
        beta = ridge(a, u, 0.1).requires_grad_()
        apart = (u - u.mean()) - (a - a.mean(0)) @ beta
        objective = apart.square().mean() + 0.1 * beta.square().sum()
        (slope,) = torch.autograd.grad(objective, beta)
        assert float(slope.abs().max()) < 1e-12
