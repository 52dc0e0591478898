"""All sizes and costs of a model in one record, and ratios between two records, each with its denominator."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from prunus.measure.inputs import Example
from prunus.measure.operations import MacCount, macs
from prunus.measure.parameters import ParamCount, params
from prunus.measure.peak import PeakMemory, peak_memory
from prunus.measure.storage import StateBytes, state_bytes
from prunus.measure.timing import Latency
from prunus.measure.timing import latency as time_of


@dataclass(frozen=True)
class Profile:
    """Parameters, multiply-accumulates, bytes and peak memory of a model; latency if it was asked for."""

    params: ParamCount
    macs: MacCount
    bytes: StateBytes
    memory: PeakMemory
    latency: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "params": self.params.to_dict(),
            "macs": self.macs.to_dict(),
            "bytes": self.bytes.to_dict(),
            "memory": self.memory.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


def profile(
    model: nn.Module,
    example: Example,
    *,
    latency: bool = False,
    threads: int | None = None,
    runs: int = 50,
    min_seconds: float = 0.5,
    batch: int | None = None,
) -> Profile:
    """Measure `model` on `example` (a tensor, tuple, or dict of inputs); with `latency=True` also time it.

    The model is left as it was. See `params`, `macs`, `state_bytes`, `peak_memory` and `latency` for what each means.
    Cost: two forward passes, one of them without arithmetic, and the timed runs. To say which of two models is faster
    use `compare`: latencies of two separate calls are not paired.
    """
    return Profile(
        params=params(model),
        macs=macs(model, example, batch=batch),
        bytes=state_bytes(model),
        memory=peak_memory(model, example),
        latency=time_of(model, example, threads=threads, runs=runs, min_seconds=min_seconds, batch=batch)
        if latency
        else None,
    )


@dataclass(frozen=True)
class Ratios:
    """Dense divided by pruned, each above 1 if the pruned model needs less; infinite if it needs nothing.

    params_ratio: all parameters of the dense model / nonzero parameters of the pruned one.
    macs_ratio: all MACs of the dense model / all MACs of the pruned one, zeros multiplied like anything else.
    effective_macs_ratio: all MACs of the dense model / MACs of the pruned one with nonzero weights.
    bytes_ratio: bytes of parameters and buffers in memory, zeros stored like anything else.
    memory_ratio: peak memory of one inference, weights and inputs included.
    latency_ratio: median times; None if one was not timed. From separate runs: `compare` gives paired ones with spread.
    """

    params_ratio: float
    macs_ratio: float
    effective_macs_ratio: float
    bytes_ratio: float
    memory_ratio: float
    latency_ratio: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON, which has no infinity: None instead."""
        values: dict[str, float | None] = asdict(self)
        return {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}


def _ratio(dense: int | float, pruned: int | float) -> float:
    if pruned:
        return dense / pruned
    return math.inf if dense else 1.0


def ratios(dense: Profile, pruned: Profile) -> Ratios:
    """How many times less the pruned model needs than the dense one; see `Ratios` for every denominator."""
    timed = dense.latency is not None and pruned.latency is not None
    return Ratios(
        params_ratio=_ratio(dense.params.total, pruned.params.nonzero),
        macs_ratio=_ratio(dense.macs.total, pruned.macs.total),
        effective_macs_ratio=_ratio(dense.macs.total, pruned.macs.effective),
        bytes_ratio=_ratio(dense.bytes.dense, pruned.bytes.dense),
        memory_ratio=_ratio(dense.memory.total, pruned.memory.total),
        latency_ratio=_ratio(dense.latency.median_ms, pruned.latency.median_ms)
        if timed and dense.latency and pruned.latency
        else None,
    )
