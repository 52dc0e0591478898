"""The precisions of zero-mean Gaussian priors on the weights, fitted to the evidence while the network is trained."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import GroupTensors, Reads, RunningEvidence, Sources
from prunus.parts.evidence.fisher import FisherDiagonalEvidence
from prunus.parts.evidence.mode import ranks
from prunus.parts.evidence.samples import by_whole_group

Level = Literal["layer", "unit", "weight"]


class PriorPrecisionEvidence(RunningEvidence):
    """delta and delta / N at which the marginal likelihood of a Laplace approximation is stationary, `[*units, k, 2]`:
    delta sum w^2 = sum N h / (N h + delta) (MacKay 1992), h the diagonal of the Gauss-Newton or Fisher matrix on the
    calibration batches at the weights as they are. Iterated `rounds` times from delta = number / sum w^2, half way in
    log delta each time.

    `level` says what shares a delta: a layer, the rows of its weight (unit), or nothing (weight). N is `examples`, or
    the samples of the calibration batches where that is 0. Fitted before the first training step and every `every`
    steps (online: Immer et al. 2021, ICML, arXiv:2104.04975); without training, when it is asked for. No delta exceeds
    `MOST`. The asking part's fields: those named, `fisher` and `probes`. Undefined on weights whose gradients cannot be
    told apart by sample. Cost: the diagonal's pass, `rounds` divisions per weight; a number per weight.
    """

    reads: ClassVar[Reads] = "labels"
    passes: ClassVar[str] = FisherDiagonalEvidence.passes
    key: ClassVar[str] = "prior"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        if not store or sources.step % int(sources.settings.get("every", 100)) == 0:
            store.update(self.fitted(sources))

    def fitted(self, sources: Sources) -> dict[str, Tensor]:
        """Parameter name -> delta of its shape, and with the suffix `|examples` N."""
        diagonal, count = FisherDiagonalEvidence().diagonal(sources)
        examples = float(sources.settings.get("examples", 0) or count * ranks())
        found: dict[str, Tensor] = {}
        for name, h in diagonal.items():
            w = sources.parameters[name].detach()
            rows = {"layer": (1, -1), "unit": (w.shape[0], -1), "weight": (-1, 1)}[
                sources.settings.get("level", "layer")
            ]
            delta = stationary(examples * h.double().reshape(rows), w.double().reshape(rows).square(), sources)
            found[name] = delta.expand(delta.shape[0], w.numel() // delta.shape[0]).reshape(w.shape).float()
            found[f"{name}|examples"] = torch.tensor(examples, device=w.device)
        return found

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key) or self.fitted(sources)
        plain = {n: torch.stack([d, d / store[f"{n}|examples"]]) for n, d in store.items() if "|" not in n}
        first, second = (by_whole_group(sources, {n: p[i] for n, p in plain.items()}) for i in (0, 1))
        return {n: torch.stack([first[n], second[n]], -1) for n in first}


MOST = 1e12


def stationary(data: Float[Tensor, "r k"], squared: Float[Tensor, "r k"], sources: Sources) -> Float[Tensor, "r 1"]:
    """`[rows, 1]`: the precision of each row's prior; data: N h, squared: w^2."""
    total = squared.sum(1, keepdim=True)
    delta = (squared.shape[1] / total).clamp(max=MOST)
    for _ in range(int(sources.settings.get("rounds", 20))):
        aim = ((data / (data + delta)).sum(1, keepdim=True) / total).nan_to_num(MOST).clamp(1 / MOST, MOST)
        delta = (delta * aim).sqrt()  # the whole step would swing to and fro where the prior outweighs the data
    return delta


PriorPrecision = Annotated[Float[Tensor, "*units k 2"], PriorPrecisionEvidence()]
"""`[*units, k, 2]`: the fitted precision of each weight's prior, and the same over the number of training examples."""
