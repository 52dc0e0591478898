"""The residual streams of a model: what writes to them, what reads them, and the norms in between.

Nothing is known by its name or class. Writers and readers come from the dependency graph; what norm a module is, and
who reads what it puts out, is found by trying.
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import StructureError, listed
from prunus.core.groups import Group
from prunus.core.task import Example
from prunus.graph.running import FAILURES, call, quiet
from prunus.graph.structure import trace
from prunus.graph.wide import Wide
from prunus.parts.evidence.capture import Capture

NO_EPS = torch.finfo(torch.float64).eps
"""What torch's root-mean-square norm takes without an epsilon of its own."""


@dataclass(frozen=True)
class Normed:
    """A norm over a stream: y = u (weight + offset) + shift, u = x / sqrt(mean x^2 + eps), of x less its mean if
    `centred`.

    Attributes:
        path: the module's.
        scale, shift: its parameters, by their names within the module; None where it has none.
        offset: what the module adds to the scale.
        eps: epsilon.
        centred: whether the mean is taken off first (LayerNorm).
        readers: the weights that multiply what it puts out, and nothing else; full names.
        biases: what is added to these products, by the reader's name.
    """

    path: str
    scale: str
    shift: str | None
    offset: float
    eps: float
    centred: bool
    readers: tuple[str, ...] = ()
    biases: tuple[tuple[str, str], ...] = ()

    def unit(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """u of the class, in the type of x."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def parameters(self, model: nn.Module) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"] | None]:
        """Scale, offset included, and shift, both in float64."""
        own = model.get_submodule(self.path)._parameters
        scale, shift = own[self.scale], own[self.shift] if self.shift else None
        assert scale is not None
        return scale.detach().double() + self.offset, None if shift is None else shift.detach().double()


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        name: of its group.
        size: its width.
        writes: parameters that are added to it, with the axis that lies in it: embeddings, rows of weights, biases.
        reads: weights that multiply it, with that axis.
        norms: in the order of the model.
    """

    name: str
    size: int
    writes: tuple[tuple[str, int], ...]
    reads: tuple[tuple[str, int], ...]
    norms: tuple[Normed, ...]


def streams(model: nn.Module, example: Example | Tensor) -> tuple[Stream, ...]:
    """The streams of a float64 model; who reads its norms is left open. Cost: one trace.

    Errors: `StructureError` that names what is in the way; `DataError` for an example that the model cannot run.
    """
    groups = [g for g in trace(model, example, exact=False).groups if g.kind == "width"]
    return tuple(_stream(model, g) for g in groups)


def followed(model: nn.Module, example: Example | Tensor, found: tuple[Stream, ...]) -> tuple[Stream, ...]:
    """The streams with the readers of all norms. Cost: one run of the example per norm. Errors: as above."""
    lying = {n for s in found for n, _ in (*s.reads, *s.writes)}
    named = {n: p for n, p in model.named_parameters() if p.ndim == 1 or n in lying}
    before = _seen(model, example, named)
    if unseen := [n for s in found for n, _ in s.reads if n not in before]:
        raise StructureError(
            f"{listed(unseen)} reads the stream, but is not seen to multiply anything: an expert that no token of the "
            f"example goes to (pass a longer one), or a product written in another way"
        )
    return tuple(_followed(model, example, named, before, s) for s in found)


def _stream(model: nn.Module, group: Group) -> Stream:
    members = [m for m in group.members if not m.buffer]
    odd = [m.param for m in group.members if m.buffer or m.index is not None or m.dim is None or m.role == "other"]
    if odd:
        raise StructureError(
            f"{listed(odd)} holds dimensions of the stream {group.name} in a way that cannot be turned"
        )
    axes = {role: [(m.param, m.dim or 0) for m in members if m.role == role] for role in ("out", "in", "bias")}
    shifts = {m.param for m in members if m.role == "shift"}
    norms = []
    for scale in (m.param for m in members if m.role == "scale"):
        path, _, name = scale.rpartition(".")
        shift = next((s for s in shifts if s.rpartition(".")[0] == path), None)
        norms.append(_form(model, path, name, shift.rpartition(".")[2] if shift else None, group.units))
    beside = [s for s in shifts if not any(s.rpartition(".")[0] == n.path for n in norms)]
    if beside:
        raise StructureError(f"{listed(beside)} shifts the stream {group.name}, and is no part of a norm with a scale")
    return Stream(group.name, group.units, (*axes["out"], *axes["bias"]), tuple(axes["in"]), tuple(norms))


def _form(model: nn.Module, path: str, scale: str, shift: str | None, size: int) -> Normed:
    """What norm a module is, by trying it on random numbers."""
    module = model.get_submodule(path)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size, generator=draw, dtype=torch.float64) * 1e-2 + 1e-2
    twin = copy.deepcopy(module).cpu().double().eval()
    with torch.no_grad():
        for p in twin.parameters():
            p.copy_(torch.rand(p.shape, generator=draw, dtype=torch.float64) + 0.5)
    holder = nn.Module()
    holder.add_module("norm", twin)
    eps = epsilon(module) or NO_EPS
    for offset, centred in itertools.product((0.0, 1.0), (False, True)):
        form = Normed("norm", scale, shift, offset, eps, centred)
        weight, bias = form.parameters(holder)
        expected = form.unit(x) * weight + (0 if bias is None else bias)
        try:
            with torch.no_grad(), Wide():
                y = twin(x)
        except FAILURES:
            break
        if isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, expected, rtol=1e-8, atol=1e-10):
            return Normed(path, scale, shift, offset, eps, centred)
    kind = type(module).__name__
    raise StructureError(
        f"{path} ({kind}) scales the stream, and is neither a root-mean-square nor a layer norm over it"
    )


def epsilon(module: nn.Module) -> float | None:
    """The small number that a norm keeps as an attribute."""
    return next((v for v in vars(module).values() if type(v) is float and 0 < v < 0.1), None)


def widened(model: nn.Module) -> AbstractContextManager[Any]:
    """Requests for float32 turned into such for float64, for a model in float64."""
    return Wide() if any(p.dtype == torch.float64 for p in model.parameters()) else nullcontext()


def _seen(model: nn.Module, example: Example | Tensor, named: Mapping[str, nn.Parameter]) -> dict[str, list[Any]]:
    with quiet(model), widened(model), Capture(named, stacks=True) as seen:
        call(model, example)
    uses: dict[str, list[Any]] = {}
    for use in seen.uses:
        uses.setdefault(use.name, []).append(use)
    return uses


def _followed(
    model: nn.Module,
    example: Example | Tensor,
    named: Mapping[str, nn.Parameter],
    before: dict[str, Any],
    stream: Stream,
) -> Stream:
    """With the readers of every norm: those whose inputs double if its scale and its shift do."""
    norms = []
    for norm in stream.norms:
        own = model.get_submodule(norm.path)._parameters
        weights = [p for p in (own[norm.scale], own.get(norm.shift or "")) if p is not None]
        saved = [p.detach().clone() for p in weights]
        try:
            with torch.no_grad():
                weights[0].copy_(2 * (saved[0] + norm.offset) - norm.offset)
                for p in weights[1:]:
                    p.mul_(2)
            after = _seen(model, example, named)
        finally:
            with torch.no_grad():
                for p, value in zip(weights, saved, strict=True):
                    p.copy_(value)
        lying = dict.fromkeys(n for n, _ in (*stream.reads, *stream.writes))
        mine = tuple(n for n in lying if _doubled(before.get(n, []), after.get(n, [])))
        if not mine:
            raise StructureError(
                f"no weight reads what {norm.path} puts out: a norm whose output is added to the stream, or leaves the "
                f"model, ties the stream to its dimensions, so it cannot be turned"
            )
        biases = tuple((n, b) for n in mine if (b := before[n][0].bias) is not None)
        norms.append(Normed(**{**vars(norm), "readers": mine, "biases": biases}))
    return Stream(**{**vars(stream), "norms": tuple(norms)})


def _doubled(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) > 0 and all(
        a.x.shape == b.x.shape
        and bool(a.x.any())
        and torch.allclose(b.x, 2 * a.x, rtol=1e4 * torch.finfo(a.x.dtype).eps, atol=0)
        for a, b in zip(before, after, strict=True)
    )


def second_moments(
    model: nn.Module, found: tuple[Stream, ...], run: Callable[[], None]
) -> dict[str, Float[Tensor, "d d"]]:
    """Of every norm of the streams, by its path, the mean of u u^T over all positions, u as in `Normed`; in float64."""
    handles = []
    totals: dict[str, tuple[Tensor, int]] = {}

    def noting(norm: Normed) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
            rows = norm.unit(x.detach().double()).reshape(-1, x.shape[-1])
            gram, count = totals.get(norm.path, (0, 0))
            totals[norm.path] = (gram + rows.T @ rows, count + len(rows))

        return note

    try:
        for norm in (n for s in found for n in s.norms):
            module = model.get_submodule(norm.path)
            handles.append(module.register_forward_pre_hook(noting(norm), with_kwargs=True))
        run()
    finally:
        for handle in handles:
            handle.remove()
    means = {
        n.path: totals[n.path][0] / totals[n.path][1] if n.path in totals else torch.zeros(s.size, s.size).double()
        for s in found
        for n in s.norms
    }
    if any(not math.isfinite(float(m.sum())) for m in means.values()):
        raise StructureError("the hidden states on the calibration data hold NaN or infinite values")
    return means
