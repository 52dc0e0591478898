"""A saved folder on this machine: whether it is whole, what is in it, and what would make it fast here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from prunus.core.errors import PrunusError, SpecError, listed
from prunus.deploy import kernels
from prunus.deploy.doctor import BLOCKS, PAYS, Case, measured
from prunus.deploy.files import load_masks, weights_of
from prunus.deploy.manifest import Manifest, SliceRecord, read_manifest

NOTABLE = 0.05  # a smaller share of zeros is no pattern that anybody made


@dataclass(frozen=True)
class Found:
    """Tensors of one pattern: how many there are, their numbers in all, the share of them that is not stored."""

    pattern: str
    tensors: int
    numbers: int
    sparsity: float


@dataclass(frozen=True)
class Examination:
    """What was found out about a folder.

    Attributes:
        problems: what is broken; the rest is as the manifest says, which fits its own digest.
        compacted: whether units were cut out.
        odd: axes that were cut to a width that is no multiple of 8: name and axis -> width.
        patterns: of the zeros that are left, those with the most numbers first.
        cases: what these patterns bring on this machine, measured on a linear map.
        says: what to do, in words.
    """

    folder: str
    network: str
    recipe: str
    compacted: bool
    problems: tuple[str, ...]
    bytes: int
    odd: tuple[tuple[str, int], ...]
    patterns: tuple[Found, ...]
    cases: tuple[Case, ...]
    says: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        cases = [asdict(c) | {"best": c.best, "ratio": c.ratio} for c in self.cases]
        return asdict(self) | {"cases": cases}


def examine(
    folder: str | Path, *, batches: Sequence[int] = (1, 8, 64), threads: int | None = None, size: int = 2048
) -> Examination:
    """Check a folder that `prunus.save` wrote, and measure what its pattern of zeros brings here.

    Digests of all files are compared. Cost: two reads of the files, and a few seconds for the measurements. Errors:
    `SpecError` where there is no such folder, `VerificationError` where its manifest is broken; other broken files are
    among the problems.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = list[str]()
    for read in (lambda: weights_of(folder, manifest), lambda: load_masks(folder)):
        try:
            read()
        except PrunusError as error:
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))  # masks may be read off the weights
    patterns = found_in(manifest)
    cases = [] if problems else list(_cases(patterns, batches, threads, size))
    odd = tuple(odd_widths(manifest))
    recipe = manifest.result.get("recipe")
    return Examination(
        folder=str(folder),
        network=str(manifest.notes.get("network", "")),
        recipe=str(recipe.get("name", "")) if isinstance(recipe, dict) else "",
        compacted=manifest.compacted,
        problems=tuple(problems),
        bytes=sum(f.bytes for f in manifest.files.values()),
        odd=odd,
        patterns=patterns,
        cases=tuple(cases),
        says=tuple(_advice(manifest, problems, patterns, cases, odd)),
    )


def found_in(manifest: Manifest) -> tuple[Found, ...]:
    """The patterns of the tensors that are packed, by the numbers that lie in them."""
    rows: dict[str, list[tuple[int, float]]] = {}
    for record in manifest.tensors.values():
        rows.setdefault(record.pattern, []).append((prod(record.shape), record.sparsity))
    found = []
    for pattern, own in rows.items():
        numbers = sum(n for n, _ in own)
        found.append(Found(pattern, len(own), numbers, sum(n * s for n, s in own) / max(1, numbers)))
    return tuple(sorted(found, key=lambda f: -f.numbers))


def odd_widths(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Axes that were cut to more than 8 positions, but to no multiple of 8."""
    for edit in manifest.edits:
        if isinstance(edit, SliceRecord) and "." in edit.target and not edit.target.endswith(".*"):
            width = sum(b - a for a, b in edit.keep)
            if edit.target.endswith("weight") and width > 8 and width % 8:
                yield f"{edit.target} axis {edit.dim}", width


def _cases(patterns: Sequence[Found], batches: Sequence[int], threads: int | None, size: int) -> Iterator[Case]:
    for one in patterns:
        if one.sparsity < NOTABLE or (one.pattern not in BLOCKS and one.pattern != "2:4"):
            continue
        for batch in batches:
            yield measured(one.pattern, one.sparsity, batch, threads=threads, size=size, rounds=7)


def _advice(
    manifest: Manifest,
    problems: Sequence[str],
    patterns: Sequence[Found],
    cases: Sequence[Case],
    odd: Sequence[tuple[str, int]],
) -> Iterator[str]:
    if problems:
        yield "The folder is broken: save the model again, or copy the folder again. " + " ".join(problems)
        return
    yield "All files are what their digests say."
    if manifest.compacted:
        yield "Units were cut out, which any runtime can use. prunus deploy measures what each of them gains."
    if odd:
        told = listed([f"{name} ({width})" for name, width in odd], 3)
        yield (
            f"{len(odd)} widths are no multiples of 8, which some runtimes pay for: {told}. Prune with "
            "--unit-option round_to=8 (or 16), or --for the runtime."
        )
    for one in patterns:
        if one.sparsity < NOTABLE:
            continue
        count = "1 tensor is" if one.tensors == 1 else f"{one.tensors} tensors are"
        told_of = f"{count} {one.pattern} at {one.sparsity:.0%}"
        own = [c for c in cases if c.pattern == one.pattern]
        paying = [c for c in own if c.ratio >= PAYS]
        if paying:
            gains = ", ".join(f"{c.ratio:.2g} x at batch {c.batch} ({c.best})" for c in paying)
            how = "prunus.sparsify takes what is faster" if kernels.available() else "as torch CSR tensors"
            yield f"{told_of}: a linear map of that kind runs {gains} here; {how}. Dense runtimes gain nothing."
        elif own:
            why = "" if kernels.available() else f" ({kernels.reason()})"
            yield f"{told_of}: no faster here at any batch that was measured{why}; it saves bytes only."
        else:
            yield f"{told_of}: nothing here runs that pattern faster; it saves bytes only."
    if tiny := sum(manifest.denormals.values()):
        yield (
            f"{tiny:,} numbers in {len(manifest.denormals)} tensors are too small for full precision, and processors "
            "are slow with them: prunus.deploy.flush_denormals_ makes them zeros, as prunus export and deploy do."
        )
    if not manifest.compacted and not patterns:
        yield "Its weights are stored dense, and nothing was cut out: it runs as the unpruned model does."


def is_folder(path: str | Path) -> Path:
    """The path of a folder that prunus wrote. Errors: `SpecError` for anything else."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SpecError(f"{path} is no folder: prunus doctor examines one that prunus.save or prunus prune wrote")
    return folder
