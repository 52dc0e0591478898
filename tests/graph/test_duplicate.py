"""Copies of models whose functions know the model: lambdas, hooks, forwards that were wrapped or compiled."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.graph.duplicate import duplicate


class Plain(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def first(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.relu(self.a(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.h(F.relu(self.first(x)))
        return out


def lambdas() -> Plain:
    """Steps in a list, one through its closure and one through a default."""
    model: Any = Plain()
    model.steps = [lambda x: model.a(x), F.relu, lambda x, layer=model.b: layer(x)]
    model.first = lambda x: functools.reduce(lambda y, step: step(y), model.steps, x)
    return model  # type: ignore[no-any-return]


def bound() -> Plain:
    """A partial of a function that holds one of its methods."""
    model: Any = Plain()
    method = model.first
    model.first = functools.partial(lambda scale, x: method(x) * scale, 1.0)
    return model  # type: ignore[no-any-return]


def compiled() -> Plain:
    """Its own forward in compiled form."""
    model: Any = Plain()
    model.forward = torch.compile(model.forward)
    return model  # type: ignore[no-any-return]


def hooked() -> Plain:
    """Features that a hook keeps in a dict and the forward reads there."""
    model: Any = Plain()
    kept = model.kept = {}

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        kept["b"] = out

    def first(x: Tensor) -> Tensor:
        Plain.first(model, x)
        found: Tensor = kept["b"]
        return found

    model.b.register_forward_hook(keep)
    model.first = first
    return model  # type: ignore[no-any-return]


def recursive() -> Plain:
    """A function that calls itself."""
    model: Any = Plain()
    layers = [model.a, model.b]

    def run(x: Tensor, depth: int = 0) -> Tensor:
        out: Tensor = layers[depth](x)
        return out if depth else run(F.relu(out), 1)

    model.first = run
    return model  # type: ignore[no-any-return]


class Helper:
    """Runs two layers of a model that it knows."""

    def __init__(self, model: Plain) -> None:
        self.model = model

    def run(self, x: Tensor) -> Tensor:
        return Plain.first(self.model, x)


def helped() -> Plain:
    """A function that holds a helper that holds the model, and a module that knows the model weakly."""
    model: Any = Plain()
    helper, above = Helper(model), weakref.ref(model)
    model.a.above = above
    model.first = lambda x: helper.run(x) + 0 * model.a.above().b.bias + 0 * above().b.bias
    return model  # type: ignore[no-any-return]


MAKERS = (lambdas, bound, compiled, hooked, recursive, helped)


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_runs_its_own_modules_only(make: Callable[[], Plain]) -> None:
    model, x = make(), torch.randn(4, 8)
    with torch.compiler.set_stance("force_eager"):
        before = model(x)
        twin = duplicate(model)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert not twin(x).any()
        assert torch.equal(model(x), before)
        assert torch.equal(duplicate(model)(x), before)


@pytest.mark.parametrize("make", MAKERS)
def test_such_models_are_pruned_like_any_other(make: Callable[[], Plain], tmp_path: Path) -> None:
    x, pruned = torch.randn(4, 8), []
    for build in (make, Plain):
        torch.manual_seed(0)
        pruned.append(prunus.prune(build(), Task(example=x), "l1_filter", sparsity=0.5))
    result, plain = pruned
    assert [g.name for g in result.groups] == ["a", "b"]
    with torch.compiler.set_stance("force_eager"):
        small = result.compact()
        assert torch.allclose(small(x), plain.compact()(x))
        prunus.save(result, tmp_path / "small")
        assert torch.allclose(prunus.load(tmp_path / "small", make)(x), small(x))
        torch.manual_seed(0)
        same = prunus.prune(make(), Task(calib=[x], example=x), "wanda", sparsity=0.5)
        assert not same.skipped
        assert float((same.model.a.weight == 0).float().mean()) == 0.5  # type: ignore[union-attr, operator]


def test_functions_that_know_nothing_of_the_model_stay() -> None:
    scale = [2.0]
    model: Any = Plain()
    model.scaled, model.kept = (lambda x: x * scale[0]), model.first
    twin: Any = duplicate(model)
    assert twin.scaled is model.scaled
    assert twin.kept.__self__ is twin
