"""The report's tables as GitHub Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prunus.report import figures, words
from prunus.report.plots import titled
from prunus.report.records import Latency, MethodRecord, Report

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~]|&(?=#?\w+;))")


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands, on one line, also in a table cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A pipe table of cells that are Markdown already; columns in `right` are aligned right."""
    rule = ["---:" if i in right else ":---" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows)) + "\n"


def ratio(dense: int | None, kept: int | None) -> str:
    """A quotient for a column whose heading names the denominator."""
    return figures.times(figures.quotient(dense, kept))


def summary(methods: Sequence[MethodRecord]) -> str:
    """One line per method: accuracy, and every ratio under a heading that names its denominator."""
    rows = [
        (
            escaped(m.title),
            figures.percent(m.accuracy_before),
            figures.percent(m.accuracy_pruned),
            figures.percent(m.accuracy_after),
            ratio(m.params_dense, m.params_kept),
            ratio(m.macs_dense, m.macs_kept),
            ratio(m.bytes_dense, m.bytes_kept),
            escaped(m.latency_ratio.verdict) if m.latency_ratio else figures.MISSING,
        )
        for m in methods
    ]
    header = (
        "Method",
        "Accuracy, dense",
        "right after pruning",
        "delivered",
        "Parameters, dense / kept",
        "MACs run, dense / deployed",
        "File, dense / pruned",
        "Latency",
    )
    return table(header, rows, right=range(1, 7))


def sizes(methods: Sequence[MethodRecord]) -> str:
    """What is kept, of what the dense network has."""

    def pair(kept: int | None, dense: int | None, unit: str = "") -> str:
        return figures.MISSING if kept is None else f"{figures.si(kept, unit)} of {figures.si(dense, unit)}"

    rows = [
        (
            escaped(m.title),
            pair(m.params_kept, m.params_dense),
            pair(m.macs_kept, m.macs_dense),
            pair(m.macs_nonzero, m.macs_dense),
            pair(m.bytes_kept, m.bytes_dense, "B"),
            "yes" if m.compacted else "no",
        )
        for m in methods
    ]
    header = ("Method", "Parameters kept", "MACs run", "MACs on nonzero weights", "File on disk", "Cut out")
    return table(header, rows, right=range(1, 5))


def latencies(methods: Sequence[MethodRecord]) -> str:
    """Median and inter-quartile range of dense and pruned, their ratio, and the verdict."""

    def time(latency: Latency | None) -> str:
        if latency is None:
            return figures.MISSING
        return f"{figures.milliseconds(latency.median_ms)} ({figures.span(latency.q25_ms, latency.q75_ms)})"

    rows = []
    for m in methods:
        if m.latency is None:
            continue
        found = m.latency_ratio
        shown = (
            f"{figures.times(found.median)} ({figures.times(found.q25)} to {figures.times(found.q75)})"
            if found
            else figures.MISSING
        )
        told = escaped(found.verdict) if found else figures.MISSING
        rows.append(
            (escaped(m.title), time(m.latency_dense), time(m.latency), shown, told, escaped(conditions(m.latency)))
        )
    header = ("Method", "Dense", "Pruned", "Dense time / pruned time", "In words", "Measured on")
    return table(header, rows, right=(1, 2, 3)) if rows else "No latency was measured.\n"


def conditions(latency: Latency) -> str:
    """Device, threads, batch and number of runs."""
    threads = f"{latency.threads} thread{'' if latency.threads == 1 else 's'}"
    batch = "" if latency.batch is None else f", batch {latency.batch}"
    return f"{latency.device}, {threads}{batch}, {latency.runs} runs"


def document(report: Report) -> str:
    """The whole report."""
    parts = [f"# {escaped(report.title)}\n", f"{escaped(report.subtitle)}\n"]
    parts += ["## Summary\n", "Every ratio is dense / pruned: above 1, the pruned network needs less.\n"]
    parts += [summary(report.methods), "## Size and arithmetic\n", sizes(report.methods)]
    parts += ["## Latency\n", "Median of one forward pass, and the middle half of the runs (inter-quartile range).\n"]
    parts.append(latencies(report.methods))
    if report.curves:
        rows = [
            (
                escaped(titled(report, curve.name)),
                figures.percent(point.sparsity, 1),
                figures.percent(point.accuracy),
                "" if point.std is None else figures.percent(point.std),
            )
            for curve in report.curves
            for point in curve.points
        ]
        parts += ["## Accuracy against sparsity\n", table(("Curve", "Sparsity", "Accuracy", "± std"), rows, (1, 2, 3))]
    parts.append("## Methods\n")
    parts += [_card(m) for m in report.methods]
    parts.append("## How this was made\n")
    for title, facts in (("Data", report.dataset), ("Network", report.network), ("Environment", report.environment)):
        rows2 = [(escaped(key), escaped(str(value))) for key, value in facts.items()]
        if rows2:
            parts.append(table((title, ""), rows2))
    if report.commands:
        parts.append("\n".join(f"    {line}" for command in report.commands for line in command.splitlines()) + "\n")
    if report.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in report.notes) + "\n")
    parts.append(f"Prunus {escaped(report.version)}, {escaped(report.created)}, seed {report.seed}.\n")
    return "\n".join(parts)


def _card(m: MethodRecord) -> str:
    lines = [
        f"### {escaped(m.title)}\n",
        f"`{m.name.replace('`', '')}`, {escaped(m.source)}. {escaped(words.sentence(m.taxonomy))}\n",
    ]
    told = [
        ("Budget", m.budget),
        ("Use it when", m.use_when),
        ("Avoid it when", m.avoid_when),
        ("Differs from its paper", m.deviations),
    ]
    if m.verified_error is not None:
        error = figures.scientific(m.verified_error)
        told.append(("Verified", f"the outputs differ by at most {error} from the masked network's"))
    lines += [f"- **{label}:** {escaped(text)}" for label, text in told if text]
    lines += [f"- {escaped(note)}" for note in m.notes]
    return "\n".join(lines) + "\n"
