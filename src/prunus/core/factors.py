"""A linear map as the product of two."""

from jaxtyping import Float
from torch import Tensor, nn


class Factors(nn.Sequential):
    """Two linear maps or convolutions in a row that stand for one; what lies between them are its components.

    `weight` and `bias` are those of the one that they stand for, for code that looks at them.
    """

    @property
    def weight(self) -> Float[Tensor, "out in ..."]:
        """The product of the two."""
        first, second = (m._parameters["weight"] for m in self)
        assert first is not None and second is not None
        product: Tensor = second.flatten(1) @ first.flatten(1)
        return product.reshape(len(second), *first.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The second map's."""
        return self[1]._parameters.get("bias")
