"""What pruning a folder will take: bytes, memory, operations and hours, from its config and its index alone.

No weight is read, so the folder of a model that is still on its way can be planned for: config.json, and the index of
shards (or the shards, of which only headers are looked at). The model is built without memory, on the meta device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError, require
from prunus.core.recipe import Recipe
from prunus.core.rows import rows_top_k
from prunus.core.symmetric import numbers
from prunus.engine.prepare import resolve_recipe
from prunus.engine.walk import blocks_in
from prunus.parts.evidence.ahead import ForwardDifferenceEvidence, OutlierShareEvidence, TailExponentEvidence
from prunus.parts.evidence.curvature import InputLengthEvidence, InputNormEvidence, ReaderWeightEvidence
from prunus.parts.evidence.regional import GradLengthEvidence
from prunus.stream.needs import WIDE, Matrices, all_of, fews, forwards, matrices, plain_needs, surgeon_needs
from prunus.stream.shards import INDEX, Checkpoint
from prunus.stream.skeleton import built
from prunus.stream.slopes import asked

PASSES = {"none": 1, "inputs": 2, "gradients": 2, "surgeon": 5}
"""Forwards of a block: one with its new weights; one to score it; for every wave of layers one (a decoder block has
four: queries, keys and values; their output; gate and up; down), or what `forwards` says where they are told of the
whole block (`Reconstruction.fed`), and one more where experts are scored."""
BEHIND = 4
"""Bytes of the length of a weight's gradient (GBLM-Pruner)."""


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes:
        forward: FLOP/s of matrix products in the model's own type.
        wide: FLOP/s of matrix products in float64.
        solve: FLOP/s of matrix products in float32.
        spectra: FLOP/s of singular values in float64; None: as `wide`.
        select: weights scored and chosen from per second.
        disk: bytes per second read, and written.
        told: where the numbers come from.
    """

    forward: float
    wide: float
    solve: float
    select: float = 1e8
    disk: float = 1e9
    told: str = "given"
    spectra: float | None = None


@dataclass(frozen=True)
class Plan:
    """What it will take; bytes, FLOPs, seconds.

    Attributes:
        model, recipe, tokens: what is planned.
        dtype: the type of the weights.
        bytes: all weights, which are read once and written once (tables that a forward calls are read twice).
        ahead: of what comes first where densities are dealt out ahead, or gradients are gathered, else empty: bytes of
            the blocks, which are read once more (for every block, where densities go by the loss; twice for gradients,
            whose lengths are `written` beside them and read again), FLOPs of forwards (and a backward) and of singular
            values, and weights scored.
        blocks: how many, and `block` bytes of the largest.
        waiting: activations that wait between blocks; of a pass that goes by the loss, for every trial, or of all
            blocks and the gradients of one.
        gram: bytes of x x^T, of the block whose matrices together have the most, and of the most of them that are held
            at once.
        peak: memory that is expected beyond what the process has when it begins, and beside what a forward (of
            gradients: a forward and backward) through a block makes of a single batch, which hangs on how long that is.
        bound: three of the largest block and what waits.
        forward, moments, solve: FLOPs of running blocks on the calibration data, of summing up x x^T, and of solving.
        seconds: of each of these, and of reading, writing and choosing, at `rates`.
    """

    model: str
    recipe: str
    tokens: int
    dtype: str
    weights: int
    bytes: int
    blocks: int
    block: int
    waiting: int
    gram: dict[str, int]
    peak: int
    bound: int
    forward: float
    moments: float
    solve: float
    seconds: dict[str, float]
    rates: Rates
    ahead: dict[str, float]

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "hours": self.hours}


def plan(folder: str | Path, recipe: Recipe | str, *, samples: int, length: int, rates: Rates) -> Plan:
    """What `prune_folder` will take for `samples` windows of `length` tokens.

    For single weights, and for recipes without data (magnitude), by the norms of inputs (Wanda), with gradients of the
    loss (GBLM-Pruner), or with `ObsUpdate` (SparseGPT); where densities are dealt out ahead (OWL, AlphaPruning,
    ECoFLaP), with the passes for these.
    Estimates: tokens go to experts evenly; attention costs its two products over whole windows; x x^T is shared by
    layers with the names that Llama gives to queries, keys and values, gate and up, and by no others.
    Errors: `SpecError` for other recipes, or where config.json names no class of transformers.
    """
    recipe, folder = resolve_recipe(recipe), Path(folder)
    kind, reads = _kind(recipe), _ahead(recipe)
    total, config, model = described(folder)
    blocks = blocks_in(model)
    item = next(p.dtype for p in model.parameters() if p.is_floating_point()).itemsize
    tokens, hidden = samples * length, int(getattr(config, "hidden_size", 0) or 0)
    share = routed(config)
    each = [list(matrices(b, hidden)) for b in blocks.values()]
    sizes = [sum(p.numel() for p in b.parameters()) for b in blocks.values()]
    active = [sum(m.size * (share if m.count > 1 else 1.0) for m in ms) for ms in each]
    attention = 4 * tokens * length * hidden * len(blocks)
    once = sum(2 * tokens * a for a in active) + attention
    whole = kind == "surgeon" and getattr(recipe.reconstruct, "fed", "pruned") == "whole"
    scored = kind == "surgeon" and not recipe.allocate.pattern and any(m.count > 1 for ms in each for m in ms)
    passes = [
        1 + forwards(ms) + (scored and any(m.count > 1 for m in ms)) if whole else float(PASSES[kind]) for ms in each
    ]
    forward = sum(p * (2 * tokens * a + attention / len(blocks)) for p, a in zip(passes, active, strict=True))
    wide, solve = 0.0, 0.0
    for one in (m for ms in each for m in ms):
        seen = tokens * (share if one.count > 1 else 1.0)  # by all matrices of a stack together
        if kind == "surgeon":
            wide += 2 * seen * numbers(one.width) / one.shared_by
            solve += one.count * operations(recipe)(one.out, one.width, one.shared_by)
    waiting = tokens * hidden * item
    block = item * max(sizes)
    inner = {id(p) for b in blocks.values() for p in b.parameters()}
    # The last block is still there when what follows it is called.
    tables = block + item * max((p.numel() for p in model.parameters() if id(p) not in inner), default=0)
    needed = max(_needed(kind, item, size, ms, tokens, whole, scored) for size, ms in zip(sizes, each, strict=True))
    inside = sum(m.size for ms in each for m in ms)
    seconds = {
        "forward": forward / rates.forward,
        "moments": wide / rates.wide,
        "solve": solve / rates.solve,
        "choose": inside / rates.select,
        "disk": 2 * (total or item * sum(sizes)) / rates.disk,
    }
    ahead: dict[str, float] = {}
    if reads is not None:
        every = [m for ms in each for m in ms]
        tries = [2 * int(recipe.allocate.settings().get("draws", 1)) * len({m.name for m in ms}) for ms in each]
        ahead = {
            "bytes": float(item * sum(sizes)) * (len(blocks) if reads == "labels" else 1),
            "forward": once * {"nothing": 0, "inputs": PASSES["inputs"], "labels": sum(tries)}[reads],
            "spectra": sum(m.count * values_of(m.out, m.width) for m in every) if reads == "nothing" else 0.0,
            "scored": 2.0 * inside if reads == "inputs" else 0.0,
        }
        took = ahead["forward"] / rates.forward + ahead["spectra"] / (rates.spectra or rates.wide)
        seconds["ahead"] = took + ahead["scored"] / rates.select + ahead["bytes"] / rates.disk
        largest = max((m.out * m.width for m in every), default=0)
        if reads == "nothing":
            needed = max(needed, block + 2 * WIDE * largest)  # in float64, and what its values are worked out in
        elif reads == "labels":
            waiting *= max(tries)
            needed = max(needed, block + 3 * item * max(m.size for m in every))  # as it was, its direction, moved
    elif kind == "gradients":
        ahead = _gradients(item * sum(sizes), once, BEHIND * inside)
        seconds["ahead"] = ahead["forward"] / rates.forward + (ahead["bytes"] + 2 * ahead["written"]) / rates.disk
        waiting *= len(blocks) + 2  # what goes into each block, what the last one gives, and its gradient
        needed = max(needed, 2 * block + BEHIND * max(sum(m.size for m in ms) for ms in each))  # and their sums
    return Plan(
        model=f"{folder.name} ({type(model).__name__})",
        recipe=recipe.name,
        tokens=tokens,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        weights=sum(p.numel() for p in model.parameters()),
        bytes=total or item * sum(p.numel() for p in model.parameters()),
        blocks=len(blocks),
        block=block,
        waiting=waiting,
        gram=_grams(each, whole=whole) if kind == "surgeon" else {},
        peak=waiting + max(needed, tables),
        bound=3 * block + waiting,
        forward=forward,
        moments=wide,
        solve=solve,
        seconds=seconds,
        rates=rates,
        ahead=ahead,
    )


def _gradients(blocks: int, once: float, lengths: int) -> dict[str, float]:
    """The pass that gathers the loss's gradients: a forward, the blocks run again, and the two products of a backward
    for each of a forward; blocks are read forward and backward.
    """
    return {"bytes": 2.0 * blocks, "forward": 4 * once, "spectra": 0.0, "scored": 0.0, "written": float(lengths)}


def _grams(each: Sequence[Sequence[Matrices]], *, whole: bool) -> dict[str, int]:
    return {
        "block": max(all_of(ms) for ms in each),
        "wave": max(all_of(few) for ms in each for few in fews(ms, whole=whole)),
    }


def _needed(kind: str, item: int, size: int, layers: Sequence[Matrices], tokens: int, whole: bool, scored: bool) -> int:
    if kind == "surgeon":
        scored = scored and any(m.count > 1 for m in layers)
        return surgeon_needs(item, size, layers, tokens, whole=whole, scored=scored)
    known = BEHIND * sum(m.size for m in layers) if kind == "gradients" else 0
    score = {"none": item, "inputs": 2 * item, "gradients": WIDE}[kind]
    return plain_needs(item, size, layers, scored=score) + known


def _kind(recipe: Recipe) -> str:
    reads = {type(e) for e in recipe.criterion.asks().values() if e.reads != "nothing"}
    if recipe.structure != "structured" and recipe.reconstruct is None:
        if not reads:
            return "none"
        if reads <= {InputNormEvidence, ReaderWeightEvidence}:
            return "inputs"
        if asked(recipe) and reads <= {InputLengthEvidence, ReaderWeightEvidence, GradLengthEvidence}:
            return "gradients"
    if recipe.structure != "structured" and hasattr(recipe.reconstruct, "operations"):
        return "surgeon"
    raise SpecError(f"what {recipe.name} takes is not known: magnitude, Wanda, GBLM and SparseGPT (and their like) are")


def _ahead(recipe: Recipe) -> str | None:
    """What the pass ahead reads; None where there is none."""
    known: dict[type, str] = {OutlierShareEvidence: "inputs", TailExponentEvidence: "nothing"}
    known[ForwardDifferenceEvidence] = "labels"
    asked = {type(e) for e in recipe.allocate.foresees().values()}
    if not asked <= known.keys():
        told = ", ".join(sorted(e.__name__ for e in asked))
        raise SpecError(f"what {recipe.name} takes is not known: its densities go by {told}")
    return max((known[e] for e in asked), key=("nothing", "inputs", "labels").index, default=None)


def values_of(out: int, width: int) -> float:
    """FLOPs of the singular values of a matrix, by bidiagonalization (Golub & Van Loan, Matrix Computations, 5.4)."""
    m, n = max(out, width), min(out, width)
    return 4 * m * n**2 - 4 * n**3 / 3


def operations(recipe: Recipe) -> Callable[[int, int, int], float]:
    """The FLOPs of solving a layer, as the recipe's reconstruction says them."""
    found: Callable[[int, int, int], float] = getattr(recipe.reconstruct, "operations")  # noqa: B009 (not all have it)
    return found


def described(folder: Path) -> tuple[int, Any, nn.Module]:
    """Bytes of a folder's weights (0 where it does not say), its config, and the model without memory."""
    transformers = require("transformers", extra="hf")

    with torch.device("meta"):
        model: Any = built(transformers, folder)
    config = model.config.get_text_config()
    try:
        told = json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]["total_size"]
        return int(told), config, model
    except (OSError, ValueError, KeyError, TypeError):
        there = any(folder.glob("*.safetensors"))
        return (Checkpoint(folder).bytes if there else 0), config, model


def routed(config: Any) -> float:
    """Which share of the experts a token goes to."""
    experts = next((int(n) for k in EXPERTS if (n := getattr(config, k, None))), 1)
    return int(getattr(config, "num_experts_per_tok", None) or experts) / experts


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def measured_rates(dtype: torch.dtype, folder: Path | None = None) -> Rates:
    """The rates of this machine: products of 1536 x 1536, the singular values of one of 768 x 768, and two million
    magnitudes chosen from. Cost: seconds.

    Products are made as layers make them: `a @ b` in bfloat16 goes another way in PyTorch, at a tenth of the rate where
    the processor has no instructions for it. By processor time over threads, so that other work on the machine does not
    count. The disk's is not measured (1 GB/s is assumed) unless a folder to write 256 MB to is given.
    """
    n = 1536
    found = {}
    tall = torch.randn(768, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, kind in (("forward", dtype), ("wide", torch.float64), ("solve", torch.float32)):
        a, b = (torch.ones(n, n, dtype=kind) for _ in range(2))
        found[name] = 2 * n**3 / _least(lambda a=a, b=b: nn.functional.linear(a, b))  # type: ignore[misc]
    found["spectra"] = values_of(768, 768) / _least(lambda: torch.linalg.svdvals(tall))
    w = torch.randn(1 << 10, 1 << 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    found["select"] = w.numel() / _least(lambda: rows_top_k(w.abs(), 1 << 10))
    made = Rates(**found, told=f"measured here on {torch.get_num_threads()} threads; 1 GB/s of disk assumed")
    return made if folder is None else replace(made, disk=_disk(folder), told=made.told.partition(";")[0])


def _least(act: Callable[[], Any]) -> float:
    times = []
    for _ in range(4):
        start = time.process_time()
        act()
        times.append((time.process_time() - start) / torch.get_num_threads())
    return min(times)


def _disk(folder: Path) -> float:
    import os
    import tempfile

    piece = bytes(1 << 24)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(16):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return 16 * len(piece) / (time.perf_counter() - start)


def lines(made: Plan) -> Iterator[tuple[str, str]]:
    """The plan in words."""
    gb: Callable[[float], str] = lambda n: f"{n / 1e9:,.3g} GB"  # noqa: E731
    yield "model", f"{made.model}: {made.weights / 1e9:,.3g} B weights in {made.blocks} blocks, {made.dtype}"
    yield "method", f"{made.recipe} on {made.tokens:,} tokens"
    yield "read and written", f"{gb(made.bytes)} each"
    if made.ahead:
        lengths = made.ahead.get("written")
        more = "for the densities" if lengths is None else f"for gradients, of which {gb(lengths)} are laid beside"
        yield "a pass ahead", f"{gb(made.ahead['bytes'])} more to read, {more}"
    yield "largest block", gb(made.block)
    yield "activations that wait", gb(made.waiting)
    if made.gram:
        yield "x x^T", f"{gb(made.gram['wave'])} at once, {gb(made.gram['block'])} for a block"
    yield "peak memory", f"{gb(made.peak)}, {made.peak / made.bound:.2f} of three blocks and what waits"
    flops: Mapping[str, float] = {"forward": made.forward, "moments": made.moments, "solve": made.solve}
    flops = {**flops, **{f"{k} ahead": made.ahead[k] for k in ("forward", "spectra") if made.ahead}}
    yield "FLOPs", ", ".join(f"{k} {v:.3g}" for k, v in flops.items() if v)
    yield "hours", f"{made.hours:.3g} (" + ", ".join(f"{k} {v / 3600:.3g}" for k, v in made.seconds.items() if v) + ")"
    yield "rates", made.rates.told
