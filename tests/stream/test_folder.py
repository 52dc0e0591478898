"""Folders pruned block by block: as in memory, to the bit, also after a crash; and everything that may be wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.core.errors import DataError, PrunusWarning, SpecError, VerificationError
from prunus.parts.allocation import NofM
from prunus.stream import prune_folder
from prunus.stream.shards import INDEX, SINGLE, Checkpoint, write_shard
from prunus.stream.skeleton import Skeleton

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    t = transformers
    made: dict[str, Any] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
        "tied bf16": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, tie_word_embeddings=True)).bfloat16(),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_embd=24, n_layer=2, n_head=4)),
        "bert": lambda: t.BertModel(
            t.BertConfig(
                vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
            )
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=64, d_model=24, d_ff=40, num_layers=2, num_heads=4, d_kv=6)
        ),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=64, hidden_size=24, num_hidden_layers=2)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**SMALL, num_local_experts=4)),
    }
    model: nn.Module = made[kind]().eval()
    return model


def batches_for(kind: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [{"input_ids": torch.randint(64, (2, 12), generator=generator)} for _ in range(3)]
    return [b | {"decoder_input_ids": b["input_ids"].flip(1)} for b in made] if kind == "t5" else made


def saved(kind: str, folder: Path, shard: str = "5GB") -> tuple[Any, Path]:
    """The model as `from_pretrained` reads it, and its folder."""
    model: Any = network(kind)
    model.save_pretrained(folder, max_shard_size=shard)
    return read(type(model), folder), folder


def read(kind: Any, folder: Path) -> Any:
    transformers.utils.logging.disable_progress_bar()
    return kind.from_pretrained(folder, local_files_only=True).eval()


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "prunus.json"}


KINDS = ("llama", "tied bf16", "gemma3", "gpt2", "bert", "t5", "mixtral", "mamba")
OFTEN = {("sparsegpt", "llama"), ("sparsegpt", "mixtral"), *(("wanda", kind) for kind in KINDS)}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(method, kind, marks=() if (method, kind) in OFTEN else pytest.mark.slow)
        for method in ("wanda", "sparsegpt")
        for kind in KINDS
    ],
)
def test_streamed_is_in_memory(method: str, kind: str, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path / "dense", "20KB")
    before = files(folder)
    batches, recipe = batches_for(kind), replace(prunus.methods.get(method), sweep="blocks")
    result = prunus.prune(model, Task(calib=batches), recipe, sparsity=0.5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        streamed = prune_folder(folder, tmp_path / "out", method, batches, sparsity=0.5)
    assert same(result.model, read(type(model), tmp_path / "out"))
    assert files(folder) == before
    counts = {n: int(m.sum()) for n, m in result.masks.items()}
    inside = {f"{b.name}.{g}": n for b in streamed.blocks for g, n in b.kept.items() if g not in b.skipped}
    assert inside == {n: counts[n] for n in inside} and counts.keys() - inside.keys() <= {"lm_head.weight"}
    assert streamed.inside + streamed.outside == sum(
        t.numel() for t in (Checkpoint(folder).read(n) for n in Checkpoint(folder).entries)
    )
    assert Checkpoint(tmp_path / "out").entries.keys() == Checkpoint(folder).entries.keys()
    assert (tmp_path / "out" / "config.json").read_bytes() == before["config.json"]
    # What was not scored is said, with the share that it leaves whole.
    part = any(issubclass(w.category, PrunusWarning) and "stayed whole" in str(w.message) for w in told)
    assert part == (kind == "mamba") == bool(streamed.skipped)
    assert streamed.sparsity == pytest.approx(0.5, abs=0.01)
    assert (streamed.overall < streamed.sparsity - 0.005) == (kind == "mamba")


@pytest.mark.parametrize("kind", ["tied bf16", "t5"])
def test_large_tables_come_and_go(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies outside of the blocks is read when it is called, and forgotten at the next block."""
    _, folder = saved(kind, tmp_path / "dense")
    whole = prune_folder(folder, tmp_path / "small", "wanda", batches_for(kind), sparsity=0.5)
    monkeypatch.setattr(Skeleton, "large", 1)
    again = prune_folder(folder, tmp_path / "large", "wanda", batches_for(kind), sparsity=0.5)
    assert whole.masks == again.masks and files(tmp_path / "small") == files(tmp_path / "large")
    assert again.read >= whole.read  # the shared table twice


def test_patterns_and_what_the_report_says(tmp_path: Path) -> None:
    model, folder = saved("llama", tmp_path / "dense")
    recipe = replace(prunus.methods.get("wanda"), allocate=NofM(2, 4))
    seen: list[tuple[int, int, str]] = []
    streamed = prune_folder(
        folder, tmp_path / "out", recipe, batches_for("llama"), on_block=lambda i, n, b: seen.append((i, n, b.name))
    )
    assert seen == [(i + 1, 3, f"model.layers.{i}") for i in range(3)]
    pruned = read(type(model), tmp_path / "out")
    for name, p in pruned.named_parameters():
        if p.ndim == 2 and "layers" in name:
            assert bool(((p.reshape(-1, 4) != 0).sum(1) <= 2).all())
    told = json.loads((tmp_path / "out" / "prunus.json").read_text())
    assert told["masks"] == streamed.masks and told["sparsity"] == 0.5
    assert told["recipe"] == replace(recipe, sweep="blocks").to_dict()
    assert not (tmp_path / ".out.unfinished").exists()
    again = prune_folder(folder, tmp_path / "out", recipe, batches_for("llama"))  # replaces a folder of ours
    assert again.masks == streamed.masks


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    _, folder = saved("gemma3", tmp_path / "dense")
    batches = batches_for("gemma3")
    prune_folder(folder, tmp_path / "whole", "sparsegpt", batches, sparsity=0.5)

    def stop(done: int, _all: int, _record: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", "sparsegpt", batches, sparsity=0.5, on_block=stop)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="unfinished run lies at"):
        prune_folder(folder, tmp_path / "out", "sparsegpt", batches, sparsity=0.5)
    for other in ({"sparsity": 0.6}, {"sparsity": 0.5, "seed": 1}):
        with pytest.raises(SpecError, match="another model, recipe, budget, seed or calibration data"):
            prune_folder(folder, tmp_path / "out", "sparsegpt", batches, resume=True, **other)
    with pytest.raises(SpecError, match="another model"):
        prune_folder(folder, tmp_path / "out", "sparsegpt", batches[:2], sparsity=0.5, resume=True)
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    data = bytearray((changed / SINGLE).read_bytes())
    data[-1] ^= 1
    (changed / SINGLE).write_bytes(data)
    streamed = prune_folder(folder, tmp_path / "out", "sparsegpt", batches, sparsity=0.5, resume=True)
    assert streamed.resumed == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


KILLED = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
import conftest  # what lets transformers be imported beside this torch
from test_folder import batches_for
from prunus.stream import prune_folder
prune_folder({folder!r}, {out!r}, "sparsegpt", batches_for("llama"), sparsity=0.5, resume={resume},
             on_block=lambda done, n, b: print(done, flush=True))
"""


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    prune_folder(folder, tmp_path / "whole", "sparsegpt", batches_for("llama"), sparsity=0.5)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def command(resume: bool) -> list[str]:
        here, tests = str(Path(__file__).parent), str(ROOT / "tests")
        told = {"here": here, "tests": tests, "folder": str(folder), "out": str(out), "resume": resume}
        return [sys.executable, "-c", KILLED.format(**told)]

    with subprocess.Popen(command(False), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and "1\n" in run.stdout  # up to that line: libraries may print before it
        time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert not out.exists()
    subprocess.run(command(True), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert files(out) == files(tmp_path / "whole")


def test_a_damaged_unfinished_run_is_refused(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments: Any = (folder, tmp_path / "out", "wanda", batches_for("llama"))
    with pytest.raises(KeyboardInterrupt):
        prune_folder(*arguments, sparsity=0.5, on_block=stop)
    part = tmp_path / ".out.unfinished"
    shard = part / "model-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    with pytest.raises(SpecError, match="not what the unfinished run wrote"):
        prune_folder(*arguments, sparsity=0.5, resume=True)
    shard.write_bytes(content)
    state = (part / "state.json").read_text()
    (part / "state.json").write_text(state[:40])
    with pytest.raises(SpecError, match="not readable"):
        prune_folder(*arguments, sparsity=0.5, resume=True)
    (part / "state.json").write_text(state)
    prune_folder(*arguments, sparsity=0.5, resume=True)


def test_recipes_that_cannot_be_streamed_are_refused(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    for name, why in (("magnitude", "compete"), ("snip", "compete|behind")):
        with pytest.raises(SpecError, match=why):
            prune_folder(folder, tmp_path / "out", name, batches_for("llama"), sparsity=0.5)
    with pytest.raises(SpecError, match="one of the whole model"):
        prune_folder(folder, tmp_path / "out", "wanda", batches_for("llama"), budget=prunus.Budget(macs=0.5))
    with pytest.raises(SpecError, match="the folder that is read"):
        prune_folder(folder, folder, "wanda", batches_for("llama"), sparsity=0.5)
    with pytest.raises(DataError, match="no batch"):
        prune_folder(folder, tmp_path / "none", "wanda", [], sparsity=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]


def broken(folder: Path, how: str) -> None:
    """Damage a copy of a sharded folder."""
    index = json.loads((folder / INDEX).read_text())
    table = index["weight_map"]
    name = sorted(set(table.values()))[0]
    content = (folder / name).read_bytes()
    if how == "truncated":
        (folder / name).write_bytes(content[:-10])
    elif how == "longer":
        (folder / name).write_bytes(content + b"\0" * 8)
    elif how == "no header":
        (folder / name).write_bytes(b"\xff" * 100)
    elif how == "missing shard":
        (folder / name).unlink()
    elif how == "escapes":
        table[next(iter(table))] = "../dense/" + name
    elif how == "missing entry":
        table["model.layers.0.self_attn.absent.weight"] = name
    elif how == "left out":
        del table["model.layers.1.mlp.up_proj.weight"]
    elif how == "no index":
        (folder / INDEX).write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "foreign code":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Evil"]}))
    if how != "no index":
        (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cut off"),
        ("longer", "its header tells of"),
        ("no header", "no safetensors file"),
        ("missing shard", "is missing"),
        ("escapes", "no name of a shard"),
        ("missing entry", "it is not there"),
        ("left out", "lacks 1 weights"),
        ("no index", "no index of shards"),
        ("no config", "no config.json"),
        ("foreign code", "never run"),
    ],
)
def test_damaged_folders_are_refused_before_anything_is_written(how: str, message: str, tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense", "20KB")
    broken(folder, how)
    with pytest.raises((DataError, SpecError), match=message):
        prune_folder(folder, tmp_path / "out", "wanda", batches_for("llama"), sparsity=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]


def test_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    for method in ("wanda", "flap"):  # weights, and whole units
        for token in (64, -1):
            batches = [*batches_for("llama"), {"input_ids": torch.full((1, 8), token)}]
            with pytest.raises(DataError, match=rf"token {token}, and .* knows 0 to 63: was the text"):
                prune_folder(folder, tmp_path / "out", method, batches, sparsity=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]


def test_shards_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).bfloat16(),
        "c": torch.zeros(0, 2),
        "d": torch.tensor(3),
        "e": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(n), t) and checkpoint.read(n).dtype == t.dtype for n, t in tensors.items())
    write_shard(tmp_path / "copy.safetensors", {"a": tensors["a"], **dict.fromkeys("bcde", checkpoint)})
    copy = load_file(tmp_path / "copy.safetensors")
    assert copy.keys() == tensors.keys() and all(torch.equal(copy[n], t) for n, t in tensors.items())


def test_shards_may_be_links_and_lie_about_nothing(tmp_path: Path) -> None:
    """Folders of download caches hold links; what a header says twice, or of bytes that overlap, is refused."""
    blob, folder = tmp_path / "blob", tmp_path / "snapshot"
    folder.mkdir()
    write_shard(blob, {"a": torch.arange(4.0), "b": torch.arange(4.0) + 4})
    (folder / SINGLE).symlink_to(blob)
    assert torch.equal(Checkpoint(folder).read("b"), torch.arange(4.0) + 4)
    with pytest.raises(VerificationError, match="symbolic link"):
        Checkpoint.of(folder / SINGLE)  # shards that a run wrote are none
    first = '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    header = "{" + first + ',"%s":{"dtype":"%s","shape":[4],"data_offsets":[%s]}}'
    for name, dtype, place, why in (
        ("a", "F32", "16,32", "twice"),
        ("b", "F32", "0,16", "does not begin where"),
        ("b", "F4", "16,32", "is of type F4"),
        ("b", "F32", "16,31", "does not have the bytes"),
    ):
        text = (header % (name, dtype, place)).encode()
        blob.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
        with pytest.raises(DataError, match=why):
            Checkpoint(folder)
