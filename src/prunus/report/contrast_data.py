"""The numbers behind a contrast's figures: comma-separated values, and links that hold them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence

from prunus.report.contrast_records import ContrastRecord

Cell = str | int | float | bool | None


def runs_csv(record: ContrastRecord, problem: str = "") -> str:
    """One line per run of the points, of one problem or all; accuracies as fractions, ratios dense over kept."""
    header = (
        *("problem", "arm", "baseline", "keep", "rate", "seed", "test", "top5", "valid", "untrained", "delta"),
        *("sparsity", "effective", "params_dense", "params_kept", "macs_dense", "macs_kept", "collapsed", "seconds"),
    )
    rows = (
        (
            *(p.problem, p.arm, record.arm(p.arm).baseline, p.keep, p.rate, r.seed, r.test, r.top5, r.valid),
            *(r.untrained, r.delta, r.sparsity, r.effective, p.params_dense, r.params_kept, p.macs_dense),
            *(r.macs_kept, " ".join(r.collapsed), r.seconds),
        )
        for p in record.points_found
        if problem in ("", p.problem)
        for r in p.runs
    )
    return table(header, rows)


def layers_csv(record: ContrastRecord, problem: str = "") -> str:
    """One line per run and layer."""
    rows = (
        (p.problem, p.arm, p.keep, run.seed, layer.name, layer.weights, kept)
        for p in record.points_found
        if problem in ("", p.problem)
        for layer in p.layers
        for run, kept in zip(p.runs, layer.kept, strict=True)
    )
    return table(("problem", "arm", "keep", "seed", "layer", "weights", "kept"), rows)


def claims_csv(record: ContrastRecord) -> str:
    """One line per claim and problem; an empty problem stands for all of them."""
    rows = (
        (c.id, c.text, problem, j.word, j.gap, j.low, j.high, c.margin, c.unit, j.seeds, c.survey)
        for c in record.claims
        for problem, j in (("", c.verdict), *c.by_problem.items())
    )
    return table(
        ("claim", "text", "problem", "verdict", "gap", "low", "high", "margin", "unit", "seeds", "survey"), rows
    )


def similarity_csv(record: ContrastRecord) -> str:
    """One line per point and pair of arms."""
    rows = (
        (s.problem, s.keep, left, right, value, s.chance)
        for s in record.similarity
        for left, values in zip(s.arms, s.overlap, strict=True)
        for right, value in zip(s.arms, values, strict=True)
    )
    return table(("problem", "keep", "left", "right", "overlap", "chance"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """RFC 4180 with line feeds; numbers as Python writes them, so that they are read back as the same ones."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else v for v in row] for row in rows])
    return out.getvalue()


def link(text: str) -> str:
    """A `data:` address that holds a table."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
