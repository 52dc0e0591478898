"""How much memory it takes to prune a language model from folder to folder.

    python benchmarks/stream.py [--shapes 1b 7b] [--methods wanda magnitude_uniform] [--samples 8] [--length 128]
                                [--folder DIR] [--markdown]

Models of the shapes of TinyLlama (1.1 B parameters) and LLaMA-7B with random bfloat16 weights are written to a folder,
a block at a time, and pruned to 50 % in a process of their own; text is random tokens, two windows at a time. Peak
memory is the kernel's (VmHWM), counted from what the process has once everything is imported. It is compared with
three times the largest block plus the activations that wait between blocks. With `--markdown` the table goes to
docs/stream.md. Needs twice the model's size on the disk; what was written is removed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "stream.md"
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def write_model(folder: Path, shape: str) -> int:
    """A folder of random weights; returns how many."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from prunus.stream.shards import INDEX, write_shard
    from prunus.stream.skeleton import hollow

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(vocab_size=32000, dtype="bfloat16", architectures=["LlamaForCausalLM"], **SHAPES[shape])
    config.save_pretrained(folder)
    with hollow():
        model = LlamaForCausalLM(config)
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, p in model.named_parameters():
        parts = name.split(".")
        blocks.setdefault(parts[2] if parts[1] == "layers" else "rest", {})[name] = tuple(p.shape)
    generator = torch.Generator().manual_seed(0)
    table, size = {}, 0
    for i, (_, shapes) in enumerate(blocks.items()):
        shard = f"model-{i:05d}.safetensors"
        tensors = {n: random(s, generator) for n, s in shapes.items()}
        write_shard(folder / shard, tensors)
        table |= dict.fromkeys(shapes, shard)
        size += sum(t.numel() for t in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return size


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(shape[1] ** -0.5).bfloat16()


def status(field: str) -> int:
    """Bytes, of the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def prune(folder: Path, method: str, samples: int, length: int) -> dict[str, Any]:
    """Prune a folder in this process, and what it took."""
    import transformers

    from prunus.stream import prune_folder
    from prunus.stream.shards import Checkpoint

    transformers.LlamaForCausalLM  # noqa: B018 (imported before memory is counted)
    torch.set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(32000, (samples, length), generator=generator)
    batches = [{"input_ids": ids} for ids in tokens.split(2)]
    checkpoint = Checkpoint(folder)
    blocks: dict[str, int] = {}
    for name, entry in checkpoint.entries.items():
        if ".layers." in name:
            blocks[name.split(".")[2]] = blocks.get(name.split(".")[2], 0) + entry.size
    out = folder.parent / f"{folder.name}-{method}"
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    made = prune_folder(folder, out, method, batches, sparsity=0.5)
    peak = status("VmHWM") - before
    shutil.rmtree(out)
    return {
        "method": method,
        "model": checkpoint.bytes,
        "block": max(blocks.values()),
        "activations": made.activations,
        "before": before,
        "peak": peak,
        "read": made.read,
        "written": made.written,
        "seconds": made.seconds,
        "sparsity": made.sparsity,
        "tokens": samples * length,
    }


HEADS = (
    "shape",
    "method",
    "tokens",
    "weights",
    "block",
    "waiting",
    "peak",
    "peak / bound",
    "read",
    "written",
    "seconds",
)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line per run; the bound is three blocks and what waits."""
    out = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    for r in rows:
        share = r["peak"] / (3 * r["block"] + r["activations"])
        sizes = [gb(r[k]) for k in ("model", "block", "activations", "peak")]
        told = (r["shape"], f"`{r['method']}`", f"{r['tokens']:,}", *sizes, f"{share:.2f}")
        out.append("| " + " | ".join((*told, gb(r["read"]), gb(r["written"]), f"{r['seconds']:.0f}")) + " |")
    return out


def gb(n: float) -> str:
    return f"{n / 1e9:.3f} GB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, prune, remove; then the table."""
    parser = argparse.ArgumentParser(description="Memory of pruning from folder to folder.")
    parser.add_argument("--shapes", nargs="*", default=["1b"], choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=["magnitude_uniform", "wanda"])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--one", nargs=2, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        print(json.dumps(prune(Path(given.one[0]), given.one[1], given.samples, given.length)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for shape in given.shapes:
            folder = Path(place) / shape
            write_model(folder, shape)
            for method in given.methods:
                asked = ["--one", str(folder), method, "--samples", str(given.samples), "--length", str(given.length)]
                done = subprocess.run([sys.executable, __file__, *asked], check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]) | {"shape": shape})
                print(json.dumps(rows[-1]), flush=True)
            shutil.rmtree(folder)
    text = [
        "# Memory of pruning from folder to folder\n",
        "<!-- Written by benchmarks/stream.py --markdown. -->\n",
        str(__doc__).split("\n\n")[2].strip() + "\n",
        *table(rows),
        "",
    ]
    print("\n".join(text))
    if given.markdown:
        PAGE.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
