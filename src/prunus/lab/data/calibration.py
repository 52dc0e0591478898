"""Text for language models: files -> token ids -> windows of one length, drawn by a seed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.core.errors import DataError, SpecError, require
from prunus.lab.data import files
from prunus.lab.data.dataset import digest

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
BYTES = 256


@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of text files, one after the other.

    Attributes:
        ids: of all tokens.
        bytes: of the files, with one for each boundary between two.
        files: how many were read; empty ones are not among them.
        source: where they lie.
        tokenizer: its folder, or `bytes`.
        vocabulary: how many different ids it can give.
    """

    ids: Int[Tensor, " n"]
    bytes: int
    files: int
    source: str
    tokenizer: str
    vocabulary: int

    def __str__(self) -> str:
        return (
            f"{len(self.ids):,} tokens of {self.bytes:,} bytes in {self.files:,} files of {self.source}, "
            f"by {self.tokenizer}"
        )


@dataclass(frozen=True, eq=False)
class Calibration:
    """Windows of a text to score with: `Task(calib=calibration.batches)`.

    Attributes:
        tokens: the windows.
        batch: windows in a batch.
        overlapping: whether windows share tokens, because the text has too few for windows that do not.
        seed: which they are.
        told: the text they come from.
    """

    tokens: Int[Tensor, "count length"]
    batch: int
    overlapping: bool
    seed: int
    told: str

    @property
    def batches(self) -> list[Int[Tensor, "batch length"]]:
        """The windows in batches; the last one has the rest."""
        return list(self.tokens.split(self.batch))

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens: equal calibration data have equal digests."""
        return digest(self.tokens)

    def __str__(self) -> str:
        count, length = self.tokens.shape
        how = "overlapping windows" if self.overlapping else "windows"
        return f"{count} {how} of {length} tokens, seed {self.seed}, SHA-256 {self.digest[:12]}, from {self.told}"


def calibration(
    text: Paths | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    pattern: str = "**/*.txt",
    count: int = 128,
    length: int = 2048,
    seed: int = 0,
    batch: int = 8,
    vocabulary: int | None = None,
) -> Calibration:
    """Calibration data from text files: `read` them, then `draw` windows.

    Args:
        text: a text file, several, or a folder. There is none by default.
        tokenizer: a folder with a `tokenizer.json`, usually the model's own; bytes are the tokens when left out.
        pattern: which files of a folder.
        count, length: 128 windows of 2048 tokens are what SparseGPT and Wanda calibrate with.
        seed: which windows.
        batch: windows in a batch.
        vocabulary: ids that the model knows (`prunus.measure.likelihood.vocabulary(model)`), to tell a wrong tokenizer.

    Errors: those of `read` and `draw`.
    """
    found = read(text, tokenizer=tokenizer, pattern=pattern)
    return draw(found, count=count, length=length, seed=seed, batch=batch, vocabulary=vocabulary)


def read(text: Paths | None, *, tokenizer: str | os.PathLike[str] | None = None, pattern: str = "**/*.txt") -> Text:
    """All tokens of text files, in the order they are given, those of a folder by name.

    Between two files stands the tokenizer's token for the end of a text (or for the separation of two), if it has one;
    a zero byte between bytes. No other special tokens are added. Files that end in `.gz` are unzipped, empty ones left
    out. Cost: the text and eight bytes per token in memory.

    Errors: `SpecError` where no text is given; `DataError` for what does not exist, matches nothing, holds nothing, is
    not UTF-8 (bytes may be anything), and for folders without a tokenizer that can be read; `MissingExtraError`.
    """
    paths, source = _paths(text, pattern)
    contents = [(p, c) for p in paths if (c := files.read_bytes(p))]
    if not contents:
        raise DataError(f"{source} is empty: {len(paths)} files without a byte; give text to calibrate with")
    size = sum(len(c) for _, c in contents) + len(contents) - 1
    if tokenizer is None:
        ids = torch.frombuffer(bytearray(b"\0".join(c for _, c in contents)), dtype=torch.uint8).long()
        return Text(ids, size, len(contents), source, "bytes", BYTES)
    folder = Path(tokenizer).expanduser()
    known = load_tokenizer(folder)
    ends = next((t for t in (known.eos_token_id, known.sep_token_id) if t is not None), None)
    between = [] if ends is None else [int(ends)]
    pieces: list[Tensor] = []
    for i, (path, content) in enumerate(contents):
        # verbose: a whole file is longer than what the model takes, and is cut into windows later.
        ids = known(_decoded(path, content), add_special_tokens=False, verbose=False)["input_ids"]
        pieces.append(torch.tensor((between if i else []) + list(ids), dtype=torch.int64))
    joined = torch.cat(pieces)
    if not len(joined):
        raise DataError(f"{folder}'s tokenizer makes no token of the {size} bytes of {source}: wrong tokenizer?")
    return Text(joined, size, len(contents), source, str(folder), len(known))


def draw(
    text: Text, *, count: int, length: int, seed: int = 0, batch: int = 8, vocabulary: int | None = None
) -> Calibration:
    """`count` windows of `length` tokens, the same for the same tokens and seed.

    Without replacement: the text is cut into windows that follow each other, from a beginning that is drawn among the
    tokens that are over, and `count` of them are taken in the order drawn. Where it has fewer than that, beginnings are
    drawn among all places, no two equal, so windows overlap, and the result says so. The published codes draw
    beginnings with replacement, so their windows may overlap or repeat.

    Errors: `SpecError` for a count, length or batch below 1; `DataError` for fewer tokens than length + count - 1, and
    for ids that a model with this `vocabulary` does not know.
    """
    if min(count, length, batch) < 1:
        raise SpecError(f"count={count}, length={length}, batch={batch}: each is at least 1")
    n = len(text.ids)
    if n < length + count - 1:
        raise DataError(
            f"too few tokens: {text} are fewer than the {length + count - 1:,} that {count} different windows of "
            f"{length} need ({count * length:,} if they are not to overlap): give more text, or fewer or shorter ones"
        )
    if vocabulary is not None and (high := int(text.ids.max())) >= vocabulary:
        raise DataError(
            f"token id {high} is outside of the model's vocabulary of {vocabulary}: wrong tokenizer? These are tokens "
            f"by {text.tokenizer}; take the tokenizer of the model's own folder"
        )
    generator = torch.Generator().manual_seed(seed)
    apart = n >= count * length
    if apart:
        first = int(torch.randint(n % length + 1, (), generator=generator))
        starts = first + length * torch.randperm(n // length, generator=generator)[:count]
    else:
        starts = torch.randperm(n - length + 1, generator=generator)[:count]
    tokens = text.ids[starts[:, None] + torch.arange(length)]
    return Calibration(tokens, batch, not apart, seed, str(text))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of an HF folder; only local files are read and no code of the folder is run.

    Errors: `DataError`, `MissingExtraError`.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        have = f"it has {', '.join(sorted(p.name for p in folder.iterdir())[:8])}" if folder.is_dir() else "no folder"
        raise DataError(f"{folder} has no tokenizer.json ({have}): give a folder as save_pretrained writes it")
    transformers = require("transformers", extra="hf", why="it reads the tokenizer")
    try:
        json.loads(file.read_bytes())
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more special
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file} cannot be read as a tokenizer: {first}; fetch the folder again") from error


def _paths(text: Paths | None, pattern: str) -> tuple[list[Path], str]:
    """The files, and what to call them."""
    if text is None or (isinstance(text, Sequence) and not text):
        raise SpecError(
            "no text to calibrate with: pass a text file, several, or a folder and pattern='**/*.txt'; text like that "
            "which the model was trained on is best"
        )
    given = [text] if isinstance(text, str | os.PathLike) else list(text)
    roots = [Path(p).expanduser() for p in given]
    for root in roots:
        if not root.exists():
            raise DataError(f"{root} does not exist: give a text file, or a folder and a pattern such as '**/*.txt'")
    source = str(roots[0]) if len(roots) == 1 else f"{roots[0]} and {len(roots) - 1} more"
    return [f for root in roots for f in files.matching(root, pattern)], source


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {content[error.start]:#04x} ({error.reason}); convert it, or "
            f"leave it out by the pattern"
        ) from None
