"""How a layer's speed hangs on its width: a staircase, measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError
from prunus.deploy import runtimes as registry
from prunus.deploy.runtimes.base import Session, Subject
from prunus.measure.layer_runs import RUNTIMES, Run, runtime_named
from prunus.measure.layers import LayerShape
from prunus.measure.timing import check_runs, interleaved, quartiles, threads_of

TAPS: Mapping[str, int] = {"linear": 1, "conv1x1": 1, "conv3x3": 9}
DEEP = 3  # layers in a row of a staircase: what a call costs is shared, and formats are changed at the ends alone


@dataclass(frozen=True)
class Staircase:
    """What a layer of several widths takes on one runtime.

    Attributes:
        widths: channels in and out, growing.
        ms: milliseconds of one layer of each width, the lower quartile of the runs.
        rate: billions of multiply-accumulates per second at each width.
    """

    runtime: str
    layer: str
    widths: tuple[int, ...]
    ms: tuple[float, ...]
    rate: tuple[float, ...]
    threads: int

    def best(self, width: int) -> int:
        """The measured width up to `width` that does most per second, of those that keep nine tenths of it or more.

        Errors: `SpecError` where no measured width is that near.
        """
        near = [(r, w) for w, r in zip(self.widths, self.rate, strict=True) if 0.9 * width <= w <= width]
        if not near:
            raise SpecError(f"no measured width lies between {0.9 * width:.0f} and {width}: measure more of them")
        return max(near)[1]

    def multiple(self, among: Sequence[int] = (4, 8, 16, 32, 64)) -> int:
        """The least of `among` whose multiples run, in the mean, at 97 % of the rate of the best one's multiples.

        Errors: `SpecError` where the widths hold no multiple of any, or nothing else to compare with.
        """
        means = {}
        for step in among:
            own = [r for w, r in zip(self.widths, self.rate, strict=True) if w % step == 0]
            if own and len(own) < len(self.widths):
                means[step] = sum(own) / len(own)
        if not means:
            raise SpecError(f"widths {self.widths} tell no multiple apart: measure some that are and some that are not")
        return next(step for step, mean in sorted(means.items()) if mean >= 0.97 * max(means.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def staircase(
    runtime: str,
    layer: str = "conv3x3",
    widths: Sequence[int] = (48, 52, 56, 60, 64, 68, 72, 76, 80, 88, 96),
    *,
    positions: int = 28,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
) -> Staircase:
    """Measure how a layer's speed hangs on its width, on this machine.

    Args:
        runtime: a title of `prunus.deploy.runtimes.known`.
        layer: `linear`, `conv1x1` or `conv3x3`, as many channels in as out; `DEEP` of them in a row are timed.
        widths: channels.
        positions: side of the image; of a linear layer, its square is the number of rows.
        runs: timed runs of each width, in turns, at least 30.

    Cost: a session per width, all open at once; some seconds, and where the runtime takes no single layers (what
    `prunus latency` measures: eager, onnxruntime, openvino) an export per width.
    Errors: `UnknownNameError`; `SpecError`; `MissingExtraError` and `PrunusError` of the runtime.
    """
    check_runs(1, runs, 0.0, threads)
    if not widths or min(widths) < 1 or sorted(set(widths)) != list(widths):
        raise SpecError(f"widths={tuple(widths)}: growing numbers, each at least 1")
    if layer not in TAPS:
        raise SpecError(f"layer={layer!r}: linear, conv1x1 or conv3x3")
    chosen = registry.named(runtime)
    if why := chosen.missing():
        raise SpecError(f"{runtime} cannot run here: {why}")
    opened = _layers if runtime in RUNTIMES else _stacks
    with threads_of(threads), opened(runtime, layer, widths, positions, batch, threads) as calls:
        took = interleaved(calls, warmup=3, runs=runs, min_seconds=0.2)
    # The lower quartile: what makes a run of a millisecond longer is other work.
    ms = tuple(quartiles(took[str(w)])[0] / DEEP for w in widths)
    rate = tuple(w * w * TAPS[layer] * positions**2 * batch / m / 1e6 for w, m in zip(widths, ms, strict=True))
    return Staircase(runtime, layer, tuple(widths), ms, rate, threads)


@contextmanager
def _layers(
    runtime: str, layer: str, widths: Sequence[int], positions: int, batch: int, threads: int
) -> Iterator[dict[str, Run]]:
    """A call per width: layers in a row, without a model around them."""

    def shape(width: int) -> LayerShape:
        if layer == "linear":
            return LayerShape(width, width, batch * positions**2, bias=True)
        side = 3 if layer == "conv3x3" else 1
        size, pair = (positions, positions), (side // 2, side // 2)
        return LayerShape(width, width, batch, size, (side, side), (1, 1), pair, (1, 1), (0, 0), bias=True)

    with torch.inference_mode():
        runs = runtime_named(runtime).prepared([shape(w) for w in widths], threads, times=DEEP)
        yield {str(w): run for w, run in zip(widths, runs, strict=True)}


@contextmanager
def _stacks(
    runtime: str, layer: str, widths: Sequence[int], positions: int, batch: int, threads: int
) -> Iterator[dict[str, Run]]:
    """A call per width: a model of layers in a row, made ready by whatever runtime."""
    chosen = registry.named(runtime)
    sessions: dict[str, Session] = {}
    with TemporaryDirectory(prefix="prunus-staircase-") as folder:
        try:
            for width in widths:
                model, example = _stack(layer, width, positions, batch)
                subject = Subject(model, (example,), {}, Path(folder) / str(width))
                chosen.ready(subject)
                sessions[str(width)] = chosen.open(subject, threads)
            yield {n: s.run for n, s in sessions.items()}
        finally:
            for session in sessions.values():
                session.close()


def _stack(layer: str, width: int, positions: int, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """Layers in a row, and an example."""
    generator = torch.Generator().manual_seed(0)
    if layer == "linear":
        rows = torch.randn(batch * positions**2, width, generator=generator)
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(DEEP))).eval(), rows
    side = 3 if layer == "conv3x3" else 1
    image = torch.randn(batch, width, positions, positions, generator=generator)
    return nn.Sequential(*(nn.Conv2d(width, width, side, padding=side // 2) for _ in range(DEEP))).eval(), image
