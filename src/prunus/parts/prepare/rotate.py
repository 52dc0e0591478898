"""Residual streams in the coordinates of their principal components."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError, StructureError
from prunus.core.part import Preparation
from prunus.core.task import Task
from prunus.graph.duplicate import duplicate
from prunus.graph.running import call, mapped, one_sample, quiet, tensors_in
from prunus.parts.evidence.mode import averaged_over_ranks
from prunus.parts.prepare.biased import add_bias_
from prunus.parts.prepare.places import Places, join_, places, rejoin_
from prunus.parts.prepare.stream import Stream, epsilon, followed, second_moments, streams, widened

TOLERANCE, ROUGH = 1e-8, 1e-4
"""By how much outputs may differ, of their size: in float64, and where a model does not run in it."""

TURNED = 1e-12
"""How large products of two dimensions may be, of the largest square, where they count as principal components."""


@dataclass(frozen=True)
class Rotate(Preparation):
    """x -> x Q: residual streams are turned so that their dimensions are principal components of what the layers read,
    the first one with the largest variance (SliceGPT: Ashkboos et al. 2024, arXiv:2401.15024, theorem 1, section 3.3).

    Every place of a stream (what a norm is given) has a Q of its own, and every block between two of them the map
    Q_in^T Q_out on the connection beside it (`Joining`). Scales and shifts of norms go into the weights that read them.
    LayerNorm becomes a root-mean-square norm, and what is added to the stream has its mean taken off; readers of a
    shift get a bias where they have none; a table of embeddings that is also the head becomes two. Q: eigenvectors of
    E[u u^T], u what the norm puts out before its scale, over all positions of the calibration data (of the example
    where there is no task), in float64. Outputs stay the same but for rounding, which is seen to hold on a copy before
    the model is touched, in float64 (float32 where it has kernels for no other type). Weights are rounded once, to
    their own type.

    Cost: a forward per calibration batch; a copy in float64, a run of the example's first sample per norm; one
    eigendecomposition, and d^2 further parameters, per place. Fails: `StructureError` that names what is in the way
    (norms whose output is added to the stream, as in BERT), `SpecError` without a stream or an example; nothing was
    changed. Differs: every Q is found in the dense model; the official code slices as it goes.

    Attributes:
        per: `block`, as above, or `stream`: one Q for a whole stream, of the sum of E[u u^T] over its norms, and no
            maps beside blocks. It has fewer parameters, and of what most norms put out it keeps less.
    """

    per: Literal["block", "stream"] = "block"
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "inputs"

    def __post_init__(self) -> None:
        if self.per not in ("block", "stream"):
            raise SpecError(f"Rotate(per={self.per!r}): one of block, stream")

    def __call__(self, model: nn.Module, example: Any = None, task: Any = None) -> nn.Module:
        if example is None:
            raise SpecError(
                "what reads and writes a residual stream is found by a run: pass Task(example=...) or batches"
            )
        return turned(model, example, task, self.per == "block")

    def again(self, model: nn.Module, names: Collection[str]) -> nn.Module:
        """The modules as they are after turning, for values that lie under `names`."""
        rejoin_(model, names)
        for path, module in list(model.named_modules()):
            own, eps, bias = module._parameters, epsilon(module), f"{path}.bias"
            weight, there = own.get("weight"), f"{path}.weight" in names
            if weight is None or "bias" not in own:
                continue
            if own["bias"] is not None and eps is not None and there and bias not in names:
                replace_norm_(model, path, weight, eps)
            elif own["bias"] is None and bias in names:
                add_bias_(module, weight)
        untie_(model, lambda first, other: first in names and other in names)
        return model


def principal(moment: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Eigenvectors in columns, the largest eigenvalue first; the largest entry of each is positive. Where they are the
    axes already, these exactly, so that a model that was turned stays as it is.
    """
    sizes = moment.diagonal()
    if bool((sizes[:-1] >= sizes[1:]).all()) and bool(((moment - sizes.diag()).abs() <= TURNED * sizes[0]).all()):
        return torch.eye(len(moment)).to(moment)
    q: Tensor = torch.linalg.eigh(moment).eigenvectors.flip(1)
    return q * q.gather(0, q.abs().argmax(0, keepdim=True)).sign()


def turned(model: nn.Module, example: Any, task: Task | None, by_block: bool) -> nn.Module:
    """See `Rotate`."""
    trial, sample, before = _trial(model, example)
    found = streams(trial, sample)
    if not found:
        raise SpecError(
            f"{type(model).__name__} has no residual stream whose width could be cut: "
            f"prunus.groups(model, example) says what is in the way"
        )
    held = {n for s in found for n, _ in (*s.reads, *s.writes)}
    folds = by_block or any(_folds(trial, s) for s in found)
    if folds and untie_(trial, lambda first, _: first in held):
        found = streams(trial, sample)
    ways = {s.name: places(trial, sample, s) for s in found} if by_block else {}
    first = found if by_block else followed(trial, sample, found)
    moments = averaged_over_ranks(second_moments(model, first, lambda: _run(model, example, task)))
    turns = {n: principal(m) for n, m in summed(moments, first, ways).items()}
    blocks = [b for way in ways.values() for b in way.blocks]
    if by_block:
        found = streams(join_(trial, blocks), sample)
        first = followed(trial, sample, found)
        ways = {s.name: places(trial, sample, s) for s in first}
    turn_(trial, first, turns, ways)
    _check(before, _outputs(trial, sample), first)
    if folds:
        untie_(model, lambda one, _: one in held)
    return turn_(join_(model, blocks), first, turns, ways)


def summed(
    moments: Mapping[str, Float[Tensor, "d d"]], found: tuple[Stream, ...], ways: Mapping[str, Places]
) -> dict[tuple[str, int], Float[Tensor, "d d"]]:
    """E[u u^T] of norms, by path, as sums over the norms of a place, or of a stream whose places are not told apart."""
    sums: dict[tuple[str, int], Tensor] = {}
    for stream in found:
        way = ways.get(stream.name)
        for norm in stream.norms:
            key = (stream.name, way.norms[norm.path] if way else 0)
            sums[key] = moments[norm.path] + sums[key] if key in sums else moments[norm.path]
    return sums


def turn_(
    model: nn.Module,
    found: tuple[Stream, ...],
    turns: Mapping[tuple[str, int], Float[Tensor, "d d"]],
    ways: Mapping[str, Places],
) -> nn.Module:
    """Fold the norms of all streams into their readers, and turn everything that lies in a stream."""
    parameters = dict(model.named_parameters())
    for stream in found:
        way, centred = ways.get(stream.name), any(n.centred for n in stream.norms)
        scales = {r: n.parameters(model) for n in stream.norms for r in n.readers}
        biases = {r: b for n in stream.norms for r, b in n.biases}
        for name, axis in stream.reads:
            p = parameters[name]
            q = turns[stream.name, way.reads[name] if way else 0].to(p.device)
            wide = p.detach().double().movedim(axis, -1)
            if way and name in way.writes:  # a shortcut: I + S is turned at both its ends
                out, unit = turns[stream.name, way.writes[name]].to(p.device), torch.eye(len(q)).to(q)
                if not (torch.equal(q, unit) and torch.equal(out, unit)):
                    _write(p, out.T @ (wide + unit) @ q - unit)
                continue
            scale, shift = scales.get(name, (None, None))
            if shift is not None and bool(shift.any()):
                bias = parameters[biases[name]] if name in biases else _new_bias(model, name, p)
                _write(bias, bias.detach().double() + wide @ shift)
            wide = wide if scale is None else wide * scale
            _write(p, (wide @ q).movedim(-1, axis))
        for name, axis in stream.writes:
            if way and name in way.reads:
                continue
            p = parameters[name]
            wide = p.detach().double().movedim(axis, -1)
            wide = wide - wide.mean(-1, keepdim=True) if centred else wide
            q = turns[stream.name, way.writes[name] if way else 0].to(p.device)
            _write(p, (wide @ q).movedim(-1, axis))
        for norm in stream.norms:
            module = model.get_submodule(norm.path)
            weight, bias_ = module._parameters[norm.scale], module._parameters.get(norm.shift or "")
            assert weight is not None
            if norm.centred:
                replace_norm_(model, norm.path, weight, norm.eps)
                continue
            with torch.no_grad():
                weight.fill_(1 - norm.offset)
                if bias_ is not None:
                    bias_.zero_()
    return model


def untie_(model: nn.Module, wanted: Callable[[str, str], bool]) -> bool:
    """Give another name of a shared parameter one of its own, where its first name and it are `wanted` to be two."""
    first: dict[int, str] = {}
    several = False
    for name, p in list(model.named_parameters(remove_duplicate=False)):
        if first.setdefault(id(p), name) != name and wanted(first[id(p)], name):
            path, _, own = name.rpartition(".")
            model.get_submodule(path)._parameters[own] = nn.Parameter(p.detach().clone(), p.requires_grad)
            several = True
    for settings in (v for m in model.modules() for v in vars(m).values()) if several else ():
        if getattr(settings, "tie_word_embeddings", None) is True:
            settings.tie_word_embeddings = False  # or loading would tie them again
    return several


def replace_norm_(model: nn.Module, path: str, weight: nn.Parameter, eps: float) -> None:
    """A root-mean-square norm with a scale of ones in the place of a norm."""
    above, _, name = path.rpartition(".")
    old = model.get_submodule(path)
    new = nn.RMSNorm(len(weight), eps=eps, device=weight.device, dtype=weight.dtype).train(old.training)
    new.weight.requires_grad_(weight.requires_grad)
    model.get_submodule(above)._modules[name] = new


def _new_bias(model: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
    module = model.get_submodule(name.rpartition(".")[0])
    if module._parameters.get("bias", weight) is not None or weight.ndim != 2:
        raise StructureError(f"{name} reads a norm with a shift, and has nowhere to put it: it takes no bias")
    bias: nn.Parameter = add_bias_(module, weight)
    return bias


def _write(p: nn.Parameter, value: Float[Tensor, "..."]) -> None:
    with torch.no_grad():
        p.copy_(value)


def _folds(model: nn.Module, stream: Stream) -> bool:
    """Whether readers are scaled or writers centred, so that what is both cannot stay one."""
    plain = (n.parameters(model) for n in stream.norms)
    return any(n.centred for n in stream.norms) or any(
        bool((scale != 1).any()) or (shift is not None and bool(shift.any())) for scale, shift in plain
    )


def _run(model: nn.Module, example: Any, task: Task | None) -> None:
    with quiet(model):
        if task is None:
            call(model, example)
            return
        for batch in task.calibration():
            task.outputs(model, batch)


def _trial(model: nn.Module, example: Any) -> tuple[nn.Module, Any, list[Tensor]]:
    """A float64 copy (float32 where it has kernels for no other), one sample in that type, and what comes out."""
    for dtype in (torch.float64, torch.float32):
        trial = duplicate(model).to(dtype)
        sample = mapped(one_sample(example)[0], lambda t, to=dtype: t.to(to) if t.is_floating_point() else t)
        try:
            return trial, sample, _outputs(trial, sample)
        except DataError:
            if dtype == torch.float32:
                raise
    raise AssertionError


def _outputs(model: nn.Module, sample: Any) -> list[Tensor]:
    with quiet(model), widened(model):
        return [t.detach().clone() for t in tensors_in(call(model, sample)) if t.is_floating_point()]


def _check(before: list[Tensor], after: list[Tensor], found: tuple[Stream, ...]) -> None:
    for a, b in zip(before, after, strict=True):
        apart = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.shape == b.shape else float("inf")
        if not apart <= (TOLERANCE if a.dtype == torch.float64 else ROUGH):
            raise StructureError(
                f"turning the stream {', '.join(s.name for s in found)} changes the outputs (by {apart:.1e} of their "
                f"size): something acts on single dimensions of it, or reads it without a norm; leave it as it is"
            )
