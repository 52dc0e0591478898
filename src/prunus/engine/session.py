"""A recipe in someone else's training loop."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.evidence import Sources
from prunus.core.groups import Role
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.agreement import check_agreement, checksum, distributed, refuse_sharded
from prunus.engine.apply_ import apply_, check_ranks, mask_state_, pack, parameter_masks, unpack
from prunus.engine.cost import price_of
from prunus.engine.hooks import Hooks, hookable
from prunus.engine.penalize import add_penalty
from prunus.engine.prepare import (
    check_slots,
    check_weights,
    find_groups,
    resolve_budget,
    resolve_recipe,
    resolve_task,
    unwrap,
)
from prunus.engine.regrow import regrow
from prunus.engine.result import Result
from prunus.engine.resume import FORMAT, check_events, check_state
from prunus.engine.rewind import Rewinder, check_schedulers, target
from prunus.engine.score import check_scores, make_sources, rate, seeded, without
from prunus.engine.select import all_kept, collapsed, select, warn_collapse


class Session:
    """Carries out a recipe's timeline on a model while someone trains it.

    >>> session = prunus.Session(model, "rigl", task, Budget(0.1), steps=1000)   # doctest: +SKIP
    >>> session.attach(optimizer)                                              # the only line a training loop needs

    Attaching uses the optimizer's own step hooks: before a step gradients of pruned weights are zeroed and penalties
    added; after it pruned weights are zeroed and due events run. Steps are counted where the optimizer really makes
    one, so gradient accumulation, mixed precision (a step that GradScaler skips is not counted) and closures work
    unchanged. Under DistributedDataParallel every rank makes its own session; that all come to the same masks is
    checked at every event. The model is modified in place; everything is checked before it is.

    What a loop does between backward and step, it does with dense gradients: a clipped norm includes pruned weights.

    Args:
        model: the model being trained, wrapped (DistributedDataParallel, torch.compile) or not.
        recipe: a recipe or a method's name.
        task: what the recipe reads; may be left out where it reads nothing.
        budget: what may stay; left out for patterns (2:4), which bring their own.
        steps: optimizer steps of the whole run; schedules are laid over them.
        seed: the only source of randomness.
        sparsity: instead of budget: the fraction of units to remove, in [0, 1).

    Attributes:
        masks: group name -> bool of the group's shape, True = kept, as of now.
        step: optimizer steps made.
        clock: the step as the learning rate sees it: rewinding turns it back.
        events: the whole timeline; the first `fired` of them have run.
        history: one record per event that has run.

    Cost: one multiplication of gradients and one of weights per step, and a copy of the masks in the weights' type.
    Errors: `SpecError`, `BudgetError`, `WeightsError`, `StructureError`, before anything is changed.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe | str,
        task: Task | None = None,
        budget: Budget | None = None,
        *,
        steps: int = 0,
        seed: int = 0,
        sparsity: float | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.recipe = resolve_recipe(recipe)
        self.task = resolve_task(task)
        self.budget = resolve_budget(self.recipe, sparsity, budget)
        self.steps, self.seed = steps, seed
        self.parameters = dict(self.model.named_parameters())
        refuse_sharded(self.parameters)
        self.groups = find_groups(self.model, self.recipe, self.task)
        check_slots(self.recipe, self.task, self.groups, steps)
        check_weights(self.model, self.groups)
        self.events: tuple[Event, ...] = self.recipe.schedule(self.budget.keep, steps)
        check_events(self.events, steps, self.recipe.name)
        self.generator = seeded(seed)
        self.masks: Masks = all_kept(self.groups, self.parameters)
        self.cost = price_of(self.model, self.task, self.budget, self.groups)
        self.step = self.clock = self.fired = 0
        self.holding = False
        self.history: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self.collapsed: tuple[str, ...] = ()
        self._applied: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] | None = None
        self._rewinder = Rewinder(self.model)
        self._hooks: list[Hooks] = []
        self._schedulers: tuple[Any, ...] = ()
        self._began, self._spent = time.perf_counter(), 0.0

    # Life cycle

    def attach(self, optimizer: Any, scheduler: Any = None) -> "Session":
        """Hook into an optimizer and run the events of step 0, once model and optimizer are what training starts with.

        Args:
            optimizer: a torch optimizer, or an Accelerate or Lightning wrapper, which is looked through; or a list of
                them, in the order in which the loop steps them: a step is counted when the last one has stepped.
            scheduler: the learning-rate scheduler, or a list; needed only by recipes that rewind it.

        Returns: the session. Cost: that of the events of step 0.
        Errors: `SpecError` for something whose steps cannot be followed, an optimizer over another copy of the model,
        a scheduler that would have to be rewound and is not given; `PrunusError` on all ranks where they differ.
        """
        if self._hooks:
            raise SpecError("this session is attached already; detach() it first")
        given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        optimizers = list({id(o): o for o in map(hookable, given)}.values())
        if not optimizers:
            raise SpecError("attach() was given an empty list of optimizers")
        self.parameters = dict(self.model.named_parameters())
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        if not any(id(self.parameters[m.param]) in held for g in self.groups for m in g.members if not m.buffer):
            raise SpecError(
                "this optimizer holds none of the parameters to be pruned: was it made for another copy of the model?"
            )
        schedulers = (
            tuple(scheduler) if isinstance(scheduler, list | tuple) else () if scheduler is None else (scheduler,)
        )
        check_schedulers(self.events[self.fired :], optimizers, schedulers)
        if distributed():
            facts = {k: json.dumps(v) for k, v in self._identity().items()} | {"step": str(self.step)}
            check_agreement(facts | {"weights": checksum(self.parameters)}, next(iter(self.parameters.values())).device)
        self._schedulers = schedulers
        self._hooks = [Hooks(o, self.parameters, self._opening, self._ready, self._stepped) for o in optimizers]
        with ExitStack() as undo:
            undo.callback(self.detach)
            self._to_devices()
            self._refresh()
            if self.holding:
                apply_(self.parameters, self._applied)
            self.start()
            undo.pop_all()
        return self

    def start(self) -> None:
        """Run the events of step 0, once; `attach` does this by itself, so it is for pruning without training."""
        if self.step == 0 and self.fired == 0:
            self._rewinder.keep_weights(0, self.events)
            self._run_due()

    def detach(self) -> None:
        """Take the hooks off the optimizer; weights stay as they are."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = []

    def mask_(self, model: nn.Module) -> None:
        """Zero in another copy of the model, such as a moving average, what is pruned in this one now.

        Errors: `SpecError` where the copy lacks a parameter or has another shape of it; nothing was changed.
        """
        there = dict(unwrap(model).named_parameters())
        for name, mask in self._applied.items():
            if name not in there or there[name].shape != mask.shape:
                raise SpecError(
                    f"this is no copy of the session's model: it has no {name!r} of shape {tuple(mask.shape)}"
                )
        apply_(there, {n: m.to(there[n].device) for n, m in self._applied.items()})

    @property
    def horizon(self) -> int:
        """How far the learning-rate clock ever runs: the length of a schedule that rewinding repeats."""
        longest, clock, last = 0, 0, 0
        for event in self.events:
            clock, last = clock + event.step - last, event.step
            longest = max(longest, clock)
            back = target(event)
            clock = back if back is not None else clock
        return max(longest, clock + self.steps - last)

    # What the hooks call

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [h.optimizer for h in self._hooks]

    @property
    def _due(self) -> list[Event]:
        """The events that the step at hand will bring."""
        return [e for e in self.events[self.fired :] if e.step == self.step + 1]

    def _opening(self, hooks: Hooks) -> None:
        self._rewinder.keep_rates(self.step, self.events[self.fired :], self._optimizers, self._schedulers)

    @torch.no_grad()
    def _ready(self, hooks: Hooks) -> None:
        if self.recipe.penalty is not None:
            sources = Sources(self.model, self.task, self.groups, self.parameters, self.generator)
            add_penalty(self.recipe.penalty, sources, hooks)
        due = self._due
        skip = any(e.skip for e in due)
        if any(e.regrow for e in due):
            # RigL grows by the dense gradient, which masking is about to destroy.
            names = {m.param for g in self.groups for m in g.members}
            found = {n: p.grad for n, p in hooks.names.items() if n in names and p.grad is not None}
            self._gradients = (self._gradients or {}) | {n: g if skip else g.clone() for n, g in found.items()}
        if skip:
            hooks.withhold()
        else:
            hooks.mask_gradients()

    def _stepped(self, hooks: Hooks) -> None:
        hooks.mask_weights()
        if hooks is not self._hooks[-1]:
            return
        self.step += 1
        self.clock += 1
        self._run_due()
        self._gradients = None
        self._rewinder.keep_weights(self.step, self.events[self.fired :])

    # Events

    def _run_due(self) -> None:
        while self.fired < len(self.events) and self.events[self.fired].step <= self.step:
            self._run(self.events[self.fired])
            self.fired += 1

    def _run(self, event: Event) -> None:
        before = self.masks
        masks = self._regrown(event) if event.regrow else self._ranked(event)
        check_ranks(masks)
        self.collapsed = collapsed(masks, None, self.groups)
        warn_collapse(collapsed(masks, before, self.groups), self.recipe.name)
        self.masks, self.holding = masks, event.hold
        if event.rewind is not None:
            self._rewinder.restore(event.rewind, self._optimizers)
        self._refresh()
        apply_(self.parameters, self._applied)
        if event.hold:
            mask_state_(self._optimizers, {self.parameters[n]: m for n, m in self._applied.items()})
            for optimizer in self._optimizers:
                if isinstance(optimizer, torch.optim.LBFGS):
                    optimizer.state.clear()  # its curvature is that of other weights, and not laid out by parameter
        back = target(event)
        if back is not None:
            self.clock = back
            self._rewinder.pending = back if back in self._rewinder.rates else None  # else no step was made since
        ranked = [m for n, m in masks.items() if n not in self.skipped]
        kept, total = sum(count(m) for m in ranked), sum(m.numel() for m in ranked)
        self.history.append(
            {"step": self.step, "asked": event.density, "kept": kept, "units": total, "density": kept / total}
            | {k: v for k, v in event._asdict().items() if k in ("regrow", "rewind", "replay") and v}
            | ({} if self.cost is None or event.regrow else self.cost.record())
        )

    def _ranked(self, event: Event) -> Masks:
        first = self.fired == 0 and self.recipe.start is not None
        criterion = self.recipe.start if first and self.recipe.start is not None else self.recipe.criterion
        sources = make_sources(self.model, self.task, self.groups, self.generator, criterion)
        scores, self.skipped = rate(criterion, sources, self.recipe.granularity.reduce)
        check_scores(criterion, scores)
        if (fits := getattr(self.recipe.allocate, "fits", None)) is not None:
            for group in self.groups:
                if group.name in scores and not fits(group.shape, group.weight):
                    del scores[group.name]
                    self.skipped[group.name] = (
                        f"rows of {group.shape[-1]} do not divide into blocks of {self.recipe.allocate}"
                    )
        if not event.revive:
            scores = without(scores, self.masks)
        ranked = tuple(g for g in self.groups if g.name in scores)
        masks = select(scores, self.recipe.allocate, self.budget.at(event.density), ranked, self.cost)
        return {g.name: masks.get(g.name, self.masks[g.name]) for g in self.groups}

    def _regrown(self, event: Event) -> Masks:
        grow = self.recipe.grow
        assert grow is not None
        reduce = self.recipe.granularity.reduce
        worth, _ = rate(
            self.recipe.criterion,
            make_sources(self.model, self.task, self.groups, self.generator, self.recipe.criterion),
            reduce,
        )
        sources = make_sources(self.model, self.task, self.groups, self.generator, grow, self._gradients)
        promise, _ = rate(grow, sources, reduce)
        check_scores(grow, promise)
        return regrow(self.masks, worth, promise, event.regrow)

    def _refresh(self) -> None:
        """Lay the masks out on the parameters, apply them, and let the hooks keep them."""
        roles: tuple[Role, ...] | None = None if self.holding else ("out",)
        self._applied = parameter_masks(self.groups, self.masks, self.parameters, roles)
        for hooks in self._hooks:
            hooks.hold(self._applied if self.holding else {})

    def _to_devices(self) -> None:
        """Follow parameters that were moved since the session was made."""
        for group in self.groups:
            self.masks[group.name] = self.masks[group.name].to(self.parameters[group.members[0].param].device)

    def _identity(self) -> dict[str, Any]:
        """What two sessions of one run have in common."""
        return {
            "recipe": self.recipe.to_dict(),
            "budget": {k: v for k, v in vars(self.budget).items() if v is not None},
            "steps": self.steps,
            "seed": self.seed,
            "groups": {g.name: list(g.shape) for g in self.groups},
        }

    # Saving and results

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-identically: tensors and plain JSON values only.

        Model, optimizer, scheduler and data order are the caller's to save, as without a session. Take it between
        steps.
        Cost: one bit per unit, and the weights that the recipe will rewind to (not copied).
        """
        rewinder = self._rewinder
        return {
            "format": FORMAT,
            **self._identity(),
            "step": self.step,
            "clock": self.clock,
            "fired": self.fired,
            "holding": self.holding,
            "pending": rewinder.pending,
            "masks": {n: pack(m) for n, m in self.masks.items()},
            "generator": self.generator.get_state(),
            "weights": {str(k): dict(v) for k, v in rewinder.weights.items()},
            "rates": {str(k): v for k, v in rewinder.rates.items()},
            "history": [dict(h) for h in self.history],
            "skipped": dict(self.skipped),
            "collapsed": list(self.collapsed),
            "seconds": self._spent + time.perf_counter() - self._began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; load the model and the optimizer as well, and attach afterwards.

        Errors: `SpecError` for a state of another recipe, budget, run or model, or a damaged one, before anything is
        changed.
        """
        check_state(state, self._identity(), self.masks, self._rewinder.state(), self.events)
        self.parameters = dict(self.model.named_parameters())
        places = {g.name: self.parameters[g.members[0].param].device for g in self.groups}
        self.masks = {g.name: unpack(state["masks"][g.name].to(places[g.name]), g.shape) for g in self.groups}
        self.step, self.clock, self.fired = int(state["step"]), int(state["clock"]), int(state["fired"])
        self.holding = bool(state["holding"])
        self.generator.set_state(state["generator"].cpu())
        self._rewinder.load(state)
        self.history = [dict(h) for h in state["history"]]
        self.skipped, self.collapsed = dict(state["skipped"]), tuple(state["collapsed"])
        self._began, self._spent = time.perf_counter(), float(state["seconds"])
        self._refresh()

    def result(self) -> Result:
        """The outcome so far, ready to compact, measure and save.

        Errors: `SpecError` where events are still to come.
        """
        if self.fired < len(self.events):
            raise SpecError(
                f"the run is not over: {self.step} of {self.steps} steps done, {len(self.events) - self.fired} events "
                f"to come. Train on, or look at session.masks for now"
            )
        call = self.task.example_inputs()
        ranked = {n: m for n, m in self.masks.items() if n not in self.skipped}
        return Result(
            model=self.model,
            masks=parameter_masks([g for g in self.groups if g.name in ranked], ranked, self.parameters),
            groups=self.groups,
            unit_masks=ranked,
            recipe=self.recipe,
            budget=self.budget,
            history=self.history,
            skipped=self.skipped,
            collapsed=self.collapsed,
            cost={"seconds": self._spent + time.perf_counter() - self._began, "steps": float(self.step)},
            seed=self.seed,
            example=None if call is None else (call[1] or call[0]),
        )
