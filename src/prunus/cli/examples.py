"""Examples to look at networks with, and how networks are trained between one look and the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.networks import Built
from prunus.cli.setting import Data, Download, Length, Pattern, Root, data_for, fitting
from prunus.cli.subjects import Nets, Problems, Subject, subject
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunus.core.task import Task
    from prunus.lab.data import Dataset

Examples = Annotated[int, typer.Option("--examples", min=1, help="So many examples, drawn by the seed.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Examples at a time.")]
Part = Annotated[str, typer.Option("--split", help="Of train, valid (held out of it) or test.")]


@dataclass(frozen=True)
class Opened:
    """Networks and the data that they are looked at with.

    Attributes:
        subjects: the networks.
        data: the data set that they were fitted to.
        batches: the examples that were asked for.
        task: their loss (cross-entropy), and training data.
        example: one input.
        facts: data, part, examples, for the record.
    """

    subjects: list[Subject]
    data: Dataset
    batches: list[tuple[Tensor, Tensor]]
    task: Task
    example: tuple[Tensor, ...]
    facts: dict[str, str | int | float]

    def accuracy(self, model: nn.Module) -> float:
        """Share of the examples that are classified right."""
        from prunus import measure

        return measure.accuracy(model, self.batches)

    def untrained(self) -> tuple[str, ...]:
        """A note where networks have their initial weights, of which nothing that is found says much."""
        bare = [s.name for s in self.subjects if s.built and ":" not in s.name and s.built.checkpoint is None]
        told = f"{', '.join(bare)}: initial weights, so the accuracy is that of chance; NAME@FILE takes trained ones"
        return (told,) if bare else ()

    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy of the examples."""
        import torch

        with torch.no_grad():
            return sum(float(self.task.loss_of(model, b)) * len(b[1]) for b in self.batches) / sum(
                len(b[1]) for b in self.batches
            )


@dataclass(frozen=True)
class NetsOnData(Nets):
    """The options by which networks and data are named."""

    data: Data = None
    root: Root = None
    download: Download = False
    pattern: Pattern = "**/*.py"
    length: Length = None
    split: Part = "train"
    examples: Examples = 256
    batch_size: Batch = 128

    def looked_at(self, seed: int, wrong: Problems | None = None, *, least: int = 1, most: int | None = None) -> Opened:
        """Networks fitted to the data, and the examples; whatever is wrong is said at once."""
        wrong = Problems() if wrong is None else wrong
        makers: list[tuple[str, Built]] = []
        for name in self.networks:
            with wrong.noted():
                makers.append((name, self.built(name, seed)))
        if self.data is None:
            wrong.found.append(SpecError("this analysis needs data: --data digits (fashion-mnist, a folder, ...)"))
        if self.split not in ("train", "valid", "test"):
            wrong.found.append(SpecError(f"--split {self.split}: train, valid or test"))
        wrong.count(len(self.networks), least, most)
        data: Dataset | None = None
        if makers and self.data is not None:
            with wrong.noted():
                data = self._read(makers[0][1])
        subjects: list[Subject] = []
        for name, built in makers if data is not None else ():
            with wrong.noted():
                assert data is not None
                for key, value in ({} if built.name.startswith("hf:") else fitting(built.name, data)).items():
                    built.options.setdefault(key, value)
                subjects.append(subject(name, built))
                _check(subjects[-1], data)
        wrong.say()
        assert data is not None
        return self._opened(subjects, data, seed)

    def _read(self, built: Built) -> Dataset:
        assert self.data is not None
        folder = Path(built.name.removeprefix("hf:")).expanduser()
        if built.name.startswith("hf:") and (folder / "tokenizer.json").is_file():
            return _tokenized(folder, Path(self.data).expanduser(), self.pattern, self.length or 128)
        return data_for(built, self.data, self.root, download=self.download, pattern=self.pattern, length=self.length)

    def _opened(self, subjects: list[Subject], data: Dataset, seed: int) -> Opened:
        from prunus.core.task import Task
        from prunus.lab.data import Loader

        part = {"train": data.train, "valid": data.valid, "test": data.test}[self.split]
        drawn = Loader(part, min(self.examples, len(part)), seed=seed, shuffle=True)
        x, y = next(drawn.batches(0))
        size = self.batch_size
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        train = Loader(data.train, min(size, len(data.train)), seed=seed, shuffle=True, drop_last=True)
        calib = [b for _, b in zip(range(4), train.batches(0), strict=False)]
        task = Task(loss=cross_entropy, train=train, calib=calib, example=(x[:1],))
        facts: dict[str, str | int | float] = {
            "data": data.name,
            "split": self.split,
            "examples": len(x),
            "seed": seed,
        }
        return Opened(subjects, data, batches, task, (x[:1],), facts)


@dataclass(frozen=True)
class NetsJudged(NetsOnData):
    """The same, where accuracy is measured: on held-out examples, so that the test data stay unseen."""

    split: Part = "valid"
    examples: Examples = 1000


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy over classes, or next tokens."""
    import torch.nn.functional as F

    from prunus.lab.experiment import logits_of

    inputs, targets = batch
    return F.cross_entropy(logits_of(model(inputs)).float().flatten(0, -2), targets.flatten())


def _check(one: Subject, data: Dataset) -> None:
    """Refuse a network that does not take these data."""
    import torch

    from prunus.lab.experiment import logits_of

    example = data.test.inputs(data.test.x[:1])
    try:
        with torch.no_grad():
            logits = logits_of(one.net(example))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shape = tuple(example.shape)
        raise SpecError(f"{one.name} does not take inputs of {data.name} {shape}: {error}") from error
    if logits.shape[-1] < data.num_classes or logits.shape[:-1] != data.test.y[:1].shape:
        raise SpecError(
            f"{one.name} returns {tuple(logits.shape)} for one example, and {data.name} has {data.num_classes} classes"
        )


def _tokenized(folder: Path, text: Path, pattern: str, length: int) -> Dataset:
    """Text as the tokens of a model's own tokenizer, in windows, each with the token that follows every one."""
    from prunus.lab.data import Dataset, Split
    from prunus.lab.data.calibration import read
    from prunus.lab.data.dataset import digest

    ids = read(text, tokenizer=folder, pattern=pattern)
    count = (len(ids.ids) - 1) // length
    if count < 3:
        raise SpecError(f"{text} has {len(ids.ids)} tokens, too few for three windows of {length}: give a --length")
    x = ids.ids[: count * length].view(count, length)
    y = ids.ids[1 : count * length + 1].view(count, length)
    last = max(1, count // 10)
    cut = {
        "train": slice(0, count - 2 * last),
        "valid": slice(count - 2 * last, count - last),
        "test": slice(-last, None),
    }
    parts = {n: Split(x[c], y[c], kind="tokens") for n, c in cut.items()}
    return Dataset(
        name=str(text), num_classes=int(ids.ids.max()) + 1, in_channels=0, size=length, where=str(text),
        digest=digest(x, y), kind="tokens", **parts,
    )  # fmt: skip


def fractions(text: str, flag: str, *, zero: bool = False) -> tuple[float, ...]:
    """Sparsities of the command line, growing; with `zero`, the dense network in front."""
    try:
        found = sorted({float(s) for s in text.split(",") if s.strip()} | ({0.0} if zero else set()))
    except ValueError as error:
        raise SpecError(f"{flag} {text}: give fractions separated by commas, such as 0.5,0.9") from error
    if not found or not all(0 <= s < 1 for s in found):
        raise SpecError(f"{flag} {text}: sparsities lie in [0, 1)")
    return tuple(found)


def recipe_of(name: str) -> Any:
    """A method that is a recipe: procedures prune in a way of their own."""
    from prunus import methods
    from prunus.core.recipe import Recipe

    found = methods.find(name)
    if not isinstance(found, Recipe):
        raise SpecError(f"{name} is a procedure, which has no scores or events to look at: take a recipe")
    return found


@dataclass(frozen=True)
class Training:
    """How networks are trained between one look and the next: SGD with Nesterov momentum, one rise and fall."""

    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate of a one-cycle schedule.")] = 0.05
    decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of the optimizer.")] = 5e-4

    def check(self) -> None:
        """Refuse a rate that is none."""
        if not 0 < self.lr < float("inf"):
            raise SpecError(f"--lr {self.lr}: the learning rate must be above 0")

    def optimizer(self) -> Callable[[Any], Any]:
        """Parameters -> optimizer."""
        import torch

        return lambda ps: torch.optim.SGD(ps, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.decay)
