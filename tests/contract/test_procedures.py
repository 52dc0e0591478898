"""Procedures through the checks that recipes go through, as far as an algorithm without a timeline has them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import prunus
from prunus import Recipe, Result, methods
from prunus.core.errors import SpecError
from tests.contract.models import CASES, Case, classify
from tests.contract.runs import difference, quiet, rng, same, state

NAMES = methods.procedures()
EVERY = pytest.mark.parametrize("name", NAMES)
# What a procedure needs to be small enough for a test; the algorithm stays the same.
SMALL: dict[str, dict[str, object]] = {
    "legr": {"population": 3, "sample": 2, "generations": 5},
    "eagle_eye": {"candidates": 3},
    "random_channel_pruning": {"candidates": 3},
    "stun": {"experts": 0.4},
}


class Step(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = torch.nn.LayerNorm(8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Deep(torch.nn.Module):
    """Blocks that are alike, as many as it takes to merge half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.outlet = torch.nn.Linear(12, 8), torch.nn.Linear(8, 4)
        self.layers = torch.nn.ModuleList(Step() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for layer in self.layers:
            x = layer(x)
        return self.outlet(x)


THERE = CASES | {"deep": Case("deep", Deep, (12,), classify)}
# Where a procedure needs what the convolutional network has not.
ELSEWHERE: dict[str, str] = {"laco": "deep", "stun": "moe"}
# What was cut out before counts as pruned, so that less of the rest is.
CUT_OUT = ("stun",)
STEPS = 6


def network(name: str) -> str:
    return ELSEWHERE.get(name, "cnn")


def ran(name: str, seed: int = 0) -> Result:
    case = THERE[network(name)]
    task = case.task()
    with quiet():
        told = {"sparsity": 0.5, "steps": STEPS, "seed": seed, "optimizer": sgd, **SMALL.get(name, {})}
        return prunus.prune(case.model(), task, name, **told)  # type: ignore[arg-type]


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


@cache
def once(name: str) -> Result:
    return ran(name)


@EVERY
def test_it_keeps_to_the_budget(name: str) -> None:
    """Never more than half of the units is kept, and not much less (multiples, minima, whole configurations)."""
    result = once(name)
    assert (0.3 if name in CUT_OUT else 0.5 - 1e-9) <= result.sparsity <= 0.75 and result.unit_masks


@EVERY
def test_what_is_masked_is_zero_and_lives(name: str) -> None:
    result = once(name)
    named = dict(result.model.named_parameters())
    assert all(not named[n][~m].any() for n, m in result.masks.items())
    assert all(torch.isfinite(p).all() for p in named.values())


@EVERY
def test_the_same_seed_gives_the_same_network(name: str) -> None:
    again = ran(name)
    assert same(once(name).masks, again.masks)
    assert same(dict(once(name).model.named_parameters()), dict(again.model.named_parameters()))


@EVERY
def test_the_users_model_and_the_global_generators_are_left_alone(name: str) -> None:
    case = THERE[network(name)]
    model, before = case.model(), rng()
    was = state(model)
    with quiet():
        told = {"sparsity": 0.5, "steps": STEPS, "optimizer": sgd, **SMALL.get(name, {})}
        prunus.prune(model, case.task(), name, **told)  # type: ignore[arg-type]
    assert not difference(was, state(model)) and rng() == before


@EVERY
def test_it_ends_in_a_recipe_and_in_a_model_that_compacts(name: str) -> None:
    result, method = once(name), methods.find(name)
    assert isinstance(result.recipe, Recipe) and result.recipe.structure == method.taxonomy()["structure"]
    assert Recipe.from_dict(result.recipe.to_dict()) == result.recipe
    if result.recipe.structure == "structured":
        result.compact()
        assert result.verified_error is not None and result.verified_error < 1e-9


@EVERY
def test_it_says_what_it_needs(name: str) -> None:
    with pytest.raises(SpecError, match="needs to know how much"):
        prunus.prune(CASES["cnn"].model(), CASES["cnn"].task(), name)
    with pytest.raises(SpecError, match="procedure"):
        prunus.Session(CASES["cnn"].model(), name, sparsity=0.5)
