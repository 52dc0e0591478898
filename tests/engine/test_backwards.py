"""Layers of a block from the last to the first, against all at once: every bit is the same, and less is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.core.errors import StructureError
from prunus.core.symmetric import Symmetric, numbers
from prunus.engine import backwards, rebuild
from prunus.engine.backwards import packed
from prunus.parts.evidence.capture import Capture
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import ObsUpdate
from tests.engine.test_waves import from_zoo, llama, rebuilt

Net = tuple[nn.Module, prunus.Task]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which weights came together."""
    seen: list[list[str]] = []
    own = rebuild.backwards

    def noted(session: Any, pruned: Any) -> Any:
        for groups, read in own(session, pruned):
            seen.append([g.name for g in groups])
            yield groups, read

    monkeypatch.setattr(rebuild, "backwards", noted)
    return seen


def both(monkeypatch: pytest.MonkeyPatch, net: Net, few: list[list[str]], **changes: Any) -> list[list[str]]:
    """Which came together, when it makes no difference to any number, nor to what is drawn next."""
    found, drawn = rebuilt(net, ObsUpdate(), sweep="blocks", **changes)
    together = list(few)
    with monkeypatch.context() as patch:
        patch.setattr(backwards, "fews", lambda session, groups, uses: [groups])
        at_once, drawn_at_once = rebuilt(net, ObsUpdate(), sweep="blocks", **changes)
    assert torch.equal(drawn, drawn_at_once)
    assert [n for n in found if not torch.equal(found[n], at_once[n])] == []
    return together


def test_a_llama_block_in_three(monkeypatch: pytest.MonkeyPatch, few: list[list[str]]) -> None:
    """No more at once than down's moments; queries, keys and values share theirs."""
    net = llama()
    most = held(monkeypatch)
    together = both(monkeypatch, net, few)
    kinds = [[n.split(".")[-2].removesuffix("_proj") for n in one] for one in together]
    assert kinds == [["down"], ["o", "gate", "up"], ["q", "k", "v"]] * 2
    assert most() == 3 * numbers(16) + numbers(24)  # when all are there at once
    rebuilt(net, ObsUpdate(), sweep="blocks")
    assert most() == numbers(24)


def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most numbers of moments that were there together, since it was last asked."""
    there, most = [0], [0]
    own, gone = Symmetric.__init__, Symmetric.__del__ if hasattr(Symmetric, "__del__") else None
    assert gone is None

    def made(self: Symmetric, panels: Any) -> None:
        own(self, panels)
        self.counted = sum(p.numel() for p in self.panels)  # type: ignore[attr-defined]
        there[0] += self.counted  # type: ignore[attr-defined]
        most[0] = max(most[0], there[0])

    def left(self: Symmetric) -> None:
        there[0] -= self.counted  # type: ignore[attr-defined]

    def asked() -> int:
        found, most[0] = most[0], there[0]
        return found

    monkeypatch.setattr(Symmetric, "__init__", made)
    monkeypatch.setattr(Symmetric, "__del__", left, raising=False)
    return asked


@pytest.mark.parametrize("name", ["gpt_tiny", pytest.param("moe_tiny", marks=pytest.mark.slow)])
def test_the_zoos_networks(name: str, monkeypatch: pytest.MonkeyPatch, few: list[list[str]]) -> None:
    assert both(monkeypatch, from_zoo(name), few)


class Odd(nn.Module):
    """Three maps, one after the other, and what may lie across them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.kind == "norm":
            x = x / self.back.weight.norm()
        if self.kind == "bias":
            x = x + self.back.bias.mean()
        if self.kind == "by batch" and len(x) > 2:
            x = x + self.back(self.c(x))
        if self.kind == "asked":
            x = x.to(self.back.weight.dtype)
        x = x + F.relu(self.a(x))
        x = x + F.relu(self.b(x))
        if self.kind == "chance" and self.calls % 3 == 0:
            x = self.a(x)
        if self.kind == "caught":
            try:
                y = self.c(x)
            except RuntimeError:
                y = self.c(x * 2)
            return x + self.back(F.relu(y))
        if self.kind == "twice":
            x = x + self.a(x)
        return x + self.back(F.relu(self.c(x)))


class Stacked(nn.Module):
    """Two such blocks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Odd(kind), Odd(kind)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def odd(kind: str) -> Net:
    torch.manual_seed(0)
    x = [torch.randn(n, 5, 8) for n in (2, 3)]
    return Stacked(kind), prunus.Task(calib=x, example=(x[0],))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", ["back", "a b c"]),
        ("asked", ["back", "a b c"]),
        ("caught", ["back", "a b c"]),
        ("norm", ["a b c back"]),
        ("bias", ["a b c back"]),
        ("by batch", ["a b c back"]),
        ("twice", ["a b c back"]),
    ],
)
def test_an_order_is_believed_only_where_every_batch_keeps_it(
    kind: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, few: list[list[str]]
) -> None:
    together = both(monkeypatch, odd(kind), few, granularity=Element())
    assert [" ".join(n.split(".")[-2] for n in one) for one in together[: len(expected)]] == expected


def test_a_forward_of_chance_is_named() -> None:
    with pytest.raises(StructureError, match="in another order when it is run again"):
        rebuilt(odd("chance"), ObsUpdate(), sweep="blocks")


def test_as_many_as_fit() -> None:
    def parts(*sizes: int) -> list[list[int]]:
        return [list(sizes[s]) for s in packed(sizes)]

    assert parts(3, 1, 1, 5) == [[5], [3, 1, 1]]
    assert parts(5, 1, 1, 5) == [[5], [1, 1], [5]]
    assert parts(2, 2, 2) == [[2], [2], [2]]
    assert parts(0, 0, 4) == [[0, 0, 4]]
    assert parts(4) == [[4]] and parts(0, 0) == [[0, 0]]


def test_stacks_whose_matrices_are_multiplied_together() -> None:
    """Rows of zeros are another expert's, and left out; whichever way the stack lies."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    x[0, 2:] = 0
    x[2] = 0
    w, turned = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(3, 4, 8))
    with Capture({"w": w, "turned": turned}, stacks=True) as seen:
        torch.bmm(x, w)
        x @ turned.mT
    for use, axis in zip(seen.uses, (1, 2), strict=True):
        assert (use.in_axis, use.shares) == (axis, (2, 5, 0))
        assert all(torch.equal(a, b) for a, b in zip(use.rows(), (x[0, :2], x[1], x[2, :0]), strict=True))
