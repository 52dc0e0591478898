"""What an analysis found as a page and as a picture: whole, safe, readable."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from prunus.report.analysis import Analysis, Line, Plot, Table, columns
from prunus.report.analysis_page import page
from prunus.report.analysis_plots import Axis, plot_svg

SIGN = "<b>&amp; 1 < 2</b>"


def analysis(*plots: Plot) -> Analysis:
    table = Table("Numbers", ("name", "value", "count"), ((SIGN, 0.12345678, 12345), ("none", None, 0)))
    return Analysis(
        "layers",
        SIGN,
        "A source.",
        (SIGN,),
        (table,),
        plots,
        {"x": [1.0, math.nan]},
        notes=("a note",),
        facts={"seed": 3},
    )


def inside(svg: str) -> list[tuple[float, float]]:
    """The coordinates of circles."""
    return [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]*cx="([\d.-]+)" cy="([\d.-]+)"', svg)]


def test_the_page_has_everything_and_runs_nothing_it_is_told() -> None:
    plot = Plot(SIGN, "x", "y", (Line(SIGN, ((0.0, 1.0), (1.0, 2.0))),))
    text = page(analysis(plot))
    assert SIGN not in text and "&lt;b&gt;" in text and "default-src &#39;none&#39;" in text.replace("'", "&#39;")
    assert "12,345" in text and "0.1235" in text and "–" in text and "a note" in text and "<dt>seed</dt>" in text
    assert text.count("<svg") >= 2 and "data:text/csv" in text


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_within_the_plot_and_in_order(log: bool) -> None:
    points = tuple((10.0**-k, 2.0**-k) for k in range(5))
    svg = plot_svg(Plot("t", "x", "y", (Line("one", points), Line("two", points[:2])), log_x=log, log_y=log))
    ElementTree.fromstring(svg)
    found = inside(svg)[:5]
    assert all(0 < x < 920 and 0 < y < 400 for x, y in found)
    assert [x for x, _ in found] == sorted((x for x, _ in found), reverse=True)
    gaps = [a - b for (a, _), (b, _) in pairwise(found)]
    assert (max(gaps) - min(gaps) < 0.1) == log  # equal factors are equal distances


def test_what_has_no_place_on_an_axis_is_left_out() -> None:
    line = Line("a", ((1.0, math.nan), (2.0, 0.0), (3.0, 5.0), (4.0, 7.0)), apart=(0.0, 0.0, math.nan, 1.0))
    assert len(inside(plot_svg(Plot("t", "x", "y", (line,), log_y=True)))) == 2
    assert "nothing to plot" in plot_svg(Plot("t", "x", "y", (Line("a", ((1.0, math.inf),)),)))
    flat = Plot("t", "x", "y", (Line("a", ((0.0, 0.0), (0.0, 0.0))),), marks=((0.0, "here"),), percent_y=True)
    ElementTree.fromstring(plot_svg(flat))


def test_ticks_are_round_and_inside() -> None:
    for low, high, log in ((0.0, 1.0, False), (-3.0, 17.0, False), (0.06, 0.7, True), (1e-9, 1e3, True)):
        axis = Axis([low, high], 0.0, 500.0, log=log, percents=False)
        ticks = axis.ticks(60.0)
        assert 2 <= len(ticks) <= 12 and all(-1e-6 <= axis(t) <= 500.0 + 1e-6 for t in ticks)


def test_positions_are_named_and_long_lists_thinned() -> None:
    names = tuple(f"layer {i}" for i in range(100))
    line = Line("a", tuple((float(i), 0.5) for i in range(100)))
    svg = plot_svg(Plot("t", "x", "y", (line,), names_x=names))
    assert "layer 0" in svg and 20 <= svg.count("<title>layer") <= 60


def test_names_are_cut_to_what_tells_them_apart() -> None:
    assert columns(["x/a", "y/b"]) == ("a", "b") and columns(["x/a", "y/a/"]) == ("x/a", "y/a")
    assert columns(["mlp"]) == ("mlp",) and columns([]) == ()


def test_an_axis_of_sparsities_is_stretched_towards_all() -> None:
    near = Axis([0.0, 0.5, 0.99], 0.0, 500.0, log=False, percents=True, sparsity=True)
    assert near(0.0) == 0.0 and near(0.9) - near(0.0) == pytest.approx(near(0.99) - near(0.9)) and near(0.99) < 500.0
    ticks = near.ticks(60.0)
    assert ticks[0] == 0.0 and {0.9, 0.99} <= set(ticks) and all(near(t) <= 500.0 for t in ticks)
    far = Axis([0.0, 0.5], 0.0, 500.0, log=False, percents=True, sparsity=True)
    assert far(0.5) - far(0.25) == pytest.approx(far(0.25) - far(0.0))
