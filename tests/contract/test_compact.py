"""Structured recipes make networks that are smaller in fact and compute what the masked ones compute."""

from __future__ import annotations

import pytest
import torch

from tests.contract.models import CASES
from tests.contract.runs import STRUCTURED, one_shot


@pytest.mark.parametrize(("name", "network"), STRUCTURED)
def test_the_compact_network_computes_what_the_masked_one_computes(name: str, network: str) -> None:
    result = one_shot(name, network)
    small = result.compact(verify=False)
    inputs = CASES[network].batches(1, seed=42)[0][0]  # not the batch it was pruned with
    with torch.no_grad():
        masked, compacted = result.model.eval()(inputs), small.eval()(inputs)
    assert torch.allclose(masked, compacted, rtol=1e-10, atol=1e-10)
    dense, left = (sum(p.numel() for p in m.parameters()) for m in (result.model, small))
    # Nothing masked is left over, and nothing else went with it.
    assert left == dense - sum(int((~m).sum()) for m in result.masks.values()) < dense


@pytest.mark.parametrize(("name", "network"), [p for p in STRUCTURED if p[1] in ("decoder", "moe")])
def test_weights_that_were_tied_are_still_tied(name: str, network: str) -> None:
    result = one_shot(name, network)
    # SliceGPT turns the two by other rotations, so there they come apart before anything is removed.
    tied = name != "slicegpt"
    assert (result.model.head.weight is result.model.tokens.weight) == tied
    small = result.compact()
    assert (small.head.weight is small.tokens.weight) == tied
