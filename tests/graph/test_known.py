"""Models on the meta device look at numbers that they make themselves, and what is said of weights without units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.graph import trace
from tests.graph.nets import Net
from tests.graph.proof import prove, some


def looking(look: Callable[[Tensor], Any]) -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.a(x)) * look(x)), a=nn.Linear(8, 6), b=nn.Linear(6, 4))


def own_positions(x: Tensor) -> float:
    """What masks of transformers ask: whether positions count up; and how many are even."""
    places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    steps = torch.diff(places, dim=1) != 1
    if not (steps == 0).all():
        raise ValueError("positions jump")
    mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    mask[1:] = True
    even = torch.nonzero(places[0] % 2 == 0)
    return float(mask.sum()) + even.shape[0] + x.new_ones(3).sum().item()


def test_numbers_that_the_forward_makes_are_known_on_meta() -> None:
    real = trace(looking(own_positions), torch.randn(1, 5, 8), probe=False)
    meta = trace(looking(own_positions).to("meta"), torch.randn(1, 5, 8, device="meta"))
    assert [(g.name, g.units) for g in meta.groups] == [(g.name, g.units) for g in real.groups] == [("a", 6)]


def written(x: Tensor) -> float:
    """A mask that begins as zeros and takes values from the input."""
    mask = torch.zeros(x.shape[1], device=x.device)
    mask[1:] = x[0, 1:, 0]
    return float(mask.sum())


@pytest.mark.parametrize("look", [lambda x: float(x.sum()), written, lambda x: torch.rand((), device=x.device).item()])
def test_numbers_from_inputs_are_not_known_on_meta(look: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DataError, match="no values on the meta device"):
        trace(looking(look).to("meta"), torch.randn(1, 5, 8, device="meta"))


class Positions(nn.Module):
    """A table longer than the example, a layer that does not run, and a layer of which one number comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 8))
        self.a, self.b, self.idle, self.one = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x + self.table[: x.shape[1]]))
        place = torch.einsum("btc,sc->bts", x, self.table[: x.shape[1]]).softmax(-1)
        return self.b(place @ hidden) + self.one(hidden)


def test_every_weight_is_in_a_group_or_has_a_reason() -> None:
    structure, _ = prove(Positions(), torch.randn(2, 5, 8))
    assert [(g.name, g.units) for g in structure.groups] == [("a", 6)]
    assert structure.frozen["idle.weight"] == "the example does not use it"
    grouped = {member.param for group in structure.groups for member in group.members}
    assert {"table", "a.weight", "b.weight", "idle.weight", "one.weight"} <= grouped | set(structure.frozen)


class NormedHeads(nn.Module):
    """Queries and keys are normalized over all their heads at once (OLMo 2, arXiv:2501.00656, section 2.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(24, 4)
        self.normed = nn.ModuleList([nn.RMSNorm(24, eps=1e-3), nn.RMSNorm(12, eps=1e-3)])

    def forward(self, x: Tensor) -> Tensor:
        made = self.normed[0](self.q(x)), self.normed[1](self.k(x)), self.v(x)
        q, k, v = (p.view(*x.shape[:2], -1, 6).transpose(1, 2) for p in made)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_heads_that_are_normalized_together_are_heads() -> None:
    structure, small = prove(NormedHeads(), torch.randn(2, 5, 8))
    (group,) = structure.groups
    assert group.kind == "kv group" and group.units == 2 and len(group.norms) == 2  # type: ignore[attr-defined]
    assert small.normed[0].weight.shape == (12,) and some(structure, 0.4)["q"].sum() == 1  # type: ignore[index,union-attr]


def test_positions_that_are_computed_are_not_taken_for_numbers_in_the_code() -> None:
    """The first index is found in the input and happens to be the number that stands beside it."""
    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(2, 4)}
    found = Net(lambda s, x: s.b(s.a(x)[0:1, :, (x.sum() * 0).long() + torch.tensor([0, 1])]), **layers)
    assert "picks positions" in trace(found, torch.randn(2, 5, 8)).frozen["a.weight"]
    given = Net(lambda s, x: s.b(s.a(x)[0:1, :, [0, 1]]), **layers)
    structure, _ = prove(given, torch.randn(2, 5, 8))
    assert [(g.name, g.units) for g in structure.groups] == [("a", 4)]
