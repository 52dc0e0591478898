"""A small language model of the Llama form, trained from scratch on the text of Python's own standard library.

    make lm                                                       the same as
    python benchmarks/lm.py --train                               writes build/lm: weights, config, tokenizer, note.json
                                     [--out FOLDER] [--seed 0] [--threads 2] [--quick]
    python benchmarks/lm.py                                       prints what is in build/lm, trains nothing

It is what post-training pruning is measured on (benchmarks/llm.py), so it is small for its tokens: a model that is far
too large for them loses nothing when half of it goes, and measures nothing. Text: the *.py files of the standard
library of the Python that runs this, without tests and generated tables, in the order of their paths; a twentieth of
them is held out for validation and another for the test, by a hash of the path. Tokens: byte-level BPE, learned on the
training files.
AdamW on all matrices and vectors, weight decay on matrices only, warm-up, then a cosine to a tenth; float32 on the CPU.
Numbers are of one Python version: another one's library is another text (`corpus` in the note tells them apart).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vision import define_missing

from prunus import measure
from prunus.core.errors import DataError, require
from prunus.lab.data import calibration

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "lm"
NOTE = "note.json"
END = "<|end|>"
PARTS = ("train", "valid", "test")
# Tests; what is not of the library; and tables (of characters, of help texts), generated and much alike in every file.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Size:
    """How large the model and its training are."""

    hidden: int = 96
    intermediate: int = 256
    layers: int = 3
    heads: int = 3
    vocabulary: int = 1024
    length: int = 128
    batch: int = 32
    steps: int = 1500
    rate: float = 4e-3
    warm: int = 100
    decay: float = 0.1
    files: int | None = None
    held_out: int | None = None


QUICK = Size(32, 64, 2, 2, 320, 32, 8, 30, warm=5, files=30, held_out=2000)


# The text


def library() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def part_of(path: str) -> str:
    """Which part a file belongs to, by its path below the library: the same on every machine."""
    place = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 20
    return {0: "valid", 1: "test"}.get(place, "train")


def corpus(root: Path | None = None, most: int | None = None) -> dict[str, list[Path]]:
    """The files of every part, in the order of their paths; about so many in all, taken evenly."""
    root = root or library()
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py") if p.is_file()}
    names = sorted(n for n in found if not LEFT_OUT & set(Path(n).parts))
    every = 1 if most is None else max(1, len(names) // most)
    chosen = {part: [n for n in names if part_of(n) == part][::every] for part in PARTS}
    parts = {part: [p for n in own if readable(p := found[n])] for part, own in chosen.items()}
    if lacking := [part for part, files in parts.items() if not files]:
        raise DataError(
            f"{root} has no *.py file for {', '.join(lacking)}: is the standard library zipped or stripped?"
        )
    return parts


def readable(path: Path) -> bool:
    """Whether a file holds text, in UTF-8."""
    try:
        return bool(path.read_bytes().decode())
    except UnicodeDecodeError:
        return False


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, in order."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def make_tokenizer(files: Sequence[Path], size: Size) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes: Radford et al. 2019) learned on the files."""
    tokenizers = require("tokenizers", extra="hf", why="it learns the tokenizer")
    transformers = require("transformers", extra="hf", why="it holds the tokenizer")
    learned = tokenizers.ByteLevelBPETokenizer()
    texts = (f.read_bytes().decode() for f in files)
    learned.train_from_iterator(texts, size.vocabulary, special_tokens=[END], show_progress=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, bos_token=END, eos_token=END, model_max_length=size.length
    )


# The model


def make_model(size: Size, seed: int, end: int) -> nn.Module:
    """Initial weights, from the seed."""
    transformers = require("transformers", extra="hf", why="the model is its LlamaForCausalLM")
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.length,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def batches(ids: Tensor, size: Size, seed: int) -> Iterator[Tensor]:
    """Windows of length + 1 without end: each epoch begins at another token and has another order."""
    width = size.length + 1
    for epoch in range(10**9):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        first = int(torch.randint(width, (), generator=generator))
        whole = ids[first : first + (len(ids) - first) // width * width].view(-1, width)
        order = torch.randperm(len(whole), generator=generator)
        for at in order[: len(order) // size.batch * size.batch].split(size.batch):
            yield whole[at]


def factor(step: int, size: Size) -> float:
    """The learning-rate factor: a line up, a cosine down to a tenth."""
    if step < size.warm:
        return (step + 1) / size.warm
    progress = (step - size.warm) / max(1, size.steps - size.warm)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def fit(model: nn.Module, ids: Tensor, size: Size, seed: int, told: int = 200) -> float:
    """Train; the mean loss of the last tenth of the steps."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": size.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=size.rate, betas=(0.9, 0.95))
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step, x in zip(range(size.steps), batches(ids, size, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = size.rate * factor(step, size)
        logits = model(input_ids=x[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        if not math.isfinite(value := loss.item()):
            raise DataError(f"the loss is {value} at step {step}: train with a smaller rate than {size.rate}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value)
        if (step + 1) % told == 0:
            recent = sum(losses[-told:]) / told
            print(f"step {step + 1} of {size.steps}: {recent:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def train(out: Path, size: Size, seed: int, command: str) -> dict[str, Any]:
    """Tokenizer, model, training, and the folder; returns the note."""
    parts = corpus(most=size.files)
    out.mkdir(parents=True, exist_ok=True)
    (out / NOTE).unlink(missing_ok=True)  # written last: a folder without a note is not complete
    tokenizer = make_tokenizer(parts["train"], size)
    tokenizer.save_pretrained(out)
    texts = {part: calibration.read(files, tokenizer=out) for part, files in parts.items()}
    model = make_model(size, seed, tokenizer.eos_token_id)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} parameters, {len(texts['train'].ids):,} tokens to train on", flush=True)
    wall, cpu = time.monotonic(), time.process_time()
    loss = fit(model, texts["train"].ids, size, seed)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    model.save_pretrained(out)
    found = {part: evaluated(model, texts[part], size) for part in ("valid", "test")}
    note = {
        "train_loss": round(loss, 5),
        **{f"{part}_perplexity": round(p.perplexity, 4) for part, p in found.items()},
        **{f"{part}_nll": round(p.nll, 5) for part, p in found.items()},
        "valid_bits_per_byte": None if (bits := found["valid"].bits_per_byte) is None else round(bits, 4),
        "evaluation": {part: str(p) for part, p in found.items()},
        "parameters": weights,
        "tokens": {part: len(t.ids) for part, t in texts.items()},
        "tokens_seen": size.steps * size.batch * size.length,
        "files": {part: len(files) for part, files in parts.items()},
        "corpus": {part: fingerprint(files) for part, files in parts.items()},
        "size": asdict(size),
        "seed": seed,
        "seconds": round(wall, 1),
        "processor_seconds": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": require("transformers", extra="hf").__version__,
        "command": command,
    }
    (out / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return note


def evaluated(model: nn.Module, text: calibration.Text, size: Size) -> measure.Perplexity:
    """Perplexity at the length of training, windows side by side."""
    few = size.held_out is not None
    ids = text.ids[: size.held_out] if few else text.ids
    return measure.perplexity(model, ids, length=size.length, batch=32, text_bytes=None if few else text.bytes)


def note_of(folder: Path) -> dict[str, Any]:
    """What was written when the model in a folder was trained.

    Errors: `DataError` where there is none that is complete.
    """
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no trained model ({error}): run `make lm`") from None
    return note


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, if asked to; then say what there is."""
    parser = argparse.ArgumentParser(description="A small language model of Python's standard library.")
    parser.add_argument("--train", action="store_true", help="train it anew")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the text")
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch; its own choice when left out")
    parser.add_argument("--quick", action="store_true", help="a tiny one, to see that it works")
    given = parser.parse_args(arguments)
    define_missing()  # transformers imports torchvision
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    if given.train:
        if given.quick and given.out == FOLDER:
            parser.error("--quick needs an --out of its own")
        asked = [f"--seed {given.seed}", *(["--quick"] if given.quick else [])]
        command = f"python benchmarks/lm.py --train {' '.join(asked)}"
        train(given.out, QUICK if given.quick else Size(), given.seed, command)
    elif not (given.out / NOTE).is_file():
        print(f"{given.out} holds no trained model: run `make lm`")
        return
    note = note_of(given.out)
    print(f"{given.out}: {note['parameters']:,} parameters, {note['tokens_seen']:,} tokens seen; valid:")
    print(note["evaluation"]["valid"])


if __name__ == "__main__":
    main()
