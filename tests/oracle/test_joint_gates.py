"""CoFi: gates of layers, heads, neurons and dimensions over each other, and the constraint on their products."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, methods
from prunus.core.errors import SpecError, StructureError
from prunus.core.gate import Moment
from prunus.parts.gate import Lagrangian
from prunus.parts.granularity import Branch, Coupled, Element, Joint, Width
from tests.oracle.language_nets import language_task, llama, logits, next_token, tokens

D, HEADS, KV, FF, LAYERS = 16, 4, 2, 24, 3


def session_of(model: nn.Module, gate: Lagrangian, steps: int = 20) -> prunus.Session:
    recipe = replace(methods.cofi, gate=gate)
    return prunus.Session(model, recipe, language_task(train=tokens()), Budget(params=0.5), steps=steps)


def drawn(session: prunus.Session) -> dict[str, Tensor]:
    """Log-odds of all gates, random ones, laid into the session."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for theta in session.gating.thetas.values():
            theta.copy_(torch.randn(theta.shape, generator=draw, dtype=theta.dtype))
    return {n: t.detach().clone() for n, t in session.gating.thetas.items()}


def by_kind(values: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    """z of dimensions, of the heads and the neurons of every layer, and of attention and feed-forward branches.

    The first layer's attention, whose cache the others count by, cannot go: it has no gate.
    """
    heads = [values[f"model.layers.{i}.self_attn.q_proj"] for i in range(LAYERS)]
    neurons = [values[f"model.layers.{i}.mlp.gate_proj"] for i in range(LAYERS)]
    attn, ffn = (values[f"model.layers.*.{n}"] for n in ("self_attn", "mlp"))
    attn = torch.cat([torch.ones_like(attn[:1]), attn])
    return values["model.embed_tokens"], heads, neurons, attn, ffn


def products(values: dict[str, Tensor], model: nn.Module) -> Tensor:
    """The numbers of all matrices, one by one, each times every gate over it (section 3.1 and the sum under eq. 2)."""
    hidden, heads, neurons, attn, ffn = by_kind(values)
    total = torch.zeros((), dtype=torch.float64)
    size = D // HEADS
    for _table, _row, k in itertools.product(("embedding", "head"), range(31), range(D)):
        total = total + hidden[k]
    for i in range(LAYERS):
        for g, k in itertools.product(
            range(KV), range(D)
        ):  # a group of queries, its keys and values, and their outputs
            own = (HEADS // KV) * size + 2 * size + (HEADS // KV) * size
            total = total + own * attn[i] * heads[i][g] * hidden[k]
        for j, k in itertools.product(range(FF), range(D)):  # gate, up and down
            total = total + 3 * ffn[i] * neurons[i][j] * hidden[k]
    return total


def test_the_constraint_is_on_the_product_of_the_gates() -> None:
    model = llama(LAYERS)
    gate = Lagrangian(weighs="products", warm=0.0)
    session = session_of(model, gate)
    session.attach(torch.optim.SGD(model.parameters(), 0.1))
    thetas = drawn(session)
    moment: Moment = next(iter(session.gating._moments.values()))
    p = {n: gate.chance(t).double().requires_grad_() for n, t in thetas.items()}
    whole = products({n: torch.ones_like(t) for n, t in p.items()}, model)
    assert float(whole) == sum(q.numel() for q in model.parameters() if q.ndim > 1)
    slow = products(p, model)
    (gap,) = gate.gaps(thetas, moment)
    assert float(gap) == pytest.approx(float(1 - slow / whole - (1 - moment.density)), rel=1e-9)
    ours = {n: t.clone().requires_grad_() for n, t in p.items()}
    left, there = moment.left(ours)
    assert (float(left), there) == (pytest.approx(float(slow)), float(whole))
    for a, b in zip(
        torch.autograd.grad(left, list(ours.values())), torch.autograd.grad(slow, list(p.values())), strict=True
    ):
        torch.testing.assert_close(a, b)
    session.detach()


def test_gates_over_each_other_are_multiplied_in_the_network() -> None:
    """A layer's and a head's gate multiply what the heads put out, a dimension's what is read of the stream."""
    model, plain = llama(LAYERS), llama(LAYERS)
    session = session_of(model, Lagrangian(weighs="products"))
    session.attach(torch.optim.SGD(model.parameters(), 0.1))
    drawn(session)
    gating = session.gating
    z = {n: gating.part.value(t, gating._moments[n]).detach().double() for n, t in gating.thetas.items()}
    assert any(bool((v == 0).any()) for v in z.values())
    hidden, heads, neurons, attn, ffn = by_kind(z)
    with torch.no_grad():
        for i, layer in enumerate(plain.model.layers):
            for m in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                m.weight.mul_(hidden)
            for m in (layer.mlp.gate_proj, layer.mlp.up_proj):
                m.weight.mul_(hidden)
            layer.self_attn.o_proj.weight.mul_(attn[i] * heads[i].repeat_interleave(D // KV))
            layer.mlp.down_proj.weight.mul_(ffn[i] * neurons[i])
        plain.lm_head.weight.mul_(hidden)
    batch = tokens()[0]
    torch.testing.assert_close(logits(model, batch), logits(plain, batch), rtol=1e-9, atol=1e-10)
    session.detach()


def test_a_run_meets_its_target_and_compacts_exactly(tmp_path: Path) -> None:
    """Layers, heads, neurons and dimensions go in one run, to a budget in parameters; masked = compact = loaded."""
    model = llama(LAYERS)
    recipe = replace(methods.cofi, gate=Lagrangian(weighs="products", lr=0.2, ascent=1.0, warm=0.5))
    task = language_task(train=tokens(), loss=next_token)
    result = prunus.prune(model, task, recipe, budget=Budget(params=0.4), steps=120, seed=1)
    gone = {n: int((~m).sum()) for n, m in result.unit_masks.items()}
    kinds = {"stream": gone["model.embed_tokens"], "layers": sum(v for n, v in gone.items() if "*" in n)}
    kinds["inside"] = sum(v for n, v in gone.items() if "*" not in n) - kinds["stream"]
    assert kinds["inside"] and kinds["stream"] + kinds["layers"]
    small = result.compact()
    batch = tokens()[1]
    torch.testing.assert_close(logits(small, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)
    dense = sum(p.numel() for p in llama(LAYERS).parameters())
    assert sum(p.numel() for p in small.parameters()) <= 0.4 * dense
    prunus.save(result, tmp_path / "small")
    again = prunus.load(tmp_path / "small", lambda: llama(LAYERS))
    torch.testing.assert_close(logits(again, batch), logits(small, batch), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_any_choice_of_units_over_each_other_compacts_exactly(seed: int) -> None:
    model = llama(LAYERS)
    recipe = replace(methods.random, name="joint", granularity=Joint(), on="pretrained")
    result = prunus.prune(model, language_task(), recipe, sparsity=0.5, seed=seed)
    assert any("*" in n and not m.all() for n, m in result.unit_masks.items())
    assert not result.unit_masks["model.embed_tokens"].all()
    batch = tokens()[1]
    small = result.compact()
    torch.testing.assert_close(logits(small, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)


def test_what_joint_units_are_made_of() -> None:
    model, example = llama(LAYERS), tokens()[0]
    found = Joint()(model, example)
    apart = [*Coupled()(model, example), *Branch()(model, example)]
    assert [g.name for g in found] == [g.name for g in apart]
    with pytest.raises(SpecError, match="granularity of structures"):
        Joint(of=(Element(),))
    with pytest.raises(SpecError, match="twice"):
        Joint(of=(Coupled(), Width()))(copy.deepcopy(model), example)
    with pytest.raises(StructureError, match="no branch"):
        Joint(of=(Branch(),))(nn.Sequential(nn.Linear(4, 4)), (torch.randn(1, 4),))
    recipe = prunus.Recipe.from_dict(methods.cofi.to_dict())
    assert recipe == methods.cofi
