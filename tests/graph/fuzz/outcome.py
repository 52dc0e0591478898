"""What becomes of a random network under the oracle, and what many of them come to."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn

from prunus.core.errors import VerificationError
from prunus.graph import trace
from prunus.graph.flow import Flow, tensors_in
from tests.graph import proof
from tests.graph.fuzz.generate import network

FRACTIONS = (0.3, 0.4, 0.5)
GOOD = ("equal", "nothing prunable")
OUTPUT = "an output of the model"


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes:
        verdict: `equal`; `nothing prunable`; `wrong` (the small model computes something else); `crash` (the rest).
        share: of the weights that produce something inside the network, the share of which units can be removed.
        removed: the share of all parameters that went away.
        frozen: the weights that stay whole (or in part), with the reason.
        error: the exception, and where it came from.
    """

    seed: int
    verdict: str
    share: float = 0.0
    removed: float = 0.0
    frozen: tuple[tuple[str, str], ...] = ()
    error: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in GOOD

    @property
    def tried(self) -> tuple[tuple[str, str], ...]:
        """The weights of which only the trial removal showed that they must stay whole."""
        return tuple((name, why) for name, why in self.frozen if why.startswith("tried"))


def use(model: nn.Module, example: Tensor) -> None:
    """Run a model as its owner would: the proof switches PyTorch's fused attention off. Then one backward pass."""
    with torch.no_grad():
        model.eval()(example)
    total = sum(out.sum() for out in tensors_in(model.train()(example)))
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name


def attempt(seed: int, trial: bool = True) -> Outcome:
    """Prune random units of the network of `seed` and compare, in float64.

    Without `trial`, `trace` leaves out the trial removal, as it must on the meta device: what the flow alone finds.
    """
    sample = network(seed)
    strict, Flow.strict = Flow.strict, True  # an exception inside a rule would only freeze more
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with patch.object(proof, "trace", partial(trace, probe=trial)):
                # Every fourth network also loses what its LayerNorms and GroupNorms average over.
                fraction, exact = FRACTIONS[seed % len(FRACTIONS)], seed % 4 != 3
                structure, small = proof.prove(sample.model, sample.example, fraction, exact)
            use(small, sample.example)
    except VerificationError as error:
        return Outcome(seed, "wrong", error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        places = [
            f for f in traceback.extract_tb(error.__traceback__) if "prunus" in f.filename or "tests" in f.filename
        ]
        last = f" ({places[-1].filename.rpartition('/')[2]}:{places[-1].lineno} {places[-1].name})" if places else ""
        return Outcome(seed, "crash", error=f"{type(error).__name__}: {error}{last}"[:1000])
    finally:
        Flow.strict = strict
    found = proof.producers(structure)
    inner = found | {name for name, why in structure.frozen.items() if why != OUTPUT}
    share = len(found) / max(len(inner), 1)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (sample.model, small))
    verdict = "equal" if structure.groups else "nothing prunable"
    return Outcome(seed, verdict, share, 1 - after / before, tuple(structure.frozen.items()))


def _start() -> None:
    torch.set_num_threads(1)


def attempts(seeds: Iterable[int], jobs: int, trial: bool = True) -> Iterable[Outcome]:
    """The outcomes of many seeds, in their order, over some processes."""
    if jobs < 2:
        yield from map(partial(attempt, trial=trial), seeds)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start) as pool:
        yield from pool.map(partial(attempt, trial=trial), seeds, chunksize=8)


def summary(outcomes: list[Outcome]) -> str:
    """Counts and shares in two lines."""
    counts = {v: sum(o.verdict == v for o in outcomes) for v in (*GOOD, "wrong", "crash")}
    told = ", ".join(f"{n} {v}" for v, n in counts.items())
    done = [o for o in outcomes if o.good]
    if not done:
        return f"{len(outcomes)} networks: {told}"
    whole = sum(o.share == 1.0 for o in done)
    tried = sum(bool(o.tried) for o in done)
    return (
        f"{len(outcomes)} networks: {told}\n"
        f"prunable output axes: median {median(o.share for o in done):.0%} of a network's "
        f"(mean {sum(o.share for o in done) / len(done):.0%}, all of them in {whole}); "
        f"parameters removed: median {median(o.removed for o in done):.0%}; "
        f"the trial removal had to correct the flow in {tried}"
    )
