"""A contrast at a tier, as far as it has been run: what is due, what was found, what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean

from prunus.core.errors import SpecError
from prunus.lab import claims
from prunus.lab.contrast.contrast import METRICS, PAIRS, Arm, Claim, Contrast
from prunus.lab.contrast.fairness import mixed
from prunus.lab.contrast.problem import Problem, Tier
from prunus.lab.contrast.trial import Record, Spec


@dataclass(frozen=True)
class Cell:
    """One arm on one problem at one operating point."""

    problem: str
    arm: str
    keep: float


@dataclass(frozen=True)
class Run:
    """A run of the store, as a sheet sees it: done with a record, or failed (or not there: no Run)."""

    record: Record | None = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """A contrast at a tier, and the runs of one environment by key.

    Rates are tried with the first seed; the one with the best held-out accuracy is run with the others (rule R7: equal
    and tuned schedules; rule R8: never by the test set), cell by cell or arm by arm as the tier says.
    """

    contrast: Contrast
    tier: Tier
    runs: Mapping[str, Run]

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The problems by name, as the contrast has them."""
        return {p.name: p for p in self.contrast.problems(self.tier)}

    def problem(self, cell: Cell) -> Problem:
        """What the arm of a cell is run on: the problem, as that arm has it."""
        if cell not in self._edited:
            edits = self.contrast.arm(cell.arm).edits(cell.keep)
            self._edited[cell] = self.problems[cell.problem].edited(edits)
        return self._edited[cell]

    @cached_property
    def _edited(self) -> dict[Cell, Problem]:
        return {}

    def rates(self, cell: Cell) -> tuple[float, ...]:
        """The rates that are tried: the problem's, or, where nothing is trained, any one."""
        problem = self.problem(cell)
        return problem.rates if self.contrast.arm(cell.arm).epochs(problem) else problem.rates[:1]

    def points(self, arm: Arm) -> tuple[float, ...]:
        """The fractions kept at which an arm is run."""
        return self.tier.points(self.contrast.points) if arm.density is None else (arm.density,)

    def cells(self, arm: Arm | None = None) -> Iterator[Cell]:
        """Every cell that is compared, or those of an arm."""
        for problem in self.problems:
            for one in self.contrast.arms if arm is None else (arm,):
                for keep in self.points(one):
                    yield Cell(problem, one.name, keep)

    def every(self) -> Iterator[Cell]:
        """Every cell that is run, those aside included."""
        for one in self.contrast.every:
            yield from self.cells(one)

    @cached_property
    def _rates(self) -> dict[Cell, float | None]:
        return {}

    @cached_property
    def _specs(self) -> dict[tuple[Cell, float, int], tuple[Spec, str]]:
        return {}

    def spec(self, cell: Cell, rate: float, seed: int) -> Spec | None:
        """What a run of a cell is; None while the run whose weights or masks it takes over is not there."""
        keyed = self._keyed(cell, rate, seed)
        return None if keyed is None else keyed[0]

    def run(self, cell: Cell, rate: float, seed: int) -> Run | None:
        """The run, if it is over."""
        keyed = self._keyed(cell, rate, seed)
        return None if keyed is None else self.runs.get(keyed[1])

    def _keyed(self, cell: Cell, rate: float, seed: int) -> tuple[Spec, str] | None:
        """A run with its key, which is a digest and made once."""
        place = (cell, rate, seed)
        if place not in self._specs:
            spec = self._spec(cell, rate, seed)
            if spec is None:
                return None
            self._specs[place] = (spec, spec.key)
        return self._specs[place]

    def _spec(self, cell: Cell, rate: float, seed: int) -> Spec | None:
        problem, arm = self.problem(cell), self.contrast.arm(cell.arm)
        parent, masks = None, None
        if arm.trained and (parent := self._parent(cell, arm, seed)) is None:
            return None
        if arm.masks and (masks := self._source(cell, arm, seed)) is None:
            return None
        return Spec(
            problem=problem,
            recipe=None if arm.recipe is None else arm.recipe.to_dict(),
            currency="units" if arm.density is not None else self.contrast.currency,
            keep=cell.keep,
            epochs=arm.epochs(problem),
            rate=rate,
            seed=seed,
            parent=parent,
            masks=masks,
        )

    def _parent(self, cell: Cell, arm: Arm, seed: int) -> str | None:
        """The key of the dense network of a seed that an arm starts from, once it is there."""
        dense = self.contrast.parent(arm)
        if dense is None:
            raise SpecError(
                f"contrast {self.contrast.name}: {arm.name!r} starts from a dense network; with_baselines adds it"
            )
        return self._made(Cell(cell.problem, dense.name, 1.0), seed)

    def _source(self, cell: Cell, arm: Arm, seed: int) -> str | None:
        """The key of the run of a seed whose masks an arm takes over at a point, once it is there."""
        source = self.contrast.arm(arm.masks)
        return self._made(self._cell(cell.problem, source.name, cell.keep), seed)

    def _made(self, cell: Cell, seed: int) -> str | None:
        """The key of a run at the chosen rate, once it is there."""
        rate = self.rate(cell)
        keyed = None if rate is None else self._keyed(cell, rate, seed)
        run = None if keyed is None else self.runs.get(keyed[1])
        return None if keyed is None or run is None or run.record is None else keyed[1]

    def rate(self, cell: Cell) -> float | None:
        """The rate that held-out accuracy chose among those that ran through; None while some are not over."""
        if cell not in self._rates:
            self._rates[cell] = self._rate(cell)
        return self._rates[cell]

    def _rate(self, cell: Cell) -> float | None:
        rates, first = self.rates(cell), self.tier.seeds[0]
        if len(rates) == 1:
            return rates[0]
        if (chooses := self._chooses(cell)) != cell:
            return self.rate(chooses)
        found: dict[float, float] = {}
        for rate in rates:
            run = self.run(cell, rate, first)
            if run is None:
                return None
            if run.record is not None:
                found[rate] = run.record.valid
        return max(found, key=lambda r: found[r]) if found else None

    def _chooses(self, cell: Cell) -> Cell:
        """The cell whose runs choose the rate of this one."""
        points = self.points(self.contrast.arm(cell.arm))
        return cell if self.tier.tuned == "cell" else replace(cell, keep=points[len(points) // 2])

    def wanted(self, cell: Cell) -> list[tuple[Spec, str]]:
        """The runs of a cell as far as they can be named now, with their keys."""
        first, *others = self.tier.seeds
        rate, chooses = self.rate(cell), self._chooses(cell) == cell
        tried = [self._keyed(cell, r, first) for r in self.rates(cell) if chooses or r == rate]
        chosen = [] if rate is None else [self._keyed(cell, rate, seed) for seed in others]
        return [s for s in (*tried, *chosen) if s is not None]

    def due(self) -> list[Spec]:
        """The runs that can be made now and are not there; dense networks first, each once."""
        found = {k: s for cell in self.every() for s, k in self.wanted(cell) if k not in self.runs}
        return sorted(found.values(), key=lambda s: (s.recipe is not None, s.parent is not None))

    @property
    def planned(self) -> int:
        """How many runs it takes in all (an upper bound: cells that are the same run are counted once only later)."""
        tried = {c: len(self.rates(c)) if self._chooses(c) == c else 1 for c in self.every()}
        return sum(n + len(self.tier.seeds) - 1 for n in tried.values())

    # What was found

    def records(self, cell: Cell) -> dict[int, Record]:
        """The runs of a cell at the chosen rate, by seed."""
        rate = self.rate(cell)
        found = {}
        for seed in self.tier.seeds if rate is not None else ():
            run = self.run(cell, rate or 0.0, seed)
            if run is not None and run.record is not None:
                found[seed] = run.record
        return found

    def all_records(self) -> list[tuple[Cell, int, Record]]:
        """Every run that the results rest on."""
        return [(cell, seed, r) for cell in self.every() for seed, r in self.records(cell).items()]

    def unequal(self) -> list[str]:
        """Runs that began with other weights than they should have: nothing is concluded while there are any."""
        return self._unequal

    @cached_property
    def _unequal(self) -> list[str]:
        rows = self.all_records()
        return mixed((self._begins(c), seed, self.contrast.arm(c.arm).trained, r.initial) for c, seed, r in rows)

    def _begins(self, cell: Cell) -> str:
        """What the weights that a run begins with depend on beside its seed, in words."""
        arm, base, own = self.contrast.arm(cell.arm), self.problems[cell.problem], self.problem(cell)
        if arm.trained:
            return f"{cell.problem} {arm.origin or ''}".rstrip()
        return cell.problem if own.begins() == base.begins() else f"{cell.problem} ({own.begins()})"

    def values(self, problem: str, arm: str, keep: float, metric: str) -> dict[int, float]:
        """A metric of a cell by seed; an arm with a density of its own counts at every point."""
        measure = METRICS[metric][0]
        taken = {seed: measure(r) for seed, r in self.records(self._cell(problem, arm, keep)).items()}
        return {seed: v for seed, v in taken.items() if v is not None}

    def _cell(self, problem: str, arm: str, keep: float) -> Cell:
        own = self.contrast.arm(arm).density
        return Cell(problem, arm, keep if own is None else own)

    def judged(self, claim: Claim, problem: str = "") -> claims.Verdict:
        """What the runs say of a claim, on all problems or one.

        Differences are taken between runs of one problem, point and seed, and averaged over problems and points within
        a seed; the verdict is `prunus.lab.claims.compared` over seeds. Points that lack a seed are left out.
        """
        if claim.exact:
            return self._exact(claim, problem)
        gaps: dict[int, list[float]] = {}
        for name in (problem,) if problem else self.problems:
            for keep in self.tier.points(self.contrast.points):
                if claim.at and keep not in claim.at:
                    continue
                left = self.values(name, claim.left, keep, claim.metric)
                right = self.values(name, claim.right, keep, claim.metric) if claim.right else dict.fromkeys(left, 0.0)
                both = set(left) & set(right)
                if both == set(self.tier.seeds):
                    for seed in both:
                        gaps.setdefault(seed, []).append(left[seed] - right[seed])
        means = {seed: mean(g) for seed, g in gaps.items()}
        verdict = claims.compared(means, dict.fromkeys(means, 0.0), claim.margin)
        return self._doubted(verdict)

    def _exact(self, claim: Claim, problem: str = "") -> claims.Verdict:
        """An exact claim: over the pairs of runs that there are, of one problem, point and seed each."""
        measure, found, seeds = PAIRS[claim.metric][0], list[float](), set[int]()
        for name in (problem,) if problem else self.problems:
            for keep in self.tier.points(self.contrast.points):
                if claim.at and keep not in claim.at:
                    continue
                left, right = (self.records(self._cell(name, a, keep)) for a in (claim.left, claim.right))
                for seed in set(left) & set(right):
                    value = measure(left[seed], right[seed])
                    found += [] if value is None else [value]
                    seeds |= set() if value is None else {seed}
        return self._doubted(claims.exact(found, len(seeds), none=claim.exact == "none"))

    def _doubted(self, verdict: claims.Verdict) -> claims.Verdict:
        if self.unequal():
            return replace(verdict, word="inconclusive", told="runs began with different weights: " + verdict.told)
        return verdict
