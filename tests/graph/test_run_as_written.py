"""Models whose forward changes shapes in place, maps over samples, compiles a part of itself, swaps a module of itself
or gives no number once channels are zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.graph import trace
from tests.graph.proof import prove

Change = Callable[[Tensor], Tensor]


class Changed(nn.Module):
    """Two layers with a change between them that leaves the features as they are."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.a, self.b, self.h = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.h(F.relu(self.b(self.change(F.relu(self.a(x))))))
        return out


CHANGES: dict[str, Change] = {
    "squeeze_": lambda x: x.amax((2, 3), keepdim=True).squeeze_(-1).squeeze_(-1),
    "squeeze_ all": lambda x: x.amax((2, 3), keepdim=True).squeeze_(),
    "unsqueeze_": lambda x: x.amax((2, 3)).unsqueeze_(1).unsqueeze_(-2).flatten(1),
    "transpose_": lambda x: x.flatten(2).transpose_(1, 2),
    "swapdims_": lambda x: x.flatten(2).swapdims_(1, 2),
    "t_": lambda x: x.amax((2, 3)).t_().t(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_shapes_that_are_changed_in_place(name: str) -> None:
    model, example = Changed(CHANGES[name]), torch.randn(2, 3, 8, 8)
    structure, _ = prove(model, example)
    assert [g.name for g in structure.groups] == ["a", "b"]


class Mapped(nn.Module):
    """One sample at a time, through `torch.vmap` or by hand."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.c, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 16), nn.Linear(16, 3)

    def one(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.relu(self.a(self.c(x).mean((-2, -1)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = torch.vmap(self.one, in_dims=1)(x.movedim(0, 1)) if self.maps else self.one(x)
        return mapped


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "apoz", "thinet"])
def test_what_is_mapped_over_samples_is_seen_whole(method: str) -> None:
    pruned = []
    for maps in (True, False):
        torch.manual_seed(0)
        model, x = Mapped(maps), torch.randn(6, 3, 6, 6)
        pruned.append(prunus.prune(model, Task(calib=[x], example=x), method, sparsity=0.5).model.state_dict())
    assert all(torch.allclose(pruned[0][n], pruned[1][n], 1e-5, 1e-6) for n in pruned[1])
    assert any(bool((t == 0).any()) for t in pruned[1].values())


class Ensemble(nn.Module):
    """Members that run at once on their stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = [dict(m.named_parameters()) for m in self.members]
        stacked = {n: torch.stack([o[n] for o in own]) for n in own[0]}
        run = torch.vmap(lambda p: torch.func.functional_call(self.members[0], p, (x,)))
        out: Tensor = self.h(run(stacked).mean(0))
        return out


def test_members_that_run_on_stacked_weights() -> None:
    model, x = Ensemble(), torch.randn(2, 8)
    prove(model, x)
    result = prunus.prune(model, Task(calib=[x], example=x), "wanda", sparsity=0.5)
    assert set(result.skipped) == {n for n, p in model.named_parameters() if p.ndim == 2 and "members" in n}


class Branching(nn.Module):
    """An operator in the middle that is given functions."""

    def __init__(self, inner: Change) -> None:
        super().__init__()
        self.inner = inner
        self.a, self.b, self.h = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.h(F.relu(self.b(self.inner(self.a(x)))))
        return out


def chosen(y: Tensor) -> Tensor:
    out: Tensor = torch.cond(y.sum() > 0, lambda t: F.relu(t), lambda t: torch.tanh(t), (y,))
    return out


def looped(y: Tensor) -> Tensor:
    from torch._higher_order_ops import while_loop

    out: Tensor = while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, torch.tanh(t)), (torch.tensor(0), y))[1]
    return out


@pytest.mark.parametrize("inner", [chosen, looped])
def test_operators_that_are_given_functions(inner: Change) -> None:
    model, x = Branching(inner), torch.randn(2, 8)
    structure, _ = prove(model, x)
    assert [g.name for g in structure.groups] == ["a", "b"]
    assert prunus.measure.macs(model, x).total == 2 * (8 * 16 + 16 * 8 + 8 * 3)


class Flexible(nn.Module):
    """Flex attention behind a layer that it has nothing to do with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.qkv, self.h = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        x = self.b(F.relu(self.a(x)))
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        found: Any = flex_attention(q, k, v)
        out: Tensor = self.h(found.transpose(1, 2).flatten(2))
        return out


def test_flex_attention() -> None:
    model = Flexible().requires_grad_(False)  # its kernel on CPUs has no backward pass
    structure = trace(model, x := torch.randn(2, 6, 8))
    assert [g.name for g in structure.groups] == ["a", "b"]
    prunus.prune(model, Task(example=x), "l1_filter", sparsity=0.5).compact()


class Swapping(nn.Module):
    """Puts another module in the place of one of its own when it runs, and says so in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.h, self.swapped = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.swapped:
            self.act, self.swapped = nn.Tanh(), True  # type: ignore[assignment]
        out: Tensor = self.h(self.act(self.a(x)))
        return out


def test_modules_that_a_forward_swaps_come_back() -> None:
    model = Swapping()
    trace(model, torch.randn(2, 8))
    assert type(model.act) is nn.ReLU
    assert not model.swapped


class PartlyCompiled(nn.Module):
    """One module of it is compiled, by a compiler that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.a, self.h = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12)), nn.Linear(12, 3)
        self.compiled = torch.compile(self._first, backend=self._compile)

    def _compile(self, module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        self.calls += 1
        return module.forward

    def _first(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.a(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.h(self.compiled(x))
        return out


def test_compiled_parts_run_as_they_were_written() -> None:
    model, x = PartlyCompiled().eval(), torch.randn(4, 8)
    assert [g.name for g in trace(model, x, probe=False).groups] == ["a.0", "a.2"]
    result = prunus.prune(model, Task(calib=[x], example=x), "wanda", sparsity=0.5)
    assert model.calls == 0
    assert float((result.model.a[0].weight == 0).float().mean()) == 0.5  # type: ignore[union-attr, operator, index]


class Divided(nn.Module):
    """One layer is divided by its own spread over the image: zero by zero where a channel is gone."""

    def __init__(self, spoilt: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3)
        self.h, self.spoilt = nn.Linear(8, 3), spoilt

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        y = self.c(y / y.std((2, 3), keepdim=True))
        out: Tensor = self.h(F.relu(y).mean((2, 3)))
        return out * float("nan") if self.spoilt else out


def test_only_what_gives_no_number_when_it_is_zero_stays_whole() -> None:
    example = torch.randn(2, 3, 9, 9)
    structure, _ = prove(Divided(), example)
    assert [g.name for g in structure.groups] == ["a", "c"]
    assert "with units of it at zero" in structure.frozen["b.weight"]
    assert not trace(Divided(spoilt=True), example).groups
