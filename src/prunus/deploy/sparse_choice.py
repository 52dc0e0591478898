"""Which packed form of a layer is fastest here, if any beats the dense layer: measured on the layer's own input."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import VerificationError
from prunus.deploy.sparse_modules import PackedLayer, can_fold, pack_layer, tensors_of
from prunus.deploy.sparse_record import LayerRecord
from prunus.deploy.sparse_trace import Site
from prunus.graph.verify import largest_difference
from prunus.measure.timing import MIN_RUNS, interleaved, paired_ratio, quartiles

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far apart outputs may be, over the largest value of the dense one, by the type of the packed values."""

HOPELESS = 1.5
"""Forms that take so many times longer than the fastest one in a first look are not timed again."""


@dataclass(frozen=True)
class Way:
    """A way of packing: a form, and the type of the values."""

    form: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """`form dtype`, for people."""
        return f"{self.form} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Terms:
    """What a packed layer has to meet.

    Attributes:
        margin: dense time / packed time that it must reach at least; from 1 on, the quartiles must be above 1 as well.
        tol: largest difference of the outputs over the largest value of the dense one; None: by the type of the values.
        runs: timed runs of every way.
    """

    margin: float = 1.05
    tol: float | None = None
    runs: int = MIN_RUNS

    def allows(self, error: float, dtype: torch.dtype) -> bool:
        """Whether outputs are near enough."""
        return error <= (TOLERANCE[dtype] if self.tol is None else self.tol)


@dataclass(frozen=True)
class Layer:
    """A layer at hand: where it is, the modules it consists of, and what it is given."""

    site: Site
    modules: tuple[nn.Module, ...]
    norm: nn.Module | None
    x: Tensor

    def dense(self) -> Tensor:
        """What the modules compute, hooks and all left out: they have none."""
        out = self.x
        for module in self.modules:
            out = _called(module, out)
        return out

    def foldable(self) -> Layer:
        """This layer, or without what follows it where folding that in could not be undone."""
        if self.norm is None or can_fold(self.site, self.modules[0], self.norm):
            return self
        alone = replace(self.site, norm=None, activation="none", activation_path=None)
        return Layer(alone, self.modules[:1], None, self.x)

    def pack(self, way: Way) -> PackedLayer:
        """The layer packed, with what follows drawn in."""
        return pack_layer(self.site, self.modules[0], self.norm, way.form, way.dtype)


def choose(
    layer: Layer, record: LayerRecord, ways: Sequence[Way], terms: Terms
) -> tuple[LayerRecord, PackedLayer | None]:
    """The fastest way of packing a layer, if it meets the terms.

    Dense and packed layers are timed in turns, so that a drift of the machine hits all alike (`turns`). Where the
    packed values are narrower than the layer's, the dense layer in their type is a rival too: if that is faster than
    every packed way, the layer stays as it is, and the record says so.

    Returns: the record, filled, and the module that takes the layer's place; None where it stays dense.
    Cost: packs the weight once per way; `terms.runs` runs of each that is not hopeless.
    """
    layer = layer.foldable()
    expected = layer.dense()
    packed: dict[Way, PackedLayer] = {}
    calls: dict[str, Callable[[], object]] = {"dense": layer.dense}
    errors: dict[str, float] = {}
    wrong = ""
    for way in ways:
        module = layer.pack(way)
        errors[way.name] = apart(expected, module(layer.x))
        if terms.allows(errors[way.name], way.dtype):
            packed[way], calls[way.name] = module, _calling(module, layer.x)
        else:
            wrong = f"its outputs as {way.name} differ by {errors[way.name]:.1e} of their largest value"
    if not packed:
        return replace(record, why=wrong or _formless(layer)), None
    calls |= _narrow_rivals(layer, {way.dtype for way in packed})
    samples = turns(_hopeful(calls), terms.runs)
    middle = {name: quartiles(times)[1] for name, times in samples.items()}
    found = replace(record, tried={n: t for n, t in middle.items() if n != "dense"}, dense_ms=middle["dense"])
    best = min((way for way in packed if way.name in middle), key=lambda way: middle[way.name])
    ratio = paired_ratio(samples["dense"], samples[best.name])
    found = replace(found, sparse_ms=middle[best.name], ratio=ratio, error=errors[best.name])
    rival = min((n for n in middle if n.startswith("dense")), key=lambda n: middle[n])
    if rival != "dense" and middle[rival] <= middle[best.name]:
        return replace(found, why=f"as a {rival} layer it would be faster: {middle[rival]:.3f} ms"), None
    if ratio.median < terms.margin or ratio.q25 <= min(1.0, terms.margin):
        return replace(found, why=f"{best.name} is {ratio.verdict}"), None
    return _filled(found, layer.site, packed[best], best, errors[best.name]), packed[best]


def _formless(layer: Layer) -> str:
    weight, _ = tensors_of(layer.modules[0])
    if weight.dtype in TOLERANCE:
        return "no form can hold this weight"
    return f"its weight is {str(weight.dtype).removeprefix('torch.')}: the kernels compute in float32 and bfloat16"


def follow(layer: Layer, record: LayerRecord, way: Way) -> tuple[LayerRecord, PackedLayer | None]:
    """A layer packed in the way that is asked for; nothing is timed. Errors: `SpecError` if the form does not fit."""
    layer = layer.foldable()
    module = layer.pack(way)
    return _filled(record, layer.site, module, way, apart(layer.dense(), module(layer.x))), module


def _filled(record: LayerRecord, site: Site, module: PackedLayer, way: Way, error: float) -> LayerRecord:
    """The record of a layer that is packed."""
    dtype = str(way.dtype).removeprefix("torch.")
    found = replace(record, form=way.form, dtype=dtype, error=error, packed_bytes=module.nbytes)
    return replace(found, norm=site.norm, activation=site.activation_path)


def apart(expected: Tensor, found: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes differ or nothing can be compared."""
    try:
        return largest_difference([expected], [found])
    except VerificationError:
        return float("inf")


def turns(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each call, `runs` times in turns after one that is not timed.

    With one thread it is the processor's time that counts, which other programs on the machine disturb less than the
    time on the wall; with more it is the latter.
    """
    clock = time.process_time_ns if torch.get_num_threads() == 1 else time.perf_counter_ns

    def timed(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return (clock() - start) / 1e6

    return interleaved(calls, warmup=1, runs=runs, min_seconds=0.0, clocks=dict.fromkeys(calls, timed))


@contextmanager
def settled() -> Iterator[None]:
    """What is in memory by now is no business of the garbage collector meanwhile, which `turns` calls before each time.

    With some libraries loaded a collection takes longer than timing a layer does.
    """
    if gc.get_freeze_count():  # the user has frozen objects, and thawing is all or nothing
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _called(module: nn.Module, x: Tensor) -> Tensor:
    """What a module without hooks computes, past the hook that is judging it."""
    forward: Callable[[Tensor], Tensor] = module.forward
    return forward(x)


def _calling(module: PackedLayer, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _hopeful(calls: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The dense layers, and the packed ones that are not much slower than the fastest of them in a first look."""
    first = {n: min(times) for n, times in turns(calls, 2).items()}
    limit = HOPELESS * min(time for n, time in first.items() if not n.startswith("dense"))
    return {n: call for n, call in calls.items() if n.startswith("dense") or first[n] <= limit}


def _dense_in(site: Site, module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The dense product with weights and input in another type, its result in the input's."""
    weight, bias = (None if t is None else t.to(dtype) for t in tensors_of(module))
    assert weight is not None
    if site.kind == "linear":
        matrix = weight.t() if site.transposed else weight
        return lambda x: F.linear(x.to(dtype), matrix, bias).to(x.dtype)
    where = (site.stride, site.padding, site.dilation)
    return lambda x: F.conv2d(x.to(dtype), weight, bias, *where).to(x.dtype)


def _narrow_rivals(layer: Layer, dtypes: set[torch.dtype]) -> dict[str, Callable[[], object]]:
    """The dense layer in each narrower type that values are packed in, by name."""
    rivals: dict[str, Callable[[], object]] = {}
    own, _ = tensors_of(layer.modules[0])
    for dtype in dtypes - {own.dtype}:
        first = _dense_in(layer.site, layer.modules[0], dtype)

        def run(first: Callable[[Tensor], Tensor] = first) -> object:
            out = first(layer.x)
            for module in layer.modules[1:]:
                out = _called(module, out)
            return out

        rivals[f"dense {str(dtype).removeprefix('torch.')}"] = run
    return rivals
