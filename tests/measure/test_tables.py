"""Tables of latencies: what layers are seen, what is measured once, kept, and interpolated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import PrunusError, PrunusWarning, SpecError
from prunus.core.groups import shapes_left
from prunus.graph import compact
from prunus.measure import layer_runs, tables
from prunus.measure.layers import LayerShape, layers
from prunus.measure.machine import Machine, cache_folder, machine
from prunus.measure.prices import LayerPrices, evenly
from prunus.measure.tables import LatencyTables, Table, grid, shapes_of, widths
from prunus.parts.granularity import Channel

LINEAR = LayerShape(64, 48, 10, bias=True)
CONV = LayerShape(16, 32, 2, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1), (0, 0), bias=True)
DEPTHWISE = LayerShape(24, 24, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), groups=24)
TURNED = LayerShape(16, 8, 1, (5, 5), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), transposed=True)
GROUPED = LayerShape(32, 64, 1, (6,), (3,), (1,), (1,), (1,), (0,), groups=4)
SHAPES = {"linear": LINEAR, "conv": CONV, "depthwise": DEPTHWISE, "transposed": TURNED, "grouped": GROUPED}


class Everything(nn.Module):
    """A layer of every kind, and weights that are used in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.direct = nn.Parameter(torch.randn(8, 12))  # [in, out]
        self.left = nn.Parameter(torch.randn(5, 12))
        self.both = nn.Linear(12, 24)
        self.head = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depth(self.conv(x))).mean((2, 3))
        x = x @ self.direct
        first, second = self.both.weight.chunk(2)  # one weight for two products
        x = F.linear(x, first) + F.linear(x, second)
        return self.left @ self.head(x).T


class Counting:
    """A clock by which every layer takes its multiply-accumulates in steps of 16 channels; it says what it timed."""

    version, clock = "1", "wall"

    def sampled(self, shapes: Iterable[LayerShape], threads: int, rounds: int) -> None:
        return None

    def __init__(self) -> None:
        self.timed: list[LayerShape] = []

    def prepared(self, shapes: Iterable[LayerShape], threads: int) -> list[Callable[[], object]]:
        shapes = list(shapes)
        self.timed += shapes
        return [lambda s=s: s for s in shapes]  # type: ignore[misc]


def up(n: int, step: int = 8) -> int:
    return -(-n // step) * step


def law(shape: LayerShape) -> float:
    return up(shape.inputs) * up(shape.outputs) * shape.positions / 1e3


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    runner = Counting()
    monkeypatch.setattr(tables, "runtime_named", lambda *_: runner)
    monkeypatch.setattr(tables, "stopwatch", lambda _device: lambda call: law(call()))
    return runner


def test_every_contraction_with_a_weight_is_a_layer() -> None:
    model, x = Everything(), torch.randn(2, 3, 8, 8)
    found = layers(model, x)
    assert [(c.param, c.out_axis, c.in_axis) for c in found] == [
        ("conv.weight", 0, 1),
        ("depth.weight", 0, 1),
        ("up.weight", 1, 0),
        ("direct", 1, 0),
        ("both.weight", 0, 1),
        ("both.weight", 0, 1),
        ("head.weight", 0, 1),
        ("left", 0, 1),
    ]
    assert sum(c.shape.macs for c in found) == measure.macs(model, x).total
    assert found[0].shape == LayerShape(3, 16, 2, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1), (0, 0), bias=True)
    assert found[1].shape.tied and not found[0].shape.tied
    assert found[4].shape == LayerShape(12, 12, 2)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_a_layer_is_run_at_its_widths(name: str, runtime: str) -> None:
    """Outputs of the shape that PyTorch's own module gives."""
    if runtime != "eager":
        pytest.importorskip("onnx")
        pytest.importorskip(runtime)
    shape = SHAPES[name]
    narrow = shape.at(8, 8)
    for one, run in zip((shape, narrow), layer_runs.runtime_named(runtime).prepared([shape, narrow], 1), strict=True):
        made: Any = run()
        out = made if isinstance(made, Tensor) else torch.as_tensor(made[0])
        assert out.shape[1] == one.outputs
        assert out.numel() == one.outputs * one.positions


def test_types_that_a_runtime_has_no_kernels_for_are_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(SpecError, match="bfloat16"):
        layer_runs.runtime_named("onnxruntime").prepared([replace(LINEAR, dtype="bfloat16")], 1)
    with pytest.raises(SpecError, match="unknown runtime 'onnx'"):
        layer_runs.runtime_named("onnx")
    with pytest.raises(SpecError, match="on the processor only"):
        layer_runs.runtime_named("openvino", "cuda")


@pytest.mark.parametrize("full", [1, 3, 8, 10, 24, 64, 100, 1000, 1280])
@pytest.mark.parametrize("step", [1, 8, 16])
def test_widths_are_whole_steps_and_the_full_width(full: int, step: int) -> None:
    found = widths(full, step)
    assert found == tuple(sorted(set(found))) and len(found) <= 8
    assert found[-1] == full and all(n % step == 0 for n in found[:-1]) and found[0] > 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_grid_is_made_of_layers_that_exist(shape: LayerShape) -> None:
    every = shapes_of(shape, 8)
    ins, outs = grid(shape, 8)
    assert every[-1] == shape and len(every) == len(ins) * len(outs)
    assert all(s.inputs % s.groups == s.outputs % s.groups == 0 for s in every)
    assert [run() is not None for run in layer_runs.Eager().prepared(every, 1)]


def test_a_table_is_a_staircase_between_what_was_measured() -> None:
    table = Table(8, (8, 32), (16, 32, 64), ((1.0, 2.0, 4.0), (4.0, 8.0, 16.0)), 7, 0.1)
    assert table.time(32, 64) == 16.0 and table.time(8, 16) == 1.0 and table.time(3, 1) == 1.0
    assert table.time(25, 57) == 16.0 and table.time(24, 64) == pytest.approx(4 + 12 * 2 / 3)
    assert table.time(32, 33) == table.time(32, 40) == pytest.approx(10.0)
    assert all(table.time(8, n) <= table.time(8, n + 1) for n in range(1, 64))
    assert Table.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    tied = Table(8, (24,), (8, 24), ((1.0, 3.0),), 7, 0.1)
    assert tied.time(5, 5) == 1.0 and tied.time(16, 16) == 2.0


@pytest.mark.parametrize(
    "broken",
    [{}, {"ms": [[0.0]]}, {"ms": [[1.0, 2.0]]}, {"outs": [64, 32]}, {"step": 0}, {"ms": "x"}, {"ms": [[float("nan")]]}],
)
def test_broken_tables_are_refused(broken: dict[str, Any]) -> None:
    whole = Table(8, (8,), (8,), ((1.0,),), 7, 0.1).to_dict()
    with pytest.raises(SpecError, match="not a table"):
        Table.from_dict(whole | broken if broken else {})


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path, counting: Counting) -> None:
    first = LatencyTables(folder=tmp_path, threads=1)
    told: list[tuple[int, int]] = []
    done = first.fill([LINEAR, CONV, LINEAR], lambda *at: told.append(at))
    assert set(done) == {LINEAR, CONV} and told == [(0, 2), (1, 2), (2, 2)]
    assert len(counting.timed) == sum(len(shapes_of(s, 8)) for s in (LINEAR, CONV))
    counting.timed.clear()
    second = LatencyTables(folder=tmp_path, threads=1)
    assert second.fill([CONV, LINEAR]) == () and counting.timed == []
    assert second[CONV] == first[CONV] and second[CONV].time(16, 32) == law(CONV)
    assert LatencyTables(folder=tmp_path, threads=1, step=16).missing([CONV]) == (CONV,)
    assert LatencyTables(folder=tmp_path, threads=2).missing([CONV]) == (CONV,)
    with pytest.raises(SpecError, match="fill it first"):
        second[DEPTHWISE]
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_two_processes_add_to_one_file(tmp_path: Path, counting: Counting) -> None:
    one, other = (LatencyTables(folder=tmp_path, threads=1) for _ in range(2))
    one.fill([LINEAR])
    other.fill([CONV])
    assert LatencyTables(folder=tmp_path, threads=1).missing([LINEAR, CONV]) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1, "tables": {"a": 1}}'])
def test_a_file_that_cannot_be_used_is_named_and_made_anew(tmp_path: Path, counting: Counting, text: str) -> None:
    first = LatencyTables(folder=tmp_path, threads=1)
    first.fill([LINEAR])
    first.path.write_text(text)
    with pytest.warns(PrunusWarning, match="cannot be used"):
        again = LatencyTables(folder=tmp_path, threads=1)
    assert again.fill([LINEAR]) == (LINEAR,)
    assert LatencyTables(folder=tmp_path, threads=1).missing([LINEAR]) == ()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, counting: Counting) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunusError, match="PRUNUS_CACHE"):
        LatencyTables(folder=tmp_path / "file", threads=1).fill([LINEAR])


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PRUNUS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "prunus"
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_another_machine_has_another_digest() -> None:
    here = machine()
    assert here.digest(threads=1) == here.digest(threads=1) != here.digest(threads=2)
    assert replace(here, cpu="other").digest() != here.digest() != replace(here, flags=()).digest()
    assert replace(here, system="next kernel").digest() == here.digest()
    assert 0 < here.usable <= here.cores
    slow = Machine("x", "aarch64", "", ("asimd", "bf16"), 8, 1.5, 1, None)
    assert slow.usable == 1.5 and slow.features["NEON"] and "AVX2" not in slow.features


# Networks


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point, self.head = nn.Conv2d(32, 64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depth(self.norm(self.stem(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
def test_what_is_predicted_is_what_the_compacted_layers_take(tmp_path: Path, counting: Counting, kept: float) -> None:
    """Against the layers of the network that compaction makes, each priced at its own shape."""
    model, x = Small().eval(), torch.randn(2, 3, 8, 8)
    groups = Channel()(model, (x,))
    masks = {g.name: evenly(g, int(kept * g.units)) for g in groups}
    store = LatencyTables(folder=tmp_path, threads=1, step=1)
    calls = layers(model, x)
    store.fill(c.shape for c in calls)
    found = LayerPrices(calls, {c.shape: store[c.shape] for c in calls})
    left = shapes_left({n: tuple(p.shape) for n, p in model.named_parameters()}, groups, masks)
    small, _ = compact(model, groups, masks, verify=False)
    assert {n: tuple(p.shape) for n, p in small.named_parameters()}.items() >= left.items()
    made = layers(small, x)
    narrowed = [c.shape if c.param not in left else c.narrowed(left[c.param]) for c in calls]
    assert narrowed == [c.shape for c in made]
    numbers = sum(c.shape.outputs * c.shape.positions for c in made)
    took, said = found.parts(left)
    assert said == numbers and took == pytest.approx(sum(map(law, (c.shape for c in made))), rel=0.3)


def test_the_rest_of_the_time_is_fitted_to_two_networks() -> None:
    model, x = Small().eval(), torch.randn(2, 3, 8, 8)
    calls = layers(model, x)
    flat = {c.shape: Table(8, (c.shape.inputs,), (c.shape.outputs,), ((1.0,),), 7, 0.1) for c in calls}
    plain = LayerPrices(calls, flat)
    took, numbers = plain.parts({})
    assert took == 4.0
    left = {"stem.weight": (16, 3, 3, 3), "depth.weight": (16, 1, 3, 3), "point.weight": (64, 16, 1, 1)}
    fewer = plain.parts(left)[1]
    fitted = plain.calibrated(4.0 + 2.0 + 1e-3 * numbers, [(4.0 + 2.0 + 1e-3 * fewer, left)])
    assert fitted.per_number == pytest.approx(1e-3) and fitted.fixed == pytest.approx(2.0)
    assert fitted.ms({}) == pytest.approx(fitted.dense_ms)
    assert fitted.share(left) == pytest.approx((6.0 + 1e-3 * fewer) / (6.0 + 1e-3 * numbers))
    assert plain.calibrated(2.0).share({}) == pytest.approx(1.0) and plain.calibrated(2.0).scale == pytest.approx(0.5)
    assert plain.calibrated(10.0).fixed == pytest.approx(6.0)
    # A smaller network that took longer says nothing of what numbers cost.
    assert plain.calibrated(10.0, [(12.0, left)]).per_number == pytest.approx(0.0)


def test_a_block_that_is_gone_takes_nothing() -> None:
    model, x = Small().eval(), torch.randn(2, 3, 8, 8)
    calls = layers(model, x)
    flat = {c.shape: Table(8, (c.shape.inputs,), (c.shape.outputs,), ((1.0,),), 7, 0.1) for c in calls}
    assert LayerPrices(calls, flat).parts({"depth.weight": (0, 0, 0, 0)})[0] == 3.0


def test_this_machine_prices_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock of the test's own: it measures, predicts a share between nothing and all, and keeps what it measured."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    monkeypatch.setattr(tables, "ENOUGH_SECONDS", 0.0)
    from prunus.measure.prices import prices

    model, x = Small().eval(), torch.randn(1, 3, 8, 8)
    groups = Channel()(model, (x,))
    found = prices(model, (x,), groups)
    masks = {g.name: evenly(g, 8) for g in groups}
    left = shapes_left({n: tuple(p.shape) for n, p in model.named_parameters()}, groups, masks)
    assert found.share({}) == 1.0 and 0.0 < found.share(left) <= 1.05
    assert len(list((tmp_path / "latency").iterdir())) == 1
    assert LatencyTables().missing(c.shape for c in layers(model, x)) == ()
