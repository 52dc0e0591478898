"""What `sparsify` found and did, layer by layer: for the terminal, notebooks and JSON."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from prunus.measure.timing import LatencyRatio


@dataclass(frozen=True)
class LayerRecord:
    """One layer whose weight has zeros.

    Attributes:
        path: of the module in the model.
        kind: what it computes.
        shape: of its weight, `[out, in]` or `[out, in, kh, kw]`.
        sparsity: share of zeros.
        form: how the weight is packed; None where the layer stays dense.
        dtype: of the packed values.
        dense_ms: median time of the layer as it was, with the normalization and activation that would be drawn in, on
            the input that it gets from the example. None where nothing was timed.
        sparse_ms: the same of the fastest packed form, whether it was chosen or not.
        tried: median milliseconds of every form that was timed.
        ratio: dense / sparse of neighbouring runs; None where nothing was timed.
        error: largest difference of the outputs over the largest value of the dense one.
        norm: path of the batch normalization that was folded into it.
        activation: path of the module whose ReLU or GELU it computes.
        dense_bytes, packed_bytes: of the weight.
        why: why it stays dense; empty where it was packed.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    form: str | None = None
    dtype: str = ""
    dense_ms: float | None = None
    sparse_ms: float | None = None
    tried: dict[str, float] = field(default_factory=dict)
    ratio: LatencyRatio | None = None
    error: float | None = None
    norm: str | None = None
    activation: str | None = None
    dense_bytes: int = 0
    packed_bytes: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Sparsified:
    """A model with packed layers, and how it came about.

    Attributes:
        model: it computes what it did before, to rounding; for inference only.
        layers: every layer that could be packed, in the order of the model.
        left: further weights with zeros, and why they could not be packed.
        dense_ms, sparse_ms: median time of the whole model before and after, measured in turns; None where not timed.
        ratio: dense / sparse of neighbouring runs of the whole model.
        error: largest difference of the outputs over the largest value of each dense one.
        threads: with which it was measured.
        batch: first axis of the example's tensors, where they agree.
        level: instructions that the kernels use here.
    """

    model: nn.Module
    layers: tuple[LayerRecord, ...]
    left: dict[str, str]
    dense_ms: float | None
    sparse_ms: float | None
    ratio: LatencyRatio | None
    error: float
    threads: int
    batch: int | None
    level: str

    @property
    def packed(self) -> tuple[LayerRecord, ...]:
        """The layers that were packed."""
        return tuple(layer for layer in self.layers if layer.form is not None)

    def dense(self) -> nn.Module:
        """The dense model back; the packed one is not changed. See `densify`."""
        from prunus.deploy.sparse_modules import densify

        return densify(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the model; `sparsify(..., like=...)` takes it."""
        told = {k: v for k, v in vars(self).items() if k not in ("model", "layers", "ratio")}
        ratio = None if self.ratio is None else self.ratio.to_dict()
        return {**told, "ratio": ratio, "layers": [{**asdict(x), "shape": list(x.shape)} for x in self.layers]}

    def summary(self) -> list[str]:
        """Whether the model became faster, and what of it was packed, in sentences."""
        how = f"{self.threads} thread{'s' * (self.threads != 1)}, {self.level}"
        how += "" if self.batch is None else f", batch {self.batch}"
        lines = [f"{len(self.packed)} of {len(self.layers)} layers with zeros are packed ({how})"]
        if self.ratio is not None:
            found = f"{self.dense_ms:.2f} -> {self.sparse_ms:.2f} ms, {self.ratio.verdict}"
            lines.append(f"the whole model: {found} (middle half {self.ratio.q25:.2f} to {self.ratio.q75:.2f})")
        saved = [x for x in self.packed if x.packed_bytes is not None]
        if saved:
            before, after = sum(x.dense_bytes for x in saved), sum(x.packed_bytes or 0 for x in saved)
            lines.append(f"their weights take {after / 1e6:.2f} MB instead of {before / 1e6:.2f} MB")
        lines.append(f"outputs differ by {self.error:.1e} of their largest value")
        return lines

    def __str__(self) -> str:
        rows = [("layer", "weight", "zeros", "form", "dense ms", "sparse ms", "ratio", "note"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(7)]
        table = ["  ".join(c.ljust(w) for c, w in zip(r, [*widths, 0], strict=True)).rstrip() for r in rows]
        others = [f"not packable: {name}: {why}" for name, why in self.left.items()]
        return "\n".join([*self.summary(), "", *table, *others])

    def _repr_html_(self) -> str:
        head, *rest = self.summary()
        cells = [[html.escape(c) for c in row] for row in self._rows()]
        names = "<th>layer<th>weight<th>zeros<th>form<th>dense ms<th>sparse ms<th>ratio<th>note"
        table = "".join("<tr>" + "".join(f"<td>{c}" for c in row) for row in cells)
        others = "".join(f"<li><code>{html.escape(n)}</code>: {html.escape(w)}" for n, w in self.left.items())
        told = "".join(f"<p>{html.escape(line)}" for line in rest)
        return f"<b>{html.escape(head)}</b>{told}<table><tr>{names}{table}</table><ul>{others}</ul>"

    def _rows(self) -> Sequence[tuple[str, ...]]:
        return [_row(layer) for layer in self.layers]


def _row(x: LayerRecord) -> tuple[str, ...]:
    drawn = " + ".join(p for p in (x.norm, x.activation) if p)
    note = x.why or (f"with {drawn}" if drawn else "")
    form = "dense" if x.form is None else f"{x.form} {x.dtype}"
    times = ["" if ms is None else f"{ms:.3f}" for ms in (x.dense_ms, x.sparse_ms)]
    ratio = "" if x.ratio is None else f"{x.ratio.median:.2f}"
    return x.path, "x".join(map(str, x.shape)), f"{x.sparsity:.1%}", form, *times, ratio, note
