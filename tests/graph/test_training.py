"""An optimizer that goes along with a compacted model: kept weights take the steps of the masked model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Budget, Session, Task, methods
from prunus.core.errors import SpecError, StructureError
from prunus.graph import Edit, compact, compact_optimizer, compact_optimizer_, masked_, trace
from tests.graph.proof import some

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam without foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.002, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


class Small(nn.Module):
    """Convolutions with batch normalization and a tied pair of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 10, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(10)
        self.one = nn.Linear(10, 10)
        self.two = nn.Linear(10, 10)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.fc(self.one(x) + torch.tanh(self.two(x)))


Step = tuple[Tensor, Tensor]


def batches(n: int, seed: int = 0) -> list[Step]:
    dice = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(6, 2, 6, 6, generator=dice, dtype=torch.float64),
            torch.randint(3, (6,), generator=dice),
        )
        for _ in range(n)
    ]


def train(model: nn.Module, optimizer: Any, data: list[Step], masks: dict[str, Tensor], scheduler: Any = None) -> None:
    """A loop that holds masks: gradients before the step, weights after it."""
    parameters = dict(model.named_parameters())
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, keep in masks.items():
            parameters[name].grad.mul_(keep)
        optimizer.step()
        with torch.no_grad():
            for name, keep in masks.items():
                parameters[name].mul_(keep)
        if scheduler is not None:
            scheduler.step()


def pruned() -> tuple[nn.Module, tuple[Any, ...], dict[str, Tensor], dict[str, Tensor]]:
    """A masked model in training mode, its groups, its unit masks and the masks of its parameters."""
    torch.manual_seed(0)
    model = Small().double()
    structure = trace(model, batches(1)[0][0])
    masks = some(structure, 0.4)
    masked_(model, structure.groups, masks)
    names = dict(model.named_parameters())
    laid: dict[str, Tensor] = {}
    for group in structure.groups:
        for member in group.with_role("out", "in", "scale", "shift", "bias"):
            keep = group.spread(member, masks[group.name], names[member.param].shape)
            laid[member.param] = laid.get(member.param, torch.ones_like(keep)) & keep
    return model.train(), structure.groups, masks, laid


def kept(tensor: Tensor, name: str, edits: tuple[Edit, ...]) -> Tensor:
    for edit in edits:
        if edit.target == name and edit.dim is not None:
            tensor = tensor.index_select(edit.dim, edit.positions())
    return tensor


def check_equal(masked: nn.Module, small: nn.Module, edits: tuple[Edit, ...]) -> None:
    """Every parameter and buffer of the compact model is the kept part of the masked one's."""
    own = dict(small.named_parameters()) | dict(small.named_buffers())
    for name, tensor in (dict(masked.named_parameters()) | dict(masked.named_buffers())).items():
        torch.testing.assert_close(own[name], kept(tensor, name, edits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_in_the_masked_model(kind: str, in_place: bool) -> None:
    model, groups, masks, laid = pruned()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, batches(4), laid)
    small, edits = compact(model, groups, masks)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    twin = copy.deepcopy((model, optimizer)) if in_place else (model, optimizer)
    move = compact_optimizer_ if in_place else compact_optimizer
    follower = move(optimizer, model, small, edits)
    assert type(follower) is type(optimizer) and (follower is optimizer) is in_place
    assert {id(p) for g in follower.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    more = batches(5, seed=1)
    train(*twin, more, laid)
    before = copy.deepcopy(small.state_dict())
    train(small, follower, more, {})
    check_equal(twin[0], small, edits)
    assert all(not torch.equal(before[n], p) for n, p in small.named_parameters() if p.dim() > 1)
    assert small.one.weight is small.two.weight


def test_a_new_optimizer_would_jump() -> None:
    """The check above is able to fail."""
    model, groups, masks, laid = pruned()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, batches(4), laid)
    small, edits = compact(model, groups, masks)
    more = batches(2, seed=1)
    train(model, optimizer, more, laid)
    train(small, OPTIMIZERS["adam"](small.parameters()), more, {})
    with pytest.raises(AssertionError):
        check_equal(model, small, edits)


def test_the_old_optimizer_is_untouched() -> None:
    model, groups, masks, laid = pruned()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train(model, optimizer, batches(2), laid)
    before = copy.deepcopy(optimizer.state_dict())
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    small, edits = compact(model, groups, masks)
    train(small, compact_optimizer(optimizer, model, small, edits), batches(2), {})
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert held == [id(p) for g in optimizer.param_groups for p in g["params"]]
    for index, state in before["state"].items():
        assert torch.equal(state["momentum_buffer"], after["state"][index]["momentum_buffer"])


def test_groups_and_their_options_are_kept() -> None:
    model, groups, masks, _ = pruned()
    convolutions = [(n, p) for n, p in model.named_parameters() if "conv" in n]
    others = [(n, p) for n, p in model.named_parameters() if "conv" not in n]
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW(
        [
            {"params": convolutions, "lr": torch.tensor(0.5), "weight_decay": 0.0},
            {"params": [*others, ("loss.scale", other)], "betas": (0.5, 0.9)},
        ],
        lr=0.1,
        foreach=False,
    )
    small, edits = compact(model, groups, masks)
    follower = compact_optimizer(optimizer, model, small, edits)
    first, second = follower.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for n, p in small.named_parameters() if "conv" in n]
    assert first["param_names"] == [n for n, _ in convolutions]
    assert float(first["lr"]) == 0.5 and first["lr"] is not optimizer.param_groups[0]["lr"]
    assert (first["weight_decay"], second["weight_decay"], second["betas"]) == (0.0, 0.01, (0.5, 0.9))
    # What is no parameter of the model is trained on.
    assert second["params"][-1] is other


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_schedulers_go_on(in_place: bool) -> None:
    model, groups, masks, laid = pruned()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    train(model, optimizer, batches(4), laid, scheduler)
    small, edits = compact(model, groups, masks)
    masked, masked_optimizer, masked_scheduler = copy.deepcopy((model, optimizer, scheduler))
    if in_place:
        follower, following = compact_optimizer_(optimizer, model, small, edits), scheduler
    else:
        follower = compact_optimizer(optimizer, model, small, edits)
        following = torch.optim.lr_scheduler.CosineAnnealingLR(follower, 12)
        following.load_state_dict(scheduler.state_dict())
        for group, old in zip(follower.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = old["lr"]
    more = batches(6, seed=1)
    train(masked, masked_optimizer, more, laid, masked_scheduler)
    train(small, follower, more, {}, following)
    assert follower.param_groups[0]["lr"] == masked_optimizer.param_groups[0]["lr"] < 0.01
    check_equal(masked, small, edits)


def test_wrapped_optimizers_take_their_inner_one_along() -> None:
    class LookAhead(torch.optim.Optimizer):
        """Every second step goes back half of the way (Zhang et al. 2019, arXiv:1907.08610)."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner, self.count = inner, 0
            self.param_groups = inner.param_groups

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            self.inner.step()
            self.count += 1
            for p in (p for group in self.param_groups for p in group["params"]):
                slow = self.state[p].setdefault("slow", p.detach().clone())
                if self.count % 2 == 0:
                    p.copy_(slow.lerp_(p, 0.5))

    def begun() -> tuple[Any, ...]:
        model, groups, masks, laid = pruned()
        optimizer = LookAhead(OPTIMIZERS["adam"](model.parameters()))
        train(model, optimizer, batches(3), laid)
        return model, optimizer, groups, masks, laid

    more = batches(3, seed=1)
    masked, reference, _, _, laid = begun()
    train(masked, reference, more, laid)
    for move in (compact_optimizer, compact_optimizer_):
        model, optimizer, groups, masks, _ = begun()
        small, edits = compact(model, groups, masks)
        follower = move(optimizer, model, small, edits)
        assert follower.param_groups is follower.inner.param_groups and follower.count == 3
        assert (follower.inner is optimizer.inner) is (move is compact_optimizer_)
        train(small, follower, more, {})
        check_equal(masked, small, edits)


class Factored(torch.optim.Optimizer):
    """Keeps what it is told of every parameter; never steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], keep: Callable[[Tensor], dict[str, Any]]) -> None:
        super().__init__(parameters, {})
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p].update(keep(p.detach()))


def linear(rows: int, columns: int) -> tuple[nn.Module, nn.Module, tuple[Edit, ...]]:
    """A chain whose middle weight loses rows and columns."""
    model = nn.Sequential(nn.Linear(4, columns), nn.ReLU(), nn.Linear(columns, rows), nn.ReLU(), nn.Linear(rows, 3))
    structure = trace(model, torch.randn(2, 4))
    small, edits = compact(model, structure.groups, some(structure, 0.5))
    return model, small, edits


def test_factored_statistics_are_cut_along_the_axes_they_keep() -> None:
    model, small, edits = linear(6, 8)

    def keep(p: Tensor) -> dict[str, Any]:
        if p.dim() < 2:
            return {"step": torch.tensor(3.0), "exp_avg_sq": p.square(), "none": None, "names": ["a"]}
        return {
            "step": 3,
            "exp_avg_sq_row": p.square().mean(-1),
            "exp_avg_sq_col": p.square().mean(-2),
            "row_var": p.square().mean(-1, keepdim=True),
            "col_var": p.square().mean(-2, keepdim=True),
            "both": [p.clone(), (p.clone(),)],
        }

    optimizer = Factored(model.parameters(), keep)
    follower = compact_optimizer(optimizer, model, small, edits)
    old, new = optimizer.state[model[2].weight], follower.state[small[2].weight]
    rows, columns = (next(e for e in edits if (e.target, e.dim) == ("2.weight", d)).positions() for d in (0, 1))
    assert (len(rows), len(columns)) == (3, 4)
    assert torch.equal(new["exp_avg_sq_row"], old["exp_avg_sq_row"][rows])
    assert torch.equal(new["exp_avg_sq_col"], old["exp_avg_sq_col"][columns])
    assert torch.equal(new["row_var"], old["row_var"][rows]) and torch.equal(new["col_var"], old["col_var"][:, columns])
    assert torch.equal(new["both"][1][0], small[2].weight) and new["step"] == 3
    bias = follower.state[small[2].bias]
    assert torch.equal(bias["exp_avg_sq"], small[2].bias.square()) and float(bias["step"]) == 3
    assert bias["none"] is None and bias["names"] == ["a"]


def test_rows_and_columns_of_square_weights_are_told_by_name_or_refused() -> None:
    model, small, edits = linear(6, 6)
    named = Factored(
        model.parameters(),
        lambda p: {"exp_avg_sq_row": p.mean(-1), "exp_avg_sq_col": p.mean(-2)} if p.dim() == 2 else {},
    )
    follower = compact_optimizer(named, model, small, edits)
    state = named.state[model[2].weight]
    rows, columns = (next(e for e in edits if (e.target, e.dim) == ("2.weight", d)).positions() for d in (0, 1))
    assert not torch.equal(rows, columns)
    found = follower.state[small[2].weight]
    assert torch.equal(found["exp_avg_sq_row"], state["exp_avg_sq_row"][rows])
    assert torch.equal(found["exp_avg_sq_col"], state["exp_avg_sq_col"][columns])
    unnamed = Factored(model.parameters(), lambda p: {"sums": p.mean(-1)} if p.dim() == 2 else {})
    before = copy.copy(unnamed.state), list(unnamed.param_groups[0]["params"])
    with pytest.raises(StructureError, match=r"2\.weight: the state 'sums' is \(6,\)"):
        compact_optimizer_(unnamed, model, small, edits)
    assert unnamed.state == before[0] and all(
        a is b for a, b in zip(unnamed.param_groups[0]["params"], before[1], strict=True)
    )


def test_torch_adafactor_goes_along() -> None:
    model, groups, masks, laid = pruned()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, batches(2), laid)
    small, edits = compact(model, groups, masks)
    follower = compact_optimizer(optimizer, model, small, edits)
    train(small, follower, batches(2), {})
    weight = next(e for e in edits if e.target == "conv2.weight" and e.dim == 0)
    assert follower.state[small.conv2.weight]["col_var"].shape[0] == len(weight.positions())


class Stack(nn.Module):
    """Residual blocks, one of which is taken out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


def test_dropped_blocks_leave_the_optimizer() -> None:
    model = Stack().double()
    optimizer = torch.optim.Adam(list(model.named_parameters()), lr=0.01)
    x = torch.randn(5, 4, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    small = copy.deepcopy(model)
    del small.blocks[1]
    edits = (Edit("blocks.*", 0, 3, ((0, 1), (2, 3))),)
    follower = compact_optimizer(optimizer, model, small, edits)
    group = follower.param_groups[0]
    assert [id(p) for p in group["params"]] == [id(p) for p in small.parameters()]
    assert group["param_names"] == ["blocks.0.weight", "blocks.0.bias", "blocks.2.weight", "blocks.2.bias"]
    for new, old in ((0, 0), (1, 2)):
        state, before = follower.state[small.blocks[new].weight], optimizer.state[model.blocks[old].weight]
        assert torch.equal(state["exp_avg"], before["exp_avg"]) and state["exp_avg"] is not before["exp_avg"]
    assert len(follower.state) == 4
    follower.step()


def test_a_block_that_is_an_attribute_leaves_whole() -> None:
    model = Small()
    optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.1)
    small = copy.deepcopy(model)
    small.bn1 = nn.Identity()
    follower = compact_optimizer(optimizer, model, small, (Edit("bn1.*", 0, 0),))
    names = follower.param_groups[0]["param_names"]
    assert names == [n for n, _ in small.named_parameters()] and "bn1.weight" not in names
    assert [id(p) for p in follower.param_groups[0]["params"]] == [id(p) for p in small.parameters()]


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    model, groups, masks, laid = pruned()
    small, edits = compact(model, groups, masks)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, batches(1), laid)
    with pytest.raises(SpecError, match="none of the old model's parameters"):
        compact_optimizer(OPTIMIZERS["adam"](Small().parameters()), model, small, edits)
    with pytest.raises(StructureError, match=r"conv1\.weight is .* should be"):
        compact_optimizer(optimizer, model, small, edits[1:])
    with pytest.raises(StructureError, match="missing in the new model"):
        compact_optimizer(optimizer, model, nn.Linear(2, 2), edits)
    with pytest.raises(StructureError, match="L-BFGS"):
        compact_optimizer_(torch.optim.LBFGS(model.parameters()), model, small, edits)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    compact_optimizer_(optimizer, model, small, edits)
    with pytest.raises(SpecError, match="compacted already"):
        compact_optimizer_(optimizer, model, small, edits)


def test_accelerate_wrappers_are_looked_through() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, groups, masks, laid = pruned()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    accelerate.Accelerator(cpu=True)
    wrapped = accelerate.optimizer.AcceleratedOptimizer(optimizer)
    train(model, wrapped, batches(2), laid)
    small, edits = compact(model, groups, masks)
    masked, reference = copy.deepcopy((model, optimizer))
    compact_optimizer_(wrapped, model, small, edits)
    train(masked, reference, batches(3, seed=1), laid)
    train(small, wrapped, batches(3, seed=1), {})
    check_equal(masked, small, edits)


def test_a_result_takes_the_optimizer_along() -> None:
    torch.manual_seed(0)
    model = Small().double()
    data = batches(8)
    task = Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), train=data, example=(data[0][0],))
    session = Session(model, methods.get("l1_filter"), task, Budget(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session.attach(optimizer)
    train(model, optimizer, data[:4], {})
    result = session.result()
    with pytest.raises(SpecError, match="detach"):
        result.compact(optimizer=optimizer)
    session.detach()
    masked, reference = copy.deepcopy((model, optimizer))
    small = result.compact(optimizer=optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    train(small.train(), optimizer, data[4:], {})
    train(masked.train(), reference, data[4:], dict(result.masks))
    check_equal(masked, small, result.edits)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
