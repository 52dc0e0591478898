"""FreeTickets (Liu et al. 2022, section 3.3): exploration, then cycles that each leave a ticket, averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Result
from prunus.core.errors import SpecError
from prunus.engine.ensemble import Ensemble
from tests.oracle.sparse_runs import batches, loss_of, mlp

STEPS, TICKETS = 30, 3


class Told(torch.optim.SGD):
    """SGD that writes down the learning rate of every step."""

    rates: list[float] = []  # noqa: RUF012 - one list for all optimizers of a run, in order

    def step(self, closure: Any = None) -> Any:
        Told.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


@pytest.fixture(scope="module")
def ran() -> tuple[Result, list[float]]:
    Told.rates = []
    task = prunus.Task(loss=loss_of, train=batches())
    result = prunus.prune(
        mlp(),
        task,
        "free_tickets",
        sparsity=0.7,
        steps=STEPS,
        seed=4,
        optimizer=lambda p: Told(p, lr=0.5),
        tickets=TICKETS,
    )
    return result, Told.rates


def test_it_answers_with_the_mean_of_the_softmax_outputs(ran: tuple[Result, list[float]]) -> None:
    model, x = ran[0].model, batches()[1][0]
    assert isinstance(model, Ensemble) and len(model.members) == TICKETS
    mean = sum(m(x).softmax(-1) for m in model.members) / TICKETS
    assert torch.allclose(model(x).exp(), mean, atol=1e-12)
    assert torch.allclose(model(x).softmax(-1), mean, atol=1e-12), "so a cross entropy reads it as class scores"


def test_one_run_first_at_the_full_rate_then_in_cycles(ran: tuple[Result, list[float]]) -> None:
    """Ten steps explore; each of three cycles of 20 / 3 steps goes at a tenth, in its second half a hundredth."""
    rates = ran[1]
    assert len(rates) == STEPS and ran[0].cost["steps"] == STEPS
    assert rates[:10] == [0.5] * 10
    at = 10
    for length in (6, 7, 7):
        cycle = rates[at : at + length]
        slow = sum(1 for i in range(length) if i / length >= 0.5)
        assert cycle == pytest.approx([0.05] * (length - slow) + [0.005] * slow)
        at += length


def test_every_ticket_has_the_sparsity_and_is_another_network(ran: tuple[Result, list[float]]) -> None:
    result = ran[0]
    layers = ("0.weight", "2.weight", "4.weight")
    named = dict(result.model.named_parameters())
    masks: list[dict[str, Tensor]] = [{n: result.masks[f"members.{i}.{n}"] for n in layers} for i in range(TICKETS)]
    for i, own in enumerate(masks):
        kept, units = sum(int(m.sum()) for m in own.values()), sum(m.numel() for m in own.values())
        assert kept == units - int(0.7 * units)
        assert all(not named[f"members.{i}.{n}"][~m].any() for n, m in own.items())
    assert prunus.measure.jaccard(masks[0], masks[1]) < 0.8 and prunus.measure.jaccard(masks[1], masks[2]) < 0.8
    assert result.sparsity == pytest.approx(0.7, abs=0.01)


def test_a_cycle_begins_by_dropping_four_fifths_but_the_first_does_not(ran: tuple[Result, list[float]]) -> None:
    jumps = [(h["member"], h["regrow"]) for h in ran[0].history if h["step"] == 0 and "regrow" in h]
    assert jumps == [(1, 0.8), (2, 0.8)]


def test_what_has_no_class_scores_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(SpecError, match="puts out tuple"):
        Ensemble([Pair()])(torch.zeros(1, 2))
    with pytest.raises(SpecError, match="tickets=0"):
        prunus.prune(mlp(), prunus.Task(loss=loss_of, train=batches()), "free_tickets", sparsity=0.5, tickets=0)
