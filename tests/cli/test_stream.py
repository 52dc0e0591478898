"""`prunus prune hf:FOLDER --calib TEXT`: from the command line to a folder that `from_pretrained` reads."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
import torch

from prunus.cli.stream import patterned
from prunus.core.errors import SpecError
from prunus.methods import find
from prunus.parts.allocation import NofM
from tests.cli.test_commands import call, told

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with a tokenizer of its own, and a text beside it."""
    from tokenizers import ByteLevelBPETokenizer

    where = tmp_path_factory.mktemp("model")
    text = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
    (where.parent / "text.txt").write_text(text, encoding="utf-8")
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([text], 300, special_tokens=["<|end|>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<|end|>").save_pretrained(where)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(where)
    return where


def asked(folder: Path, out: Path, *more: object) -> list[object]:
    calib = ["--calib", folder.parent / "text.txt", "--samples", 6, "--together", 4]
    return ["prune", f"hf:{folder}", "-m", "wanda", *calib, "-o", out, *more]


def zeros(folder: Path) -> float:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    inside = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    return sum(int((p == 0).sum()) for p in inside) / sum(p.numel() for p in inside)


def test_half_and_a_pattern(folder: Path, tmp_path: Path) -> None:
    printed = call(*asked(folder, tmp_path / "half", "--sparsity", 0.5)).output
    assert "50.00% of the weights in the blocks are zero" in printed and "model.layers.1" in printed
    assert "6 windows of 64 tokens" in printed  # as long as the model takes
    assert zeros(tmp_path / "half") == 0.5
    assert (tmp_path / "half" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    found = told(*asked(folder, tmp_path / "pattern", "--sparsity", "1:4", "--length", 32))
    assert found["sparsity"] == 0.75 and found["recipe"]["allocate"] == NofM(1, 4).to_dict()
    assert len(found["calibration_sha256"]) == 64
    assert zeros(tmp_path / "pattern") == 0.75
    assert found == json.loads((tmp_path / "pattern" / "prunus.json").read_text()) | {
        k: found[k] for k in ("folder", "calibration", "calibration_sha256")
    }


def test_densities_that_go_by_the_loss_go_by_that_of_the_text(folder: Path, tmp_path: Path) -> None:
    calib = ["--calib", folder.parent / "text.txt", "--samples", 2, "--together", 2, "--length", 16]
    found = told("prune", f"hf:{folder}", "-m", "ecoflap", *calib, "-o", tmp_path / "out", "--sparsity", 0.5)
    shares = [sum(b["kept"].values()) / sum(b["units"].values()) for b in found["blocks"]]
    assert found["sparsity"] == pytest.approx(0.5, abs=0.03) and shares[0] != shares[1]


def test_a_plan_writes_nothing(folder: Path, tmp_path: Path) -> None:
    plan = told(*asked(folder, tmp_path / "out", "--sparsity", 0.5, "--dry-run"))
    assert "6 windows" in plan["calibration"] and not list(tmp_path.iterdir())


def test_what_does_not_go_together(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more, why in (
        (("--macs", 0.5), "leave out --macs"),
        (("--steps", 5, "--sparsity", 0.5), "leave out --steps"),
        (("--sparsity", "2/4"), "a pattern such as 2:4"),
        ((), "how much"),
    ):
        assert why in call(*asked(folder, out, *more), code=2).output
    assert "needs --calib" in call("prune", "resnet20", "--sparsity", 0.5, "--resume", code=2).output
    assert "hf:FOLDER" in call("prune", "resnet20", "--calib", folder, "--sparsity", 0.5, code=2).output
    assert not list(tmp_path.iterdir())


def test_patterns_are_read() -> None:
    recipe, fraction = patterned(find("sparsegpt"), "4:8")
    assert fraction is None and getattr(recipe, "allocate", None) == NofM(4, 8)
    assert patterned(find("sparsegpt"), "0.7")[1] == 0.7
    for wrong in ("x", "2:x", "4:2"):
        with pytest.raises(SpecError):
            patterned(find("sparsegpt"), wrong)


def test_perplexities_side_by_side(folder: Path, tmp_path: Path) -> None:
    call(*asked(folder, tmp_path / "half", "--sparsity", 0.5))
    given = ("perplexity", f"hf:{folder}", f"hf:{tmp_path / 'half'}", "--text", folder.parent / "text.txt")
    found = told(*given, "--length", 32)
    dense, half = found["models"]
    assert dense["length"] == 32 and dense["tokens"] == half["tokens"] > 1000
    assert half["difference"] == pytest.approx(half["nll"] - dense["nll"], abs=1e-6)
    assert 0 < half["standard_error"] < 1
    printed = call(*given).output
    assert "windows of 64 tokens" in printed and "standard error" in printed  # as long as the model takes
    assert "would measure 2 models" in call(*given, "--dry-run").output
    assert "hf:FOLDER" in call("perplexity", "resnet20", "--text", folder, code=2).output


def test_layers_and_units(folder: Path, tmp_path: Path) -> None:
    """The folder is a smaller model, read by whom the last line says."""
    command = [p if p != "wanda" else "shortgpt" for p in asked(folder, tmp_path / "shallow", "--sparsity", 0.5)]
    printed = call(*command).output
    assert "50.00% of the units are gone" in printed and "num_hidden_layers 2 -> 1" in printed
    assert "(from_pretrained reads it)" in printed
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "shallow").config.num_hidden_layers == 1
    command = [p if p != "wanda" else "flap" for p in asked(folder, tmp_path / "narrow", "--sparsity", 0.3)]
    report = told(*command)
    assert report["bytes"] < report["bytes_read"] and "model.embed_tokens" in report["spanning"]
    assert (tmp_path / "narrow" / "tokenizer.json").is_file()
    assert (tmp_path / "narrow" / "pruning.json").is_file() != report["uniform"]


def test_text_and_tensors_calibrate_a_model_of_two_towers(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    texts = sizes | {"vocab_size": 300, "max_position_embeddings": 64, "eos_token_id": 0}
    images = sizes | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=texts, vision_config=images, projection_dim=8))
    model.save_pretrained(tmp_path / "clip")
    (tmp_path / "pixels").mkdir()
    save_file({"pixel_values": torch.randn(4, 3, 32, 32)}, tmp_path / "pixels" / "a.safetensors")
    begin = ["prune", f"hf:{tmp_path / 'clip'}", "-m", "wanda", "--sparsity", 0.5, "--tokenizer", folder]
    text = ["--calib", folder.parent / "text.txt", "--samples", 4]
    both = [*begin, *text, "--calib", tmp_path / "pixels", "-o", tmp_path / "out", "--json"]
    made = json.loads(call(*both).stdout)
    assert "windows" in made["calibration"] and "1 batches of pixel_values" in made["calibration"]
    towers = {
        n: p for n, p in transformers.CLIPModel.from_pretrained(tmp_path / "out").named_parameters() if p.ndim == 2
    }
    for name, p in towers.items():
        share = float((p == 0).double().mean())
        assert share == pytest.approx(0.5 if ".layers." in name else 0.0, abs=0.01), name
    alone = call(*begin, "--calib", tmp_path / "pixels", "-o", tmp_path / "images")
    assert "no calibration batch comes to text_model.encoder.layers.*" in " ".join(alone.output.split())
