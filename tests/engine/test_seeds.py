"""One seed for the initial weights and for pruning: what is drawn for the masks must not depend on the weights."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from prunus.engine.score import seeded


@pytest.mark.parametrize("seed", range(3))
def test_random_masks_do_not_follow_initial_weights_of_the_same_seed(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    before = model[0].weight.detach().abs().clone()
    kept = prunus.prune(model, prunus.Task(), "random", sparsity=0.8, seed=seed).masks["0.weight"]
    # The mean of those kept is that of a random draw: within four of its standard deviations.
    apart = (before[kept].mean() - before.mean()) / before.std() * kept.sum() ** 0.5
    assert abs(float(apart)) < 4


def test_a_seed_is_a_whole_number_and_names_one_stream() -> None:
    draws = [torch.rand(4, generator=seeded(s)) for s in (0, 0, 1, -1, 2**40)]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.tolist()) for d in draws}) == 4
    with pytest.raises(SpecError, match="whole number"):
        seeded(True)
