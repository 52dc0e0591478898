"""The best of every row, which are found without sorting, against going through the rows one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunus.core.rows import PIECE, SHORT, rows_top_k


def tied(rows: int, length: int, seed: int) -> Tensor:
    """Scores of few values, some of them -inf."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, length), generator=draw).double()
    scores[torch.rand(scores.shape, generator=draw) < 0.2] = -torch.inf
    return scores


def best(scores: Tensor, k: list[int]) -> Tensor:
    expected = torch.zeros(scores.shape, dtype=torch.bool)
    for r, row in enumerate(scores.tolist()):
        for i in sorted(range(len(row)), key=lambda i: (-row[i], i))[: max(0, k[r])]:
            expected[r, i] = row[i] > -torch.inf
    return expected


@pytest.mark.parametrize("length", [1, 2, 4, SHORT, SHORT + 1, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_best_of_every_row_ties_to_the_earlier(length: int, dtype: torch.dtype) -> None:
    scores = tied(60, length, length).to(dtype)
    for k in sorted({-1, 0, 1, length // 2, length - 1, length, length + 1}):
        assert torch.equal(rows_top_k(scores, k), best(scores, [k] * 60))


@pytest.mark.parametrize("length", [4, SHORT + 3])
def test_rows_that_keep_unequal_numbers(length: int) -> None:
    scores = tied(50, length, 1)
    many = torch.randint(0, length + 1, (50,), generator=torch.Generator().manual_seed(2))
    assert torch.equal(rows_top_k(scores, many), best(scores, many.tolist()))
    for k in (torch.tensor([2]), torch.full((50,), 2)):  # one for all, and equal ones
        assert torch.equal(rows_top_k(scores, k), best(scores, [2] * 50))


@pytest.mark.parametrize("length", [4, 40])
def test_how_the_scores_lie_in_memory_changes_nothing(length: int) -> None:
    scores = tied(30, length, 3)
    across = scores.T.contiguous().T
    assert torch.equal(rows_top_k(across, 3), rows_top_k(scores, 3))
    assert torch.equal(rows_top_k(scores[::2], 3), rows_top_k(scores, 3)[::2])


@pytest.mark.parametrize("length", [2, 9])
def test_more_than_one_piece(length: int) -> None:
    scores = tied(PIECE // SHORT + 5, length, 4)
    order = scores.argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :1], True) & (scores > -torch.inf)
    assert torch.equal(rows_top_k(scores, 1), expected)


def test_what_an_accelerator_does_is_the_same() -> None:
    from prunus.core.rows import _before, _on_device

    for length in (4, 12):
        scores = tied(40, length, 5)
        for k in range(1, length):
            assert torch.equal(_before(scores, k), best(scores, [k] * 40))
            assert torch.equal(_on_device(scores, k), best(scores, [k] * 40))
