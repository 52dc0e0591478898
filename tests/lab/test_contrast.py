"""Contrasts: what is due and what follows, without training; and a whole one on a network that trains in moments."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunus
from prunus.core.errors import DataError, SpecError, UnknownNameError
from prunus.core.recipe import Recipe
from prunus.lab import contrast, exchange
from prunus.lab.contrast import Cell, Claim, Contrast, Problem, Record, Run, Sheet, Spec, Tier, fairness
from prunus.lab.contrast.perform import perform
from prunus.lab.contrast.sweep import attempt, environment, packed, sheet, sweep, unpacked
from prunus.lab.contrast.trial import Environment, here
from prunus.lab.store import Store
from tests.lab.forked import ended, forked

MICRO = Problem(
    name="micro",
    network="mlp",
    options={"hidden": [16, 8]},
    data="digits",
    images=96,
    epochs=2,
    tune=1,
    batch=32,
    rates=(0.1, 0.01),
    calib=1,
)
SMALL = Tier(name="small", problems=(MICRO,), seeds=(0, 1), most_points=1, says="nothing")


def record(test: float = 0.5, valid: float = 0.5, **more: object) -> Record:
    plain = {
        "sparsity": 0.5,
        "params_dense": 100,
        "params_kept": 50,
        "macs_dense": 100,
        "macs_kept": 50,
        "initial": "i",
    }
    return Record.model_validate({"test": test, "valid": valid, **plain, **more})


@pytest.mark.parametrize("name", contrast.names())
def test_contrasts_are_lists_of_edits_that_survive_json(name: str) -> None:
    found = contrast.with_baselines(contrast.get(name))
    assert found.claims and all(c.text for c in found.claims) and found.question.endswith("?")
    for arm in found.arms:
        if arm.recipe is not None:
            prunus.parts.load_all()
            assert Recipe.from_dict(json.loads(json.dumps(arm.recipe.to_dict()))) == arm.recipe
    assert [a.name for a in found.arms if a.recipe is None] == ["dense", "dense, trained longer"]
    assert any(a.recipe is not None and a.recipe.name.startswith("random") for a in found.arms)
    assert contrast.with_baselines(found).arms == found.arms


def test_mandatory_baselines_are_added_once_and_marked() -> None:
    own = contrast.get("structure")
    found = contrast.with_baselines(own)
    added = {a.name for a in found.arms if a.baseline}
    assert added >= {"random weights", "random channels", "magnitude across layers", "magnitude by layer"}
    assert "SNIP, weights, same layer shares" in added and "SNIP, weights" not in added
    # A contrast about magnitude has it already, under a name of its own.
    assert "magnitude across layers" not in {a.name for a in contrast.with_baselines(contrast.get("pace")).arms}


def test_little_is_called_little() -> None:
    said = fairness.warnings(contrast.get("pattern"), contrast.tier("smoke"))
    assert [s.split()[0] for s in said] == ["1", "1", "1"]
    assert not any("seed" in s for s in fairness.warnings(contrast.get("pace"), contrast.tier("desk")))


def test_keys_say_what_is_run_and_not_what_it_is_called() -> None:
    snip = prunus.methods.get("snip")
    spec = Spec(problem=MICRO, recipe=snip.to_dict(), keep=0.5, epochs=2, rate=0.1, seed=0)
    assert spec.key == spec.model_copy(update={"recipe": replace(snip, name="x", source="y").to_dict()}).key
    others = {"keep": 0.4, "epochs": 1, "rate": 0.2, "seed": 1, "currency": "params", "parent": "p", "recipe": None}
    keys = {spec.model_copy(update={k: v}).key for k, v in others.items()} | {spec.key}
    keys.add(spec.model_copy(update={"problem": MICRO.model_copy(update={"images": 64})}).key)
    assert len(keys) == len(others) + 2


def test_tiers_and_points() -> None:
    points = (0.5, 0.25, 0.125, 0.0625, 0.03)
    assert contrast.tier("smoke").points(points) == (0.5, 0.03)
    assert contrast.tier("desk").points(points) == points
    assert SMALL.points(points) == (0.125,)
    with pytest.raises(UnknownNameError, match="desk"):
        contrast.tier("dsk")
    with pytest.raises(SpecError, match="two arms of one name"):
        replace(contrast.get("pace"), arms=(contrast.get("pace").arms[0],) * 2)
    with pytest.raises(SpecError, match="which it lacks"):
        replace(contrast.get("pace"), claims=(Claim(id="x", text="x", left="nobody"),))


# What is due, and what follows: runs that are made up


PAIR = contrast.with_baselines(contrast.get("weights"))


def filled(outcome: Callable[[Spec], Record | None], seeds: tuple[int, ...] = (0, 1, 2)) -> Sheet:
    """A sheet on which everything was run, with made-up outcomes."""
    runs: dict[str, Run] = {}
    tier = SMALL.model_copy(update={"seeds": seeds})
    while due := Sheet(PAIR, tier, runs).due():
        runs |= {s.key: Run(outcome(s)) for s in due}
    return Sheet(PAIR, tier, runs)


def test_rates_are_tried_with_the_first_seed_and_chosen_by_held_out_accuracy() -> None:
    found = filled(lambda s: record(test=1 - s.rate, valid=s.rate, initial=str(s.parent is None)))
    for cell in found.cells():
        assert found.rate(cell) == 0.1 and set(found.records(cell)) == {0, 1, 2}
        assert len({key for _, key in found.wanted(cell)}) == 4
    # What is pruned after training starts from the dense network at its own chosen rate.
    dense = next(found.spec(Cell("micro", "dense", 1.0), 0.1, seed) for seed in (2,))
    spec = found.spec(Cell("micro", "SNIP, trained", 0.125), 0.01, 2)
    assert dense is not None and spec is not None and spec.parent == dense.key
    empty = Sheet(PAIR, SMALL, {})
    assert empty.spec(Cell("micro", "SNIP, trained", 0.125), 0.1, 0) is None
    assert empty.due()[0].recipe is None and empty.rate(Cell("micro", "dense", 1.0)) is None


def test_a_rate_may_be_chosen_once_per_arm_in_the_middle_of_its_points() -> None:
    points = (0.5, 0.25, 0.125)
    few = Contrast(name="few", title="", section="", question="?", arms=PAIR.arms, claims=(), points=points)
    tier, runs = SMALL.model_copy(update={"tuned": "arm", "most_points": 0}), dict[str, Run]()
    while due := Sheet(few, tier, runs).due():
        runs |= {s.key: Run(record(valid=1 - s.rate if s.keep == 0.25 else s.rate)) for s in due}
    found = Sheet(few, tier, runs)
    for arm in (a for a in few.arms if a.density is None):
        made = [s for c in found.cells(arm) for s, _ in found.wanted(c)]
        assert {found.rate(c) for c in found.cells(arm)} == {0.01}
        assert sorted((s.keep, s.rate, s.seed) for s in made) == sorted(
            [(k, 0.01, s) for k in points for s in tier.seeds] + [(0.25, 0.1, 0)]
        )
    assert len(runs) == found.planned < Sheet(few, SMALL.model_copy(update={"most_points": 0}), runs).planned


def test_a_rate_that_fails_is_not_chosen_and_nothing_waits_for_it() -> None:
    found = filled(lambda s: None if s.rate == 0.1 else record(initial=str(s.parent)))
    assert found.rate(Cell("micro", "SNIP, weights", 0.125)) == 0.01 and found.due() == []


def of(spec: Spec) -> str:
    return "" if spec.recipe is None else f"{spec.recipe['name']} {'trained' if spec.parent else 'initial'}"


def test_claims_are_judged_by_differences_within_seeds() -> None:
    noise = {0: 0.0, 1: 0.1, 2: -0.1}

    def outcome(s: Spec) -> Record:
        better = 0.02 + 0.001 * s.seed if of(s) == "snip trained" else 0.0
        return record(test=0.5 + noise[s.seed] + better, initial=f"{s.seed} {s.parent}")

    found = filled(outcome)
    claim = next(c for c in PAIR.claims if c.id == "snip")
    said = found.judged(claim)
    assert said.word == "supported" and said.seeds == 3 and said.told.startswith("+2.10")
    assert found.judged(replace(claim, margin=5.0)).word == "refuted"
    assert found.judged(replace(claim, left=claim.right, right=claim.left)).word == "refuted"
    assert found.judged(replace(claim, at=(0.5,))).word == "too few runs"


def test_nothing_is_concluded_from_runs_that_began_with_different_weights() -> None:
    found = filled(lambda s: record(test=0.9 if of(s) == "snip trained" else 0.5, initial=str(s.rate + s.seed) + of(s)))
    assert found.unequal()
    said = found.judged(next(c for c in PAIR.claims if c.id == "snip"))
    assert said.word == "inconclusive" and "different weights" in said.told


def test_depth_is_a_rank_correlation() -> None:
    layers = [{"name": str(i), "weights": 100, "kept": kept} for i, kept in enumerate((90, 50, 50, 10))]
    value = contrast.contrast.METRICS["depth"][0](record(layers=layers))
    assert value == pytest.approx(float(spearman([0, 1, 2, 3], [10, 50, 50, 90])))
    assert contrast.contrast.METRICS["depth"][0](record()) is None


def spearman(x: list[float], y: list[float]) -> float:
    stats = pytest.importorskip("scipy.stats")
    return float(stats.spearmanr(x, y).statistic)


# Runs


def spec_of(name: str, **more: object) -> Spec:
    plain = {"problem": MICRO, "recipe": prunus.methods.get(name).to_dict(), "keep": 0.25, "epochs": 1, "rate": 0.1}
    return Spec.model_validate({**plain, "seed": 0, **more})


def test_a_run_writes_down_what_it_did_and_is_repeatable() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other = perform(spec_of("snip")), perform(spec_of("snip"))
    assert torch.equal(torch.get_rng_state(), state)
    seconds = {"seconds": 0.0}
    assert one.record.model_copy(update=seconds) == other.record.model_copy(update=seconds)
    weights = sum(m.numel() for m in one.masks.values())
    kept = sum(int(m.sum()) for m in one.masks.values())
    assert kept == round(0.25 * weights) and one.record.sparsity == pytest.approx(0.75, abs=1 / weights)
    biases = 16 + 8 + 10
    assert one.record.params_kept == kept + biases and one.record.macs_kept == kept
    assert one.record.macs_dense == weights and one.record.params_dense == weights + biases
    assert one.record.effective is not None and one.record.effective >= one.record.sparsity - 1e-9
    assert one.record.effective == pytest.approx(1 - on_paths(one.masks) / weights)
    assert all(torch.equal(unpacked(packed(one.masks))[n], m) for n, m in one.masks.items())
    assert perform(spec_of("snip", seed=1)).record.initial != one.record.initial


def on_paths(masks: dict[str, torch.Tensor]) -> int:
    """Weights of a perceptron that lie on a path from an input to an output, by counting paths."""
    matrices = [m.double() for m in masks.values()]
    ends = torch.ones(matrices[0].shape[1], 1).double(), torch.ones(1, matrices[-1].shape[0]).double()
    total = 0
    for i, m in enumerate(matrices):
        before, after = ends
        for earlier in matrices[:i]:
            before = earlier @ before
        for later in reversed(matrices[i + 1 :]):
            after = after @ later
        total += int((m * before.T * after.T > 0).sum())
    return total


def test_trained_weights_come_from_the_parent() -> None:
    dense = perform(Spec(problem=MICRO, epochs=2, rate=0.1, seed=0))
    parent = Spec(problem=MICRO, epochs=2, rate=0.1, seed=0).key
    pruned = perform(spec_of("magnitude", parent=parent, epochs=0), dense.weights)
    assert pruned.record.initial == prunus.lab.contrast.perform.digest(dense.weights)
    tuned = perform(spec_of("magnitude", parent=parent), dense.weights)
    assert tuned.record.untrained == pruned.record.valid and tuned.record.steps == 3
    with pytest.raises(DataError, match="parent"):
        perform(spec_of("magnitude", parent=parent))


def contrasts() -> list[Contrast]:
    """One that trains from scratch, fine-tunes and goes by rounds."""
    return [contrast.get("pace")]


def swept(file: Path, tier: Tier = SMALL) -> dict[str, object]:
    store = Store(file)
    sweep([contrast.with_baselines(c) for c in contrasts()], tier, store)
    found = table(store)
    store.close()
    return found


def table(store: Store) -> dict[str, object]:
    plain = {r.key: {k: v for k, v in (r.record or {}).items() if k != "seconds"} for r in store.rows(status="done")}
    return dict(sorted(plain.items()))


QUICK = SMALL.model_copy(update={"problems": (MICRO.model_copy(update={"epochs": 1, "rates": (0.1,)}),)})


def test_killed_sweeps_and_rivals_give_the_table_of_one_that_ran_through(tmp_path: Path) -> None:
    whole = swept(tmp_path / "whole.db", QUICK)
    assert len(whole) > 15
    chance, file = random.Random(0), tmp_path / "killed.db"
    Store(file).close()
    for _ in range(10):
        child = forked(lambda: swept(file, QUICK))
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        ended(child)
    rivals = [forked(lambda: swept(file, QUICK)) for _ in range(2)]
    assert [ended(c) for c in rivals] == [0, 0]
    store = Store(file)
    assert table(store) == whole
    # Nothing was made twice: whatever was begun more often had been killed.
    assert sum(r.attempts - 1 for r in store.rows()) <= 10
    store.close()


def test_a_failure_is_written_down_and_the_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.lab.contrast import sweep as module

    real = module.perform

    def fails(spec: Spec, *rest: object) -> object:
        if spec.method == "grasp":
            raise RuntimeError("no grasp today")
        return real(spec, *rest)

    monkeypatch.setattr(module, "perform", fails)
    store = Store(tmp_path / "runs.db")
    found = contrast.with_baselines(contrast.get("structure"))
    counts = sweep([found], QUICK, store)
    assert counts.failed and counts.done and all("no grasp today" in e for e in counts.errors)
    assert all("no grasp today" in r.trace and "Traceback" in r.trace for r in store.rows(status="failed"))
    assert sheet(found, QUICK, store).due() == []
    store.close()


def test_runs_of_other_code_or_machines_are_not_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    other = Environment(prunus="0.0.1+abc", torch="1", processor="abacus")
    spec = Spec(problem=MICRO, epochs=2, rate=0.1, seed=0)
    store.add([(spec.key, spec.model_dump(mode="json"))], other.key, other.model_dump())
    store.claim(spec.key, other.key)
    store.finish(spec.key, other.key, record().model_dump(mode="json"))
    assert sheet(PAIR, SMALL, store).runs == {} and list(sheet(PAIR, SMALL, store, other.key).runs) == [spec.key]
    assert environment(store) == other.key
    store.add([(spec.key, spec.model_dump(mode="json"))], here().key, here().model_dump())
    assert attempt(spec, store) is not None and attempt(spec, store) is None
    assert environment(store) == here().key and environment(store, other.key) == other.key
    with pytest.raises(SpecError, match="no runs of environment"):
        environment(store, "nowhere")
    store.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_refused_before_anything(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    for device in ("cuda", "nonsense"):
        with pytest.raises(SpecError, match=f"device {device}"):
            sweep(contrasts(), SMALL, store, device=device)
    assert not store.rows()
    store.close()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_runs_go_out_to_a_table_and_come_back(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    store, file = Store(tmp_path / "one.db"), tmp_path / f"runs.{kind}"
    spec = spec_of("snip")
    store.add([(s.key, s.model_dump(mode="json")) for s in (spec, spec_of("random"))], here().key, here().model_dump())
    assert attempt(spec, store) is not None
    assert exchange.export(store.rows(), store.facts(), file) == 2
    other = Store(tmp_path / "two.db")
    assert exchange.put_back(other, exchange.read(file)) == 1 and exchange.put_back(other, exchange.read(file)) == 0
    assert table(other) == table(store) and other.facts() == store.facts()
    for s in (store, other):
        s.close()
    if kind == "csv":
        file.write_text(file.read_text(encoding="utf-8").replace('""seed"": 0', '""seed"": 7'), encoding="utf-8")
        with pytest.raises(DataError, match="not what its key says"):
            exchange.read(file)
    with pytest.raises(SpecError, match="exported to"):
        exchange.export([], {}, tmp_path / "runs.xlsx")


@pytest.mark.slow
def test_a_cluster_of_this_machine_makes_every_run_once(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    store = Store(tmp_path / "runs.db")
    found = contrast.with_baselines(contrast.get("structure"))
    counts = sweep([found], QUICK, store, engine="ray", jobs=2)
    assert counts.failed == 0 and counts.done == len(store.rows(status="done"))
    assert all(r.attempts == 1 for r in store.rows())
    here_alone = Store(tmp_path / "alone.db")
    sweep([found], QUICK, here_alone)
    assert table(store) == table(here_alone)
    with pytest.raises(SpecError, match="PostgreSQL"):
        sweep([found], QUICK, store, engine="ray", address="10.0.0.1:6379")


@pytest.mark.slow
def test_a_run_that_kills_its_worker_has_failed_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p or "." for p in sys.path))  # workers find the tests
    store = Store(tmp_path / "runs.db")
    dense = Contrast(name="dense", title="", section="", question="?", arms=(PAIR.arm("dense"),), claims=())
    deadly = MICRO.model_copy(
        update={"name": "deadly", "network": "tests.lab.killed:network", "options": {}, "rates": (0.1,)}
    )
    tier = SMALL.model_copy(update={"problems": (deadly, MICRO), "seeds": (0,)})
    counts = sweep([dense], tier, store, engine="ray", jobs=2)
    assert (counts.failed, counts.done) == (1, 2) and "was killed 3 times" in counts.errors[0]
    assert ["3 processes that made it were killed" in r.trace for r in store.rows(status="failed")] == [True]
    assert sheet(dense, tier, store).due() == []
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", contrast.names())
def test_every_contrast_runs(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    found = contrast.with_baselines(contrast.get(name))
    counts = sweep([found], QUICK, store)
    assert counts.failed == 0, counts.errors
    assert not sheet(found, QUICK, store).unequal()
    store.close()
