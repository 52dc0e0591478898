"""Bytes of sparse containers against the entropy bound, and the memory that saving takes.

    python benchmarks/files.py [--json] [--markdown] [--size 1024] [--gigabytes 2]

Random values at random places of each pattern, in float32, bfloat16 and int8; stored bytes of the smallest container
over the bound (log2 of the number of patterns of that kind with as many blocks kept, plus the bits of the values).
With --gigabytes, that many of bfloat16 in the shapes of a language model of seven billion weights are made one tensor
at a time, half of each zero, and written; by how much the resident size rises at most (`VmHWM`, Linux only) is told in
multiples of the largest tensor. --markdown writes docs/files-bytes.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.deploy.containers import pack
from prunus.deploy.tensors import write_tensors
from prunus.deploy.weights import lay

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files-bytes.md"
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
SHAPES = ((32000, 4096), *([(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]) * 32, (32000, 4096))


def blocks(size: int, sparsity: float, high: int, wide: int) -> tuple[Tensor, float]:
    """Blocks kept at random places, and log2 of the number of such patterns."""
    high, wide = high or size, wide or size
    n = size // high * (size // wide)
    kept = n - round(n * sparsity)
    flags = torch.zeros(n, dtype=torch.bool)
    flags[torch.randperm(n)[:kept]] = True
    mask = flags.reshape(size // high, size // wide).repeat_interleave(high, 0).repeat_interleave(wide, 1)
    return mask, (math.lgamma(n + 1) - math.lgamma(kept + 1) - math.lgamma(n - kept + 1)) / math.log(2)


def groups(size: int, n: int, m: int) -> tuple[Tensor, float]:
    """n of every m along a row."""
    order = torch.rand(size * size // m, m).argsort(1)
    return (order < n).reshape(size, size), size * size // m * math.log2(math.comb(m, n))


def patterns(size: int) -> Iterator[tuple[str, Tensor, float]]:
    """Name, mask, and log2 of the number of patterns."""
    for s in (50, 60, 70, 80, 90, 95, 99):
        yield f"unstructured, {s} %", *blocks(size, s / 100, 1, 1)
    for n, m in ((2, 4), (4, 8), (1, 4)):
        yield f"{n}:{m}", *groups(size, n, m)
    for high, wide in ((4, 1), (8, 1), (16, 1), (1, 4), (16, 16)):
        for s in (50, 90):
            yield f"blocks {high} x {wide}, {s} %", *blocks(size, s / 100, high, wide)
    yield "rows, 50 %", *blocks(size, 0.5, 1, 0)
    yield "columns, 50 %", *blocks(size, 0.5, 0, 1)


def measured(size: int) -> list[dict[str, Any]]:
    """A row for each pattern and type."""
    torch.manual_seed(0)
    rows = []
    for name, mask, log in patterns(size):
        for dtype in DTYPES:
            values = torch.randint(1, 127, mask.shape).to(dtype)
            made = pack(torch.where(mask, values, torch.zeros((), dtype=dtype)))
            bound = (log + 8 * dtype.itemsize * int(mask.sum())) / 8
            dense = mask.numel() * dtype.itemsize
            rows.append(
                {
                    "pattern": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "coding": made.spec.coding,
                    "stored": made.size,
                    "bound": bound,
                    "of_bound": made.size / bound,
                    "of_dense": made.size / dense,
                }
            )
    return rows


class Made(Mapping[str, Tensor]):
    """Tensors of a model that come into being when they are asked for."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return (f"w{i}" for i in range(len(self.shapes)))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __getitem__(self, name: str) -> Tensor:
        number = int(name[1:])
        tensor = torch.empty(self.shapes[number], dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(number)
        for piece in tensor.split(128):
            drawn = torch.randn(piece.shape, generator=generator)
            piece.copy_(drawn * (torch.rand(piece.shape, generator=generator) < 0.5))
        return tensor


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) * 1024


def streamed(gigabytes: float, folder: Path) -> dict[str, Any]:
    """Write so much, and see how far memory rises."""
    shapes: list[tuple[int, int]] = []
    total = 0
    for shape in SHAPES:
        if total >= gigabytes * 1e9:
            break
        shapes.append(shape)
        total += 2 * math.prod(shape)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.monotonic()
    laid = lay(Made(shapes))
    write_tensors(folder / "model.safetensors", laid.entries, {"format": "pt"})
    largest = max(2 * math.prod(s) for s in shapes)
    return {
        "tensors": len(shapes),
        "dense": laid.dense,
        "stored": laid.stored,
        "bound": laid.bound,
        "largest": largest,
        "peak": status("VmHWM") - before,
        "in_largest": (status("VmHWM") - before) / largest,
        "seconds": time.monotonic() - start,
    }


def page(rows: list[dict[str, Any]], size: int, stream: dict[str, Any] | None) -> str:
    """The table of docs/files-bytes.md."""
    lines = [
        "# Bytes of sparse containers",
        "",
        "<!-- Written by `python benchmarks/files.py --markdown`; run that instead of editing. -->",
        "",
        f"A {size} x {size} matrix of random values at random places of each pattern: the container that is chosen,",
        "its bytes over those of the dense matrix, and over the entropy bound of pattern and values. The header of the",
        "file, some 80 bytes for each stream, is not counted.",
        "",
        "| Pattern | Type | Container | Of dense | Of the bound |",
        "| :--- | :--- | :--- | ---: | ---: |",
    ]
    lines += [
        f"| {r['pattern']} | {r['dtype']} | {r['coding']} | {r['of_dense']:.3f} | {r['of_bound']:.3f} |" for r in rows
    ]
    if stream is not None:
        lines += [
            "",
            f"{stream['tensors']} tensors of {stream['dense'] / 1e9:.2f} GB in the shapes of a model of seven billion",
            "weights, bfloat16, half of them zero, each made when it is asked for:",
            f"{stream['stored'] / 1e9:.2f} GB are written, {stream['stored'] / stream['bound']:.3f} of the bound.",
            f"The resident size rises by {stream['peak'] / 1e6:.0f} MB at most,",
            f"{stream['in_largest']:.2f} of the largest tensor.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gigabytes", type=float, default=0.0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stream = None
    if given.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            stream = streamed(given.gigabytes, Path(folder))
    rows = measured(given.size)
    if given.json:
        print(json.dumps({"rows": rows, "stream": stream}, indent=1))
    else:
        print(page(rows, given.size, stream))
    worst = max(r["of_bound"] for r in rows)
    print(f"largest ratio to the bound: {worst:.3f}", file=sys.stderr)
    if given.markdown:
        PAGE.write_text(page(rows, given.size, stream))


if __name__ == "__main__":
    main()
