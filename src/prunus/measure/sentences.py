"""How far the sentence embeddings of two encoders agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.measure.inputs import as_found, described, device_of, moved, run

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SentenceSimilarity:
    """Cosines of the embeddings that two encoders give the same sentences.

    Attributes:
        mean: over sentences; 1 where all point the same way.
        quantiles: by their share, the least (0) to the largest (1).
        cosines: of every sentence, in order.
    """

    mean: float
    quantiles: Mapping[float, float]
    cosines: tuple[float, ...]

    def __str__(self) -> str:
        told = ", ".join(f"{100 * q:g} % {v:.4f}" for q, v in self.quantiles.items())
        return f"cosine {self.mean:.5f} in the mean over {len(self.cosines):,} sentences (quantiles: {told})"


def sentence_similarity(
    one: nn.Module | Float[Tensor, "sentences width"],
    other: nn.Module | Float[Tensor, "sentences width"],
    batches: Iterable[Any] = (),
) -> SentenceSimilarity:
    """The cosines of two encoders' mean-pooled embeddings, sentence by sentence; for a pruned encoder and the one that
    it was, what is left of the meaning.

    Says nothing of how good either is. Cosines of this kind are high for any two sentences in encoders whose embeddings
    crowd in a cone (Ethayarajh 2019, EMNLP, arXiv:1909.00512), so compare methods by 1 - mean, on equal sentences.

    Args:
        one, other: encoders; or what `sentence_embeddings` gave, for one that is compared again and again.
        batches: as `sentence_embeddings` takes them.

    Cost: a forward of each model for every batch.
    Errors: `DataError` also for embeddings of different sizes, or of length zero, which have no direction.
    """
    kept = list(batches)
    a, b = (m.double() if isinstance(m, Tensor) else sentence_embeddings(m, kept) for m in (one, other))
    if a.shape != b.shape:
        raise DataError(f"embeddings {list(a.shape)} and {list(b.shape)} have no angles between them")
    norms = a.norm(dim=1) * b.norm(dim=1)
    if bool((norms == 0).any()):
        raise DataError(f"sentence {int((norms == 0).nonzero()[0])} has an embedding of length zero: no direction")
    cosines = ((a * b).sum(1) / norms).clamp(-1.0, 1.0)
    points = torch.quantile(cosines, torch.tensor(QUANTILES, dtype=cosines.dtype))
    shares = dict(zip(QUANTILES, points.tolist(), strict=True))
    return SentenceSimilarity(float(cosines.mean()), shares, tuple(cosines.tolist()))


def sentence_embeddings(model: nn.Module, batches: Iterable[Any]) -> Float[Tensor, "sentences width"]:
    """The mean of an encoder's token states over the tokens that the attention mask has (Reimers & Gurevych 2019,
    EMNLP, arXiv:1908.10084), in float64 on the CPU.

    Args:
        model: returns states `[batch, length, width]`, or something with `.last_hidden_state`.
        batches: what a tokenizer gives (`input_ids`, `attention_mask`, ...), or a tensor of ids, all of them tokens.

    Cost: a forward each, in evaluation mode without gradients; the model is left as found.
    Errors: `DataError` for no sentence, one without tokens, other outputs, NaN or infinite states (with the sentence).
    """
    device = device_of(model, ())
    found: list[Tensor] = []
    seen = 0
    with as_found(model, device):
        for batch in batches:
            args, kwargs = moved(batch, device)
            states = _states(run(model, args, kwargs))
            pooled = _pooled(states, kwargs.get("attention_mask"), described(batch), seen)
            seen += len(pooled)
            found.append(pooled.cpu())
    if not found:
        raise DataError("no batch of sentences: their embeddings are undefined (a used-up iterator?)")
    # Outside of inference mode, so that the result is a tensor like any other.
    return torch.cat(found).clone()


def _pooled(
    states: Float[Tensor, "batch length width"], mask: Shaped[Tensor, "..."] | None, what: str, seen: int
) -> Float[Tensor, "batch width"]:
    """The mean over the tokens; padding does not count, not even where it is NaN."""
    if mask is None:
        mask = torch.ones(states.shape[:2], device=states.device)
    if mask.shape != states.shape[:2]:
        raise DataError(f"attention_mask {list(mask.shape)} and states {list(states.shape)} do not fit ({what})")
    real = mask > 0
    counts = real.sum(1, keepdim=True)
    if bool((counts == 0).any()):
        raise DataError(f"sentence {seen + int((counts[:, 0] == 0).nonzero()[0])} has no token in its attention mask")
    pooled = states.double().masked_fill(~real[..., None], 0.0).sum(1) / counts
    if not bool((finite := pooled.isfinite().all(1)).all()):
        bad = seen + int((~finite).nonzero()[0])
        raise DataError(f"the states of sentence {bad} hold NaN or infinity: the model's weights do, or it overflows")
    return pooled


def _states(output: Any) -> Float[Tensor, "batch length width"]:
    found = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("last_hidden_state")
    if found is None and isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim != 3 or not found.is_floating_point():
        shape = f" of shape {list(found.shape)}" if isinstance(found, Tensor) else ""
        raise DataError(
            f"model returned a {type(output).__name__}{shape}: sentence embeddings need token states [batch, length, "
            f"width] or `.last_hidden_state` (load the encoder without a head)"
        )
    return found
