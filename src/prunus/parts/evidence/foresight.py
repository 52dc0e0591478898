"""Gradients that look beyond the loss at hand: through steps of training to come, at random inputs, or of the kernel
by which the network will train.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.core.errors import DataError, SpecError, StructureError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.task import Task
from prunus.graph.duplicate import duplicate
from prunus.parts.evidence.gradients import NO_BATCH, scored
from prunus.parts.evidence.inputs import example_call, floating_outputs, gaussian_call
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode


class NoiseGradEvidence(Evidence):
    """dL/dw of standard normal inputs and labels that mean nothing; no data is read, only the example's shape.

    L is the cross entropy of the outputs, whose last axis are the classes, with uniformly drawn labels (the asking
    part's `labels="random"`) or with the uniform distribution over the classes ("uniform": Lee et al. 2020,
    arXiv:1906.06307). Cost: one forward and backward of `samples` inputs.
    """

    random = True
    passes = "one forward and backward of random inputs"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        call = example_call(sources, "a gradient at random inputs")
        like = next(iter(names.values()))
        args, kwargs = gaussian_call(call, int(sources.settings.get("samples", 64)), sources.generator, like)
        with evidence_mode(sources.model, names, sources.generator):
            logits = first_output(sources.model(*args, **kwargs))
            rows = logits.reshape(-1, logits.shape[-1])
            if sources.settings.get("labels", "random") == "random":
                drawn = torch.randint(rows.shape[1], (len(rows),), generator=sources.generator).to(rows.device)
                loss = F.cross_entropy(rows, drawn)
            else:
                loss = -rows.log_softmax(-1).mean()
            found = gradients(loss, names)
        yield self.by_group(sources, averaged_over_ranks(found))


class KernelGradEvidence(Evidence):
    """The gradient, with respect to the mask, of ||f(theta * m) - f((theta + epsilon n) * m)||^2, summed over samples
    (NTK-SAP: Wang et al. 2023, arXiv:2304.02840): how much the trace of the neural tangent kernel hangs on
    a weight.

    Everything is drawn anew at each call: weights by the modules' own `reset_parameters`, standard normal inputs of
    the example's shape, standard normal perturbations n of all weights with two axes or more. Normalizations take their
    statistics from the same inputs first. On a float64 copy of the model in evaluation mode. Of the asking part's
    fields, `draws` says how many times (summed), `samples` how many inputs each, `epsilon` how far. Parameters that no
    module resets keep their values. Cost: per draw, three forwards and two backwards.
    """

    random = True
    passes = "three forwards and a backward of random inputs per draw"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        call = example_call(sources, "NTK-SAP")
        settings, draw = sources.settings, sources.generator
        samples, epsilon = int(settings.get("samples", 64)), float(settings.get("epsilon", 0.01))
        scores = scored(sources, self.roles)
        names = {n for n, p in sources.parameters.items() if (p.ndim >= 2 and p.is_floating_point()) or n in scores}
        keep = kept_entries(sources)
        net = duplicate(sources.model).double().eval().requires_grad_(False)
        total: dict[str, Tensor] = {}
        for _ in range(int(settings.get("draws", 1))):
            reset_(net, draw)
            weights = {n: p.detach() for n, p in net.named_parameters() if n in names}
            device = next(iter(weights.values())).device
            args, kwargs = gaussian_call(call, samples, draw, torch.empty(0, dtype=torch.float64, device=device))
            masks = {n: (keep[n] if n in keep else torch.ones_like(w)).double() for n, w in weights.items()}
            pruned = {n: w * masks[n] for n, w in weights.items()}
            with torch.random.fork_rng(devices=devices_of(net)):
                settle_(net, lambda w=pruned, a=args, k=kwargs: functional_call(net, w, a, k))  # type: ignore[misc]
            masks = {n: m.requires_grad_(True) for n, m in masks.items()}
            moved = {n: w + epsilon * torch.randn(w.shape, generator=draw).to(w) for n, w in weights.items()}
            with torch.enable_grad():
                here = first_output(functional_call(net, {n: w * masks[n] for n, w in weights.items()}, args, kwargs))
                there = first_output(functional_call(net, {n: w * masks[n] for n, w in moved.items()}, args, kwargs))
                found = gradients((here - there).square().sum(), masks)
            total = {n: g + total[n] if n in total else g for n, g in found.items()}
        yield self.by_group(sources, {n: g.masked_fill(~keep[n], 0.0) if n in keep else g for n, g in total.items()})


class MetaGradEvidence(Evidence):
    """dL(w_M)/dm at m = 1, where w_M is what M steps of gradient descent make of w_0 * m (ProsPr: Alizadeh et al. 2022,
    arXiv:2202.08132).

    Every step and the last loss take the next calibration batch, round and round. Of the asking part's fields, `steps`
    is M, `rate` and `momentum` are those of descent (all parameters move), `first_order=True` leaves out
    second derivatives. Cost: M + 1 forwards and backwards, and unless `first_order` a backward through all of them: the
    activations of M + 1 steps are in memory at once.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "a forward and backward per inner step, a backward through all of them"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        settings = sources.settings
        names = scored(sources, self.roles)
        steps, rate, momentum = (settings.get(k, d) for k, d in (("steps", 3), ("rate", 0.1), ("momentum", 0.0)))
        second = not settings.get("first_order", False)
        batches = cycled(sources.task)
        inside = LossOf(sources.model, sources.task)
        over = {n: p for n, p in sources.parameters.items() if p.is_floating_point()}
        masks = {n: torch.ones_like(p, requires_grad=True) for n, p in names.items()}
        train = bool(settings.get("train_mode", False))
        # Fused attention has no second derivative; the plain form of it has.
        with evidence_mode(sources.model, over, sources.generator, train=train), sdpa_kernel(SDPBackend.MATH):
            now = {n: p.detach() * masks[n] if n in masks else p for n, p in over.items()}
            gathered: dict[str, Tensor] = {}
            for _ in range(int(steps)):
                step = gradients(inside.at(now, next(batches)), now, create_graph=second)
                gathered = {n: momentum * gathered[n] + g if n in gathered else g for n, g in step.items()}
                now = {n: w - rate * gathered[n] for n, w in now.items()}
            found = gradients(inside.at(now, next(batches)), masks)
        yield self.by_group(sources, averaged_over_ranks(found))


class LossOf(nn.Module):
    """The task's loss as a module around the model, so that it can be computed at other parameters."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss_of(self.model, batch)

    def at(self, parameters: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss on a batch with these parameters in place of the model's own."""
        loss: Tensor = functional_call(self, {f"model.{n}": p for n, p in parameters.items()}, (batch,))
        return loss


def gradients(loss: Tensor, names: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    """dL/d of each; zeros where the loss does not reach."""
    if not loss.requires_grad:
        return {n: torch.zeros_like(p) for n, p in names.items()}
    found = torch.autograd.grad(loss, list(names.values()), allow_unused=True, create_graph=create_graph)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(names.items(), found, strict=True)}


def first_output(output: Any) -> Tensor:
    """The output's first floating tensor (of a record, its logits)."""
    found = floating_outputs(output)
    if not found:
        raise StructureError(f"the model puts out no floating tensor but {type(output).__name__}")
    return found[0]


def cycled(task: Task) -> Iterator[Any]:
    """The calibration batches, again and again."""
    while True:
        empty = True
        for batch in task.calibration():
            empty = False
            yield batch
        if empty:
            raise DataError(NO_BATCH)


def kept_entries(sources: Sources) -> dict[str, Tensor]:
    """Parameter name -> what of it is not pruned, for parameters of which something may be."""
    found: dict[str, Tensor] = {}
    for group in sources.groups:
        keep = sources.masks.get(group.name)
        for member in group.members if keep is not None else ():
            if keep is None or member.buffer or member.role == "other":
                continue
            one = group.spread(member, keep, sources.parameters[member.param].shape)
            found[member.param] = found[member.param] & one if member.param in found else one
    return found


def devices_of(model: nn.Module) -> list[int]:
    """The GPUs whose generators a model may draw from."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})


def reset_(model: nn.Module, generator: torch.Generator) -> tuple[str, ...]:
    """Initialize a model anew by its modules' own `reset_parameters`, in place; the names of those that have one.

    The global generators are seeded from `generator` for the while, and come back.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    done = []
    with torch.random.fork_rng(devices=devices_of(model)), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                done.append(name)
    if not done:
        raise SpecError(f"no module of {type(model).__name__} has reset_parameters(), so it cannot be initialized anew")
    return tuple(done)


def settle_(model: nn.Module, run: Callable[[], Any]) -> None:
    """Let normalizations take their running statistics from one run, all else in evaluation mode."""
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    before = [(m, m.training, m.momentum) for m in norms]
    try:
        for m in norms:
            m.momentum = 1.0  # type: ignore[assignment]
            m.train()
        if norms:
            with torch.no_grad():
                run()
    finally:
        for m, training, momentum in before:
            m.training, m.momentum = training, momentum


NoiseGrad = Annotated[Float[Tensor, "*units k"], NoiseGradEvidence()]
"""`[*units, k]`: dL/dw of random inputs and labels."""

KernelGrad = Annotated[Float[Tensor, "*units k"], KernelGradEvidence()]
"""`[*units, k]`: the gradient of the kernel's trace with respect to each weight's mask (float64), zero where pruned."""

MetaGrad = Annotated[Float[Tensor, "*units k"], MetaGradEvidence()]
"""`[*units, k]`: the gradient of the loss after a few steps of training with respect to each weight's mask."""
