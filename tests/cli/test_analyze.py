"""prunus analyze, as a user types it: every analysis on tiny networks, in words, JSON, pages, pictures and tables."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file

import prunus
from prunus import measure
from prunus.cli.analyze import modules
from prunus.cli.app import app
from prunus.lab import zoo
from tests.cli.test_commands import call, told
from tests.docs.pages import ROOT, command_lines

MLP = ("-d", "digits", "--examples", 48)
NAMES = tuple(modules())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked result, another by another method, and a compact one; and the dense weights that they came from."""
    pytest.importorskip("sklearn")
    where = tmp_path_factory.mktemp("results")
    torch.manual_seed(7)
    dense = zoo.build("mlp", in_channels=1)
    save_file(dense.state_dict(), where / "dense.safetensors")
    example = (torch.randn(1, 1, 8, 8),)
    made: dict[str, Path] = {"dense": where / "dense.safetensors"}
    for name, method, sparsity in (("a", "magnitude", 0.8), ("b", "random", 0.8), ("c", "l1_filter", 0.5)):
        result = prunus.prune(dense, prunus.Task(example=example), method, sparsity=sparsity)
        if name == "c":
            result.compact(verify=False)
        notes = {
            "network": "mlp",
            "options": {"in_channels": 1},
            "input": [1, 1, 8, 8],
            "test_accuracy": 0.1 * len(made),
        }
        prunus.save(result, where / name, notes=notes)
        made[name] = where / name
    return made


def test_the_list_has_every_module_with_its_source() -> None:
    rows = told("analyze", "list")
    assert [r["name"] for r in rows] == list(NAMES) and len(rows) == 14
    assert all(r["question"].endswith("?") and r["takes"] and r["source"].endswith(".") for r in rows)
    assert "gradient-flow" in call("analyze", "list").stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_has_help_and_the_common_options(name: str) -> None:
    text = call("analyze", name, "--help").stdout
    assert all(option in text for option in ("--json", "--seed", "--dry-run", "--out"))


def test_the_lines_of_the_page_parse() -> None:
    text = (ROOT / "docs" / "analyses.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app).commands["analyze"]  # type: ignore[attr-defined]
    lines = [shlex.split(line) for line in command_lines(text) if line.startswith("prunus analyze ")]
    assert len(lines) >= 10
    for words in lines:
        group.commands[words[2]].make_context(words[2], words[3:])
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(rows) == set(NAMES) and all(rows.count(n) <= 2 for n in rows)


def test_layers_are_counted_of_what_was_there_before(folders: dict[str, Path], tmp_path: Path) -> None:
    found = told("analyze", "layers", folders["a"], folders["c"], "--out", tmp_path / "layers.csv")["networks"]
    assert found[0]["kept"] == pytest.approx(0.2, abs=1e-3)
    first = found[1]["layers"]["layers.0.weight"]
    assert (first["weights"], first["kept"]) == (6400, 3200)  # 50 of 100 rows were cut out
    table = (tmp_path / "layers.csv").read_text().splitlines()
    assert table[0] == "layer,weights,a,c" and table[1].startswith("layers.0,6400,")
    page = tmp_path / "layers.html"
    call("analyze", "layers", folders["a"], folders["b"], "--out", page)
    assert "Share kept by layer" in page.read_text() and "<script" in page.read_text()


def test_masks_are_compared_with_chance(folders: dict[str, Path]) -> None:
    (pair,) = told("analyze", "similarity", folders["a"], folders["b"])["pairs"]
    masks = [{n: p != 0 for n, p in _model(folders[k]).named_parameters() if p.ndim == 2} for k in "ab"]
    assert pair["jaccard"] == pytest.approx(measure.jaccard(*masks))
    assert pair["jaccard"] == pytest.approx(pair["chance"], abs=0.02)  # the other's masks are random
    assert "independent ones" in call("analyze", "similarity", folders["a"], folders["b"]).stdout
    assert "nothing was removed" in call("analyze", "similarity", folders["a"], "mlp", code=2).stderr


def _model(folder: Path) -> torch.nn.Module:
    return prunus.load(folder, lambda: zoo.build("mlp", in_channels=1))


def test_weights_are_compared_with_a_file_and_with_themselves(folders: dict[str, Path]) -> None:
    found = told("analyze", "correlation", f"mlp@{folders['dense']}", folders["a"])
    assert found["overlap"] == 1.0 and 0.5 < found["pearson"] < 1.0  # magnitude keeps the largest
    assert found["layers"]["layers.0.weight"] <= 1.0


def test_effective_sparsity_is_at_least_the_direct_one(folders: dict[str, Path]) -> None:
    masked, compact = told("analyze", "effective", folders["a"], folders["c"])["networks"]
    assert masked["direct_sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert masked["effective_sparsity"] >= masked["direct_sparsity"]
    assert compact["effective_sparsity"] == 0.0


def test_derivatives_are_those_of_what_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    dense = f"mlp@{folders['dense']}"
    flow = told("analyze", "gradient-flow", folders["a"], dense, *MLP)["networks"]
    assert flow[0]["flow"] < flow[0]["whole"] and flow[1]["flow"] == pytest.approx(flow[1]["whole"])
    # A fifth of the three matrices, and all biases.
    assert flow[0]["parameters"] == 2160 + 150 and sum(flow[1]["layers"].values()) == pytest.approx(flow[1]["flow"])
    spectrum = told("analyze", "hessian", folders["a"], *MLP, "--iterations", 6, "--probes", 1, "--top", 2)
    (one,) = spectrum["networks"]
    assert one["size"] == 2310 and one["largest"][0] > 0 and len(one["largest"]) == 2 and one["trace_error"] is None
    kernel = told("analyze", "ntk", folders["a"], *MLP, "--rows", 3, "--outputs", "sum")["networks"][0]
    assert len(kernel["eigenvalues"]) == 3 and kernel["trace"] == pytest.approx(sum(kernel["eigenvalues"]))
    svg = tmp_path / "values.svg"
    values = told("analyze", "jacobian", folders["c"], *MLP, "--rows", 4, "--out", svg)["networks"][0]
    assert len(values["values"]) == 4 and len(values["values"][0]) == 10
    assert svg.read_text().startswith("<?xml") and values["smallest"] <= values["mean"] <= values["largest"]


def test_the_line_between_two_networks_and_between_two_trainings(folders: dict[str, Path]) -> None:
    args = ("--points", 3, *MLP)
    found = told("analyze", "barrier", folders["a"], folders["b"], *args)
    errors = [p["error"] for p in found["points"]]
    assert found["error_barrier"] == pytest.approx(max(errors) - (errors[0] + errors[-1]) / 2)
    assert [p["alpha"] for p in found["points"]] == [0.0, 0.5, 1.0]
    one = told("analyze", "barrier", folders["a"], *args, "--steps", 3, "--seed", 1)
    assert one["points"][0]["loss"] != one["points"][-1]["loss"]


def test_pruning_is_scanned_turned_and_watched(folders: dict[str, Path], tmp_path: Path) -> None:
    dense = f"mlp@{folders['dense']}"
    scan = told("analyze", "sensitivity", dense, *MLP, "-s", "0.5,0.9", "-m", "l1_filter")
    assert [len(r["accuracy"]) for r in scan["layers"]] == [2, 2] and scan["layers"][0]["units"] == 100
    page = tmp_path / "essential.html"
    found = told("analyze", "essential", dense, *MLP, "-s", "0.3,0.6,0.9", "--out", page)
    assert found["sparsities"] == [0.0, 0.3, 0.6, 0.9] and found["essential"]["dense"] == scan["dense"]
    assert "Essential sparsity of mlp@" in page.read_text()
    watched = told("analyze", "instability", dense, *MLP, "--steps", 12, "--sparsity", 0.5)
    assert watched["events"][-1]["density"] == pytest.approx(0.5, abs=1e-3)
    assert watched["instability"] == pytest.approx(
        sum(e["before"] - e["after"] for e in watched["events"]) / len(watched["events"])
    )


def test_a_second_descent_is_looked_for_over_seeds() -> None:
    pytest.importorskip("sklearn")
    args = ("-s", "0.5,0.9", "--epochs", 1, "--images", 64, "--seeds", 2, "--batch-size", 32)
    done = call("analyze", "double-descent", "mlp", *MLP, *args, "--json")
    found = json.loads(done.stdout)
    assert found["sparsities"] == [0.0, 0.5, 0.9] and len(found["seeds"]) == 2
    assert found["seeds"][0] != found["seeds"][1] and all(d > 0 for d in found["seeds"][0]["distance"])
    assert "three or more" in done.stderr


def test_the_law_is_fitted_to_a_table_or_to_results(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    law = measure.ScalingLaw(0.06, 0.9, 1.2, 0.01)
    rows = [(0.7**k, law(0.7**k)) for k in range(14)]
    table = tmp_path / "points.csv"
    table.write_text("sparsity,accuracy\n" + "".join(f"{1 - d!r},{1 - e!r}\n" for d, e in rows))
    found = told("analyze", "scaling-law", table, "--dense", 0.06, "--resamples", 20)
    assert found["gamma"] == pytest.approx(1.2, rel=1e-2) and found["residual"] < 1e-4
    low, high = found["intervals"]["gamma"]
    assert low <= found["gamma"] <= high
    few = call("analyze", "scaling-law", folders["a"], folders["b"], code=2).stderr
    assert "1 densities" in few
    (tmp_path / "odd.csv").write_text("density,error\n1,\n")
    assert "line 2" in call("analyze", "scaling-law", tmp_path / "odd.csv", code=1).stderr


DRY: list[tuple[Any, ...]] = [
    ("layers", "mlp"),
    ("effective", "mlp"),
    ("correlation", "mlp", "mlp"),
    ("hessian", "mlp", *MLP),
    ("barrier", "mlp", *MLP, "--steps", 5),
    ("sensitivity", "mlp", *MLP),
    ("double-descent", "mlp", *MLP),
]


@pytest.mark.parametrize("args", DRY, ids=lambda a: str(a[0]))
def test_a_dry_run_checks_and_writes_nothing(
    args: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    plan = told("analyze", *args, "--dry-run", "--out", tmp_path / "page.html")
    assert plan["dry_run"] is True and plan["analysis"] == args[0] and not list(tmp_path.iterdir())


WRONG: list[tuple[tuple[Any, ...], tuple[str, ...]]] = [
    (("layers", "resnte20"), ("did you mean resnet20",)),
    (("layers", "mlp", "--out", "page.pdf"), ("must end in",)),
    (("hessian", "mlp"), ("needs data",)),
    # Everything that is wrong, at once.
    (
        ("barrier", "mlp", "nosuch", "resnte20", "--lr", "0", "--split", "all", "--steps", 3),
        ("(1)", "learning rate", "nosuch", "did you mean resnet20", "needs data", "--split all", "1 to 2 networks"),
    ),
    (("barrier", "mlp", *MLP), ("give --steps",)),
    (("sensitivity", "mlp", *MLP, "-m", "nope", "-s", "0.5,1.5"), ("[0, 1)", "nope")),
    (("sensitivity", "mlp", *MLP, "-m", "l0"), ("does not score the network as it is",)),
    (("instability", "mlp", *MLP, "--sparsity", 2, "--steps", 0), ("(0, 1)", "--steps 0")),
    (("double-descent", "mlp", *MLP, "--noise", 2, "-m", "snip"), ("wrong labels", "untrained weights")),
    (("ntk", "mlp", *MLP, "--outputs", "half"), ("each or sum",)),
    (("hessian", "gpt_tiny", *MLP), ("takes text",)),
    (("similarity", "mlp"), ("2 or more networks, and 1 were given",)),
    (("similarity", "run:3fa8", "mlp", "--store", "no.db"), ("there is no store",)),
    (("scaling-law", "nothing"), ("is no file",)),
    (("correlation", "mlp", "mlp@no.safetensors"), ("no checkpoint at",)),
]


@pytest.mark.parametrize(("args", "words"), WRONG, ids=lambda a: str(a[0]))
def test_wrong_use_is_said_before_anything_is_made(
    args: tuple[Any, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    said = call("analyze", *args, code=2).stderr
    assert said.startswith("error") and all(word in said for word in words), said
    assert not list(tmp_path.iterdir())


def test_runs_of_a_store_are_named_by_what_they_are(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from prunus.lab.contrast.problem import Problem
    from prunus.lab.contrast.sweep import packed
    from prunus.lab.contrast.trial import Record, Spec
    from prunus.lab.store import Store

    file = tmp_path / "runs.db"
    store, draw = Store(file), torch.Generator().manual_seed(0)
    problem = Problem(name="tiny", network="mlp", data="digits", epochs=1, tune=1, rates=(0.1,))
    shapes, common = (
        {"a.weight": (40, 50), "b.weight": (10, 40)},
        {n: torch.rand(s, generator=draw) for n, s in (("a.weight", (40, 50)), ("b.weight", (10, 40)))},
    )
    for method, noise, keeps in (("snip", 0.1, (0.5, 0.25, 0.1, 0.05)), ("random", 9.0, (0.1,))):
        for keep in keeps:
            for seed in (0, 1):
                spec = Spec(
                    problem=problem,
                    recipe=prunus.methods.get(method).to_dict(),
                    keep=keep,
                    epochs=1,
                    rate=0.1,
                    seed=seed,
                )
                store.add([(spec.key, spec.model_dump(mode="json"))], "here", {})
                assert store.claim(spec.key, "here")
                drawn = {n: common[n] + noise * torch.rand(s, generator=draw) for n, s in shapes.items()}
                masks = {n: v > v.flatten().quantile(1 - keep) for n, v in drawn.items()}
                record = Record(
                    test=1 - 0.1 / keep**0.5, valid=0.5, sparsity=1 - keep, params_dense=1, params_kept=1,
                    macs_dense=1, macs_kept=1, masks="", initial="", data="", steps=1, seconds=0.0,
                )  # fmt: skip
                store.finish(spec.key, "here", record.model_dump(mode="json"), masks=packed(masks))
    store.close()
    both = ("runs:keep=0.1", "--store", file)
    found = told("analyze", "similarity", *both)
    assert len(found["pairs"]) == 6 and {p["left"] for p in found["pairs"]} <= {
        f"{m} 0.1 seed {s}" for m in ("snip", "random") for s in (0, 1)
    }
    alike = {(p["left"], p["right"]): p["jaccard"] for p in found["pairs"]}
    assert max(alike, key=alike.__getitem__) in {
        ("snip 0.1 seed 0", "snip 0.1 seed 1"),
        ("snip 0.1 seed 1", "snip 0.1 seed 0"),
    }
    assert "Means over seeds" in call("analyze", "similarity", *both).stdout
    kept = told("analyze", "layers", "runs:method=snip,seed=1", "--store", file)["networks"]
    assert sorted(n["kept"] for n in kept) == pytest.approx([0.05, 0.1, 0.25, 0.5], abs=2e-3)
    pytest.importorskip("scipy")
    law = told("analyze", "scaling-law", "runs:method=snip", "--store", file, "--resamples", 20)
    assert [p["density"] for p in law["points"]] == pytest.approx([0.5, 0.25, 0.1, 0.05])
    assert law["points"][0]["error"] == pytest.approx(0.1 / math.sqrt(0.5))
    assert "one law" in call("analyze", "scaling-law", "runs:seed=0", "--store", file, code=2).stderr
    assert (
        "nothing that runs are chosen by" in call("analyze", "layers", "runs:colour=1", "--store", file, code=2).stderr
    )
