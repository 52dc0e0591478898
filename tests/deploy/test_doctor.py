"""What a machine can accelerate: measured cases, and what is concluded from them; saved folders on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import prunus
from prunus import Task
from prunus.cli.app import app
from prunus.cli.doctor import of_folder, of_machine
from prunus.core.errors import SpecError
from prunus.deploy import doctor, installed, kernels, widths
from prunus.deploy.doctor import Case, Checkup, Limits, Step, breaks_even, conclusions, drawn, measured, stairs_of
from prunus.deploy.examined import examine
from prunus.deploy.rounding import Staircase
from prunus.deploy.widths import Liked
from prunus.measure.machine import Gpu, machine
from tests.deploy.toys import pixels, toy


def checkup(cases: list[Case], **more: Any) -> Checkup:
    steps = tuple(Step("eager", w, ms) for w, ms in ((56, 0.8), (60, 0.95), (62, 1.3), (64, 1.0)))
    limits = (Limits(1, 1e10, 1e11, 2e10),)
    found = Checkup(machine(), limits, 2048, 1, tuple(cases), steps, "avx2", "", 1.0)
    return replace(found, **more)


def cases(pattern: str, batch: int, **ratios: float) -> list[Case]:
    return [Case(pattern, int(s[1:]) / 100, batch, {"dense": r, "prunus csr": 1.0}) for s, r in ratios.items()]


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "8x1"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_drawn_weights_have_the_pattern(pattern: str, sparsity: float) -> None:
    weight = drawn(pattern, sparsity, 256, torch.Generator().manual_seed(0))
    assert float((weight == 0).float().mean()) == pytest.approx(sparsity, abs=0.02)
    block = doctor.BLOCKS[pattern]
    shared = (weight == 0).reshape(-1, block, 256)
    assert bool((shared.all(1) | ~shared.any(1)).all())


def test_two_of_every_four_are_left() -> None:
    weight = drawn("2:4", 0.5, 64, torch.Generator().manual_seed(0))
    assert bool(((weight != 0).reshape(-1, 4).sum(1) == 2).all())
    with pytest.raises(SpecError, match="unknown pattern '3x3'"):
        drawn("3x3", 0.5, 64, torch.Generator())


@pytest.mark.parametrize("pattern", ["unstructured", "8x1", "2:4"])
def test_a_case_is_measured_every_way_that_knows_its_pattern(pattern: str) -> None:
    case = measured(pattern, 0.5, 4, threads=1, size=64, rounds=3)
    ways = {"torch CSR"} if pattern == "unstructured" else set[str]()
    if kernels.available():
        ways |= {f"prunus {form}" for form in doctor.FORMS.get(pattern, (pattern,))}
    assert set(case.ms) == {"dense"} | ways
    assert all(t > 0 for t in case.ms.values())
    assert case.best == (min(ways, key=case.ms.__getitem__) if ways else "dense")
    assert case.ratio == pytest.approx(case.ms["dense"] / case.ms[case.best])


def test_the_ways_compute_the_same() -> None:
    """What is timed is the product: PyTorch's CSR and our packed forms against float64."""
    weight = drawn("unstructured", 0.8, 64, torch.Generator().manual_seed(0))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ weight.double().t()
    assert torch.allclose((doctor.narrow_csr(weight) @ x.t()).t().double(), exact, atol=1e-4)
    assert doctor.narrow_csr(weight).crow_indices().dtype == torch.int32
    for form in doctor.FORMS["unstructured"] if kernels.available() else ():
        assert torch.allclose(kernels.linear(x, kernels.pack(weight, form)).double(), exact, atol=1e-4)


def test_a_pattern_pays_from_where_it_always_does() -> None:
    own = cases("unstructured", 1, s50=1.5, s70=0.9, s80=1.2, s90=3.0)
    found = breaks_even(own, "unstructured", 1)
    assert found is not None and found.sparsity == 0.8  # at 50 % it paid by chance
    assert breaks_even(own, "unstructured", 64) is None
    assert breaks_even(cases("4x1", 1, s50=0.5, s90=1.05), "4x1", 1) is None


def test_conclusions_say_what_the_numbers_say() -> None:
    own = cases("unstructured", 1, s50=0.9, s80=1.2) + cases("unstructured", 64, s50=0.5, s80=0.9)
    own += cases("4x1", 1, s50=2.0, s80=4.0) + cases("4x1", 64, s50=2.0, s80=4.0) + cases("2:4", 64, s50=0.7)
    text = " ".join(conclusions(checkup(own)))
    assert "unstructured sparsity pays from 80% at batch 1 (1.2 x); at batch 64 at no sparsity" in text
    assert "4x1 blocks of output channels pays from 50% at batch 1 (2 x), from 50% at batch 64" in text
    assert "2:4 pays nowhere on this CPU" in text
    assert "in eager: 62 channels take 1.30 x the time of 64" in text and "keep widths at multiples of 8." in text
    kept = " ".join(conclusions(checkup(own, multiples={"eager": 16})))
    assert "--for eager rounds to multiples of 16 on this machine" in kept
    assert "run this again on an idle machine" in " ".join(conclusions(checkup(own, multiples={"eager": None})))
    assert "bfloat16 multiplies no faster" in text and "no NVIDIA card" in text
    fast = checkup(own, limits=(Limits(1, 1e10, 1e11, 9e11),), kernels="", missing="no compiler")
    text = " ".join(conclusions(fast))
    assert "9.0 x as fast as float32" in text and "do not run here: no compiler" in text
    cards = replace(machine(), gpus=(Gpu("H", "9.0", 1, True), Gpu("V", "7.0", 1, False)))
    text = " ".join(conclusions(checkup(own, machine=cards)))
    assert "H (compute capability 9.0): its tensor cores skip the zeros of 2:4" in text
    assert "V (compute capability 7.0): it skips no zeros" in text


def test_this_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole checkup, small: everything asked is measured, the count of measurements is right, and JSON holds it."""
    monkeypatch.setattr(doctor, "limits_of", lambda threads, **_: Limits(threads, 1e10, 1e11, 2e10))
    monkeypatch.setattr(doctor, "QUICK_WIDTHS", (8, 16))
    told: list[tuple[int, int]] = []
    found = doctor.checkup(quick=True, threads=1, size=64, progress=lambda *at: told.append(at))
    assert {(c.pattern, c.sparsity, c.batch) for c in found.cases} == {
        *((p, s, b) for p in doctor.BLOCKS for s in doctor.QUICK_SPARSITIES for b in doctor.QUICK_BATCHES),
        *(("2:4", 0.5, b) for b in doctor.QUICK_BATCHES),
    }
    assert told[-1][0] == told[-1][1] == len(told)
    assert {s.width for s in found.steps} == {8, 16} and "eager" in {s.runtime for s in found.steps}
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["cases"][0]["ratio"] == found.cases[0].ratio and plain["machine"]["cpu"] == machine().cpu
    shown = of_machine(found, installed.libraries())
    assert shown.says[: len(found.says)] == found.says and len(shown.plots) == 2
    assert {row[1] for row in shown.tables[-1].rows} >= {"onnxruntime"}


@pytest.mark.parametrize("wrong", [{"size": 100}, {"size": 0}, {"threads": 0}])
def test_what_cannot_be_measured_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="multiple of 64"):
        doctor.checkup(**wrong)


def test_narrow_convolutions_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QUICK_WIDTHS", (8, 9))
    steps, multiple = stairs_of("eager", 1, quick=True)
    assert [s.width for s in steps] == [8, 9] and all(s.ms > 0 and s.rate > 0 for s in steps) and multiple is None
    liked = Liked("eager", 8, (Staircase("eager", "conv3x3", (16, 32), (1.0, 2.0), (1.0, 2.0), 1),))
    monkeypatch.setattr(widths, "learn", lambda runtime: liked)
    assert stairs_of("eager", 1) == ([Step("eager", 16, 1.0), Step("eager", 32, 2.0)], 8)


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_least", lambda call: (call(), 0.5)[1])
    found = doctor.limits_of(1, quick=True)
    assert replace(found, granted=1.0) == Limits(1, (1 << 28) / 0.5, 2 * 1024**3 / 0.5, 2 * 512**3 / 0.5)
    assert 0.0 < found.granted <= 1.0


def test_a_busy_machine_is_said_first() -> None:
    own = cases("unstructured", 1, s50=0.9)
    busy = checkup(own, limits=(Limits(1, 1e10, 1e11, 2e10), Limits(2, 1e10, 1e11, 2e10, 0.3)))
    assert next(iter(conclusions(busy))).startswith("This machine is busy: products got 30% of the processor time")
    assert "busy" not in " ".join(conclusions(checkup(own)))


def test_extras_are_read_off_the_package() -> None:
    found = installed.libraries()
    assert {("onnx", "onnxruntime"), ("solve", "scipy")} <= {(x.extra, x.name) for x in found}
    assert not {"all", "dev"} & {x.extra for x in found}
    there = next(x for x in found if x.name == "onnx")
    assert there.version == pytest.importorskip("onnx").__version__
    gone = tuple(replace(x, version=None) for x in found if x.extra in ("onnx", "solve"))
    assert installed.pip_line(gone) == "pip install 'prunus[onnx,solve]'" and installed.pip_line(()) == ""
    with pytest.raises(SpecError, match="runs from its source"):
        installed.libraries("no-such-package-of-ours")


# Folders


def saved(path: Path, method: str, sparsity: float) -> Path:
    result = prunus.prune(toy(), Task(example=(pixels(),)), method, sparsity=sparsity)
    return prunus.save(result, path / method)


def test_a_folder_with_zeros_is_examined(tmp_path: Path) -> None:
    found = examine(saved(tmp_path, "magnitude", 0.9), batches=(1,), threads=1, size=64)
    assert found.problems == () and not found.compacted and found.recipe == "magnitude"
    (one,) = (p for p in found.patterns if p.pattern == "unstructured")
    assert one.sparsity == pytest.approx(0.9, abs=0.05)
    assert [(c.pattern, c.batch) for c in found.cases if c.pattern == "unstructured"] == [("unstructured", 1)]
    assert any("unstructured at 9" in s for s in found.says)
    assert json.loads(json.dumps(found.to_dict()))["patterns"]
    assert of_folder(found).title.endswith("pruned by magnitude")


def test_a_compacted_folder_names_odd_widths(tmp_path: Path) -> None:
    found = examine(saved(tmp_path, "l1_filter", 0.3), batches=(1,), threads=1, size=64)
    assert found.compacted and any("cut out" in s for s in found.says)
    assert all(width % 8 and width > 8 for _, width in found.odd)


def test_a_broken_folder_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path, "magnitude", 0.5)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = examine(folder, batches=(1,), threads=1, size=64)
    assert len(found.problems) == 1 and "model.safetensors" in found.problems[0] and found.cases == ()
    ran = CliRunner().invoke(app, ["doctor", str(folder), "--json", "--size", "64"])
    assert ran.exit_code == 1 and json.loads(ran.stdout)["problems"]


def test_the_command_refuses_what_is_no_folder(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["doctor", str(tmp_path / "nothing")])
    assert ran.exit_code == 2
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code == 2
