"""Layers with zeros are replaced by packed ones where that is measured to be faster on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, PrunusError, SpecError, VerificationError, listed
from prunus.core.task import Example, as_call
from prunus.deploy import kernels
from prunus.deploy.sparse_choice import TOLERANCE, Layer, Terms, Way, choose, follow, settled, turns
from prunus.deploy.sparse_modules import DrawnIn, PackedLayer, tensors_of
from prunus.deploy.sparse_record import LayerRecord, Sparsified
from prunus.deploy.sparse_trace import Site, read, zeros
from prunus.graph.duplicate import duplicate
from prunus.graph.running import call, tensors_in
from prunus.graph.verify import largest_difference
from prunus.measure.inputs import as_found, batch_size, check_materialized
from prunus.measure.timing import MIN_RUNS, paired_ratio, quartiles, threads_of

_CPU = torch.device("cpu")


def sparsify(
    model: nn.Module,
    example: Example | Tensor,
    *,
    threads: int | None = None,
    margin: float = 1.05,
    dtype: torch.dtype | None = None,
    least: float = 0.3,
    exclude: Sequence[str] = (),
    like: Sparsified | Mapping[str, Any] | None = None,
    tol: float | None = None,
    runs: int = MIN_RUNS,
) -> Sparsified:
    """A copy of the model in which layers with zeros are packed where that is faster on this machine.

    Args, returns, cost and errors are those of `sparsify_`; the model itself is not changed.
    """
    options = {"threads": threads, "margin": margin, "dtype": dtype, "least": least, "exclude": exclude, "like": like}
    _check(model, margin, least, dtype, runs)
    return sparsify_(duplicate(model), example, tol=tol, runs=runs, **options)  # type: ignore[arg-type]


def sparsify_(
    model: nn.Module,
    example: Example | Tensor,
    *,
    threads: int | None = None,
    margin: float = 1.05,
    dtype: torch.dtype | None = None,
    least: float = 0.3,
    exclude: Sequence[str] = (),
    like: Sparsified | Mapping[str, Any] | None = None,
    tol: float | None = None,
    runs: int = MIN_RUNS,
) -> Sparsified:
    """Pack the layers with zeros where that is faster on this machine, in place.

    Every layer that is one product with a weight of its own (linear layers and 2-D convolutions in one group, whatever
    their class) is timed on the input that it gets from the example, dense and in each form that holds its weight
    without loss. The fastest form takes its place, together with a batch normalization, ReLU or GELU that alone reads
    its output. A layer for which none is faster stays as it is. The model is changed once everything was measured.

    Args:
        model: in evaluation mode, on the CPU, in float32 or bfloat16.
        example: an input, with the batch that is to be fast.
        threads: PyTorch's threads while measuring; left out, as many as it uses now.
        margin: how many times faster a packed layer has to be than the dense one.
        dtype: `torch.bfloat16` also tries values rounded to that type, and takes them only where they are faster than
            the dense layer in bfloat16 too. Such weights stay rounded in `densify`.
        least: layers with a smaller share of zeros stay dense without being timed.
        exclude: names of modules, with shell wildcards, that stay dense.
        like: the record of an earlier call, or its `to_dict()`: the same layers are packed in the same forms, and
            nothing is timed. For loading a packed state.
        tol: how far outputs may be apart, of a layer and of the model, over the largest value of each; left out, 1e-4,
            and 5e-2 where packed values or outputs are bfloat16.
        runs: timed runs of every layer and of the model.

    Returns: the record, which holds the packed model.
    Cost: two runs of the model, `runs` runs of each layer in every form that is not far slower than the dense one, and
        `runs` runs of the whole model before and after. Dense and packed weights are in memory together meanwhile.
    Errors: `PrunusError` without the kernels (says what is missing); `SpecError` for a model in training mode, on
        another device or of a single layer, and for settings that make no sense; `VerificationError` where the whole
        model's outputs differ. The model is then as it was.
    """
    _check(model, margin, least, dtype, runs)
    terms = Terms(margin, tol, runs)
    wanted = None if like is None else _wanted(like)
    with threads_of(threads) as used, settled():
        reading = read(model, example, least, wanted or ())
        named = dict(model.named_modules())
        sites = {path: site for path, site in reading.sites.items() if not _matches(path, exclude)}
        if wanted is not None and (unknown := sorted(set(wanted) - set(sites))):
            raise SpecError(f"the record packs layers that this model has not, or that cannot be: {listed(unknown)}")
        outcomes: dict[str, tuple[LayerRecord, PackedLayer | None]] = {
            path: (_blank(site, named[path], "excluded"), None)
            for path, site in reading.sites.items()
            if path not in sites
        }

        def decide(layer: Layer) -> tuple[LayerRecord, PackedLayer | None]:
            record = _blank(layer.site, layer.modules[0])
            if wanted is None:
                return choose(layer, record, _ways(layer, dtype), terms)
            way = wanted.get(layer.site.path)
            return (replace(record, why="dense in the record"), None) if way is None else follow(layer, record, way)

        outcomes |= _judged(model, example, sites, decide)
        swaps = _swaps(model, [module for _, module in outcomes.values() if module is not None])
        layers = tuple(outcomes[path][0] for path in reading.sites)
        error = _proved(model, example, reading.outputs, swaps, layers, tol)
        samples = {} if wanted is not None or not swaps else _timed(model, example, swaps, runs)
    _place(swaps, packed=True)
    middle = {name: quartiles(times)[1] for name, times in samples.items()}
    return Sparsified(
        model=model,
        layers=layers,
        left=reading.left,
        dense_ms=middle.get("dense"),
        sparse_ms=middle.get("packed"),
        ratio=paired_ratio(samples["dense"], samples["packed"]) if samples else None,
        error=error,
        threads=used,
        batch=batch_size(example),
        level=kernels.level(),
    )


def _check(model: nn.Module, margin: float, least: float, dtype: torch.dtype | None, runs: int) -> None:
    """Everything that can be refused before the model runs."""
    if not kernels.available():
        raise PrunusError(f"the sparse kernels are not available here: {kernels.reason()}")
    check_materialized(model)
    if model.training or any(m.training for m in model.modules()):
        raise SpecError("packed layers are for inference, and this model is in training mode: call model.eval() first")
    if not any(True for _ in model.children()):
        raise SpecError("this model is a single layer, which cannot be replaced: put it into torch.nn.Sequential")
    away = sorted({str(t.device) for t in (*model.parameters(), *model.buffers()) if t.device.type != "cpu"})
    if away:
        raise SpecError(f"the sparse kernels run on the CPU, and this model has tensors on {listed(away)}")
    if any(isinstance(m, PackedLayer) for m in model.modules()):
        raise SpecError("this model has packed layers already: start from densify(model)")
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise SpecError(f"dtype={dtype}: values are packed as torch.float32 or torch.bfloat16")
    if not margin > 0 or not 0 <= least <= 1 or runs < 5:
        raise SpecError(f"margin={margin}, least={least}, runs={runs}: give a margin above 0, 0..1, and 5 runs or more")


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _wanted(like: Sparsified | Mapping[str, Any]) -> dict[str, Way]:
    """The forms of a record, by layer."""
    told = like.to_dict() if isinstance(like, Sparsified) else like
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
    try:
        return {x["path"]: Way(str(x["form"]), dtypes[x["dtype"]]) for x in told["layers"] if x["form"] is not None}
    except (KeyError, TypeError) as error:
        raise DataError(f"like= takes a record of sparsify or its to_dict(), and this lacks {error}") from error


def _blank(site: Site, module: nn.Module, why: str = "") -> LayerRecord:
    """What is known of a layer before anything is timed."""
    weight, _ = tensors_of(module)
    shape = tuple(weight.t().shape) if site.transposed else tuple(weight.shape)
    return LayerRecord(site.path, site.kind, shape, zeros(weight), dense_bytes=weight.nbytes, why=why)


def _ways(layer: Layer, dtype: torch.dtype | None) -> list[Way]:
    """Every form that holds the layer's weight, with the types its values may have."""
    weight, _ = tensors_of(layer.modules[0])
    if weight.dtype not in TOLERANCE:
        return []
    matrix = (weight.t() if layer.site.transposed else weight) + 0.0
    dtypes = dict.fromkeys([weight.dtype, *([torch.bfloat16] if dtype == torch.bfloat16 else [])])
    return [Way(form, kept) for kept in dtypes for form in kernels.forms_of(matrix)]


def _judged(
    model: nn.Module,
    example: Example | Tensor,
    sites: Mapping[str, Site],
    decide: Callable[[Layer], tuple[LayerRecord, PackedLayer | None]],
) -> dict[str, tuple[LayerRecord, PackedLayer | None]]:
    """Run the model and decide on each layer when it is called, on its input: no input is kept."""
    named = dict(model.named_modules())
    found: dict[str, tuple[LayerRecord, PackedLayer | None]] = {}
    failed: list[PrunusError] = []

    def judging(site: Site) -> Callable[..., None]:
        chain = [p for p in (site.path, site.norm, site.activation_path) if p is not None]
        norm = None if site.norm is None else named[site.norm]

        def judge(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if site.path in found or failed:
                return
            try:
                found[site.path] = decide(Layer(site, tuple(named[p] for p in chain), norm, args[0]))
            except PrunusError as error:  # raised below, so that it is not taken for the model's own
                failed.append(error)

        return judge

    handles = [named[path].register_forward_hook(judging(site)) for path, site in sites.items()]
    try:
        with as_found(model, _CPU, inference=False):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    if failed:
        raise failed[0]
    return found


class _Swap(NamedTuple):
    parent: nn.Module
    name: str
    dense: nn.Module
    packed: nn.Module


def _swaps(model: nn.Module, chosen: Sequence[PackedLayer]) -> list[_Swap]:
    """What has to be put where; a module that is known by several names is replaced under each."""
    named = dict(model.named_modules())
    new: dict[int, nn.Module] = {}
    for module in chosen:
        new[id(named[module.site.path])] = module
        for path in (module.site.norm, module.site.activation_path):
            if path is not None:
                new[id(named[path])] = DrawnIn(named[path])
    places = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
    return [_Swap(p, n, child, new[id(child)]) for p, n, child in places if child is not None and id(child) in new]


def _place(swaps: Sequence[_Swap], *, packed: bool) -> None:
    for swap in swaps:
        swap.parent._modules[swap.name] = swap.packed if packed else swap.dense


@contextmanager
def _placed(swaps: Sequence[_Swap]) -> Iterator[None]:
    _place(swaps, packed=True)
    try:
        yield
    finally:
        _place(swaps, packed=False)


def _proved(
    model: nn.Module,
    example: Example | Tensor,
    expected: list[Tensor],
    swaps: Sequence[_Swap],
    layers: Sequence[LayerRecord],
    tol: float | None,
) -> float:
    """The largest difference of the whole model's outputs, if it is allowed."""
    with _placed(swaps), as_found(model, _CPU, inference=False):
        found = [t.detach() for t in tensors_in(call(model, example))]
    packed = [x for x in layers if x.form is not None]
    narrow = any(x.dtype == "bfloat16" for x in packed) or any(t.dtype == torch.bfloat16 for t in expected)
    allowed = TOLERANCE[torch.bfloat16 if narrow else torch.float32] if tol is None else tol
    error = largest_difference(expected, found)
    if not error <= allowed:
        worst = sorted(packed, key=lambda x: -(x.error or 0.0))[:3]
        most = ", ".join(f"{x.path} ({x.error:.1e})" for x in worst)
        raise VerificationError(
            f"the packed model's outputs differ by {error:.1e} of their largest value (allowed: {allowed:.0e}), though "
            f"each layer's are near enough; most in {most}. Leave those dense with exclude=, or give a larger tol"
        )
    return error


def _timed(model: nn.Module, example: Example | Tensor, swaps: Sequence[_Swap], runs: int) -> dict[str, list[float]]:
    """Milliseconds of the whole model, dense and packed in turns."""

    args, kwargs = as_call(example)

    def timed(packed: bool) -> Callable[[], object]:
        def run() -> object:
            _place(swaps, packed=packed)
            return model(*args, **kwargs)

        return run

    try:
        with as_found(model, _CPU):
            return turns({"dense": timed(False), "packed": timed(True)}, runs)
    finally:
        _place(swaps, packed=False)
