"""What the masks of every recipe must be, on every network: exact, repeatable, true of the weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import prunus
from prunus import Recipe, Result
from prunus.core.errors import SpecError
from prunus.parts.schedule import Iterative, OneShot
from tests.contract.models import CASES, Case, seeded
from tests.contract.runs import (
    NOTHING_TO_READ,
    PAIRS,
    SPARSITY,
    STRUCTURED,
    asked,
    dense,
    fixed,
    one_shot,
    pruned,
    random_parts,
    recipe,
    rewrites,
    same,
)

EVERY = pytest.mark.parametrize(("name", "network"), PAIRS)


# Draws that only estimate something: on networks of clear-cut layers they come to the same. Factors that only training
# takes off zero: without it they do not count.
ESTIMATES = {("information_concentration", name) for name in ("mlp", "decoder", "moe")}
ESTIMATES |= {("pst", name) for name in CASES}
DRAWN = [p for p in PAIRS if (p[1] == "cnn" or random_parts(recipe(p[0]))) and p not in ESTIMATES]


@pytest.mark.parametrize(("name", "network"), DRAWN)
def test_the_seed_matters_to_random_recipes_and_to_no_others(name: str, network: str) -> None:
    found, first = recipe(name), one_shot(name, network).masks
    seeds = range(1, 6 if random_parts(found) else 2)  # of a few heads one seed in two may choose the same
    others = (pruned(found, CASES[network], seed=seed).masks for seed in seeds)
    assert any(not same(other, first) for other in others) == random_parts(found)


def kept_of(units: int, density: float, rounding: str) -> int:
    """The count of the rounding rule, in exact decimal arithmetic."""
    exact = Fraction(str(round(density, 10))) * units
    return {"floor": math.ceil(exact), "nearest": math.floor(exact + Fraction(1, 2)), "ceil": math.floor(exact)}[
        rounding
    ]


def free(result: Result) -> bool:
    """No group constrains how many of its units may go."""
    return all(g.at_least <= 1 and g.multiple == g.parts == 1 for g in result.groups)


@EVERY
def test_the_kept_count_is_what_was_asked(name: str, network: str) -> None:
    result, found = one_shot(name, network), recipe(name)
    masks, density = result.unit_masks, 1 - SPARSITY
    allocate = found.allocate
    if fixed(found):
        for mask in masks.values():
            assert (mask.reshape(-1, allocate.m).sum(1) == allocate.n).all()
        return
    if name in ("refill", "regroup"):  # a layer's count is whole filters or strips, the nearest to a ranking's
        total = sum(int(m.sum()) for m in masks.values())
        slack = sum(m.shape[1] if name == "refill" else allocate.rows for m in masks.values())
        assert abs(total - density * sum(m.numel() for m in masks.values())) <= slack
        return
    if allocate.pattern and hasattr(allocate.of, "m"):  # a number of kernels in every layer, each with its own share
        inside = allocate.of
        for mask in masks.values():
            kernels = mask.reshape(-1, inside.m).sum(1)
            assert int((kernels == inside.n).sum()) == kept_of(
                len(kernels), density / inside.density, allocate.rounding
            )
            assert ((kernels == 0) | (kernels == inside.n)).all()
        return
    counts = {n: int(m.sum()) for n, m in masks.items()}
    if allocate.foresees():  # a density for every layer, rounded up row by row
        total, rows = sum(counts.values()), sum(g.shape[0] for g in result.groups if g.name in counts)
        assert -1e-6 <= total - density * sum(m.numel() for m in masks.values()) <= rows
        return
    if type(getattr(allocate, "of", allocate)).__name__ == "Uniform":
        for group in result.groups:
            if group.name in counts and group.parts == group.multiple == 1:
                rows = group.shape[0] if getattr(allocate, "within", "layer") == "row" else 1
                expected = rows * kept_of(group.units // rows, density, allocate.rounding)
                assert counts[group.name] == max(expected, group.at_least), group.name
        return
    units = sum(m.numel() for m in masks.values())
    expected = kept_of(units, density, allocate.rounding)
    if type(allocate).__name__ == "Isomorphic":  # every class of groups keeps its own share, rounded up
        assert expected <= sum(counts.values()) < expected + len(masks) or not free(result)
        return
    # A group that must keep equally many units in each of its parts gives the remainder up.
    slack = sum(math.lcm(g.parts, g.multiple) - 1 for g in result.groups if g.name in counts)
    assert expected - slack <= sum(counts.values()) <= expected or (slack and found.structure == "structured")
    if free(result):
        assert sum(counts.values()) == expected


@EVERY
def test_every_group_is_masked_or_said_to_be_skipped(name: str, network: str) -> None:
    result = one_shot(name, network)
    assert {g.name for g in result.groups} == set(result.unit_masks) | set(result.skipped)
    assert not set(result.unit_masks) & set(result.skipped)
    named = dict(result.model.named_parameters())
    for param, mask in result.masks.items():
        assert mask.dtype == torch.bool and mask.shape == named[param].shape


@EVERY
def test_pruned_weights_are_zero_and_the_others_are_the_users(name: str, network: str) -> None:
    result = one_shot(name, network)
    before = dict(dense(name, CASES[network]).named_parameters())
    for param, p in result.model.named_parameters():
        keep = result.masks.get(param, torch.ones(p.shape, dtype=torch.bool))
        assert (p[~keep] == 0).all()
        assert rewrites(recipe(name)) or torch.equal(p[keep], before[param][keep])
    assert any((~m).any() for m in result.masks.values())


@pytest.mark.parametrize(("name", "network"), [p for p in PAIRS if p[1] in ("mlp", "cnn", "decoder")])
def test_asking_again_for_the_same_density_removes_nothing_more(name: str, network: str) -> None:
    """Idempotent: the last event, carried out a second time on the pruned network, changes no mask."""
    found, case = recipe(name), CASES[network]
    if found.schedule == OneShot():
        once = one_shot(name, network)
    else:
        found = replace(found, schedule=OneShot(), grow=None)
        once = pruned(found, case)
    session = prunus.Session(case.model(), replace(found, schedule=Iterative(rounds=2)), case.task(), **asked(found))
    last = session.events[-1]._replace(step=0)
    session.events = (last, last)
    session.start()
    assert same(session.masks, {n: once.unit_masks.get(n, session.masks[n]) for n in session.masks})


@pytest.mark.parametrize("name", prunus.methods.names())
def test_a_recipe_survives_json(name: str) -> None:
    found = prunus.methods.get(name)
    prunus.parts.load_all()
    restored = Recipe.from_dict(json.loads(json.dumps(found.to_dict())))
    assert restored == found and restored.taxonomy() == found.taxonomy()


@EVERY
def test_the_record_is_json_with_both_denominators(name: str, network: str) -> None:
    result = one_shot(name, network)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    parameters = dict(result.model.named_parameters())
    masked = sum(int((~m).sum()) for m in result.masks.values())
    units = sum(m.numel() for m in result.unit_masks.values())
    assert record["sparsity"] == pytest.approx(sum(int((~m).sum()) for m in result.unit_masks.values()) / units)
    assert record["weight_sparsity"] == pytest.approx(masked / sum(p.numel() for p in parameters.values()))
    assert record["params_dense"] - record["params_kept"] == masked


@pytest.mark.parametrize(("name", "network"), [p for p in PAIRS if p[1] in ("cnn", "moe")])
def test_a_sparsity_of_zero_keeps_everything(name: str, network: str) -> None:
    found = recipe(name)
    if fixed(found):
        with pytest.raises(SpecError, match="keeps exactly"):
            pruned(found, CASES[network], sparsity=0.1)
        return
    result = pruned(found, CASES[network], sparsity=0.0)
    assert all(m.all() for m in result.masks.values()) and result.sparsity == 0.0


@pytest.mark.parametrize(("name", "network"), [p for p in PAIRS if p[1] in ("cnn", "moe")])
def test_dtype_is_kept(name: str, network: str) -> None:
    """The other runs are in float64; bfloat16 is the hardest of the rest."""
    dtype = torch.bfloat16
    result = pruned(recipe(name), CASES[network], dtype=dtype)
    expected = {n: t.dtype for n, t in dense(name, CASES[network], dtype).state_dict().items()}
    assert {n: t.dtype for n, t in result.model.state_dict().items()} == expected
    assert 0.4 < result.sparsity < 0.75


@pytest.mark.parametrize(("name", "network"), STRUCTURED)
def test_no_layer_is_emptied_by_a_structured_recipe(name: str, network: str) -> None:
    result = pruned(recipe(name), CASES[network], sparsity=0.97)
    assert result.collapsed == ()
    for group in result.groups:
        if group.name in result.unit_masks:
            assert int(result.unit_masks[group.name].sum()) >= max(1, group.at_least)


@pytest.mark.parametrize(("name", "network"), sorted(NOTHING_TO_READ))
def test_a_recipe_without_evidence_says_so_and_changes_nothing(name: str, network: str) -> None:
    case = CASES[network]
    model = case.model()
    with pytest.raises(SpecError, match="scores nothing here"):
        prunus.Session(model, recipe(name), case.task(), sparsity=SPARSITY).start()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), case.model().parameters(), strict=True))


def ordered(found: Recipe) -> bool:
    """Columns are gone through from the left, or consecutive weights make a block: the order of the neurons is part of
    the method.
    """
    return type(found.reconstruct).__name__ == "ObsUpdate" or hasattr(found.criterion, "block")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, m in PAIRS
        if m == "mlp"
        and recipe(n).prepare is None
        and not ordered(recipe(n))
        and not random_parts(recipe(n))
        and not recipe(n).gate
    ],
)
def test_neurons_in_another_order_get_the_same_masks(name: str) -> None:
    """Permutation equivariance: renumbering hidden neurons renumbers the masks and does nothing else."""
    case, found = CASES["mlp"], recipe(name)
    model = case.model()
    if name in ("magnitude_increase", "weight_movement"):  # nothing is trained, so nothing moved: all scores tie
        return
    if name in ("apoz", "zero_channels"):  # after a GELU nothing is exactly zero: all scores tie
        return
    with seeded(5):
        first, second = torch.randperm(24), torch.randperm(16)
    if found.structure == "semi-structured":  # blocks are no set of neurons: only whole blocks of 4, and rows, may move
        first = torch.arange(24).reshape(6, 4)[torch.randperm(6)].reshape(-1)
        second = torch.arange(16)
    with torch.no_grad():
        model.first.weight.copy_(model.first.weight[first])
        model.first.bias.copy_(model.first.bias[first])
        model.second.weight.copy_(model.second.weight[second][:, first])
        model.second.bias.copy_(model.second.bias[second])
        model.head.weight.copy_(model.head.weight[:, second])
    # At high sparsity whole neurons are cut off and tie at zero, where the order of the neurons rightly decides.
    mild = asked(found, 0.3)
    plain, moved = pruned(found, case, **mild).masks, pruned(found, case, model=model, **mild).masks
    for one, other in (
        (moved["first.weight"], plain["first.weight"][first]),
        (moved["second.weight"], plain["second.weight"][second][:, first]),
    ):
        if type(found.allocate).__name__ == "LearnedRows":
            # After two steps of AdamW most rows have learned the same share up to rounding: which of them has one
            # weight more is a tie. Within a row the order of the weights stays.
            assert one.sum() == other.sum() and ((one != other).sum(1) <= 1).all()
        else:
            assert torch.equal(one, other)
    if "head.weight" in plain:  # some leave the last layer dense
        assert torch.equal(moved["head.weight"], plain["head.weight"][:, second])


@pytest.mark.parametrize("name", [n for n, m in PAIRS if m == "mlp"])
def test_a_tied_weight_stays_one_weight(name: str) -> None:
    result = pruned(recipe(name), TIED)
    assert result.model.second.weight is result.model.first.weight
    assert "second.weight" not in result.masks
    if "first.weight" in result.masks:
        assert (result.model.second.weight[~result.masks["first.weight"]] == 0).all()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.outlet = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.free = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outlet(self.free(self.second(self.first(self.inlet(x).relu()).relu()).relu()).relu())


TIED = Case("tied", Tied, (8,), CASES["mlp"].loss)
