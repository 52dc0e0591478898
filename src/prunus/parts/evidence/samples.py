"""Gradients of every sample by itself, of weights, from one backward pass for the whole batch.

The gradient of a linear map's weight is the sum over samples and positions of dL/dy x^T. Captured inputs and output
gradients (`prunus.parts.evidence.capture`) therefore hold the samples' own gradients: they are only summed later.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.core.evidence import Sources
from prunus.core.groups import Group
from prunus.parts.evidence.activations import samples_of
from prunus.parts.evidence.capture import Capture, Use
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import evidence_mode

AT_ONCE = 2**24
"""How many numbers of per-sample gradients are in memory at once."""

WIDEST = 4096
"""How many outputs may belong together, where the Hessian of the loss with respect to them is taken."""


@dataclass(eq=False)
class SampleGradients:
    """The gradients of single samples that one backward pass holds.

    Rows are joined to samples as in `prunus.parts.evidence.activations`: the first axis of a layer's input is taken for
    the samples, or for equal parts of them. A weight that meets the data in another way as well (a tied table, a
    recurrent cell), or whose rows are no parts of samples (tokens dealt out to experts), is not among `names`.

    Attributes:
        uses: name -> where the weight is applied, output gradients noted.
        whole: name -> the gradient of the whole batch, or None where it was not reached.
        samples: how many samples the batch has.
        scale: what a sample's share of the gradient is multiplied by.
    """

    uses: Mapping[str, Sequence[Use]]
    whole: Mapping[str, Tensor | None]
    shapes: Mapping[str, torch.Size]
    samples: int
    scale: float

    def __post_init__(self) -> None:
        self.names = [n for n in self.shapes if self._adds_up(n)]

    def rows(self, name: str) -> Iterator[Float[Tensor, "samples entries"]]:
        """The samples' gradients, each laid out like the flattened weight, as many samples at a time as fit."""
        size = math.prod(self.shapes[name])
        step = max(1, AT_ONCE // max(1, size))
        pairs = [pair for use in self.uses.get(name, ()) if (pair := split(use, self.samples)) is not None]
        for start in range(0, self.samples, step):
            part = slice(start, start + step)
            total = sum(torch.einsum("gnpo,gnpi->ngoi", gy[:, part], x[:, part]) for _, gy, x in pairs)
            yield laid_out(total, pairs[0][0]) * self.scale if isinstance(total, Tensor) else self._none(name, part)

    def squares(self, name: str) -> Float[Tensor, "entries"]:
        """The sum over samples of the squared gradients. Without positions the squares factorize."""
        pairs = [pair for use in self.uses.get(name, ()) if (pair := split(use, self.samples)) is not None]
        if len(pairs) == 1 and pairs[0][1].shape[2] == 1:
            use, gy, x = pairs[0]
            total = torch.einsum("gnpo,gnpi->goi", gy.square(), x.square()).unsqueeze(0)
            return laid_out(total, use)[0] * self.scale**2
        return torch.stack([rows.square().sum(0) for rows in self.rows(name)]).sum(0)

    def _none(self, name: str, part: slice) -> Float[Tensor, "samples entries"]:
        count = len(range(*part.indices(self.samples)))
        whole = self.whole[name]
        return torch.zeros(count, math.prod(self.shapes[name]), device=None if whole is None else whole.device)

    def _adds_up(self, name: str) -> bool:
        """Whether the samples' gradients add up to the batch's, so that nothing of the weight's work is unseen."""
        whole = self.whole[name]
        if whole is None:
            return True
        total = torch.zeros_like(wide(whole)).flatten()
        for use in self.uses.get(name, ()):
            if use.gy is None:
                continue
            pair = split(use, self.samples)
            if pair is None:
                return False
            total += laid_out(torch.einsum("gnpo,gnpi->goi", pair[1], pair[2]).unsqueeze(0), use)[0]
        room = min(0.05, 10 * math.sqrt(torch.finfo(whole.dtype).eps))
        return bool((total - wide(whole).flatten()).norm() <= room * wide(whole).norm())


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def split(use: Use, samples: int) -> tuple[Use, Float[Tensor, "g n p o"], Float[Tensor, "g n p i"]] | None:
    """Output gradients and inputs of a use: group of a grouped convolution, sample, position, entry. None where there
    is no gradient, or rows are no parts of samples.
    """
    if use.gy is None:
        return None
    x = use.columns()
    if use.conv is None:
        gy = use.gy.reshape(1, -1, use.gy.shape[-1])
        first = use.x.shape[0] if use.x.ndim > 1 else 1
    else:
        channels = use.by_channel(use.gy)  # batch, out, places
        first = channels.shape[0]
        apart = channels.reshape(first, use.groups, -1, channels.shape[2])
        gy = apart.permute(1, 0, 3, 2).reshape(use.groups, -1, apart.shape[2])
    if first % samples or x.shape[1] % samples:
        return None
    return use, wide(gy).unflatten(1, (samples, -1)), wide(x).unflatten(1, (samples, -1))


def laid_out(gradient: Float[Tensor, "n g o i"], use: Use) -> Float[Tensor, "n entries"]:
    """Gradients of the matrix `[out, in]` as the weight lies in memory."""
    return (gradient if use.in_axis == 1 else gradient.transpose(2, 3)).flatten(1)


def each_backward(
    sources: Sources, names: Mapping[str, Tensor], kind: str, take: Callable[[SampleGradients], None]
) -> int:
    """Run the calibration batches and hand over the samples' gradients of every backward pass.

    kind: `empirical`: those of the samples' own losses, for a loss that is a mean over the batch.
    `gauss_newton`: J^T s with s s^T summing to the Hessian of a sample's loss with respect to its outputs, so that the
    sum of their squares is the generalized Gauss-Newton matrix (the Fisher information, where outputs are logits).
    `outputs`: J^T s with s s^T the identity on average; labels are not read.

    The asking part's `probes` says how many s are drawn per batch; without it, or with 0, all of them are taken.
    Returns: how many samples there were. Cost: a forward per batch and a backward per s.
    Errors: `DataError` without a batch; `SpecError` where outputs are no tensor.
    """
    train, probes = bool(sources.settings.get("train_mode", False)), int(sources.settings.get("probes", 0))
    shapes = {n: p.shape for n, p in names.items()}
    seen = 0
    for batch in sources.task.calibration():
        samples = samples_of(batch)
        if samples is None:
            raise DataError("the samples of a batch that holds no tensor cannot be told apart")
        with evidence_mode(sources.model, names, sources.generator, train=train):
            with Capture(names, gradients=True) as capture:
                if kind == "empirical":
                    target = sources.task.loss_of(sources.model, batch)
                    aims: Iterator[Tensor | None] = iter([None])
                else:
                    target, aims = aimed(sources, batch, samples, kind, probes)
            uses: dict[str, list[Use]] = {}
            for use in capture.uses:
                uses.setdefault(use.name, []).append(use)
            for aim in aims:
                for use in capture.uses:
                    use.gx = use.gy = None
                whole: tuple[Tensor | None, ...] = (None,) * len(names)
                if target.requires_grad:
                    whole = torch.autograd.grad(
                        target, list(names.values()), grad_outputs=aim, allow_unused=True, retain_graph=aim is not None
                    )
                scale = float(samples) if aim is None else 1.0
                with torch.no_grad():
                    take(SampleGradients(uses, dict(zip(names, whole, strict=True)), shapes, samples, scale))
        seen += samples
    if not seen:
        raise DataError(NO_BATCH)
    return seen


def aimed(sources: Sources, batch: Any, samples: int, kind: str, probes: int) -> tuple[Tensor, Iterator[Tensor | None]]:
    """The model's outputs on a batch, and the directions s in which to differentiate them.

    Outputs along the last axis belong together; a sample's positions are taken to enter its loss independently, and
    get random signs where there are several, so that products between them vanish on average.
    """
    found: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: object) -> object:
        """Note the outputs and let the loss be computed from a leaf, so that it can be differentiated twice."""
        tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(tensor, Tensor):
            raise SpecError(f"the model's output is a {type(output).__name__}; a tensor or its `logits` is needed here")
        found[:] = [tensor, tensor.detach().requires_grad_(True)]
        if isinstance(output, Tensor):
            return found[1]
        output.logits = found[1]  # type: ignore[attr-defined]
        return output

    handle = sources.model.register_forward_hook(cut)
    try:
        if kind == "outputs":
            sources.task.outputs(sources.model, batch)
            loss = None
        else:
            loss = sources.task.loss_of(sources.model, batch)
    finally:
        handle.remove()
    if not found:
        raise SpecError("the model's own forward is not what was called: outputs cannot be differentiated")
    outputs, leaf = found
    roots = None if loss is None else square_roots(loss, leaf) * math.sqrt(samples)
    return outputs, directions(outputs.detach(), roots, probes, sources.generator)


def square_roots(loss: Tensor, leaf: Tensor) -> Float[Tensor, "... d d"]:
    """`[..., d, d]`: S with S S^T the Hessian of the loss with respect to the outputs at one position; its negative
    eigenvalues are left out.
    """
    width = leaf.shape[-1]
    if width > WIDEST:
        raise SpecError(f"{width} outputs are too many for their Hessian; take fisher='empirical'")
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True, allow_unused=True)
    if slope is None:
        raise SpecError("the loss does not depend on the model's outputs (it is computed inside): fisher='empirical'")
    if not slope.requires_grad:
        return torch.zeros(*leaf.shape, width, dtype=leaf.dtype, device=leaf.device)
    columns = [torch.autograd.grad(slope[..., i].sum(), leaf, retain_graph=True)[0] for i in range(width)]
    values, vectors = torch.linalg.eigh(wide(torch.stack(columns, -1)))
    roots: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(leaf.dtype)
    return roots


def directions(
    outputs: Tensor, roots: Float[Tensor, "... d d"] | None, probes: int, generator: torch.Generator
) -> Iterator[Tensor | None]:
    """Directions of the outputs' shape: the columns of `roots` (identity if None), or so many random mixtures."""
    width = outputs.shape[-1]
    several = outputs.ndim > 2

    def signs(*shape: int) -> Tensor:
        drawn = torch.randint(2, shape, generator=generator) * 2 - 1
        return drawn.to(device=outputs.device, dtype=outputs.dtype)

    for i in range(probes or width):
        if probes:
            mix = signs(*outputs.shape) / math.sqrt(probes)
            yield mix if roots is None else torch.einsum("...ij,...j->...i", roots, mix)
        else:
            one = torch.zeros_like(outputs)
            one[..., i] = 1.0
            aim = one if roots is None else roots[..., i]
            yield aim * signs(*outputs.shape[:-1], 1) if several else aim


def by_whole_group(sources: Sources, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `Evidence.by_group`, without the groups of which some weight is missing."""
    views: dict[str, Tensor] = {}
    for group in sources.groups:
        members = group.with_role("out")
        if members and all(m.param in tensors for m in members):
            views[group.name] = group.views(members, tensors)
    return views


def owners(group: Group, name: str, shape: torch.Size) -> Int[Tensor, "entries"]:
    """Which unit of a group each entry of a flattened weight belongs to; `group.units` where it belongs to none."""
    numbers = torch.arange(1, math.prod(shape) + 1).reshape(shape)
    owner = torch.full((math.prod(shape) + 1,), group.units)
    units = torch.arange(group.units).reshape(*group.shape, 1)
    for member in group.with_role("out"):
        if member.param == name:
            at = group.view(member, numbers)
            owner[at] = units.expand(at.shape)
    return owner[1:]
