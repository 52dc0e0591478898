"""The evaluation harness on models in memory, against log-likelihoods worked out by hand; on a task made here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import prunus
from prunus import Task, measure
from prunus.cli.app import app
from prunus.core.errors import MissingExtraError, SpecError
from tests.contract.runs import difference, rng, state

transformers = pytest.importorskip("transformers")
THERE = importlib.util.find_spec("lm_eval") is not None
needed = pytest.mark.skipif(not THERE, reason="lm_eval is not installed: pip install 'prunus[evaluate]'")

WORDS = ["[UNK]", "[EOS]", "red", "green", "blue", "one", "two", "three", "sky", "grass", "is", "the"]
QUESTIONS = [
    ("the sky is", 2),
    ("the grass is", 1),
    ("one two", 0),
    ("two one is the", 1),
    ("green is", 2),
    ("three", 0),
]
CHOICES = ["red", "green", "blue sky"]


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[EOS]")


def network() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=1, pad_token_id=1)
    model = transformers.LlamaForCausalLM(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task, and its questions beside it."""
    lines = [json.dumps({"question": q, "label": label}) for q, label in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    there = tmp_path / "tasks"
    there.mkdir()
    (there / "colours.yaml").write_text(
        f"""task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "questions.jsonl"}
  cache_dir: {tmp_path / "cache"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: {json.dumps(CHOICES)}
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3
"""
    )
    return there


def by_hand(model: Any) -> float:
    """The share of questions whose right answer is the likeliest, each answer read token by token."""
    words, right = tokenizer(), 0
    model.eval()

    def likelihood(question: str, answer: str) -> float:
        first = words(question)["input_ids"]
        ids = first + words(answer)["input_ids"]
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logits[i - 1, ids[i]]) for i in range(len(first), len(ids)))

    for question, label in QUESTIONS:
        worth = [likelihood(question, a) for a in CHOICES]
        right += worth.index(max(worth)) == label
    return right / len(QUESTIONS)


@needed
def test_a_pruned_model_in_memory(folder: Path) -> None:
    model = network().train()
    ids = torch.randint(2, len(WORDS), (4, 12))
    pruned = prunus.prune(model, Task(calib=[ids]), "wanda", sparsity=0.5).model
    before, generators = state(pruned), rng()
    for one in (pruned, model):
        found = measure.harness(one, tokenizer(), ["colours"], include=folder, batch=2)
        (score,) = found.scores
        assert found.value("colours", "acc") == score.value == pytest.approx(by_hand(one))
        assert (score.samples, score.shots, score.version, score.higher_is_better) == (len(QUESTIONS), 0, "3", True)
        assert score.error is not None and found.limit is None and "colours acc" in str(found)
    pruned.train(before["training"][""])
    assert not difference({k: v for k, v in before.items() if k != "training"}, state(pruned)) and rng() == generators
    assert measure.harness(model, tokenizer(), ["colours"], include=folder, limit=2).scores[0].samples == 2
    with pytest.raises(SpecError, match="numbers are called colours f1"):
        found.value("colours", "f1")


@needed
@pytest.mark.slow
def test_tasks_that_the_harness_does_not_know(folder: Path) -> None:
    with pytest.raises(SpecError, match="has no task tones"):
        measure.harness(network(), tokenizer(), ["colours", "tones"], include=folder)


@needed
@pytest.mark.slow
def test_the_command_puts_models_beside_each_other(folder: Path, tmp_path: Path) -> None:
    model = network()
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    told = ("evaluate", f"hf:{tmp_path / 'model'}", f"hf:{tmp_path / 'model'}", "--tasks", "colours")
    found = CliRunner().invoke(app, [*told, "--include", str(folder), "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["models"]
    assert [r["scores"][0]["value"] for r in rows] == [pytest.approx(by_hand(model))] * 2
    found = CliRunner().invoke(app, [*told, "--include", str(folder)], env={"COLUMNS": "200"})
    assert "colours" in found.stdout and found.exit_code == 0


def test_what_it_takes_is_said(tmp_path: Path) -> None:
    if not THERE:
        with pytest.raises(MissingExtraError, match=r"prunus\[evaluate\]"):
            measure.harness(network(), tokenizer(), ["colours"])
        found = CliRunner().invoke(app, ["evaluate", f"hf:{tmp_path}", "--tasks", "colours"])
        assert found.exit_code == 1 and "prunus[evaluate]" in found.output
    else:
        with pytest.raises(SpecError, match="this is a Linear"):
            measure.harness(torch.nn.Linear(2, 2), None, ["colours"])
        with pytest.raises(SpecError, match="at least one task"):
            measure.harness(network(), tokenizer(), [])
    found = CliRunner().invoke(app, ["evaluate", "resnet20", "--tasks", "colours"])
    assert found.exit_code == 2 and "hf:FOLDER" in found.output
    found = CliRunner().invoke(app, ["evaluate", f"hf:{tmp_path}", "--tasks", "a, b", "--dry-run"])
    assert found.exit_code == 0 and "questions of a, b" in found.output
