"""What a report says, as plain records: measured once, kept as JSON, shown in several ways.

Accuracies and sparsities are fractions from 0 to 1, times are milliseconds or seconds, sizes are bytes. `None` means
that something was not measured; NaN that it was, and the result is no number (a training that diverged).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunus.core.errors import SpecError

Value = str | int | float


def _fraction(value: float) -> float:
    if not (math.isnan(value) or 0.0 <= value <= 1.0):
        raise ValueError(f"{value} is no fraction: give 0.9, not 90, for 90 %")
    return value


Fraction = Annotated[float, AfterValidator(_fraction)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, NaN and infinity survive JSON as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Latency(Record):
    """Milliseconds of one forward pass: median and quartiles over `runs` runs, and the conditions they ran under."""

    median_ms: float
    q25_ms: float
    q75_ms: float
    runs: Count
    threads: Count
    batch: int | None
    device: str


class Ratio(Record):
    """Dense time / pruned time over paired runs, above 1 where the pruned network is faster.

    `verdict` is the conclusion in words: `1.80x faster`, `1.20x slower` or `not faster`.
    """

    median: float
    q25: float
    q75: float
    verdict: str


class LayerDensity(Record):
    """How many of a layer's weights are kept; `kind` is the layer's type in a word (conv, linear)."""

    layer: str
    weights: Count
    kept: Count
    kind: str

    @property
    def density(self) -> float:
        """Kept / all weights of the layer; NaN for a layer without weights."""
        return self.kept / self.weights if self.weights else math.nan


class MethodRecord(Record):
    """One method applied once: what it is and what came out.

    Attributes:
        name: the recipe's name.
        title: the method's usual name.
        source: paper, venue, arXiv number.
        taxonomy: `Recipe.taxonomy()`.
        use_when: completes "use it when ...".
        avoid_when: completes "avoid it when ...".
        deviations: how the recipe differs from its paper; may be empty.
        budget: what was asked for, in words.
        accuracy_before: of the dense network, trained.
        accuracy_pruned: right after pruning, before any recovery.
        accuracy_after: of the network that is delivered.
        steps: optimizer steps that pruning and recovery took.
        params_dense: parameters of the dense network.
        params_kept: parameters that are not pruned away.
        macs_dense: multiply-accumulates of one input through the dense network.
        macs_kept: multiply-accumulates that the deployed network's dense kernels really run, zeros included.
        macs_nonzero: multiply-accumulates with a nonzero weight.
        bytes_dense: the dense network's file on disk.
        bytes_kept: the delivered network's file on disk.
        latency_dense: of the dense network, measured next to `latency`.
        latency: of the delivered network.
        latency_ratio: dense time / pruned time.
        layers: densities layer by layer, in the order of the network.
        compacted: whether pruned parts were physically cut out.
        verified_error: largest absolute difference between the outputs of the compact and the masked network.
        seconds: wall-clock time of pruning and recovery.
        notes: what else a reader must know.
    """

    name: str
    title: str
    source: str
    taxonomy: dict[str, str]
    use_when: str
    avoid_when: str
    deviations: str
    budget: str
    accuracy_before: Fraction | None
    accuracy_pruned: Fraction | None
    accuracy_after: Fraction | None
    steps: Count
    params_dense: Count
    params_kept: Count
    macs_dense: Count | None
    macs_kept: Count | None
    macs_nonzero: Count | None
    bytes_dense: Count
    bytes_kept: Count
    latency_dense: Latency | None
    latency: Latency | None
    latency_ratio: Ratio | None
    layers: list[LayerDensity]
    compacted: bool
    verified_error: float | None
    seconds: float
    notes: list[str]

    @property
    def sparsity(self) -> float:
        """Share of the dense network's parameters that are gone; NaN for a network without parameters."""
        return 1.0 - self.params_kept / self.params_dense if self.params_dense else math.nan


class Point(Record):
    """Accuracy at a sparsity; `std` is the standard deviation over seeds where there were several."""

    sparsity: Fraction
    accuracy: Fraction
    std: float | None = None


class Curve(Record):
    """Accuracy against sparsity of one method. A curve that bears a method's name or title shares its colour."""

    name: str
    points: list[Point]
    note: str = ""


class Report(Record):
    """Everything that one report shows.

    Attributes:
        title, subtitle: the page's headline and the sentence under it.
        dataset, network, environment: labelled facts, shown as given, so a label names the unit of its number.
        methods: in the order in which they are shown.
        curves: accuracy against sparsity.
        commands: shell lines that make this report again.
        notes: what applies to the report as a whole.
        version: of Prunus.
        created: date and time, as they are to be shown.
        seed: of everything random.
    """

    title: str
    subtitle: str
    dataset: dict[str, Value]
    network: dict[str, Value]
    environment: dict[str, Value]
    methods: list[MethodRecord]
    curves: list[Curve]
    commands: list[str]
    notes: list[str]
    version: str
    created: str
    seed: int

    def html(self) -> str:
        """One self-contained page: no script, style, font or picture is loaded from anywhere."""
        from prunus.report.html import page

        return page(self)

    def markdown(self) -> str:
        """The page's tables as GitHub Markdown."""
        from prunus.report.markdown import document

        return document(self)

    def to_json(self) -> str:
        """Every field; `from_json` restores an equal report."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that `to_json` wrote. Fails: `SpecError` names the field and what is wrong with it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise SpecError(
                f"not a report of this version: {where}: {first['msg']}{more}; "
                "make it again with the command that wrote it"
            ) from error

    def write(self, folder: str | Path) -> Path:
        """Write report.html, report.md and report.json into `folder` (made if absent) and return the path of the page.

        All three are complete on the disk before the first one gets its name, so an interruption or a full disk leaves
        an older report as it was. Fails: `PrunusError` if the folder cannot be made or written.
        """
        from prunus.report.files import write_together

        # Rendered first: an error in here must not leave a new folder behind.
        texts = {"report.html": self.html(), "report.md": self.markdown(), "report.json": self.to_json()}
        target = Path(folder)
        write_together(target, texts)
        return target / "report.html"
