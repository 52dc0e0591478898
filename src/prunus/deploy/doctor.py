"""What this machine can make of zeros and narrower layers: looked at, and measured in about a minute."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.core.errors import PrunusError, SpecError
from prunus.deploy import kernels, widths
from prunus.deploy.rounding import staircase
from prunus.measure.layer_runs import RUNTIMES, runtime_named
from prunus.measure.machine import Machine, machine
from prunus.measure.timing import interleaved, threads_of

Progress = Callable[[int, int], None]
PAYS = 1.1  # a ratio from which a change is worth making
FREE = 0.8  # of the processor time asked for, below which a machine has other work
ROUNDS, QUICK_ROUNDS = 9, 5
SPARSITIES, QUICK_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95), (0.5, 0.8, 0.95)
BATCHES, QUICK_BATCHES = (1, 8, 64), (1, 64)
QUICK_WIDTHS = (56, 60, 62, 64, 66, 72)
BLOCKS: Mapping[str, int] = {"unstructured": 1, "4x1": 4, "8x1": 8}
FORMS: Mapping[str, tuple[str, ...]] = {"unstructured": ("csr", "rows", "bitmask", "bitrows")}
"""Pattern -> the forms of our kernels that represent it; its own name unless it is here."""


@dataclass(frozen=True)
class Case:
    """One pattern at one sparsity and batch on a square linear map, against PyTorch's faster dense product.

    Attributes:
        ms: what ran it -> median milliseconds; `dense` is F.linear or W @ x.T, whichever took less.
    """

    pattern: str
    sparsity: float
    batch: int
    ms: Mapping[str, float]

    @property
    def best(self) -> str:
        """What ran it fastest, apart from dense."""
        return min((n for n in self.ms if n != "dense"), key=self.ms.__getitem__, default="dense")

    @property
    def ratio(self) -> float:
        """Dense time over that of the fastest: above 1 the zeros pay."""
        return self.ms["dense"] / self.ms[self.best]


@dataclass(frozen=True)
class Limits:
    """What bounds every product, measured: bytes read per second from memory, and floating-point operations per second
    of matrix products in float32 and in bfloat16.

    Attributes:
        granted: the processor time that those in float32 got over the time that their threads asked for: 1 on a machine
            with nothing else to do.
    """

    threads: int
    read: float
    float32: float
    bfloat16: float
    granted: float = 1.0


@dataclass(frozen=True)
class Step:
    """A 3x3 convolution of `width` to `width` channels on 28 x 28: milliseconds in a runtime."""

    runtime: str
    width: int
    ms: float

    @property
    def rate(self) -> float:
        """Floating-point operations per second that were of use."""
        return 2 * self.width**2 * 9 * 28 * 28 / self.ms * 1e3


@dataclass(frozen=True)
class Checkup:
    """What a doctor found.

    Attributes:
        kernels: the level that our sparse kernels run at; empty where they do not, and `missing` says why.
        size: of the square linear map that the cases multiply with.
        says: conclusions in words.
        multiples: runtime -> what its counts are rounded to from now on; None where two measurements did not agree.
    """

    machine: Machine
    limits: tuple[Limits, ...]
    size: int
    threads: int
    cases: tuple[Case, ...]
    steps: tuple[Step, ...]
    kernels: str
    missing: str
    seconds: float
    says: tuple[str, ...] = ()
    multiples: Mapping[str, int | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self) | {"machine": self.machine.to_dict(), "says": list(self.says)}
        found["cases"] = [asdict(c) | {"best": c.best, "ratio": c.ratio} for c in self.cases]
        found["steps"] = [asdict(s) | {"flops": s.rate} for s in self.steps]
        return found


def checkup(
    *, quick: bool = False, threads: int | None = None, size: int = 2048, progress: Progress | None = None
) -> Checkup:
    """Look at this machine and measure what pays on it.

    Args:
        quick: fewer sparsities, batches and runs: about a quarter of the time.
        threads: of every product; PyTorch's count unless given.
        size: rows and columns of the linear map.
        progress: told (measurements done, all of them).

    Cost: about a minute; memory for some copies of the weight, and 256 MiB for the bandwidth.
    Errors: `SpecError` for fewer than one thread, or a size that is no multiple of 64.
    """
    if size < 64 or size % 64 or (threads is not None and threads < 1):
        raise SpecError(f"size={size}, threads={threads}: size is a multiple of 64, threads at least 1")
    began = time.perf_counter()
    used = torch.get_num_threads() if threads is None else threads
    sparsities, batches = (QUICK_SPARSITIES, QUICK_BATCHES) if quick else (SPARSITIES, BATCHES)
    asked = [(p, s, b) for p in BLOCKS for s in sparsities for b in batches] + [("2:4", 0.5, b) for b in batches]
    runtimes = [n for n in RUNTIMES if _runs(n)]
    counts = list(dict.fromkeys((1, used)))
    total, done = len(asked) + len(runtimes) + len(counts), 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    limits = []
    for count in counts:
        limits.append(limits_of(count, quick=quick))
        tell()
    cases, rounds = list[Case](), QUICK_ROUNDS if quick else ROUNDS
    for pattern, sparsity, batch in asked:
        cases.append(measured(pattern, sparsity, batch, threads=used, size=size, rounds=rounds))
        tell()
    steps, multiples = list[Step](), dict[str, int | None]()
    for name in runtimes:
        own, multiples[name] = stairs_of(name, used, quick=quick)
        steps += own
        tell()
    there = kernels.available()
    found = Checkup(
        machine=machine(),
        limits=tuple(limits),
        size=size,
        threads=used,
        cases=tuple(cases),
        steps=tuple(steps),
        multiples={} if quick else multiples,
        kernels=kernels.level() if there else "",
        missing="" if there else kernels.reason(),
        seconds=time.perf_counter() - began,
    )
    return replace(found, says=tuple(conclusions(found)))


def limits_of(threads: int, *, quick: bool = False) -> Limits:
    """What memory gives and products take; see `Limits`. Cost: some reads of 256 MiB, some products of 1024 (2048)."""
    n = 1024 if quick else 2048
    generator = torch.Generator().manual_seed(0)
    long, square = torch.ones(1 << 26), torch.rand(n, n, generator=generator)

    def rate(matrix: Tensor) -> float:
        return 2 * len(matrix) ** 3 / _least(lambda: matrix @ matrix)

    with torch.inference_mode(), threads_of(threads):
        read = long.numel() * 4 / _least(lambda: torch.dot(long, long))
        wall, spent = time.perf_counter(), time.process_time()
        float32 = rate(square)
        granted = (time.process_time() - spent) / (time.perf_counter() - wall) / threads
        small = square[:512, :512].to(torch.bfloat16)  # without instructions for it a larger one takes seconds
        return Limits(threads, read, float32, rate(small), min(1.0, granted))


def measured(
    pattern: str, sparsity: float, batch: int, *, threads: int | None = None, size: int = 2048, rounds: int = ROUNDS
) -> Case:
    """One case: a random weight `[size, size]` of the pattern, float32, times `batch` inputs, all ways in turn.

    pattern: `unstructured`, `4x1` and `8x1` (consecutive output channels that share their zeros), `2:4`.
    Ways: dense, PyTorch's CSR with int32 indices as W @ x.T (not for blocks and 2:4, which it does not know), and
    every form of our sparse kernels that represents the pattern, where they are available.
    """
    generator = torch.Generator().manual_seed(0)
    weight = drawn(pattern, sparsity, size, generator)
    x = torch.randn(batch, size, generator=generator)
    turned = x.t().contiguous()
    ways: dict[str, Callable[[], object]] = {
        "linear": lambda: F.linear(x, weight),
        "product": lambda: weight @ turned,
    }
    if pattern == "unstructured":
        small = narrow_csr(weight)
        ways["torch CSR"] = lambda: small @ turned
    if kernels.available():
        for form in FORMS.get(pattern, (pattern,)):
            packed = kernels.pack(weight, form)
            ways[f"prunus {form}"] = lambda packed=packed: kernels.linear(x, packed)  # type: ignore[misc]
    with torch.inference_mode(), threads_of(threads):
        samples = interleaved(ways, warmup=2, runs=rounds, min_seconds=0.0)
    ms = {name: median(own) for name, own in samples.items()}
    dense = min(ms.pop("linear"), ms.pop("product"))
    return Case(pattern, sparsity, batch, {"dense": dense, **ms})


def narrow_csr(weight: Tensor) -> Tensor:
    """A matrix as PyTorch's CSR with indices of 32 bits: with those of 64 it converts them at every product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the format is in beta, and is not checked
        csr = weight.to_sparse_csr()
        return torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)


def drawn(pattern: str, sparsity: float, size: int, generator: torch.Generator) -> Tensor:
    """`[size, size]`: random numbers in random places of a pattern.

    Errors: `SpecError` for an unknown pattern, and for a size that is no multiple of 16.
    """
    if size < 16 or size % 16:
        raise SpecError(f"size={size}: blocks and patterns need a multiple of 16")
    weight = torch.randn(size, size, generator=generator)
    if pattern == "2:4":
        order = torch.rand(size, size // 4, 4, generator=generator).argsort(-1)
        return weight * (order < 2).reshape(size, size)
    if pattern not in BLOCKS:
        raise SpecError(f"unknown pattern {pattern!r}: known are {', '.join(BLOCKS)} and 2:4")
    block = BLOCKS[pattern]
    keep = torch.rand(size // block, size, generator=generator) >= sparsity
    return weight * keep.repeat_interleave(block, 0)


def stairs_of(runtime: str, threads: int, *, quick: bool = False) -> tuple[list[Step], int | None]:
    """A 3x3 convolution at neighbouring widths: where a runtime wants whole blocks of channels, this is a staircase;
    and, unless `quick`, the multiple that `prunus prune --for` rounds to from now on (`widths.learn`).
    """
    liked = None if quick else widths.learn(runtime)
    stair = staircase(runtime, "conv3x3", QUICK_WIDTHS, threads=threads) if liked is None else liked.stairs[0]
    steps = [Step(runtime, w, ms) for w, ms in zip(stair.widths, stair.ms, strict=True)]
    return steps, None if liked is None else liked.multiple


def breaks_even(cases: Sequence[Case], pattern: str, batch: int) -> Case | None:
    """The least sparsity from which on a pattern pays at every one that was measured; None where it never does."""
    own = sorted((c for c in cases if (c.pattern, c.batch) == (pattern, batch)), key=lambda c: c.sparsity)
    found = None
    for case in reversed(own):
        if case.ratio < PAYS:
            break
        found = case
    return found


def conclusions(found: Checkup) -> Iterator[str]:
    """What to do on this machine, in words, the most useful first."""
    if (granted := min(one.granted for one in found.limits)) < FREE:
        yield (
            f"This machine is busy: products got {granted:.0%} of the processor time that they asked for. The figures "
            "tell little; run this again when it has nothing else to do."
        )
    yield from _of_widths(found)
    through = f"through prunus.sparsify ({found.kernels} kernels)" if found.kernels else "through torch CSR"
    batches = list(dict.fromkeys(c.batch for c in found.cases))
    for pattern in dict.fromkeys(c.pattern for c in found.cases if c.pattern != "2:4"):
        pays = {b: c for b in batches if (c := breaks_even(found.cases, pattern, b)) is not None}
        told = [f"from {c.sparsity:.0%} at batch {b} ({c.ratio:.2g} x)" for b, c in pays.items()]
        what = "unstructured sparsity" if pattern == "unstructured" else f"{pattern} blocks of output channels"
        never = [str(b) for b in batches if b not in pays]
        if told:
            also = f"; at batch {' and '.join(never)} at no sparsity that was measured" if never else ""
            yield f"On this machine {what} pays {', '.join(told)}{also}, {through}."
        else:
            yield f"On this machine {what} pays at no sparsity that was measured ({found.missing or through})."
    two = [c for c in found.cases if c.pattern == "2:4" and c.best != "dense"]
    paying = [f"{c.ratio:.2g} x at batch {c.batch}" for c in two if c.ratio >= PAYS]
    yield f"2:4 pays {', '.join(paying) or 'nowhere'} on this CPU, where half of the multiplications are left."
    yield from _of_chips(found)


def _of_widths(found: Checkup) -> Iterator[str]:
    """What a width that is no multiple of a runtime's blocks costs."""
    for runtime in dict.fromkeys(s.runtime for s in found.steps):
        own = {s.width: s for s in found.steps if s.runtime == runtime}
        if not {56, 62, 64} <= own.keys():
            continue
        odd, eight = own[62].ms / own[64].ms, own[56].rate / own[64].rate
        slower = f"{odd:.2f} x the time of 64" if odd >= 1.0 else f"{odd:.0%} of the time of 64, for 94 % of the work"
        told = f"62 channels take {slower}, and 56 do {eight:.0%} of the operations per second of 64"
        multiple = found.multiples.get(runtime)
        if multiple is not None:
            kept = f"prunus prune --for {runtime} rounds to multiples of {multiple} on this machine from now on"
        elif runtime in found.multiples:
            kept = "two measurements came to different multiples, so none is kept: run this again on an idle machine"
        else:
            kept = f"keep widths at multiples of {8 if eight > 0.9 else 16}"
        yield f"Narrower layers pay in {runtime}: {told}; {kept}."


def _of_chips(found: Checkup) -> Iterator[str]:
    """What the processor and the cards do apart from skipping zeros."""
    all_ = found.limits[-1]
    if all_.bfloat16 > 1.5 * all_.float32:
        yield (
            f"Dense bfloat16 multiplies {all_.bfloat16 / all_.float32:.1f} x as fast as float32 here: convert first, "
            "then see whether zeros still pay."
        )
    else:
        yield "Dense bfloat16 multiplies no faster than float32 on this CPU: it saves memory only."
    for card in found.machine.gpus:
        skips = "its tensor cores skip the zeros of 2:4" if card.two_four else "it skips no zeros"
        yield f"{card.name} (compute capability {card.capability}): {skips}. Nothing was timed on it."
    if not found.machine.gpus:
        yield "PyTorch sees no NVIDIA card: 2:4 in tensor cores is out of reach."
    if found.missing:
        yield f"The sparse kernels of prunus do not run here: {found.missing}"


def _runs(runtime: str) -> bool:
    """Whether a runtime is installed."""
    try:
        return bool(runtime_named(runtime).version)
    except PrunusError:
        return False


def _least(call: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    call()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)
