"""What pruning a folder will take: bytes, memory, operations and hours, from its config and its index alone.

No weight is read, so the folder of a model that is still on its way can be planned for: config.json, and the index of
shards (or the shards, of which only headers are looked at). The model is built without memory, on the meta device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
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
from prunus.parts.evidence.curvature import InputNormEvidence, ReaderWeightEvidence
from prunus.stream.shards import INDEX, Checkpoint
from prunus.stream.skeleton import built

WIDE = 8
"""Bytes of a float64, in which half of x x^T is summed up."""
PASSES = {"none": 1, "inputs": 2, "surgeon": 5}
"""Forwards of a block: one with its new weights; one to score it; for every wave of layers one (a decoder block has
four: queries, keys and values; their output; gate and up; down), or one for all where they are told of the whole block
(`Reconstruction.fed`), and one more where experts are scored."""


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
class Matrices:
    """Equal linear maps of a block: one, or the experts of a stack."""

    name: str
    out: int
    width: int
    count: int = 1

    @property
    def size(self) -> int:
        return self.out * self.width * self.count


@dataclass(frozen=True)
class Plan:
    """What it will take; bytes, FLOPs, seconds.

    Attributes:
        model, recipe, tokens: what is planned.
        dtype: the type of the weights.
        bytes: all weights, which are read once and written once (tables that a forward calls are read twice).
        ahead: of what comes first where densities are dealt out ahead, else empty: bytes of the blocks, which are read
            once more (for every block, where they go by the loss), FLOPs of forwards and of singular values, and
            weights scored.
        blocks: how many, and `block` bytes of the largest.
        waiting: activations that wait between blocks.
        gram: bytes of x x^T, of the block whose matrices together have the most, and of the most of them that are held
            at once.
        peak: memory that is expected beyond what the process has when it begins.
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

    For single weights, and for recipes without data (magnitude), by the norms of inputs (Wanda), or with `ObsUpdate`
    (SparseGPT); where densities are dealt out ahead (OWL, AlphaPruning, ECoFLaP), with the passes for these.
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
    at_once = kind == "surgeon" and getattr(recipe.reconstruct, "fed", "pruned") == "whole"
    passes = PASSES[kind] if not at_once else 2 + any(m.count > 1 for ms in each for m in ms)
    forward = passes * once
    wide, solve = 0.0, 0.0
    for one in (m for ms in each for m in ms):
        seen = tokens * (share if one.count > 1 else 1.0)  # by all matrices of a stack together
        if kind == "surgeon":
            wide += 2 * seen * numbers(one.width) / shared_by(one)
            solve += one.count * operations(recipe)(one.out, one.width, shared_by(one))
    waiting = tokens * hidden * item
    grams = [[(m, WIDE * numbers(m.width) * m.count) for m in ms] for ms in each]
    scored = max((m for ms in each for m in ms), key=lambda m: m.size).count > 1
    wave = max(all_of(g) if at_once or scored else max((n for _, n in g), default=0) for g in grams)
    block = item * max(sizes)
    inner = {id(p) for b in blocks.values() for p in b.parameters()}
    # The last block is still there when what follows it is called.
    tables = block + item * max((p.numel() for p in model.parameters() if id(p) not in inner), default=0)
    needed = max(block_needs(kind, item, size, g, at_once or scored) for size, g in zip(sizes, grams, strict=True))
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
        gram={"block": max(map(all_of, grams)), "wave": wave} if kind == "surgeon" else {},
        peak=waiting + max(needed, tables),
        bound=3 * block + waiting,
        forward=forward,
        moments=wide,
        solve=solve,
        seconds=seconds,
        rates=rates,
        ahead=ahead,
    )


def _kind(recipe: Recipe) -> str:
    asked = {type(e) for e in recipe.criterion.asks().values() if e.reads != "nothing"}
    if recipe.structure != "structured" and recipe.reconstruct is None and not asked:
        return "none"
    if (
        recipe.structure != "structured"
        and recipe.reconstruct is None
        and asked <= {InputNormEvidence, ReaderWeightEvidence}
    ):
        return "inputs"
    if recipe.structure != "structured" and hasattr(recipe.reconstruct, "operations"):
        return "surgeon"
    raise SpecError(f"what {recipe.name} takes is not known: magnitude, Wanda and SparseGPT (and their like) are")


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


def matrices(block: nn.Module, hidden: int) -> Iterator[Matrices]:
    """The linear maps of a block: matrices, and stacks of them."""
    stacks = {n: p for n, p in block.named_parameters() if p.ndim == 3}
    longest = max((n for p in stacks.values() for n in p.shape[1:]), default=0)
    for name, p in block.named_parameters():
        if p.ndim == 2:
            yield Matrices(name, p.shape[0], p.shape[1])
        elif p.ndim == 3:
            # What is computed at once (gate and up) is longer than what goes back to the model's width.
            out, width = (max(p.shape[1:]), min(p.shape[1:])) if longest in p.shape[1:] else _back(p.shape, hidden)
            yield Matrices(name, out, width, p.shape[0])


def _back(shape: torch.Size, hidden: int) -> tuple[int, int]:
    own = [n for n in shape[1:] if n != hidden] or [hidden]
    return prod(shape[1:]) // max(own), max(own)


def shared_by(one: Matrices) -> int:
    """How many layers of a decoder block are fed by one tensor: queries, keys and values; gate and up."""
    leaf = one.name.split(".")[-2] if "." in one.name else one.name
    return {"q_proj": 3, "k_proj": 3, "v_proj": 3, "gate_proj": 2, "up_proj": 2}.get(leaf, 1)


def all_of(grams: list[tuple[Matrices, int]]) -> int:
    """Bytes of x x^T of a block together: layers that are fed the same share theirs."""
    return sum(n // shared_by(m) for m, n in grams)


def block_needs(kind: str, item: int, size: int, grams: list[tuple[Matrices, int]], together: bool) -> int:
    """Bytes that a block needs, beyond what waits: its weights and masks, and what a layer takes.

    grams: the layers with the bytes of their x x^T. together: whether these are all there from the beginning (stacks of
    experts are scored, which takes the sums of the whole block), and go one by one.
    """
    if kind != "surgeon":
        score = item if kind == "none" else 2 * item
        return size * (item + 1) + max((m.size for m, _ in grams), default=0) * (item + 2 * score)
    most, left = 0, all_of(grams)
    for one, own in grams:
        # Half of x x^T, whose factor takes its place; a layer twice in float32 (what it has moved by is one), and six
        # masks, two of them of a whole stack.
        most = max(most, (left if together else own) + one.size * 2 + one.size // one.count * (2 * 4 + 4))
        left -= own // shared_by(one)
    return size * (item + 2) + most  # with the masks as they were and as they will be


def measured_rates(dtype: torch.dtype, folder: Path | None = None) -> Rates:
    """The rates of this machine: products of 1536 x 1536, the singular values of one of 768 x 768, and two million
    magnitudes chosen from. Cost: seconds.

    By processor time over threads, so that other work on the machine does not count. The disk's is not measured (1 GB/s
    is assumed) unless a folder to write 256 MB to is given.
    """
    n = 1536
    found = {}
    tall = torch.randn(768, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, kind in (("forward", dtype), ("wide", torch.float64), ("solve", torch.float32)):
        a, b = (torch.ones(n, n, dtype=kind) for _ in range(2))
        found[name] = 2 * n**3 / _least(lambda a=a, b=b: a @ b)  # type: ignore[misc]
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
        yield "a pass ahead", f"{gb(made.ahead['bytes'])} more to read, for the densities"
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
