"""prunus analyze scaling-law: the law that error follows as density falls."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.contrast import StoreAt
from prunus.cli.output import Seed
from prunus.cli.subjects import Problems, rows_of
from prunus.core.errors import DataError, SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table

ABOUT = About(
    question="Which law does error follow as density falls, and how well do the points pin it down?",
    takes="runs of a store, a file of density,error, or several results",
    source="On the predictability of pruning across scales: Rosenfeld et al. 2021, ICML, arXiv:2006.10621.",
)
LAW = "error(d) = e |(d - i p (h / e)^(1 / gamma)) / (d - i p)|^gamma, i the imaginary unit"
Found = list[tuple[float, float]]


def analyze(
    points: Annotated[
        list[str],
        typer.Argument(help="runs:method=...,problem=... of --store; FILE.csv (density,error); or folders of results."),
    ],
    store: StoreAt = "runs.db",
    dense: Annotated[float | None, typer.Option("--dense", help="Error of the dense network; default: found.")] = None,
    share: Annotated[float, typer.Option("--share", help="Of the intervals, in (0, 1).")] = 0.9,
    resamples: Annotated[int, typer.Option("--resamples", min=20, help="Fits that the intervals are made of.")] = 200,
    seed: Seed = 0,
) -> Work:
    """Fit the law of iterative magnitude pruning to measured errors, by least squares of relative differences.

    It is flat at the dense error, a power of density with exponent gamma, and flat at its end; intervals are by
    bootstrap. Errors of equal density (seeds) are averaged. Needs scipy.
    """
    wrong, found = Problems(), list[tuple[float, float]]()
    for name in points:
        with wrong.noted():
            found += _read(name, store)
    if not 0 < share < 1:
        wrong.found.append(SpecError(f"--share {share}: it lies in (0, 1)"))
    if dense is not None and not 0 < dense < float("inf"):
        wrong.found.append(SpecError(f"--dense {dense}: an error above 0"))
    densities = sorted({d for d, _ in found}, reverse=True)
    if not wrong.found and len(densities) < 4:
        wrong.found.append(SpecError(f"{len(densities)} densities: a law with three free numbers needs at least 4"))
    wrong.say()
    errors = [fmean(e for d, e in found if d == x) for x in densities]

    def run() -> Analysis:
        return _shown(densities, errors, found, dense, share, resamples, seed)

    return Work(f"would fit the law to {len(densities)} densities", {"points": len(found)}, run)


def _read(name: str, store: str) -> Found:
    """(density, error) of what a name means."""
    if name.startswith(("run:", "runs:")):
        from prunus.lab.exchange import flat

        kept, rows = rows_of(store, name)
        kept.close()
        methods = {m for r in rows if (m := flat(r, {})["method"]) != "dense"}
        if len(methods) > 1:
            raise SpecError(f"{name}: {', '.join(sorted(methods))}: one law is fitted to one method, so add method=...")
        records = [r.record for r in rows if r.record is not None]
        return [(1 - r["sparsity"], 1 - r["test"]) for r in records]
    path = Path(name).expanduser()
    if path.is_dir():
        from prunus.deploy.manifest import read_manifest

        told = read_manifest(path)
        accuracy, sparsity = told.notes.get("test_accuracy"), told.result.get("sparsity")
        if not isinstance(accuracy, float) or not isinstance(sparsity, float):
            raise SpecError(f"{name} does not say how well it did, or how sparse it is: prunus prune writes both")
        return [(1 - sparsity, 1 - accuracy)]
    if not path.is_file():
        raise SpecError(f"{name} is no file, no folder that prunus wrote, and no runs:...")
    return _table(path)


def _table(path: Path) -> Found:
    found: Found = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                density = float(row["density"]) if "density" in row else 1 - float(row["sparsity"])
                error = float(row["error"]) if "error" in row else 1 - float(row["accuracy"])
            except (KeyError, TypeError, ValueError) as odd:
                raise DataError(
                    f"{path}, line {number}: a table has columns density (or sparsity) and error (or accuracy)"
                ) from odd
            if not math.isfinite(density) or not math.isfinite(error):
                raise DataError(f"{path}, line {number}: {density}, {error} is no point")
            found.append((density, error))
    return found


def _shown(
    densities: list[float],
    errors: list[float],
    found: Found,
    dense: float | None,
    share: float,
    resamples: int,
    seed: int,
) -> Analysis:
    from prunus.measure import fit_scaling_law, scaling_intervals

    law = fit_scaling_law(densities, errors, dense=dense)
    ranges = scaling_intervals(law, densities, errors, share=share, resamples=resamples, seed=seed)
    low, high = math.log10(min(densities)) - 0.3, math.log10(max(densities))
    curve = [10 ** (low + (high - low) * i / 119) for i in range(120)]
    meaning = {"high": "error where pruning ends", "gamma": "exponent in between", "p": "density where it ends"}
    rows: list[tuple[Any, ...]] = [("dense", "error of the dense network", law.dense, None, None)]
    rows += [(n, meaning[n], getattr(law, n), *ranges[n]) for n in ("high", "gamma", "p")]
    fitted = tuple((d, e, law(d), e / law(d) - 1) for d, e in zip(densities, errors, strict=True))
    line = Line("law", tuple((d, law(d)) for d in curve))
    measured = Line("measured", tuple(zip(densities, errors, strict=True)), joined=False)
    return Analysis(
        name="scaling-law",
        title="The scaling law of pruning",
        source=ABOUT.source,
        says=(
            (
                f"gamma {law.gamma:.3g} ({share:.0%} interval {ranges['gamma'][0]:.3g} to {ranges['gamma'][1]:.3g}); "
                f"the law misses the points by {law.residual:.2%} (root mean square, relative)."
            ),
        ),
        tables=(
            Table("The law", ("number", "meaning", "value", f"{share:.0%} from", "to"), tuple(rows)),
            Table("Points", ("density", "error", "by the law", "off by"), fitted),
        ),
        plots=(Plot("Error over density", "Density", "Error", (line, measured), log_x=True, log_y=True),),
        data={
            "law": LAW,
            "dense": law.dense,
            "high": law.high,
            "gamma": law.gamma,
            "p": law.p,
            "residual": law.residual,
            "intervals": {n: list(r) for n, r in ranges.items()},
            "points": [{"density": d, "error": e, "fitted": law(d)} for d, e in zip(densities, errors, strict=True)],
        },
        notes=(
            LAW + ".",
            "Intervals say how far the points pin the law down if it is the true one, and nothing about whether it is.",
        ),
        facts={"points": len(found), "densities": len(densities), "resamples": resamples, "seed": seed},
    )
