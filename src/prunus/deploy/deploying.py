"""The dense and the pruned model on every runtime that is installed: checked, timed in turns, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from prunus.core.errors import DataError, PrunusError, SpecError, VerificationError
from prunus.core.task import Example
from prunus.deploy import runtimes as registry
from prunus.deploy.calling import subject_call
from prunus.deploy.copies import deployed_copy
from prunus.deploy.deployment import Absent, Deployment, Row, Timed, sentences
from prunus.deploy.onnx import tolerance
from prunus.deploy.patterns import left
from prunus.deploy.runtimes.base import Precision, Runtime, Session, Subject, output_tensors
from prunus.graph.running import unwrap
from prunus.graph.verify import largest_difference
from prunus.measure.inputs import as_found, batch_size, check_materialized, device_of, run
from prunus.measure.machine import machine
from prunus.measure.resident import peak_of, settled_bytes
from prunus.measure.timing import check_runs, interleaved, paired_ratio, quartiles, stopwatch, threads_of

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1, "int8": 1.0}
"""How far outputs may be from eager float32, over their largest value. int8 is told and not judged but for nonsense."""

PAUSE = 0.002  # seconds in which the threads of the run before come to rest
_NATIVE = {"AVX-512 BF16", "AMX BF16", "NEON BF16"}
_AMX = {"AMX BF16", "AMX INT8"}


def deploy(
    dense: nn.Module,
    pruned: nn.Module,
    example: Example | Tensor,
    *,
    runtimes: Sequence[str | Runtime] | None = None,
    quantize: Sequence[Precision] = (),
    threads: int | None = None,
    runs: int = 50,
    min_seconds: float = 0.5,
    calib: Sequence[Example | Tensor] = (),
    on_step: Callable[[int, int, str], None] | None = None,
) -> Deployment:
    """Run two models on every runtime installed here, check what they compute, and rank the runtimes.

    Args:
        dense, pruned: models that take the same example; copies are run, in evaluation mode, with denormal weights
            made zeros. Compact the pruned one first (`Result.compact`), or sparsity in place is all there is to see.
        example: the batch of one inference.
        runtimes: titles of `prunus.deploy.runtimes.known`, or runtimes; left out, all in float32, and in bfloat16
            where the processor computes in it.
        quantize: further precisions: `bfloat16`, `int8`.
        threads: of every runtime; left out, PyTorch's number.
        runs, min_seconds: timed inferences of each model on each runtime, at least.
        calib: further examples, for the ranges of int8.
        on_step: told (done, total, the runtime that is next).

    Returns: a row per runtime that ran and gave the right outputs; every other with its reason.
    Cost: per runtime, making two models ready (compilers: up to a minute) and three times the runs: dense eager
        PyTorch takes turns with the two models, so that a drift of the machine hits all alike. Memory: copies of both
        models and of what a runtime makes of them, one runtime at a time.
    Errors: `SpecError` for settings; `DataError` where a model does not run on the example; `UnknownNameError`.
    """
    check_runs(1, runs, min_seconds, threads)
    chosen = chosen_from(runtimes, quantize)
    models = {"dense": unwrap(dense), "pruned": unwrap(pruned)}
    for model in models.values():
        check_materialized(model)
        if any(t.is_meta for t in model.parameters()):
            raise SpecError("a model on the meta device has no weights to run: load them first")
    what = left(models["dense"], models["pruned"], example)
    rows: list[Row] = []
    absent: list[Absent] = []
    with TemporaryDirectory(prefix="prunus-deploy-") as folder, threads_of(threads) as used:
        subjects, flushed = _subjects(models, example, Path(folder), tuple(calib))
        expected = {name: _eager(s) for name, s in subjects.items()}
        size = batch_size(example) or 1
        with _opened(registry.named("eager"), subjects["dense"], used) as reference:
            for done, runtime in enumerate(chosen):
                if on_step is not None:
                    on_step(done, len(chosen), runtime.title)
                if why := runtime.missing():
                    absent.append(Absent(runtime.title, why))
                    continue
                try:
                    rows.append(_row(runtime, subjects, expected, reference, used, runs, min_seconds, what, size))
                except (PrunusError, RuntimeError, ImportError, OSError) as error:
                    # One runtime's failure is a line of the answer and not the end of it.
                    first = (str(error).strip() or type(error).__name__).splitlines()[0]
                    absent.append(Absent(runtime.title, first))
    rows.sort(key=lambda r: r.pruned.median_ms)
    here = machine()
    able = {r.runtime: registry.named(r.runtime).skips for r in rows if r.runtime in registry.known()}
    gone = {a.runtime: a.reason for a in absent}
    sparse = {n: gone.get(n, "not among the runtimes asked for") for n, r in registry.known().items() if r.skips}
    return Deployment(
        says=sentences(
            tuple(rows), what, able, {n: w for n, w in sparse.items() if n not in able}, _has(here.features, _AMX)
        ),
        rows=tuple(rows),
        absent=tuple(absent),
        left=what,
        flushed=flushed,
        batch=size,
        threads=used,
        machine=here.to_dict(),
    )


def _has(features: dict[str, bool], wanted: set[str]) -> bool:
    return any(features.get(name, False) for name in wanted)


def chosen_from(asked: Sequence[str | Runtime] | None, quantize: Sequence[Precision]) -> list[Runtime]:
    """The runtimes that `deploy` tries, installed or not. Errors: `SpecError`, `UnknownNameError`."""
    if odd := [q for q in quantize if q not in registry.PRECISIONS]:
        raise SpecError(f"quantize={odd[0]!r}: {', '.join(registry.PRECISIONS)}")
    wanted = {"float32", *quantize} | ({"bfloat16"} if _has(machine().features, _NATIVE) else set())
    every = registry.known()
    if asked is None:
        return [r for r in every.values() if r.precision in wanted]
    found = [registry.named(r) if isinstance(r, str) else r for r in asked]
    # A name without a precision, beside --quantize, means that runtime in those precisions too.
    more = [r for r in every.values() if r.precision in quantize and any(r.name == f.name for f in found)]
    return list({r.title: r for r in (*found, *more)}.values())


def _subjects(
    models: dict[str, nn.Module], example: Example | Tensor, folder: Path, calib: tuple[Example | Tensor, ...]
) -> tuple[dict[str, Subject], dict[str, int]]:
    """Copies in evaluation mode without denormals, and how many those were."""
    subjects: dict[str, Subject] = {}
    flushed: dict[str, int] = {}
    for name, model in models.items():
        subjects[name], tiny = subject_of(model, example, folder / name, calib)
        flushed |= {f"{name}: {n}": count for n, count in tiny.items()}
    return subjects, flushed


def subject_of(
    model: nn.Module, example: Example | Tensor, folder: Path, calib: Sequence[Example | Tensor] = ()
) -> tuple[Subject, dict[str, int]]:
    """What runtimes are given: a copy in evaluation mode with denormal weights made zeros, and how many those were."""
    own, flushed = deployed_copy(model)
    args, kwargs = subject_call(own, example)
    return Subject(own, args, kwargs, folder, tuple(calib)), flushed


def _eager(subject: Subject) -> list[Tensor]:
    """What eager PyTorch computes. Errors: `DataError` where the model does not run on the example."""
    model = subject.model
    with as_found(model, device_of(model, subject.args or subject.kwargs), inference=False):
        found = output_tensors(run(model, subject.args, subject.kwargs))
    if not found:
        raise DataError(f"{type(model).__name__} returns no tensor, so there is nothing to compare")
    return found


@contextmanager
def _opened(runtime: Runtime, subject: Subject, threads: int) -> Iterator[Session]:
    session = runtime.open(subject, threads)
    try:
        yield session
    finally:
        session.close()


def _row(
    runtime: Runtime,
    subjects: dict[str, Subject],
    expected: dict[str, list[Tensor]],
    reference: Session,
    threads: int,
    runs: int,
    min_seconds: float,
    what: Any,
    batch: int,
) -> Row:
    """Both models on one runtime, in turns with the reference."""
    for subject in subjects.values():
        runtime.ready(subject)
    before: dict[str, int] = {}
    with (
        _memory(runtime, subjects["dense"], threads, before, "dense") as one,
        _memory(runtime, subjects["pruned"], threads, before, "pruned") as two,
    ):
        sessions = {"dense": one, "pruned": two}
        errors = {n: _error(runtime, subjects[n], expected[n], s.tensors(s.run())) for n, s in sessions.items()}
        calls = {"eager": reference.run, **{n: s.run for n, s in sessions.items()}}
        clocks = {n: stopwatch(s.device) for n, s in {"eager": reference, **sessions}.items()}
        pause = PAUSE if threads > 1 else 0.0
        took = interleaved(calls, warmup=3, runs=runs, min_seconds=min_seconds, clocks=clocks, pause=pause)
        timed = {}
        for name, session in sessions.items():
            low, middle, high = quartiles(took[name])
            timed[name] = Timed(middle, low, high, errors[name], session.bytes, before.get(name))
        ratio = paired_ratio(took["dense"], took["pruned"])
        return Row(
            runtime=runtime.title,
            precision=runtime.precision,
            dense=timed["dense"],
            pruned=timed["pruned"],
            ratio=ratio,
            over_eager=paired_ratio(took["eager"], took["pruned"]),
            efficiency=ratio.median / what.macs_ratio,
            per_second=batch * 1000 / timed["pruned"].median_ms,
            batch=batch,
            threads=threads,
            device=str(two.device),
            runs=len(took["pruned"]),
            notes=tuple(dict.fromkeys((*one.notes, *two.notes))),
        )


@contextmanager
def _memory(runtime: Runtime, subject: Subject, threads: int, found: dict[str, int], name: str) -> Iterator[Session]:
    """A session, and in `found` how far the process rose at most while it ran, above what it was before it."""
    start = settled_bytes()
    with _opened(runtime, subject, threads) as session:
        settled_bytes()
        peak = peak_of(session.run)
        if start is not None and peak is not None:
            found[name] = max(0, peak - start)
        yield session


def _error(runtime: Runtime, subject: Subject, expected: list[Tensor], found: list[Tensor]) -> float:
    """How far outputs are from eager's. Errors: `VerificationError` where that is more than the precision explains."""
    if len(expected) != len(found):
        raise VerificationError(f"gives {len(found)} outputs, eager PyTorch {len(expected)}")
    # Some runtimes have integers of 32 bits only, and no truth values.
    same = [e.is_floating_point() or not f.is_floating_point() for e, f in zip(expected, found, strict=True)]
    alike = [f.to(e.dtype) if s else f for e, f, s in zip(expected, found, same, strict=True)]
    apart = largest_difference(expected, alike)
    most = max(TOLERANCE[runtime.precision], tolerance(subject.model, expected))
    if not apart <= most:
        raise VerificationError(
            f"outputs are {apart:.1e} of their largest value from eager PyTorch's (allowed: {most:.0e}), so its "
            f"times are not shown"
        )
    return apart
