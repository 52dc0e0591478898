"""The best of short rows, which are found without sorting, against going through them one by one."""

from __future__ import annotations

import pytest
import torch

from prunus.parts.allocation.ranking import SHORT, rows_top_k


@pytest.mark.parametrize("length", [1, 2, 4, SHORT, SHORT + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_best_of_every_row_ties_to_the_earlier(length: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(length)
    scores = torch.randint(0, 4, (60, length), generator=draw).to(dtype)  # many ties
    scores[torch.rand(scores.shape, generator=draw) < 0.2] = -torch.inf
    for k in range(length + 1):
        expected = torch.zeros(scores.shape, dtype=torch.bool)
        for r, row in enumerate(scores.tolist()):
            for i in sorted(range(length), key=lambda i: (-row[i], i))[:k]:
                expected[r, i] = row[i] > -torch.inf
        assert torch.equal(rows_top_k(scores, k), expected)
