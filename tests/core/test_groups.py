"""How units lie in parameters: views, masks spread over them, and the task's rules for batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus import Budget, Group, Member, Task
from prunus.core.errors import DataError, MissingExtraError, Problems, SpecError, listed, require
from prunus.core.task import as_call, describe, inputs_of


def test_elements_are_rows_and_columns() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    group = Group("w", (2, 12), (Member("w"),), weight=(2, 3, 2, 2))
    view = group.view(group.members[0], weight)
    assert view.shape == (2, 12, 1) and view.data_ptr() == weight.data_ptr()
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[1, 5] = True
    mask = group.spread(group.members[0], keep, weight.shape)
    assert mask.nonzero().tolist() == [[1, 1, 0, 1]] and group.elementwise and group.units == 24


@pytest.mark.parametrize("dim", [0, 1])
def test_units_own_slices_along_an_axis(dim: int) -> None:
    weight = torch.randn(6, 6, 2)
    index = torch.tensor([[0, 3], [1, 4], [5, 2]])
    member = Member("w", dim, index)
    group = Group("g", (3,), (member,))
    view = group.view(member, weight)
    for unit, own in enumerate(index.tolist()):
        expected = torch.cat([weight.select(dim, i).reshape(-1) for i in own])
        assert torch.equal(view[unit].sort().values, expected.sort().values)
    mask = group.spread(member, torch.tensor([True, False, True]), weight.shape)
    gone = {i for i in range(6) if not mask.select(dim, i).any()}
    assert gone == {1, 4} and int((~mask).sum()) == 2 * 12


def test_slices_of_no_unit_stay() -> None:
    member = Member("w", 0, torch.tensor([[1], [2]]))
    group = Group("g", (2,), (member,))
    assert group.axis_keep(member, torch.tensor([False, False]), 4).tolist() == [True, False, False, True]


def test_roles_leave_buffers_out() -> None:
    group = Group("g", (2,), (Member("a", 0), Member("b", 0, role="scale"), Member("c", 0, role="out", buffer=True)))
    assert [m.param for m in group.with_role("out", "scale")] == ["a", "b"] and not group.elementwise


class Reader(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def test_batches_are_taken_apart_by_one_rule() -> None:
    x, y = torch.randn(2, 3), torch.zeros(2)
    for batch, args, kwargs in (((x, y), (x,), {}), ([x, y], (x,), {}), (x, (x,), {}),
                                ({"ids": x, "labels": y}, (), {"ids": x})):  # fmt: skip
        assert inputs_of(batch) == (args, kwargs)
        assert Task().outputs(Reader(), batch) == (args, kwargs)
    assert Task(forward=lambda m, b: m(b[1])).outputs(Reader(), (x, y)) == ((y,), {})


def test_examples_are_tensors_tuples_or_dicts() -> None:
    x = torch.randn(2, 3)
    assert as_call(x) == ((x,), {}) and as_call((x, x)) == ((x, x), {}) and as_call({"a": x}) == ((), {"a": x})
    assert Task(train=[(x, 0)]).example_inputs() == ((x,), {})
    assert (
        Task(train=[(x, 0)], forward=lambda m, b: m(b[0])).example_inputs() is None and Task().example_inputs() is None
    )


def test_a_failing_loss_shows_the_batch() -> None:
    batch = {"ids": torch.zeros(2, 5, dtype=torch.long), "labels": (torch.zeros(2), 1)}
    assert describe(batch) == "{ids: (2, 5) int64, labels: ((2,) float32, int)}"
    with pytest.raises(DataError, match=r"\(2, 5\) int64.*mat1 and mat2"):
        Task(loss=lambda m, b: m(b["ids"].float()).sum()).loss_of(nn.Linear(4, 1), batch)
    with pytest.raises(SpecError, match=r"pass Task\(loss="):
        Task().loss_of(nn.Linear(4, 1), batch)


def test_budgets_know_their_currency() -> None:
    assert str(Budget(0.1)) == "0.1 of the units" and Budget(macs=0.5).currency == "macs"
    assert Budget(params=0.5).at(0.25) == Budget(params=0.25) and Budget(0.5).at(0.0).keep > 0
    assert Budget.from_sparsity(0.75) == Budget(0.25) and Budget.from_sparsity(0.0).keep == 1.0


def test_problems_are_collected() -> None:
    problems = Problems("cannot go on")
    problems.raise_if_any()
    problems.add("first")
    with pytest.raises(SpecError, match=r"^cannot go on: first$"):
        problems.raise_if_any()
    problems.add("second")
    with pytest.raises(DataError, match=r"cannot go on, 2 problems:\n  - first\n  - second"):
        problems.raise_if_any(DataError)


def test_a_missing_library_names_its_extra() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no_such_library is not installed \(to fly\): pip install 'prunus\[all\]'"
    ):
        require("no_such_library.wings", extra="all", why="to fly")
    assert require("json", extra="all").dumps([]) == "[]"


def test_long_lists_stay_readable() -> None:
    assert listed(list("abc")) == "a, b, c" and listed(list("abcdefgh"), most=2) == "a, b and 6 more"
