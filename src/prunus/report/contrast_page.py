"""A contrast as a page that holds everything it needs, and the index of all of them by the survey's sections."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment
from markupsafe import Markup

from prunus.report import contrast_data as data
from prunus.report import contrast_plots as plots
from prunus.report import figures, offline, words
from prunus.report.contrast_records import ContrastRecord, PointRecord, QuotedTable
from prunus.report.plots import marker_svg
from prunus.report.svg import STYLE, variables

SECTIONS = {
    "7.1": "Unstructured and structured pruning",
    "7.2": "One-shot and iterative pruning",
    "7.3": "Data-free and data-driven pruning",
    "7.4": "Initialized and pretrained weights",
    "7.5": "Training from scratch and fine-tuning",
    "7.6": "Original task and transfer",
    "7.7": "Static and dynamic pruning",
    "7.8": "Layer-wise weight density",
    "7.9": "Levels of supervision",
}
CURRENCY = {"units": "ranked units", "params": "parameters", "macs": "multiply-accumulates"}
ALIKE = (
    "Weights that both masks keep over weights that either keeps: 1 where they are the same. Arms are compared run by "
    "run of one seed; on the diagonal, runs of one arm with different seeds."
)
MOODS = {"supported": "good", "refuted": "bad"}


def page(record: ContrastRecord, home: str = "index.html") -> str:
    """The whole document; `home` is the address of the index. Complete without JavaScript, which adds what the pointer
    and the arrow keys do; showing and hiding are style alone.
    """
    environment = _environment()
    script, policy = offline.script(environment, "report.js", "contrast.js")
    look = plots.looks(record)
    return environment.get_template("contrast.html").render(
        **_shared(policy, script),
        r=record,
        home=home,
        look=look,
        place={name: i for i, name in enumerate(look)},
        reach=reaches(record),
        beside=[(table, [ours(record, p.name, table) for p in record.problems]) for table in record.quoted],
        plain=[] if record.quoted else [ours(record, p.name) for p in record.problems],
        shown=shown_in_survey(record.section),
    )


def index(records: Mapping[str, ContrastRecord]) -> str:
    """The page over all contrasts: address of each one's page -> its record."""
    environment = _environment()
    script, policy = offline.script(environment, "report.js")
    return environment.get_template("contrasts.html").render(
        **_shared(policy, script),
        sections=by_section(records),
        places=places(records),
        records=records,
        tiers={r.tier: r.says for r in records.values()},
        counts=counted([c.verdict.word for r in records.values() for c in r.claims]),
    )


def _shared(policy: str, script: Markup) -> dict[str, object]:
    return {
        "policy": policy,
        "script": script,
        "style": Markup(STYLE + plots.STYLE),
        "light": Markup(variables()),
        "dark": Markup(variables(dark=True)),
    }


@cache
def _environment() -> Environment:
    environment = offline.environment()
    environment.globals.update(
        f=figures,
        words=words,
        plots=plots,
        data=data,
        moods=MOODS,
        alike=ALIKE,
        currency=CURRENCY,
        marker_svg=marker_svg,
        counted=counted,
        plural=plural,
        isinf=math.isinf,
    )
    return environment


def plural(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(found: Sequence[str]) -> dict[str, int]:
    """Verdict -> how often, the clear ones first; those that do not occur are left out."""
    order = ("supported", "refuted", "inconclusive", "too few runs")
    return {word: found.count(word) for word in order if word in found}


def reaches(record: ContrastRecord) -> dict[str, float]:
    """Unit -> half the width of the axis on which all intervals in this unit are drawn."""
    found: dict[str, float] = {}
    for claim in record.claims:
        for j in (claim.verdict, *claim.by_problem.values()):
            ends = [abs(v) for v in (j.low, j.high, claim.margin) if v is not None and math.isfinite(v)]
            found[claim.unit] = max([found.get(claim.unit, 0.0), *ends])
    return {unit: 1.08 * reach for unit, reach in found.items()}


@dataclass(frozen=True)
class Ours:
    """This repository's table beside one of the survey's: per arm and fraction kept the point, or None."""

    problem: str
    network: str
    data: str
    keeps: tuple[float, ...]
    rows: tuple[tuple[str, tuple[PointRecord | None, ...]], ...]
    dense: PointRecord | None


def ours(record: ContrastRecord, problem: str, table: QuotedTable | None = None) -> Ours:
    """The arms that the survey's table has, in its order, or all arms but baselines where there is no table."""
    own = [a.name for a in record.arms if a.recipe and not a.baseline]
    asked = [row[0] for row in table.rows if row] if table else own
    names = [n for n in asked if n in {a.name for a in record.arms}] or own
    kept = {name: {p.keep: p for p in record.found(problem, name)} for name in names}
    keeps = tuple(sorted({k for by in kept.values() for k in by}, reverse=True))
    dense = next((p for a in record.dense() for p in record.found(problem, a.name)), None)
    about = next(p for p in record.problems if p.name == problem)
    rows = tuple((name, tuple(by.get(k) for k in keeps)) for name, by in kept.items())
    return Ours(problem, about.network, about.data, keeps, rows, dense)


def shown_in_survey(section: str) -> list[str]:
    """The tables and figures that a section's name points to.

    >>> shown_in_survey("7.3, table 8, figure 8")
    ['table 8', 'figure 8']
    """
    return re.findall(r"(?:table|figure) \d+", section)


def by_section(
    records: Mapping[str, ContrastRecord],
) -> list[tuple[str, str, list[tuple[str, ContrastRecord]]]]:
    """(number, title, pages) of the survey's section 7; what belongs to none of its parts comes last."""
    known = {
        # What the section itself shows comes before what only belongs there.
        number: sorted(
            ((a, r) for a, r in records.items() if number in r.section),
            key=lambda found: (not found[1].section.startswith(f"{number},"), found[1].section),
        )
        for number in SECTIONS
    }
    rows = [(number, title, known[number]) for number, title in SECTIONS.items()]
    placed = {address for found in known.values() for address, _ in found}
    rest = [(a, r) for a, r in records.items() if a not in placed]
    return [*rows, *([("", "Beyond section 7", rest)] if rest else [])]


def places(records: Mapping[str, ContrastRecord]) -> list[tuple[str, list[tuple[str, ContrastRecord]]]]:
    """The survey's tables and figures, and the pages that show ours beside them."""
    found: dict[str, list[tuple[str, ContrastRecord]]] = {}
    for address, record in records.items():
        for name in shown_in_survey(record.section):
            found.setdefault(name, []).append((address, record))
    # Tables before figures, each by its number.
    return sorted(found.items(), key=lambda item: (item[0].startswith("figure"), int(item[0].split()[1])))
