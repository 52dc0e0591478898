"""What running a dense and a pruned model on every runtime found: rows, what is absent, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prunus.deploy.patterns import Left
from prunus.measure.timing import LatencyRatio


@dataclass(frozen=True)
class Timed:
    """One model on one runtime.

    Attributes:
        median_ms, q25_ms, q75_ms: of one inference of the batch.
        error: the largest difference to eager float32 PyTorch, over the largest value of each output.
        bytes: of the file that is loaded, or of parameters and buffers.
        memory: how far the process rose above what it was before the model was made ready, at most, during inference;
            None where the system does not say. About right: libraries keep blocks back, and share some.
    """

    median_ms: float
    q25_ms: float
    q75_ms: float
    error: float
    bytes: int
    memory: int | None


@dataclass(frozen=True)
class Row:
    """The dense and the pruned model on one runtime.

    Attributes:
        runtime: its title. precision: what it computes in.
        ratio: time of the dense model / time of the pruned one, both here.
        over_eager: time of the dense model in eager float32 PyTorch / time of the pruned one here.
        efficiency: the ratio's median / the ratio of MACs: 1 if every operation that is saved saves its time.
        per_second: inputs of the pruned model per second.
        batch, threads: of every run.
        notes: what the runtime says of its sessions.
    """

    runtime: str
    precision: str
    dense: Timed
    pruned: Timed
    ratio: LatencyRatio
    over_eager: LatencyRatio
    efficiency: float
    per_second: float
    batch: int
    threads: int
    device: str
    runs: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Absent:
    """A runtime that is not among the rows, and why."""

    runtime: str
    reason: str


@dataclass(frozen=True)
class Deployment:
    """Everything that `deploy` found, the fastest first.

    Attributes:
        says: sentences, the most important first: whether anything turns the pattern into speed.
        rows: by the time of the pruned model.
        absent: runtimes that are missing or failed.
        left: what pruning left.
        flushed: tensors of either model and how many of their numbers were too small and run as zeros.
        machine: what it was measured on, from `prunus.measure.machine`.
    """

    says: tuple[str, ...]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]
    left: Left
    flushed: Mapping[str, int]
    batch: int
    threads: int
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Row | None:
        """The runtime on which the pruned model takes the least time."""
        return self.rows[0] if self.rows else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"left": self.left.to_dict()}


def sentences(
    rows: tuple[Row, ...], what: Left, able: Mapping[str, frozenset[str]], sparse: Mapping[str, str], amx: bool
) -> tuple[str, ...]:
    """What the measurements come to, before anybody reads a table.

    Args:
        rows: by time.
        what: what pruning left.
        able: patterns by the runtimes that turn them into speed and ran.
        sparse: why those runtimes that could have are not among the rows.
        amx: whether the processor multiplies tiles of bfloat16 or int8.
    """
    found: list[str] = []
    users = [n for n, skips in able.items() if skips & what.patterns]
    if what.patterns:
        share = f"{what.zeros:.0%} of the weights are zeros"
        if not users:
            others = "; ".join(f"{n}: {why}" for n, why in sparse.items())
            found.append(
                f"{share}, and nothing that ran here skips them: they are multiplied like any number, so expect 1.00x "
                f"of the dense time. What would: cutting units out (a structured method, compacted), or kernels that "
                f"skip zeros{f' ({others})' if others else ''}."
            )
        else:
            gained = {r.runtime: r.ratio.verdict for r in rows}
            each = " and ".join(f"{n} (there: {gained[n]})" for n in users)
            found.append(f"{share}: only {each} can skip them; the other runtimes multiply with them.")
    if what.macs_ratio > 1.01:
        found.append(f"The pruned model needs {1 / what.macs_ratio:.1%} of the MACs ({what.macs_ratio:.2f}x fewer).")
    elif not what.patterns:
        found.append("The two models compute the same number of MACs and the pruned one has hardly a zero.")
    if rows:
        best = rows[0]
        found.append(
            f"Fastest: {best.runtime}, {best.pruned.median_ms:.2f} ms, {best.ratio.verdict} than dense there"
            f" and {best.over_eager.median:.2f}x of dense eager PyTorch's speed."
        )
    if amx and what.patterns:
        found.append(
            "This processor has AMX: dense bfloat16 or int8 is faster than float32 with zeros below about 95 %. "
            "Quantize first (--quantize bf16 or int8), and cut units out for what it leaves."
        )
    return tuple(found)
