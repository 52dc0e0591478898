"""What is done to the weights that a network is left with before it is trained: orthogonal, rescaled, signs alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.layer import Site
from prunus.core.part import Recovery


@dataclass(frozen=True)
class ApproximateIsometry(Recovery):
    """min ||W W^T - I||_F of every layer over the weights that are left, so that signals keep their lengths in the
    sparse network (approximate dynamical isometry: Lee et al. 2020, arXiv:1906.06307, section 5).

    Weights are first divided by the layer's largest singular value, then W <- W - step (W W^T - I) W with pruned
    entries held at zero, `iterations` times. W is `[out, in*kernel]`; W W^T and W^T W have the same minimizers, so the
    smaller one is used. The model should be initialized orthogonally (`torch.nn.init.orthogonal_`) before it is scored,
    as in the paper. Cost: `iterations` products of each layer's matrix with itself, in float64. Differs: the official
    code descends on the norm itself, 10 000 steps at rate 0.1; here on its square, which does not oscillate.
    """

    iterations: int = 500
    step: float = 0.5
    restarts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0.0 < self.step < 1.0:
            raise SpecError(f"{self}: iterations at least 1, 0 < step < 1")

    @torch.no_grad()
    def __call__(self, site: Site) -> None:
        for _, p, keep in matrices(site):
            flat = p.detach().double().reshape(len(p), -1) * keep
            largest = torch.linalg.matrix_norm(flat, 2)
            if largest > 0:
                p.copy_(self.orthogonal(flat / largest, keep).reshape(p.shape))

    def orthogonal(
        self, w: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"], tolerance: float = 1e-10
    ) -> Float[Tensor, "out in"]:
        """Descent from `w`, whose singular values are at most 1."""
        wide = w.shape[0] <= w.shape[1]
        eye = torch.eye(min(w.shape), dtype=w.dtype, device=w.device)
        for _ in range(self.iterations):
            slope = ((w @ w.T - eye) @ w if wide else w @ (w.T @ w - eye)) * keep
            w = w - self.step * slope
            if slope.abs().max() < tolerance:
                break
        return w


@dataclass(frozen=True)
class EdgeOfChaos(Recovery):
    """w <- rho_l w with rho_l^2 = E[N w^2] of the dense layer / E[N w^2 m] of the pruned one: back to where the layer
    was initialized, which is meant to be the edge of chaos (the rescaling trick of Hayou et al. 2021, arXiv:2002.08797,
    proposition 3: rho_l = E[N w^2 m]^(-1/2)).

    The mean runs over the rows (outputs) that are left, N is the fan-in, so the sums of squares of rows are what they
    were on average. Layers that lose nothing, and layers of which nothing is left, stay as they are. Cost: a copy of
    the dense model, two passes over the weights. Differs: the paper's formula is for weights of variance 1/N; the
    numerator makes it hold for any variance (2/N for relu).
    """

    teacher: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, site: Site) -> None:
        assert site.teacher is not None
        dense = dict(site.teacher.named_parameters())
        for name, p, keep in matrices(site):
            rows = keep.any(1)
            before = dense[name].detach().double().reshape(len(p), -1)[rows].square().sum()
            after = (p.detach().double().reshape(len(p), -1) * keep)[rows].square().sum()
            if not bool(keep.all()) and after > 0:
                p.mul_((before / after).sqrt().to(p.dtype))


@dataclass(frozen=True)
class SignedConstant(Recovery):
    """w <- sign(w) sigma_l, sigma_l the standard deviation of the layer's weights at the start: of what is left, only
    the signs remain (Zhou et al. 2019, arXiv:1905.01067).

    After rounds that rewind, the signs are those of initialization. Weights of exactly zero stay zero; biases and
    normalizations are left alone. Cost: a copy of the model as it was, one pass over the weights. Differs: the authors'
    code can scale the constant; all weights of a layer count for sigma, pruned ones too, as in theirs.
    """

    teacher: ClassVar[bool] = True
    restarts: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, site: Site) -> None:
        assert site.teacher is not None
        start = dict(site.teacher.named_parameters())
        for name, p, _ in matrices(site):
            p.copy_(p.sign() * start[name].detach().double().std(correction=0).to(p.dtype))


def matrices(site: Site) -> Iterator[tuple[str, Tensor, Bool[Tensor, "out in"]]]:
    """The weights that were ranked and have two axes or more: name, parameter, and what is kept as a matrix."""
    named = dict(site.model.named_parameters())
    for name in dict.fromkeys(m.param for g in site.groups for m in g.with_role("out")):
        p = named[name]
        if p.ndim >= 2 and p.numel():
            keep = site.masks.get(name, torch.ones_like(p, dtype=torch.bool))
            yield name, p, keep.reshape(len(p), -1)
