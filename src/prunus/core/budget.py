"""How much may stay: a fraction of the units, parameters, multiply-accumulates, bytes, or of the measured latency."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from prunus.core.errors import SpecError

Currency = Literal["units", "params", "macs", "bytes", "latency"]
PHYSICAL = ("bytes", "latency")
"""Currencies in which only what is cut out of the model counts: a zero takes as much room and time as a number."""


class Timing(NamedTuple):
    """What a clock found: the time of a pruned model as a share of the dense one's, run in turn with it.

    Attributes:
        share: median time of the pruned model over the median of the dense one, below 1 where it is faster.
        low, high: the quartiles of that share over neighbouring runs.
    """

    share: float
    low: float
    high: float


@runtime_checkable
class Prices(Protocol):
    """What a network would take if some of its parameters were smaller, without making it."""

    def share(self, left: Mapping[str, Sequence[int]]) -> float:
        """Its time over the dense network's; `left`: parameter -> shape, those that are whole may be missing."""

    def ms(self, left: Mapping[str, Sequence[int]], of: Sequence[str] | None = None) -> float:
        """Its milliseconds; those that hang on the parameters `of` alone, where they are named."""


Clock = Callable[[Any, Any, Any], Timing]
"""`(dense, pruned, example) -> Timing`: what a budget in latency is measured by."""


@dataclass(frozen=True)
class Budget:
    """What may be kept, as a fraction of the dense model; exactly one of the shares is given.

    Attributes:
        density: fraction of the prunable units that stays, in (0, 1]; met exactly (`Budget(0.1)` keeps 10 % of the
            weights of an unstructured recipe, 10 % of the channels of a structured one).
        params: largest fraction of *all* parameters of the model, in (0, 1].
        macs: largest fraction of *all* multiply-accumulates of the model, in (0, 1].
        bytes: largest fraction of the bytes of the model's state (parameters and buffers as they are saved, each by
            the size of its own type, shared ones once), in (0, 1]. Structured recipes only: zeros are stored too.
        latency: largest fraction of the dense model's median latency, measured on this machine with the example as it
            is, batch included, in (0, 1]. Structured recipes only: a dense kernel multiplies zeros too.
        solver: with `latency` alone. "knapsack" (or left out): where a recipe ranks the units of all layers together,
            the most valuable units for the time that they take are kept instead (HALP: `LatencyKnapsack`). "own": the
            recipe's own allocation decides, whatever it is.

    All but `density` are ceilings: the allocation keeps as much as fits under them.
    """

    density: float | None = None
    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    solver: Literal["knapsack", "own"] | None = None

    def __post_init__(self) -> None:
        given = self._shares()
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self) if f.name != "solver")
            raise SpecError(f"a budget names exactly one of {names}; got {given or 'none'}")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
            raise SpecError(f"budget {name}={value!r} is outside (0, 1]: it is the fraction of the dense model to keep")
        if self.solver is not None and (self.latency is None or self.solver not in ("knapsack", "own")):
            raise SpecError(
                f"solver={self.solver!r}: a budget in latency takes 'knapsack' or 'own', no other budget any"
            )

    def _shares(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None and k != "solver"}

    @classmethod
    def from_sparsity(cls, sparsity: float) -> "Budget":
        """The budget that removes the fraction `sparsity` of the units; refuses values outside [0, 1)."""
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0.0 <= sparsity < 1.0:
            raise SpecError(
                f"sparsity={sparsity!r} is outside [0, 1): it is the fraction of units to remove "
                f"(0.9 keeps a tenth; to give a kept fraction use Budget(density=...))"
            )
        return cls(density=1.0 - sparsity)

    @property
    def keep(self) -> float:
        """The fraction to keep, whatever it is a fraction of."""
        return next(float(v) for v in self._shares().values())

    @property
    def currency(self) -> Currency:
        """What `keep` is a fraction of."""
        return next((c for c in get_args(Currency) if getattr(self, c, None) is not None), "units")

    def at(self, keep: float) -> "Budget":
        """The same kind of budget with another fraction: an intermediate point of a schedule."""
        name = "density" if self.currency == "units" else self.currency
        share: Any = {name: min(1.0, max(keep, 1e-12))}
        return replace(self, **share)

    def __str__(self) -> str:
        return f"{self.keep:.4g} of the {self.currency}"
