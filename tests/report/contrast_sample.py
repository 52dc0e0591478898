"""A made-up contrast that has everything a report can show; nothing here was measured."""

from __future__ import annotations

from typing import Any

from prunus.report.contrast_records import (
    ArmRecord,
    ClaimRecord,
    ContrastRecord,
    Elsewhere,
    FailedRun,
    Judgement,
    LayerKept,
    PointRecord,
    ProblemRecord,
    QuotedTable,
    SeedRun,
    Similarity,
)

SEEDS = (0, 1, 2)
KEEPS = (0.5, 0.25, 0.125, 0.0625, 0.03)
DENSE = {"mlp": 0.9, "conv": 0.94}
LEVEL = {
    "SNIP, weights": 0.01,
    "SNIP, channels": 0.03,
    "random weights": 0.1,
    "SNIP, weights, same layer shares": 0.02,
}
TAXONOMY = {"structure": "unstructured", "when": "before", "pace": "one_shot", "data": "labels", "scope": "global"}


def arms() -> list[ArmRecord]:
    epochs = {"mlp": 2, "conv": 3}
    pruned = [
        ArmRecord(
            name=name,
            baseline=i > 1,
            recipe=f"recipe_{i}",
            source="somewhere 2020",
            taxonomy=TAXONOMY,
            parts={"criterion": "ConnectionSensitivity()"},
            starts="initial weights",
            training="one training",
            epochs=epochs,
        )
        for i, name in enumerate(LEVEL)
    ]
    return [*pruned, ArmRecord(name="dense", baseline=True, training="one training", epochs=epochs)]


def run(problem: str, arm: str, keep: float, seed: int) -> SeedRun:
    lost = 0.0 if arm == "dense" else LEVEL[arm] * (1 / keep - 1) ** 0.5
    noise = 0.001 * (seed - 1) * (2 if arm == "dense" else 1)
    test = DENSE[problem] - lost + noise
    return SeedRun(
        seed=seed,
        test=test,
        top5=0.99,
        valid=test - 0.005,
        untrained=None if seed else 0.1,
        delta=test - DENSE[problem] - 0.002 * (seed - 1),
        sparsity=1 - keep,
        effective=min(1.0, (1 - keep) * 1.01),
        params_kept=round(10_000 * keep) + seed,
        macs_kept=round(90_000 * keep**0.9),
        collapsed=["fc2"] if arm == "random weights" and keep < 0.04 else [],
        seconds=1.5,
    )


def point(problem: str, arm: str, keep: float) -> PointRecord:
    gone = arm == "random weights" and keep < 0.04
    kept = [("fc1", 8000, round(8000 * keep)), ("fc2", 1000, 0 if gone else round(1000 * keep)), ("head", 900, 900)]
    return PointRecord(
        problem=problem,
        arm=arm,
        keep=keep,
        rate=0.1,
        runs=[run(problem, arm, keep, seed) for seed in SEEDS],
        params_dense=10_000,
        macs_dense=90_000,
        layers=[] if arm == "dense" else [LayerKept(name=n, weights=w, kept=[k] * 3) for n, w, k in kept],
        notes=["head left dense"],
    )


def record(**changes: Any) -> ContrastRecord:
    found = [point(p, a, k) for p in DENSE for a in LEVEL for k in KEEPS]
    found += [point(p, "dense", 1.0) for p in DENSE]
    yes = Judgement(word="supported", told="+1.20, 90 % interval +0.80 to +1.60", seeds=3, gap=1.2, low=0.8, high=1.6)
    no = Judgement(word="refuted", told="-2.00, 90 % interval -3.00 to -1.00", seeds=3, gap=-2.0, low=-3.0, high=-1.0)
    few = Judgement(word="too few runs", told="", seeds=1)
    claim = {"left": "SNIP, weights", "right": "SNIP, channels", "unit": "points of test accuracy", "margin": -0.1}
    plain: dict[str, Any] = {
        "name": "structure",
        "title": "Unstructured and structured pruning",
        "section": "7.1, table 7",
        "question": "Weights or channels?",
        "tier": "desk",
        "says": "directions only",
        "seeds": list(SEEDS),
        "points": list(KEEPS),
        "currency": "params",
        "problems": [
            ProblemRecord(name="mlp", network="lenet300", data="digits", facts={"batch": 64, "curve": "cosine"}),
            ProblemRecord(name="conv", network="vgg_tiny", data="digits", facts={"batch": 64, "weight decay": 5e-4}),
        ],
        "arms": arms(),
        "points_found": found,
        "claims": [
            ClaimRecord(
                id="a",
                text="weights lose less",
                survey="93.84 / 93.74",
                verdict=yes,
                by_problem={"mlp": yes, "conv": few},
                **claim,
            ),
            ClaimRecord(id="b", text="channels lose less", verdict=no, at=[0.5], **claim),
            ClaimRecord(id="c", text="nobody knows", verdict=few, **claim),
        ],
        "quoted": [
            QuotedTable(
                title="Survey, table 7",
                columns=["", "CIFAR-10", "CIFAR-100"],
                rows=[["SNIP, weights", "93.84", "73.09"], ["GraSP, weights", "93.58", "72.46"]],
            )
        ],
        "protocol": {"seeds": "0, 1, 2", "optimizer steps of the runs shown": 1234},
        "environment": {"torch": "2.0", "processor": "Some Processor"},
        "warnings": ["2 problem(s): 3 or more are the rule"],
        "failed": [
            FailedRun(
                problem="mlp",
                method="snip",
                keep=0.5,
                rate=0.02,
                seed=0,
                key="abc123",
                error="ValueError: no such thing",
            )
        ],
        "elsewhere": [Elsewhere(key="deadbeef", facts={"processor": "Another"}, runs=7)],
        "done": 126,
        "planned": 130,
        "similarity": [
            Similarity(
                problem="mlp",
                keep=0.5,
                arms=["SNIP, weights", "SNIP, channels"],
                overlap=[[0.41, 0.625], [0.625, None]],
            )
        ],
        "notes": ["A note."],
        "command": "prunus contrast report structure",
        "version": "0.1.0",
        "created": "2026-11-21",
    }
    return ContrastRecord.model_validate(plain | changes)


def bare() -> ContrastRecord:
    """A contrast of which nothing was run yet."""
    lists = ("points_found", "claims", "quoted", "warnings", "failed", "elsewhere", "similarity")
    empty: dict[str, Any] = {name: [] for name in lists}
    return record(name="pace", section="7.2, figure 7", done=0, notes=[], command="", environment={}, **empty)
