"""The other kinds of sweep over the list: what they found is on record, and nothing of it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.core.errors import StructureError
from tests.graph import sweep
from tests.graph.networks import exported_sweep, onnx_sweep
from tests.graph.networks.catalog import BY_NAME, NETWORKS
from tests.graph.networks.entry import Network
from tests.graph.networks.stays import STAYS

HEADS = [name for kinds, names in STAYS.items() if "head" in kinds for name in names]


@pytest.mark.parametrize("name", sweep.KINDS)
def test_no_result_of_any_kind_is_bad(name: str) -> None:
    kind = sweep.KINDS[name]
    found = sweep.load(kind.results, kind)
    assert found and set(found) <= set(BY_NAME)
    assert not {name: v.reason for name, v in found.items() if v.outcome in kind.bad}
    assert {v.outcome for v in found.values()} <= set(kind.outcomes)


def test_exported_graphs_offer_the_heads_that_stay_whole_on_a_class() -> None:
    found = sweep.load(exported_sweep.KIND.results, exported_sweep.KIND)
    asked = {network.name for network in exported_sweep.asked(NETWORKS)}
    wanted, missing = asked & set(HEADS), asked - set(found)
    assert not missing, f"python -m tests.graph.sweep --exported has not run for {sorted(missing)}"
    with_heads = {name for name in wanted if {"head", "kv group"} & set(found[name].kinds)}
    assert len(with_heads) >= 0.8 * len(wanted), sorted(wanted - with_heads)


@pytest.mark.parametrize("name", ["other/seq2seq_transformer", "timm/vit_relpos_small_patch16_224"])
def test_quick_networks_as_exported_graphs(name: str) -> None:
    if (source := name.partition("/")[0]) != "other":
        pytest.importorskip(source)
    verdict = exported_sweep.judge(BY_NAME[name])
    assert verdict.outcome == "equal" and verdict.batch == "free" and {"head", "neuron"} <= set(verdict.kinds), verdict


@pytest.mark.parametrize("name", ["other/denoiser", "other/gru"])
def test_quick_networks_as_onnx(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    verdict = onnx_sweep.judge(BY_NAME[name])
    assert verdict.outcome == "equal" and verdict.small is not None and verdict.small < 1e-4, verdict


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x)))
        return out


NET = Network("other/net", "graphs", Net, lambda: torch.randn(2, 4), prunes=("neuron",))


def test_a_compact_network_that_is_not_exported_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    real = onnx_sweep.export_onnx

    def only_dense(model: Net, example: Tensor, path: Path) -> object:
        if model.a.out_features != 6:
            raise StructureError("no")
        return real(model, example, path)

    monkeypatch.setattr(onnx_sweep, "export_onnx", only_dense)
    assert onnx_sweep.judge(NET).outcome == "not exported" and "not exported" in onnx_sweep.KIND.bad


def test_a_graph_that_computes_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = exported_sweep.exported

    def shifted(model: nn.Module, example: Tensor) -> nn.Module:
        return nn.Sequential(real(model, example), nn.Sigmoid())

    monkeypatch.setattr(exported_sweep, "exported", shifted)
    assert exported_sweep.judge(NET).outcome == "wrong"
