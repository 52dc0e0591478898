"""A recipe in someone else's training loop."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.groups import Role
from prunus.core.part import Masks, Penalty, Prox
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.agreement import check_agreement, checksum, distributed
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.carry import run_due
from prunus.engine.cost import price_of
from prunus.engine.crew import Crew
from prunus.engine.decide import asked_by, watched
from prunus.engine.gating import Gating, gating_of
from prunus.engine.hooks import Hooks, clip_, hookable
from prunus.engine.penalize import add_penalty, scale_, watch
from prunus.engine.prepare import (
    averaged,
    check_slots,
    check_weights,
    find_groups,
    prepared,
    resolve_budget,
    resolve_recipe,
    resolve_task,
    solved,
    unwrap,
)
from prunus.engine.recover import Recovering, loss_now, teacher_of
from prunus.engine.restep import check_steps, moved
from prunus.engine.result import Result
from prunus.engine.resume import check_events, check_state, restore_, stored
from prunus.engine.rewind import Rewinder, check_schedulers, horizon
from prunus.engine.score import seeded
from prunus.engine.select import all_kept
from prunus.engine.shards import refuse_sharded, refuse_tracing, resharded, whole


class Session:
    """Carries out a recipe's timeline on a model while someone trains it.

    >>> session = prunus.Session(model, "rigl", task, Budget(0.1), steps=1000)   # doctest: +SKIP
    >>> session.attach(optimizer)                                              # the only line a training loop needs

    Attaching uses the optimizer's own step hooks: before a step gradients of pruned weights are zeroed and penalties
    added; after it pruned weights are zeroed and due events run. Steps are counted where the optimizer really makes
    one, so gradient accumulation, mixed precision (a step that GradScaler skips is not counted) and closures work
    unchanged. Under DistributedDataParallel every rank makes its own session; that all come to the same masks is
    checked at every event. Of weights sharded by `fully_shard` (FSDP2) every rank gathers what an event scores, and
    masks the part that it holds; recipes that would run the model at an event are refused. The model is modified in
    place; everything is checked before it is.

    What a loop does between backward and step, it does with dense gradients: a clipped norm includes those of pruned
    weights, unless `clip_grad_norm_` of the session takes it.
    While a session is attached, the model computes with what the recipe's gates make of its weights.

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
        marking: whether those are only marked so far.
        laid: the masks of the last event that did more than mark, which lie on the weights; empty before the first.
        explored: the same, True = kept at any time so far; of recipes that regrow.
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
        self.recipe = resolve_recipe(recipe)
        self.task = resolve_task(task)
        self.budget = resolve_budget(self.recipe, sparsity, budget)
        self.recipe = solved(self.recipe, self.budget, self.task)
        refuse_tracing(self.recipe, self.budget, resharded(unwrap(model)))
        self.model = prepared(unwrap(model), self.recipe, self.task)
        self.steps, self.seed = steps, seed
        self.parameters = dict(self.model.named_parameters())
        self.groups = find_groups(self.model, self.recipe, self.task)
        check_slots(self.recipe, self.task, self.groups, steps)
        check_weights(self.model, self.groups)
        self.plan: tuple[Event, ...] = self.recipe.schedule(self.budget.keep, steps)
        self.planned, self.resteps = steps, list[list[int]]()
        self.events = self.plan
        check_events(self.events, steps, self.recipe.name)
        refuse_sharded(self.recipe, self.events, self.parameters)
        self.generator = seeded(seed)
        self.masks: Masks = all_kept(self.groups, self.parameters)
        self.cost = price_of(self.model, self.task, self.budget, self.groups)
        self.step = self.clock = self.fired = 0
        self.holding = self.marking = self.settled = self.taught = self.is_block = False
        self.history: list[dict[str, Any]] = []
        self.skipped, self.known = dict[str, str](), dict[str, Any]()
        self.collapsed: tuple[str, ...] = ()
        self.initial: dict[str, Tensor] | None = None
        self.running: dict[str, dict[str, Tensor]] = {key: {} for key in watched(self.recipe)}
        self.teacher = teacher_of(self.model, self.recipe)
        self.recovering: Recovering | None = None
        self.gating: Gating | None = None
        self.probes: list[Masks] = []
        self.explored, self.laid = dict[str, Tensor](), dict[str, Tensor]()
        self.applied: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] | None = None
        self.rewinder = Rewinder(self.model)
        self.scaler: Any = None
        self.crew: Crew | None = None
        self._hooks, self._schedulers = list[Hooks](), tuple[Any, ...]()
        self._began, self._spent = time.perf_counter(), 0.0

    # Life cycle

    def attach(self, optimizer: Any, scheduler: Any = None, scaler: Any = None) -> "Session":
        """Hook into an optimizer and run the events of step 0, once model and optimizer are what training starts with.

        Args:
            optimizer: a torch optimizer, or an Accelerate or Lightning wrapper, which is looked through; or a list of
                them, in the order in which the loop steps them: a step is counted when the last one has stepped.
            scheduler: the learning-rate scheduler, or a list; needed only by recipes that rewind it.
            scaler: the GradScaler, where losses are scaled; needed only by recipes with gates. A `torch.amp.GradScaler`
                is found at its first step anyway; given, gates also forget at once what a skipped first step left.

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
        self.parameters = resharded(self.model)
        refuse_sharded(self.recipe, self.events[self.fired :], self.parameters)
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
            facts = {k: json.dumps(v) for k, v in self.identity().items()} | {"step": str(self.step)}
            facts["steps"] = str(self.steps)
            check_agreement(facts | {"weights": checksum(self.parameters)}, next(iter(self.parameters.values())).device)
        self._schedulers, self.scaler = schedulers, scaler
        self._hooks = [Hooks(o, self.parameters, self._opening, self._ready, self._stepped) for o in optimizers]
        with ExitStack() as undo:
            undo.callback(self.detach)
            self._to_devices()
            self.lay_out()
            if self.holding:
                apply_(self.parameters, self.applied)
            self.start()
            if self.gating is not None:
                self.gating.install()
            undo.pop_all()
        return self

    def start(self) -> None:
        """Run the events of step 0, once; `attach` does this by itself, so it is for pruning without training."""
        if self.step == 0 and self.fired == 0:
            if any(getattr(e, "initial", False) for e in asked_by(self.recipe).values()):
                self.initial = {n: whole(p.detach()).clone() for n, p in self.parameters.items()}
            self.rewinder.keep_weights(0, self.events, 0)
            if self.gating is None and (gating := gating_of(self)) is not None:
                gating.enter()
                self.gating = gating
            run_due(self)

    def detach(self) -> None:
        """Take the hooks off the optimizer; weights stay as they are."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = []
        if self.gating is not None:
            self.gating.uninstall()

    def mask_(self, model: nn.Module) -> None:
        """Zero in another copy of the model, such as a moving average, what is pruned in this one now.

        Wrappers that keep their copy as `module` (torch's AveragedModel, timm's ModelEma) are looked through.

        Errors: `SpecError` where the copy lacks a parameter or has another shape of it; nothing was changed.
        """
        there = averaged(model, self.applied)
        for name, mask in self.applied.items():
            if name not in there or there[name].shape != mask.shape:
                raise SpecError(
                    f"this is no copy of the session's model: it has no {name!r} of shape {tuple(mask.shape)}"
                )
        apply_(there, {n: m.to(there[n].device) for n, m in self.applied.items()})

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` without the gradients of pruned weights, which the step will not use.

        They are scaled with the rest, and stay for what regrows by them. Call it where the other is called: after
        backward (and `scaler.unscale_`), before the step.
        Returns: the norm of what is kept. Cost: a copy of the gradients of masked weights.
        """
        return clip_(self._hooks, max_norm, norm_type)

    loss = loss_now

    def restep(self, steps: int) -> "Session":
        """Go on for `steps` optimizer steps in all, although others were planned: what has happened stays, and events
        to come keep their order, their densities and their share of what is left (see `prunus.engine.restep.moved`).

        A learning-rate scheduler is the caller's to lay anew. The state of a session remembers this: a resumed one is
        made with the steps that were planned at first.
        Returns: the session. Errors: `SpecError` for fewer steps than were made, or too few for events to come.
        """
        check_steps(steps, self.step, sum(e.step > self.step for e in self.events))
        if distributed():
            check_agreement({"steps": str(steps)}, next(iter(self.parameters.values())).device)
        self.events = moved(self.events, self.step, self.steps, steps)
        self.steps, self.resteps = steps, [*self.resteps, [self.step, steps]]
        if self.recovering is not None:
            self.recovering.last = max(steps, self.step)
        return self

    @property
    def horizon(self) -> int:
        """How far the learning-rate clock ever runs: the length of a schedule that rewinding repeats."""
        done = {h["step"] for h in self.history if "kept" in h}
        waiting = [e for e in self.events if e.settle is not None]
        # Of the events that wait for their masks to settle one is carried out: the last, until it is known better.
        chosen = next((e for e in waiting if self.settled and e.step in done), waiting[-1] if waiting else None)
        return horizon([e for e in self.events if e.settle is None or e is chosen], self.steps)

    # What the hooks call

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [h.optimizer for h in self._hooks]

    @property
    def _due(self) -> list[Event]:
        """The events that the step at hand will bring."""
        return list(takewhile(lambda e: e.step <= self.step + 1, islice(self.events, self.fired, None)))

    def _opening(self, hooks: Hooks) -> None:
        self.rewinder.keep_rates(self.step, self.events, self.fired, self.optimizers, self._schedulers)

    @torch.no_grad()
    def _ready(self, hooks: Hooks) -> None:
        watch(self, hooks)
        penalty, prox = self.recipe.penalty, self.recipe.prox
        if penalty is not None and self._acts(penalty):
            add_penalty(self, penalty, hooks)
        if prox is not None and prox.on == "gradients" and self._acts(prox):
            scale_(self, prox, hooks)
        due = self._due
        skip = any(e.skip for e in due)
        if any(e.regrow or e.grow for e in due):
            # RigL grows by the dense gradient, which masking is about to destroy.
            names = {m.param for g in self.groups for m in g.members}
            found = {n: whole(p.grad) for n, p in hooks.names.items() if n in names and p.grad is not None}
            self.gradients = (self.gradients or {}) | {n: g if skip else g.clone() for n, g in found.items()}
        if skip or (self.gating is not None and self.gating.part.freezes):
            hooks.withhold()
        else:
            hooks.mask_gradients()

    def _acts(self, part: Penalty | Prox) -> bool:
        return part.lasts or self.fired < len(self.events)

    def _stepped(self, hooks: Hooks) -> None:
        hooks.mask_weights()
        prox = self.recipe.prox
        if prox is not None and prox.on == "weights" and self._acts(prox):
            scale_(self, prox, hooks)
        if hooks is not self._hooks[-1]:
            return
        if self.gating is not None:
            self.gating.step()
        self.step += 1
        self.clock += 1
        run_due(self)
        if self.gating is not None:
            self.gating.turn()
        self.gradients = None
        self.rewinder.keep_weights(self.step, self.events, self.fired)

    def momenta(self) -> dict[str, Tensor]:
        """What the optimizers have averaged gradients to, by parameter name; of those that do."""
        found: dict[str, Tensor] = {}
        for hooks in self._hooks:
            for name, p in hooks.names.items():
                held = hooks.optimizer.state.get(p, {})
                value = next((held[k] for k in ("momentum_buffer", "exp_avg") if held.get(k) is not None), None)
                if value is not None:
                    found[name] = whole(value)
        return found

    def lay_out(self) -> None:
        """Lay the masks out on the parameters and let the hooks keep them; those that only mark lie nowhere."""
        roles: tuple[Role, ...] | None = None if self.holding else ("out",)
        self.applied = parameter_masks(self.groups, self.laid, self.parameters, roles)
        for hooks in self._hooks:
            hooks.hold(self.applied if self.holding else {})

    def _to_devices(self) -> None:
        """Follow parameters that were moved since the session was made."""
        for group in self.groups:
            for masks in (self.masks, self.laid):
                if group.name in masks:
                    masks[group.name] = masks[group.name].to(self.parameters[group.members[0].param].device)

    def identity(self) -> dict[str, Any]:
        """What two sessions of one run have in common."""
        return {
            "recipe": self.recipe.to_dict(),
            "budget": {k: v for k, v in vars(self.budget).items() if v is not None},
            "steps": self.planned,
            "seed": self.seed,
            "groups": {g.name: list(g.shape) for g in self.groups},
        }

    # Saving and results

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-identically: tensors and plain JSON values only.

        Model, optimizer, scheduler and data order are the caller's to save, as without a session. Take it between
        steps; where weights are sharded on all ranks, which all get the same, whole, for any number of ranks to go on.
        Cost: one bit per unit, and the weights that the recipe will rewind to (not copied).
        """
        return stored(self) | {"seconds": self._spent + time.perf_counter() - self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; load the model and the optimizer as well, and attach afterwards.

        Errors: `SpecError` for a state of another recipe, budget, run or model, or a damaged one, before anything is
        changed.
        """
        check_state(state, self.identity(), self.masks, self.rewinder.state(), self.plan, self.recipe.gate)
        restore_(self, state)
        self._began, self._spent = time.perf_counter(), float(state["seconds"])
        self.lay_out()

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
