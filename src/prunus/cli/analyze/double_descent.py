"""prunus analyze double-descent: whether sparsity first aggravates overfitting and then relieves it."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Annotated, Any

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsJudged, Opened, Training, fractions, recipe_of
from prunus.cli.output import Seed, say
from prunus.cli.showing import counting
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table

ABOUT = About(
    question="Does accuracy fall, rise again and fall as more is pruned?",
    takes="one network (trained anew) and data with classes",
    source="Sparse double descent: He et al. 2022, ICML, arXiv:2206.08684.",
)


def analyze(
    nets: NetsJudged,
    training: Training,
    method: Annotated[str, typer.Option("--method", "-m", help="A recipe that prunes trained weights.")] = "magnitude",
    sparsities: Annotated[
        str, typer.Option("--sparsities", "-s", help="A grid, separated by commas; 0 is added.")
    ] = "0.2,0.4,0.6,0.8,0.9,0.95,0.98,0.99",
    noise: Annotated[float, typer.Option("--noise", help="Share of the training labels that are made wrong.")] = 0.2,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the dense network, and after every pruning.")] = 20,
    images: Annotated[int | None, typer.Option("--images", min=8, help="The first so many training images.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="So many repetitions, from --seed on.")] = 3,
    seed: Seed = 0,
) -> Work:
    """Train with wrong labels, prune to a grid of sparsities, train each as long again, and look for a second descent.

    Training after pruning goes through the whole learning-rate schedule again. A rise within the spread of seeds shows
    nothing; labels without noise rarely show one.
    """
    wrong = Problems()
    shares: tuple[float, ...] = ()
    with wrong.noted():
        shares = fractions(sparsities, "--sparsities", zero=True)
        if len(shares) < 3:
            raise SpecError(f"--sparsities {sparsities}: a fall and a rise are seen among two sparsities or more")
    with wrong.noted():
        recipe: Any = recipe_of(method)
        if recipe.on != "pretrained":
            raise SpecError(f"--method {method} starts from untrained weights: take one that prunes trained ones")
    with wrong.noted():
        training.check()
    if not 0 <= noise <= 1:
        wrong.found.append(SpecError(f"--noise {noise}: the share of wrong labels lies in [0, 1]"))
    found = nets.looked_at(seed, wrong, most=1)
    one = found.subjects[0].built
    if one is not None and (one.saved is not None or one.checkpoint is not None):
        raise SpecError("the network is trained anew, with wrong labels: name it without weights")

    def run() -> Analysis:
        curves = []
        for i in range(seeds):
            with counting(f"seed {seed + i}") as told:
                curves.append(_curve(nets, found, training, recipe, shares, noise, epochs, images, seed + i, told))
        return _shown(found, shares, curves, {"method": method, "noise": noise, "epochs": epochs, "seeds": seeds})

    plan = {**found.facts, "method": method, "sparsities": list(shares), "noise": noise, "seeds": seeds}
    return Work(f"would train {seeds * (len(shares) + 1)} times for {epochs} epochs", plan, run)


def _curve(
    nets: NetsJudged, found: Opened, training: Training, recipe: Any, shares: tuple[float, ...], noise: float,
    epochs: int, images: int | None, seed: int, told: Any,
) -> list[tuple[float, float, float]]:  # fmt: skip
    """Of one seed: accuracy on the examples, on the noisy training data, and learning distance, by sparsity."""
    from dataclasses import replace

    from prunus import measure
    from prunus.core.task import Task
    from prunus.lab.analyses import noisy, pruned_curve
    from prunus.lab.data import Loader
    from prunus.lab.experiment import one_cycle
    from prunus.lab.trainer import train

    built = found.subjects[0].built
    assert built is not None
    fresh = nets.built(nets.networks[0], seed)
    fresh.options = {**built.options, **fresh.options}
    data = found.data if images is None else replace(found.data, train=found.data.train.head(images))
    data = noisy(data, noise, seed)
    size = min(nets.batch_size, len(data.train))
    loader = Loader(data.train, size, seed=seed, shuffle=True, drop_last=True)
    model = fresh.dense()
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    every, per = (len(shares) + 1) * epochs * len(loader), epochs * len(loader)
    train(
        model, loader, epochs=epochs, optimizer=training.optimizer()(model.parameters()), lr_schedule="one-cycle",
        progress=lambda s: told(s.step, every), seed=seed,
    )  # fmt: skip
    task = Task(loss=found.task.loss, train=loader, calib=list(loader.batches(0))[:4], example=found.example)
    seen = Loader(data.train, 500)
    runs = pruned_curve(
        model, task, recipe, shares, [found.accuracy, lambda m: measure.accuracy(m, seen)], steps=per,
        optimizer=training.optimizer(), rate=one_cycle, initial=initial, seed=seed,
        on_step=lambda done, _of, _loss: told(per + done, every),
    )  # fmt: skip
    return [(r.scores[0], r.scores[1], r.distance) for r in runs]


def _shown(
    found: Opened, shares: tuple[float, ...], curves: list[list[tuple[float, float, float]]], facts: dict[str, Any]
) -> Analysis:
    from prunus.measure import double_descent

    def means(which: int) -> list[float]:
        return [fmean(c[i][which] for c in curves) for i in range(len(shares))]

    def spreads(which: int) -> list[float]:
        if len(curves) < 2:
            return [0.0] * len(shares)
        return [stdev(c[i][which] for c in curves) for i in range(len(shares))]

    test, seen, far = means(0), means(1), means(2)
    turn = double_descent(shares, test)
    says = ["Accuracy never rises again after it has fallen: there is no second descent here."]
    rises: list[float] = []
    if turn is not None:
        at = [shares.index(turn.trough), shares.index(turn.peak)]
        rises = [c[at[1]][0] - c[at[0]][0] for c in curves]
        apart = (
            f", with a standard deviation of {stdev(rises) * 100:.2f} over seeds" if len(rises) > 1 else ", one seed"
        )
        says = [
            f"Accuracy falls by {100 * turn.fall:.2f} points to {turn.trough:.0%} sparsity.",
            f"Then it rises by {100 * turn.rise:.2f} points to {turn.peak:.0%}{apart}.",
        ]
    if len(curves) < 3:
        say(f"{len(curves)} seed(s): a rise may be chance; three or more tell it from noise")
    rows = tuple(zip(shares, test, spreads(0), seen, far, strict=True))
    lines = (
        Line("held out", tuple(zip(shares, test, strict=True)), apart=tuple(spreads(0))),
        Line("training, wrong labels too", tuple(zip(shares, seen, strict=True)), apart=tuple(spreads(1))),
    )
    distance = Line("distance", tuple(zip(shares, far, strict=True)), apart=tuple(spreads(2)))
    marks = () if turn is None else ((turn.trough, "trough"), (turn.peak, "peak"))
    return Analysis(
        name="double-descent",
        title=f"Accuracy of {found.subjects[0].name} over sparsity, with wrong labels",
        source=ABOUT.source,
        says=tuple(says),
        tables=(
            Table(
                "Means over seeds", ("sparsity", "accuracy", "standard deviation", "on training data", "distance"),
                rows, ".4f",
            ),
        ),
        plots=(
            Plot("Accuracy", "Sparsity", "Accuracy", lines, sparsity_x=True, percent_y=True, marks=marks),
            Plot("Learning distance of what is kept", "Sparsity", "l2 distance", (distance,), sparsity_x=True),
        ),
        data={
            "sparsities": list(shares),
            "seeds": [
                {name: [point[i] for point in c] for i, name in enumerate(("accuracy", "training", "distance"))}
                for c in curves
            ],
            "descent": None if turn is None else vars(turn),
            "rises": rises,
        },
        facts={**found.facts, **facts},
    )  # fmt: skip
