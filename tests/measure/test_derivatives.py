"""Hessian and tangent spectra, Jacobian values and gradient flow, against explicit matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prunus import Task, measure
from prunus.core.errors import DataError, SpecError
from prunus.measure.curvature import lanczos
from prunus.measure.derivatives import zeros_as_masks


class Net(nn.Module):
    """4 -> 5 -> 3 with a smooth bend, batch normalization that must not learn here, and dropout that must not drop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


TASK = Task(loss=loss)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net().double().train()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 4, generator=draw, dtype=torch.float64)
    return [(x[i], torch.randint(3, (6,), generator=draw)) for i in range(2)]


def flat_loss(net: nn.Module, batches: list[tuple[Tensor, Tensor]], theta: Tensor) -> Tensor:
    """The mean loss as a function of one flat vector of parameters."""
    shapes = {n: p.shape for n, p in net.named_parameters()}
    parts = theta.split([s.numel() for s in shapes.values()])
    given = {n: t.view(s) for (n, s), t in zip(shapes.items(), parts, strict=True)}
    return torch.stack([F.cross_entropy(functional_call(net, given, (x,)), y) for x, y in batches]).mean()


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def explicit_hessian(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    net.eval()
    found = torch.autograd.functional.hessian(lambda t: flat_loss(net, batches, t), flat(net))
    net.train()
    return found  # type: ignore[return-value]


def prune_(net: Net) -> dict[str, Tensor]:
    """Half of the first layer's weights go; the masks as flat flags in the order of the parameters."""
    with torch.no_grad():
        net.first.weight[::2] = 0.0
        net.first.weight[1, 1] = 0.0
    return zeros_as_masks(net)


def flags(net: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([masks.get(n, torch.ones_like(p, dtype=torch.bool)).flatten() for n, p in net.named_parameters()])


def test_every_eigenvalue_of_a_small_hessian(net: Net, batches: list[tuple[Tensor, Tensor]]) -> None:
    values = torch.linalg.eigvalsh(explicit_hessian(net, batches))
    found = measure.hessian_spectrum(net, TASK, batches, top=4)
    assert found.exact and found.size == len(values) == found.loss_products
    assert torch.tensor([v for v, _ in found.nodes], dtype=torch.float64).sub(values).abs().max() < 1e-12
    assert torch.tensor(found.largest, dtype=torch.float64).sub(values.flip(0)[:4]).abs().max() < 1e-12
    assert torch.tensor(found.smallest, dtype=torch.float64).sub(values[:4]).abs().max() < 1e-12
    assert found.trace == pytest.approx(float(values.sum())) and found.trace_error == 0.0
    floor = 1e-2 * float(values.abs().max())
    assert found.negative == pytest.approx(float((values < -floor).double().mean()))
    assert net.training and net.norm.num_batches_tracked == 0 and all(p.grad is None for p in net.parameters())


def test_lanczos_finds_the_ends_the_trace_and_where_the_rest_lies(
    net: Net, batches: list[tuple[Tensor, Tensor]]
) -> None:
    values = torch.linalg.eigvalsh(explicit_hessian(net, batches))
    told: list[tuple[int, int]] = []
    found = measure.hessian_spectrum(
        net, TASK, batches, top=2, iterations=24, probes=4, limit=0, told=lambda *a: told.append(a)
    )
    assert not found.exact and found.loss_products == len(told) <= 4 * 24
    for got, error, want in zip(found.largest, found.largest_error, values.flip(0), strict=False):
        assert abs(got - float(want)) <= error + 1e-10 and error < 1e-3
    assert found.smallest[0] == pytest.approx(float(values[0]), abs=1e-4)
    assert abs(found.trace - float(values.sum())) < 3 * found.trace_error < 8.0
    assert sum(s for _, s in found.nodes) == pytest.approx(1.0)
    # The share of eigenvalues above a value, by quadrature and by counting.
    assert sum(s for v, s in found.nodes if v > 0.05) == pytest.approx(float((values > 0.05).double().mean()), abs=0.15)
    grid = torch.linspace(float(values[0]) - 1, float(values[-1]) + 1, 2001, dtype=torch.float64)
    area = torch.trapezoid(torch.tensor(found.density(grid.tolist(), 0.05), dtype=torch.float64), grid)
    assert float(area) == pytest.approx(1.0, abs=1e-3)
    few = [measure.hessian_spectrum(net, TASK, batches, iterations=3, probes=2, limit=0, seed=s) for s in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    one = measure.hessian_spectrum(net, TASK, batches, iterations=5, probes=1, limit=0)
    assert math.isnan(one.trace_error) and len(one.nodes) == 5


def test_a_sparse_network_has_the_block_of_what_is_kept(net: Net, batches: list[tuple[Tensor, Tensor]]) -> None:
    masks = prune_(net)
    where = flags(net, masks)
    block = explicit_hessian(net, batches)[where][:, where]
    found = measure.hessian_spectrum(net, TASK, batches, kept=masks)
    assert found.size == int(where.sum()) == len(where) - 13
    assert found.largest[0] == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-10)


def test_lanczos_stops_where_the_space_ends() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.0], dtype=torch.float64))
    found = lanczos(lambda v: matrix @ v, torch.ones(4, dtype=torch.float64), 4)
    assert found.values.tolist() == pytest.approx([0.0, 1.0, 3.0], abs=1e-12)  # 3 twice, found once
    assert found.shares.tolist() == pytest.approx([0.25, 0.25, 0.5]) and float(found.residuals.max()) < 1e-15
    assert lanczos(lambda v: 0 * v, torch.ones(3, dtype=torch.float64), 3).values.tolist() == [0.0]


def test_gradient_flow_is_the_squared_norm_of_what_may_move(net: Net, batches: list[tuple[Tensor, Tensor]]) -> None:
    masks = prune_(net)
    net.eval()
    theta = flat(net).requires_grad_(True)
    value = flat_loss(net, batches, theta)
    (grad,) = torch.autograd.grad(value, theta)
    value = value.detach()
    found = measure.gradient_flow(net, TASK, batches, kept=masks)
    assert found.loss == pytest.approx(float(value)) and found.whole == pytest.approx(float(grad.square().sum()))
    assert found.flow == pytest.approx(float(grad[flags(net, masks)].square().sum())) and found.flow < found.whole
    assert found.layers["last.bias"] == pytest.approx(float(grad[-3:].square().sum()))
    assert sum(found.layers.values()) == pytest.approx(found.flow) and found.parameters == len(theta) - 13
    # The first-order fall of the loss along a small step.
    step = 1e-6
    ahead = flat_loss(net, batches, (theta - step * grad).detach())
    assert (float(value) - float(ahead)) / step == pytest.approx(found.whole, rel=1e-4)


@pytest.mark.parametrize("outputs", ["each", "sum"])
def test_the_tangent_kernel_is_the_jacobian_times_itself(
    net: Net, batches: list[tuple[Tensor, Tensor]], outputs: str
) -> None:
    masks, x = prune_(net), batches[0][0]
    net.eval()

    def out(theta: Tensor) -> Tensor:
        shapes = {n: p.shape for n, p in net.named_parameters()}
        parts = theta.split([s.numel() for s in shapes.values()])
        y = functional_call(net, {n: t.view(s) for (n, s), t in zip(shapes.items(), parts, strict=True)}, (x,))
        return y.flatten() if outputs == "each" else y.sum(1)

    jacobian = torch.autograd.functional.jacobian(out, flat(net))[:, flags(net, masks)]  # type: ignore[index]
    found = measure.tangent_kernel(net, TASK, batches[0], kept=masks, outputs=outputs)  # type: ignore[arg-type]
    assert found.matrix.sub(jacobian @ jacobian.T).abs().max() < 1e-12
    assert found.eigenvalues[0] == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]) ** 2)
    assert found.trace == pytest.approx(float(jacobian.square().sum())) and found.examples == 6
    assert found.condition > 1 and found.parameters == jacobian.shape[1]


def test_singular_values_are_those_of_every_example(net: Net, batches: list[tuple[Tensor, Tensor]]) -> None:
    x = batches[0][0]
    net.eval()
    wanted = [torch.linalg.svdvals(torch.autograd.functional.jacobian(net, e[None])[0, :, 0]) for e in x]  # type: ignore[index]
    found = measure.jacobian_values(net, TASK, batches[0])
    assert found.values.sub(torch.stack(wanted)).abs().max() < 1e-12 and (found.outputs, found.inputs) == (3, 4)
    assert found.mean == pytest.approx(float(torch.stack(wanted).mean()))
    assert found.largest == float(found.values.max()) and found.smallest == float(found.values.min())
    isometry = nn.Linear(4, 4, bias=False)
    nn.init.orthogonal_(isometry.weight)
    ones = measure.jacobian_values(isometry, Task(), (torch.randn(3, 4), None))
    assert ones.values.sub(1).abs().max() < 1e-6


def test_what_has_no_derivative_is_refused(net: Net, batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(DataError, match="no batch"):
        measure.gradient_flow(net, TASK, [])
    with pytest.raises(SpecError, match="1 or more"):
        measure.hessian_spectrum(net, TASK, batches, top=0)
    with pytest.raises(SpecError, match="belongs to no trained parameter"):
        measure.gradient_flow(net, TASK, batches, kept={"first.weight": torch.ones(2, 2)})
    nothing = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    with pytest.raises(SpecError, match="keep nothing"):
        measure.hessian_spectrum(net, TASK, batches, kept=nothing)
    with pytest.raises(SpecError, match="floating numbers"):
        measure.jacobian_values(net, TASK, (torch.zeros(2, 4, dtype=torch.long), None))
    with pytest.raises(DataError, match="not finite"):
        measure.gradient_flow(net, TASK, [(torch.full((2, 4), math.nan, dtype=torch.float64), batches[0][1][:2])])
    with pytest.raises(DataError, match="not finite"):
        measure.tangent_kernel(net, TASK, (torch.full((2, 4), math.inf, dtype=torch.float64), None))
    net.requires_grad_(False)
    with pytest.raises(SpecError, match="requires a gradient"):
        measure.tangent_kernel(net, TASK, batches[0])


def test_attention_has_a_second_derivative_here() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True).double()
    task = Task(loss=lambda model, batch: model(batch).square().mean())
    found = measure.hessian_spectrum(
        net, task, [torch.randn(2, 3, 4, dtype=torch.float64)], limit=0, iterations=4, probes=1
    )
    assert found.largest[0] > 0
