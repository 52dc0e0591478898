"""Layers taken out of a folder: those that in-memory pruning takes out, and the same model without them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError, StructureError
from prunus.core.recipe import Recipe
from prunus.graph.running import tensors_in
from prunus.parts.granularity import Block
from prunus.stream import Shrunk, prune_folder
from prunus.stream import depth as module
from tests.graph.networks.transformers_nets import ROWS, builder
from tests.stream.test_folder import SMALL, batches_for, files, read, saved

transformers = pytest.importorskip("transformers")
SHORTGPT = methods.get("shortgpt")


def layers_of(result: prunus.Result) -> set[str]:
    masks = ((g, result.unit_masks[g.name].tolist()) for g in result.groups)
    return {n for g, keep in masks for n, stays in zip(getattr(g, "names", ()), keep, strict=True) if not stays}


def check_same(
    dense: nn.Module, folder: Path, out: Path, batches: list[Any], recipe: Recipe = SHORTGPT, sparsity: float = 0.4
) -> Shrunk:
    """Prune both ways: the same layers go, and weights and outputs are the same to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunus.prune(dense, Task(calib=batches), recipe, sparsity=sparsity)
        small = result.compact()
    made = prune_folder(folder, out, recipe, batches, sparsity=sparsity)
    assert isinstance(made, Shrunk) and made.uniform
    gone = json.loads((out / "prunus.json").read_text())["removed"]
    assert set(gone) == layers_of(result) and made.sparsity == pytest.approx(result.sparsity)
    ours = read(type(dense), out)
    theirs, own = small.state_dict(), ours.state_dict()
    assert theirs.keys() == own.keys() and all(torch.equal(own[n], t) for n, t in theirs.items())
    with torch.no_grad():
        pairs = zip(tensors_in(small(**batches[0])), tensors_in(ours(**batches[0])), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    return made


@pytest.mark.parametrize("kind", ["llama", "tied bf16", "gemma3", "mixtral", "mamba"])
def test_streamed_is_in_memory(kind: str, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path / "dense", "20KB")
    before = files(folder)
    made = check_same(model, folder, tmp_path / "out", batches_for(kind), sparsity=0.5 if kind == "mamba" else 0.4)
    assert files(folder) == before and not (tmp_path / ".out.unfinished").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == sum(sum(b.kept.values()) for b in made.blocks) == len(made.blocks) - 1
    assert len(config.get("layer_types", [0] * config["num_hidden_layers"])) == config["num_hidden_layers"]


def test_both_stacks_of_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    """The first layers make the tables of positions that the others are given, so they stay."""
    model, folder = saved("t5", tmp_path / "dense")
    # In memory, what lies within a layer that stays may go as well.
    recipe = replace(SHORTGPT, granularity=Block(exclude=("*.block.0.layer.*",)))
    made = check_same(model, folder, tmp_path / "out", batches_for("t5"), recipe, 0.5)
    assert sorted(made.changed) in (["num_decoder_layers"], ["num_layers"])
    same = prune_folder(folder, tmp_path / "same", SHORTGPT, batches_for("t5"), sparsity=0.5)
    assert "it gives other layers more than its output" in same.skipped["encoder.block.0.encoder.block"]
    assert "it gives other layers more than its output" in same.skipped["decoder.block.0.decoder.block"]
    assert files(made.folder) == files(same.folder)


def test_positions_of_layers_move_with_them(tmp_path: Path) -> None:
    """Layers without experts are listed by their numbers."""
    torch.manual_seed(3)
    config = transformers.Qwen2MoeConfig(
        **(SMALL | {"num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 16}),
        shared_expert_intermediate_size=16,
        mlp_only_layers=[3],
    )
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "dense")
    model = read(transformers.Qwen2MoeForCausalLM, tmp_path / "dense")
    recipe = replace(SHORTGPT, granularity=Block(exclude=("model.layers.3",)))
    check_same(model, tmp_path / "dense", tmp_path / "out", batches_for("llama"), recipe)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mlp_only_layers"] == [2]


def test_a_configuration_that_says_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("gemma3", tmp_path / "dense")

    def wrong(config: Any, _kept: Any) -> Any:
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        yield config

    monkeypatch.setattr(module, "configurations", wrong)
    with pytest.raises(StructureError, match="is given something else"):
        prune_folder(folder, tmp_path / "out", SHORTGPT, batches_for("gemma3"), sparsity=0.4)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prune_folder(folder, tmp_path / "out", SHORTGPT, batches_for("gemma3"), sparsity=0.4, resume=True)


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    batches = batches_for("llama")
    prune_folder(folder, tmp_path / "whole", SHORTGPT, batches, sparsity=0.4)

    def stop(done: int, _all: int, _record: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", SHORTGPT, batches, sparsity=0.4, on_block=stop)
    with pytest.raises(SpecError, match="another model"):
        prune_folder(folder, tmp_path / "out", SHORTGPT, batches, sparsity=0.7, resume=True)
    made = prune_folder(folder, tmp_path / "out", SHORTGPT, batches, sparsity=0.4, resume=True)
    assert made.resumed == 2 and files(tmp_path / "out") == files(tmp_path / "whole")
    # A folder of ours has shards of the names that are written, and loses another layer.
    model = read(transformers.LlamaForCausalLM, made.folder)
    twice = check_same(model, made.folder, tmp_path / "twice", batches, sparsity=0.5)
    assert files(made.folder) == files(tmp_path / "whole") and twice.changed == {"num_hidden_layers": (2, 1)}


def test_what_cannot_be_removed_is_refused(tmp_path: Path) -> None:
    _, folder = saved("bert", tmp_path / "dense")
    with pytest.raises(StructureError, match=r"no layer of BertModel can be removed; .*a norm follows the sum"):
        prune_folder(folder, tmp_path / "out", SHORTGPT, batches_for("bert"), sparsity=0.4)
    with pytest.raises(SpecError, match="gradients"):
        prune_folder(folder, tmp_path / "none", "layer_segments", batches_for("bert"), sparsity=0.4)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".none.unfinished").exists()


ARCHITECTURES = (
    "ModernBertForSequenceClassification", "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "GPTNeoXForCausalLM",
    "GPTJForCausalLM", "OPTForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM",
    "Phi3ForCausalLM", "FalconForCausalLM", "CohereForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM",
    "StableLmForCausalLM", "Starcoder2ForCausalLM", "GraniteForCausalLM", "SmolLM3ForCausalLM", "MixtralForCausalLM",
    "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM",
    "MambaForCausalLM", "Mamba2ForCausalLM", "CodeGenForCausalLM", "BloomForCausalLM",
)  # fmt: skip
DEEPER = ("num_hidden_layers", "n_layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "config", "arguments", "inputs"),
    [pytest.param(*row[:4], id=row[0]) for row in ROWS if row[0] in ARCHITECTURES],
)
def test_architectures(
    model: str, config: str, arguments: dict[str, Any], inputs: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    listed = "layer_types" in arguments
    deeper = {k: 4 if k in DEEPER and v == 2 and not listed else v for k, v in arguments.items()}
    made: Any = builder(model, config, deeper)().eval()
    made.save_pretrained(tmp_path / "dense")
    dense = read(type(made), tmp_path / "dense")
    check_same(dense, tmp_path / "dense", tmp_path / "out", [inputs() for _ in range(2)])


def test_there_are_enough() -> None:
    assert len(ARCHITECTURES) >= 30 and set(ARCHITECTURES) <= {row[0] for row in ROWS}
