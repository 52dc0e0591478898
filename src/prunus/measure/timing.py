"""Latency as people measure it honestly: warmed up, many runs, median and quartiles, rivals interleaved.

The median and the inter-quartile range are used because run times have a long right tail (other processes, clocks).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError
from prunus.measure.inputs import Example, as_found, batch_size, check_materialized, device_of, dtype_of, moved, run

MIN_RUNS = 30  # fewer give no usable quartiles


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass on the batch as given, over `runs` runs after warm-up.

    `threads` is PyTorch's intra-operation count, `dtype` that of the weights. `samples_ms` are the runs in order.
    """

    median_ms: float
    q25_ms: float
    q75_ms: float
    runs: int
    threads: int
    batch: int | None
    device: str
    dtype: str
    samples_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def iqr_ms(self) -> float:
        """q75 - q25: the spread of the middle half of the runs."""
        return self.q75_ms - self.q25_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the single runs."""
        return {k: v for k, v in asdict(self).items() if k != "samples_ms"}


@dataclass(frozen=True)
class LatencyRatio:
    """Time of the baseline divided by time of the other model: above 1 the other is faster.

    Quartiles are over ratios of neighbouring runs. `noise` is how far the baseline strays from itself: half the
    inter-quartile range of its times over their median. `verdict` says `1.80x faster`, `1.20x slower` or `not faster`,
    the last whenever the quartiles include 1 or the median is no further from 1 than the noise.
    """

    median: float
    q25: float
    q75: float
    noise: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Interleaved latencies of several models. `latency_ratio[name]` is baseline / name, the baseline left out."""

    baseline: str
    latency: dict[str, Latency]
    latency_ratio: dict[str, LatencyRatio]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "baseline": self.baseline,
            "latency": {name: value.to_dict() for name, value in self.latency.items()},
            "latency_ratio": {name: value.to_dict() for name, value in self.latency_ratio.items()},
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """q25, median, q75, interpolated between the sorted values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def verdict(q25: float, median: float, q75: float, noise: float) -> str:
    """The sentence for a ratio baseline / other; see `LatencyRatio`."""
    if q25 <= 1.0 <= q75 or abs(median - 1.0) <= noise:
        return "not faster"
    return f"{median:.2f}x faster" if median > 1.0 else f"{1.0 / median:.2f}x slower"


def paired_ratio(baseline: Sequence[float], other: Sequence[float]) -> LatencyRatio:
    """Ratios of runs that were neighbours in time, so that a drift of the machine hits both sides of each."""
    q25, median, q75 = quartiles([a / b for a, b in zip(baseline, other, strict=True)])
    low, middle, high = quartiles(baseline)
    noise = (high - low) / 2 / middle
    return LatencyRatio(median=median, q25=q25, q75=q75, noise=noise, verdict=verdict(q25, median, q75, noise))


@contextmanager
def threads_of(count: int | None) -> Iterator[int]:
    """PyTorch on `count` threads inside (None: as it is); the former count afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of a run."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def stopwatch(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A function that runs its argument once and returns milliseconds: CUDA events on a GPU, else the wall clock."""

    def on_gpu(call: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end))

    def on_host(call: Callable[[], object]) -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6

    return on_gpu if device.type == "cuda" else on_host


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    runs: int,
    min_seconds: float,
    clocks: Mapping[str, Callable[[Callable[[], object]], float]] | None = None,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns (A B, B A, ...), at least `runs` each and at least `min_seconds` in all.

    clocks: what runs a call once and returns its milliseconds; left out, the wall clock. pause: seconds of sleep before
    each run, in which the threads of the one before come to rest. No garbage is collected meanwhile.
    """
    watch = {name: stopwatch(torch.device("cpu")) for name in calls} if clocks is None else clocks
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup):
        for call in calls.values():
            call()
    order = list(calls)
    with _no_collection():
        began = time.perf_counter()
        done = 0
        while done < runs or time.perf_counter() - began < min_seconds:
            for name in order:
                if pause:
                    time.sleep(pause)
                samples[name].append(watch[name](calls[name]))
            order.append(order.pop(0))  # A B, B A, A B, ...: nobody always comes second
            done += 1
    return samples


def check_runs(warmup: int, runs: int, min_seconds: float, threads: int | None) -> None:
    """Refuse settings that cannot give a median with quartiles. Errors: `SpecError`."""
    if runs < MIN_RUNS:
        raise SpecError(f"runs={runs}: a median with quartiles needs at least {MIN_RUNS} runs")
    if warmup < 1:
        raise SpecError(f"warmup={warmup}: the first run allocates and compiles, so at least 1 must be thrown away")
    if min_seconds < 0:
        raise SpecError(f"min_seconds={min_seconds}: give 0 or more")
    if threads is not None and threads < 1:
        raise SpecError(f"threads={threads}: give 1 or more, or None for what PyTorch uses now")


def _measure(
    models: Mapping[str, nn.Module],
    example: Example,
    warmup: int,
    runs: int,
    min_seconds: float,
    threads: int | None,
    batch: int | None,
) -> dict[str, Latency]:
    check_runs(warmup, runs, min_seconds, threads)
    devices = {name: device_of(model, example) for name, model in models.items()}
    with ExitStack() as stack:
        used = stack.enter_context(threads_of(threads))
        calls: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            check_materialized(model)
            if devices[name].type == "meta":
                raise SpecError(f"{name} is on the meta device, where nothing takes time: load its weights first")
            stack.enter_context(as_found(model, devices[name]))
            args, kwargs = moved(example, devices[name])
            run(model, args, kwargs)  # the first run also shows whether the example fits
            calls[name] = lambda model=model, args=args, kwargs=kwargs: model(*args, **kwargs)  # type: ignore[misc]
        clocks = {name: stopwatch(device) for name, device in devices.items()}
        samples = interleaved(calls, warmup=warmup - 1, runs=runs, min_seconds=min_seconds, clocks=clocks)
    return {name: _latency(samples[name], used, example, batch, devices[name], model) for name, model in models.items()}


def _latency(
    samples: list[float], threads: int, example: Example, batch: int | None, device: torch.device, model: nn.Module
) -> Latency:
    low, middle, high = quartiles(samples)
    return Latency(
        median_ms=middle,
        q25_ms=low,
        q75_ms=high,
        runs=len(samples),
        threads=threads,
        batch=batch_size(example) if batch is None else batch,
        device=str(device),
        dtype=str(dtype_of(model, example)).removeprefix("torch."),
        samples_ms=tuple(samples),
    )


def latency(
    model: nn.Module,
    example: Example,
    *,
    warmup: int = 5,
    runs: int = 50,
    min_seconds: float = 0.5,
    threads: int | None = None,
    batch: int | None = None,
) -> Latency:
    """Time one forward pass of `model` on `example`, in evaluation and inference mode, on the model's device.

    Runs `warmup` times untimed, then at least `runs` (30 or more) times and at least `min_seconds`. On CUDA each run is
    timed by events with the device synchronized before and after. `threads` sets PyTorch's thread count meanwhile.
    The user's hooks run, as they do in use. `batch` overrides the batch size that is reported.

    The model, the thread count and the random state are as before, also after an exception.
    Raises `SpecError` for settings that cannot give a median, `DataError` if the model does not run on the example.
    """
    return _measure({"model": model}, example, warmup, runs, min_seconds, threads, batch)["model"]


def compare(
    models: Mapping[str, nn.Module],
    example: Example,
    *,
    baseline: str | None = None,
    warmup: int = 5,
    runs: int = 50,
    min_seconds: float = 0.5,
    threads: int | None = None,
    batch: int | None = None,
) -> Comparison:
    """Time several models in turns (A B, B A, ...), so that a drift of the machine hits all of them alike.

    The ratios are baseline / other, run by neighbouring run; `baseline` is the first model unless named. Settings and
    errors are those of `latency`; fewer than two models, or an unknown baseline, is a `SpecError`.
    """
    if len(models) < 2:
        raise SpecError(f"compare got {len(models)} model(s): it needs at least two, the first one is the baseline")
    base = next(iter(models)) if baseline is None else baseline
    if base not in models:
        raise SpecError(f"baseline {base!r} is not among the models {list(models)}")
    found = _measure(models, example, warmup, runs, min_seconds, threads, batch)
    ratios = {n: paired_ratio(found[base].samples_ms, found[n].samples_ms) for n in models if n != base}
    return Comparison(baseline=base, latency=found, latency_ratio=ratios)
