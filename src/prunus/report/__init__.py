"""Results as a page, a text and a table: records in, HTML, Markdown, JSON, SVG and terminal tables out.

Nothing here measures: every number shown was put into a record by whoever measured it.
The records are imported on first use.

>>> from prunus.report import Report
>>> report = Report.from_json(text)     # doctest: +SKIP
>>> report.write("runs/first")          # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.report.records import Curve, Latency, LayerDensity, MethodRecord, Point, Ratio, Report

__all__ = ["Curve", "Latency", "LayerDensity", "MethodRecord", "Point", "Ratio", "Report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.records"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
