"""Low-rank adapters: trained under the masks, added, and gone; against plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Recipe, Task, methods
from prunus.core.errors import DataError, SpecError
from prunus.parts.recover import LoRA
from prunus.parts.recover.adapters import adapted
from tests.contract.models import CASES
from tests.contract.runs import difference, quiet, rng, state

pytest.importorskip("peft")

FAST = LoRA(rank=2, alpha=4.0, updates=3, learning_rate=0.01)


def recipe(**changes: Any) -> Recipe:
    return replace(methods.magnitude_uniform, name="with_adapters", on="pretrained", recover=replace(FAST, **changes))


def by_hand(
    net: nn.Module, masks: dict[str, Tensor], task: Task, loss: Any, lora: LoRA, starts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """W + M . s B A written out, A and B trained by AdamW, everything else left alone."""
    ab: dict[str, list[Tensor]] = {}
    for name, a in starts.items():
        b = torch.zeros(net.get_parameter(name).shape[0], lora.rank).to(a)
        ab[name] = [a.clone().requires_grad_(), b.requires_grad_()]
    optimizer = torch.optim.AdamW([p for pair in ab.values() for p in pair], lr=lora.learning_rate, weight_decay=0.0)
    base = {n: p.detach().clone() for n, p in net.named_parameters()}

    def weights() -> dict[str, Tensor]:
        new = {n: base[n] + masks.get(n, True) * (lora.alpha / lora.rank) * (b @ a) for n, (a, b) in ab.items()}
        return base | new

    for step in range(lora.updates):
        optimizer.zero_grad()
        x, y = list(task.train)[step % len(list(task.train))]  # type: ignore[arg-type]
        loss(torch.func.functional_call(net, weights(), (x,)), y).backward()
        optimizer.step()
    return {n: w.detach() for n, w in weights().items()}


def starts(net: nn.Module, task: Task, lora: LoRA, seed: int, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the adapters' A are drawn as."""
    from prunus.core.layer import Site
    from prunus.engine.score import seeded

    generator = seeded(seed)
    drawn = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]), adapted(lora, Site(net, task, (), masks, generator), drawn) as found:
        return {f"{n}.weight": a.lora_A["default"].weight.detach().clone() for n, a in found.items()}


@pytest.mark.parametrize("masked", [True, False])
def test_trained_under_the_mask_and_added(masked: bool) -> None:
    case = CASES["mlp"]
    net, task = case.model().train(), case.task()
    masks = dict(prunus.prune(net, task, methods.magnitude_uniform, sparsity=0.5).masks) if masked else {}
    if masked:
        with torch.no_grad():
            for n, m in masks.items():
                dict(net.named_parameters())[n].mul_(m)
    expected = by_hand(net, masks, task, F.cross_entropy, FAST, starts(net, task, FAST, 7, masks))
    before, generators = {n: id(p) for n, p in net.named_parameters()}, rng()
    flags = [p.requires_grad for p in net.parameters()]
    assert prunus.recover_(net, task, FAST, masks=masks, seed=7) is net
    assert {n: id(p) for n, p in net.named_parameters()} == before and rng() == generators
    assert [p.requires_grad for p in net.parameters()] == flags and "peft_config" not in vars(net)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-9, atol=1e-11)
    assert all(not dict(net.named_parameters())[n][~m].any() for n, m in masks.items())


@pytest.mark.parametrize("network", ["mlp", "decoder"])
def test_as_a_part_of_a_recipe(network: str) -> None:
    case = CASES[network]
    task, found = case.task(), recipe()
    net = case.model()
    was = state(net)
    with quiet():
        plain = prunus.prune(net, task, replace(found, recover=None), sparsity=0.6)
        result = prunus.prune(net, task, found, sparsity=0.6)
        again = prunus.prune(net, task, found, sparsity=0.6)
    assert not difference(was, state(net)) and found.reads == "labels"
    assert all(torch.equal(result.masks[n], m) for n, m in plain.masks.items())
    one, other = dict(plain.model.named_parameters()), dict(result.model.named_parameters())
    assert list(one) == list(other) and all(not other[n][~m].any() for n, m in result.masks.items())
    assert all(torch.equal(p, dict(again.model.named_parameters())[n]) for n, p in other.items())
    moved = {n for n in one if not torch.equal(one[n], other[n])}
    tied = {"tokens.weight"} if network == "decoder" else set()  # the head is the embedding
    assert moved == {n for n, p in one.items() if p.ndim == 2 and "places" not in n} - tied
    assert Recipe.from_dict(found.to_dict()) == found


def test_after_compaction_the_loss_falls() -> None:
    case = CASES["decoder"]
    task = case.task()
    coupled = replace(methods.l1_filter, granularity=prunus.parts.granularity.Coupled())
    small = prunus.prune(case.model(), task, coupled, sparsity=0.4).compact()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(case.loss(small.eval(), b)) for b in case.batches(4))

    before = loss()
    prunus.recover_(small, task, LoRA(rank=4, updates=30, learning_rate=0.02))
    assert loss() < 0.95 * before


def test_matrices_the_other_way_round() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    net = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, **drops, bos_token_id=1, eos_token_id=2)
    ).double()
    ids = torch.randint(32, (4, 12))
    task = Task(loss=lambda m, b: m(input_ids=b, labels=b).loss, train=[ids], example={"input_ids": ids})
    result = prunus.prune(net, task, recipe(updates=8), sparsity=0.5)
    plain = prunus.prune(net, task, replace(recipe(), recover=None), sparsity=0.5)
    assert task.loss is not None
    one, other = dict(plain.model.named_parameters()), dict(result.model.named_parameters())
    with torch.no_grad():
        assert float(task.loss(result.model, ids)) < float(task.loss(plain.model, ids))
    assert all(not other[n][~m].any() for n, m in result.masks.items())
    matrix, table = "transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"
    assert not torch.equal(one[matrix], other[matrix]) and torch.equal(one[table], other[table])


def test_what_is_missing_is_said_and_a_failure_leaves_the_model_alone() -> None:
    case = CASES["mlp"]
    net = case.model()
    with pytest.raises(SpecError, match="loss=lambda"):
        prunus.recover_(net, Task(calib=case.batches(1)), FAST)
    with pytest.raises(SpecError, match="no linear map"):
        prunus.recover_(net, case.task(), replace(FAST, exclude=("*",)))
    was = state(net)
    nan = Task(loss=lambda m, b: case.loss(m, b) * float("nan"), train=case.batches(1))
    with pytest.raises(DataError, match="loss became nan at update 0"):
        prunus.recover_(net, nan, FAST)
    assert not difference(was, state(net))
    with pytest.raises(SpecError, match="for which there is a mask"):
        prunus.recover_(net, case.task(), FAST, masks={"first.bias": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(SpecError, match="teacher="):
        prunus.recover_(net, case.task(), prunus.parts.recover.Distill())
    with pytest.raises(SpecError):
        LoRA(rank=0)
