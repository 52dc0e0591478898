"""MNN: its files compute what the model computes, and zeros are skipped only where that was measured to be faster."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError, StructureError
from prunus.deploy import deploy, export, runtimes
from prunus.deploy.deploying import subject_of
from prunus.deploy.runtimes import Session, Subject, mnn_

pytest.importorskip("MNN")
pytest.importorskip("onnxscript")


class Net(nn.Module):
    """Convolutions, a normalization, and linear layers, wide enough for blocks of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.up, self.fc = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(self.up(x).relu())


def net(zeros: float = 0.0, block: int = 1) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
        with torch.no_grad():
            for weight in (model.conv.weight, model.up.weight):
                rows = torch.rand(len(weight) // block, weight[0].numel()) < zeros
                weight.masked_fill_(rows.repeat_interleave(block, 0).view_as(weight), 0)
    return model


def pixels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def subject(model: nn.Module, example: Any, folder: Path) -> Subject:
    return subject_of(model, example, folder)[0]


def computed(file: Path, model: nn.Module, example: Any, folder: Path) -> list[Tensor]:
    """What a file computes."""
    made = subject(model, example, folder)
    session = mnn_.session_of(file, made, made.named(), 1)
    session.run()
    return session.tensors(session.run())


@pytest.mark.parametrize(("zeros", "block", "tried"), [
    (0.0, 1, (0,)), (0.2, 1, (0,)), (0.5, 1, (0, 1)), (0.5, 4, (0, 1, 4)), (0.8, 8, (0, 1, 4, 8)),
])  # fmt: skip
def test_blocks_are_tried_where_there_are_zeros_enough(
    zeros: float, block: int, tried: tuple[int, ...], tmp_path: Path
) -> None:
    assert mnn_.blocks_of(subject(net(zeros, block), pixels(), tmp_path)) == tried


@pytest.mark.parametrize("block", [0, 1, 4, 8])
def test_every_kind_of_file_computes_what_the_model_computes(block: int, tmp_path: Path) -> None:
    model = net(0.8, 8)
    made = subject(model, pixels(), tmp_path / "a")
    file = mnn_.file_of(made, block)
    dense = mnn_.file_of(made, 0)
    # Zeros that are skipped are not in the file either: it shows that the rule was understood.
    assert (file.stat().st_size < 0.7 * dense.stat().st_size) == bool(block)
    with torch.no_grad():
        expected = model(pixels())
    (found,) = computed(file, model, pixels(), tmp_path / "b")
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_fastest_file_is_taken_and_the_reason_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(net(0.8, 8), pixels(), tmp_path)
    slow = {"1": [3.0] * 9, "0": [2.0] * 9, "4": [1.0] * 9, "8": [4.0] * 9}
    monkeypatch.setattr(mnn_, "interleaved", lambda calls, **_: {n: slow[n] for n in calls})
    file, session = mnn_.fastest(made, 1)
    assert file.name == "model-4.mnn"
    assert session.notes == ("zeros in blocks of 4 outputs are skipped: 1 ms, with dense kernels 2 ms",)
    slow["0"] = [0.5] * 9
    file, session = mnn_.fastest(made, 1)
    assert file.name == "model-0.mnn" and "dense kernels are faster" in session.notes[0]
    slow["1"] = [0.1] * 9
    assert mnn_.fastest(made, 1)[1].notes[0].startswith("single zeros are skipped")


def test_a_model_with_zeros_is_ranked_and_what_they_gain_is_said_first() -> None:
    found = deploy(net(), net(0.9, 4), pixels(), runtimes=["mnn", "eager"], threads=1, runs=30, min_seconds=0.0)
    rows = {r.runtime: r for r in found.rows}
    assert not found.absent and rows["mnn"].pruned.error < 1e-5 and rows["mnn"].dense.error < 1e-5
    assert f"only mnn (there: {rows['mnn'].ratio.verdict}) can skip them" in found.says[0]
    assert len(rows["mnn"].notes) == 1 and "dense kernels" in rows["mnn"].notes[0]


class Mixed(nn.Module):
    """Takes integers and truth values, gives several outputs of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(50, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        h = self.up(self.table(ids)) * mask[..., None]
        return {"h": h, "ids": ids + 1, "any": h.sum(-1) > 0, "best": h.argmax(-1)}


def test_integers_and_truth_values_go_in_and_out() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    ids, mask = torch.arange(10).view(2, 5), torch.arange(10).view(2, 5) % 3 > 0
    found = deploy(model, model, (ids, mask), runtimes=["mnn"], threads=1, runs=30, min_seconds=0.0)
    assert [r.runtime for r in found.rows] == ["mnn"] and found.rows[0].pruned.error < 1e-5
    far = deploy(model, model, (ids, mask.long() * 2**40), runtimes=["mnn"], threads=1, runs=30, min_seconds=0.0)
    assert not far.rows and "integers of 32 bits only" in far.absent[0].reason


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_the_exported_file_computes_what_the_model_computes(zeros: float, tmp_path: Path) -> None:
    model = net(zeros, 4)
    done = export(model, pixels(), tmp_path / "m.mnn", "mnn")
    assert done.files == (tmp_path / "m.mnn",) == tuple(tmp_path.iterdir())
    assert done.bytes == done.path.stat().st_size and done.error is not None and done.error < 1e-5
    assert bool(done.notes) == bool(zeros)
    # Another example than the one it was written with, by MNN alone.
    library: Any = importlib.import_module("MNN")
    other = pixels().flip(0) * 2
    names = (
        [i.name for i in _onnx_of(model, tmp_path).graph.input],
        [o.name for o in _onnx_of(model, tmp_path).graph.output],
    )
    module = library.nn.load_module_from_file(str(done.path), *names)
    given = library.expr.const(other.numpy(), list(other.shape), library.expr.NCHW)
    found = torch.as_tensor(module.forward([given])[0].read().copy())
    with torch.no_grad():
        torch.testing.assert_close(found, model(other), rtol=1e-4, atol=1e-5)


def _onnx_of(model: nn.Module, folder: Path) -> Any:
    export(model, pixels(), folder / "names.onnx", "onnx")
    return importlib.import_module("onnx").load(str(folder / "names.onnx"))


class Turned(nn.Module):
    """A Fourier transform, which MNN has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


def test_what_it_cannot_translate_is_named(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"MNN cannot translate .*DFT"):
        export(Turned(), torch.randn(4, 8), tmp_path / "m.mnn", "mnn")
    assert not list(tmp_path.iterdir())
    (tmp_path / "odd.onnx").write_text("no model")
    with pytest.raises(StructureError, match=r"MNN cannot translate the ONNX file: .*not onnx"):
        mnn_.write_mnn(tmp_path / "odd.onnx", tmp_path / "m.mnn")
    assert [f.name for f in tmp_path.iterdir()] == ["odd.onnx"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    made = subject(net(), pixels(), tmp_path)
    (tmp_path / "bad.mnn").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(PrunusError, match="MNN cannot"):
        mnn_.session_of(tmp_path / "bad.mnn", made, made.named(), 1)


def test_nothing_but_the_answer_is_printed_and_no_tools_of_its_maker_run() -> None:
    told = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from prunus.deploy import deploy\n"
        "m = nn.Sequential(nn.Linear(8, 8)).eval()\n"
        "found = deploy(m, m, torch.ones(1, 8), runtimes=['mnn'], threads=1, runs=30, min_seconds=0.0)\n"
        "print([r.runtime for r in found.rows], [n for n in sys.modules if n.startswith(('MNN.tools', 'aliyun'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout == "['mnn'] []\n"


def test_the_thread_computes_with_small_numbers_afterwards(tmp_path: Path) -> None:
    made = subject(net(), pixels(), tmp_path)
    session: Session = runtimes.named("mnn").open(made, 1)
    session.run()
    assert float(torch.tensor(1e-40) * 1) != 0
