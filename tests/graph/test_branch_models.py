"""Single branches of decoders, and of models that come back from files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import deploy, methods
from prunus.graph import Nothing, branches, compact, compact_optimizer, masked_
from prunus.parts.granularity import Branch
from tests.graph.proof import disturb
from tests.graph.test_branch import EXAMPLE, Attention, Model, where
from tests.graph.test_depth import hf

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
IDS = torch.arange(10, 22).reshape(2, 6)


@pytest.mark.parametrize(
    ("kind", "config", "settings", "attention", "mlp"),
    [
        ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 1}, "model.layers.*.self_attn", ".mlp"),
        ("GPT2LMHeadModel", "GPT2Config",
         {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 0,
          "eos_token_id": 1}, "transformer.h.*.attn", ".mlp"),
        ("OPTForCausalLM", "OPTConfig", {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
         "model.decoder.layers.*.self_attn", ".fc1"),
    ],
    ids=["llama", "gpt2", "opt"],
)  # fmt: skip
def test_decoders_generate(kind: str, config: str, settings: dict[str, Any], attention: str, mlp: str) -> None:
    model = disturb(hf(kind, config, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    found = branches(model, {"input_ids": IDS})
    assert where(found) == {attention: 2, attention.rpartition(".")[0] + mlp: 3}
    # The length of the cache is read from the first layer.
    assert "key-value cache" in found.refused[attention.replace("*", "0")]
    masks = {g.name: torch.arange(g.units) > 0 for g in found.groups}
    masks[attention] = torch.tensor([False, False])
    small, _ = compact(model, found.groups, masks, {"input_ids": IDS})
    masked = masked_(copy.deepcopy(model), found.groups, masks)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": (IDS > 11).long()}
    for extra in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        expected = masked.generate(IDS, use_cache=False, **settings)
        with_cache = small.generate(IDS, use_cache=True, **settings, **extra)
        if "num_beams" in extra:
            expected = masked.generate(IDS, use_cache=False, **settings, **extra)
        assert torch.equal(with_cache, expected)


def test_a_cache_that_cannot_be_tried() -> None:
    class Picky(Model):
        def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
            if past_key_values is not None:
                raise ValueError("one step is all")
            out = super().forward(F.one_hot(input_ids, 6).to(self.head.weight.dtype))
            return {"logits": out, "past_key_values": object()} if use_cache else out

    class Taking(Attention):
        def forward(self, x: Tensor, *, mask: Tensor | None = None, past_key_values: Any = None) -> Any:
            return super().forward(x, mask=mask)

    net = disturb(Picky())
    for layer in net.layers:
        layer.attn.__class__ = Taking
    found = branches(net, torch.arange(12).reshape(2, 6) % 6)
    assert where(found) == {"layers.*.mlp": 4}
    assert "a second step could not be tried" in found.refused["layers.3.attn"]


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    model = disturb(hf("BertModel", "BertConfig", **SIZES))
    recipe = replace(methods.l1_filter, granularity=Branch())
    example = {"input_ids": IDS}
    result = prunus.prune(model, prunus.Task(example=example), recipe, sparsity=0.34)
    assert set(result.unit_masks) == {"encoder.layer.*.attention.self", "encoder.layer.*.intermediate"}
    small = result.compact(verify=True)
    deploy.save_pretrained(result, tmp_path / "model")
    back = deploy.from_pretrained(tmp_path / "model")
    assert sum(type(m) is Nothing for m in back.modules()) == 4
    torch.testing.assert_close(back(**example)[0], small.eval()(**example)[0])


def test_a_recipe_prunes_compacts_and_comes_back_from_a_file(tmp_path: Path) -> None:
    model = disturb(Model())
    with torch.no_grad():
        for parameter in model.layers[2].attn.parameters():
            parameter.mul_(0.01)
    recipe = replace(methods.l1_filter, granularity=Branch(exclude=("layers.0", "*.mlp")))
    result = prunus.prune(model, prunus.Task(example=EXAMPLE), recipe, sparsity=0.34)
    assert {n: m.tolist() for n, m in result.unit_masks.items()} == {"layers.*.attn": [True, False, True]}
    assert not any(bool(p.any()) for p in result.model.layers[2].attn.parameters())
    small = result.compact(verify=True)
    assert result.to_dict()["params_kept"] == sum(p.numel() for p in small.parameters())
    prunus.save(result, tmp_path / "model")
    back = prunus.load(tmp_path / "model", Model)
    assert type(back.layers[2].attn) is Nothing and type(back.layers[2].norm1) is nn.Identity
    torch.testing.assert_close(back(EXAMPLE), small.eval()(EXAMPLE))
    manifest = json.loads((tmp_path / "model" / "pruning.json").read_text())
    assert {e["target"]: e.get("new") for e in manifest["edits"]} == {
        "layers.2.attn.*": ["tuple", [["zeros", [0]], None, None]], "layers.2.norm1.*": None
    }  # fmt: skip


def test_the_optimizer_forgets_a_branch() -> None:
    model = disturb(Model())
    found = branches(model, EXAMPLE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(EXAMPLE).sum().backward()
    optimizer.step()
    masks = {"layers.*.mlp": torch.tensor([True, False, True, True])}
    masked_(model, found.groups, masks)
    small, edits = compact(model, found.groups, masks, EXAMPLE)
    moved = compact_optimizer(optimizer, model, small, edits)
    assert {id(p) for g in moved.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    old, new = optimizer.state[model.layers[3].mlp[0].weight], moved.state[small.layers[3].mlp[0].weight]
    assert torch.equal(old["exp_avg"], new["exp_avg"])
