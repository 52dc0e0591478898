from __future__ import annotations

import csv
import io
import json
import math
from statistics import mean, stdev

import pytest

from prunus.core.errors import SpecError
from prunus.report import contrast_data as data
from prunus.report.contrast_records import ContrastRecord, LayerKept
from tests.report.contrast_sample import bare, record


def test_json_restores_an_equal_record() -> None:
    for one in (record(), bare()):
        assert ContrastRecord.from_json(one.to_json()) == one


def test_what_follows_from_the_runs_is_in_the_json_and_not_believed() -> None:
    plain = json.loads(record().to_json())
    first = plain["points_found"][0]
    tests = [r["test"] for r in first["runs"]]
    assert first["mean"] == pytest.approx(mean(tests)) and first["std"] == pytest.approx(stdev(tests))
    assert first["best"] == max(tests) and first["low"] == min(tests)
    assert first["params_ratio"] == pytest.approx(10_000 / mean(r["params_kept"] for r in first["runs"]))
    first["mean"] = 0.123
    assert ContrastRecord.model_validate(plain).points_found[0].mean == pytest.approx(mean(tests))


def test_one_seed_has_no_deviation_and_nothing_kept_no_ratio() -> None:
    one = record().points_found[0]
    alone = one.model_copy(update={"runs": [one.runs[0].model_copy(update={"params_kept": 0, "effective": None})]})
    assert alone.std is None and alone.effective is None
    assert math.isinf(alone.params_ratio)
    assert math.isnan(LayerKept(name="x", weights=0, kept=[0]).share)


def test_errors_name_the_field() -> None:
    plain = json.loads(record().to_json())
    plain["points_found"][0]["runs"][0]["test"] = 93.0
    with pytest.raises(SpecError, match=r"points_found\.0\.runs\.0\.test.*no fraction"):
        ContrastRecord.from_json(json.dumps(plain))


def test_tables_hold_the_numbers_of_the_record() -> None:
    found = record()
    rows = list(csv.DictReader(io.StringIO(data.runs_csv(found, "mlp"))))
    runs = [(p, r) for p in found.points_found if p.problem == "mlp" for r in p.runs]
    assert len(rows) == len(runs)
    for row, (p, r) in zip(rows, runs, strict=True):
        assert (row["arm"], float(row["keep"]), int(row["seed"])) == (p.arm, p.keep, r.seed)
        assert float(row["test"]) == r.test and float(row["delta"]) == r.delta
        assert row["untrained"] == ("" if r.untrained is None else repr(r.untrained))
        assert int(row["params_kept"]) == r.params_kept and row["baseline"] == str(found.arm(p.arm).baseline)
    layers = list(csv.DictReader(io.StringIO(data.layers_csv(found))))
    assert sum(int(row["kept"]) for row in layers) == sum(
        sum(layer.kept) for p in found.points_found for layer in p.layers
    )
    alike = list(csv.DictReader(io.StringIO(data.similarity_csv(found))))
    assert [a["overlap"] for a in alike] == ["0.41", "0.625", "0.625", ""]
    assert float(alike[0]["chance"]) == pytest.approx(1 / 3)
    claims = list(csv.DictReader(io.StringIO(data.claims_csv(found))))
    assert [(c["claim"], c["problem"]) for c in claims] == [
        ("a", ""),
        ("a", "mlp"),
        ("a", "conv"),
        ("b", ""),
        ("c", ""),
    ]
    assert float(claims[0]["low"]) == 0.8 and claims[2]["gap"] == ""
