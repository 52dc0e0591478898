"""Gates in a model's graph: put in, trained beside the weights, and taken out again.

A gated module's class becomes a subclass of itself in which the weight is read through a property. So `_parameters`,
`named_parameters`, `state_dict` and every optimizer see the user's own weights under their own names at all times, and
whatever reads the weight as an attribute computes with the gated one. Weights that are read in another way (from a list
that the module keeps) get no gate: their groups are left out.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.gate import Moment
from prunus.core.groups import Group, Member
from prunus.core.part import Masks
from prunus.engine.apply_ import pack, unpack
from prunus.engine.decide import progress, upcoming, wanted
from prunus.engine.score import acting, gates_of, make_sources, worth_of
from prunus.parts.evidence.mode import evidence_mode

if TYPE_CHECKING:
    from prunus.engine.session import Session


def gating_of(session: "Session") -> "Gating | None":
    """The gates that a session begins with, where its recipe has any."""
    part = session.recipe.gate
    if part is None:
        return None
    sources = make_sources(session.model, session.task, session.groups, session.generator, part)
    return Gating(session, gates_of(part, sources))


FLAT = ("_flat_weights", "_flat_weight_refs")


class Gating:
    """The gates of one session.

    Attributes:
        thetas: group name -> what is trained, in single precision at least.
        reached: the groups whose gates a gradient has come through.
        optimizer: trains the gates, one step for every step of the session; None where there is nothing to train.
        duals: the multipliers of their constraints.
        keep: group name -> what is kept by now.
    """

    def __init__(self, session: "Session", thetas: Mapping[str, Tensor]) -> None:
        assert session.recipe.gate is not None
        self.session, self.part = session, session.recipe.gate
        first = {g.name: session.parameters[g.members[0].param] for g in session.groups}
        trained = self.part.trained
        self.thetas = {n: nn.Parameter(wide(t, first[n])) if trained else t.to(first[n]) for n, t in thetas.items()}
        self.reached: set[str] = set()
        self.optimizer: torch.optim.Optimizer | None = (
            self.part.optimizer(list(self.thetas.values())) if trained else None
        )
        self._rates = [float(g["lr"]) for g in self.optimizer.param_groups] if self.optimizer is not None else []
        self.duals = torch.tensor(self.part.duals(), dtype=torch.float64)
        self.keep: Masks = {}
        self._moments: dict[str, Moment] = {}
        self.batches: list[Any] = []
        self._fixed: Mapping[str, Tensor] | None = None
        self._ready: dict[str, Tensor] = {}
        self._places: dict[str, list[tuple[Group, Member]]] = {}
        for group in session.groups:
            for member in acting(group) if group.name in self.thetas else ():
                self._places.setdefault(member.param, []).append((group, member))
        self._kinds: list[tuple[nn.Module, type[nn.Module]]] = []
        self._sizes = {g.name: owned(g, session.parameters) for g in session.groups if g.name in self.thetas}

    @torch.no_grad()
    def enter(self) -> None:
        """Give the weights behind the gates the values that they begin with."""
        for name in self._places:
            p = self.session.parameters[name]
            p.copy_(self.part.entered(p))

    # In the graph

    def install(self) -> None:
        """Let the model compute with gated weights.

        Errors: `SpecError` where another session's gates are in it, or weights are compiled into something else.
        """
        self.turn()
        names = {id(self.session.parameters[n]): n for n in self._places}
        for path, module in self.session.model.named_modules():
            here = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if here and (isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_gated_by")):
                self.uninstall()
                why = "is gated already" if hasattr(module, "_gated_by") else "is compiled (torch.jit)"
                raise SpecError(f"no gate can be put on the weights of {path or type(module).__name__}: it {why}")
            if here:
                self._kinds.append((module, type(module)))
                module.__class__ = gated(type(module), here, self)

    def uninstall(self) -> None:
        """Let the model compute with its own weights again."""
        for module, kind in self._kinds:
            module.__class__ = kind
            reread(module)
        self._kinds = []

    def weight(self, name: str, w: Tensor, moments: Mapping[str, Moment] | None = None) -> Tensor:
        """What the network computes with in the place of a parameter."""
        lasting = moments is None and not self.part.trained
        value: Tensor | None = self._ready.get(name) if lasting else None
        if value is None:
            for group, member in self._places[name]:
                moment = (self._moments if moments is None else moments)[group.name]
                units = (
                    self._fixed[group.name]
                    if self._fixed is not None and moments is None
                    else self.part.value(self.thetas[group.name], moment)
                )
                own = spread(group, member, units.expand(group.shape), w)
                value = own if value is None else value * own
            assert value is not None
            if lasting:  # until the choice changes: laying it out is most of the work
                self._ready[name] = value
        return self.part.weight(w, value)

    # While training

    @torch.no_grad()
    def turn(self) -> None:
        """Look at the step to come: how far it is, what would be kept by now, and its noise."""
        session = self.session
        if not self.part.selects:
            keep: Masks = session.masks
        elif self.keep and session.step % self.part.every:
            keep = self.keep
        else:
            keep = wanted(session, self.worth() if self.part.trained else None)
        if any(keep.get(n) is not self.keep.get(n) for n in self.thetas):
            self._ready = {}
        self.keep = dict(keep)
        draw = torch.Generator().manual_seed((session.seed * 1_000_003 + session.step) % 2**63)
        far, density = progress(session, marks=False), upcoming(session).density
        for name, theta in self.thetas.items():
            noise = torch.rand(theta.shape, generator=draw).to(theta) if self.part.samples else None
            self._moments[name] = Moment(far, density, keep.get(name), noise, self.duals, self._sizes)

    def step(self) -> None:
        """One step of the gates' own optimizer, by the gradients that the user's backward passes have left.

        Gradients that are not finite (a loss scale that was too large) are passed over, as scalers do. Loss scaling
        itself is not undone: gates that are trained by Adam do not feel it. In a distributed run gradients are
        averaged.
        Errors: `SpecError` where no gradient has reached any gate.
        """
        if self.optimizer is None:
            return
        moment = next(iter(self._moments.values()))
        if self.part.evaluates:
            self._estimate()
        found = self._averaged()
        if not found and not self.reached:
            raise SpecError(
                f"no gradient reaches any gate of {self.session.recipe.name!r}: its weights are read in a way that no "
                f"gate can be put into, or the loss does not depend on them"
            )
        self.reached |= found
        with torch.enable_grad():
            extra = self.part.penalty(self.thetas, moment)
        if extra is not None and extra.requires_grad:
            thetas = list(self.thetas.values())
            for theta, more in zip(thetas, torch.autograd.grad(extra, thetas, allow_unused=True), strict=True):
                if more is not None:
                    theta.grad = more if theta.grad is None else theta.grad + more
        if all(bool(torch.isfinite(t.grad).all()) for t in self.thetas.values() if t.grad is not None):
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self.part.rate(moment.progress)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for theta in self.thetas.values():
                theta.copy_(self.part.projected(theta))
            self.duals = self.part.ascended(self.duals, self.thetas, moment)

    def _estimate(self) -> None:
        """Gradients from losses alone, added to those that there are."""
        session = self.session
        if not self.batches:
            self.batches = list(session.task.calibration())
        place = session.step % len(self.batches)

        def loss(values: Mapping[str, Tensor]) -> float:
            self._fixed = values
            try:
                return float(session.task.loss_of(session.model, self.batches[place]))
            finally:
                self._fixed = None

        with evidence_mode(session.model, {}, session.generator, train=session.model.training), torch.no_grad():
            found = self.part.estimated(loss, self.thetas, self._moments)
        for name, gradient in found.items():
            theta = self.thetas[name]
            theta.grad = gradient if theta.grad is None else theta.grad + gradient

    def _averaged(self) -> set[str]:
        """The groups that a gradient has come to, on any rank; gradients become the mean over ranks."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {n for n, t in self.thetas.items() if t.grad is not None}
        found = set()
        for name, theta in self.thetas.items():
            there = torch.tensor(float(theta.grad is not None), device=theta.device)
            torch.distributed.all_reduce(there)
            if there:
                found.add(name)
                theta.grad = torch.zeros_like(theta) if theta.grad is None else theta.grad
                torch.distributed.all_reduce(theta.grad)
                theta.grad /= torch.distributed.get_world_size()
        return found

    @torch.no_grad()
    def worth(self) -> dict[str, Tensor]:
        """Group name -> what its units are worth; once trained, only of groups that gradients have come through."""
        known = self.reached or self.thetas.keys()
        if not self.part.trained:
            return {}
        return worth_of(self.part, {n: t for n, t in self.thetas.items() if n in known}, self.session.groups)

    @torch.no_grad()
    def open(self) -> float | None:
        """The share of the units that gates would keep by themselves; None where they do not say, or never trained."""
        if not self._moments:
            return None
        said = {n: self.part.open(t.detach(), self._moments[n]) for n, t in self.thetas.items()}
        found = [o.expand(g.shape) for g in self.session.groups if (o := said.get(g.name)) is not None]
        return sum(count(o) for o in found) / sum(o.numel() for o in found) if found else None

    @torch.no_grad()
    def passed(self, event: Event, masks: Masks) -> None:
        """Around an event: after the last one weights take the values that they had and the gates go; else they are
        renewed where the weights are rewound.
        """
        session = self.session
        if event.settle is not None or session.fired == len(session.events) - 1:
            final = {n: Moment(1.0, event.density, masks[n], None, self.duals, self._sizes) for n in self.thetas}
            for name in self._places:
                p = session.parameters[name]
                p.copy_(self.weight(name, p, final))
            self.uninstall()
            session.gating = None
        elif event.rewind is not None and self.optimizer is not None:
            for theta in self.thetas.values():
                theta.copy_(self.part.renewed(theta))
            self.optimizer.state.clear()

    # Saving

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that `resumed` goes on from."""
        held = {} if self.optimizer is None else self.optimizer.state
        memory = {
            f"{name}|{key}": value.detach().clone()
            for name, theta in self.thetas.items()
            for key, value in held.get(theta, {}).items()
            if isinstance(value, Tensor)
        }
        thetas = {n: t.detach().clone() for n, t in self.thetas.items()} if self.part.trained else {}
        keep = {n: pack(m) for n, m in self.keep.items() if self.part.selects and self.part.every > 1}
        return {"thetas": thetas, "memory": memory, "reached": sorted(self.reached), "duals": self.duals, "keep": keep}


def resumed(session: "Session", state: Mapping[str, Any]) -> Gating | None:
    """The gates as they were when their state was taken; None where there were none."""
    if not state:
        return None
    part = session.recipe.gate
    assert part is not None
    places = {g.name: session.parameters[g.members[0].param].device for g in session.groups}
    sources = make_sources(session.model, session.task, session.groups, session.generator, part)
    gating = Gating(session, {n: t.to(places[n]) for n, t in (state["thetas"] or gates_of(part, sources)).items()})
    gating.reached, gating.duals = set(state["reached"]), state["duals"].clone()
    shapes = {g.name: g.shape for g in session.groups}
    gating.keep = {n: unpack(m.to(places[n]), shapes[n]) for n, m in state["keep"].items()}
    for key, value in state["memory"].items():
        name, field = key.rsplit("|", 1)
        theta = gating.thetas[name]
        kept = value.to(theta.device) if value.shape == theta.shape and value.ndim else value
        assert gating.optimizer is not None
        gating.optimizer.state[theta][field] = kept.clone()
    return gating


def gated(kind: type[nn.Module], names: Mapping[str, str], gating: Gating) -> type[nn.Module]:
    """A subclass of a module's class that reads some of its weights through gates: attribute -> parameter name."""

    def read(attribute: str, name: str) -> property:
        return property(lambda self: gating.weight(name, self._parameters[attribute]))

    def copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        # A copy is a plain module with the values of this moment in its weights: it computes what this one does.
        twin: nn.Module = kind.__new__(kind)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy({k: v for k, v in vars(self).items() if k not in FLAT}, memo))
        with torch.no_grad():
            for attribute, name in names.items():
                own, theirs = self._parameters[attribute], twin._parameters[attribute]
                assert own is not None and theirs is not None
                theirs.copy_(gating.weight(name, own))
        twin.__dict__.update({k: [] for k in FLAT if k in vars(self)})
        reread(twin)
        return twin

    def refused(self: nn.Module, protocol: Any) -> Any:
        raise SpecError("a module with gates in it is not pickled: save its state_dict() and the session's")

    fields: dict[str, Any] = {attribute: read(attribute, name) for attribute, name in names.items()}
    fields |= {"__deepcopy__": copied, "__reduce_ex__": refused, "_gated_by": gating, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), fields)


def reread(module: nn.Module) -> None:
    """Let a recurrent cell look its weights up anew: it keeps a list of those that it ran with."""
    renew = getattr(module, "_init_flat_weights", None)
    if callable(renew):
        renew()


def spread(group: Group, member: Member, value: Tensor, like: Tensor) -> Tensor:
    """Values of units, laid out over a parameter's shape so that they multiply it; 1 where no unit is."""
    value = value.to(device=like.device, dtype=like.dtype)
    if member.tile is not None:
        grid = value.reshape([n // t for n, t in zip(like.shape, member.tile, strict=True)])
        for along, length in enumerate(member.tile):
            grid = grid.repeat_interleave(length, along) if length > 1 else grid
        return grid
    if member.dim is None:
        return value.reshape(like.shape)
    index = member.positions(group.units).to(like.device)
    axis = value.new_ones(like.shape[member.dim])
    axis = axis.index_put((index.reshape(-1),), value.reshape(-1).repeat_interleave(index.shape[1]))
    lying = [1] * like.ndim
    lying[member.dim] = -1
    return axis.reshape(lying)


def owned(group: Group, parameters: Mapping[str, Tensor]) -> float:
    """How many weights one unit of a group owns, on average: of what produces it and of what reads it."""
    members = [m for m in group.with_role("out", "in") if m.param in parameters]
    total = 0.0
    for m in members:
        size = parameters[m.param].numel()
        whole = m.dim is None or m.index is None
        total += size if whole else size * m.positions(group.units).numel() / parameters[m.param].shape[m.dim or 0]
    return total / group.units


def wide(theta: Tensor, w: Tensor) -> Tensor:
    """A copy in the weight's type, but single precision at least: small steps of a gate are lost in half precision."""
    return theta.detach().to(torch.promote_types(w.dtype, torch.float32)).clone()
