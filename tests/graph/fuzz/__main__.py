"""Random networks under the oracle: refused or equal, never wrong, never a crash.

python -m tests.graph.fuzz [--count 2000] [--first 0] [--jobs 2]
python -m tests.graph.fuzz --seed 123 --verbose
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import torch

from tests.graph.fuzz.generate import network
from tests.graph.fuzz.outcome import Outcome, attempts, summary


def show(outcome: Outcome) -> None:
    """What is needed to replay it."""
    print(f"\nseed {outcome.seed}: {outcome.verdict}: {outcome.error}\n{network(outcome.seed).source}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.graph.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="networks")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, help="only this network")
    parser.add_argument("--no-trial", action="store_true", help="without the trial removal: what the flow alone finds")
    parser.add_argument("--verbose", action="store_true", help="show every network, and why weights stay whole")
    parser.add_argument("--reasons", action="store_true", help="count why weights stay whole, at the end")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.count)
    start, outcomes = time.perf_counter(), list[Outcome]()
    for outcome in attempts(seeds, min(given.jobs, len(seeds)), not given.no_trial):
        outcomes.append(outcome)
        if given.verbose or not outcome.good:
            show(outcome)
        if given.verbose:
            print(f"{outcome.share:.0%} of the output axes prunable, {outcome.removed:.0%} of the parameters removed")
            print("\n".join(f"  {name}: {why}" for name, why in outcome.frozen))
        if len(outcomes) % 200 == 0 and len(outcomes) < len(seeds):
            print(f"{len(outcomes)} of {len(seeds)}, {time.perf_counter() - start:.0f} s", flush=True)
    if given.reasons:
        reasons = Counter(
            why.partition(": ")[0].partition(" in ")[0] + ": " + why.rpartition(": ")[2][:90]
            for o in outcomes
            for _, why in o.frozen
        )
        print("\n".join(f"{n:6d}  {why}" for why, n in reasons.most_common(40)))
    print(f"\n{summary(outcomes)}\n{time.perf_counter() - start:.0f} s")
    bad = [o.seed for o in outcomes if not o.good]
    if bad:
        print(f"failing seeds: {' '.join(map(str, bad))}")
        print(f"replay one: python -m tests.graph.fuzz --seed {bad[0]} --verbose")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
