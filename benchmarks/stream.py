"""How much memory it takes to prune a language model from folder to folder, and what larger ones would take.

    python benchmarks/stream.py                  prints what was measured, and plans; runs nothing
    python benchmarks/stream.py --run [--shapes 1b 7b] [--layers N] [--methods magnitude_uniform wanda sparsegpt]
                                [--samples 8] [--length 128] [--threads 1] [--folder DIR]
    python benchmarks/stream.py --markdown       writes docs/stream.md

Models of the shapes of TinyLlama (1.1 B parameters) and LLaMA-7B, or of their first `--layers` blocks, with random
bfloat16 weights are written to a folder, a block at a time, and pruned to 50 % in a process of their own; text is
random tokens, two windows at a time. Peak memory is the kernel's (VmHWM), counted from what the process has once it has
imported everything and pruned a tiny model. It is compared with three times the largest block plus the activations that
wait between blocks, and with what `prunus plan` expects. The bound is the same however many blocks a model has; a run
of a few blocks says so in its row. Bytes read and written are the kernel's (rchar and wchar of /proc/self/io) and hold
everything: weights, state, files of the folder. Seconds are processor time.

Needs twice the model's size on the disk; what was written is removed. A row is a run, in docs/stream.csv.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from vision import define_missing

from prunus.lab import ledger

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs" / "stream.csv", ROOT / "docs" / "stream.md"
METHODS = ("magnitude_uniform", "wanda", "sparsegpt")
LLAMA = {"vocab_size": 32000, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
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
# Of models too large for here: a config each, from which they are planned.
PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3-70B": (
        "LlamaConfig",
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    "Llama-4-Maverick's text model (400B)": (
        "Llama4TextConfig",
        {
            "architectures": ["Llama4ForCausalLM"],
            "vocab_size": 202048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
    ),
}
WINDOWS, LENGTH = 128, 2048
GIVEN = 4e14
"""FLOP/s that the plans reckon with beside what this machine does: about what one large GPU makes of bfloat16."""


@dataclass(frozen=True)
class Run:
    """A row of the table; bytes, and seconds of processor time."""

    shape: str
    layers: int
    method: str
    tokens: int
    model: int
    block: int
    activations: int
    before: int
    peak: int
    planned: int
    read: int
    written: int
    seconds: float
    sparsity: float
    machine: str

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.shape, self.layers, self.method, self.tokens)


def write_model(folder: Path, shape: str, layers: int | None = None) -> int:
    """A folder of random weights; returns how many."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from prunus.stream.shards import INDEX, write_shard
    from prunus.stream.skeleton import hollow

    folder.mkdir(parents=True, exist_ok=True)
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = LlamaConfig(**LLAMA, **sizes)
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
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 2 * size}, "weight_map": table}))
    return size


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(shape[1] ** -0.5).bfloat16()


def status(field: str) -> int:
    """Bytes, of the kernel's account of this process."""
    return 1024 * account("status", field)


def account(file: str, field: str) -> int:
    """A number that the kernel keeps about this process."""
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/{file} has no {field}")


def machine() -> str:
    """The processor, how many threads of it torch uses, and torch."""
    names = [n for n in Path("/proc/cpuinfo").read_text().splitlines() if n.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def prune(folder: Path, method: str, samples: int, length: int, shape: str, layers: int) -> dict[str, Any]:
    """Prune a folder in this process, and what it took."""
    from prunus.stream import prune_folder
    from prunus.stream.memory import give_back
    from prunus.stream.plan import Rates, plan
    from prunus.stream.shards import Checkpoint

    expected = plan(folder, method, samples=samples, length=length, rates=Rates(1.0, 1.0, 1.0))
    with tempfile.TemporaryDirectory() as place:  # so that all that is imported on the way is there
        write_model(Path(place) / "tiny", "tiny")
        few = [{"input_ids": torch.arange(64).reshape(1, 64)}] * 2
        prune_folder(Path(place) / "tiny", Path(place) / "out", method, few, sparsity=0.5)
    give_back()
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
    before, read, written = status("VmRSS"), account("io", "rchar"), account("io", "wchar")
    start = time.process_time()
    made = prune_folder(folder, out, method, batches, sparsity=0.5)
    seconds, peak = time.process_time() - start, status("VmHWM") - before
    read, written = account("io", "rchar") - read, account("io", "wchar") - written
    shutil.rmtree(out)
    return {
        "shape": shape,
        "layers": layers,
        "method": method,
        "tokens": samples * length,
        "model": checkpoint.bytes,
        "block": max(blocks.values()),
        "activations": made.activations,
        "before": before,
        "peak": peak,
        "planned": expected.peak,
        "read": read,
        "written": written,
        "seconds": round(seconds, 1),
        "sparsity": round(made.sparsity, 5),
        "machine": machine(),
    }


def run(given: argparse.Namespace) -> None:
    """Make models, prune each by each method that is not in the table, remove them."""
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for shape in given.shapes:
            layers = given.layers or SHAPES[shape]["num_hidden_layers"]
            done = {r.key for r in ledger.rows(given.table, Run)}
            asked = [m for m in given.methods if (shape, layers, m, given.samples * given.length) not in done]
            folder = Path(place) / shape
            if asked:
                write_model(folder, shape, layers)
            for method in asked:
                sizes = ["--samples", str(given.samples), "--length", str(given.length), "--layers", str(layers)]
                one = ["--one", str(folder), method, "--shapes", shape, "--threads", str(given.threads), *sizes]
                did = subprocess.run([sys.executable, __file__, *one], check=True, stdout=subprocess.PIPE, text=True)
                row = Run(**json.loads(did.stdout.splitlines()[-1]))
                ledger.add(given.table, row)
                print(row, flush=True)
            shutil.rmtree(folder, ignore_errors=True)


# The page


def line(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def gb(n: float) -> str:
    return f"{n / 1e9:,.3f} GB"


def table(rows: Iterable[Run]) -> list[str]:
    """A line per run; the bound is three blocks and what waits."""
    heads = ("shape", "blocks", "method", "tokens", "weights", "largest block", "waiting")
    heads += ("peak", "peak / bound", "planned / peak", "read", "written", "seconds")
    out = [line(*heads), line(*["---"] * len(heads))]
    for r in rows:
        share = r.peak / (3 * r.block + r.activations)
        whole = SHAPES[r.shape]["num_hidden_layers"]
        blocks = str(r.layers) if r.layers == whole else f"{r.layers} of {whole}"
        told = (r.shape, blocks, f"`{r.method}`", f"{r.tokens:,}", gb(r.model), gb(r.block), gb(r.activations))
        more = (gb(r.peak), f"{share:.2f}", f"{r.planned / r.peak:.2f}", gb(r.read), gb(r.written), f"{r.seconds:.0f}")
        out.append(line(*told, *more))
    return out


def planned() -> list[str]:
    """What larger models would take, at this machine's rates and at given ones."""
    import transformers

    from prunus import methods
    from prunus.parts.allocation import NofM
    from prunus.stream.plan import Rates, measured_rates, plan

    here = measured_rates(torch.bfloat16)
    given = replace(Rates(GIVEN, GIVEN, GIVEN), select=1e9)
    heads = ("model", "method", "read and written, each", "largest block", "x x^T at once", "peak expected")
    heads += ("of three blocks and what waits",)
    heads += ("FLOPs: forward", "moments", "solve", "hours here", f"hours at {GIVEN:g} FLOP/s")
    out = [line(*heads), line(*["---"] * len(heads))]
    with tempfile.TemporaryDirectory() as place:
        for name, (kind, sizes) in PLANNED.items():
            folder = Path(place) / "planned"
            getattr(transformers, kind)(dtype="bfloat16", **sizes).save_pretrained(folder)
            patterned = replace(methods.sparsegpt, name="sparsegpt 2:4", allocate=NofM(2, 4))
            for method in (*map(methods.get, METHODS), methods.gblm, patterned):
                one = plan(folder, method, samples=WINDOWS, length=LENGTH, rates=here)
                other = plan(folder, method, samples=WINDOWS, length=LENGTH, rates=given)
                sums = gb(one.gram["wave"]) if one.gram else ""
                sizes_ = (gb(one.bytes), gb(one.block), sums, gb(one.peak), f"{one.peak / one.bound:.2f}")
                flops = [f"{v:.2g}" if v else "" for v in (one.forward, one.moments, one.solve)]
                out.append(line(name, f"`{method.name}`", *sizes_, *flops, f"{one.hours:,.1f}", f"{other.hours:,.2f}"))
    rates = f"{here.forward / 1e9:,.0f} GFLOP/s in bfloat16, {here.wide / 1e9:,.0f} in float64, {here.solve / 1e9:,.0f}"
    told = f"This machine: {machine()}; {rates} in float32, {here.select / 1e6:,.0f} M weights chosen from per second;"
    return [f"{told} 1 GB/s of disk is assumed.\n", *out]


def page(rows: Sequence[Run]) -> str:
    """docs/stream.md."""
    about = str(__doc__).split("\n\n")
    text = [
        "# Pruning from folder to folder: memory, bytes, and plans for larger models\n",
        "<!-- Written by benchmarks/stream.py --markdown from docs/stream.csv. -->\n",
        *(part.strip() + "\n" for part in about[2:]),
        *table(rows),
        "\nMachine: " + "; ".join(dict.fromkeys(r.machine for r in rows)) + ".\n",
        "SparseGPT needs E[x x^T] of a layer's inputs in float64; half of it is kept, and its factor takes its place,",
        "in float32 but for its diagonal. Of the down projection alone it is 5632^2 / 2 x 8 bytes = 0.127 GB in the",
        "1.1B shape and 0.485 GB in the 7B one, 1.4 and 1.2 of their blocks. It is there alone: layers are taken from",
        "the last to the first, and while those behind are pruned already, what feeds the others is still what the",
        "whole block makes. That takes further forwards, each left at the last layer that is asked for.\n",
        "The machine did other work meanwhile: seconds are too many.\n",
        "Tables outside of the blocks (embeddings, the output layer) are read twice: when a forward calls them, and to",
        "be copied. They are in memory while they are called, the output layer beside the last block: 0.131 and 0.088",
        "GB of the 1.1B shape. A vocabulary of more than two blocks' size would not keep the bound.\n",
        "## Plans\n",
        f"By `prunus plan` from config.json alone, for {WINDOWS} windows of {LENGTH} tokens; nothing of this was run.",
        "Tokens are taken to go to experts evenly. Hours are for one process (several share the forward and the sums,",
        "not the solving), with products at the rates of matrices of 1536 x 1536. The last column reckons with",
        f"{GIVEN:g} FLOP/s for everything: that is a number of data sheets; float64, and what lies between products,",
        "is slower on most accelerators, and no CUDA device was at hand.\n",
        *planned(),
        "",
        "Peaks leave out what a forward through a block makes of one batch, which hangs on how long that is.",
        "SparseGPT holds half of E[x x^T] of all experts of one tensor at once, and solves them one by one. Unless a",
        "pattern (2:4) says how many weights each keeps, all experts of a tensor are scored together first, by the",
        "inverses of whole matrices of all of them. Half of E[x x^T] of the 70B model's down projection is 1.9 of its",
        "blocks. transformers itself runs each expert of this mixture on all tokens: its forward takes more than the",
        "FLOPs here, which are of the tokens that go to each. For GBLM the inputs of all blocks wait (`--memory` lays",
        "them into files), and are in the peak.",
        "",
    ]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, if asked to; then the page."""
    parser = argparse.ArgumentParser(description="Memory of pruning from folder to folder.")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--shapes", nargs="*", default=["1b"], choices=list(SHAPES))
    parser.add_argument("--layers", type=int, default=None, help="only so many blocks of the shape")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--table", type=Path, default=TABLE, help="the CSV")
    parser.add_argument("--folder", type=Path, default=None, help="where to write models; default: a temporary folder")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--one", nargs=2, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    define_missing()
    if given.one is not None:
        folder, method = given.one
        print(json.dumps(prune(Path(folder), method, given.samples, given.length, given.shapes[0], given.layers)))
        return
    if given.run:
        run(given)
    rows = sorted(ledger.rows(given.table, Run), key=lambda r: (list(SHAPES).index(r.shape), r.layers, r.method))
    text = page(rows)
    print(text)
    if given.markdown:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
