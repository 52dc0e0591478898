"""Runtimes: what each computes is what eager PyTorch computes; what is missing or wrong is said and not ranked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from prunus import Task, methods, prune
from prunus.core.errors import DataError, PrunusError, SpecError, UnknownNameError
from prunus.deploy import deploy, runtimes
from prunus.deploy.deploying import subject_of
from prunus.deploy.patterns import left
from prunus.deploy.runtimes import Pattern, Runtime, Session, Subject
from prunus.measure.timing import interleaved
from prunus.parts.granularity import Channel

# Those that make themselves ready in a second or two; compilers are tried where there is more time.
QUICK = ("eager", "eager-bf16", "onnxruntime", "openvino")


class Net(nn.Module):
    """A convolution with its normalization, and linear layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.up, self.fc = nn.Linear(width, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(self.up(x).relu())


def net(width: int = 32) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(width).eval()


def pixels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def usable(title: str) -> Runtime:
    found = runtimes.named(title)
    if why := found.missing():
        pytest.skip(why)
    return found


@pytest.mark.parametrize("title", [*QUICK, *(pytest.param(t, marks=pytest.mark.slow) for t in runtimes.known()
                                             if t not in QUICK)])  # fmt: skip
def test_a_session_computes_what_the_model_computes(title: str, tmp_path: Path) -> None:
    runtime, model = usable(title), net().train()
    subject, flushed = subject_of(model, pixels(), tmp_path)
    if runtime.skips:
        pytest.skip("wants zeros in its weights; has tests of its own")
    assert not flushed and model.training
    runtime.ready(subject)
    session = runtime.open(subject, 1)
    with torch.no_grad():
        expected = net()(pixels())
    found = session.tensors(session.run())
    session.close()
    assert [t.shape for t in found] == [expected.shape] and session.bytes > 1000
    most = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.1}[runtime.precision]
    assert float((found[0].float() - expected).abs().max() / expected.abs().max()) < most


def test_titles_are_unique_and_known() -> None:
    every = runtimes.known()
    assert {"eager", "compile", "onnxruntime", "openvino", "openvino-int8", "executorch"} <= set(every)
    assert [r.title for r in every.values()] == sorted(every)
    with pytest.raises(UnknownNameError, match="did you mean onnxruntime"):
        runtimes.named("onnxruntme")
    with pytest.raises(SpecError, match="there is a runtime eager already"):
        runtimes.register(every["eager"])


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.deploy.runtimes.base.find_spec", lambda name: None)
    assert runtimes.named("openvino").missing() == "openvino is not installed: pip install 'prunus[openvino]'"
    assert runtimes.named("eager").missing() == ""


def small(model: nn.Module, share: float = 0.5, steps: Any = (16, 8, 4)) -> nn.Module:
    recipe = replace(methods.l1_filter, granularity=Channel(round_to=steps))
    return prune(model, Task(example=(pixels(1),)), recipe, sparsity=share).compact()


def test_the_compact_model_is_measured_beside_the_dense_one() -> None:
    pytest.importorskip("onnxruntime")
    told: list[tuple[int, int, str]] = []
    dense = net(64)
    pruned = small(dense)
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    found = deploy(
        dense, pruned, pixels(), runtimes=["eager", "onnxruntime"], threads=1, runs=30, min_seconds=0.0,
        on_step=lambda *step: told.append(step),
    )  # fmt: skip
    assert told == [(0, 2, "eager"), (1, 2, "onnxruntime")]
    assert {r.runtime for r in found.rows} == {"eager", "onnxruntime"} and not found.absent
    assert [r.pruned.median_ms for r in found.rows] == sorted(r.pruned.median_ms for r in found.rows)
    for row in found.rows:
        assert row.pruned.bytes < row.dense.bytes and row.threads == 1 and row.batch == 2 and row.runs >= 30
        assert row.pruned.error < 1e-5 and row.dense.error < 1e-5
        assert row.efficiency == pytest.approx(row.ratio.median / found.left.macs_ratio)
        assert row.pruned.q25_ms <= row.pruned.median_ms <= row.pruned.q75_ms
    assert found.left.macs_ratio > 1.5 and not found.left.patterns
    assert found.best is found.rows[0] and "of the MACs" in found.says[0]
    json.dumps(found.to_dict())
    assert all(torch.equal(before[n], t) for n, t in dense.state_dict().items())


def test_zeros_that_nothing_skips_are_said_first() -> None:
    dense, pruned = net(), net()
    with torch.no_grad():
        for p in (pruned.conv.weight, pruned.up.weight, pruned.fc.weight):
            p[torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.9] = 0
    found = deploy(dense, pruned, pixels(), runtimes=["eager"], threads=1, runs=30, min_seconds=0.0)
    assert "nothing that ran here skips them" in found.says[0] and "1.00x" in found.says[0]
    assert "cutting units out" in found.says[0]
    assert found.left.macs_ratio == 1.0 and found.left.effective_ratio > 5
    assert found.left.patterns == {"unstructured"} and found.left.zeros == pytest.approx(0.9, abs=0.02)


def two_of_four(w: Tensor) -> Tensor:
    rows = w.flatten(1)
    keep = torch.zeros_like(rows).reshape(-1, 4)
    keep[:, :2] = 1
    return (rows * keep.reshape(rows.shape)).reshape(w.shape)


def blocks(w: Tensor) -> Tensor:
    gone = torch.rand(w.shape[0] // 4, *w.shape[1:], generator=torch.Generator().manual_seed(3)) < 0.7
    return w.masked_fill(gone.repeat_interleave(4, 0), 0)


@pytest.mark.parametrize(
    ("change", "patterns"),
    [(two_of_four, {"unstructured", "2:4"}), (blocks, {"unstructured", "blocks"}), (lambda w: w, set())],
)
def test_patterns_are_recognized(change: Any, patterns: set[Pattern]) -> None:
    pruned = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    with torch.no_grad():
        for layer in (pruned[0], pruned[2]):
            layer.weight.copy_(change(layer.weight))
    # Both halves of a row's first four being kept makes whole columns: blocks too.
    found = left(dense, pruned, torch.randn(3, 64)).patterns
    assert found >= patterns and ("2:4" in found) == ("2:4" in patterns) and bool(found) == bool(patterns)


@dataclass(frozen=True)
class Odd(Runtime):
    """A runtime that fails, or lies, or is not there, or skips zeros."""

    how: str = ""
    name: ClassVar[str] = "odd"
    skips: ClassVar[frozenset[Pattern]] = frozenset({"unstructured"})

    def missing(self) -> str:
        return "it is not there" if self.how == "missing" else ""

    def open(self, subject: Subject, threads: int) -> Session:
        if self.how == "fails":
            raise PrunusError("it cannot do that\nsecond line")
        value = subject.model(*subject.args) * (2 if self.how == "lies" else 1)
        return Session(lambda: value, lambda out: [out.detach()], 1, lambda: None)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_OTHERS", {})
    runtimes.register(Odd())


@pytest.mark.parametrize(
    ("how", "reason"),
    [("missing", "it is not there"), ("fails", "it cannot do that"), ("lies", "of their largest value from eager")],
)
def test_what_does_not_run_is_listed_with_its_reason(how: str, reason: str) -> None:
    found = deploy(net(), net(), pixels(), runtimes=[Odd(how=how), "eager"], threads=1, runs=30, min_seconds=0.0)
    assert [r.runtime for r in found.rows] == ["eager"]
    assert [a.runtime for a in found.absent] == ["odd"] and reason in found.absent[0].reason
    assert "second line" not in found.absent[0].reason


@pytest.mark.usefixtures("registered")
def test_a_runtime_that_skips_zeros_is_named() -> None:
    dense, pruned = net(), net()
    with torch.no_grad():
        pruned.up.weight[::2] = 0
    found = deploy(dense, pruned, pixels(), runtimes=["odd", "eager"], threads=1, runs=30, min_seconds=0.0)
    assert "only odd (there: " in found.says[0]
    alone = deploy(dense, pruned, pixels(), runtimes=["eager"], threads=1, runs=30, min_seconds=0.0)
    assert "nothing that ran here skips them" in alone.says[0] and "odd: not among" in alone.says[0]


def test_precisions_that_are_asked_for_are_tried() -> None:
    found = deploy(
        net(), net(16), pixels(), runtimes=["eager"], quantize=["bfloat16"], threads=1, runs=30, min_seconds=0.0
    )
    assert {r.runtime: r.precision for r in found.rows} == {"eager": "float32", "eager-bf16": "bfloat16"}
    row = next(r for r in found.rows if r.precision == "bfloat16")
    assert 0 < row.pruned.error < 0.1 and row.pruned.bytes < 0.6 * next(
        r.pruned.bytes for r in found.rows if r.precision == "float32"
    )


def test_wrong_use_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 30 runs"):
        deploy(net(), net(), pixels(), runs=3)
    with pytest.raises(UnknownNameError):
        deploy(net(), net(), pixels(), runtimes=["tpu"])
    with pytest.raises(SpecError, match="quantize='int4'"):
        deploy(net(), net(), pixels(), quantize=["int4"])  # type: ignore[list-item]
    with pytest.raises(SpecError, match="meta device"):
        deploy(net(), net().to("meta"), pixels())
    with pytest.raises(DataError, match="does not run on the example"):
        deploy(net(), net(), torch.randn(2, 5, 8, 8), runtimes=["eager"])


def test_turns_are_taken_in_rotation() -> None:
    order: list[str] = []
    calls = {n: (lambda n=n: order.append(n)) for n in "abc"}  # type: ignore[misc]
    took = interleaved(calls, warmup=1, runs=3, min_seconds=0.0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" and {n: len(v) for n, v in took.items()} == dict.fromkeys(
        "abc", 3
    )
