"""Experts of mixtures: what REAP, frequency and the clusters of STUN make of them, derived token by token."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
import prunus.deploy
from prunus import Budget, Task, methods
from prunus.core.errors import BudgetError, NothingScored, SpecError
from prunus.core.groups import Group
from prunus.engine.prepare import find_groups
from prunus.engine.score import make_sources, rate, seeded
from prunus.parts.allocation import ExpertClusters
from prunus.parts.recover import ClusterMean
from tests.contract.models import CASES
from tests.graph.mixtures import Blend, Mixture, Stacked, Switch, TopTwo, TopTwoFirst, tokens
from tests.oracle.test_experts import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
ROUTED = {**FEW, "n_routed_experts": 6, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "GptOss": {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8, "layer_types": ["full_attention"]},
    "Qwen2Moe": {**FEW, "num_experts": 6, "shared_expert_intermediate_size": 12},
    "Qwen3Moe": {**FEW, "num_experts": 6, "head_dim": 8},
    "Olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "DeepseekV2": {**ROUTED, **LATENT},
    "DeepseekV3": {**ROUTED, **LATENT, "n_routed_experts": 8},
    "Glm4Moe": {**ROUTED, "head_dim": 8},
    "GraniteMoe": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "Phimoe": {"num_local_experts": 6, "num_experts_per_tok": 2},
}


def network(name: str, implementation: str | None = None) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **NETWORKS[name]})
    if implementation is not None:
        config._experts_implementation = implementation
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 64, (2, 20), generator=generator)} for _ in range(2)]


def mixtral(experts: Any, e: int, x: Tensor) -> Tensor:
    gate, up = F.linear(x, experts.gate_up_proj[e]).chunk(2)
    return F.linear(F.silu(gate) * up, experts.down_proj[e])


def gpt_oss(experts: Any, e: int, x: Tensor) -> Tensor:
    y = x @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
    gate, up = y[::2].clamp(max=experts.limit), y[1::2].clamp(-experts.limit, experts.limit)
    return ((up + 1) * gate * torch.sigmoid(gate * experts.alpha)) @ experts.down_proj[e] + experts.down_proj_bias[e]


def token_by_token(model: Any, one: Any) -> tuple[Tensor, Tensor]:
    """The mean of g ||f|| and the number of tokens of each expert, from what the router gave."""
    experts = model.model.layers[0].mlp.experts
    seen: list[tuple[Tensor, ...]] = []
    hook = experts.register_forward_pre_hook(lambda _m, args: seen.append(tuple(a.detach() for a in args)))
    with torch.no_grad():
        for batch in texts():
            model(**batch, use_cache=False)
    hook.remove()
    norms: list[list[float]] = [[] for _ in range(6)]
    for hidden, chosen, shares in seen:
        for x, own, share in zip(hidden.reshape(-1, 16), chosen.reshape(-1, 2), shares.reshape(-1, 2), strict=True):
            for e, g in zip(own.tolist(), share.tolist(), strict=True):
                norms[e].append(g * float(one(experts, e, x).detach().norm()))
    return torch.tensor([sum(n) / max(1, len(n)) for n in norms]), torch.tensor([len(n) for n in norms])


def scores(model: nn.Module, task: Task, *names: str) -> list[dict[str, Tensor]]:
    """What `prunus.score` gives for several methods, with the experts found once."""
    groups = find_groups(model, methods.get(names[0]), task)
    told = [(methods.get(n).criterion, seeded(0)) for n in names]
    return [rate(c, make_sources(model, task, groups, g, c), "sum")[0] for c, g in told]


@pytest.mark.parametrize(
    ("name", "implementation", "one"),
    [("GptOss", "grouped_mm", gpt_oss)]
    + [pytest.param(n, i, f, marks=pytest.mark.slow) for n, i, f in
       (("Mixtral", "grouped_mm", mixtral), ("Mixtral", "eager", mixtral), ("GptOss", "eager", gpt_oss))],
)  # fmt: skip
def test_experts_of_language_models(name: str, implementation: str, one: Any) -> None:
    model = network(name, implementation)
    norms, counts = token_by_token(model, one)
    task = Task(calib=texts())
    before = {n: p.clone() for n, p in model.state_dict().items()}
    reap, frequency = (next(iter(s.values())) for s in scores(model, task, "reap", "expert_frequency"))
    torch.testing.assert_close(reap, norms.double(), rtol=1e-4, atol=1e-6)
    assert torch.equal(frequency, counts.double()) and int(counts.sum()) == 2 * 80
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["Qwen2Moe", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "Qwen2Moe")]
)
def test_folders_of_fewer_experts(name: str, tmp_path: Path) -> None:
    """Masked (never chosen) is compact in float64, and transformers reads what is left by itself."""
    model, task = network(name), Task(calib=texts())
    result = prunus.prune(model, task, "reap", sparsity=0.5)
    assert [int(m.sum()) for m in result.unit_masks.values()] == [8 // 2 if name == "DeepseekV3" else 3]
    small = result.compact()
    assert result.verified_error is not None and result.verified_error <= 1e-12
    saved = prunus.deploy.save_pretrained(result, tmp_path / "folder")
    assert saved.uniform and len(saved.changed) == 1
    back = type(model).from_pretrained(tmp_path / "folder").eval()
    torch.testing.assert_close(back(**texts()[0]).logits, small(**texts()[0]).logits)


@pytest.mark.parametrize("kind", [Switch, *(pytest.param(k, marks=pytest.mark.slow) for k in (TopTwo, TopTwoFirst))])
def test_experts_in_lists(kind: type[Mixture]) -> None:
    torch.manual_seed(0)
    net, x = kind(), tokens()
    shares = net.weigh(net.router(x)).detach()
    outputs = torch.stack([e(x) for e in net.experts], 1).detach()
    worth = (shares * outputs.norm(dim=-1)).sum(0) / (shares > 0).sum(0).clamp(min=1)
    task = Task(calib=[x])
    reap, frequency = (s["experts"] for s in scores(net, task, "reap", "expert_frequency"))
    torch.testing.assert_close(reap, worth.double(), rtol=1e-5, atol=1e-7)
    assert frequency.tolist() == (shares > 0).sum(0).tolist()


@pytest.mark.parametrize("kind", [Stacked, pytest.param(Blend, marks=pytest.mark.slow)])
def test_where_no_number_per_token_says_how_much(kind: type[nn.Module]) -> None:
    """A scale for every feature and a projection behind the experts; weights that are blended."""
    torch.manual_seed(0)
    with pytest.raises(NothingScored):
        prunus.score(kind(), Task(calib=[tokens()]), "reap")


# Clusters


def clusters(apart: Tensor, threshold: float, least: int) -> list[set[int]]:
    """Pairs from the closest on; two clusters become one unless any two of their experts are too far apart."""
    found = [{i} for i in range(len(apart))]
    pairs = sorted(itertools.combinations(range(len(apart)), 2), key=lambda p: float(apart[p]))
    for i, j in pairs:
        a, b = (next(c for c in found if k in c) for k in (i, j))
        if len(found) <= least or float(apart[i, j]) >= threshold:
            break
        if a is not b and all(float(apart[k, m]) < threshold for k in a for m in b):
            found = [c for c in found if c is not a and c is not b] + [a | b]
    return found


def standing_for(cluster: set[int], w: Tensor) -> int:
    mean = torch.stack([w[i] for i in sorted(cluster)]).mean(0)
    return min(sorted(cluster), key=lambda i: float((w[i] - mean).norm()))


@pytest.mark.parametrize("density", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("within", ["network", "layer"])
def test_one_of_each_cluster(within: Any, density: float) -> None:
    torch.manual_seed(0)
    sizes = {"a": 8, "b": 12}
    rows = {n: torch.randn(k, 5).double() * (1 + i) for i, (n, k) in enumerate(sizes.items())}
    w = {n: torch.randn(k, 9).double() for n, k in sizes.items()}
    scores = {n: torch.rand(k).double() for n, k in sizes.items()}
    space = {n: Group(n, (k,), (), at_least=2) for n, k in sizes.items()}
    masks = ExpertClusters(within=within)(scores, density, space, row=rows, w=w)
    apart = {n: torch.cdist(r, r) / r.norm() for n, r in rows.items()}
    for names in [["a", "b"]] if within == "network" else [["a"], ["b"]]:
        asked = sum(sizes[n] for n in names)
        asked -= int((1 - density) * asked + 1e-9)
        edges = [*sorted({float(d) for n in names for d in apart[n].flatten()}), float("inf")]
        found = next(
            c for t in edges if sum(map(len, (c := {n: clusters(apart[n], t, 2) for n in names}).values())) <= asked
        )
        kept = {n: {standing_for(c, w[n]) for c in found[n]} for n in names}
        rest = sorted((-float(scores[n][i]), n, i) for n in names for i in range(sizes[n]) if i not in kept[n])
        for _, n, i in rest[: asked - sum(map(len, kept.values()))]:
            kept[n].add(i)
        assert {n: set(masks[n].nonzero().squeeze(1).tolist()) for n in names} == kept


def test_few_clusters_become_their_means() -> None:
    torch.manual_seed(0)
    net, x = TopTwo(), tokens()
    recipe = replace(methods.expert_clusters, recover=ClusterMean(at_most=2))
    result = prunus.prune(net, Task(example=x), recipe, sparsity=0.6)
    mask = result.unit_masks["experts"]
    assert int(mask.sum()) == 2
    kept = mask.nonzero().squeeze(1).tolist()
    row = net.router.weight.detach()
    near = [min(kept, key=lambda k, e=e: float((row[e] - row[k]).norm())) for e in range(5)]
    for k in kept:
        own = [e for e in range(5) if near[e] == k]
        torch.testing.assert_close(result.model.router.weight[k], row[own].mean(0))
        for name, p in result.model.experts[k].named_parameters():
            expected = torch.stack([net.experts[e].get_parameter(name) for e in own]).mean(0)
            torch.testing.assert_close(p, expected)
    more = prunus.prune(net, Task(example=x), replace(recipe, recover=ClusterMean(at_most=1)), sparsity=0.6)
    assert torch.equal(more.model.router.weight, net.router.weight)


def test_experts_then_weights() -> None:
    """STUN in two steps by hand: clusters cut out, then Wanda to what is asked of the whole model's weights."""
    case = CASES["moe"]
    model, task = case.model(torch.float32), case.task(torch.float32)
    result = prunus.prune(model, task, "stun", sparsity=0.5, experts=0.4)
    thin = prunus.prune(model, task, "expert_clusters", sparsity=0.4).compact()
    looked_at = (prunus.prune(m, task, "wanda", sparsity=0.5) for m in (model, thin))
    before, after = (sum(m.numel() for n, m in r.unit_masks.items() if n not in r.skipped) for r in looked_at)
    rest = prunus.prune(thin, task, "wanda", budget=Budget(density=0.5 * before / after))
    assert all(torch.equal(result.masks[n], m) for n, m in rest.masks.items())
    left = sum(int(m.sum()) for m in result.unit_masks.values())
    assert before > after and abs(left / before - 0.5) < 0.03  # whole weights of every row
    with pytest.raises(BudgetError, match="smaller experts"):
        prunus.prune(model, task, "stun", sparsity=0.05, experts=0.4)
    with pytest.raises(BudgetError, match="counts weights"):
        prunus.prune(model, task, "stun", budget=Budget(params=0.5))


def test_what_is_no_mixture_is_refused() -> None:
    case = CASES["mlp"]
    scored = replace(methods.reap, granularity=methods.magnitude.granularity)
    with pytest.raises(NothingScored):
        prunus.prune(case.model(), case.task(), scored, sparsity=0.5)
    clustered = replace(methods.magnitude, allocate=ExpertClusters())
    with pytest.raises(SpecError, match="experts with a router"):
        prunus.prune(case.model(), case.task(), clustered, sparsity=0.5)
