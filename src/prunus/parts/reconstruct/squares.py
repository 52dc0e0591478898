"""The weights of least error on a given support, and the bias that carries the mean of what is gone."""

from dataclasses import dataclass

from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction
from prunus.parts.evidence.curvature import solvable
from prunus.parts.reconstruct.solve import check_damp, on_support


@dataclass(frozen=True)
class LeastSquares(Reconstruction):
    """min ||X W'^T - X W^T||^2 over weights that are zero where the mask is: what stays is fitted to the layer's own
    output (He et al. 2017, arXiv:1707.06168, eq. 3; ThiNet, arXiv:1707.06342, section 3.3).

    `damp` times the mean square of the inputs pulls the weights towards what they were. With `intercept`, the bias is
    fitted as well, where the layer has one. Shapes: `[out, in] -> [out, in]`. Cost: in^3 / 3 where all rows keep the
    same columns, out * in^3 / 3 where they do not. Fails: inputs without a Cholesky factor get more damping, and a
    warning says how much. Differs: both papers fit to the outputs of the unpruned network; here the inputs are those of
    the layers before as pruned, and the target is what the layer itself made of them before.
    """

    damp: float = 1e-4
    intercept: bool = False

    def __post_init__(self) -> None:
        check_damp("LeastSquares", self.damp)

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        if not self.intercept or layer.bias is None:
            return Update(on_support(layer.w, layer.keep, solvable(layer.gram, self.damp, layer.name)), layer.keep)
        spread = layer.gram - layer.mean.outer(layer.mean)
        w = on_support(layer.w, layer.keep, solvable(spread, self.damp, layer.name))
        return Update(w, layer.keep, layer.bias + (layer.w - w) @ layer.mean)


@dataclass(frozen=True)
class BiasCompensation(Reconstruction):
    """b + sum over what is removed of w_j E[x_j]: the mean of what is gone goes into the bias (FLAP: An et al. 2024,
    arXiv:2312.11983, section 4.3; cited there as baseline bias compensation).

    Shapes: `[out, in] -> [out, in]`, `[out]`. Cost: one product. Fails: a layer without a bias keeps none, and a
    warning names it. Differs: FLAP's code gives layers without a bias one; here the network's parameters stay those it
    has.
    """

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        gone = layer.w.masked_fill(layer.keep, 0.0) @ layer.mean
        bias = gone if layer.bias is None else layer.bias + gone
        return Update(layer.w.masked_fill(~layer.keep, 0.0), layer.keep, bias)
