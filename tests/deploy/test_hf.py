"""Folders of compact transformers models: `from_pretrained` of their own class gives the same network."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError, StructureError, VerificationError
from prunus.deploy import from_pretrained, save_pretrained
from prunus.deploy.hf_search import configurations, numbers_of, sizes_of
from prunus.graph.flow import tensors_in
from prunus.lab import zoo
from prunus.parts.granularity import Channel

transformers = pytest.importorskip("transformers")
T: Any = transformers

IDS = torch.arange(12).view(2, 6)
TEXT = {"input_ids": IDS}
PAIR = {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}
PIXELS = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
WORDS = {"vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
DECODER = {**WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert(**change: Any) -> Any:
    return T.BertConfig(**{**WORDS, **ENCODER, **change})


def llama(**change: Any) -> Any:
    return T.LlamaConfig(**{**DECODER, "head_dim": 8, "intermediate_size": 48, **change})


def qwen2(**change: Any) -> Any:
    return T.Qwen2Config(**{**DECODER, "intermediate_size": 48, **change})


def mixtral(**change: Any) -> Any:
    return T.MixtralConfig(**{**DECODER, "head_dim": 8, "intermediate_size": 48, "num_local_experts": 4, **change})


def gpt2(**change: Any) -> Any:
    small = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return T.GPT2Config(**{**small, "bos_token_id": 0, "eos_token_id": 1, **change})


def t5(**change: Any) -> Any:
    small = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T.T5Config(**{**small, "decoder_start_token_id": 0, **change})


def bart(**change: Any) -> Any:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "forced_eos_token_id": 1}
    return T.BartConfig(**{**WORDS, **layers, **sizes, **change})


def clip(text: int = 64, vision: int = 64) -> Any:
    one = {**ENCODER, "num_hidden_layers": 1}
    return T.CLIPConfig(
        text_config={**WORDS, **one, "intermediate_size": text},
        vision_config={**one, "image_size": 16, "patch_size": 8, "intermediate_size": vision},
        projection_dim=16,
    )


def vit(**change: Any) -> Any:
    return T.ViTConfig(**{**ENCODER, "image_size": 16, "patch_size": 4, **change})


def swin(**change: Any) -> Any:
    small = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    return T.SwinConfig(**{**small, "window_size": 2, **change})


def convnext(**change: Any) -> Any:
    return T.ConvNextConfig(**{"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "image_size": 32, **change})


def outputs(model: nn.Module, example: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_in(model.eval()(**example)))


def made(name: str, config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(T, name)(config).eval()


def check_folder(folder: Path, model: nn.Module, example: dict[str, Tensor]) -> None:
    """Transformers reads it by itself, and gets the weights and outputs of the model."""
    assert {f.suffix for f in folder.iterdir()} == {".json", ".safetensors"}
    again = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    own, theirs = again.state_dict(), model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[n]) and t.dtype == theirs[n].dtype for n, t in own.items())
    for loaded in (again, from_pretrained(folder)):
        found, expected = outputs(loaded, example), outputs(model, example)
        assert len(found) == len(expected) > 0
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


# A dense configuration, and the one that some compaction should lead to.
STRUCTURES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Tensor]]] = {
    "neurons, heads and width": (
        "LlamaForCausalLM", llama,
        {"intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 24}, TEXT,
    ),
    "query heads": ("LlamaForCausalLM", llama, {"num_attention_heads": 2}, TEXT),
    "head dim": ("LlamaForCausalLM", llama, {"head_dim": 6}, TEXT),
    "layers": ("LlamaForCausalLM", llama, {"num_hidden_layers": 1}, TEXT),
    "a tolerance": ("LlamaForCausalLM", llama, {"hidden_size": 24, "rms_norm_eps": 2e-3}, TEXT),
    "experts": ("MixtralForCausalLM", mixtral, {"num_local_experts": 3, "intermediate_size": 20}, TEXT),
    "an unset field": ("GPT2LMHeadModel", gpt2, {"n_inner": 40}, TEXT),
    "a field that is not there": ("Qwen2ForCausalLM", qwen2, {"num_attention_heads": 2, "head_dim": 8}, TEXT),
    "shared heads": ("T5ForConditionalGeneration", t5, {"num_heads": 3, "d_ff": 40}, PAIR),
    "encoder and decoder": ("BartForConditionalGeneration", bart, {"encoder_ffn_dim": 40, "decoder_ffn_dim": 24}, PAIR),
    "a number nothing is shaped by": ("BertModel", bert, {"hidden_size": 24, "num_attention_heads": 3}, TEXT),
    "a ratio": ("SwinForImageClassification", swin, {"mlp_ratio": 2.0}, PIXELS),
}  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURES)
def test_the_fields_are_found(case: str, tmp_path: Path) -> None:
    name, make, change, example = STRUCTURES[case]
    small, dense = made(name, make(**change)), make()
    small.config = copy.deepcopy(dense)
    state = torch.random.get_rng_state()
    saved = save_pretrained(small, tmp_path / "x", example=example)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert saved.uniform and not saved.reason
    assert saved.changed == {n: (getattr(dense, n, None), v) for n, v in change.items()}
    assert small.config.to_dict() == dense.to_dict()
    written = json.loads((tmp_path / "x" / "config.json").read_text())
    assert {n: written[n] for n in change} == change
    check_folder(tmp_path / "x", small, example)


def test_fields_of_configurations_within_and_of_lists(tmp_path: Path) -> None:
    both = {**TEXT, **PIXELS}
    small = made("CLIPModel", clip(40, 48))
    small.config = clip()
    saved = save_pretrained(small, tmp_path / "clip", example=both)
    assert saved.changed == {"text_config.intermediate_size": (64, 40), "vision_config.intermediate_size": (64, 48)}
    check_folder(tmp_path / "clip", small, both)
    small = made("ConvNextForImageClassification", convnext(hidden_sizes=[8, 12, 16, 20]))
    small.config = convnext()
    saved = save_pretrained(small, tmp_path / "convnext", example=PIXELS | {"pixel_values": torch.randn(1, 3, 32, 32)})
    assert saved.changed == {"hidden_sizes[3]": (24, 20)}
    assert json.loads((tmp_path / "convnext" / "config.json").read_text())["hidden_sizes"] == [8, 12, 16, 20]


def test_shapes_alone_do_not_decide() -> None:
    """Half of the heads and heads of half the size have the same shapes; only one computes the same."""
    small = made("LlamaForCausalLM", llama(num_attention_heads=2, num_key_value_heads=1))
    found = list(configurations(small, llama()))
    assert all(sizes_of(made("LlamaForCausalLM", c)) == sizes_of(small) for c in found)
    assert (found[0].num_attention_heads, found[0].head_dim) == (2, 8)
    assert any(c.head_dim == 4 for c in llama_alike())


def llama_alike() -> list[Any]:
    """What the search gives for a model whose modules say nothing about their heads."""
    small = made("LlamaForCausalLM", llama(num_attention_heads=2, num_key_value_heads=1))
    dense = made("LlamaForCausalLM", llama())
    before = numbers_of(dense)
    for path, module in small.named_modules():
        for name in list(vars(module)):
            if f"{path}.{name}" in before and not isinstance(module, nn.Linear):
                vars(module)[name] = before[f"{path}.{name}"]
    return list(configurations(small, llama()))


RESULTS: dict[str, tuple[str, Any, dict[str, Tensor], dict[str, tuple[int | None, int]]]] = {
    "bert": ("BertForSequenceClassification", bert, TEXT, {"intermediate_size": (64, 32)}),
    "llama": ("LlamaForCausalLM", llama, TEXT, {"intermediate_size": (48, 24)}),
    "gpt2": ("GPT2LMHeadModel", gpt2, TEXT, {"n_inner": (None, 64)}),
    "t5": ("T5ForConditionalGeneration", t5, PAIR, {"d_ff": (64, 32)}),
    "vit": ("ViTForImageClassification", vit, PIXELS, {"intermediate_size": (64, 32)}),
}


def pruned(kind: str, *exclude: str) -> prunus.Result:
    """Half of the neurons of every layer that is not excluded; attention stays whole."""
    name, make, example, _ = RESULTS[kind]
    recipe = methods.get("l1_filter")
    recipe = replace(
        recipe, granularity=Channel(exclude=("*attention*", "*attn*", "*Attention*", "*pooler*", *exclude))
    )
    example = {**example, **({"use_cache": False} if kind in ("llama", "gpt2", "t5") else {})}
    return prunus.prune(made(name, make()), Task(example=example), recipe, sparsity=0.5)


@pytest.mark.parametrize("kind", RESULTS)
def test_pruned_models_are_read_by_their_own_class(kind: str, tmp_path: Path, capsys: Any) -> None:
    result = pruned(kind)
    saved = save_pretrained(result, tmp_path / kind)
    captured = capsys.readouterr()
    assert "it/s" not in captured.out + captured.err  # transformers shows bars
    assert saved.uniform and saved.changed == RESULTS[kind][3]
    assert type(result.model).__name__ in saved.loader and str(tmp_path / kind) in str(saved)
    check_folder(tmp_path / kind, result.compact(), RESULTS[kind][2])
    note = json.loads((tmp_path / kind / "prunus.json").read_text())
    assert note["result"]["recipe"]["name"] == "l1_filter"
    assert save_pretrained(result, tmp_path / kind).changed == saved.changed  # replaces its own


def test_auto_classes_read_it_in_the_type_it_had(tmp_path: Path) -> None:
    small = made("LlamaForCausalLM", llama(intermediate_size=20, tie_word_embeddings=True)).to(torch.bfloat16)
    small.config = llama(tie_word_embeddings=True)
    save_pretrained(small, tmp_path / "x", example=TEXT)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype="auto")
    assert type(again) is type(small) and again.dtype == torch.bfloat16
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert all(torch.equal(t, small.state_dict()[n]) for n, t in again.state_dict().items())
    # The rotary tables, which are not saved, are computed anew and not rounded.
    torch.testing.assert_close(outputs(again, TEXT), outputs(small, TEXT), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_layers_that_differ_get_a_manifest(kind: str, tmp_path: Path) -> None:
    result = pruned(kind, "*.1.mlp*", "*layer.1.intermediate*", "*block.1.layer*")
    saved = save_pretrained(result, tmp_path / "x")
    assert not saved.uniform and "one field of the configuration sets both" in saved.reason
    assert saved.loader == f"prunus.deploy.from_pretrained({str(tmp_path / 'x')!r})"
    loaded, expected = from_pretrained(tmp_path / "x"), result.compact().eval()
    assert type(loaded) is type(expected) and not loaded.training
    example = RESULTS[kind][2]
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, example), outputs(expected, example), strict=True))
    assert sizes_of(loaded) == sizes_of(expected)
    if hasattr(expected, "generation_config"):
        assert loaded.generation_config.to_dict() == expected.generation_config.to_dict()
    # It is a folder of prunus.save, says how to read it, and does not pass for one of transformers.
    name, make, _, _ = RESULTS[kind]
    assert sizes_of(prunus.load(tmp_path / "x", lambda: made(name, make()))) == sizes_of(expected)
    assert "prunus.deploy.from_pretrained" in (tmp_path / "x" / "README.md").read_text()
    with pytest.raises(RuntimeError, match="mismatch"):
        type(expected).from_pretrained(tmp_path / "x")


def test_what_cannot_be_said_is_refused_without_a_result(tmp_path: Path) -> None:
    small = pruned("llama", "*.1.mlp*").compact()
    with pytest.raises(StructureError, match="Pass the Result") as caught:
        save_pretrained(small, tmp_path / "x", example=TEXT)
    assert "layers.0.mlp" in str(caught.value) and "layers.1.mlp" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_its_class_refuses_is_not_written(tmp_path: Path) -> None:
    """Three heads of eight on a width of 32: the shapes exist, and Llama's configuration does not allow them."""
    config = llama(num_key_value_heads=4)
    config.num_attention_heads = config.num_key_value_heads = 3
    small = made("LlamaForCausalLM", config)
    small.config = llama(num_key_value_heads=4)
    with pytest.raises(StructureError, match=r"(?s)refuses the configuration.*not a multiple"):
        save_pretrained(small, tmp_path / "x", example=TEXT)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(tmp_path: Path) -> None:
    small = made("BertModel", bert())
    with pytest.raises(SpecError, match=r"use prunus\.save"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "x", example=(torch.ones(1, 2),))
    with pytest.raises(SpecError, match="example="):
        save_pretrained(small, tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(SpecError, match="no folder that prunus wrote"):
        save_pretrained(small, tmp_path / "mine", example=TEXT)
    assert not (tmp_path / "x").exists() and len(list((tmp_path / "mine").iterdir())) == 1
    assert save_pretrained(small, tmp_path / "x", verify=False).changed == {}


def test_folders_of_others_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    save_pretrained(made("BertModel", bert()), folder, example=TEXT)
    note = json.loads((folder / "prunus.json").read_text())
    for name in ("os", "pipeline", "AutoModel", "__doc__", "BertConfig", None, "models.bert"):
        (folder / "prunus.json").write_text(json.dumps({**note, "class": name}))
        with pytest.raises(SpecError, match="no model of transformers"):
            from_pretrained(folder)
    (folder / "prunus.json").write_text("{")
    with pytest.raises(VerificationError, match="not JSON"):
        from_pretrained(folder)
    (folder / "prunus.json").unlink()
    with pytest.raises(SpecError, match=r"neither pruning\.json nor prunus\.json"):
        from_pretrained(folder)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    prunus.save(prunus.prune(model, None, "magnitude", sparsity=0.5), tmp_path / "y")
    with pytest.raises(SpecError, match=r"prunus\.load"):
        from_pretrained(tmp_path / "y")


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    save_pretrained(made("BertModel", bert()), folder, example=TEXT)
    return folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def without_digests(folder: Path) -> None:
    """As folders were written before they had digests."""
    note = json.loads((folder / "prunus.json").read_text())
    del note["files"]
    (folder / "prunus.json").write_text(json.dumps(note))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_file_is_noticed(name: str, uniform: Path, tmp_path: Path) -> None:
    folder = copied(uniform, tmp_path / "model")
    content = (folder / name).read_bytes()
    for at in range(0, len(content), max(1, len(content) // 7)):
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(VerificationError, match="was changed"):
            from_pretrained(folder)
    (folder / name).write_bytes(content)
    from_pretrained(folder)


def broken(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "a tensor less":
        state = load_file(weights)
        del state["encoder.layer.0.output.dense.weight"]
        save_file(state, weights, {"format": "pt"})
    elif how == "larger in the configuration":
        config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 40}))
    elif how == "larger than any memory":
        config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 1 << 42}))
    elif how == "deep":
        config.write_text("[" * 100_000)
    elif how == "a pipe":
        config.unlink()
        os.mkfifo(config)
    elif how == "another folder's shards":
        weights.rename(folder.parent / "outside.safetensors")
        names = dict.fromkeys(load_file(folder.parent / "outside.safetensors"), "../outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    "how",
    [
        "cut off",
        "a tensor less",
        "larger in the configuration",
        "larger than any memory",
        "deep",
        "a pipe",
        "another folder's shards",
    ],
)
def test_what_transformers_would_make_up_is_refused(how: str, uniform: Path, tmp_path: Path) -> None:
    """Without digests too: a model with weights that nobody trained is never returned."""
    folder = copied(uniform, tmp_path / "model")
    without_digests(folder)
    from_pretrained(folder)
    broken(folder, how)
    with pytest.raises(VerificationError):
        from_pretrained(folder)
    if how == "another folder's shards":
        with pytest.raises(VerificationError, match="no file of the folder"):
            zoo.build(f"hf:{folder}")
