"""Batches come in an order that seed and epoch fix, and augmentation does what it says."""

import pytest
import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.lab import data
from prunus.lab.data.dataset import Split


def split(n: int = 10, side: int = 6) -> Split:
    x = torch.randint(1, 256, (n, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split(x, torch.arange(n), torch.zeros(1), torch.ones(1))


def epoch(loader: data.Loader, k: int) -> tuple[Tensor, Tensor]:
    x, y = zip(*loader.batches(k), strict=True)
    return torch.cat(x), torch.cat(y)


def test_loader_order_follows_from_seed_and_epoch() -> None:
    state = torch.get_rng_state()
    augment = data.Augment(2, True)
    a, b = (data.Loader(split(), 4, seed=1, shuffle=True, augment=augment) for _ in range(2))
    first, second = list(a), list(a)
    assert a.epoch == 2 and [len(y) for _, y in first] == [4, 4, 2] and len(a) == 3
    assert not torch.equal(torch.cat([y for _, y in first]), torch.cat([y for _, y in second]))
    again = epoch(b, 1)  # without having gone through epoch 0
    assert torch.equal(torch.cat([x for x, _ in second]), again[0])
    assert torch.equal(torch.cat([y for _, y in second]), again[1])
    assert sorted(again[1].tolist()) == list(range(10)) and b.epoch == 0
    assert not torch.equal(again[1], epoch(data.Loader(split(), 4, seed=2, shuffle=True), 1)[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_without_shuffling_and_with_whole_batches_only() -> None:
    loader = data.Loader(split(), 4, drop_last=True)
    assert len(loader) == 2 and epoch(loader, 0)[1].tolist() == list(range(8))
    assert torch.equal(epoch(loader, 0)[0], split().x[:8].float())


def test_augmentation_shifts_and_mirrors() -> None:
    x = split(200).x
    y = data.Augment(shift=2)(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, y, strict=True):
        places = [(r, c) for r in range(5) for c in range(5) if torch.equal(before[:, r : r + 6, c : c + 6], after)]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25
    z = data.Augment(flip=True)(x, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(z, x, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, z, x, strict=True)) and 60 < sum(mirrored) < 140


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 11, "drop_last": True}])
def test_loader_refuses_what_makes_no_batch(arguments: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="batch"):
        data.Loader(split(), **arguments)
