from __future__ import annotations

from prunus.report import contrast_markdown
from tests.report.contrast_sample import bare, record
from tests.report.test_html import HOSTILE


def rows(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_all_numbers_and_verdicts() -> None:
    text = contrast_markdown.document(record())
    assert "**supported**" in text and "**refuted**" in text and "too few runs" in text
    assert ["SNIP, weights", "93.84", "73.09"] in rows(text)
    (first, *_) = [r for r in rows(text) if r[0] == "SNIP, weights" and len(r) == 12]
    assert first[1:5] == ["50", "89.00 ± 0.10", "89.10", "88.90, 89.00, 89.10"] and first[7] == "2.00×"
    assert ["SNIP, weights", "0.41", "0.62"] in rows(text)
    for shown in ("directions only", "ValueError: no such thing", "deadbeef", "prunus contrast report structure"):
        assert shown in text


def test_tables_are_regular() -> None:
    for text in (
        contrast_markdown.document(record()),
        contrast_markdown.document(bare()),
        contrast_markdown.index({"structure": record(), "pace": bare()}),
    ):
        for block in text.split("\n\n"):
            widths = {len(cells) for cells in rows(block)}
            assert len(widths) <= 1, block
        assert "None" not in text and "nan" not in text.lower().split()


def test_names_cannot_break_out() -> None:
    text = contrast_markdown.document(record(title=HOSTILE, notes=[HOSTILE], protocol={HOSTILE: HOSTILE}))
    assert "<script>" not in text and "\\<script\\>" in text


def test_the_index_leads_to_every_contrast() -> None:
    text = contrast_markdown.index({"structure": record(), "pace": bare()})
    assert "](structure.md)" in text and "](pace.md)" in text
    assert text.index("## 7.1") < text.index("](structure.md)") < text.index("## 7.2") < text.index("## 7.9")
    assert "1 supported, 1 refuted, 1 too few runs" in text
