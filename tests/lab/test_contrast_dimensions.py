"""Smaller images as a part of a budget in multiply-accumulates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunus import measure
from prunus.core.errors import SpecError
from prunus.lab import contrast, data
from prunus.lab.contrast import Cell, Problem, Run, Sheet, Spec, Tier
from prunus.lab.contrast.perform import perform

NET = Problem(
    name="resnet20-digits",
    network="resnet20",
    options={"width": 0.25},
    data="digits",
    images=64,
    epochs=1,
    tune=1,
    batch=32,
    rates=(0.05,),
)
TIER = Tier(name="one", problems=(NET,), seeds=(0,), says="test")
OURS = contrast.get("dimensions")
OURS = replace(OURS, on={}, points=(0.8, 0.5))


def macs(problem: Problem, side: int) -> int:
    return measure.macs(problem.initial(0).eval(), (torch.zeros(1, 1, side, side),)).total


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_the_largest_side_that_fits_is_taken(share: float) -> None:
    small = NET.edited({"resolution": share})
    fitting = [s for s in range(1, 9) if macs(NET, s) <= share * macs(NET, 8)]
    assert small.side() == max(fitting)
    assert small.share() == macs(NET, max(fitting)) / macs(NET, 8)
    found = small.dataset()
    assert found.size == max(fitting) and found.digest != NET.dataset().digest
    assert found.train.x.shape[-2:] == (found.size, found.size) and found.train.x.dtype == torch.uint8
    assert torch.equal(found.test.y, NET.dataset().test.y)


def test_a_pixel_is_the_mean_of_its_area() -> None:
    whole, small = data.load("digits").test.x.double(), NET.edited({"resolution": 0.3}).dataset()
    assert small.size == 4
    means = whole.reshape(len(whole), 1, 4, 2, 4, 2).mean((3, 5))
    assert (small.test.x.double() - means).abs().max() <= 0.5


def test_keys_of_images_as_they_are_stay_what_they_were() -> None:
    spec = Spec(problem=NET, epochs=1, rate=0.1, seed=0)
    assert spec.key != spec.model_copy(update={"problem": NET.edited({"resolution": 0.5})}).key
    assert '"resolution"' not in str(spec.key) and NET.side() is None and NET.share() == 1.0


def test_arms_start_from_one_network_and_share_out_the_budget() -> None:
    sheet = Sheet(contrast.with_baselines(OURS), TIER, {})
    dense = sheet.due()[0]
    assert dense.recipe is None and dense.problem.resolution == 1.0
    first = perform(dense)
    sheet = Sheet(sheet.contrast, TIER, {dense.key: Run(first.record)})
    left = {}
    for name in ("width", "resolution", "width and resolution", "depth and resolution"):
        spec = sheet.spec(Cell(NET.name, name, 0.5), 0.05, 0)
        assert spec is not None and spec.parent == dense.key and spec.keep == 0.5
        record = perform(spec, first.weights).record
        left[name] = record.macs_kept / record.macs_dense
        assert left[name] <= 0.5 and record.macs_dense == first.record.macs_dense
        assert (record.sparsity > 0) == (name != "resolution" and left[name] > 0.25)
    # Channels meet what is left of the budget closely.
    assert left["width"] > 0.49 and left["resolution"] == sheet.problem(Cell(NET.name, "resolution", 0.5)).share()
    shared = sheet.problem(Cell(NET.name, "width and resolution", 0.5))
    assert shared.resolution == 0.5**0.5


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SpecError, match="need a budget in macs"):
        replace(OURS, currency="params")
    with pytest.raises(SpecError, match="no images so small"):
        NET.edited({"resolution": 0.001}).side()
