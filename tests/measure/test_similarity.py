"""The Jaccard index of two choices."""

from __future__ import annotations

import pytest
import torch

from prunus import measure
from prunus.core.errors import SpecError


def mask(*kept: int, size: int = 6) -> torch.Tensor:
    return torch.tensor([i in kept for i in range(size)])


def test_shared_over_chosen_together_and_by_group() -> None:
    one = {"a": mask(0, 1, 2), "b": mask(5)}
    other = {"a": mask(1, 2, 3), "b": mask(0, 1)}
    assert measure.jaccard(one, other) == 2 / 7  # {1, 2} of {0, 1, 2, 3} and of {0, 1, 5}
    assert measure.jaccards(one, other) == {"a": 0.5, "b": 0.0}
    assert measure.jaccard(one, one) == 1.0


def test_nothing_and_nothing_are_the_same() -> None:
    none = {"a": mask()}
    assert measure.jaccard(none, none) == 1.0 and measure.jaccards(none, none) == {"a": 1.0}
    assert measure.jaccard(none, {"a": mask(1)}) == 0.0


def test_random_masks_come_to_d_over_two_minus_d() -> None:
    draw = torch.Generator().manual_seed(3)
    one, other = (torch.rand(200_000, generator=draw) < 0.3 for _ in range(2))
    assert measure.jaccard({"a": one}, {"a": other}) == pytest.approx(0.3 / 1.7, abs=5e-3)


def test_choices_of_different_groups_are_refused() -> None:
    with pytest.raises(SpecError, match="'b' is not in both"):
        measure.jaccard({"a": mask(1)}, {"a": mask(1), "b": mask(1)})
    with pytest.raises(SpecError, match="another shape"):
        measure.jaccard({"a": mask(1)}, {"a": mask(1, size=4)})


def test_chance_is_what_independent_choices_come_to() -> None:
    draw = torch.Generator().manual_seed(3)

    def masks() -> dict[str, torch.Tensor]:
        return {n: torch.rand(200_000, generator=draw) < d for n, d in (("a", 0.9), ("b", 0.1))}

    one, other = masks(), masks()
    assert measure.chance(one, other) == pytest.approx(measure.jaccard(one, other), abs=5e-3)
    # Within a group of density d it is d / (2 - d); layers that agree about densities are not alike by that alone.
    assert measure.chance({"a": one["a"]}, {"a": other["a"]}) == pytest.approx(0.9 / 1.1, abs=5e-3)
    assert measure.chance({"a": mask()}, {"a": mask()}) == 1.0
