"""From a sheet and a store's rows to the record of a report; all runs are made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.lab import contrast
from prunus.lab.contrast import Run, Sheet, Spec, tier, with_baselines
from prunus.lab.contrast.problem import Tier
from prunus.lab.contrast.similarity import overlap
from prunus.lab.contrast.summary import summary
from prunus.lab.contrast.trial import Layer, Record
from prunus.lab.store import Row
from prunus.report.contrast_records import ContrastRecord

HERE, THERE = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
FACTS = {HERE: {"torch": "2", "processor": "this one", "python": ""}, THERE: {"processor": "that one"}}


def record(spec: Spec) -> Record:
    """Channels lose ten points more than weights; seeds differ by tenths."""
    name = "" if spec.recipe is None else spec.recipe["granularity"]["part"]
    lost = 0.0 if spec.recipe is None else (1 - spec.keep) / 5 + 0.1 * ("Channel" in name)
    test = 0.9 - lost + spec.seed / 1000
    return Record(
        test=test,
        test_top5=0.99,
        valid=test - (0.1 if spec.rate < 0.1 else 0.0),
        sparsity=1 - spec.keep,
        params_dense=1000,
        params_kept=round(1000 * spec.keep),
        macs_dense=2000,
        macs_kept=round(2000 * spec.keep),
        collapsed=("b",) if spec.keep < 0.1 else (),
        layers=() if spec.recipe is None else (Layer(name="a", weights=900, kept=round(900 * spec.keep)),),
        initial=f"{spec.problem.name} {spec.seed} {spec.parent}",
        data="f" * 64,
        steps=10,
        seconds=6.0,
    )


@dataclass
class Found:
    """A sheet whose runs are made up, and the rows that a store would have."""

    tier: Tier
    sheet: Sheet = field(init=False)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        runs: dict[str, Run] = {}
        whole = with_baselines(contrast.get("structure"))
        while due := Sheet(whole, self.tier, dict(runs)).due():
            for spec in due:
                made = record(spec)
                runs[spec.key] = Run(made)
                self.rows.append(Row(spec.key, HERE, "done", spec.model_dump(mode="json"), made.model_dump()))
        self.sheet = Sheet(whole, self.tier, runs)

    def record(self, **more: Any) -> ContrastRecord:
        return summary(self.sheet, self.rows, HERE, FACTS, created="today", **more)


@pytest.fixture(scope="module")
def found() -> Found:
    smoke = tier("smoke")
    (problem,) = smoke.problems
    two = problem.model_copy(update={"rates": (0.1, 0.01)})
    return Found(smoke.model_copy(update={"seeds": (0, 1, 2), "problems": (two,)}))


def test_every_run_is_in_the_record_once(found: Found) -> None:
    made = found.record(command="prunus contrast report structure")
    assert made.done == made.planned == sum(len(p.runs) for p in made.points_found)
    assert made.done < len(found.rows), "rates that were not chosen are no points"
    assert {p.rate for p in made.points_found} == {0.1}
    assert {r.seed for p in made.points_found for r in p.runs} == {0, 1, 2}
    assert made.seeds == [0, 1, 2] and made.points == list(found.tier.points(found.sheet.contrast.points))
    told = "chosen for every {} with the first seed, by held-out accuracy"
    assert made.protocol["learning rate"] == told.format("arm and point")
    by_arm = Sheet(found.sheet.contrast, found.tier.model_copy(update={"tuned": "arm"}), {})
    once = summary(by_arm, [], HERE, {}, created="today").protocol["learning rate"]
    assert once == told.format("arm, at the point in the middle,")
    assert made.command and made.created == "today" and made.section == "7.1, table 7"
    assert ContrastRecord.from_json(made.to_json()) == made


def test_numbers_are_those_of_the_runs(found: Found) -> None:
    made = found.record()
    (one,) = [p for p in made.found("mlp-digits", "SNIP, channels") if p.keep == 0.5]
    assert one.mean == pytest.approx(0.9 - 0.1 - 0.1 + 0.001) and one.std == pytest.approx(0.001)
    assert one.delta == pytest.approx(-0.2) and one.params_ratio == 2.0 and one.macs_ratio == 2.0
    assert one.layers[0].kept == [450, 450, 450] and one.layers[0].share == 0.5
    assert [p.collapsed for p in made.found("mlp-digits", "SNIP, weights")] == [0, 3]
    (dense,) = made.found("mlp-digits", "dense")
    assert dense.keep == 1.0 and dense.delta == 0.0 and dense.layers == []


def test_claims_carry_their_interval_as_numbers(found: Found) -> None:
    snip = next(c for c in found.record().claims if c.id == "snip")
    assert snip.verdict.word == "supported" and snip.unit == "points of test accuracy" and snip.survey
    assert snip.verdict.gap == pytest.approx(10.0) and snip.verdict.low == pytest.approx(10.0)
    assert snip.by_problem == {}, "one problem is all problems"


def test_arms_say_what_they_are(found: Found) -> None:
    made = found.record()
    snip, dense = made.arm("SNIP, channels"), made.arm("dense")
    assert snip.taxonomy["structure"] == "structured" and snip.recipe == "snip" and not snip.baseline
    assert snip.parts["granularity"].startswith("Channel") and snip.starts == "initial weights"
    assert dense.baseline and not dense.recipe and dense.epochs == {"mlp-digits": 2}
    assert made.quoted[0].rows[0][1] == "93.84"


def test_what_was_not_made_here_is_marked_and_not_mixed(found: Found) -> None:
    before = found.record()
    spec = next(s for s in (r.spec for r in found.rows) if s["recipe"] is not None)
    key = Spec.model_validate(dict(spec)).key
    others = [
        Row(key, THERE, "done", spec, record(Spec.model_validate(dict(spec))).model_dump()),
        Row("0" * 64, THERE, "done", spec, {}),
        Row(key, THERE[:-1] + "c", "running", spec),
    ]
    made = summary(found.sheet, [*found.rows, *others], HERE, FACTS, created="today")
    assert [(e.key, e.runs, e.facts) for e in made.elsewhere] == [(THERE, 1, {"processor": "that one"})]
    assert made.points_found == before.points_found and before.elsewhere == []
    assert made.environment == {"torch": "2", "processor": "this one"}


def test_failed_runs_keep_the_last_line_of_their_traceback(found: Found) -> None:
    first = found.rows[0]
    trace = "Traceback (most recent call last):\n  File x\nprunus.core.errors.SpecError: no such thing\n"
    rows = [Row(first.key, HERE, "failed", first.spec, None, trace), *found.rows[1:]]
    (failed,) = summary(found.sheet, rows, HERE, FACTS).failed
    assert failed.error == "prunus.core.errors.SpecError: no such thing" and failed.key == first.key[:12]


def test_masks_are_compared_within_seeds_and_across_those_of_an_arm(found: Found) -> None:
    def masks(key: str) -> dict[str, Tensor] | None:
        (spec,) = [Spec.model_validate(dict(r.spec)) for r in found.rows if r.key == key]
        assert spec.recipe is not None
        if spec.recipe["name"] == "grasp":
            return None
        kept = torch.zeros(8, dtype=torch.bool)
        first = spec.seed + (0 if "Channel" in str(spec.recipe["granularity"]) else 1)
        kept[first : first + 3] = True
        return {"a": kept, "ones": torch.ones(spec.seed + 1, dtype=torch.bool)}

    alike = summary(found.sheet, found.rows, HERE, FACTS, masks=masks).similarity
    assert [s.keep for s in alike] == list(found.tier.points(found.sheet.contrast.points))
    assert alike[0].arms == ["SNIP, weights", "SNIP, channels"]
    # Of one seed: two of four weights in common, besides 1, 2 and 3 others. Across seeds, those others do not fit.
    between = (3 / 5 + 4 / 6 + 5 / 7) / 3
    across = (2 / 4 + 1 / 5 + 2 / 4) / 3
    assert alike[0].overlap[0][1] == pytest.approx(between) == alike[0].overlap[1][0]
    assert alike[0].overlap[0][0] == pytest.approx(across)
    assert overlap({"a": torch.ones(2, dtype=torch.bool)}, {}) is None


def test_little_is_called_little() -> None:
    made = Found(tier("smoke")).record()
    assert "not tuned" in str(made.protocol["learning rate"])
    assert len(made.warnings) == 3 and {c.verdict.word for c in made.claims} == {"too few runs"}
    empty = summary(Sheet(with_baselines(contrast.get("pace")), tier("smoke"), {}), [], HERE, {}, created="today")
    assert empty.done == 0 < empty.planned and empty.points_found == [] and empty.protocol["data"] == "no run yet"
