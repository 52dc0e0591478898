from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from prunus.report import figures, words
from prunus.report.markdown import escaped
from prunus.report.methods_table import methods_markdown
from prunus.report.tables import footnotes, print_table
from tests.report.sample import latency, method, report


def tables(text: str) -> list[list[list[str]]]:
    """The pipe tables of a Markdown text, cell by cell."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        inside = line.startswith("|")
    return found


def test_markdown_tables_are_rectangular() -> None:
    found = tables(report().markdown())
    assert len(found) >= 5
    for rows in found:
        assert len({len(row) for row in rows}) == 1
        assert all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])


def test_markdown_summary() -> None:
    summary = tables(report().markdown())[0]
    assert summary[0][4:7] == ["Parameters, dense / kept", "MACs run, dense / deployed", "File, dense / pruned"]
    row = next(row for row in summary if row[0] == "SNIP")
    assert row[1:] == ["91.83 %", "not measured", "89.87 %", "9.71×", "1.00×", "6.96×", "not faster"]


def test_markdown_shows_hostile_names_as_text() -> None:
    name = "a|b <img src=x> [c](d) `e` *f*\n# g"
    text = report().model_copy(update={"methods": [method(title=name, notes=[name])]}).markdown()
    assert "<img" not in text.replace("\\<img", "")
    assert all(len(row) == len(tables(text)[0][0]) for row in tables(text)[0])
    assert "\n# g" not in text


def test_escaped() -> None:
    assert escaped("a & b, R&D") == "a & b, R&D"
    assert escaped("&lt; a_b") == "\\&lt; a\\_b"


def test_markdown_without_measurements() -> None:
    bare = method(latency=None, latency_dense=None, latency_ratio=None, macs_kept=None, accuracy_after=None)
    text = report().model_copy(update={"methods": [bare], "curves": []}).markdown()
    assert "No latency was measured." in text and "not measured" in text and "None" not in text


def printed(width: int, **updates: object) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=None)
    print_table(report().model_copy(update=updates), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_table_fits_uncut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = re.sub(r"\x1b\[[\d;]*m", "", printed(width))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for shown in (
        "91.21 %",
        "was 91.83 %",
        "−0.62 pp",
        "of 1.10 MB",
        "9.71×",
        "20.7 to 22.6 ms",
        "not faster",
        "dense/kept",
    ):
        assert shown in text, shown


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile(r"\x1b\[[\d;]*3[0-7]m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured.search(printed(100))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(printed(100))


def test_terminal_markup_in_names_is_text() -> None:
    assert "[red]x[/red]" in re.sub(r"\x1b\[[\d;]*m", "", printed(120, methods=[method(title="[red]x[/red]")]))


def test_terminal_says_what_is_missing() -> None:
    bare = method(latency=None, latency_dense=None, latency_ratio=None, macs_kept=None, accuracy_after=None)
    text = printed(100, methods=[bare.model_copy(update={"accuracy_pruned": None})])
    assert text.count("not measured") == 4


def test_footnotes_name_every_condition() -> None:
    other = method(latency=latency(1.0, 0.1).model_copy(update={"threads": 1, "batch": None, "device": "my_gpu"}))
    lines = footnotes(report().model_copy(update={"methods": [method(), other]}))
    assert "Latency: cpu, 2 threads, batch 32, 60 runs; my_gpu, 1 thread, 60 runs." in lines


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.si(270_896), "271 k"),
        (figures.si(9_999), "9,999"),
        (figures.si(999_950), "1.00 M"),
        (figures.si(17_560_000_000), "17.6 G"),
        (figures.si(0), "0"),
        (figures.si(None), "not measured"),
        (figures.size(1_090_000), "1.09 MB"),
        (figures.size(512), "512 B"),
        (figures.percent(0.9132), "91.32 %"),
        (figures.percent(float("nan")), "not a number"),
        (figures.points(0.92, 0.91), "−1.00"),
        (figures.points(0.91, 0.92), "+1.00"),
        (figures.points(0.91, 0.91), "±0.00"),
        (figures.points(None, 0.91), ""),
        (figures.times(9.996), "10.0×"),
        (figures.times(1.0), "1.00×"),
        (figures.times(250.4), "250×"),
        (figures.times(float("inf")), "∞"),
        (figures.times(None), "not measured"),
        (figures.milliseconds(0.1234), "0.123 ms"),
        (figures.milliseconds(3.2104), "3.21 ms"),
        (figures.duration(0.42), "0.42 s"),
        (figures.duration(200), "3 min 20 s"),
        (figures.duration(3725), "1 h 2 min"),
        (figures.scientific(2.3e-13), "2.3 × 10⁻¹³"),
        (figures.scientific(0.0), "0"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected


def test_quotient() -> None:
    assert figures.quotient(10, 4) == 2.5
    assert figures.quotient(10, 0) == float("inf")
    assert figures.quotient(None, 4) is None and figures.quotient(0, 0) is None


def test_sentence() -> None:
    told = words.sentence({"structure": "structured", "when": "during", "pace": "prune_and_grow", "scope": "local"})
    assert told == (
        "Removes whole channels, heads or blocks, during training, while growing others back. "
        "Each layer has its own share of the budget."
    )
    assert words.sentence({}) == "Removes weights."


def test_methods_markdown_covers_every_method() -> None:
    from prunus import methods

    names = methods.names()
    (rows,) = tables(methods_markdown([methods.get(n) for n in names], [methods.card(n) for n in names]))
    assert sorted(row[0] for row in rows[2:]) == sorted(f"`{n}`" for n in names)
    kinds = [row[2] for row in rows[2:]]
    assert kinds == sorted(kinds, key=list(words.STRUCTURE).index)


def test_methods_markdown_wants_pairs() -> None:
    from prunus import methods

    with pytest.raises(ValueError, match="shorter"):
        methods_markdown([methods.snip], [])
