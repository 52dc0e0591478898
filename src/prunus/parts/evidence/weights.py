"""Evidence that is read off the parameters themselves; no data, no pass."""

from collections.abc import Iterator
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Role


class ParameterEvidence(Evidence):
    """The parameters that play `roles` in a group. Cost: none; a view where one member is scored along axis 0."""

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, {name: p.detach() for name, p in sources.parameters.items()})


class ScaleEvidence(ParameterEvidence):
    """The scale factors of the normalizations in a group; undefined on groups without one."""

    roles: tuple[Role, ...] = ("scale",)  # type: ignore[misc]


class AffineEvidence(ParameterEvidence):
    """Scale and shift of the normalizations in a group; undefined on groups without one."""

    roles: tuple[Role, ...] = ("scale", "shift")  # type: ignore[misc]


class MakerEvidence(ParameterEvidence):
    """Everything that makes a unit: the weights that produce it, its normalization's scale and shift, its bias. A unit
    of which all of that is zero is silent ("zero-invariant": Chen et al. 2021, arXiv:2107.07467).
    """

    roles: tuple[Role, ...] = ("out", "scale", "shift", "bias")  # type: ignore[misc]


Weight = Annotated[Float[Tensor, "*units k"], ParameterEvidence()]
"""`[*units, k]`: the weights that produce each unit (a filter's entries; k = 1 for a single weight)."""

Scale = Annotated[Float[Tensor, "*units k"], ScaleEvidence()]
"""`[*units, k]`: the normalization scales (gamma) of each unit."""

Affine = Annotated[Float[Tensor, "*units k"], AffineEvidence()]
"""`[*units, k]`: the normalization scales and shifts (gamma, beta) of each unit."""

Maker = Annotated[Float[Tensor, "*units made"], MakerEvidence()]
"""`[*units, made]`: all that makes each unit: its weights, its normalization's scale and shift, its bias."""
