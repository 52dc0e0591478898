"""A model that lies on several devices: pruned where it lies, with the values of one that lies on the CPU.

The devices are pretended ones (`tests/engine/pretend.py`): they refuse to meet as real ones do. On a machine with two
GPUs or more the same is tried on them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, Session, Task
from prunus.core.errors import WeightsError
from prunus.engine.crew import Crew
from prunus.engine.walk import Call, called
from tests.engine.pretend import Elsewhere, elsewhere, placed
from tests.stream.test_folder import batches_for, network

GPUS = torch.cuda.device_count()


class Layered(nn.Module):
    """Model-parallel by hand: what reaches a layer is moved to where the layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8, bias=False)) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x.to(layer[0].weight.device)  # type: ignore[index]
            x = x + layer(x)
        return self.head(x.to(self.head.weight.device))


def spread(model: nn.Module, kind: str) -> nn.Module:
    """A copy with its layers on two devices in turns."""
    made: Any = copy.deepcopy(model)
    for i, layer in enumerate(made.layers):
        placed(layer, f"{kind}:{i % 2}")
    placed(made.head, f"{kind}:1")
    return made


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.inner if isinstance(p, Elsewhere) else p.detach().cpu() for n, p in model.named_parameters()}


def places(model: nn.Module) -> dict[str, torch.device]:
    return {n: p.device for n, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def pruned(model: nn.Module, task: Task, method: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prunus.prune(model, task, method, sparsity=0.5).model


def test_pretended_devices_do_not_meet() -> None:
    with elsewhere():
        a, b = torch.ones(2, device="xpu:0"), torch.ones(2).to("xpu:1")
        assert a.device == torch.device("xpu", 0) and (a + a * torch.tensor(2.0)).device == a.device
        for act in (lambda: a + b, lambda: a + torch.ones(2), lambda: torch.cat([a, b]), lambda: a * b.sum()):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                act()
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            a.numpy()
        assert torch.equal((a.to("xpu:1") + b).to("cpu"), torch.full((2,), 2.0))


OFTEN = ("wanda", "sparsegpt", "besa", "owl", "gblm", "magnitude")
RARELY = ("alps", "dsnot", "ria", "wanda_pp", "obd", "opd")
METHODS = [*OFTEN, *(pytest.param(m, marks=pytest.mark.slow) for m in RARELY)]


@pytest.mark.parametrize("method", METHODS)
def test_layers_on_two_devices(method: str) -> None:
    torch.manual_seed(0)
    model, batches = Layered(), [torch.randn(6, 8) for _ in range(3)]
    task = Task(calib=batches, loss=lambda m, x: m(x).square().mean())
    alone = pruned(model, task, method)
    with elsewhere():
        two = spread(model, "xpu")
        found = pruned(two, task, method)
        assert equal(numbers(found), numbers(alone)) and places(found) == places(two)
        assert equal(numbers(two), numbers(model))


@pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} GPUs here: two at least are needed")
@pytest.mark.parametrize("method", METHODS)
def test_layers_on_two_gpus(method: str) -> None:
    torch.manual_seed(0)
    model, batches = Layered(), [torch.randn(6, 8) for _ in range(3)]
    task = Task(calib=batches, loss=lambda m, x: m(x).square().mean())
    alone = pruned(copy.deepcopy(model).to("cuda:0"), task=_there(task, "cuda:0"), method=method)
    two = spread(model, "cuda")
    found = pruned(two, task, method)
    assert equal(numbers(found), numbers(alone)) and places(found) == places(two)


def _there(task: Task, device: str) -> Task:
    assert task.calib is not None
    return Task(calib=[b.to(device) for b in task.calib], loss=task.loss)


def hooked(model: nn.Module, kind: str) -> nn.Module:
    """A copy whose layers lie on two devices, as accelerate's `dispatch_model` leaves them."""
    hooks = pytest.importorskip("accelerate.hooks")
    made: Any = copy.deepcopy(model)
    for i, layer in enumerate(made.model.layers):
        placed(layer, f"{kind}:{i % 2}")
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook(execution_device=f"{kind}:{i % 2}", io_same_device=True))
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_layers_that_hooks_feed(kind: str, method: str) -> None:
    pytest.importorskip("transformers")
    model, task = network(kind), Task(calib=batches_for(kind))
    alone = pruned(model, task, method)
    with elsewhere():
        two = hooked(model, "xpu")
        found = pruned(two, task, method)
        assert equal(numbers(found), numbers(alone)) and places(found) == places(two)
        assert {p.type for p in places(found).values()} == {"xpu", "cpu"}
        assert equal(numbers(two), numbers(model))
        outputs = [m(**batches_for(kind)[0]).logits for m in (found, alone)]
        assert torch.equal(*outputs)


def dispatched(model: nn.Module, layers: list[str], folder: Path) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    outside = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    where = dict.fromkeys(outside, "cpu") | {f"model.layers.{i}": place for i, place in enumerate(layers)}
    made: nn.Module = accelerate.dispatch_model(
        copy.deepcopy(model), device_map=where, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )
    return made


def offloaded(model: nn.Module, folder: Path) -> nn.Module:
    made: nn.Module = pytest.importorskip("accelerate").cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    return made


def test_a_dispatched_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, task = network("llama"), Task(calib=batches_for("llama"))
    given = dispatched(model, ["cpu"] * 3, tmp_path)
    found: Any = pruned(given, task, "sparsegpt")
    assert equal(numbers(found), numbers(pruned(model, task, "sparsegpt"))) and equal(numbers(given), numbers(model))
    assert found.hf_device_map["model.layers.1"] == "cpu" and found.model.layers[1]._hf_hook is not None
    with torch.no_grad():  # the hooks of the copy run the copy
        found.model.layers[0].self_attn.o_proj.weight.zero_()
    ids = batches_for("llama")[0]
    assert not torch.equal(found(**ids).logits, given(**ids).logits)
    assert torch.equal(given(**ids).logits, model(**ids).logits)


@pytest.mark.parametrize(
    "offload", [offloaded, lambda model, folder: dispatched(model, ["cpu", "disk", "disk"], folder)]
)
def test_weights_that_wait_elsewhere_are_named(offload: Callable[[nn.Module, Path], nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, ids = network("llama"), batches_for("llama")
    given = offload(model, tmp_path)
    with pytest.raises(WeightsError, match=r"model\.layers\..*have no values here, they are on the meta device"):
        prunus.prune(given, Task(calib=ids), "sparsegpt", sparsity=0.5)
    assert torch.equal(given(**ids[0]).logits, model(**ids[0]).logits)


@pytest.mark.parametrize(("method", "sweep"), [("wanda", "model"), ("sparsegpt", "model"), ("sparsegpt", "blocks")])
def test_a_crew_keeps_devices_apart(method: str, sweep: Any) -> None:
    """As one block, or one that is a list of blocks itself, of which the crew has no copies."""
    recipe = replace(prunus.methods.get(method), sweep=sweep)
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    calls = [Call((torch.randn(6, 8),), {}) for _ in range(5)]

    def solved(one: nn.Module, calls: list[Call], crew: Crew | None) -> nn.Module:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            session = Session(one, recipe, Task(calib=calls, forward=called), Budget(density=0.5))
            session.is_block, session.crew = True, crew
            session.start()
        return one

    alone = solved(copy.deepcopy(block), calls, None)
    with elsewhere(), Crew(["xpu:0", "xpu:1"]) as crew:
        there = placed(copy.deepcopy(block), "xpu:0")
        crew.take_up(there)
        found = solved(there, [Call((c.args[0].to("xpu:0"),), {}) for c in calls], crew)
        assert equal(numbers(found), numbers(alone)) and set(map(str, places(found).values())) == {"xpu:0"}
        assert set(crew.slots.values()) == ({0, 1} if (method, sweep) == ("sparsegpt", "model") else set())
        outputs = list(crew.each(lambda one, call: (one(*call.args), next(one.parameters()).device), calls))
        assert [str(place) for _, place in outputs] == [f"xpu:{i % 2}" for i in range(5)]
        assert all(torch.equal(y.to("cpu"), alone(*c.args)) for (y, _), c in zip(outputs, calls, strict=True))
