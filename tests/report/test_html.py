from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser

import pytest

from prunus.report import Report
from tests.report.sample import method, report

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(1)</script>\"'&amp;{{ 7 * 7 }}</style><!-- -->"


class Page(HTMLParser):
    """Checks the nesting and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ratios: list[str] = []
        self._ratio: int | None = None
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.stack.append(tag)
        if dict(attrs).get("class") == "ratio":
            self._ratio = len(self.stack)
            self.ratios.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]} at line {self.getpos()[0]}"
        if self._ratio == len(self.stack):
            self._ratio = None
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if "script" not in self.stack and "style" not in self.stack:
            self.words.append(data)
        if self._ratio is not None:
            self.ratios[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text() -> str:
    return report().html()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def sparse_report() -> Report:
    """Everything that may be absent is."""
    bare = method(
        accuracy_before=None,
        accuracy_pruned=None,
        accuracy_after=None,
        macs_dense=None,
        macs_kept=None,
        macs_nonzero=None,
        latency_dense=None,
        latency=None,
        latency_ratio=None,
        layers=[],
        notes=[],
        taxonomy={},
        budget="",
    )
    empty = {"curves": [], "commands": [], "notes": [], "dataset": {}, "network": {}, "environment": {}}
    return report().model_copy(update={"methods": [bare], **empty})


def test_well_formed(page: Page) -> None:
    assert page.stack == []
    assert len(page.named("h1")) == 1 and len(page.named("main")) == 1


def test_nothing_is_loaded_from_anywhere(text: str, page: Page) -> None:
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith("#") or value == "data:,", f"<{tag} {name}={value!r}>"
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(m for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_the_policy_allows_exactly_the_script_that_is_there(text: str, page: Page) -> None:
    import base64
    import hashlib

    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in str(policy["content"])
    assert len(page.named("script")) == 1


def test_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.named("a")} <= set(ids)


def test_every_ratio_names_its_denominator(page: Page) -> None:
    methods = len(report().methods)
    # On each tile four, in the size table four, in the latency table one.
    assert len(page.ratios) == methods * 9
    for shown in page.ratios:
        assert re.fullmatch(r"[\d.,∞]+×?\s*dense( time)? / (kept|deployed|nonzero|pruned( time)?)", shown), shown


def test_every_multiplication_sign_is_part_of_a_ratio_or_its_quartiles(page: Page) -> None:
    ratios = sum(r.count("×") for r in page.ratios)
    quartiles = 2 * len(report().methods)
    verdicts = page.text.count("× faster") + page.text.count("× slower")
    other = page.text.count("1 × 28 × 28") * 2 + page.text.count("× 10")
    assert page.text.count("×") == ratios + quartiles + verdicts + other


def test_figures_are_those_of_the_records(page: Page) -> None:
    for shown in ("91.83 %", "91.21 %", "27.7 k", "9.71×", "161 kB", "21.5 ms", "20.7 to 22.6 ms", "not faster"):
        assert shown in page.text, shown
    assert "1.63× faster" in page.text and "2.3 × 10⁻¹⁴" in page.text


def test_accessible(page: Page) -> None:
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("caption")) == len(page.named("table")) > 4
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.named("th"))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label")), svg


def test_headings_do_not_skip_a_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_names_cannot_break_out() -> None:
    hostile = method(
        name=HOSTILE,
        title=HOSTILE,
        source=HOSTILE,
        taxonomy={"structure": HOSTILE, "when": HOSTILE, HOSTILE: HOSTILE},
        budget=HOSTILE,
        deviations=HOSTILE,
        notes=[HOSTILE],
        layers=[{"layer": HOSTILE, "weights": 4, "kept": 2, "kind": HOSTILE}],
    )
    curve = {"name": HOSTILE, "points": [{"sparsity": 0.5, "accuracy": 0.5}], "note": HOSTILE}
    data = report().model_dump() | {"title": HOSTILE, "commands": [HOSTILE], "network": {HOSTILE: HOSTILE}}
    found = Page(Report.model_validate(data | {"methods": [hostile.model_dump()], "curves": [curve]}).html())
    assert found.stack == []
    assert len(found.named("script")) == 1 and len(found.named("style")) == 1
    assert (
        "alert(1)" in found.text and "{{ 7 * 7 }}" in found.text and "49" not in found.text.split("Budget here")[1][:80]
    )


def test_what_was_not_measured_is_said() -> None:
    found = Page(sparse_report().html())
    assert found.stack == []
    assert "No accuracy was measured." in found.text and "No latency was measured." in found.text
    assert found.text.count("not measured") >= 6
    assert "nan" not in found.text.lower().split() and "None" not in found.text


def test_nan_is_named_and_not_drawn() -> None:
    changed = method(accuracy_after=math.nan, verified_error=math.nan)
    found = report().model_copy(update={"methods": [changed, *report().methods[1:]]}).html()
    assert "not a number" in Page(found).text
    svgs = re.findall(r"<svg.*?</svg>", found, re.S)
    assert svgs and not any(re.search(r'="[^"]*\b(nan|inf)\b', svg) for svg in svgs)


def test_no_methods() -> None:
    found = Page(report().model_copy(update={"methods": [], "curves": []}).html())
    assert found.stack == []


def test_many_methods_share_colours_and_keep_their_own_cards() -> None:
    many = [method(f"m{i}", title=f"Method {i}") for i in range(30)]
    found = Page(report().model_copy(update={"methods": many}).html())
    ids = {attrs.get("id") for _, attrs in found.tags}
    assert {f"m{i}" for i in range(1, 31)} <= ids


def test_the_taxonomy_has_a_place_for_what_it_does_not_know() -> None:
    odd = method(taxonomy={"structure": "spiral", "when": "yesterday"})
    found = Page(report().model_copy(update={"methods": [odd]}).html())
    assert "Spiral" in found.text and "Yesterday" in found.text


def test_the_same_report_makes_the_same_page(text: str) -> None:
    assert report().html() == text
