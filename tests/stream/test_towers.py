"""Models of several towers: each block is calibrated with what comes to it in the model's own forward."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.core.errors import DataError, PrunusWarning, SpecError, StructureError
from prunus.lab.data.inputs import holds_inputs, inputs
from prunus.stream import by_tower, prune_folder
from tests.graph.networks.transformers_nets import builder

transformers = pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def texts(rows: int = 3, length: int = 12) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 60, (rows, length))}


def pixels(rows: int = 2) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 32, 32)}


def seen(images: int) -> Callable[[], dict[str, Tensor]]:
    """Texts that begin with the places of an image, and the image."""
    return lambda: {
        "input_ids": torch.cat([torch.full((2, images), 63), texts(2)["input_ids"]], 1),
        **pixels(),
    }


def grid() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2 * 16, 3 * 2 * 8 * 8), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}


def sound() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 8, 40)}


CASES: dict[str, tuple[str, str, dict[str, Any], list[Callable[[], dict[str, Tensor]]], dict[str, set[int]]]] = {
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**TEXT, **IDS}, "vision_config": VISION, "projection_dim": 16},
        [texts, pixels],
        {"text_model.": {0}, "vision_model.": {1}},
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {"text_config": TEXT, "vision_config": VISION},
        [texts, pixels],
        {"text_model.": {0}, "vision_model.": {1}},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **DECODER},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_id": 63,
            "image_token_index": 63,
            "image_seq_length": 16,
            "vision_feature_layer": -1,
        },
        [texts, pixels, seen(16)],
        {"vision_tower.": {1, 2}, "language_model.": {0, 2}},
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "text_config": {"model_type": "gemma", **DECODER},
            "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
            "image_token_id": 63,
            "image_token_index": 63,
            "projection_dim": 32,
            "hidden_size": 32,
        },
        [texts, pixels],
        {"vision_tower.": {1}, "language_model.": {0}},
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {
                **TEXT,
                "num_key_value_heads": 2,
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 8,
            },
            "image_token_id": 63,
        },
        [texts, grid],
        {"visual.": {1}, "language_model.": {0}},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 64,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 16,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            **IDS,
            "decoder_start_token_id": 0,
        },
        [sound, lambda: sound() | {"decoder_input_ids": torch.randint(3, 60, (2, 9))}],
        {"encoder.": {0, 1}, "decoder.": {1}},
    ),
}


def made(case: str) -> tuple[Any, list[dict[str, Tensor]], dict[str, set[int]]]:
    model, config, arguments, batches, towers = CASES[case]
    torch.manual_seed(0)
    return builder(model, config, arguments)().eval(), [one() for one in batches], towers


def norms(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """E[x^2] of what every linear map is fed, over these batches, by the model's own forward."""
    sums: dict[str, list[Tensor]] = {}
    hooks = [
        m.register_forward_pre_hook(
            lambda _, args, n=n: sums.setdefault(n, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    with torch.no_grad():
        for batch in batches:
            by_tower(model, batch)
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(x).double().square().mean(0) for n, x in sums.items()}


@pytest.mark.parametrize("case", CASES)
def test_each_tower_is_calibrated_with_what_comes_to_it(case: str, tmp_path: Path) -> None:
    model, batches, towers = made(case)
    fed = [norms(model, [b]) for b in batches]
    for tower, own in towers.items():  # what a batch holds is what decides which towers it runs through
        for i, one in enumerate(fed):
            inside = [n for n in one if tower in n and (".layers." in n or ".blocks." in n)]
            assert bool(inside) == (i in own), (tower, i)
    model.save_pretrained(tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunus.prune(dense, Task(calib=batches, forward=by_tower), "wanda", sparsity=0.5)
        streamed = prune_folder(tmp_path / "dense", tmp_path / "out", "wanda", batches, sparsity=0.5)
    ours, theirs = type(model).from_pretrained(tmp_path / "out").state_dict(), result.model.state_dict()
    assert not [n for n in theirs if not torch.equal(ours[n], theirs[n])]
    assert streamed.sparsity == pytest.approx(0.5, abs=0.01)
    for tower in towers:  # the first matrix of each tower, by hand, as the towers before it are by now
        whole = norms(model, batches)
        first = next(n for n in whole if tower in n and ".0." in n and bool((theirs[f"{n}.weight"] == 0).any()))
        w = model.get_submodule(first).weight
        scores = w.detach().double().abs() * whole[first].sqrt()
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep.scatter_(1, scores.topk(w.shape[1] // 2, 1).indices, True)
        assert float(((theirs[f"{first}.weight"] != 0) == keep).double().mean()) > 0.999
        model.load_state_dict(model.state_dict() | {n: v for n, v in theirs.items() if tower in n})


@pytest.mark.parametrize(
    ("case", "idle", "reached"),
    [("clip", "vision_model", "text_model.encoder.layers"), ("llava", "vision_tower", "language_model.layers")],
)
def test_a_tower_without_data_stays_whole_and_is_named(case: str, idle: str, reached: str, tmp_path: Path) -> None:
    model, batches, _ = made(case)
    model.save_pretrained(tmp_path / "dense")
    with pytest.warns(PrunusWarning, match=rf"no calibration batch comes to (model\.)?{idle}\.encoder\.layers\.\*"):
        prune_folder(tmp_path / "dense", tmp_path / "out", "wanda", batches[:1], sparsity=0.5)
    after = type(model).from_pretrained(tmp_path / "out").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]) or reached in name
    dense = type(model).from_pretrained(tmp_path / "dense").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunus.prune(dense, Task(calib=batches[:1], forward=by_tower), "wanda", sparsity=0.5)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, after[name])
    assert any(idle in n for n in result.skipped)


class Crossed(nn.Module):
    """Two lists, of which the later one in the model runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.early = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        for layer in self.early if x is not None else ():
            x = layer(x).relu()
        y = x if y is None else y
        for layer in self.late:
            y = layer(y).relu()
        return y


def test_a_block_that_others_come_to_later_is_refused() -> None:
    torch.manual_seed(0)
    batches = [{"x": torch.randn(8, 6)}, {"y": torch.randn(8, 6)}]
    with pytest.raises(StructureError, match=r"late\.0 is called more than once .* or by batches of another kind"):
        prunus.prune(Crossed(), Task(calib=batches), "wanda", sparsity=0.5)
    prunus.prune(Crossed(), Task(calib=batches[:1]), "wanda", sparsity=0.5)


def test_files_of_tensors_and_images(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    place = tmp_path / "data"
    place.mkdir()
    (place / "notes.txt").write_text("not an input")
    save_file(
        {"pixel_values": torch.ones(2, 3, 4, 4), "image_sizes": torch.tensor([[4, 4]] * 2)}, place / "a.safetensors"
    )
    np.save(place / "b.npy", np.zeros((3, 4, 4), np.float32))
    found = inputs(place, tmp_path)
    assert [sorted(b) for b in found.batches] == [["image_sizes", "pixel_values"], ["pixel_values"]]
    assert found.batches[1]["pixel_values"].shape == (1, 3, 4, 4)
    assert "2 batches of image_sizes, pixel_values and pixel_values" in str(found)
    assert holds_inputs(place) and holds_inputs(place / "b.npy") and not holds_inputs(place / "notes.txt")
    (place / "c.png").write_bytes(b"")
    with pytest.raises(SpecError, match=r"c\.png: .* has no preprocessor_config\.json"):
        inputs(place, tmp_path)
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"evil\.npy cannot be calibrated with"):
        inputs(tmp_path / "evil.npy", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes((place / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(DataError, match="was cut off"):
        inputs(tmp_path / "cut.safetensors", tmp_path)


def test_images_become_tensors_by_the_models_own_processor(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    told = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    for i in range(3):
        image.fromarray(np.full((40, 50, 3), 51 * i, np.uint8)).save(tmp_path / f"{i}.png")
    batches = inputs(tmp_path, tmp_path, together=2).batches
    assert [b["pixel_values"].shape for b in batches] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    for i, pixels_ in enumerate(torch.cat([b["pixel_values"] for b in batches])):
        assert torch.allclose(pixels_, torch.tensor((0.2 * i - 0.5) / 0.25), atol=1e-5)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png is no image that can be read"):
        inputs(tmp_path, tmp_path)
