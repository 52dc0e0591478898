"""The list of networks: it holds what it should, its quick ones are proved, and the results are what it says."""

from __future__ import annotations

import os
import time
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.networks import judge as judging
from tests.graph.networks.catalog import BY_NAME, NETWORKS
from tests.graph.networks.entry import Network, words
from tests.graph.networks.judge import OUTCOMES, Verdict, judge

LEAST = {
    "torchvision": 80, "segmentation": 6, "detection": 5, "timm": 60, "transformers": 40, "images": 3, "sequences": 3,
    "graphs": 2,
}  # fmt: skip
TIMM = words("""
convnext* swin_* swinv2_* deit_* vit_* vit_relpos* deit3* efficientnet_b* *efficientnetv2* *efficientnet_lite*
mobilenetv2* mobilenetv3* mobilenetv4* regnet* densenet* dpn* inception* resnest* res2n* seresnet* *eca* skres*
ghostnet* shvit* *nfnet* repvgg* mixer* resmlp* gmlp* maxvit* coatnet* levit* efficientformer* edgenext* poolformer*
pvt* twins* cait* xcit* beit* hrnet* csp* *vovnet*
""")
TRANSFORMERS = words("""
Bert Roberta DistilBert Albert Deberta DebertaV2 Electra GPT2 GPTNeoX OPT Bloom Llama Mistral Qwen2 Qwen3 Gemma2 Gemma3
Phi Falcon Mixtral Qwen2Moe Qwen3Moe T5 Bart Whisper Wav2Vec2 ViT Swin CLIP Segformer Detr Mamba
""")
FAST = [network for network in NETWORKS if network.fast]
KINDS = {"channel", "neuron", "head", "kv group", "width", "expert", "block"}


def named(*networks: Network) -> list[Any]:
    return [pytest.param(network, id=network.name) for network in networks]


def test_the_list_is_as_long_as_it_should_be() -> None:
    assert len(BY_NAME) == len(NETWORKS)
    for family, least in LEAST.items():
        assert sum(network.family == family for network in NETWORKS) >= least, family
    assert all(set(network.prunes) <= KINDS for network in NETWORKS)
    assert all(network.reason for network in NETWORKS if network.expected == "refused")


def test_it_holds_every_classification_network_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    listed = {network.name.partition("/")[2] for network in NETWORKS if network.family == "torchvision"}
    assert listed >= set(models.list_models(module=models))


@pytest.mark.parametrize("pattern", TIMM)
def test_it_holds_every_kind_of_timm_network(pattern: str) -> None:
    assert any(fnmatch(network.name, f"timm/{pattern}") for network in NETWORKS)


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_it_holds_every_architecture_of_transformers(architecture: str) -> None:
    assert any(fnmatch(network.name, f"transformers/{architecture}[FLM]*") for network in NETWORKS)


def fits(network: Network, verdict: Verdict) -> str:
    """What of a verdict is not as the list says; empty where all is."""
    if network.expected == "refused":
        as_said = verdict.outcome == "unchanged" and network.reason in verdict.reason
        return "" if as_said else f"{network.name}: not refused for {network.reason!r}, but {verdict}"
    if verdict.outcome != "equal":
        return f"{network.name}: {verdict.outcome}: {verdict.reason}"
    missing = set(network.prunes) - set(verdict.kinds)
    return f"{network.name}: no {', '.join(sorted(missing))} can be pruned" if missing else ""


@pytest.mark.parametrize("network", named(*FAST))
def test_quick_networks(network: Network) -> None:
    if (source := network.name.partition("/")[0]) != "other":
        pytest.importorskip(source)
    verdict = judge(network)
    assert not fits(network, verdict), verdict


def results() -> dict[str, Verdict]:
    from tests.graph import sweep

    return sweep.load()


def test_every_network_has_a_result_and_none_is_wrong_or_crashes() -> None:
    found = results()
    assert set(found) == set(BY_NAME)
    assert not {name: v.reason for name, v in found.items() if v.outcome in ("wrong", "crash")}
    assert {v.outcome for v in found.values()} <= set(OUTCOMES)


def test_the_results_are_what_the_list_expects() -> None:
    found = results()
    assert not [problem for network in NETWORKS if (problem := fits(network, found[network.name]))]
    assert sum(v.outcome == "equal" for v in found.values()) >= 0.95 * len(NETWORKS)


def test_convolutional_networks_shrink_to_the_unit() -> None:
    found = results()
    plain = [
        n for n in NETWORKS if n.prunes == ("channel",) and n.family in ("torchvision", "segmentation", "detection")
    ]
    assert len(plain) > 70 and not [n.name for n in plain if found[n.name].macs[1] != found[n.name].promised]


def test_the_page_shows_the_results() -> None:
    from tests.graph import sweep

    assert sweep.PAGE.read_text(encoding="utf-8") == sweep.markdown(), "make networks ARGS=--markdown"


# The judge and the runner themselves


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x)))
        return out


class OnlyRuns(Small):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("not made for training")
        return super().forward(x)


class Forever(Small):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = x + 1


class Boundless(Small):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(10**14)


class Abrupt(Small):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(3)


def network(kind: type[nn.Module]) -> Network:
    return Network(f"other/{kind.__name__}", "graphs", kind, lambda: torch.randn(2, 4), prunes=("neuron",))


def test_the_judge_counts_what_it_removed() -> None:
    verdict = judge(network(Small))
    assert (verdict.outcome, verdict.kinds, verdict.units) == ("equal", {"neuron": 1}, {"neuron": 6})
    assert verdict.params == (6 * 4 + 6 + 3 * 6 + 3, 3 * 4 + 3 + 3 * 3 + 3)
    assert verdict.macs == (6 * 4 + 3 * 6, 3 * 4 + 3 * 3) and verdict.promised == verdict.macs[1]
    assert Verdict.read(verdict.plain()) == verdict


def test_the_judge_sees_a_training_step_that_fails() -> None:
    verdict = judge(network(OnlyRuns))
    assert verdict.outcome == "crash" and "not made for training" in verdict.reason


def test_the_judge_sees_counts_that_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "predicted", lambda model, structure: {n: (1,) for n, _ in model.named_parameters()})
    verdict = judge(network(Small))
    assert verdict.outcome == "wrong" and verdict.reason.startswith("count: a.weight")


def test_the_runner_survives_what_its_networks_do() -> None:
    from tests.graph import sweep

    kinds = (Small, Forever, Boundless, Abrupt)
    start = time.monotonic()
    found = dict(sweep.sweep([network(kind) for kind in kinds], jobs=2, seconds=5, gigabytes=64))
    outcomes = {n.name.partition("/")[2]: v.outcome for n, v in found.items()}
    assert outcomes == {"Small": "equal", "Forever": "timeout", "Boundless": "too large", "Abrupt": "crash"}
    assert time.monotonic() - start < 300
