"""Which residual branches of a model can be removed: attention or feed-forward only, as in `x + attn(norm(x))`.

Unlike a block, a branch is not the identity at zero: it returns zero, and its parent adds that to what the branch was
computed from. Attention and feed-forward layers are dropped one by one in He et al. 2024 (arXiv:2406.15786).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.core.groups import Member
from prunus.core.task import Example
from prunus.graph.depth.blocks import Blocks, check_values, own_parameters, places_of, role_of
from prunus.graph.depth.branch_flow import Sums
from prunus.graph.depth.branch_shape import Calls, Unknown
from prunus.graph.depth.branch_trial import BranchTrials, Unit, place_of
from prunus.graph.depth.drop import CONTAINERS, BlockGroup
from prunus.graph.depth.ends import Ends
from prunus.graph.depth.trial import Candidate, levels
from prunus.graph.running import one_sample, unwrap
from prunus.graph.verify import outputs


def branches(
    model: nn.Module, example: Example | Tensor, *, exclude: Sequence[str] = (), at_least: int = 1, seed: int = 0
) -> Blocks:
    """The residual branches that can be removed whole, each as one unit.

    A branch is a module that returns zero where its own parameters are zero, and whose output reaches nothing but a sum
    with what it was computed from (other summands may come first). Found in one run (`branch_flow.Sums`); of modules
    within each other the outermost is taken, of several on the way to one sum the last. What feeds nothing but the
    branch (a norm before it) goes with it. The branch is replaced by `Nothing`, which returns zeros of the right shape,
    and what feeds it by an identity where that will do; where its parent's code reads what feeds it, that stays.

    Each is tried in float64: the model with the module replaced computes what it computes with the parameters at zero,
    on inputs of other batch sizes, lengths and image sizes where it takes them, and gradients get through it. Where it
    takes `past_key_values`, a second step with the cache is tried too: a decoder reads the length of its cache from its
    first layer (and from the first of each kind), so the attention of that one stays.

    Args:
        model: any module; left as it is.
        example: one input; its first sample is used, and a batch of two.
        exclude: paths of modules that stay.
        at_least: how many branches stay of those at one place in all layers, those that cannot be removed included.
        seed: of the random values.

    Cost: a float64 copy, about twenty runs and three or four more per input axis, of which one keeps what every module
    returns; four runs for each attention that is given a cache; each of n branches that cannot be replaced costs about
    `10 log2(n)` more.

    Raises:
        DataError: the model cannot run the example.
        StructureError: the parameters have no values (meta device, lazy modules), so nothing can be tried.
    """
    model = unwrap(model)
    check_values(model, "branches")
    sample, _ = one_sample(example)
    try:
        trials = BranchTrials(model, sample, example, seed)
    except DataError:
        trials = BranchTrials(model, example, example, seed)
    found = _Search(model, trials, sample, set(exclude))
    return Blocks(tuple(_groups(model, found.units, trials, found.refused, at_least)), found.refused)


class _Search:
    """The units and, of every other module whose output joins a sum, the reason."""

    def __init__(self, model: nn.Module, trials: BranchTrials, sample: Example | Tensor, exclude: set[str]) -> None:
        self.model, self.trials, self.exclude = model, trials, exclude
        self.places = places_of(model)
        self.candidates = {c.name: c for c in self._modules()}
        self.sums = Sums(trials.model)
        self.sums.run(self.candidates, trials.inputs[0])
        lost = {n: self.sums.lost[n] for n in self.sums.joined if n in self.sums.lost}
        self.refused = {
            n: f"its output does not only join a sum ({operation} takes it)" for n, operation in lost.items()
        }
        chosen = self._last(self._silent([c for n, c in self.candidates.items() if self._joins(n)]))
        units = self._units(chosen, sample)
        parts = [f"{name}." for unit in units for name, _ in unit.instead]
        self.refused = {n: why for n, why in self.refused.items() if not f"{n}.".startswith(tuple(parts))}
        units = self._without_cached(units)
        kept, bad = trials.removable(units, [])
        # What feeds a branch may have to stay: code reads its attributes.
        bare = [self._bare(u) for u in units if u.name in bad and self._weighs_most(u)]
        more, worse = trials.removable(self._without_cached(bare), kept)
        self.refused |= bad | worse
        names = {c.name: c for c in (*kept, *more)}
        self.refused = {n: why for n, why in self.refused.items() if n not in names}
        order = {path: i for i, (path, _) in enumerate(self.model.named_modules())}
        self.units = sorted((u for u in (*units, *bare) if names.get(u.name) is u), key=lambda u: order[u.name])

    def _modules(self) -> Iterator[Candidate]:
        for path, owner in self.model.named_modules():
            for i, (key, module) in enumerate(owner._modules.items()):
                name = f"{path}.{key}".removeprefix(".")
                own, inside = own_parameters(self.model, [name] if module is not None else [], self.places)
                if own:
                    yield Candidate(name, path, i, own, len(own) < inside)

    def _joins(self, name: str) -> bool:
        return name in self.sums.joined and name not in self.sums.lost

    def _silent(self, hopeful: list[Candidate]) -> list[Candidate]:
        """Those that return zero at zero; of modules within each other the outermost."""
        silent: list[Candidate] = []
        for level in levels(hopeful):
            level = [c for c in level if not any(c.within(o) for o in silent)]
            heard = self.trials.all_silent(level)
            silent += [c for c in level if c.name in heard]
            for c in level:
                if c.name not in heard:
                    shared = "; it shares parameters with other modules, and those stay" if c.shares else ""
                    self.refused[c.name] = f"with its parameters at zero its output is not zero{shared}"
        return silent

    def _last(self, silent: list[Candidate]) -> list[Candidate]:
        """Of several that follow each other on the way to a sum, the last."""

        def follows(later: Candidate, c: Candidate) -> bool:
            return later.name in self.sums.carried[c.name] and not later.within(c) and not c.within(later)

        return [c for c in silent if not any(follows(later, c) for later in silent)]

    def _fed(self, name: str) -> list[str]:
        """The modules that feed nothing but this one: outermost, in the order of the model."""
        dead = self.sums.dead(name)
        found: list[str] = []
        for path, module in self.model.named_modules():
            if not path or f"{name}.".startswith(f"{path}.") or path.startswith(f"{name}."):
                continue
            held = {n for n, _ in module.named_parameters(prefix=path, remove_duplicate=False)}
            called = path in self.sums.carried
            if called and held and held <= dead and not any(path.startswith(f"{f}.") for f in found):
                found.append(path)
        return found

    def _without_cached(self, units: list[Unit]) -> list[Unit]:
        bad = self.trials.alone(units)
        self.refused |= bad
        return [u for u in units if u.name not in bad]

    def _weighs_most(self, unit: Unit) -> bool:
        sizes = [_size(self.model, name) for name, _ in unit.instead]
        return len(sizes) > 1 and 2 * sizes[0] > sum(sizes)

    def _bare(self, unit: Unit) -> Unit:
        """The branch without what feeds it."""
        own = tuple(n for n in self.trials.zeroed[unit.name] if n.startswith(f"{unit.name}."))
        self.trials.zeroed[unit.name] = own
        return replace(unit, parameters=own, instead=unit.instead[:1])

    def _units(self, chosen: list[Candidate], sample: Example | Tensor) -> list[Unit]:
        fed = {c.name: self._fed(c.name) for c in chosen}
        names = list(dict.fromkeys(n for c in chosen for n in (c.name, *fed[c.name])))
        zeros = list(dict.fromkeys(p for c in chosen for p in self.trials.zeroed[c.name]))
        calls, native = self.trials.observed(names, zeros), Calls()
        with contextlib.suppress(DataError), native.watch(self.model, names):  # it may run in float64 only
            outputs(self.model, sample)
        units = []
        for c in chosen:
            parts = (c.name, *fed[c.name])
            if kept := [n for n in parts if n in self.exclude]:
                self.refused[c.name] = f"{kept[0]} is excluded"
                continue
            instead = []
            try:
                for name in parts:
                    passes = name != c.name and calls.passes(name) and native.plain.get(name, True)
                    identity = passes and type(self.model.get_submodule(name)) not in CONTAINERS
                    instead.append((name, None if identity else calls.returns(name, native)))
            except Unknown as reason:
                self.refused[c.name] = f"{name} cannot be replaced: {reason}"
                continue
            own, _ = own_parameters(self.model, parts, self.places)
            own = tuple(p for p in own if p in self.trials.zeroed[c.name] or not p.startswith(f"{c.name}."))
            self.trials.zeroed[c.name] = own
            units.append(Unit(c.name, c.container, c.entry, own, c.shares, instead=tuple(instead)))
        return units


def _groups(
    model: nn.Module, units: list[Unit], trials: BranchTrials, refused: dict[str, str], at_least: int
) -> Iterator[BlockGroup]:
    """One group for the branches at one place in all layers."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    alike: dict[str, list[Unit]] = {}
    with Ends(trials.model, [u.name for u in units]) as ends, contextlib.suppress(DataError):
        outputs(trials.model, trials.inputs[0])
    for unit in units:
        alike.setdefault(place_of(model, unit.name), []).append(unit)
    for place, own in alike.items():
        others = sum(place_of(model, name) == place for name in refused)
        least = min(max(at_least - others, 0), len(own))
        if least == len(own):
            only = {u.name: f"of {place} at least {at_least} stay, and there are {len(own) + others}" for u in own}
            refused.update(only)
            continue
        members: list[Member] = []
        for i, unit in enumerate(own):
            zeroed = set(trials.zeroed[unit.name])
            parts = [name for name, _ in unit.instead]
            every, _ = own_parameters(model, parts, places_of(model))
            mine = [
                Member(n, role=role_of(n, shapes) if n in zeroed else "other", buffer=n not in zeroed, unit=i)
                for n in every
            ]
            buffers = [n for part in parts for n, _ in model.get_submodule(part).named_buffers(prefix=part)]
            mine += [Member(n, role="other", buffer=True, unit=i) for n in buffers]
            members += sorted(mine, key=lambda m: (m.buffer, m.role != "out"))
        largest = [max((n for n, _ in u.instead), key=lambda n: _size(model, n)) for u in own]
        yield BlockGroup(
            place_of(model, largest[0]),
            (len(own),),
            tuple(members),
            at_least=least,
            kind="branch",
            entries=tuple(range(len(own))),
            names=tuple(largest),
            length=len(own) + others,
            replaced=True,
            instead=tuple(u.instead for u in own),
            ends=tuple(ends.of(u.name, trials.zeroed[u.name]) for u in own),
        )


def _size(model: nn.Module, name: str) -> int:
    return sum(p.numel() for p in model.get_submodule(name).parameters())
