"""Where along a residual stream its writers and readers are, and shortcuts between one place and the next."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import StructureError, listed
from prunus.core.shortcut import Branching, Joining, Link
from prunus.core.task import Example
from prunus.graph.running import call, quiet
from prunus.parts.prepare.stream import Stream, widened

NORM, SHORTCUT = re.compile(r"(.+)\.norm_(\d+)\.[^.]+"), re.compile(r"(.+)\.shortcut_(\d+)\.weight")


@dataclass(frozen=True)
class Places:
    """A stream's places: the values that it takes on the way, counted from the first one that a norm is given.

    Attributes:
        norms: norm's path -> the place that it is given.
        writes: parameter -> the first place that it is a part of.
        reads: weight -> the place that it reads; only where the readers of norms are known.
        blocks: for every place but the last, the norm that reads it first, and a module whose output is added to the
            stream before the next.
    """

    norms: Mapping[str, int]
    writes: Mapping[str, int]
    reads: Mapping[str, int]
    blocks: tuple[tuple[str, str], ...]


def places(model: nn.Module, sample: Example | Tensor, stream: Stream) -> Places:
    """The places of a stream, in the order in which a run comes past. Cost: one run.

    Errors: `StructureError` where something runs twice (layers that share weights), or where the stream has no one way.
    """
    owners = {name: name.rpartition(".")[0] for name, _ in stream.writes}
    norms = {n.path for n in stream.norms}
    beside = {name for name in owners if SHORTCUT.fullmatch(name)}
    # A parameter of a module that the norms lie in (class tokens, positions) is added before the first norm.
    outer = {p for p in owners.values() if any(n.startswith(f"{p}.") or not p for n in norms)}
    seen = _seen(model, sample, norms, set(owners.values()) - outer)
    twice = sorted({p for p, _ in seen if sum(p == q for q, _ in seen) > 1})
    if twice or (still := (norms | set(owners.values())) - outer - {p for p, _ in seen}):
        odd = twice or sorted(still)
        raise StructureError(
            f"{listed(odd)} runs {'more than once' if twice else 'not at all'} on the example, so it has no one place "
            f"in the stream {stream.name}; Rotate(per='stream') goes by no places"
        )
    at, begun, last, ran = -1, "", torch.empty(0), list[str]()
    of_norm, of_writer, blocks = dict[str, int](), dict.fromkeys(outer, 0), list[tuple[str, str]]()
    for path, x in seen:
        if path not in norms:
            ran.append(path)
            of_writer[path] = at + 1
        elif not torch.equal(x, last):
            if not (mine := [p for p in ran if f"{p}.weight" not in beside]) and at >= 0:
                raise StructureError(
                    f"nothing is seen to write to the stream {stream.name} between {begun} and {path}, which is given "
                    f"something else: a norm whose output is added to the stream, or a product; leave it as it is"
                )
            if at >= 0:
                blocks.append((begun, _end(model, sample, mine, path, x)))
            at, last, ran, begun = at + 1, x, [], path
        if path in norms:
            of_norm[path] = at
    if late := [p for p, k in of_writer.items() if k > at]:
        raise StructureError(f"{listed(late)} writes to the stream {stream.name} after its last norm")
    reads = {r: of_norm[n.path] for n in stream.norms for r in n.readers}
    reads |= {name: of_writer[owners[name]] - 1 for name in beside}
    return Places(of_norm, {n: of_writer[p] for n, p in owners.items()}, reads, tuple(blocks))


def _end(model: nn.Module, sample: Example | Tensor, writers: list[str], norm: str, x: Float[Tensor, "... d"]) -> str:
    """The innermost module around the last writers of a block to whose output something can be added that comes to
    `norm` as it is: the last map itself, or a mixture of experts, which weighs what its maps put out.
    """
    draw = torch.Generator().manual_seed(0)
    more = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x) * x.std()
    above = [p.rsplit(".", i)[0] for p in reversed(writers) for i in range(p.count(".") + 1)]

    def add(_module: nn.Module, _inputs: Any, y: Any) -> Any:
        return y + more.reshape(y.shape) if isinstance(y, Tensor) and y.numel() == more.numel() else None

    for path in sorted(dict.fromkeys(p for p in above if p), key=lambda p: -p.count(".")):
        hook = model.get_submodule(path).register_forward_hook(add)
        try:
            ((_, given),) = _seen(model, sample, {norm}, ())
        finally:
            hook.remove()
        if given.shape == x.shape and torch.allclose(given - x, more, rtol=1e-4, atol=1e-5):
            return path
    raise StructureError(
        f"what is added to the stream before {norm} comes out of no module as it is ({listed(writers)} write to it): "
        f"Rotate(per='stream') puts no maps beside blocks"
    )


def _seen(model: nn.Module, sample: Any, norms: Collection[str], writers: Collection[str]) -> list[tuple[str, Tensor]]:
    """Norms, with what they are given, and writers, as a run comes past them."""
    seen: list[tuple[str, Tensor]] = []

    def starts(path: str) -> Any:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
            seen.append((path, x.detach().clone()))

        return note

    def ends(path: str) -> Any:
        return lambda *_: seen.append((path, torch.empty(0)))

    handles = [model.get_submodule(p).register_forward_pre_hook(starts(p), with_kwargs=True) for p in norms]
    handles += [model.get_submodule(p).register_forward_hook(ends(p)) for p in writers]
    try:
        with quiet(model), widened(model):
            call(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def join_(model: nn.Module, blocks: Iterable[tuple[str, str]]) -> nn.Module:
    """Put a shortcut, of zeros, beside every block that has none: (norm's path, path of the block's last module)."""
    number = 1 + max((m.number for m in model.modules() if isinstance(m, Joining)), default=-1)
    for norm, end in blocks:
        if not isinstance(model.get_submodule(end.rpartition(".")[0]), Joining):
            _join(model, norm, end, number)
            number += 1
    return model


def rejoin_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """The modules that `join_` put in, for a model whose values lie under `names`."""
    starts, ends = dict[int, str](), dict[int, str]()
    for name in names:
        for pattern, found in ((NORM, starts), (SHORTCUT, ends)):
            if match := pattern.fullmatch(name):
                found[int(match[2])] = match[1]
    for number in sorted(starts.keys() & ends.keys()):
        if not isinstance(model.get_submodule(ends[number]), Joining):
            _join(model, starts[number], ends[number], number)
    return model


def _join(model: nn.Module, norm: str, end: str, number: int) -> None:
    link = Link()
    first, last = model.get_submodule(norm), model.get_submodule(end)
    scale = next(p for p in first._parameters.values() if p is not None)
    for path, module in ((norm, Branching(first, number, link)), (end, Joining(last, number, link, scale))):
        above, _, name = path.rpartition(".")
        model.get_submodule(above)._modules[name] = module.train(first.training)
