"""How long layers take at every width, measured once per machine and kept in the user's cache folder.

A table holds one layer shape's times on a grid of input and output widths. Between the measured widths times are
interpolated; a width counts as the next multiple of `step`, because kernels work in blocks of channels.
"""

from __future__ import annotations

import time
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

import torch

from prunus.core.errors import PrunusWarning, SpecError
from prunus.measure.kept import read_kept, unusable, write_kept
from prunus.measure.layer_runs import Run, runtime_named
from prunus.measure.layers import LayerShape
from prunus.measure.machine import Machine, cache_folder, machine
from prunus.measure.timing import _no_collection, stopwatch, threads_of

FORMAT = 1
MOST = 8  # widths measured along each side of a layer
FEWEST_ROUNDS, ROUNDS, ENOUGH_SECONDS, TOO_LONG = 7, 25, 0.25, 4.0
PROFILED = 12  # rounds where a runtime has a clock of its own
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Table:
    """Milliseconds of one layer: `ms[i][o]` with `ins[i]` inputs and `outs[o]` outputs, the fastest of `rounds` runs.

    The fastest and not the median: a run takes fractions of a millisecond, and what makes one longer is other work.

    Of a depthwise convolution, whose inputs are its outputs, there is one row. `seconds`: what measuring it took.
    """

    step: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    rounds: int
    seconds: float

    def time(self, inputs: int, outputs: int) -> float:
        """Milliseconds at these widths. Widths below the smallest measured one cost what that one does."""
        i, u = _between(self.ins, inputs, self.step) if len(self.ms) > 1 else (0, 0.0)
        o, v = _between(self.outs, outputs, self.step)
        p, right = min(i + 1, len(self.ms) - 1), min(o + 1, len(self.outs) - 1)
        low, high = (row[o] + v * (row[right] - row[o]) for row in (self.ms[i], self.ms[p]))
        return low + u * (high - low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {"step": self.step, "ins": list(self.ins), "outs": list(self.outs), "rounds": self.rounds}
        return {**plain, "ms": [list(row) for row in self.ms], "seconds": self.seconds}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Table:
        """The table that `to_dict` described. Errors: `SpecError` for anything else."""
        try:
            ins, outs = (tuple(int(n) for n in plain[k]) for k in ("ins", "outs"))
            ms = tuple(tuple(float(t) for t in row) for row in plain["ms"])
            table = cls(int(plain["step"]), ins, outs, ms, int(plain["rounds"]), float(plain["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"not a table of latencies: {error}") from error
        whole = len(ms) in (1, len(ins)) and bool(outs) and all(len(row) == len(outs) for row in ms)
        rising = list(ins) == sorted(set(ins)) and list(outs) == sorted(set(outs))
        if not whole or not rising or table.step < 1 or not all(0.0 < t < float("inf") for row in ms for t in row):
            raise SpecError("not a table of latencies: its widths and times do not fit together")
        return table


def _between(widths: Sequence[int], width: int, step: int) -> tuple[int, float]:
    """Between which measured widths the next multiple of `step` lies, and how far from the first of them."""
    width = min(-(-width // step) * step, widths[-1])
    above = bisect_left(widths, width)
    if above == 0 or widths[above] == width:
        return above, 0.0
    low, high = widths[above - 1], widths[above]
    return above - 1, (width - low) / (high - low)


def widths(full: int, step: int, most: int = MOST) -> tuple[int, ...]:
    """At most `most` multiples of `step`, evenly spread over (0, full], and `full` itself."""
    found = {min(full, -(-(full * k) // (most * step)) * step) for k in range(1, most + 1)}
    return tuple(sorted(found))


def grid(shape: LayerShape, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths at which a layer is measured: of its inputs and of its outputs."""
    if shape.tied:
        outs = widths(shape.outputs, lcm(step, shape.outputs // shape.inputs))
        return (shape.inputs,), outs
    whole = lcm(step, shape.groups)
    return widths(shape.inputs, whole), widths(shape.outputs, whole)


def shapes_of(shape: LayerShape, step: int) -> list[LayerShape]:
    """The layer at every point of its grid, row by row."""
    ins, outs = grid(shape, step)
    if shape.tied:
        each = shape.outputs // shape.inputs
        return [shape.at(o // each, o) for o in outs]
    return [shape.at(i, o) for i in ins for o in outs]


class LatencyTables:
    """The tables of this machine for one runtime and number of threads, read from and written to one file.

    Args:
        runtime: `eager`, `onnxruntime` or `openvino`.
        threads: of the runtime; PyTorch's count unless given.
        device: for eager: where the layers run.
        step: how many channels kernels take at once; a width counts as the next multiple of it.
        folder: of the file; `latency` in `measure.machine.cache_folder()` unless given.

    Nothing is measured before `fill`. Errors: `UnknownNameError`, `SpecError`, `MissingExtraError`.
    """

    def __init__(
        self,
        runtime: str = "eager",
        *,
        threads: int | None = None,
        device: str = "cpu",
        step: int = 8,
        folder: Path | None = None,
    ) -> None:
        if step < 1 or (threads is not None and threads < 1):
            raise SpecError(f"step={step}, threads={threads}: both are at least 1")
        self.runtime, self.device, self.step = runtime, device, step
        self.threads = torch.get_num_threads() if threads is None else threads
        self.runner = runtime_named(runtime, device)
        card = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
        self.about = {"runtime": runtime, "version": self.runner.version, "threads": self.threads, "device": card}
        if self.runner.clock != "wall":
            self.about["clock"] = self.runner.clock
        self.machine: Machine = machine()
        digest = self.machine.digest(**self.about)
        self.path = (folder or cache_folder() / "latency") / f"{runtime}-{digest}.json"
        self.tables: dict[str, Table] = self._read()

    def key(self, shape: LayerShape) -> str:
        """Under which a shape's table is kept."""
        return f"{shape.key()} step {self.step}"

    def missing(self, shapes: Iterable[LayerShape]) -> tuple[LayerShape, ...]:
        """The shapes without a table, each once."""
        return tuple(s for s in dict.fromkeys(shapes) if self.key(s) not in self.tables)

    def __getitem__(self, shape: LayerShape) -> Table:
        try:
            return self.tables[self.key(shape)]
        except KeyError:
            raise SpecError(f"there is no table of latencies for {shape}: fill it first") from None

    def expected_seconds(self, shapes: Iterable[LayerShape]) -> float:
        """About how long `fill` will take: every missing layer is run once or twice at its full widths.

        Cost: the making and two runs of each.
        """
        total = 0.0
        with torch.inference_mode(), threads_of(self.threads):
            for shape in self.missing(shapes):
                began = time.perf_counter()
                (call,) = self.runner.prepared([shape], self.threads)
                call()
                made = time.perf_counter() - began
                one = stopwatch(torch.device(self.device))(call) / 1e3
                points = shapes_of(shape, self.step)
                round_ = one * sum(p.macs for p in points) / max(1, shape.macs) + 1e-5 * len(points)
                rounds = min(ROUNDS, max(FEWEST_ROUNDS, ENOUGH_SECONDS / round_))
                total += made * (len(points) if self.runtime != "eager" else 1) + round_ * (rounds + 1)
        return total

    def fill(self, shapes: Iterable[LayerShape], progress: Progress | None = None) -> tuple[LayerShape, ...]:
        """Measure the shapes without a table, the largest first, and keep every table as soon as it is there.

        progress: told (layers done, layers to do). Returns: what was measured.
        Cost: per layer up to 64 widths, each run 7 to 25 times; about half a second for a small one.
        Errors: `PrunusError` where the file cannot be written.
        """
        todo = sorted(self.missing(shapes), key=lambda s: -s.macs)
        for done, shape in enumerate(todo):
            if progress is not None:
                progress(done, len(todo))
            self.tables[self.key(shape)] = self._measured(shape)
            self._write()
        if progress is not None and todo:
            progress(len(todo), len(todo))
        return tuple(todo)

    def _measured(self, shape: LayerShape) -> Table:
        ins, outs = grid(shape, self.step)
        began = time.perf_counter()
        clock = stopwatch(torch.device(self.device))
        points = shapes_of(shape, self.step)
        samples = self.runner.sampled(points, self.threads, PROFILED)
        if samples is None:
            with torch.inference_mode(), threads_of(self.threads):
                calls = self.runner.prepared(points, self.threads)
                for call in calls:
                    call()
                with _no_collection():
                    samples = _rounds(calls, clock)
        each = [min(s) for s in samples]
        ms = tuple(tuple(each[r : r + len(outs)]) for r in range(0, len(each), len(outs)))
        return Table(self.step, ins, outs, ms, len(samples[0]), round(time.perf_counter() - began, 4))

    def _read(self) -> dict[str, Table]:
        """What the file holds; nothing where there is none or it cannot be used, which is said."""
        told = read_kept(self.path, form=FORMAT, what="latencies")
        if told is None:
            return {}
        try:
            tables = told.get("tables")
            if not isinstance(tables, dict) or not all(isinstance(v, dict) for v in tables.values()):
                raise ValueError("its tables have another form")
            return {str(k): Table.from_dict(v) for k, v in tables.items()}
        except ValueError as error:
            unusable(self.path, "latencies", error)
            return {}

    def _write(self) -> None:
        """Replace the file in one step, with what another process may have added to it meanwhile."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrunusWarning)
            self.tables = self._read() | self.tables
        plain = {k: t.to_dict() for k, t in self.tables.items()}
        told = {"format": FORMAT, "machine": self.machine.to_dict(), "about": self.about, "tables": plain}
        write_kept(self.path, told)


def _rounds(calls: Sequence[Run], clock: Callable[[Run], float]) -> list[list[float]]:
    """Milliseconds of every call in every round; all calls take turns, so that a drift of the machine hits all."""
    samples: list[list[float]] = [[] for _ in calls]
    began, done = time.perf_counter(), 0
    while done < ROUNDS:
        for call, own in zip(calls, samples, strict=True):
            own.append(clock(call))
        done += 1
        spent = time.perf_counter() - began
        if (done >= FEWEST_ROUNDS and spent > ENOUGH_SECONDS) or (done >= 3 and spent > TOO_LONG):
            break
    return samples
