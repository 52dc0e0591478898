"""Budgets in latency on another runtime than PyTorch: the clock that times it, the tables that price widths in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from prunus.core.budget import Prices, Timing
from prunus.core.groups import Group
from prunus.deploy import runtimes as registry
from prunus.deploy.deploying import subject_of
from prunus.measure.inputs import Example
from prunus.measure.layer_runs import RUNTIMES
from prunus.measure.prices import prices
from prunus.measure.tables import LatencyTables
from prunus.measure.timing import interleaved, quartiles, stopwatch, threads_of


@dataclass(frozen=True)
class RuntimeClock:
    """What `Task(clock=...)` measures with, where a network will run elsewhere than in eager PyTorch.

    Attributes:
        runtime: a title of `prunus.deploy.runtimes.known`.
        threads: of the runtime; PyTorch's count unless given.
        runs, min_seconds: timed inferences of each network, at least.

    Called with `(dense, pruned, example)` it makes both ready in the runtime and runs them in turns. Widths are priced
    by the tables of that runtime where `prunus latency` knows it (eager, onnxruntime, openvino); with any other a
    budget is met by bisection. Cost: what making two networks ready takes, for every candidate that is timed; seconds
    where a network is exported. Errors: `UnknownNameError`, `PrunusError` of the runtime.
    """

    runtime: str
    threads: int | None = None
    runs: int = 50
    min_seconds: float = 0.5

    def __post_init__(self) -> None:
        registry.named(self.runtime)

    def __call__(self, dense: nn.Module, pruned: nn.Module, example: Example) -> Timing:
        took = self.samples({"dense": dense, "pruned": pruned}, example)
        low, _, high = quartiles([a / b for a, b in zip(took["pruned"], took["dense"], strict=True)])
        return Timing(quartiles(took["pruned"])[1] / quartiles(took["dense"])[1], low, high)

    def samples(self, models: Mapping[str, nn.Module], example: Example) -> dict[str, list[float]]:
        """Milliseconds of every run of each model, in turns."""
        chosen = registry.named(self.runtime)
        given = example if isinstance(example, Tensor | Mapping) else tuple(example)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="prunus-clock-")))
            used = stack.enter_context(threads_of(self.threads))
            calls: dict[str, Callable[[], object]] = {}
            clocks = {}
            for name, model in models.items():
                subject, _ = subject_of(model, given, folder / name)
                chosen.ready(subject)
                session = chosen.open(subject, used)
                stack.callback(session.close)
                calls[name], clocks[name] = session.run, stopwatch(session.device)
            return interleaved(calls, warmup=3, runs=self.runs, min_seconds=self.min_seconds, clocks=clocks)

    def prices(self, model: nn.Module, example: Example, groups: tuple[Group, ...]) -> Prices | None:
        """What prices widths in the runtime; None where it has no tables."""
        if self.runtime not in RUNTIMES:
            return None
        tables = LatencyTables(self.runtime, threads=self.threads)
        return prices(model, example, groups, tables=tables, timed=self.samples)
