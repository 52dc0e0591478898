"""What a contrast's report says: arms, runs, verdicts, the survey's own figures, and everything that qualifies them.

Accuracies, sparsities and shares are fractions from 0 to 1. Means and deviations are computed from the runs, so they
cannot disagree with them; they are written into the JSON for its readers and left aside when it is read back.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any

from pydantic import Field, ValidationError, computed_field, model_validator

from prunus.core.errors import SpecError
from prunus.report.records import Count, Fraction, Record, Value


class Computed(Record):
    """A record with numbers that follow from its fields."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        computed = cls.model_computed_fields
        return {k: v for k, v in data.items() if k not in computed} if isinstance(data, dict) else data


class SeedRun(Record):
    """One run of a point.

    Attributes:
        seed: of the initial weights, the order of the data, and everything random.
        test, top5: test accuracy after the last step; top 5 where there are more than five classes.
        valid: the same on held-out examples, by which choices are made.
        untrained: `valid` right after pruning trained weights; None where that is no state of the run.
        delta: `test` less the dense network's of the same seed; None where that one is not there.
        sparsity: removed units over ranked units.
        effective: share of the ranked weights that are zero or lie on no path from input to output.
        params_kept, macs_kept: of the whole network, those that are not zero.
        collapsed: layers of which nothing is left.
        seconds: processor time.
    """

    seed: int
    test: Fraction
    top5: Fraction | None = None
    valid: Fraction
    untrained: Fraction | None = None
    delta: float | None = None
    sparsity: Fraction
    effective: Fraction | None = None
    params_kept: Count
    macs_kept: Count
    collapsed: list[str] = Field(default_factory=list)
    seconds: float = 0.0


class LayerKept(Computed):
    """What is kept of a weight tensor, run by run in the order of the point's runs."""

    name: str
    weights: Count
    kept: list[int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float:
        """Mean share that is kept; NaN for a layer without weights."""
        return fmean(self.kept) / self.weights if self.weights and self.kept else math.nan


class PointRecord(Computed):
    """An arm on a problem at an operating point: its runs, at the rate that held-out accuracy chose.

    Attributes:
        problem, arm: names.
        keep: fraction that was asked for, in the contrast's currency; 1 for the dense network.
        rate: largest learning rate.
        runs: by seed; at least one.
        params_dense, macs_dense: of the whole dense network, the denominators of both ratios.
        layers: in the network's order; empty for the dense network.
        notes: what the recipe said, each once.
    """

    problem: str
    arm: str
    keep: Fraction
    rate: float
    runs: list[SeedRun]
    params_dense: Count
    macs_dense: Count
    layers: list[LayerKept] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> float:
        """Mean test accuracy over seeds."""
        return fmean(r.test for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for one seed."""
        return stdev(r.test for r in self.runs) if len(self.runs) > 1 else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low(self) -> float:
        """The worst run."""
        return min(r.test for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def best(self) -> float:
        """The best run: what papers that report the best of n print."""
        return max(r.test for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def top5(self) -> float | None:
        """Mean top-5 accuracy."""
        return _mean([r.top5 for r in self.runs])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def untrained(self) -> float | None:
        """Mean held-out accuracy right after pruning."""
        return _mean([r.untrained for r in self.runs])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def delta(self) -> float | None:
        """Mean difference to the dense network, seed by seed."""
        return _mean([r.delta for r in self.runs])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sparsity(self) -> float:
        """Mean nominal sparsity: removed units over ranked units."""
        return fmean(r.sparsity for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def effective(self) -> float | None:
        """Mean effective sparsity: weights on no path count as removed."""
        return _mean([r.effective for r in self.runs])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def params_kept(self) -> float:
        """Mean number of parameters that are not zero."""
        return fmean(r.params_kept for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def macs_kept(self) -> float:
        """Mean number of multiply-accumulates whose weight is not zero."""
        return fmean(r.macs_kept for r in self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def params_ratio(self) -> float:
        """Dense over kept parameters of the whole network."""
        return self.params_dense / self.params_kept if self.params_kept else math.inf

    @computed_field  # type: ignore[prop-decorator]
    @property
    def macs_ratio(self) -> float:
        """Dense over kept multiply-accumulates."""
        return self.macs_dense / self.macs_kept if self.macs_kept else math.inf

    @computed_field  # type: ignore[prop-decorator]
    @property
    def collapsed(self) -> int:
        """Runs in which at least one layer is empty."""
        return sum(bool(r.collapsed) for r in self.runs)


class ProblemRecord(Record):
    """A network on its data; `facts` are shown as given."""

    name: str
    network: str
    data: str
    facts: dict[str, Value]


class ArmRecord(Record):
    """A line of the contrast.

    Attributes:
        name: as it is shown.
        baseline: there because every comparison needs it.
        recipe, source: the recipe's name and where it is from; empty for the dense network.
        taxonomy: `Recipe.taxonomy()`.
        parts: slot -> the part as it is written in a recipe.
        starts: initial or trained weights, in words.
        training: how long it is trained, in words.
        epochs: problem -> passes over the data after (or while) pruning.
        fixed: the fraction kept that the recipe's pattern fixes, or None.
    """

    name: str
    baseline: bool
    recipe: str = ""
    source: str = ""
    taxonomy: dict[str, str] = Field(default_factory=dict)
    parts: dict[str, str] = Field(default_factory=dict)
    starts: str = ""
    training: str
    epochs: dict[str, int]
    fixed: Fraction | None = None


class Judgement(Record):
    """What runs say: a word, the mean difference with its interval as text, and as numbers where there are any."""

    word: str
    told: str
    seeds: Count
    gap: float | None = None
    low: float | None = None
    high: float | None = None


class ClaimRecord(Record):
    """A claim and its verdict, over all problems and on each; `survey` is what the survey says of it."""

    id: str
    text: str
    left: str
    right: str = ""
    unit: str
    margin: float
    at: list[float] = Field(default_factory=list)
    survey: str = ""
    verdict: Judgement
    by_problem: dict[str, Judgement] = Field(default_factory=dict)


class Similarity(Computed):
    """How alike masks are at an operating point: weights that both keep over weights that either keeps.

    Attributes:
        problem, keep: the point.
        arms: of the rows and columns.
        overlap: mean over seeds, of runs of one seed; on the diagonal, of runs of one arm with different seeds. None
            where there is nothing to compare.
    """

    problem: str
    keep: Fraction
    arms: list[str]
    overlap: list[list[Fraction | None]]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def chance(self) -> float:
        """What two random masks of this density come to on average."""
        return self.keep / (2.0 - self.keep)


class QuotedTable(Record):
    """A table of the survey, as it is printed there."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class FailedRun(Record):
    """A run that raised: where, and the last line of its traceback."""

    problem: str
    method: str
    keep: Fraction
    rate: float
    seed: int
    key: str
    error: str


class Elsewhere(Record):
    """Runs of this contrast that were made by other code or on another machine: counted, never mixed in."""

    key: str
    facts: dict[str, Value]
    runs: Count


class ContrastRecord(Record):
    """A contrast at a tier, as far as it was run in one environment.

    Attributes:
        name, title, section, question: see `prunus.lab.contrast.Contrast`; section is the survey's.
        tier, says: how much was run, and what it may be taken for.
        seeds, points: of the tier; points are fractions kept, in `currency`.
        problems, arms, points_found, claims: what was compared, and what came of it.
        quoted: the survey's own tables.
        protocol: what every run had in common, shown as given.
        environment: code and machine of all runs shown.
        warnings: what makes this less than a fair comparison.
        unequal: runs that began with different weights than they should have.
        similarity: of the masks, point by point; empty where masks were not kept.
        failed, elsewhere: runs that are not among the points.
        done, planned: runs that the points rest on, and that a finished contrast would.
        notes: what a reader must know.
        command: makes the report again.
        version, created: of Prunus; date and time as they are to be shown.
    """

    name: str
    title: str
    section: str
    question: str
    tier: str
    says: str
    seeds: list[int]
    points: list[float]
    currency: str
    problems: list[ProblemRecord]
    arms: list[ArmRecord]
    points_found: list[PointRecord]
    claims: list[ClaimRecord]
    quoted: list[QuotedTable] = Field(default_factory=list)
    protocol: dict[str, Value]
    environment: dict[str, Value]
    warnings: list[str] = Field(default_factory=list)
    unequal: list[str] = Field(default_factory=list)
    similarity: list[Similarity] = Field(default_factory=list)
    failed: list[FailedRun] = Field(default_factory=list)
    elsewhere: list[Elsewhere] = Field(default_factory=list)
    done: Count
    planned: Count
    notes: list[str] = Field(default_factory=list)
    command: str = ""
    version: str
    created: str

    def arm(self, name: str) -> ArmRecord:
        """An arm by its name."""
        return next(a for a in self.arms if a.name == name)

    def found(self, problem: str, arm: str) -> list[PointRecord]:
        """The points of an arm on a problem, from mild to extreme."""
        mine = [p for p in self.points_found if (p.problem, p.arm) == (problem, arm)]
        return sorted(mine, key=lambda p: -p.keep)

    def dense(self) -> list[ArmRecord]:
        """The arms that remove nothing."""
        return [a for a in self.arms if not a.recipe]

    def to_json(self) -> str:
        """Every field, and what follows from them; `from_json` restores an equal record."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ContrastRecord:
        """The record that `to_json` wrote. Fails: `SpecError` names the field and what is wrong with it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SpecError(
                f"not a contrast of this version: {where}: {first['msg']}; make it again with `prunus contrast report`"
            ) from error


def _mean(values: list[float | None]) -> float | None:
    """The mean of what is there."""
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
