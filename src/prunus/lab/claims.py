"""Claims about methods, judged by runs: differences seed by seed, their intervals, and a word for each.

>>> better = compared({0: 91.0, 1: 91.4, 2: 91.1}, {0: 90.1, 1: 90.2, 2: 90.1})
>>> better.word, better.seeds
('supported', 3)
>>> compared({0: 91.0, 1: 90.0}, {0: 90.5, 1: 90.4}).word
'inconclusive'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

Word = Literal["supported", "refuted", "inconclusive", "too few runs"]

# One-sided 95 % points of Student's distribution, by the number of seeds.
STUDENT = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}


@dataclass(frozen=True)
class Verdict:
    """What runs say of a claim: a word, what it rests on, and how many seeds that was.

    `gap`, `low` and `high` are a mean difference and its interval, where the claim is about one.
    """

    word: Word
    told: str
    seeds: int
    gap: float | None = None
    low: float | None = None
    high: float | None = None


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; NaN where there is one seed only."""
    return stdev(values) if len(values) > 1 else math.nan


def interval(gaps: Sequence[float]) -> tuple[float, float]:
    """The 90 % interval of the mean of differences that are normal (Student 1908)."""
    far = STUDENT[min(len(gaps), max(STUDENT))] * stdev(gaps) / math.sqrt(len(gaps))
    return mean(gaps) - far, mean(gaps) + far


def compared(left: Mapping[int, float], right: Mapping[int, float], margin: float = 0.0) -> Verdict:
    """Whether `left` lies above `right` by more than the margin, given their numbers by seed.

    Numbers of one seed belong together (same initial weights, same data in the same order), so differences are taken
    within seeds. Supported where the whole 90 % interval of their mean lies above the margin, refuted where it lies
    below, inconclusive otherwise; more seeds than one are needed.
    """
    seeds = sorted(set(left) & set(right))
    if len(seeds) < 2:
        return Verdict("too few runs", "", len(seeds))
    gaps = [left[s] - right[s] for s in seeds]
    low, high = interval(gaps)
    word: Word = "supported" if low > margin else "refuted" if high < margin else "inconclusive"
    told = f"{mean(gaps):+.2f}, 90 % interval {low:+.2f} to {high:+.2f}, claimed above {margin:+.2f}"
    return Verdict(word, told, len(seeds), mean(gaps), low, high)


def on_target(found: Mapping[int, float], target: float, within: float) -> Verdict:
    """Whether numbers by seed lie within a distance of a target: all of them (supported), or none (refuted)."""
    if len(found) < 2:
        return Verdict("too few runs", "", len(found))
    hits = [abs(v - target) <= within for v in found.values()]
    told = ", ".join(f"{v:.4f}" for v in found.values()) + f", claimed {target:g} within {within:g}"
    return Verdict("supported" if all(hits) else "inconclusive" if any(hits) else "refuted", told, len(found))


def exact(found: Sequence[float], seeds: int, *, none: bool) -> Verdict:
    """Whether a number is 0 in every pair of runs (`none`), or in none of them; no interval, since it is no estimate.

    That it is always 0 is refuted by one pair; that it never is, by all of them: some leave it open. More seeds than
    one are needed.
    """
    if not found:
        return Verdict("too few runs", "", seeds)
    hits = sum((v == 0) == none for v in found)
    word: Word = "supported" if hits == len(found) else "refuted" if none or not hits else "inconclusive"
    told = f"{'none' if none else 'some'} in {hits} of {len(found)} pairs of runs, on average {mean(found):.2f}"
    return Verdict(word if seeds > 1 else "too few runs", told, seeds)
