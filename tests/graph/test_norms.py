"""Widths that root-mean-square norms average over: removed exactly, the norms put right."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.graph import compact, trace
from prunus.graph.norms import find_norm
from prunus.parts.granularity import Channel, Width
from tests.graph.proof import producers, prove, some


class ByHand(nn.Module):
    """As Llama writes it, with the cast to float32."""

    def __init__(self, size: int, plus: float = 0.0) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.plus = nn.Parameter(torch.randn(size)), 1e-5, plus

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.plus + self.weight) * wide.to(x.dtype)


class Centred(ByHand):
    """A LayerNorm by hand: its mean cannot be put right."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class Stream(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 10), norm
        self.up, self.down, self.head = nn.Linear(10, 16), nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.down(self.up(self.norm(x)).relu())))


class Tokens(nn.Module):
    """Learned tokens: one joined to the others, one in the place of those that are hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(4, 10), nn.RMSNorm(10), nn.Linear(10, 3)
        self.first, self.hidden = nn.Parameter(torch.randn(1, 1, 10)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.where(x[..., :1] > 0, self.embed(x), self.hidden)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(tokens))


def test_learned_tokens_are_masked() -> None:
    torch.manual_seed(0)
    structure, _ = prove(Tokens(), torch.randn(2, 5, 4))
    (group,) = structure.groups
    assert {m.param: m.role for m in group.members if m.param in ("first", "hidden")} == {
        "first": "bias",
        "hidden": "bias",
    }


IDS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
NORMS = {
    "nn.RMSNorm": lambda: nn.RMSNorm(10, eps=1e-3),
    "nn.RMSNorm without eps": lambda: nn.RMSNorm(10),
    "by hand": lambda: ByHand(10),
    "one plus": lambda: ByHand(10, 1.0),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_width_goes(name: str) -> None:
    torch.manual_seed(0)
    structure, small = prove(Stream(NORMS[name]()), IDS)
    kinds = {g.kind: g for g in structure.groups}
    assert sorted(kinds) == ["neuron", "width"]
    assert kinds["width"].units == 10
    assert {"embed.weight", "down.weight"} <= producers(structure)
    assert dict(small.named_parameters())["norm.weight"].shape == (6,)


@pytest.mark.parametrize("norm", [nn.LayerNorm(10), Centred(10)])
def test_means_of_the_values_themselves_are_refused(norm: nn.Module) -> None:
    torch.manual_seed(0)
    for probe in (True, False):
        structure = trace(Stream(norm), IDS, probe=probe)
        assert producers(structure) == {"up.weight"}
        assert "embed.weight" in structure.frozen


def test_what_is_no_norm_is_not_found() -> None:
    assert find_norm("n", nn.LayerNorm(8), 8) is None
    assert find_norm("n", nn.Linear(8, 8), 8) is None
    assert find_norm("n", nn.RMSNorm(8), 4) is None
    found = find_norm("n", ByHand(8, 1.0), 8)
    assert found is not None
    assert (found.parameter, found.eps, found.offset) == ("n.weight", "variance_epsilon", 1.0)


def test_epsilon_and_weights_are_put_right() -> None:
    torch.manual_seed(0)
    model = Stream(ByHand(10)).double()
    structure = trace(model, IDS)
    masks = some(structure, 0.4)
    masks = {g.name: masks[g.name] if g.kind == "width" else torch.ones_like(masks[g.name]) for g in structure.groups}
    small, edits = compact(model, structure.groups, masks, IDS)
    keep = next(masks[g.name] for g in structure.groups if g.kind == "width")
    norm = small.get_submodule("norm")
    assert norm.variance_epsilon == pytest.approx(1e-5 * 10 / 6, rel=1e-12)
    assert torch.allclose(norm.weight, model.norm.weight[keep] * (10 / 6) ** 0.5)
    assert model.norm.variance_epsilon == 1e-5
    assert [e.target for e in edits if isinstance(e.old, float)] == ["norm.variance_epsilon"]


def test_a_recipe_prunes_the_width_and_the_result_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stream(ByHand(10))
    recipe = replace(prunus.methods.get("l1_filter"), granularity=Width())
    result = prunus.prune(model, prunus.Task(example=(IDS,)), recipe, sparsity=0.5)
    small = result.compact()
    assert small.get_submodule("embed").weight.shape == (11, 5)
    prunus.save(result, tmp_path / "pruned")
    again = prunus.load(tmp_path / "pruned", lambda: copy.deepcopy(model))
    assert torch.equal(again.eval()(IDS), small.eval()(IDS))
    channels = replace(recipe, granularity=Channel())
    result = prunus.prune(model, prunus.Task(example=(IDS,)), channels, sparsity=0.5)
    assert result.compact().get_submodule("embed").weight.shape == (11, 10)
