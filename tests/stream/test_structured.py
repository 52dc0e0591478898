"""Heads and neurons cut out of a folder: what is kept, and what is computed, is what in-memory pruning gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
import prunus.deploy
from prunus import Task, methods
from prunus.core.errors import PrunusWarning, SpecError, StructureError
from prunus.core.recipe import Recipe
from prunus.engine.walk import blocks_in
from prunus.graph.running import tensors_in
from prunus.parts.granularity import Branch, Coupled, Head, Width
from prunus.stream import Shrunk, prune_folder
from tests.graph.networks.transformers_nets import ROWS, builder
from tests.stream.test_folder import SMALL, batches_for, files, read, saved

transformers = pytest.importorskip("transformers")

# Weights with two densities, FLAP with its fluctuations and the bias that makes up for what goes.
RECIPES: dict[str, Recipe] = {
    "l1": replace(methods.get("l1_filter"), granularity=Coupled()),
    "flap": methods.get("flap"),
    "osscar": methods.get("osscar"),
}


def in_memory(model: nn.Module, recipe: Recipe, batches: list[Any], sparsity: float) -> prunus.Result:
    """The same recipe in memory, the units that run through blocks or lie outside of them excluded."""
    prefixes = [f"{n}." for n in blocks_in(model)]
    found = recipe.granularity(model, batches[0])
    out = [g.name for g in found if not any(all(m.param.startswith(p) for m in g.members) for p in prefixes)]
    units: Any = recipe.granularity
    within = replace(recipe, granularity=replace(units, exclude=tuple(out)))
    return prunus.prune(model, Task(calib=batches), within, sparsity=sparsity)


def streamed(folder: Path, out: Path, recipe: Recipe, batches: list[Any], **more: Any) -> Shrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        made = prune_folder(folder, out, recipe, batches, **({"sparsity": 0.4} | more))
    assert isinstance(made, Shrunk)
    return made


def back(kind: Any, made: Shrunk) -> nn.Module:
    model: nn.Module = read(kind, made.folder) if made.uniform else prunus.deploy.from_pretrained(made.folder)
    return model


def check_same(model: nn.Module, made: Shrunk, result: prunus.Result, batch: Any) -> None:
    """The folder holds what the result is, compacted: units, weights, outputs."""
    kept = {f"{b.name}.{g}": n for b in made.blocks for g, n in b.kept.items() if g not in b.skipped}
    assert kept == {g.name: int(result.unit_masks[g.name].sum()) for g in result.groups if g.name not in made.skipped}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small, ours = result.compact(), back(type(model), made)
    theirs, own = small.state_dict(), ours.state_dict()
    assert theirs.keys() == own.keys() and all(torch.allclose(own[n], t, 1e-6, 1e-7) for n, t in theirs.items())
    with torch.no_grad():
        pairs = zip(tensors_in(small(**batch)), tensors_in(ours(**batch)), strict=True)
        assert all(torch.allclose(a, b, 1e-5, 1e-6) for a, b in pairs)


FAST = [("l1", "llama"), ("flap", "gpt2"), ("flap", "bert")]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *(pytest.param(m, k) for m, k in FAST),
        *(
            pytest.param(m, k, marks=pytest.mark.slow)
            for m in RECIPES
            for k in ("llama", "gemma3", "gpt2", "bert", "t5", "mixtral")
            if (m, k) not in FAST
        ),
    ],
)
def test_streamed_is_in_memory(method: str, kind: str, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path / "dense", "20KB")
    before, batches = files(folder), batches_for(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = in_memory(model, RECIPES[method], batches, 0.4)
    made = streamed(folder, tmp_path / "out", RECIPES[method], batches)
    assert files(folder) == before and not (tmp_path / ".out.unfinished").exists()
    check_same(model, made, result, batches[0])
    assert made.bytes < sum(len(b) for n, b in before.items() if n.endswith(".safetensors"))
    assert made.skipped or made.sparsity == pytest.approx(result.sparsity)
    if method == "l1" and kind in ("llama", "gemma3"):  # as many in every layer, and grouped heads stay in pairs
        assert made.uniform and set(made.changed) <= {"intermediate_size", "num_attention_heads", "num_key_value_heads"}
    if kind in ("llama", "gemma3"):
        assert "model.embed_tokens" in made.spanning


# Not GPT-J and GPT-Neo, whose blocks return attention weights, so that heads stay whole.
ARCHITECTURES = (
    "BertForMaskedLM", "RobertaForSequenceClassification", "DistilBertForSequenceClassification",
    "ElectraForSequenceClassification", "ModernBertForSequenceClassification", "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM", "GPTNeoXForCausalLM", "CodeGenForCausalLM", "OPTForCausalLM", "BloomForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "FalconForCausalLM",
    "CohereForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    "GraniteForCausalLM", "SmolLM3ForCausalLM", "T5ForConditionalGeneration", "Qwen2MoeForCausalLM",
    "ViTForImageClassification",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "config", "arguments", "inputs"),
    [pytest.param(*row[:4], id=row[0]) for row in ROWS if row[0] in ARCHITECTURES],
)
def test_architectures(
    model: str, config: str, arguments: dict[str, Any], inputs: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made: Any = builder(model, config, arguments)().eval()
    made.save_pretrained(tmp_path / "dense")
    dense = read(type(made), tmp_path / "dense")
    batches = [inputs() for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = in_memory(dense, RECIPES["flap"], batches, 0.4)
    check_same(dense, streamed(tmp_path / "dense", tmp_path / "out", RECIPES["flap"], batches), result, batches[0])


def test_there_are_enough() -> None:
    assert len(ARCHITECTURES) >= 30 and set(ARCHITECTURES) <= {row[0] for row in ROWS}


def shards(folder: Path) -> dict[str, bytes]:
    return {n: b for n, b in files(folder).items() if n.endswith(".safetensors")}


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """In the pass that scores, and in the one that cuts and rebuilds."""
    _, folder = saved("gpt2", tmp_path / "dense")
    batches = batches_for("gpt2")
    whole = streamed(folder, tmp_path / "whole", RECIPES["flap"], batches)
    assert not whole.uniform and "flap" in (tmp_path / "whole" / "prunus.json").read_text()

    def stop_at(stop: int) -> Callable[[int, int, Any], None]:
        def stopping(done: int, every: int, _record: Any) -> None:
            assert every == 4
            if done == stop:
                raise KeyboardInterrupt

        return stopping

    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            streamed(folder, tmp_path / "out", RECIPES["flap"], batches, on_block=stop_at(stop), resume=stop > 1)
        assert not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="another model, recipe, budget, seed"):
        streamed(folder, tmp_path / "out", RECIPES["flap"], batches, resume=True, sparsity=0.5)
    made = streamed(folder, tmp_path / "out", RECIPES["flap"], batches, resume=True)
    assert made.resumed == 2 and shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert made.masks == whole.masks


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    flap = RECIPES["flap"]
    refused: tuple[tuple[Recipe, type[Exception], str], ...] = (
        (
            methods.get("taylor_fo"),
            SpecError,
            r"prunes more than once(.|\n)*gradients or losses .* whole model",
        ),
        (replace(flap, criterion=methods.get("taylor_fo").criterion), SpecError, "load the model and call result = "),
        (replace(flap, granularity=Width()), StructureError, "model.embed_tokens .* run through several blocks"),
        (replace(flap, granularity=Branch(), reconstruct=None), SpecError, "Branch is neither"),
        (methods.get("kwon"), SpecError, "gradients"),
    )
    for recipe, error, why in refused:
        with pytest.raises(error, match=why):
            streamed(folder, tmp_path / "out", recipe, batches_for("llama"))
    with pytest.raises(SpecError, match="one of the whole model"):
        prune_folder(folder, tmp_path / "out", flap, batches_for("llama"), budget=prunus.Budget(params=0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]


def test_sizes_that_all_layers_share_stay(tmp_path: Path) -> None:
    """Phi-3 splits heads by a number of the configuration: other layers would be cut with the first one."""
    torch.manual_seed(0)
    config = transformers.Phi3Config(**(SMALL | {"num_hidden_layers": 2}), pad_token_id=0)
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path / "dense")
    model, batches = read(transformers.Phi3ForCausalLM, tmp_path / "dense"), batches_for("llama")
    made = streamed(tmp_path / "dense", tmp_path / "out", RECIPES["flap"], batches)
    heads = {n for n in made.skipped if n.endswith("self_attn.qkv_proj")}
    assert heads == {"model.layers.0.self_attn.qkv_proj", "model.layers.1.self_attn.qkv_proj"} == set(made.skipped)
    assert "model.layers.0.self_attn.qkv_proj" in made.spanning  # as the whole model has it
    check_same(model, made, in_memory(model, RECIPES["flap"], batches, 0.4), batches[0])


@pytest.mark.slow
def test_units_are_excluded_by_the_models_names(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    heads = replace(RECIPES["l1"], granularity=Head(exclude=("model.layers.1.*",)))
    made = streamed(folder, tmp_path / "out", heads, batches_for("llama"), sparsity=0.5)
    assert [sum(b.kept.values()) for b in made.blocks] == [1, 0, 1] and made.blocks[1].units == {}
    assert not made.uniform and "num" not in made.reason
    back(transformers.LlamaForCausalLM, made)
