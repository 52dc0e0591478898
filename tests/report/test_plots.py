from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from prunus.report import Curve, LayerDensity, Point
from prunus.report.axes import SparsityAxis, accuracy_range, nice_step, spread
from prunus.report.plots import accuracy_svg, dense_accuracy, density_svg, indices, latency_svg
from prunus.report.svg import DARK, LIGHT, el
from tests.report.sample import latency, method, report

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.encode())


@pytest.mark.parametrize("width", [400, 920])
def test_accuracy_svg_is_a_file_of_its_own(width: int) -> None:
    text = accuracy_svg(report(), width=width)
    root = parsed(text)
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}style") is not None
    assert text.count("http") == 1  # the namespace


def test_every_point_is_drawn_with_its_numbers() -> None:
    titles = [t.text or "" for t in parsed(accuracy_svg(report())).iter(f"{SVG}title")]
    points = sum(len(curve.points) for curve in report().curves)
    assert sum("% sparsity" in t and "own budget" not in t for t in titles) == points
    assert sum("own budget" in t for t in titles) == len(report().methods)
    assert "SNIP: accuracy 90.47 % ± 0.25 % at 80.0 % sparsity" in titles


def test_points_stay_inside_the_picture() -> None:
    body = parsed(accuracy_svg(report(), width=920, height=430))
    circles = [c for c in body.iter(f"{SVG}circle") if "dot" in c.get("class", "")]
    assert len(circles) >= len(report().curves[0].points)
    assert all(0 < float(c.get("cx", "-1")) < 920 and 0 < float(c.get("cy", "-1")) < 430 for c in circles)


def test_higher_accuracy_is_drawn_higher() -> None:
    curve = Curve(name="one", points=[Point(sparsity=0.9, accuracy=0.5), Point(sparsity=0.5, accuracy=0.9)])
    root = parsed(accuracy_svg(report().model_copy(update={"curves": [curve], "methods": []})))
    path = next(p.get("d", "") for p in root.iter(f"{SVG}path") if "curve" in p.get("class", ""))
    (x1, y1), (x2, y2) = [tuple(map(float, pair.split())) for pair in path.removeprefix("M").split("L")]
    assert x1 < x2 and y1 < y2  # sorted by sparsity; y grows downwards


@pytest.mark.parametrize("points", [[(1.0, 0.1)], [(0.5, math.nan)], []])
def test_nothing_to_draw_is_said(points: list[tuple[float, float]]) -> None:
    curve = Curve(name="one", points=[Point(sparsity=s, accuracy=a) for s, a in points])
    text = accuracy_svg(report().model_copy(update={"curves": [curve], "methods": []}))
    assert "No accuracy was measured." in text


def test_a_curve_named_like_a_method_shares_its_colour() -> None:
    found = indices(report())
    assert found["magnitude"] == found["Global magnitude"] == 0
    assert found["SNIP"] == found["snip"] == 3
    assert found["random"] == 4


def test_the_dense_accuracy_is_the_usual_one() -> None:
    methods = [method(accuracy_before=a) for a in (0.9, 0.9, 0.95, None, math.nan)]
    assert dense_accuracy(report().model_copy(update={"methods": methods})) == 0.9
    assert dense_accuracy(report().model_copy(update={"methods": []})) is None


def test_density_widths_follow_weights_and_heights_follow_density() -> None:
    layers = [
        LayerDensity(layer="a", weights=100, kept=25, kind="conv"),
        LayerDensity(layer="b", weights=300, kept=0, kind="conv"),
    ]
    root = ElementTree.fromstring(str(density_svg(method(layers=layers))))
    first, second = root.findall("g")
    track, fill = first.findall("rect")
    assert float(fill.get("height", "")) == 25.0
    assert float(second.findall("rect")[1].get("height", "")) == 0.0
    assert float(second.findall("rect")[0].get("width", "")) == pytest.approx(
        3 * float(track.get("width", "")), rel=0.01
    )
    assert "gone" in second.findall("rect")[0].get("class", "")


def test_density_of_no_layers_and_of_empty_layers() -> None:
    empty = [LayerDensity(layer="a", weights=0, kept=0, kind="conv")]
    for layers in ([], empty):
        text = str(density_svg(method(layers=layers)))
        assert not re.search(r'="[^"]*nan', text)


def test_latency_bar_is_to_scale() -> None:
    root = ElementTree.fromstring(str(latency_svg(latency(10.0, 0.1), 40.0, index=0, name="x")))
    _, bar, spread_ = root.findall("rect")
    assert float(bar.get("width", "")) == 250.0
    assert float(spread_.get("x", "")) == pytest.approx(225.0)
    assert float(spread_.get("width", "")) == pytest.approx(60.0)


def test_elements_are_escaped() -> None:
    assert str(el("text", "<&", class_='a"b')) == '<text class="a&#34;b">&lt;&amp;</text>'


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#1c191f")])
def test_colours_stand_out(colours: tuple[str, ...], paper: str) -> None:
    """WCAG 1.4.3 asks for 4.5:1 of text, and the labels at the lines' ends are text."""
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_axis_stretches_towards_one() -> None:
    axis = SparsityAxis(0.99, 0.0, 1000.0)
    assert axis.stretched
    assert axis(0.99) - axis(0.9) == pytest.approx(axis(0.9) - axis(0.0))
    assert not SparsityAxis(0.5, 0.0, 1.0).stretched and not SparsityAxis(1.0, 0.0, 1.0).stretched


@pytest.mark.parametrize("largest", [0.0, 0.05, 0.5, 0.84, 0.9, 0.999, 1.0])
def test_ticks_are_apart_and_inside(largest: float) -> None:
    axis = SparsityAxis(largest, 50.0, 750.0)
    at = [axis(mark) for mark in axis.ticks(apart=50.0)]
    assert len(at) >= 2
    assert all(b - a >= 49.9 for a, b in itertools.pairwise(at))
    assert at[0] >= 50.0 and at[-1] <= 750.1


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.9183, 0.754], [0.91, 0.9101]])
def test_accuracy_range_holds_the_values(values: list[float]) -> None:
    low, high, step = accuracy_range(values)
    assert 0.0 <= low <= min(values) and max(values) <= high <= 1.0 and low < high
    assert (high - low) / step <= 9


def test_nice_step() -> None:
    assert nice_step(1.0, 5) == pytest.approx(0.2)
    assert nice_step(0.03, 5) == pytest.approx(0.01)


def test_labels_are_spread() -> None:
    placed = spread([10.0, 11.0, 12.0, 99.0], 10.0, 0.0, 100.0)
    assert placed == [10.0, 20.0, 30.0, 99.0]
    assert spread([95.0, 99.0], 10.0, 0.0, 100.0) == [90.0, 100.0]
