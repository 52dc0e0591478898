"""Which blocks of a model can be removed whole: those that are the identity once their parameters are zero.

Residual blocks are (He et al. 2016, arXiv:1512.03385: `x + f(x)` with f = 0), whatever their Python looks like, so they
are found by trying and not by their class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError
from prunus.core.groups import Member, Role
from prunus.core.task import Example
from prunus.graph.depth.drop import CONTAINERS, BlockGroup
from prunus.graph.depth.trial import Candidate, Trials
from prunus.graph.running import one_sample, unwrap


@dataclass(frozen=True)
class Blocks:
    """What can be removed whole, and what cannot and why.

    Attributes:
        groups: one per container of which something can be removed, in the order of the model. Its name is the
            container's path (`layers`); that of blocks which are replaced ends in a star (`encoder.*`). Of branches
            one per place in all layers (`layers.*.attn`).
        refused: the path of every other entry of a container, or of every other module that joins a sum -> the reason.
    """

    groups: tuple[BlockGroup, ...]
    refused: dict[str, str]


def blocks(
    model: nn.Module, example: Example | Tensor, *, exclude: Sequence[str] = (), at_least: int = 1, seed: int = 0
) -> Blocks:
    """The blocks that can be removed whole: entries of `Sequential`s, `ModuleList`s and `ModuleDict`s.

    An entry is removable if, with all parameters that are its own at zero, it returns its input (its first tensor), it
    has no other effect (replacing its output by its input, weights untouched, gives the same), and the model without
    it computes the same as the model with it at zero. All three are tried in float64 with random values in place of
    constant parameters. Of nested blocks the inner ones are taken. Judged by the last test alone are a list of branches
    per layer, which is never called itself; entries that are added up, which return zero; and lists of equal length
    that one module goes through together (`zip(self.convs, self.norms)`), whose entries at one position are one unit.

    The same holds for blocks that are attributes of a module, and for entries that are read by index, if they take and
    return one tensor and hold no parameters themselves: these become `nn.Identity`s.

    Args:
        model: any module; left as it is.
        example: one input; its first sample is used.
        exclude: paths of entries that stay.
        at_least: how many entries every container keeps, those that cannot be removed included.
        seed: of the random values.

    Cost: a float64 copy, about ten runs, and two to four more per level of nesting; each of n entries that fails the
    last test costs about `6 log2(n)` more.

    Raises:
        DataError: the model cannot run the example.
        StructureError: the parameters have no values (meta device, lazy modules), so nothing can be tried.
    """
    model = unwrap(model)
    check_values(model, "blocks")
    skip = set(exclude)
    candidates = [c for c in _candidates(model) if c.name not in skip]
    others = [c for c in _attributes(model) if c.name not in skip]
    if not candidates and not others:
        return Blocks((), {})
    sample, batch = one_sample(example)
    try:
        trials = Trials(model, sample, seed)
    except DataError:
        if batch == 1:
            raise
        trials = Trials(model, example, seed)
    taken: list[Candidate] = []
    refused = _settled(trials, candidates, taken)
    for branches in (_together(model, trials, taken, skip), _added(model, candidates, trials, taken)):
        kept = trials.branches(list(branches), taken)
        taken += kept
        for c in kept:
            for name in (f"{path}.{c.entry}" for path in c.places) if c.twins else (c.name,):
                refused.pop(name, None)
    # What cannot be dropped may still be replaced.
    left = {c.name: replace(c, replace=True) for c in candidates if c.name in trials.zeroed and c.name in refused}
    left = {n: c for n, c in left.items() if trials.plain.get(n) and n not in trials.unwatched}
    left |= {c.name: c for c in others}
    left = {n: c for n, c in left.items() if not any(t.touches(n) or t.container == c.container for t in taken)}
    reasons = _settled(trials, [c for n, c in left.items() if _emptied(model, n)], taken)
    for c in left.values():
        if c.name in reasons and c.name in trials.zeroed:
            refused.setdefault(c.name, reasons[c.name])
        elif c in taken:
            refused.pop(c.name, None)
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    taken.sort(key=lambda c: (order[c.container], c.entry))
    return Blocks(tuple(_groups(model, taken, trials, at_least)), refused)


def check_values(model: nn.Module, what: str) -> None:
    """Raise `StructureError` where parameters have no values, so that nothing can be tried, or no form that changes."""
    if isinstance(model, torch.jit.ScriptModule):
        raise StructureError(f"a TorchScript module keeps its {what}: pass the Python module that it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise StructureError(
                f"{name} has no values, and {what} are found by running the model: load weights (random ones will do)"
            )


def _settled(trials: Trials, candidates: list[Candidate], taken: list[Candidate]) -> dict[str, str]:
    """Add the candidates that are the identity at zero and can be removed to `taken`; returns the others' reasons."""
    refused = trials.identities(candidates) if candidates else {}
    refused |= {c.name: NOT_PLAIN for c in candidates if c.replace and not trials.plain.get(c.name)}
    open_ = [c for c in candidates if c.name not in refused]
    while open_:
        inner = [c for c in open_ if not any(o.within(c) for o in open_)]
        kept, bad = trials.removable(inner, taken)
        refused.update(bad)
        taken += kept
        open_ = [c for c in open_ if c not in inner]
        for c in [c for c in open_ if any(o.within(c) for o in taken)]:
            open_.remove(c)
            refused[c.name] = "the blocks in it can be removed one by one"
    return refused


NOT_PLAIN = "it is no entry of a container, and takes or returns more than one tensor"


def _attributes(model: nn.Module) -> list[Candidate]:
    """Modules of modules that are attributes rather than entries of a container."""
    places = places_of(model)
    found = []
    for path, owner in model.named_modules():
        if type(owner) in CONTAINERS:
            continue
        for i, (key, module) in enumerate(owner._modules.items()):
            name = f"{path}.{key}" if path else key
            own, inside = own_parameters(model, [name], places) if module is not None else ((), 0)
            if own and _emptied(model, name):
                found.append(Candidate(name, path, i, own, len(own) < inside, replace=True))
    return found


def _emptied(model: nn.Module, name: str) -> bool:
    """Whether nothing is left of a block once its parts are gone."""
    module = model.get_submodule(name)
    return type(module) not in CONTAINERS and len(module._modules) > 0 and not any(True for _ in _direct(module))


def _direct(module: nn.Module) -> Iterator[Tensor]:
    return (p for p in module._parameters.values() if p is not None)


def _candidates(model: nn.Module) -> list[Candidate]:
    """Every entry of a container that owns parameters which nothing outside of it uses."""
    places = places_of(model)
    found = []
    for path, container in model.named_modules():
        if not isinstance(container, CONTAINERS) or len(container._modules) < 2:
            continue
        for i, (key, entry) in enumerate(container._modules.items()):
            name = f"{path}.{key}" if path else key
            own, inside = own_parameters(model, [name] if entry is not None else [], places)
            if own:
                found.append(Candidate(name, path, i, own, len(own) < inside))
    return found


def places_of(model: nn.Module) -> dict[str, list[str]]:
    """Parameter name -> all names of the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: names[id(parameter)] for name, parameter in model.named_parameters()}


def own_parameters(
    model: nn.Module, modules: Sequence[str], places: dict[str, list[str]]
) -> tuple[tuple[str, ...], int]:
    """The parameters of these modules that nothing else uses, and the number of all of theirs."""
    inside = [n for m in modules for n, _ in model.get_submodule(m).named_parameters(prefix=m)]
    prefixes = tuple(f"{m}." for m in modules)
    return tuple(n for n in inside if n in places and all(o.startswith(prefixes) for o in places[n])), len(inside)


def _together(
    model: nn.Module, trials: Trials, taken: Sequence[Candidate], skip: set[str]
) -> Iterator[list[Candidate]]:
    """Lists of equal length that one module may go through together: their entries at one position."""
    places = places_of(model)
    for path, owner in model.named_modules():
        lists: dict[int, list[str]] = {}
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) > 1 and None not in child._modules.values():
                lists.setdefault(len(child), []).append(f"{path}.{name}" if path else name)
        for length, paths in lists.items():
            with_own = sorted(paths, key=lambda p: not any(True for _ in model.get_submodule(p).parameters()))
            if len(paths) < 2 or any(c.touches(p) for p in paths for c in taken):
                continue
            found = []
            for i in range(length):
                entries = [f"{p}.{i}" for p in with_own]
                own, inside = own_parameters(model, entries, places)
                if own and entries[0] in trials.called and not skip & set(entries):
                    twins = tuple(with_own[1:])
                    found.append(Candidate(entries[0], with_own[0], i, own, len(own) < inside, twins))
            if found:
                yield found


def _added(
    model: nn.Module, candidates: Sequence[Candidate], trials: Trials, taken: Sequence[Candidate]
) -> Iterator[list[Candidate]]:
    """Lists of which entries return zero at zero, so that they may be branches that are added up."""
    silent: dict[str, list[Candidate]] = {}
    for c in candidates:
        listed = not isinstance(model.get_submodule(c.container), nn.Sequential)
        if listed and c.name in trials.silent and not any(t.touches(c.container) for t in taken):
            silent.setdefault(c.container, []).append(c)
    yield from silent.values()


def _groups(model: nn.Module, taken: list[Candidate], trials: Trials, at_least: int) -> list[BlockGroup]:
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    by_container: dict[tuple[str, bool], list[Candidate]] = {}
    for candidate in taken:
        by_container.setdefault((candidate.container, candidate.replace), []).append(candidate)
    groups = []
    for (path, replaced), own in by_container.items():
        there = model.get_submodule(path)._modules.values()
        length = sum(not replaced or (m is not None and any(True for _ in m.parameters())) for m in there)
        least = min(max(at_least - (length - len(own)), 0), len(own))
        if least == len(own):
            continue
        members: list[Member] = []
        for unit, candidate in enumerate(own):
            zeroed = set(trials.zeroed[candidate.name])
            mine = [
                Member(n, role=role_of(n, shapes) if n in zeroed else "other", buffer=n not in zeroed, unit=unit)
                for n in candidate.parameters
            ]
            entries = [f"{p}.{candidate.entry}" for p in candidate.places] if candidate.twins else [candidate.name]
            buffers = [n for e in entries for n, _ in model.get_submodule(e).named_buffers(prefix=e)]
            mine += [Member(n, role="other", buffer=True, unit=unit) for n in buffers]
            members += sorted(mine, key=lambda m: (m.buffer, m.role != "out"))
        groups.append(
            BlockGroup(
                f"{path}.*".removeprefix(".") if replaced else path or "model",
                (len(own),),
                tuple(members),
                at_least=least,
                kind="block",
                container=path,
                twins=own[0].twins,
                entries=tuple(c.entry for c in own),
                names=tuple(c.name for c in own),
                length=length,
                replaced=replaced,
                additive=not replaced and all(c.name in trials.silent for c in own),
            )
        )
    return groups


def role_of(name: str, shapes: dict[str, tuple[int, ...]]) -> Role:
    """A parameter's role in its block, by its shape: matrices and kernels are what it weighs."""
    shape = shapes[name]
    if sum(n > 1 for n in shape) > 1:
        return "out"
    module, _, own = name.rpartition(".")
    if "bias" not in own and len(shape) > 0:
        return "scale"
    weight = shapes.get(f"{module}.weight", ())
    return "shift" if len(weight) == 1 else "bias"
