"""A small recurrent network that is trained, beside the model, to say which units the model can do without."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import GroupTensors, Reads, RunningEvidence, Sources
from prunus.core.groups import Group, Role
from prunus.parts.evidence.cost import element_prices
from prunus.parts.evidence.foresight import LossOf, gradients
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode

INPUT, HIDDEN = 64, 128
RECURRENT = tuple(f"{n}{d}" for d in ("", "_reverse") for n in ("input", "hidden", "input_bias", "hidden_bias"))


class ControllerEvidence(RunningEvidence):
    """Log-odds of every unit, less `base`, from a controller: a bidirectional GRU over one fixed orthogonal input per
    group, a layer norm, ReLU, and a linear map for each group (ATO: Wu et al. 2024, CVPR, arXiv:2403.14729, and its
    official code).

    Every `every` steps between the fractions `begin` and `until` of those before units are removed it makes a step of
    AdamW on one calibration batch: the task's loss, the model in evaluation mode and its units multiplied where they
    are read by sigmoid((o + G + base) / tau), G a Gumbel draw, plus `strength` times |log(s / p)| of a draw rounded to
    0 and 1 (straight through), s the share that is left, p the density of the next event; nothing within half a percent
    of p. `weighs` says of what s is a share: units, or parameters or multiply-accumulates by the product of widths.
    All these are the asking part's fields. Weights and their gradients stay as they are. Outside of training it makes
    a step on each calibration batch. Undefined where nothing reads a unit. Cost: a forward and backward every `every`
    steps; 150 000 numbers, and 256 per unit, thrice.
    """

    key: ClassVar[str] = "controller"
    reads: ClassVar[Reads] = "labels"
    random: ClassVar[bool] = True
    passes: ClassVar[str] = "a forward and backward every few steps of training"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        if not steered(sources):
            return
        if not store:
            store.update(drawn(sources))
        own, far = sources.settings, sources.step / max(1, sources.step + sources.left)
        if own["begin"] <= far < own["until"] and (sources.step + 1) % own["every"] == 0:
            batches = shown(sources)
            self.learn(store, sources, batches[sources.step // own["every"] % len(batches)])

    def learn(self, store: dict[str, Tensor], sources: Sources, batch: Any) -> None:
        """One step of the controller, in place."""
        own, groups = sources.settings, steered(sources)
        with evidence_mode(sources.model, {}, sources.generator):
            live = {n: t.clone().requires_grad_() for n, t in store.items() if trainable(n)}
            odds = log_odds({**store, **live}, sources)
            soft, other = (
                {n: ((o + gumbel(o, sources) + own["base"]) / own["tau"]).sigmoid() for n, o in odds.items()}
                for _ in range(2)
            )
            hard = {n: (v >= 0.5).to(v.dtype) + v - v.detach() for n, v in other.items()}
            now = {n: p.detach() for n, p in sources.parameters.items()}
            for (name, dim), axis in along(groups, soft, now, ("in",)).items():
                lying = [1] * now[name].ndim
                lying[dim] = -1
                now[name] = now[name] * axis.to(now[name].dtype).reshape(lying)
            loss = LossOf(sources.model, sources.task).at(now, batch)
            left = share_left(store, hard, sources)
            loss = loss + own["strength"] * off_target(left, sources.density).to(loss)
            slopes = averaged_over_ranks(gradients(loss, live))
        step_(store, slopes, rate=own["rate"], decay=own["decay"], count=named(sources, "count"))

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        store = sources.running.get(self.key, {})
        if not store and steered(sources):
            store = drawn(sources)
            for batch in shown(sources):
                self.learn(store, sources, batch)
        with torch.no_grad():
            yield {n: o.unsqueeze(-1) for n, o in log_odds(store, sources).items()}


def shown(sources: Sources) -> list[Any]:
    """The calibration batches. Errors: `DataError` where there are none."""
    batches = list(sources.task.calibration())
    if not batches:
        raise DataError(NO_BATCH)
    return batches


def steered(sources: Sources) -> tuple[Group, ...]:
    """The groups whose units are slices of what reads them."""
    return tuple(g for g in sources.groups if (r := g.with_role("in")) and all(m.dim is not None for m in r))


def named(sources: Sources, what: str) -> str:
    """The key of something that all groups share; keys begin with the name of a parameter."""
    return f"{sources.groups[0].members[0].param}|{what}"


def head(group: Group) -> str:
    """The key of a group's own linear map."""
    return f"{group.members[0].param}|head|{group.name}"


def trainable(key: str) -> bool:
    """Whether a number of the controller is trained."""
    return not key.endswith(("|count", "|inputs", "|price", "|first", "|second"))


def drawn(sources: Sources) -> dict[str, Tensor]:
    """A controller as torch initializes its layers, and what a parameter's entries cost."""
    groups = steered(sources)
    like = sources.parameters[groups[0].members[0].param] if groups else next(iter(sources.parameters.values()))

    def uniform(bound: float, *shape: int) -> Tensor:
        return bound * (2 * torch.rand(shape, generator=sources.generator, dtype=torch.float64) - 1)

    ends = max(len(groups), INPUT), min(len(groups), INPUT)
    basis = torch.linalg.qr(torch.randn(ends, generator=sources.generator, dtype=torch.float64)).Q
    found = {named(sources, "inputs"): basis if len(groups) > INPUT else basis.T}
    shapes = {"input": (3 * HIDDEN, INPUT), "hidden": (3 * HIDDEN, HIDDEN)}
    for name in RECURRENT:
        shape = shapes.get(name.removesuffix("_reverse"), (3 * HIDDEN,))
        found[named(sources, name)] = uniform(1 / math.sqrt(HIDDEN), *shape)
    found[named(sources, "scale")] = torch.ones(2 * HIDDEN, dtype=torch.float64)
    found[named(sources, "shift")] = torch.zeros(2 * HIDDEN, dtype=torch.float64)
    found |= {head(g): uniform(1 / math.sqrt(2 * HIDDEN), g.units, 2 * HIDDEN) for g in groups}
    weighs = sources.settings["weighs"]
    prices = {} if weighs == "units" else element_prices(sources, weighs)
    found |= {f"{n}|price": torch.tensor(c, dtype=torch.float64) for n, c in prices.items()}
    dtype = torch.promote_types(like.dtype, torch.float32)
    return {n: t.to(like.device, torch.float64 if n.endswith("|price") else dtype) for n, t in found.items()}


def log_odds(store: Mapping[str, Tensor], sources: Sources) -> dict[str, Float[Tensor, "*units"]]:
    """What the controller puts out, by group."""
    groups = steered(sources)
    if not groups:
        return {}
    x = store[named(sources, "inputs")].unsqueeze(1)
    weights = [store[named(sources, n)] for n in RECURRENT]
    out, _ = torch.gru(x, x.new_zeros(2, 1, HIDDEN), weights, True, 1, 0.0, False, True, False)
    scale, shift = store[named(sources, "scale")], store[named(sources, "shift")]
    out = F.layer_norm(out.squeeze(1), (2 * HIDDEN,), scale, shift).relu()
    return {g.name: (store[head(g)] @ out[i]).reshape(g.shape) for i, g in enumerate(groups)}


def gumbel(like: Float[Tensor, "*shape"], sources: Sources) -> Float[Tensor, "*shape"]:
    """Standard Gumbel numbers."""
    u = torch.rand(like.shape, generator=sources.generator, dtype=torch.float64)
    return -(-(u + 1e-20).log() + 1e-20).log().to(like)


def along(
    groups: tuple[Group, ...], values: Mapping[str, Tensor], weights: Mapping[str, Tensor], roles: tuple[Role, ...]
) -> dict[tuple[str, int], Float[Tensor, "size"]]:
    """The values of units along the axes of parameters that they lie on; 1 where no unit does."""
    found: dict[tuple[str, int], Tensor] = {}
    for g in groups:
        for m in g.with_role(*roles):
            if m.dim is None or m.param not in weights:
                continue
            index, value = m.positions(g.units).to(values[g.name].device), values[g.name].reshape(-1)
            axis = value.new_ones(weights[m.param].shape[m.dim])
            axis = axis.index_put((index.reshape(-1),), value.repeat_interleave(index.shape[1]))
            found[m.param, m.dim] = found[m.param, m.dim] * axis if (m.param, m.dim) in found else axis
    return found


def share_left(store: Mapping[str, Tensor], values: Mapping[str, Tensor], sources: Sources) -> Float[Tensor, ""]:
    """The share of units, parameters or multiply-accumulates that values of 0 and 1 leave."""
    if sources.settings["weighs"] == "units":
        every = torch.cat([v.reshape(-1) for v in values.values()])
        return every.mean()
    prices = {n: float(store[f"{n}|price"]) for n in sources.parameters if f"{n}|price" in store}
    axes = along(steered(sources), values, sources.parameters, ("out", "in", "scale", "shift", "bias"))
    left, whole = next(iter(values.values())).new_zeros(()), 0.0
    for name, price in prices.items():
        size = sources.parameters[name].numel()
        share = [a.mean() for (n, _), a in axes.items() if n == name]
        left = left + price * size * (torch.stack(share).prod() if share else 1.0)
        whole += price * size
    return left / whole


def off_target(left: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """|log(left / target)|, flat within half a percent of the whole."""
    if float(left.detach()) > target:
        return (left.clamp(min=target + 0.005) / target).log()
    return (target / left.clamp(min=1e-3, max=max(1e-3, target - 0.005))).log()


def step_(store: dict[str, Tensor], slopes: Mapping[str, Tensor], *, rate: float, decay: float, count: str) -> None:
    """One step of AdamW, in place; only matrices decay."""
    store[count] = store.get(count, torch.zeros((), dtype=torch.float64)) + 1
    t = float(store[count])
    for name, g in slopes.items():
        first, second = (store.get(f"{name}|{k}", torch.zeros_like(g)) for k in ("first", "second"))
        first, second = torch.lerp(g, first, 0.9), torch.lerp(g.square(), second, 0.999)
        move = first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        store[name] = store[name] * (1 - rate * decay * (g.ndim > 1)) - rate * move
        store[f"{name}|first"], store[f"{name}|second"] = first, second


Controlled = Annotated[Float[Tensor, "*units 1"], ControllerEvidence()]
"""`[*units, 1]`: the log-odds with which a controller would keep each unit."""
