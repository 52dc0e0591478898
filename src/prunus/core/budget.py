"""How much may stay: a fraction of the units, of the parameters, or of the multiply-accumulates."""

from dataclasses import dataclass
from typing import Literal

from prunus.core.errors import SpecError

Currency = Literal["units", "params", "macs"]


@dataclass(frozen=True)
class Budget:
    """What may be kept, as a fraction of the dense model; exactly one field is given.

    Attributes:
        density: fraction of the prunable units that stays, in (0, 1]; met exactly (`Budget(0.1)` keeps 10 % of the
            weights of an unstructured recipe, 10 % of the channels of a structured one).
        params: largest fraction of *all* parameters of the model, in (0, 1].
        macs: largest fraction of *all* multiply-accumulates of the model, in (0, 1].

    `params` and `macs` are ceilings: the allocation keeps as much as fits under them.
    """

    density: float | None = None
    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise SpecError(f"a budget names exactly one of density, params, macs; got {given or 'none'}")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
            raise SpecError(f"budget {name}={value!r} is outside (0, 1]: it is the fraction of the dense model to keep")

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
        return next(v for v in (self.density, self.params, self.macs) if v is not None)

    @property
    def currency(self) -> Currency:
        """What `keep` is a fraction of."""
        return "units" if self.density is not None else "params" if self.params is not None else "macs"

    def at(self, keep: float) -> "Budget":
        """The same kind of budget with another fraction: an intermediate point of a schedule."""
        name = "density" if self.currency == "units" else self.currency
        return Budget(**{name: min(1.0, max(keep, 1e-12))})

    def __str__(self) -> str:
        return f"{self.keep:.4g} of the {self.currency}"
