"""A contrast and the runs of a store as the record that reports are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import prunus
from prunus.core.recipe import Recipe
from prunus.lab import claims
from prunus.lab.contrast.contrast import METRICS, PAIRS, Arm, Claim
from prunus.lab.contrast.fairness import warnings
from prunus.lab.contrast.problem import Problem
from prunus.lab.contrast.sheet import Cell, Sheet
from prunus.lab.contrast.similarity import Masks, similarities
from prunus.lab.contrast.trial import Record, Spec
from prunus.lab.facts import now
from prunus.lab.store import Row
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
)
from prunus.report.sheet import spelled

_TRAINING = {
    "none": "not trained",
    "tune": "fine-tuned",
    "full": "one training",
    "both": "one training and one fine-tuning",
    "twice": "two trainings",
}


def summary(
    sheet: Sheet,
    rows: Sequence[Row],
    environment: str,
    facts: Mapping[str, Mapping[str, Any]],
    *,
    masks: Callable[[str], Masks | None] | None = None,
    command: str = "",
    created: str | None = None,
) -> ContrastRecord:
    """Everything that a report says of a contrast.

    Args:
        sheet: the contrast, with its baselines, at a tier, and the runs of the environment.
        rows: all runs of the store, of every environment.
        environment: key of the environment that the sheet's runs are of.
        facts: the environments by key, as `Store.facts` gives them.
        masks: key of a run -> its masks, as `prunus.lab.contrast.sweep.unpacked` gives them, or None; without it
            the masks are not compared.
        command: makes the report again.
        created: when it was made; by default now.
    """
    contrast, tier = sheet.contrast, sheet.tier
    keys = {key for cell in sheet.every() for _, key in sheet.wanted(cell)}
    points = _points(sheet)
    return ContrastRecord(
        name=contrast.name,
        title=contrast.title,
        section=contrast.section,
        question=contrast.question,
        tier=tier.name,
        says=tier.says,
        seeds=list(tier.seeds),
        points=list(tier.points(contrast.points)),
        currency=contrast.currency,
        problems=[_problem(p) for p in sheet.problems.values()],
        arms=[_arm(sheet, a) for a in contrast.arms],
        points_found=points,
        claims=[_claim(sheet, c) for c in contrast.claims],
        quoted=[
            QuotedTable(title=q.title, columns=list(q.columns), rows=[list(r) for r in q.rows]) for q in contrast.survey
        ],
        protocol=_protocol(sheet),
        environment=_plain(facts.get(environment, {})),
        warnings=warnings(contrast, tier),
        unequal=sheet.unequal(),
        similarity=[] if masks is None else list(similarities(sheet, masks)),
        failed=_failed(r for r in rows if r.environment == environment and r.status == "failed" and r.key in keys),
        elsewhere=_elsewhere((r for r in rows if r.environment != environment and r.key in keys), facts),
        done=sum(len(p.runs) for p in points),
        planned=sum(len(tier.seeds) for _ in sheet.cells()),
        notes=list(contrast.notes),
        command=command,
        version=prunus.__version__,
        created=created or now(),
    )


def _points(sheet: Sheet) -> list[PointRecord]:
    base = next(a for a in sheet.contrast.arms if a.recipe is None and a.training == "full" and not a.where)
    dense = {name: sheet.records(Cell(name, base.name, 1.0)) for name in sheet.problems}
    found = []
    for cell in sheet.cells():
        records = sheet.records(cell)
        if records:
            found.append(_point(cell, records, sheet.rate(cell) or 0.0, dense[cell.problem]))
    return found


def _point(cell: Cell, records: Mapping[int, Record], rate: float, dense: Mapping[int, Record]) -> PointRecord:
    first = next(iter(records.values()))
    return PointRecord(
        problem=cell.problem,
        arm=cell.arm,
        keep=cell.keep,
        rate=rate,
        runs=[_run(seed, r, dense.get(seed)) for seed, r in records.items()],
        params_dense=first.params_dense,
        macs_dense=first.macs_dense,
        layers=[
            LayerKept(name=layer.name, weights=layer.weights, kept=[r.layers[i].kept for r in records.values()])
            for i, layer in enumerate(first.layers)
        ],
        notes=list(dict.fromkeys(n for r in records.values() for n in r.notes)),
    )


def _run(seed: int, record: Record, dense: Record | None) -> SeedRun:
    return SeedRun(
        seed=seed,
        test=record.test,
        top5=record.test_top5,
        valid=record.valid,
        untrained=record.untrained,
        delta=None if dense is None else record.test - dense.test,
        sparsity=record.sparsity,
        effective=record.effective,
        params_kept=record.params_kept,
        macs_kept=record.macs_kept,
        collapsed=list(record.collapsed),
        seconds=record.seconds,
    )


def _problem(problem: Problem) -> ProblemRecord:
    facts: dict[str, str | int | float] = {
        "training images": "all" if problem.images is None else problem.images,
        "epochs of a training": problem.epochs,
        "epochs of a fine-tuning": problem.tune,
        "batch": problem.batch,
        "learning rates tried": ", ".join(f"{r:g}" for r in problem.rates),
        "curve of the rate": problem.curve,
        "weight decay": problem.weight_decay,
        "momentum": problem.momentum,
        "augmentation": ", ".join(
            [f"shifts of up to {problem.shift} pixels"] * bool(problem.shift) + ["mirror images"] * problem.flip
        )
        or "none",
        "batches for scores": problem.calib,
        "number format": "bfloat16 in training" if problem.bf16 else "float32",
    }
    if problem.options:
        facts["options of the network"] = ", ".join(f"{k} {v}" for k, v in problem.options.items())
    if problem.classes != (0.0, 1.0):
        facts["classes"] = "{:.0%} to {:.0%} of them, numbered anew".format(*problem.classes)
    return ProblemRecord(name=problem.name, network=problem.network, data=problem.data, facts=facts)


def _arm(sheet: Sheet, arm: Arm) -> ArmRecord:
    recipe: Recipe | None = arm.recipe
    epochs = {name: arm.epochs(p) for name, p in sheet.problems.items()}
    if recipe is None:
        return ArmRecord(name=arm.name, baseline=arm.baseline, training=_TRAINING[arm.training], epochs=epochs)
    # Where masks are taken over, how they were found is what the method is.
    found = sheet.contrast.arm(arm.masks).recipe if arm.masks else None
    return ArmRecord(
        name=arm.name,
        baseline=arm.baseline,
        recipe=recipe.name,
        source=recipe.source,
        taxonomy=(found or recipe).taxonomy(),
        parts=_edits(arm) | {slot: spelled(part) for slot, part in recipe.parts().items()},
        starts="trained weights" if arm.trained else "initial weights",
        training=_TRAINING[arm.training],
        epochs=epochs,
        fixed=arm.density,
    )


def _edits(arm: Arm) -> dict[str, str]:
    """What an arm differs in beside its recipe."""
    told = {
        "masks": f"of the run aside {arm.masks!r}" if arm.masks else "",
        "where": ", ".join(f"{k} = {v}" for k, v in arm.where.items()),
        "smaller images": f"{100 * arm.shrinks:.3g} % of the budget, in logarithms" if arm.shrinks else "",
    }
    return {what: words for what, words in told.items() if words}


def _claim(sheet: Sheet, claim: Claim) -> ClaimRecord:
    several = sheet.problems if len(sheet.problems) > 1 else ()
    return ClaimRecord(
        id=claim.id,
        text=claim.text,
        left=claim.left,
        right=claim.right,
        unit=(PAIRS if claim.exact else METRICS)[claim.metric][1],
        margin=claim.margin,
        at=list(claim.at),
        survey=claim.survey,
        verdict=_judgement(sheet.judged(claim)),
        by_problem={name: _judgement(sheet.judged(claim, name)) for name in several},
    )


def _judgement(found: claims.Verdict) -> Judgement:
    return Judgement(word=found.word, told=found.told, seeds=found.seeds, gap=found.gap, low=found.low, high=found.high)


def _protocol(sheet: Sheet) -> dict[str, str | int | float]:
    """What all runs had in common; only what the code of a sweep sees to, or what the runs' own records show."""
    records = [r for _, _, r in sheet.all_records()]
    arms = sheet.contrast.arms
    data = {r.data for r in records}
    currency = {"units": "units that the method ranks", "params": "parameters", "macs": "multiply-accumulates"}
    return {
        "operating points": f"{', '.join(f'{k:.3g}' for k in sheet.tier.points(sheet.contrast.points))} "
        f"of the {currency[sheet.contrast.currency]} kept",
        "seeds": ", ".join(map(str, sheet.tier.seeds)),
        "initial networks": f"the same for every arm of a seed, by digest: {len({r.initial for r in records})} in all"
        if not sheet.unequal()
        else "not the same for every arm, see the warnings",
        "data": f"digest {', '.join(sorted(d[:12] for d in data))}" if data else "no run yet",
        "learning rate": _tuning(sheet),
        "test set": "looked at once, after the last step",
        "arms added as baselines": sum(a.baseline for a in arms),
        "optimizer steps of the runs shown": sum(r.steps for r in records),
        "processor time of the runs shown": f"{sum(r.seconds for r in records) / 60:.1f} minutes",
    }


def _tuning(sheet: Sheet) -> str:
    """How learning rates were chosen."""
    if not any(len(p.rates) > 1 for p in sheet.problems.values()):
        return "the only one that was tried: not tuned"
    each = {"cell": "every arm and point", "arm": "every arm, at the point in the middle,"}[sheet.tier.tuned]
    given = any("rates" in a.where for a in sheet.contrast.arms)
    own = "; arms that name a rate have that one" if given else ""
    return f"chosen for {each} with the first seed, by held-out accuracy{own}"


def _failed(rows: Iterable[Row]) -> list[FailedRun]:
    found = []
    for row in rows:
        spec = Spec.model_validate(dict(row.spec))
        lines = [line.strip() for line in row.trace.splitlines() if line.strip()]
        found.append(
            FailedRun(
                problem=spec.problem.name,
                method=spec.method,
                keep=spec.keep,
                rate=spec.rate,
                seed=spec.seed,
                key=row.key[:12],
                error=lines[-1] if lines else "no traceback",
            )
        )
    return found


def _elsewhere(rows: Iterable[Row], facts: Mapping[str, Mapping[str, Any]]) -> list[Elsewhere]:
    counts: dict[str, int] = {}
    for row in rows:
        if row.status == "done":
            counts[row.environment] = counts.get(row.environment, 0) + 1
    return [Elsewhere(key=k, facts=_plain(facts.get(k, {})), runs=n) for k, n in sorted(counts.items())]


def _plain(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {k: v if isinstance(v, str | int | float) else str(v) for k, v in facts.items() if v != ""}
