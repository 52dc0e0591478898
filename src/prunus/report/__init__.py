"""Results as a page, a text and a table: records in, HTML, Markdown, JSON, SVG and terminal tables out.

Nothing here measures: every number shown was put into a record by whoever measured it.

>>> from prunus.report import Report
>>> report = Report.from_json(text)     # doctest: +SKIP
>>> report.write("runs/first")          # doctest: +SKIP
"""

from __future__ import annotations

from prunus.report.records import Curve, Latency, LayerDensity, MethodRecord, Point, Ratio, Report

__all__ = ["Curve", "Latency", "LayerDensity", "MethodRecord", "Point", "Ratio", "Report"]
