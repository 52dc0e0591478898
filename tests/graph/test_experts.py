"""Whole experts: found by trying, removed as if their logits were minus infinity, proved against routing by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
import prunus.deploy
from prunus import Budget, methods
from prunus.core.errors import BudgetError, SpecError, StructureError, VerificationError
from prunus.graph import compact, compact_optimizer, masked_, replay_, verify
from prunus.graph.mixture.experts import experts
from prunus.graph.mixture.group import ExpertGroup
from prunus.graph.verify import outputs, reference
from prunus.graph.wide import Wide
from prunus.parts.granularity import Expert
from tests.graph.mixtures import (
    EXPERTS,
    WIDTH,
    Blend,
    Capacity,
    Fused,
    Hashed,
    Layers,
    Mixture,
    Named,
    Noisy,
    Pair,
    Rows,
    Setting,
    Soft,
    Sorted,
    Stacked,
    Switch,
    Tasks,
    TopTwo,
    TopTwoFirst,
    mlp,
    tokens,
)


def keeps(group: ExpertGroup, *kept: int) -> dict[str, Tensor]:
    mask = torch.zeros(group.units, dtype=torch.bool)
    mask[list(kept)] = True
    return {group.name: mask}


def by_hand(net: Mixture, x: Tensor, kept: list[int]) -> Tensor:
    """Every token on its own, routed among the experts that are left."""
    rows = []
    for token in x:
        logits = torch.stack([net.router.weight[e] @ token + net.router.bias[e] for e in kept])
        if isinstance(net, TopTwo):
            shares = logits.softmax(0)
            best = shares.argsort(descending=True)[:2].tolist()
        elif isinstance(net, TopTwoFirst):
            best = logits.argsort(descending=True)[:2].tolist()
            shares = torch.zeros_like(logits)
            shares[best] = logits[best].softmax(0)
        elif isinstance(net, Switch):
            shares = logits.softmax(0)
            best = [int(shares.argmax())]
        else:
            shares, best = logits.softmax(0), list(range(len(kept)))
        rows.append(token + sum(shares[i] * net.experts[kept[i]](token) for i in best))
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "least"), [(TopTwo, 2), (TopTwoFirst, 2), (Switch, 1), (Soft, 1)])
def test_lists_of_experts_leave_as_routing_by_hand_says(kind: type[Mixture], least: int) -> None:
    torch.manual_seed(0)
    net, x = kind().double(), tokens().double()
    (group,) = experts(net, x).groups
    assert (group.name, group.units, group.at_least, group.kind) == ("experts", EXPERTS, least, "expert")
    assert group.lists == ("experts",) and group.routed == (kind is not Soft)
    for kept in ([0, 2, 3], [1, 4], [2, 3, 4, 0][:3]):
        masks = keeps(group, *kept)
        expected = by_hand(net, x, sorted(kept))
        small, _ = compact(net, [group], masks, x)
        assert len(small.experts) == small.num_experts == small.router.out_features == len(kept)
        torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)
        masked = masked_(copy.deepcopy(net), [group], masks)
        torch.testing.assert_close(outputs(reference(masked, [group], masks), x)[0], expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(VerificationError):  # zeros alone are not what was asked for
            verify(masked, small, x)
    with pytest.raises(SpecError, match="keeps"):
        compact(net, [group], keeps(group, *range(least - 1)))


def stacked_by_hand(net: Stacked, x: Tensor, kept: list[int]) -> Tensor:
    """The same for `Stacked`, whose parts are those of the dense model."""
    each = net.size // net.parts
    rows = []
    for token in x:
        scores = {e: torch.sigmoid(net.gate[:, e] @ token) for e in kept}
        choice = {e: float((scores[e] + net.correction[e]).detach()) for e in kept}
        worth = [
            sum(sorted((c for e, c in choice.items() if e // each == part), reverse=True)[:2])
            for part in range(net.parts)
        ]
        open_ = [e for e in kept if net.parts == 1 or e // each != worth.index(min(worth))]
        best = sorted(open_, key=lambda e: choice[e], reverse=True)[:2]
        total = sum(scores[e] for e in best)
        y = token.clone()
        for e in best:
            inner = (token @ net.up[e] + net.up_bias[e]).relu()
            y = y + inner @ net.down[e] * scores[e] / total * net.scale[e]
        rows.append(net.out(y))
    return torch.stack(rows)


@pytest.mark.parametrize(("parts", "least", "kept"), [(1, 2, [0, 3, 4]), (3, 6, [0, 2, 3, 4, 7, 8])])
def test_slices_of_tensors_leave_as_routing_by_hand_says(parts: int, least: int, kept: list[int]) -> None:
    torch.manual_seed(0)
    net, x = Stacked(9 if parts > 1 else EXPERTS, parts).double().eval(), tokens().double()
    (group,) = experts(net, x).groups
    assert (group.at_least, group.parts, group.multiple) == (least, parts, parts)
    names = {m.param for m in group.members}
    assert names == {"gate", "up", "up_bias", "down", "scale", "correction", "load"}
    assert {g.tensor for g in group.gates} == {"gate", "correction"}
    assert {m.param for m in group.with_role("out")} == {"up", "down"} and group.members[0].param == "up"
    torch.testing.assert_close(net(x), stacked_by_hand(net, x, list(range(net.size))))
    small, _ = compact(net, [group], keeps(group, *kept), x)
    torch.testing.assert_close(small(x), stacked_by_hand(net, x, kept), rtol=1e-12, atol=1e-12)
    small.train()(x).sum().backward()
    assert int(small.load.sum()) == 2 * len(x) and small.size == (net.size if parts == 1 else len(kept))


def test_the_fewest_and_the_counts_are_found_by_trying() -> None:
    torch.manual_seed(0)
    (group,) = experts(Sorted().double(), tokens().double()).groups
    assert group.at_least == 2 and [c.target for c in group.counts] == ["num_experts"]
    (group,) = experts(Named().double(), tokens().double()).groups
    assert group.at_least == 2 and [c.target for c in group.counts] == ["how_many"]


def test_all_in_one_product() -> None:
    torch.manual_seed(0)
    net, x = Fused().double(), tokens().double()
    (group,) = experts(net, x).groups
    assert group.at_least == 1 and not group.routed
    small, _ = compact(net, [group], keeps(group, 1, 4), x)
    shares = (x @ net.router.weight[[1, 4]].T).softmax(-1)
    expected = sum(x @ net.weight[e] * shares[:, i, None] for i, e in enumerate((1, 4)))
    torch.testing.assert_close(small(x), expected)


def test_the_router_may_be_as_wide_as_it_has_experts() -> None:
    torch.manual_seed(0)
    net = TopTwo()
    net.router, net.experts = nn.Linear(WIDTH, WIDTH), nn.ModuleList(mlp() for _ in range(WIDTH))
    (group,) = experts(net, tokens()).groups
    assert [(m.param, m.dim) for m in group.members if m.unit is None] == [("router.weight", 0), ("router.bias", 0)]


def test_noise_on_the_logits_goes_with_the_experts() -> None:
    torch.manual_seed(0)
    (group,) = experts(Noisy(), tokens()).groups
    assert {m.param for m in group.members if m.unit is None} == {
        "router.weight", "router.bias", "noise.weight", "noise.bias",
    }  # fmt: skip


def test_two_mixtures_in_one_module() -> None:
    torch.manual_seed(0)
    net, x = Pair().double(), tokens().double()
    first, second = experts(net, x).groups
    assert (first.name, second.name) == ("first", "second")
    small, _ = compact(net, [first, second], keeps(first, 0, 1) | keeps(second, 2), x)
    assert (len(small.first), len(small.second)) == (2, 1)


def test_routers_that_share_their_experts() -> None:
    torch.manual_seed(0)
    net, x = Tasks().double(), tokens().double()
    (group,) = experts(net, x).groups
    assert {g.tensor for g in group.gates} == {"routers.0.weight", "routers.1.weight"}
    small, _ = compact(net, [group], keeps(group, 0, 3), x)
    every = torch.stack([net.experts[e](x) for e in (0, 3)], 1)
    shares = [r(x)[:, [0, 3]].softmax(-1).unsqueeze(-1) for r in net.routers]
    torch.testing.assert_close(small(x), torch.cat([(every * s).sum(1) for s in shares], -1))


def test_experts_that_are_rows_of_a_matrix() -> None:
    torch.manual_seed(0)
    net, x = Rows().double(), tokens().double()
    (group,) = experts(net, x).groups
    assert {m.param for m in group.members} == {"router.2.weight", "router.2.bias", "up.weight", "up.bias", "down"}
    assert group.at_least == 1 and not group.routed
    small, _ = compact(net, [group], keeps(group, 1, 2, 4), x)
    kept = [1, 2, 4]
    shares = net.router(x)[:, kept].softmax(-1)
    y = net.up(x).view(-1, EXPERTS, 4).relu()[:, kept]
    y = torch.einsum("tef,efd,te->td", y, net.down.view(EXPERTS, 4, WIDTH)[kept], shares)
    torch.testing.assert_close(small(x), x + y)
    assert small.up.out_features == 12 and small.router[2].out_features == 3


def test_weights_that_are_blended() -> None:
    torch.manual_seed(0)
    net, x = Blend().double(), tokens().double()
    (group,) = experts(net, x).groups
    assert {m.param: m.role for m in group.members} == {
        "weight": "out", "bias": "bias", "route.weight": "other", "route.bias": "other",
    }  # fmt: skip
    small, _ = compact(net, [group], keeps(group, 0, 2), x)
    shares = net.route(x).sigmoid()[:, [0, 2]]
    matrix = net.weight[[0, 2]].view(2, WIDTH, WIDTH)
    expected = torch.einsum("td,edf,te->tf", x, matrix, shares) + shares @ net.bias[[0, 2]]
    torch.testing.assert_close(small(x), expected)


def test_what_cannot_be_removed_says_why() -> None:
    torch.manual_seed(0)
    (reason,) = experts(Capacity(), tokens()).refused.values()
    assert reason.startswith("tried and found not removable: removing experts changes the output by")
    every = TopTwo()
    every.router, every.experts = nn.Linear(WIDTH, 2), nn.ModuleList(mlp() for _ in range(2))
    assert experts(every, tokens()).refused == {
        "experts": "all 2 experts are needed: router.weight chooses 2 of them at once"
    }
    assert not experts(Hashed(), tokens()).groups
    found = experts(nn.Sequential(nn.Linear(WIDTH, 4), nn.Sigmoid(), nn.Linear(4, 4)), tokens())
    assert not found.groups and not found.refused
    with pytest.raises(StructureError, match="no values"):
        experts(TopTwo().to("meta"), tokens())
    with pytest.raises(StructureError, match=r"no expert of Capacity can be removed; experts: tried"):
        Expert()(Capacity(), (tokens(),))


def test_the_reference_leaves_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    net, x = TopTwo(), tokens()
    (group,) = experts(net, x).groups
    before = net(x)
    with group.aside(net, keeps(group, 0, 1)["experts"]):
        assert bool((net(x) != before).any())
        with pytest.raises(RuntimeError):
            net(x[:, 1:])
    assert "forward" not in vars(net) and torch.equal(net(x), before)


def test_names_that_count_are_given_out_anew() -> None:
    torch.manual_seed(0)
    net, x = Named().double(), tokens().double()
    net.experts = nn.ModuleDict({f"expert_{i}": mlp().double() for i in range(EXPERTS)})
    (group,) = experts(net, x).groups
    small, edits = compact(net, [group], keeps(group, 1, 2, 4), x)
    assert list(small.experts) == ["expert_0", "expert_1", "expert_2"]
    fresh = Named().double()
    fresh.experts = nn.ModuleDict({f"expert_{i}": mlp().double() for i in range(EXPERTS)})
    replay_(fresh, edits).load_state_dict(small.state_dict())
    assert torch.equal(fresh(x), small(x))
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    moved = compact_optimizer(optimizer, net, small, edits)
    state = moved.state[small.experts["expert_2"][0].weight]["exp_avg"]
    assert torch.equal(state, optimizer.state[net.experts["expert_4"][0].weight]["exp_avg"])


def test_a_configuration_follows_where_all_routers_agree() -> None:
    torch.manual_seed(0)
    setting = Setting()
    net, x = Layers(setting).double(), tokens().double()
    one, other = experts(net, x).groups
    assert (one.name, other.name) == ("layers.0.experts", "layers.1.experts")
    same = keeps(one, 0, 1, 4) | keeps(other, 1, 2, 3)
    small, edits = compact(net, [one, other], same, x)
    assert small.cfg.num_experts == 3 and small.layers[0].cfg is small.cfg and setting.num_experts == EXPERTS
    fresh = Layers(setting)
    assert replay_(fresh, edits).cfg.num_experts == 3 and setting.num_experts == EXPERTS
    uneven = keeps(one, 0, 1) | keeps(other, 1, 2, 3)
    assert compact(net, [one, other], uneven, x)[0].cfg.num_experts == EXPERTS
    assert compact(net, [one], keeps(one, 0, 1), x)[0].cfg.num_experts == EXPERTS


def test_granularity_arguments() -> None:
    torch.manual_seed(0)
    net, example = Layers(Setting()), (tokens(),)
    assert [g.name for g in Expert(exclude=("layers.1.*",))(net, example)] == ["layers.0.experts"]
    assert [g.name for g in Expert(exclude=("*.0.router.weight",))(net, example)] == ["layers.1.experts"]
    assert [g.at_least for g in Expert(at_least=4)(net, example)] == [4, 4]
    with pytest.raises(StructureError, match="all 5 experts are to stay"):
        Expert(at_least=5)(net, example)
    with pytest.raises(SpecError, match="at least 1"):
        Expert(at_least=0)
    with pytest.raises(SpecError, match="example"):
        Expert()(net, None)
    assert Expert.from_dict(Expert(exclude=("a",)).to_dict()) == Expert(exclude=("a",))


def test_from_scores_to_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = TopTwo(), tokens()
    recipe, task = replace(methods.l1_filter, granularity=Expert()), prunus.Task(example=x)
    worth = torch.tensor(
        [sum(float(p.detach().abs().sum()) for p in e.parameters() if p.ndim > 1) for e in net.experts]
    )
    torch.testing.assert_close(prunus.score(net, task, recipe)["experts"], worth)
    result = prunus.prune(net, task, recipe, sparsity=0.4)
    kept = sorted(worth.topk(3).indices.tolist())
    assert result.unit_masks["experts"].nonzero().squeeze(1).tolist() == kept
    assert not any(bool(p.any()) for e in set(range(EXPERTS)) - set(kept) for p in result.model.experts[e].parameters())
    assert torch.equal(result.model.router.weight, net.router.weight)
    small = result.compact()
    torch.testing.assert_close(small(x), by_hand(net, x, kept))
    prunus.save(result, tmp_path / "saved", compact=True)
    assert torch.equal(prunus.load(tmp_path / "saved", TopTwo)(x), small(x))


def test_budgets() -> None:
    torch.manual_seed(0)
    x = tokens()
    recipe, task = replace(methods.l1_filter, granularity=Expert()), prunus.Task(example=x)
    small = prunus.prune(net := TopTwo(), task, recipe, budget=Budget(params=0.7)).compact()
    assert 0.4 < sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters()) <= 0.7
    with pytest.raises(BudgetError):  # two experts per token, however many there are
        prunus.prune(TopTwo(), task, recipe, budget=Budget(macs=0.7))
    soft = Soft()
    small = prunus.prune(soft, task, recipe, budget=Budget(macs=0.7)).compact()
    assert len(small.experts) == 3
    kept = prunus.prune(Stacked(9, 3), task, recipe, sparsity=0.3).unit_masks["up"]
    assert kept.view(3, 3).sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "setting"),
    [("Mixtral", {"num_local_experts": 4}), ("GptOss", {"num_local_experts": 4, "sliding_window": 4})],
)
def test_a_folder_of_transformers_says_how_many(name: str, setting: dict[str, int], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
             "head_dim": 8, "num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 32}  # fmt: skip
    kind = getattr(transformers, f"{name}ForCausalLM")
    model = kind(getattr(transformers, f"{name}Config")(**sizes, **setting, num_experts_per_tok=2)).eval()
    task = prunus.Task(example={"input_ids": torch.randint(3, 32, (2, 9))})
    result = prunus.prune(model, task, replace(methods.l1_filter, granularity=Expert()), sparsity=0.5)
    assert {g.name for g in result.groups} == {f"model.layers.{i}.mlp.experts" for i in range(2)}
    saved = prunus.deploy.save_pretrained(result, tmp_path / "folder")
    assert saved.uniform and saved.changed == {"num_local_experts": (4, 2)}
    back = kind.from_pretrained(tmp_path / "folder").eval()
    torch.testing.assert_close(back(**task.example).logits, result.compact()(**task.example).logits)


@pytest.mark.parametrize("sizes", [(3, 0, 4), (0, 0, 5), (2, 2, 0)])
def test_rows_times_a_stack_in_float64(sizes: tuple[int, ...]) -> None:
    """PyTorch's product is for float32 and less; in a proof it is done one matrix at a time."""
    torch.manual_seed(0)
    rows, stack = torch.randn(sum(sizes), 8), torch.randn(len(sizes), 4, 8).mT
    offs = torch.tensor(sizes).cumsum(0).to(torch.int32)
    expected = F.grouped_mm(rows, stack, offs=offs)
    with Wide():
        found = F.grouped_mm(rows.double(), stack.double(), offs=offs)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected)
