"""Gates in a model's graph: put in, trained beside the weights, and taken out again.

A gated module's class becomes a subclass of itself in which the weight is read through a property. So `_parameters`,
`named_parameters`, `state_dict` and every optimizer see the user's own weights under their own names at all times, and
whatever reads the weight as an attribute computes with the gated one. Weights that are read in another way (from a list
that the module keeps) get no gate: their groups are left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.gate import Gate, Moment
from prunus.core.groups import Group, Member
from prunus.core.part import Masks
from prunus.engine.apply_ import pack, unpack
from prunus.engine.decide import progress, upcoming, wanted
from prunus.engine.gated import gated, left_of, owned, reread, spread, wide
from prunus.engine.hooks import calling_scaler
from prunus.engine.score import acting, behind, gates_of, make_sources, worth_of
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


class Gating:
    """The gates of one session.

    Attributes:
        thetas: group name -> what is trained, in single precision at least.
        reached: the groups whose gates a gradient has come through.
        optimizer: trains the gates, one step for every step of the session; None where there is nothing to train.
        duals: what they carry from step to step, such as the multipliers of their constraints.
        keep: group name -> what is kept by now.
        wide: the same of the wider choice, where the gate makes one.
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
        self.duals = torch.tensor(self.part.duals(len(self.thetas)), dtype=torch.float64)
        self.keep: Masks = {}
        self.wide: Masks = {}
        self._moments: dict[str, Moment] = {}
        self.batches: list[Any] = []
        self._fixed: Mapping[str, Tensor] | None = None
        self._joint = type(self.part).values is not Gate.values
        self._joined: Mapping[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}
        self._scaler, self._scaled = session.scaler, 0.0
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
        self._scaler = self.session.scaler
        names = {id(self.session.parameters[n]): n for n in self._places}
        for path, module in self.session.model.named_modules():
            here = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if here and (isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_gated_by")):
                self.uninstall()
                why = "is gated already" if hasattr(module, "_gated_by") else "is compiled (torch.jit)"
                raise SpecError(f"no gate can be put on the weights of {path or type(module).__name__}: it {why}")
            if here:
                self._kinds.append((module, type(module)))
                module.__class__ = gated(type(module), here, self.weight)

    def uninstall(self) -> None:
        """Let the model compute with its own weights again."""
        for module, kind in self._kinds:
            module.__class__ = kind
            reread(module)
        self._kinds = []

    def weight(self, name: str, w: Tensor, moments: Mapping[str, Moment] | None = None) -> Tensor:
        """What the network computes with in the place of a parameter."""
        if self._scaler is not None and torch.is_grad_enabled():
            self._forget_skipped()
        lasting = moments is None and not self.part.trained
        value: Tensor | None = self._ready.get(name) if lasting else None
        if value is None:
            for group, member in self._places[name]:
                own = spread(group, member, self._value(group.name, moments).expand(group.shape), w)
                value = own if value is None else value * own
            assert value is not None
            if lasting:  # until the choice changes: laying it out is most of the work
                self._ready[name] = value
        return self.part.weight(w, value)

    def _value(self, name: str, moments: Mapping[str, Moment] | None) -> Tensor:
        """What the units of a group are multiplied by; at the step at hand where no moments are given."""
        if moments is not None:
            joined = self.part.values(self.thetas, moments) if self._joint else None
            return self.part.value(self.thetas[name], moments[name]) if joined is None else joined[name]
        if self._fixed is not None:
            return self._fixed[name]
        return self._leaves[name] if self._joint else self.part.value(self.thetas[name], self._moments[name])

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
            scores = self.worth() if self.part.trained else None
            keep = wanted(session, scores)
            more = self.part.wider(upcoming(session).density)
            self.wide = {} if more is None else wanted(session, scores, more)
        if any(keep.get(n) is not self.keep.get(n) for n in self.thetas):
            self._ready = {}
        self.keep = dict(keep)
        draw = torch.Generator().manual_seed((session.seed * 1_000_003 + session.step) % 2**63)
        far, density = progress(session, marks=False), upcoming(session).density
        draws = (self.part.samples,) if self.part.samples > 1 else ()
        self._moments = {}
        for name, theta in self.thetas.items():
            noise = torch.rand((*draws, *theta.shape), generator=draw).to(theta) if self.part.samples else None
            seen = self.wide.get(name), self._behind(name), self._moments, self._left
            self._moments[name] = Moment(far, density, keep.get(name), noise, self.duals, self._sizes, *seen)
        if self._joint:
            # Worked out once; what comes back to these leaves goes on to the thetas when the gates step.
            with torch.enable_grad():
                self._joined = self.part.values(self.thetas, self._moments)
            self._leaves = {n: v.detach().requires_grad_(v.requires_grad) for n, v in self._joined.items()}

    def _left(self, shares: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """What is left of the matrices that gates lie over: see `Moment.left`."""
        shapes = {n: p.shape for n, p in self.session.parameters.items()}
        return left_of(self.session.groups, shapes, shares)

    def _behind(self, name: str) -> Tensor | None:
        """`[*units, k]`: the weights that produce a group's units, where the gate asks to see them."""
        if not self.part.sees:
            return None
        return behind(next(g for g in self.session.groups if g.name == name), self.session.parameters)

    def step(self) -> None:
        """One step of the gates' own optimizer, by the gradients that the user's backward passes have left.

        Loss scaling is undone, and gradients that are not finite (a scale that was too large) are passed over, as
        scalers do. In a distributed run gradients are averaged.
        Errors: `SpecError` where no gradient has reached any gate.
        """
        if self.optimizer is None:
            return
        moment = next(iter(self._moments.values()))
        self._gather()
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
            with torch.no_grad():
                self.duals = self.part.ascended(self.duals, self.thetas, moment)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            confined = self.part.confined(self.thetas, moment)
            for name, theta in self.thetas.items():
                now = replace(self._moments[name], w=self._behind(name))
                theta.copy_(self.part.restarted(confined[name], now))

    def _gather(self) -> None:
        """What came back through values that were worked out together goes to the thetas; loss scales are undone."""
        back = [(n, v, self._leaves[n].grad) for n, v in self._joined.items() if self._leaves[n].grad is not None]
        if back:
            torch.autograd.backward([v for _, v, _ in back], [g for _, _, g in back])
        for name, theta in self.thetas.items():
            if self._joint and self._leaves[name].grad is None:
                theta.grad = None  # it competes, but nothing that the network computes with is behind it
        self._leaves, self._joined = {}, {}
        scaler = calling_scaler() or self.session.scaler
        if scaler is not None:
            self._scaler, self._scaled = scaler, 0.0
            for theta in self.thetas.values():
                if theta.grad is not None:
                    theta.grad /= scaler.get_scale()

    def _forget_skipped(self) -> None:
        """Drop gradients of a step that the scaler skipped: its scale is another one since, and nobody clears them."""
        held = [*self.thetas.values(), *self._leaves.values()]
        if not self._scaled or any(t.grad is not None for t in held):
            scale = float(self._scaler.get_scale())
            for t in held if self._scaled and scale != self._scaled else ():
                t.grad = None
            self._scaled = scale

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
            found, duals = self.part.estimated(loss, self.thetas, self._moments)
        self.duals = self.duals if duals is None else duals
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
        thetas = {n: t for n, t in self.thetas.items() if n in known}
        return worth_of(self.part, thetas, self.session.groups, self.session.parameters)

    @torch.no_grad()
    def open(self) -> float | None:
        """The share of the units that gates would keep by themselves; None where they do not say, or never trained."""
        if not self._moments:
            return None
        now = {n: replace(m, w=self._behind(n)) for n, m in self._moments.items()}
        said = {n: self.part.open(t.detach(), now[n]) for n, t in self.thetas.items()}
        found = [o.expand(g.shape) for g in self.session.groups if (o := said.get(g.name)) is not None]
        return sum(count(o) for o in found) / sum(o.numel() for o in found) if found else None

    @torch.no_grad()
    def passed(self, event: Event, masks: Masks) -> None:
        """Around an event: after the last one weights take the values that they had and the gates go; else they are
        renewed where the weights are rewound.
        """
        session = self.session
        if event.settle is not None or session.fired == len(session.events) - 1:
            final: dict[str, Moment] = {}
            for n in self.thetas:
                seen = None, self._behind(n), final
                final[n] = Moment(1.0, event.density, masks[n], None, self.duals, self._sizes, *seen)
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
        lasts = self.part.selects and self.part.every > 1
        keep, wide = ({n: pack(m) for n, m in c.items() if lasts} for c in (self.keep, self.wide))
        known = {"reached": sorted(self.reached), "duals": self.duals}
        return {"thetas": thetas, "memory": memory, **known, "keep": keep, "wide": wide}


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
    gating.keep, gating.wide = (
        {n: unpack(m.to(places[n]), shapes[n]) for n, m in state[key].items()} for key in ("keep", "wide")
    )
    for key, value in state["memory"].items():
        name, field = key.rsplit("|", 1)
        theta = gating.thetas[name]
        kept = value.to(theta.device) if value.shape == theta.shape and value.ndim else value
        assert gating.optimizer is not None
        gating.optimizer.state[theta][field] = kept.clone()
    return gating
