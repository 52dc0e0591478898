"""Run what a contrast lacks: in this process, or by an engine that spreads it over processes and machines."""

from __future__ import annotations

import json
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load, save

from prunus.core.errors import DataError, SpecError, require
from prunus.lab.contrast.contrast import Contrast
from prunus.lab.contrast.perform import perform
from prunus.lab.contrast.problem import Tier
from prunus.lab.contrast.sheet import Run, Sheet
from prunus.lab.contrast.trial import Environment, Record, Spec, here
from prunus.lab.store import Row, Store

Engine = Literal["here", "ray"]
WAIT = 2.0
KILLED = 3
"""How often a run's process may be killed before the run has failed."""
MASKS_UP_TO = 2_000_000
"""Masks of networks with more weights are not kept, but of runs that only find some: a million weights take 125 kB."""

Told = Callable[[Spec, Record | None, str], None]
OnStep = Callable[[int, int, float], None]


@dataclass
class Counts:
    """What a sweep did: runs made and failed here, and those of these contrasts that were over before."""

    done: int = 0
    failed: int = 0
    found: int = 0
    errors: list[str] = field(default_factory=list)


def sheet(contrast: Contrast, tier: Tier, store: Store, environment: str | None = None) -> Sheet:
    """The contrast with the runs that the store has of an environment, by default this one."""
    rows = store.rows(environment or here().key)
    return Sheet(contrast, tier, {r.key: run_of(r) for r in rows if r.status in ("done", "failed")})


def environment(store: Store, asked: str | None = None) -> str:
    """The key of the environment whose runs are shown: the one asked for, else this one, else, where this one has made
    none, the one that made the last run.

    Raises:
        SpecError: the store has no runs of the one that is asked for.
    """
    done = [r for r in store.rows() if r.status == "done"]
    known = {r.environment for r in done}
    if asked is not None and asked not in known:
        raise SpecError(f"no runs of environment {asked}: there are some of {', '.join(sorted(known)) or 'none'}")
    if asked is not None or here().key in known or not done:
        return asked or here().key
    return max(done, key=lambda r: r.finished or 0.0).environment


def run_of(row: Row) -> Run:
    """A row that is over, as sheets see it."""
    return Run(None if row.record is None else Record.model_validate(dict(row.record)))


def sweep(
    contrasts: Sequence[Contrast],
    tier: Tier,
    store: Store,
    *,
    engine: Engine = "here",
    jobs: int = 1,
    address: str | None = None,
    minutes: float = float("inf"),
    told: Told | None = None,
    on_step: Callable[[Spec], OnStep | None] | None = None,
    device: str = "cpu",
) -> Counts:
    """Make every run that the contrasts lack at a tier; what is there, or fails, is left and the sweep goes on.

    Any number of processes may sweep one store at the same time: each run is made once. Runs that another process is
    making are waited for where something depends on them.

    Args:
        engine: `here`, one after the other in this process; `ray`, `jobs` at a time on this machine or on the cluster
            at `address` (which must reach the store, and have the data).
        minutes: begin no run after these.
        told: called with every run that is over: its record, or None and the traceback.
        on_step: makes the callback for the steps of a run.
        device: where runs are made; with ray, each takes one GPU of its own where this is not the CPU.

    Raises:
        StoreError: the store cannot be used.
        MissingExtraError: ray is not installed.
    """
    began, counts, place = time.monotonic(), Counts(), here(device)
    pool = _Ray(store, jobs, address, device) if engine == "ray" else None
    sheets = [sheet(c, tier, store, place.key) for c in contrasts]
    counts.found = len({k for s in sheets for cell in s.every() for _, k in s.wanted(cell) if k in s.runs})
    try:
        while time.monotonic() - began < 60 * minutes:
            due = unique(spec for c in contrasts for spec in sheet(c, tier, store, place.key).due())
            if not due:
                return counts
            store.add(((s.key, s.model_dump(mode="json")) for s in due), place.key, place.model_dump())
            idle = True
            for spec, record, trace in pool.run(due) if pool else _one_by_one(due, store, on_step, device):
                idle = False
                counts.done += record is not None
                counts.failed += record is None
                counts.errors += [trace] if record is None else []
                if told is not None:
                    told(spec, record, trace)
                if time.monotonic() - began >= 60 * minutes:
                    return counts
            if idle:
                time.sleep(WAIT)  # all of it is being made by others
        return counts
    finally:
        if pool is not None:
            pool.close()


def unique(specs: Iterable[Spec]) -> list[Spec]:
    """Each run once, dense networks first."""
    found = {s.key: s for s in specs}
    return sorted(found.values(), key=lambda s: (s.recipe is not None, s.parent is not None))


Made = tuple[Spec, Record | None, str]


def _one_by_one(
    due: list[Spec], store: Store, on_step: Callable[[Spec], OnStep | None] | None, device: str
) -> Iterator[Made]:
    """The runs that can be had, made one after the other."""
    for spec in due:
        made = attempt(spec, store, on_step(spec) if on_step else None, device)
        if made is not None:
            yield made


def attempt(spec: Spec, store: Store, on_step: OnStep | None = None, device: str = "cpu") -> Made | None:
    """Claim a run and make it; None where it is another's, or over already, or where the claim was lost meanwhile. A
    failure is written down with its traceback.
    """
    place = here(device).key
    if not store.claim(spec.key, place):
        return None
    with store.beating(spec.key, place):
        try:
            parent, masks = _weights(store, spec.parent, place), _masks(store, spec.masks, place)
            outcome = perform(spec, parent, on_step, device, masks)
        except Exception as error:  # noqa: BLE001 - whatever a recipe runs into belongs to that run alone
            trace = traceback.format_exc()
            store.fail(spec.key, place, trace)
            return spec, None, f"{spec.method} on {spec.problem.name}: {error!r}"
        blobs = {}
        if spec.recipe is None:
            blobs["weights"] = save({k: v.contiguous() for k, v in outcome.weights.items()})
        elif not spec.epochs or sum(m.numel() for m in outcome.masks.values()) <= MASKS_UP_TO:
            blobs["masks"] = packed(outcome.masks)
        mine = store.finish(spec.key, place, outcome.record.model_dump(mode="json"), **blobs)
    return (spec, outcome.record, "") if mine else None


def _weights(store: Store, parent: str | None, place: str) -> dict[str, torch.Tensor] | None:
    if parent is None:
        return None
    found = store.blob(parent, place, "weights")
    if found is None:
        raise DataError(
            f"the store has no weights of run {parent[:12]}, which this one starts from: delete it, run anew"
        )
    return load(found)


def _masks(store: Store, source: str | None, place: str) -> dict[str, torch.Tensor] | None:
    if source is None:
        return None
    found = store.blob(source, place, "masks")
    if found is None:
        raise DataError(f"the store has no masks of run {source[:12]}, which this one takes over: delete it, run anew")
    return unpacked(found)


def packed(masks: Any) -> bytes:
    """Masks as safetensors, eight entries to a byte, with their shapes."""
    bits = {n: torch.from_numpy(np.packbits(m.cpu().numpy().reshape(-1))) for n, m in masks.items()}
    return save(bits, metadata={n: json.dumps(list(m.shape)) for n, m in masks.items()})


def unpacked(data: bytes) -> dict[str, torch.Tensor]:
    """What `packed` made of them."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    shapes = {n: tuple(json.loads(s)) for n, s in header.items()}
    bits = load(data)
    return {
        n: torch.from_numpy(np.unpackbits(bits[n].numpy(), count=prod(shape)).astype(bool)).reshape(shape)
        for n, shape in shapes.items()
    }


class _Ray:
    """Runs as tasks of Ray, `jobs` at a time: scheduling and placement are Ray's business. A run whose worker is killed
    is made again, twice; then it has failed.
    """

    def __init__(self, store: Store, jobs: int, address: str | None, device: str) -> None:
        if jobs < 1:
            raise SpecError(f"{jobs} jobs: at least 1")
        if address is not None and store.url.startswith("sqlite"):
            raise SpecError(
                f"a cluster cannot share the file {store.url}: give the store as the URL of a PostgreSQL database"
            )
        self.ray = require("ray", extra="cluster", why="--engine ray")
        exceptions = self.ray.exceptions
        # By a signal, by Ray's own watch over memory, or with its machine.
        self.killed = (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError)
        self.mine = not self.ray.is_initialized()
        if self.mine:
            local = {} if address else {"num_cpus": jobs, "include_dashboard": False}
            self.ray.init(address=address, log_to_driver=False, **local)
        self.store, self.jobs, self.device, self.place = store, jobs, device, here(device)
        self.task = self.ray.remote(num_cpus=1, num_gpus=int(device != "cpu"), max_retries=0)(_remote)

    def run(self, due: list[Spec]) -> Iterator[Made]:
        """The runs that are due, as they end; those that others are making are left out."""
        waiting, killed = {self._begun(spec): spec for spec in due}, Counter[str]()
        try:
            while waiting:
                (over,), _ = self.ray.wait(list(waiting), num_returns=1)
                spec = waiting.pop(over)
                try:
                    answer = self.ray.get(over)
                except self.killed as error:
                    killed[spec.key] += 1
                    answer = self._lost(spec, error, again=killed[spec.key] < KILLED)
                    if answer is None:
                        waiting[self._begun(spec)] = spec
                if answer is not None:
                    record, trace = answer
                    yield spec, None if record is None else Record.model_validate(record), trace
        finally:
            for task in waiting:
                self.ray.cancel(task)

    def _begun(self, spec: Spec) -> Any:
        return self.task.remote(self.store.url, spec.model_dump(mode="json"), self.device, self.place.model_dump())

    def _lost(self, spec: Spec, error: Exception, *, again: bool) -> tuple[None, str] | None:
        """Free a run whose worker was killed; where it is not to be made again, write down that it failed."""
        trace = "" if again else f"{KILLED} processes that made it were killed, by the system or by hand: {error}"
        self.store.lost(spec.key, self.place.key, trace)
        return None if again else (None, f"{spec.method} on {spec.problem.name}: its process was killed {KILLED} times")

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def _remote(
    url: str, plain: dict[str, Any], device: str, place: dict[str, Any]
) -> tuple[dict[str, Any] | None, str] | None:
    mine, asked = here(device), Environment.model_validate(place)
    if mine.key != asked.key:
        raise SpecError(
            f"{socket.gethostname()} has prunus {mine.prunus}, torch {mine.torch} on {mine.processor}, "
            f"and the sweep is of prunus {asked.prunus}, torch {asked.torch} on {asked.processor}: runs of different "
            f"code or processors are not mixed, so begin the sweep where its workers are"
        )
    torch.set_num_threads(1)
    store = Store(url)
    try:
        made = attempt(Spec.model_validate(plain), store, device=device)
    finally:
        store.close()
    return None if made is None else (None if made[1] is None else made[1].model_dump(mode="json"), made[2])
