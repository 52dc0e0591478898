"""What analyses look at: networks, results and runs by name, with their masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.contrast import StoreAt
from prunus.cli.networks import Built, Classes, Options, Width, options_of, zoo_kind
from prunus.core.errors import PrunusError, SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunus.lab.store import Row, Store

Several = Annotated[
    list[str],
    typer.Argument(
        help=(
            "Networks of the zoo, torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory, folders that prunus "
            "wrote; NAME@FILE takes weights from a file."
        ),
        show_default=False,
    ),
]
SeveralOrRuns = Annotated[
    list[str],
    typer.Argument(
        help=(
            "Networks of the zoo, hf:FOLDER, package.module:factory, folders that prunus wrote, NAME@FILE; run:KEY and "
            "runs:method=snip,keep=0.1 are runs of --store."
        ),
        show_default=False,
    ),
]


class Problems:
    """What is wrong with a command line, collected so that it is all said at once."""

    def __init__(self) -> None:
        self.found: list[PrunusError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What goes wrong inside is kept, and the rest goes on."""
        try:
            yield
        except PrunusError as error:
            self.found.append(error)

    def count(self, given: int, least: int, most: int | None) -> None:
        """Note where there are fewer networks than an analysis takes, or more."""
        if given < least or (most is not None and given > most):
            asked = str(least) if most == least else f"{least} or more" if most is None else f"{least} to {most}"
            self.found.append(SpecError(f"this analysis looks at {asked} networks, and {given} were given"))

    def say(self) -> None:
        """Raise what was found: the one problem as it is, several as one error."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise SpecError("; ".join(f"({i}) {error}" for i, error in enumerate(self.found, 1)))


@dataclass(frozen=True)
class Subject:
    """A network that is looked at, or the masks of one.

    Attributes:
        name: as it was given.
        kind: what it is one of: the method of a run; of all others the name.
        seed: of a run.
        model: in evaluation mode; None for runs, of which only masks are kept.
        masks: parameter -> True where it is not zero (as the store has it, of runs), of weights that hold a zero.
        weights: parameter -> entries in the network as it was before anything was cut out.
        built: how it was made; None for runs.
    """

    name: str
    kind: str
    model: nn.Module | None
    masks: Mapping[str, Tensor]
    weights: Mapping[str, int]
    seed: int | None = None
    built: Built | None = None

    @property
    def net(self) -> nn.Module:
        """The model, of what is no run."""
        assert self.model is not None
        return self.model

    def kept(self) -> dict[str, int]:
        """Parameter -> entries that are not zero; what was cut out is gone."""
        import torch

        counts = {n: int(m.sum()) for n, m in self.masks.items()}
        if self.model is not None:
            named = dict(self.model.named_parameters())
            counts = {n: int(torch.count_nonzero(named[n])) for n in self.weights if n in named}
        return {n: counts.get(n, 0) for n in self.weights}


@dataclass(frozen=True)
class Nets:
    """The options by which networks are named."""

    networks: Several
    classes: Classes = None
    width: Width = None
    option: Options = None

    def opened(
        self, seed: int, wrong: Problems | None = None, *, least: int = 1, most: int | None = None
    ) -> list[Subject]:
        """All networks, built and filled; whatever is wrong with any of them is said at once.

        least, most: how many are asked for.
        """
        wrong = Problems() if wrong is None else wrong
        found: list[Subject] = []
        for name in self.networks:
            with wrong.noted():
                found += self.named(name, seed)
        if not wrong.found:
            wrong.count(len(found), least, most)
        wrong.say()
        return found

    def named(self, name: str, seed: int) -> list[Subject]:
        """What one name means."""
        return [subject(name, self.built(name, seed))]

    def built(self, name: str, seed: int) -> Built:
        """How one network is made. `NAME@FILE` has a checkpoint."""
        bare, at, file = name.rpartition("@")
        with_file = bool(at) and not Path(name).expanduser().exists()
        options = options_of(self.classes, self.width, self.option)
        found = Built(
            bare if with_file else name, options, checkpoint=Path(file).expanduser() if with_file else None, seed=seed
        )
        zoo_kind(found.name)  # so that a name that nobody knows is said with everything else
        return found


@dataclass(frozen=True)
class NetsOrRuns(Nets):
    """The same, and runs of a store, of which there are masks alone."""

    networks: SeveralOrRuns
    store: StoreAt = "runs.db"

    def named(self, name: str, seed: int) -> list[Subject]:
        """What one name means; of `runs:...`, all that fit."""
        if not name.startswith(("run:", "runs:")):
            return super().named(name, seed)
        from prunus.lab.contrast.sweep import unpacked
        from prunus.lab.contrast.trial import Spec

        found: list[Subject] = []
        store, rows = rows_of(self.store, name)
        try:
            for row in rows:
                packed = store.blob(row.key, row.environment, "masks")
                if packed is None:
                    continue
                spec = Spec.model_validate(dict(row.spec))
                masks = unpacked(packed)
                label = f"{spec.method} {spec.keep:g} seed {spec.seed}"
                label = f"{label} {row.key[:6]}" if label in {s.name for s in found} else label
                sizes = {n: m.numel() for n, m in masks.items()}
                found.append(Subject(label, f"{spec.method} {spec.keep:g}", None, masks, sizes, spec.seed))
        finally:
            store.close()
        if not found:
            raise SpecError(f"{name}: {len(rows)} runs of {self.store} fit, and the store has masks of none of them")
        return found


def subject(name: str, built: Built) -> Subject:
    """A network by the way it is made."""
    from prunus.measure.derivatives import zeros_as_masks

    model = built.model().eval()
    dense = built.dense() if built.saved is not None and built.compacted else model
    sizes = {n: p.numel() for n, p in dense.named_parameters() if p.ndim >= 2}
    return Subject(name, name, model, zeros_as_masks(model), sizes, None, built)


def rows_of(store: str, name: str) -> tuple[Store, list[Row]]:
    """The store, and the finished runs that `run:KEY` or `runs:NAME=VALUE,...` means."""
    from prunus.cli.runs import opened
    from prunus.lab.exchange import flat

    kept = opened(store)
    try:
        done = kept.rows(status="done")
        kind, _, asked = name.partition(":")
        if kind == "run":
            rows = [r for r in done if r.key.startswith(asked)]
            if len(rows) != 1:
                raise SpecError(f"{name}: {len(rows)} finished runs of {store} begin so; prunus runs list shows them")
            return kept, rows
        wanted = dict(pair.partition("=")[::2] for pair in asked.split(",") if pair)
        known = ("problem", "network", "method", "keep", "rate", "seed", "epochs", "environment", "currency")
        odd = [n for n in wanted if n not in known]
        if odd:
            raise SpecError(f"{name}: {odd[0]} is nothing that runs are chosen by: {', '.join(known)}")
        rows = [r for r in done if _fits(flat(r, {}), wanted)]
        if not rows:
            raise SpecError(f"{name}: no finished run of {store} fits; prunus runs list shows them")
        if len(places := sorted({r.environment for r in rows})) > 1:
            told = ", ".join(places)
            raise SpecError(
                f"{name}: runs of {len(places)} environments ({told}) are not mixed: add environment={places[0]}"
            )
    except BaseException:
        kept.close()
        raise
    return kept, rows


def _fits(row: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    return all(f"{row[n]:g}" == f"{float(v):g}" if _is_number(row[n], v) else row[n] == v for n, v in wanted.items())


def _is_number(have: Any, want: str) -> bool:
    try:
        float(want)
    except ValueError:
        return False
    return isinstance(have, int | float)
