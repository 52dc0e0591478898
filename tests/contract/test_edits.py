"""The axes are values: one word edited makes an unstructured recipe structured, local, or iterative, and the
reverse.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import prunus
from prunus import Recipe
from prunus.core.errors import SpecError
from prunus.parts.allocation import ERK, LAMP, GlobalRanking, Uniform
from prunus.parts.granularity import Channel, Element
from prunus.parts.schedule import Gradual, Iterative, OneShot
from tests.contract.models import CASES
from tests.contract.runs import NAMES, asked, pruned, recipe

# Scales, activations, gates, readers and runs without a unit are not there for single weights.
UNREAD = [
    "activation_distilled",
    "aofp",
    "apoz",
    "ato",
    "bonsai",
    "both_sides_norm",
    "c_obs",
    "c_sgd",
    "calpa_net",
    "car",
    "channel_lasso",
    "chex",
    "coreset_neurons",
    "dcp",
    "deeplift",
    "early_bird",
    "ecc",
    "expert_clusters",
    "expert_frequency",
    "flap",
    "flap_heads",
    "fsm",
    "functional_clusters",
    "gate_decorator",
    "gfs",
    "group_fisher",
    "head_importance",
    "head_walk",
    "heat_maps",
    "hrank",
    "i_spasp",
    "information_concentration",
    "kse",
    "kwon",
    "layer_probes",
    "layer_segments",
    "llm_pruner",
    "llm_streamline",
    "mean_activation",
    "minitron_depth",
    "minitron_width",
    "morphnet",
    "morphnet_size",
    "multi_layer_pruning",
    "network_slimming",
    "nisp",
    "oicsr",
    "peel",
    "pfp",
    "reap",
    "shortened_llama",
    "shortgpt",
    "sleb",
    "snap_it",
    "structured_snip",
    "super_tickets",
    "taylor_activation",
    "thinet",
    "transtailor",
    "zero_channels",
]
UNITS_ONLY = dict.fromkeys(UNREAD, "scores nothing here")
UNITS_ONLY |= {"fpgm": "compares whole units", "srr_gr": "compares whole filters"}
UNITS_ONLY |= {"identity_prior": "scores nothing here"}
UNITS_ONLY |= {"slicegpt": "no residual stream|compares whole units"}
# Patterns of single weights, and shares of what one weight puts into an output.
ELEMENTS_ONLY = dict.fromkeys(
    (
        *("crossbar_clusters", "krp", "n_of_m", "pattern_library", "pattern_library_admm", "pconv", "pconv_admm"),
        *("mask_llm", "refill", "regroup", "sr_ste"),
    ),
    "fits no layer",
)
ELEMENTS_ONLY |= {"ria": "single weights", "sipp": "scores nothing here"}
# Thresholds and powers of single weights.
ELEMENTS_ONLY |= dict.fromkeys(("dst_thresholds", "pdp", "powerprop", "pst", "soft_threshold_str"), "single weights")
ELEMENTS_ONLY |= dict.fromkeys(("bayes_by_backprop", "variational_model_reduction"), "single weights")


def turned(found: Recipe) -> Recipe:
    structured = found.structure == "structured"
    return replace(found, granularity=Element() if structured else Channel())


@pytest.mark.parametrize("network", ["cnn", "moe"])
@pytest.mark.parametrize("name", NAMES)
def test_one_word_makes_a_recipe_structured_and_another_unstructured(name: str, network: str) -> None:
    found = turned(recipe(name))
    case = CASES[network]
    expected = (UNITS_ONLY | ELEMENTS_ONLY).get(name)
    if expected is None and name == "synaptic_strength" and network == "moe":  # channels of kernels have no norm either
        expected = "scores nothing here"
    if name == "obert" and network == "cnn":  # whose blocks are shorter than a filter
        expected = "inside one block"
    if expected:
        with pytest.raises(SpecError, match=expected):
            pruned(found, case)
        return
    result = pruned(found, case)
    assert result.recipe.structure != recipe(name).structure
    assert 0.3 < result.sparsity < 0.7
    if found.structure == "structured":
        small = result.compact()
        inputs = case.batches(1)[0][0]
        with torch.no_grad():
            assert torch.allclose(small.eval()(inputs), result.model.eval()(inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("allocate", [GlobalRanking(), Uniform(), Uniform(within="row"), ERK(), LAMP()], ids=str)
@pytest.mark.parametrize("name", ["magnitude", "snip", "l1_filter"])
def test_the_scope_is_one_word(name: str, allocate: object) -> None:
    result = pruned(replace(recipe(name), allocate=allocate), CASES["cnn"])
    kept = sum(int(m.sum()) for m in result.unit_masks.values())
    units = sum(m.numel() for m in result.unit_masks.values())
    assert abs(kept / units - 0.4) < 0.1
    if name != "l1_filter" and not isinstance(allocate, Uniform):
        assert kept == -(-units * 4 // 10)


@pytest.mark.parametrize("schedule", [OneShot(), Iterative(rounds=3), Gradual(every=2)], ids=str)
@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "fpgm", "random"])
def test_the_schedule_is_one_word(name: str, schedule: object) -> None:
    found = replace(recipe(name), schedule=schedule)
    result = pruned(found, CASES["cnn"], steps=8)
    assert len(result.history) == len(found.timeline(0.4, 8))
    assert 0.5 < result.sparsity < 0.65


@pytest.mark.parametrize("reduce", ["sum", "mean", "l2", "max"])
def test_the_reduction_is_one_word(reduce: str) -> None:
    case = CASES["mlp"]
    found = replace(recipe("l1_filter"), granularity=Channel(reduce=reduce))
    model = case.model()
    scores = prunus.score(model, case.task(), found)
    rows = model.first.weight.detach().abs()
    expected = {"sum": rows.sum(1), "mean": rows.mean(1), "l2": rows.square().sum(1).sqrt(), "max": rows.amax(1)}
    assert torch.allclose(scores["first"], expected[reduce])


def test_an_edit_does_not_touch_the_original() -> None:
    before = repr(prunus.methods.snip)
    replace(prunus.methods.snip, granularity=Channel())
    assert repr(prunus.methods.snip) == before and asked(prunus.methods.snip) == {"sparsity": 0.6}
