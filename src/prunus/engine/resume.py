"""A session's state as it is stored: what it holds, and what is refused before anything is changed."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.core.errors import Problems, SpecError
from prunus.core.events import Event
from prunus.core.gate import Gate
from prunus.core.part import Masks
from prunus.engine.apply_ import pack, unpack
from prunus.engine.gating import resumed
from prunus.engine.restep import relaid
from prunus.engine.shards import resharded, whole

if TYPE_CHECKING:
    from prunus.engine.session import Session

FORMAT = 3
KEYS = (
    *("format", "recipe", "budget", "steps", "seed", "groups", "step", "clock", "fired", "holding", "pending", "masks"),
    *("generator", "weights", "rates", "history", "skipped", "collapsed", "seconds"),
    *("settled", "probes", "initial", "running", "gates", "marking", "laid", "explored", "resteps"),
)


def check_state(
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    masks: Masks,
    model: Mapping[str, Tensor],
    events: Sequence[Event],
    gate: Gate | None = None,
) -> None:
    """Refuse a state that is not one, or belongs to another recipe, budget, run or model.

    own: what must be equal (recipe, budget, steps, seed, groups). masks, model, events, gate: this session's, to
    compare.
    Errors: `SpecError` that lists every problem; nothing has been changed.
    """
    if not isinstance(state, Mapping) or (missing := [k for k in KEYS if k not in state]):
        what = f"it lacks {', '.join(missing)}" if isinstance(state, Mapping) else f"it is a {type(state).__name__}"
        raise SpecError(f"this is not what Session.state_dict() gives: {what}")
    if state["format"] != FORMAT:
        raise SpecError(
            f"this state has format {state['format']!r}, this version reads {FORMAT}: use the version that wrote it"
        )
    problems = Problems("this state belongs to another session; make the session as it was, or start anew without it")
    for key, value in own.items():
        if normal(state[key]) != normal(value):
            problems.add(f"its {key} is {_short(state[key])}, here {_short(value)}")
    problems.raise_if_any(SpecError)

    problems = Problems("this state is damaged; load an earlier one")
    for name, mask in masks.items():
        packed = state["masks"].get(name)
        if not _is(packed, torch.uint8, (-(-mask.numel() // 8),)):
            problems.add(f"the mask of {name!r} is missing or has another size")
    if _are_resteps(state["resteps"], state["step"]):
        events = relaid(events, own["steps"], state["resteps"])
    else:
        problems.add(f"{state['resteps']!r} is no list of what was changed about the number of steps")
    if not _is(state["generator"], torch.uint8, tuple(torch.Generator().get_state().shape)):
        problems.add("the generator's state is not one")
    step, fired = state["step"], state["fired"]
    if not (isinstance(step, int) and isinstance(fired, int) and step >= 0 and 0 <= fired <= len(events)):
        problems.add(f"step {step!r} and {fired!r} events done fit no run of {len(events)} events")
        problems.raise_if_any(SpecError)
    if fired and events[fired - 1].step > step:
        problems.add(f"event {fired} is done at step {step}, but falls on step {events[fired - 1].step}")
    for at, saved in state["weights"].items():
        if bad := [n for n, t in model.items() if not _is(saved.get(n), t.dtype, tuple(t.shape))]:
            problems.add(f"the snapshot of step {at} lacks {bad[0]!r} or holds another shape or type of it")
    for event in events[fired:]:
        if event.rewind is not None and event.rewind <= step and str(event.rewind) not in state["weights"]:
            problems.add(f"the snapshot of step {event.rewind}, to which it will rewind, is missing")
    for probe in state["probes"]:
        if any(not _is(probe.get(n), torch.uint8, (-(-m.numel() // 8),)) for n, m in masks.items()):
            problems.add("the masks that it compares with are missing or have another size")
    for kind, stored in (("initial", [state["initial"]]), ("running", list(state["running"].values()))):
        for one in stored:
            if bad := [n for n, t in one.items() if not isinstance(t, Tensor) or n.split("|")[0] not in model]:
                problems.add(f"its {kind} tensors hold {bad[0]!r}, which is no parameter of the model")
    for n, theta in state["gates"].get("thetas", {}).items():
        if n not in masks or not isinstance(theta, Tensor) or not _fits(gate, theta, masks[n]):
            problems.add(f"the gates of {n!r} have another shape than its units, or there is no such group")
    choices = {kind: state["gates"].get(kind, {}) for kind in ("keep", "wide")}
    kept = {"explored": state["explored"], "cuts": state["laid"]}
    for what, stored in (*kept.items(), ("choice", choices["keep"]), ("choice", choices["wide"])):
        if bad := [n for n, t in stored.items() if n not in masks or not _packs(t, masks[n])]:
            problems.add(f"the masks of its {what} hold {bad[0]!r}, which is no group of this size")
    if state["pending"] is not None and str(state["pending"]) not in state["rates"]:
        problems.add(f"the learning rates of step {state['pending']}, which come next, are missing")
    problems.raise_if_any(SpecError)


def check_events(events: Sequence[Event], steps: int, recipe: str) -> None:
    """Refuse a timeline that could not be carried out to its end.

    Errors: `SpecError` naming the event: out of order, after the last step, or going back to a step still to come.
    """
    problems = Problems(f"the schedule of {recipe!r} cannot be carried out in {steps} steps")
    if not events:
        problems.add("it has no event")
    for before, event in zip((Event(0, 1.0), *events), events, strict=False):
        back = event.rewind if event.rewind is not None else event.replay
        if event.step < before.step:
            problems.add(f"{event} comes after an event at step {before.step}")
        if event.step > steps:
            problems.add(f"{event} falls after the last step")
        if back is not None and not 0 <= back <= event.step:
            problems.add(f"{event} goes back to a step that has not been yet")
    problems.raise_if_any(SpecError)


def normal(value: Any) -> Any:
    """What JSON makes of plain values, so that a state compares equal however it was stored."""
    return json.loads(json.dumps(value))


def _is(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype and tuple(value.shape) == shape


def _are_resteps(value: Any, last: Any) -> bool:
    """Whether these are pairs of a step and a number of steps, in order."""
    pairs = isinstance(value, list | tuple) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value)
    if not pairs or not all(type(n) is int for v in value for n in v) or type(last) is not int:
        return False
    at = [int(v[0]) for v in value]
    return [0, *at, last] == sorted([0, *at, last]) and all(v[1] >= v[0] for v in value)


def _packs(value: Any, mask: Tensor) -> bool:
    return _is(value, torch.uint8, (-(-mask.numel() // 8),))


def _fits(gate: Gate | None, theta: Tensor, mask: Tensor) -> bool:
    """Whether a gate makes one number per unit of what was stored."""
    try:
        if gate is None:
            return False
        worth = gate.worth_over(theta, theta.new_zeros((*mask.shape, 1))) if gate.sees else gate.worth(theta)
        return bool(torch.broadcast_shapes(worth.shape, mask.shape) == mask.shape)
    except (RuntimeError, IndexError):
        return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."


def stored(session: "Session") -> dict[str, Any]:
    """Everything that a session is, as tensors and plain values, but for the time it took."""
    rewinder = session.rewinder
    return {
        "format": FORMAT,
        **session.identity(),
        "step": session.step,
        "clock": session.clock,
        "fired": session.fired,
        "holding": session.holding,
        "pending": rewinder.pending,
        "masks": {n: pack(m) for n, m in session.masks.items()},
        "generator": session.generator.get_state(),
        "weights": {str(k): {n: whole(t) for n, t in v.items()} for k, v in rewinder.weights.items()},
        "rates": {str(k): v for k, v in rewinder.rates.items()},
        "history": [dict(h) for h in session.history],
        "skipped": dict(session.skipped),
        "collapsed": list(session.collapsed),
        "settled": session.settled,
        "probes": [{n: pack(m) for n, m in probe.items()} for probe in session.probes],
        "initial": session.initial or {},
        "running": {key: dict(store) for key, store in session.running.items()},
        "marking": session.marking,
        "laid": {n: pack(m) for n, m in session.laid.items()} if session.marking else {},
        "resteps": [list(r) for r in session.resteps],
        "explored": {n: pack(m) for n, m in session.explored.items()},
        "gates": {} if session.gating is None else session.gating.state(),
    }


def restore_(session: "Session", state: Mapping[str, Any]) -> None:
    """Put a checked state into a session."""
    session.parameters = resharded(session.model)
    places = {g.name: session.parameters[g.members[0].param].device for g in session.groups}
    session.masks = {g.name: unpack(state["masks"][g.name].to(places[g.name]), g.shape) for g in session.groups}
    session.resteps = [[int(at), int(steps)] for at, steps in state["resteps"]]
    session.steps = session.resteps[-1][1] if session.resteps else session.planned
    session.events = relaid(session.plan, session.planned, session.resteps)
    session.step, session.clock, session.fired = int(state["step"]), int(state["clock"]), int(state["fired"])
    session.holding, session.marking = bool(state["holding"]), bool(state["marking"])
    shapes = {g.name: g.shape for g in session.groups}
    session.explored, cuts = (
        {n: unpack(m.to(places[n]), shapes[n]) for n, m in state[kind].items()} for kind in ("explored", "laid")
    )
    session.laid = cuts if session.marking else dict(session.masks) if session.fired else {}
    session.generator.set_state(state["generator"].cpu())
    session.settled = bool(state["settled"])
    session.probes = [{n: unpack(p[n].to(places[n]), shapes[n]) for n in shapes} for p in state["probes"]]
    there = {n: p.device for n, p in session.parameters.items()}
    session.initial = {n: t.to(there[n]) for n, t in state["initial"].items()} or None
    session.running = {
        key: {n: t.to(there[n.split("|")[0]]) for n, t in store.items()} for key, store in state["running"].items()
    }
    session.rewinder.load(state)
    session.gating = resumed(session, state["gates"])
    session.history = [dict(h) for h in state["history"]]
    session.skipped, session.collapsed = dict(state["skipped"]), tuple(state["collapsed"])
