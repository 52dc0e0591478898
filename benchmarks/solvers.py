"""What solving one layer costs against a plain transcription of the published loops, in the same process.

    python benchmarks/solvers.py [--layers 4096x4096 4096x11008] [--rounds 1] [--threads 1] [--markdown]

The baselines are written here from the papers: SparseGPT's layer routine (arXiv:2301.00774, algorithm 1: three LAPACK
calls for the factor of the inverse, a sorted threshold per block of 128 columns, one outer product per column), Wanda's
sort of every row, and the loop over blocks of m columns that both use for n:m masks (arXiv:2306.11695), all in float32,
as published. Ours is what `prunus.prune` calls: `ObsUpdate` on a layer whose weights are stored in float32, with the
engine's chooser; `Uniform(within="row")` and `NofM`, and zeroing. Processor time of this process, which a busy machine
disturbs less than the time on the wall; the two take turns, and the least of the rounds counts.

Inputs are synthetic, with strong common directions: H = diag + V V^T. `error` is the share of the layer's output that
is lost, published / ours; `same` is the share of weights on which the masks agree (published and float32 against ours).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunus.core.groups import Group, Member
from prunus.core.layer import Layer
from prunus.engine.apply_ import apply_
from prunus.engine.rebuild import chooser
from prunus.parts.allocation import NofM, Uniform
from prunus.parts.reconstruct import ObsUpdate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "solvers.md"
LIMITS = {"sparsegpt": 0.4, "wanda": 0.4, "mask": 0.25}
Pattern = tuple[int, int] | None


@dataclass
class Row:
    """One comparison: processor seconds of both, and how far they agree."""

    layer: str
    what: str
    published: float
    ours: float
    same: float
    errors: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.published

    def cells(self) -> list[str]:
        limit = next(v for k, v in LIMITS.items() if k in self.what)
        errors = "" if self.errors is None else f"{self.errors[0]:.5f} / {self.errors[1]:.5f}"
        times = [f"{self.published:.2f}", f"{self.ours:.2f}", f"{self.ratio:.2f}", f"{limit:g}"]
        return [self.layer, self.what, *times, f"{self.same:.5f}", errors]


def sparsegpt(
    w: Tensor, h: Tensor, pattern: Pattern, block: int = 128, damp: float = 0.01, share: float = 0.5
) -> Tensor:
    """The published layer routine, a share of the weights or n:m; weights."""
    w, h = w.clone(), h.clone()
    columns = w.shape[1]
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    diagonal = torch.arange(columns)
    h[diagonal, diagonal] += damp * torch.mean(torch.diag(h))
    h = torch.cholesky_inverse(torch.linalg.cholesky(h))
    inverse = torch.linalg.cholesky(h, upper=True)
    for i in range(0, columns, block):
        stop = min(i + block, columns)
        part, factor = w[:, i:stop].clone(), inverse[i:stop, i:stop]
        new, errors = torch.zeros_like(part), torch.zeros_like(part)
        gone = torch.zeros_like(part, dtype=torch.bool)
        if pattern is None:
            cost = part**2 / torch.diag(factor).reshape(1, -1) ** 2
            gone = cost <= torch.sort(cost.flatten())[0][int(cost.numel() * share)]
        for j in range(stop - i):
            if pattern is not None and j % pattern[1] == 0:
                n, m = pattern
                cost = part[:, j : j + m] ** 2 / torch.diag(factor)[j : j + m].reshape(1, -1) ** 2
                gone.scatter_(1, j + torch.topk(cost, m - n, dim=1, largest=False)[1], True)
            kept = part[:, j].clone()
            kept[gone[:, j]] = 0
            new[:, j] = kept
            error = (part[:, j] - kept) / factor[j, j]
            part[:, j:] -= error.unsqueeze(1).matmul(factor[j, j:].unsqueeze(0))
            errors[:, j] = error
        w[:, i:stop] = new
        w[:, stop:] -= errors.matmul(inverse[i:stop, stop:])
    return w


def wanda(w: Tensor, scores: Tensor, pattern: Pattern, share: float = 0.5) -> Tensor:
    """The published masks, a share of every row or n:m, and the weights without them."""
    gone = torch.zeros_like(w, dtype=torch.bool)
    if pattern is None:
        order = torch.sort(scores, dim=-1, stable=True)[1][:, : int(w.shape[1] * share)]
        gone.scatter_(1, order, True)
    else:
        n, m = pattern
        for i in range(0, w.shape[1], m):
            gone.scatter_(1, i + torch.topk(scores[:, i : i + m], m - n, dim=1, largest=False)[1], True)
    w = w.clone()
    w[gone] = 0
    return w


def layer_of(w: Tensor, h: Tensor, pattern: Pattern) -> Layer:
    """The layer as the engine hands it to a reconstruction."""
    out, width = w.shape
    keep = torch.zeros(out, width, dtype=torch.bool)
    if pattern is None:
        keep.view(-1)[: out * width // 2] = True  # rows keep unequal numbers: the share is the layer's
    else:
        keep |= torch.arange(width) % pattern[1] < pattern[0]
    block = None if pattern is None else torch.arange(width) // pattern[1]
    unit = torch.full((width,), -1)
    return Layer(
        "layer",
        w.double(),
        None,
        keep,
        h,
        torch.zeros(width),
        1,
        unit,
        allowed=torch.ones_like(keep),
        block=block,
        stored=w.dtype,
    )


def solved(layer: Layer) -> Tensor:
    return ObsUpdate()(layer, chooser(layer)).w


def masked(w: Tensor, scores: Tensor, pattern: Pattern) -> Tensor:
    """Our masks, and the weights without them."""
    group = Group("w", tuple(w.shape), (Member("w"),), weight=tuple(w.shape))
    allocate = Uniform(within="row") if pattern is None else NofM(*pattern)
    w = w.clone()
    apply_({"w": w}, allocate({"w": scores}, 0.5, {"w": group}))
    return w


def compared(
    theirs: Callable[[], Tensor], ours: Callable[[], Tensor], rounds: int
) -> tuple[float, float, Tensor, Tensor]:
    """The least processor time of each, and what they gave."""
    times: dict[int, list[float]] = {0: [], 1: []}
    given: list[Tensor] = []
    for _ in range(rounds):
        given = []
        for which, action in enumerate((theirs, ours)):
            start = time.process_time()
            given.append(action())
            times[which].append(time.process_time() - start)
    return min(times[0]), min(times[1]), given[0], given[1]


def measured(out: int, width: int, rounds: int) -> Iterator[Row]:
    draw = torch.Generator().manual_seed(0)
    w = 0.02 * torch.randn(out, width, generator=draw)
    common = 0.3 * torch.randn(width, 64, generator=draw, dtype=torch.float64)
    h = common @ common.T
    h.diagonal().add_(0.2 + torch.rand(width, generator=draw, dtype=torch.float64))
    coarse, name = h.float(), f"{out} x {width}"
    whole = lost(w, torch.zeros_like(w), h)
    patterns: tuple[tuple[str, Pattern], ...] = (("50 %", None), ("2:4", (2, 4)), ("4:8", (4, 8)))
    for label, pattern in patterns:
        layer = layer_of(w, h, pattern)
        a, b, one, other = compared(partial(sparsegpt, w, coarse, pattern), partial(solved, layer), rounds)
        errors = (lost(w, one, h) / whole, lost(w, other, h) / whole)
        yield Row(name, f"sparsegpt {label}", a, b, same(one, other), errors)
        del one, other
    scores = w.abs() * h.diagonal().sqrt().float()
    for label, pattern in patterns:
        a, b, one, other = compared(partial(wanda, w, scores, pattern), partial(masked, w, scores, pattern), rounds)
        what = "wanda rows 50 %" if pattern is None else f"{label} mask"
        yield Row(name, what, a, b, same(one, other))


def lost(w: Tensor, new: Tensor, h: Tensor) -> float:
    """The root of the mean square that a layer's outputs change by, up to a constant; of 256 of its rows."""
    moved = new[:256].double() - w[:256].double()
    return float((moved @ h * moved).sum().sqrt())


def same(one: Tensor, other: Tensor) -> float:
    return float(((one != 0) == (other != 0)).double().mean())


def processor() -> str:
    """What the kernel calls the processor."""
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((n.partition(":")[2].strip() for n in told if n.startswith("model name")), platform.machine())


HEAD = ["layer (out x in)", "what", "published, s", "ours, s", "ratio", "asked", "same", "error"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", nargs="+", default=["4096x4096", "4096x11008"], help="out x in, for example 512x512"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for size in (64, 256):  # warms code up
        list(measured(size, size, 1))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    print(lines[0], lines[1], sep="\n", flush=True)
    for text in given.layers:
        out, width = (int(n) for n in text.split("x"))
        for row in measured(out, width, given.rounds):
            lines.append("| " + " | ".join(row.cells()) + " |")
            print(lines[-1], flush=True)
    if given.markdown:
        told = " ".join(__doc__.split("\n\n", 2)[2].split())
        PAGE.write_text(
            "# What solving a layer costs\n\n"
            f"Written by `python benchmarks/solvers.py --markdown`; {given.threads} thread(s), "
            f"torch {torch.__version__}, {processor()}.\n\n{told}\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
