"""ONNX over the list: where PyTorch exports the dense network it must export the compact one, and both must agree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from prunus.core.errors import PrunusError, StructureError, VerificationError
from prunus.deploy import export_onnx
from prunus.deploy.onnx import Exported
from prunus.graph import compact, trace
from tests.graph.networks import page
from tests.graph.networks.entry import Network
from tests.graph.networks.judge import FRACTION, line, spent
from tests.graph.networks.kind import Kind, Outcome, sizes
from tests.graph.proof import disturb, some

MOST_PARAMETERS = 50_000_000
"""Networks with more are left out: translating them takes minutes and many times their size in memory."""

OUTCOMES = (
    "equal", "not run", "refused", "unchanged", "wrong", "not exported", "crash", "timeout", "too large",
)  # fmt: skip
HERE = Path(__file__).parent
FAMILIES = ("transformers", "images", "sequences", "graphs", "torchvision", "segmentation", "detection", "timm")
"""The order in which they are taken; what is not named comes last."""


@dataclass
class OnnxVerdict(Outcome):
    """What came of exporting one network, dense and compact.

    Attributes:
        outcome: `equal` (both exported, ONNX Runtime agrees with both); `not run` (both exported, but ONNX Runtime has
            no kernels for the dense one either); `refused` (PyTorch does not export the dense one, or ONNX Runtime
            computes something else for it); `unchanged` (nothing to remove); `not exported` (only the dense one is);
            `wrong` (ONNX Runtime computes something else for the compact one only).
        dense: the largest difference of the dense one's outputs, relative to the largest value of each.
        small: that of the compact one.
        removed: the share of the parameters that is gone.
    """

    dense: float | None = None
    small: float | None = None
    removed: float = 0.0


def judge(network: Network) -> OnnxVerdict:
    """Export the network, remove half of the units of every group at random, and export it again."""
    start = time.process_time()
    torch.manual_seed(0)
    verdict = _judge(disturb(network.build()).eval(), network.example())
    verdict.seconds = spent(start)
    return verdict


def _judge(model: nn.Module, example: Any) -> OnnxVerdict:
    with TemporaryDirectory() as folder:
        try:
            dense = export_onnx(model, example, Path(folder) / "dense.onnx")
        except (StructureError, VerificationError) as error:
            return OnnxVerdict("refused", line(error))
        structure = trace(model, example)
        if not structure.groups:
            return OnnxVerdict("unchanged", "nothing can be removed", dense=rounded(dense))
        small, _ = compact(model, structure.groups, some(structure, FRACTION), verify=False)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
        verdict = OnnxVerdict("equal", dense=rounded(dense), removed=round(1 - after / before, 3))
        try:
            done = export_onnx(small, example, Path(folder) / "small.onnx")
        except PrunusError as error:
            verdict.outcome = "wrong" if isinstance(error, VerificationError) else "not exported"
            verdict.reason = line(error)
            return verdict
    verdict.small = rounded(done)
    if dense.error is None:
        verdict.outcome, verdict.reason = "not run", dense.reason
    elif done.error is None:
        verdict.outcome, verdict.reason = "wrong", f"only the dense one runs: {done.reason}"
    return verdict


def rounded(done: Exported) -> float | None:
    return None if done.error is None else float(f"{done.error:.1e}")


def asked(networks: Sequence[Network]) -> list[Network]:
    """Those of moderate size, the small configurations first."""
    order = {family: i for i, family in enumerate(FAMILIES)}
    chosen = [network for network in networks if sizes().get(network.name, MOST_PARAMETERS) <= MOST_PARAMETERS]
    return sorted(chosen, key=lambda n: (order.get(n.family, len(order)), sizes().get(n.name, MOST_PARAMETERS)))


OPENING = f"""\
## ONNX

Each network of at most {MOST_PARAMETERS // 10**6} million parameters is written with `prunus.deploy.export_onnx`.
Then half of the units of every group are removed at random and the compact network is written. "Equal": ONNX Runtime
computes from both files what the networks compute, within 1e-4 of the largest value of each output (float32).
"Refused": PyTorch does not export the dense network, or ONNX Runtime does not compute what it computes. "Not run": it
has no kernels for the dense one. "Not exported" and "wrong" would be compact networks that fail where their dense form
does not. `python -m tests.graph.sweep --onnx` repeats it.
"""


def section(networks: Sequence[Network], results: Mapping[str, OnnxVerdict]) -> str:
    """The table of outcomes by part of the list, and the networks that did not come out equal, with the reason."""
    wanted = {network.name for network in asked(networks)}
    head = ["part of the list", *OUTCOMES, "left out for size", "still to run"]
    rows = []
    for family in (*dict.fromkeys(network.family for network in networks), "all"):
        own = [network.name for network in networks if family in (network.family, "all")]
        count = Counter(results[name].outcome for name in own if name in results and name in wanted)
        left = sum(name not in wanted for name in own)
        todo = sum(name in wanted and name not in results for name in own)
        cells = [str(count[outcome]) for outcome in OUTCOMES]
        rows.append([page.TITLES.get(family, family), *cells, str(left), str(todo)])
    odd = [
        [f"`{n.name}`", v.outcome, page.escaped(v.reason[:200])]
        for n in networks
        if (v := results.get(n.name)) is not None and v.outcome not in ("equal", "unchanged")
    ]
    parts = [OPENING, page.table(head, rows) + "\n"]
    if odd:
        parts.append(page.table(["network", "outcome", "why"], odd) + "\n")
    return "\n".join(parts)


KIND = Kind(
    help="write every network of moderate size as ONNX, dense and compact",
    judge=judge,
    verdict=OnnxVerdict,
    results=HERE / "results_onnx.json",
    asked=asked,
    section=section,
    outcomes=OUTCOMES,
    bad=("wrong", "not exported", "crash"),
    imports=("onnx", "onnxscript", "onnxruntime", "onnx_ir", "torch.onnx._internal.exporter._core"),
)
