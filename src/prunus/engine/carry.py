"""Events carried out: what a session does to the model when one is due."""

from typing import TYPE_CHECKING

import torch

from prunus.core.counting import count
from prunus.core.events import Event
from prunus.core.part import Masks
from prunus.engine.apply_ import apply_, check_ranks, mask_state_, parameter_masks
from prunus.engine.decide import distance, grown, ranked, regrown
from prunus.engine.rebuild import rebuilt
from prunus.engine.recover import recovered
from prunus.engine.rewind import target
from prunus.engine.select import collapsed, warn_collapse
from prunus.engine.sweep import swept
from prunus.engine.undecided import rebuilt_anew

if TYPE_CHECKING:
    from prunus.engine.session import Session


def run_due(session: "Session") -> None:
    """Carry out every event that falls on the steps made so far."""
    while session.fired < len(session.events) and session.events[session.fired].step <= session.step:
        run(session, session.events[session.fired])
        session.fired += 1


def run(session: "Session", event: Event) -> None:
    """Choose masks, rebuild, apply, rewind, recover, as the event says, and write it down."""
    if event.settle is not None and session.settled:
        return
    before, recipe = session.masks, session.recipe
    left: Masks | None = None
    by_block = recipe.sweep == "blocks"
    anew = None if event.regrow or event.grow or by_block else rebuilt_anew(session, event)
    if event.regrow:
        masks, left = regrown(session, event, session.gradients)
    elif event.grow:
        masks = grown(session, event, session.gradients)
    else:
        masks = swept(session, event) if by_block else anew or ranked(session, event)
    check_ranks(masks)
    if event.settle is not None and not settles(session, event, masks):
        return
    if recipe.reconstruct is not None and not (event.regrow or event.grow or event.mark or by_block or anew):
        masks = rebuilt(session, masks)
    session.collapsed = collapsed(masks, None, session.groups)
    warn_collapse(collapsed(masks, before, session.groups), recipe.name)
    opened = None if session.gating is None else session.gating.open()
    session.masks, session.marking = masks, event.mark
    if not event.mark:
        session.laid, session.holding = masks, event.hold
    if recipe.grow is not None:
        # Whatever trained before the first event was dense.
        known = session.explored or (before if session.step else masks)
        session.explored = {n: m | known[n] for n, m in masks.items()}
    if session.gating is not None:
        session.gating.passed(event, masks)
    if event.rewind is not None:
        session.rewinder.restore(event.rewind, session.optimizers)
    if left is not None and event.fresh:
        forget_(session, left)
    session.lay_out()
    apply_(session.parameters, session.applied)
    if session.holding:
        mask_state_(session.optimizers, {session.parameters[n]: m for n, m in session.applied.items()})
        for optimizer in session.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()  # its curvature is that of other weights, and not laid out by parameter
    if recipe.recover is not None and (event is session.events[-1] or event.settle is not None):
        session.recovering = recovered(session, session.applied, session.optimizers)
    back = target(event)
    if back is not None:
        session.clock = back
        session.rewinder.pending = back if back in session.rewinder.rates else None  # else no step was made since
    record(session, event, opened)


def forget_(session: "Session", left: Masks) -> None:
    """Zero what a drop takes out, and what optimizers remember of it, also where it is regrown at once."""
    laid = parameter_masks(session.groups, left, session.parameters)
    apply_(session.parameters, laid)
    mask_state_(session.optimizers, {session.parameters[n]: m for n, m in laid.items()})


def record(session: "Session", event: Event, opened: float | None) -> None:
    """Write an event down: what was asked and kept, what was ever kept, and what gates would keep by themselves."""
    told = {n: m for n, m in session.masks.items() if n not in session.skipped}
    kept, total = sum(count(m) for m in told.values()), sum(m.numel() for m in told.values())
    ever = sum(count(session.explored[n]) for n in told) / total if session.explored else None
    session.history.append(
        {"step": session.step, "asked": event.density, "kept": kept, "units": total, "density": kept / total}
        | {k: v for k, v in event._asdict().items() if k in ("regrow", "grow", "rewind", "replay", "mark") and v}
        | {k: v for k, v in {"explored": ever, "open": opened}.items() if v is not None}
        | ({} if session.cost is None or event.regrow else session.cost.record())
    )


def settles(session: "Session", event: Event, masks: Masks) -> bool:
    """Whether an event that waits for its masks to settle is to be carried out; remembers them if not."""
    assert event.settle is not None
    far = max((distance(masks, probe) for probe in session.probes[-event.window :]), default=1.0)
    session.settled = event.settle >= 1 or (len(session.probes) >= event.window and far < event.settle)
    session.probes = [*session.probes, masks][-max(1, event.window) :]
    if not session.settled:
        session.history.append({"step": session.step, "asked": event.density, "distance": far, "settled": False})
    return session.settled
