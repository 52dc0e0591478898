"""Numbers as people read them: with a unit, three or so significant digits, and words where there is no number."""

from __future__ import annotations

import math

Number = int | float  # spelled out, because run-time type checkers take float literally

MISSING = "not measured"
NO_NUMBER = "not a number"


def unusable(value: Number | None) -> str | None:
    """The words that stand for a number that is none; None where it is one."""
    if value is None:
        return MISSING
    return NO_NUMBER if math.isnan(value) else None


def _digits(value: Number) -> str:
    """Three significant digits, without an exponent, for 1 <= value < 1000."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def exact(value: int | None) -> str:
    """270896 -> 270,896."""
    return MISSING if value is None else f"{value:,}"


def si(value: Number | None, unit: str = "") -> str:
    """270896 -> 271 k; powers of 1000. Numbers below 10,000 are written out."""
    if words := unusable(value):
        return words
    assert value is not None
    space = " " if unit else ""
    if abs(value) < 10_000 and float(value).is_integer():
        return f"{value:,.0f}{space}{unit}"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size)} {prefix}{unit}"
    return f"{_digits(value)}{space}{unit}"


def size(value: int | None) -> str:
    """1090000 -> 1.09 MB; decimal units, 1 kB = 1000 bytes."""
    return si(value, "B")


def percent(value: Number | None, decimals: int = 2) -> str:
    """0.9132 -> 91.32 %."""
    return unusable(value) or f"{100 * (value or 0.0):.{decimals}f} %"


def share(kept: Number | None, dense: Number | None) -> Number | None:
    """kept / dense, from 0 to 1; None where it is undefined."""
    return kept / dense if kept is not None and dense else None


def points(before: Number | None, after: Number | None) -> str:
    """Difference of two accuracies in percentage points, signed; empty where one is missing."""
    if before is None or after is None or math.isnan(after - before):
        return ""
    change = 100 * (after - before)
    return "±0.00" if abs(change) < 0.005 else f"{'+' if change > 0 else '−'}{abs(change):.2f}"


def quotient(dense: Number | None, kept: Number | None) -> Number | None:
    """dense / kept; infinite if nothing is kept, None where it is undefined."""
    if dense is None or kept is None or dense == 0:
        return None
    return dense / kept if kept else math.inf


def times(value: Number | None) -> str:
    """10.03 -> 10.0×; a ratio without its denominator, which the caller puts beside it."""
    if words := unusable(value):
        return words
    assert value is not None
    if math.isinf(value):
        return "∞"
    return f"{_digits(value)}×" if value >= 0.01 else f"{value:.2g}×"


def milliseconds(value: Number | None) -> str:
    """3.2104 -> 3.21 ms."""
    return unusable(value) or f"{_short(value or 0.0)} ms"


def span(low: Number, high: Number) -> str:
    """Inter-quartile range in ms: 3.1 to 3.4 ms."""
    return f"{_short(low)} to {_short(high)} ms"


def _short(value: Number) -> str:
    return _digits(value) if value >= 1 else f"{value:.3f}"


def duration(seconds: Number) -> str:
    """Wall-clock time: 0.42 s, 12.3 s, 3 min 20 s, 1 h 2 min."""
    if math.isnan(seconds):
        return NO_NUMBER
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def scientific(value: Number | None) -> str:
    """2.3e-13 -> 2.3 × 10⁻¹³; 0 -> 0 (bit for bit)."""
    if words := unusable(value):
        return words
    assert value is not None
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"
