"""Evidence from gradients of the task's loss on the calibration batches."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Role
from prunus.parts.evidence.mode import averaged_over_ranks, batch_gradients, divided_outputs, evidence_mode

NO_BATCH = "the calibration data yields no batch: pass at least one in Task(calib=...)"


def scored(sources: Sources, roles: tuple[Role, ...]) -> dict[str, Tensor]:
    """The parameters that play one of `roles` in some group, each once."""
    names = dict.fromkeys(m.param for g in sources.groups for m in g.with_role(*roles))
    return {n: sources.parameters[n] for n in names}


class GradEvidence(Evidence):
    """dL/dw, averaged over the calibration batches. Cost: one forward and backward per batch, one gradient in memory.

    The model runs in evaluation mode unless the asking part has `train_mode=True` (official codes
    differ). Inside a training loop the gradient that is there anyway is used.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "one forward and backward per batch"
    in_training = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        if sources.gradients is not None:
            yield self.by_group(sources, sources.gradients)
            return
        yield self.by_group(sources, mean_gradient(sources, scored(sources, self.roles)))


class BatchGradEvidence(Evidence):
    """dL/dw of each calibration batch on its own. The criterion is called once per batch, its scores averaged."""

    reads: ClassVar[Literal["labels"]] = "labels"
    per_batch = True
    passes = "one forward and backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        train = bool(sources.settings.get("train_mode", False))
        empty = True
        for batch in sources.task.calibration():
            # The mode is left before each yield: whoever consumes this may raise, and then nothing would put it back.
            with evidence_mode(sources.model, names, sources.generator, train=train):
                gradient = next(batch_gradients(sources.model, sources.task, [batch], names))
            empty = False
            yield self.by_group(sources, gradient)
        if empty:
            raise DataError(NO_BATCH)


class BatchGradAffineEvidence(BatchGradEvidence):
    """As `BatchGradEvidence`, of normalization scales and shifts."""

    roles: tuple[Role, ...] = ("scale", "shift")  # type: ignore[misc]


class BatchGradScaleEvidence(BatchGradEvidence):
    """As `BatchGradEvidence`, of normalization scales."""

    roles: tuple[Role, ...] = ("scale",)  # type: ignore[misc]


class HessianGradEvidence(Evidence):
    """Hg, the Hessian of the loss times its gradient, both averaged over the calibration batches.

    One pass for g, a second that differentiates <g_batch, stop(g)>, so batches never have to be in memory together. g
    runs over every parameter with two axes or more (convolutions and linear layers in the official code), whichever of
    them are scored: a filter is then worth the sum of what its weights are worth on their own.
    The asking part's `temperature` divides the outputs before the loss. Cost: two forwards, one backward and one double
    backward per batch.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "two forwards, a backward and a double backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        train = bool(sources.settings.get("train_mode", False))
        temperature = float(sources.settings.get("temperature", 1.0))
        matrices = {n: p for n, p in sources.parameters.items() if p.ndim >= 2 and p.is_floating_point()}
        over = matrices | names
        with divided_outputs(sources.model, temperature):
            g = mean_gradient(sources, over)
            total = {name: torch.zeros_like(p) for name, p in names.items()}
            count = 0
            # Fused attention has no second derivative; the plain form of it has.
            plain = sdpa_kernel(SDPBackend.MATH)
            with evidence_mode(sources.model, over, sources.generator, train=train), plain:
                for batch in sources.task.calibration():
                    loss = sources.task.loss_of(sources.model, batch)
                    for name, h in hessian_product(loss, names, over, g).items():
                        total[name] += h
                    count += 1
        if not count:
            raise DataError("the calibration data could be iterated only once, and Hg takes two passes: pass a list")
        yield self.by_group(sources, averaged_over_ranks({n: t / count for n, t in total.items()}))


def hessian_product(
    loss: Tensor, names: Mapping[str, Tensor], over: Mapping[str, Tensor], v: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rows `names` of Hv by differentiating <gradient over `over`, v>; what does not enter it is missing."""
    if not loss.requires_grad:
        return {}
    first = torch.autograd.grad(loss, list(over.values()), create_graph=True, allow_unused=True)
    found = [(d * v[name]).sum() for name, d in zip(over, first, strict=True) if d is not None and d.requires_grad]
    terms = [t.to(found[0].device) for t in found]
    if not terms:
        return {}
    second = torch.autograd.grad(torch.stack(terms).sum(), list(names.values()), allow_unused=True)
    return {name: h for name, h in zip(names, second, strict=True) if h is not None}


def mean_gradient(sources: Sources, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the loss, averaged over the calibration batches and over the ranks of a distributed run."""
    train = bool(sources.settings.get("train_mode", False))
    total: dict[str, Tensor] = {}
    count = 0
    with evidence_mode(sources.model, names, sources.generator, train=train):
        for gradient in batch_gradients(sources.model, sources.task, sources.task.calibration(), names):
            count += 1
            total = gradient if not total else {n: t.add_(gradient[n]) for n, t in total.items()}
    if not count:
        raise DataError(NO_BATCH)
    return averaged_over_ranks({n: t / count if count > 1 else t for n, t in total.items()})


Grad = Annotated[Float[Tensor, "*units k"], GradEvidence()]
"""`[*units, k]`: dL/dw of the producing weights, averaged over the calibration batches."""

BatchGrad = Annotated[Float[Tensor, "*units k"], BatchGradEvidence()]
"""`[*units, k]`: dL/dw of the producing weights on one batch; scores are averaged over batches."""

BatchGradAffine = Annotated[Float[Tensor, "*units k"], BatchGradAffineEvidence()]
"""`[*units, k]`: dL/d(gamma, beta) on one batch; scores are averaged over batches."""

BatchGradScale = Annotated[Float[Tensor, "*units k"], BatchGradScaleEvidence()]
"""`[*units, k]`: dL/dgamma on one batch; scores are averaged over batches."""

HessianGrad = Annotated[Float[Tensor, "*units k"], HessianGradEvidence()]
"""`[*units, k]`: (Hg) of the producing weights."""
