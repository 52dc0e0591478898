"""Training towards the dense network's outputs as a game: someone else learns to tell the two apart."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.layer import Site
from prunus.core.part import Recovery
from prunus.parts.recover.training import Outputs, logits


@dataclass(frozen=True)
class Adversary(Recovery):
    """weight * mean (f - t)^2 + mean softplus(-D(f)), f the network's class scores and t the dense network's, D a
    discriminator that learns to tell them apart: labels are not read (generative adversarial learning: Lin et al. 2019,
    CVPR, arXiv:1903.09291, eqs. 5 to 8).

    Every step D goes first, down mean softplus(-D(t)) + softplus(D(f)) + softplus(-D(f)), whose last term (adversarial
    regularization) keeps it from winning: SGD with `momentum` and `decay` at `lr`. D is three affine maps in a row with
    `widths` outputs and no nonlinearity between them, its weights begin normal with a deviation of 0.01 (all of it as
    in the official code). Outputs are a tensor or have `logits`; the last axis is the classes. Cost: a forward of the
    teacher per step and its memory, and D, a few matrices, which the session saves. Fails: `SpecError` for outputs that
    are no logits. Differs: D's rate is constant, where the official code divides it with that of the weights; it
    steps with every batch, accumulated ones too; in a distributed run every process has a D of its own.
    """

    weight: float = 1.0
    lr: float = 0.01
    momentum: float = 0.9
    decay: float = 2e-4
    widths: tuple[int, ...] = (128, 256, 128)
    throughout: bool = True
    teacher: ClassVar[bool] = True
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "inputs"

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.lr >= 0 and 0 <= self.momentum < 1 and self.decay >= 0 and self.widths):
            raise SpecError(f"{self}: weight, lr and decay >= 0, 0 <= momentum < 1, at least one width")

    def loss(self, site: Site, batch: Any) -> Tensor:
        """The distance to the teacher, and how well D sees through it; D makes its step first."""
        assert site.teacher is not None
        site.teacher.to(next(site.model.parameters()).device)
        with torch.no_grad(), Outputs(site.teacher, ()) as taught:
            site.task.outputs(site.teacher, batch)
        with Outputs(site.model, ()) as found:
            site.task.outputs(site.model, batch)
        student, target = logits(found.seen[""][-1]), logits(taught.seen[""][-1])
        layers = [t.requires_grad_() for t in discriminator(site, target, self.widths)]
        known, fooled = judged(layers, target), judged(layers, student.detach())
        own = F.softplus(-known).mean() + F.softplus(fooled).mean() + F.softplus(-fooled).mean()
        with torch.no_grad():
            for i, g in enumerate(torch.autograd.grad(own, layers)):
                p, v = layers[i].detach(), key(site, f"{i}v")
                site.memory[v] = self.momentum * site.memory.get(v, torch.zeros_like(p)) + g + self.decay * p
                site.memory[key(site, f"{i}")] = layers[i] = p - self.lr * site.memory[v]
        return self.weight * F.mse_loss(student, target) + F.softplus(-judged(layers, student)).mean()


def discriminator(
    site: Site, like: Float[Tensor, "... classes"], widths: tuple[int, ...]
) -> list[Float[Tensor, "..."]]:
    """D's weights and biases as they are by now."""
    for i, (a, b) in enumerate(zip((like.shape[-1], *widths), widths, strict=False)):
        if key(site, f"{2 * i}") not in site.memory:
            drawn = 0.01 * torch.randn(b, a, generator=site.generator)
            site.memory[key(site, f"{2 * i}")] = drawn.to(like)
            site.memory[key(site, f"{2 * i + 1}")] = like.new_zeros(b)
    return [site.memory[key(site, f"{i}")].clone() for i in range(2 * len(widths))]


def key(site: Site, name: str) -> str:
    """Where one of D's tensors is remembered; see `Site.memory`."""
    return f"{next(n for n, _ in site.model.named_parameters())}|adversary {name}"


def judged(layers: list[Tensor], x: Float[Tensor, "... classes"]) -> Float[Tensor, "... last"]:
    """D(x): large where it takes x for the dense network's."""
    for w, b in zip(layers[::2], layers[1::2], strict=True):
        x = F.linear(x, w, b)
    return x
