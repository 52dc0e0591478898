"""Perplexity with everything that its value depends on, and paired differences of two of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.measure.inputs import as_found, device_of, run

# Entries of the float32 copy of the logits that exists at a time (64 MiB).
ENTRIES = 2**24


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text, and how that was measured.

    Attributes:
        nll: mean negative log-likelihood of the counted tokens, in nats.
        tokens: tokens that were counted.
        length: tokens that the model sees at a time.
        stride: tokens from the start of a window to that of the next.
        sums: for every window the sum of the negative log-likelihoods of its counted tokens.
        counts: for every window how many these are.
        given: tokens of the whole text; the first has nothing before it and is never counted.
        text_bytes: bytes of the text that was tokenized, if they were given.
        text: SHA-256 of the token ids.
    """

    nll: float
    tokens: int
    length: int
    stride: int
    sums: tuple[float, ...]
    counts: tuple[int, ...]
    given: int
    text_bytes: int | None
    text: str

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that is more than a float holds."""
        return math.exp(self.nll) if self.nll < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """What the text would be coded in, which models of other tokenizers can be compared by: bits per token over
        bytes per token, those not counted taken to cost the mean. None where the bytes were not given.
        """
        return None if self.text_bytes is None else self.nll / math.log(2) * self.given / self.text_bytes

    def __str__(self) -> str:
        least = 1 if self.stride == self.length else self.length - self.stride
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits per byte"
        return (
            f"perplexity {self.perplexity:.4f} ({self.nll:.5f} nats per token{bits}) over {self.tokens:,} of "
            f"{self.given:,} tokens in {len(self.sums)} windows, evaluation length {self.length}, stride {self.stride} "
            f"(a token has {least} or more before it, but at the beginning of the text)"
        )


def perplexity(
    model: nn.Module,
    tokens: Shaped[Tensor, "..."] | Sequence[int],
    *,
    length: int,
    stride: int | None = None,
    batch: int = 8,
    text_bytes: int | None = None,
) -> Perplexity:
    """exp of the mean negative log-likelihood of a text's tokens under a causal language model.

    Windows of `length` tokens begin every `stride` tokens; the last one has what is left. A token is counted once, in
    the first window that predicts it, so overlapping windows (stride < length) add context, nothing twice. The first
    token of a window is not predicted: with stride = length, as the pruning literature has it, one token per window is
    not counted. Perplexities are comparable at equal text, tokenizer, length and stride only: LLaMA-7B on WikiText-2
    has 5.68 at length 2048 and 12.62 at 128. The literature drops the last, shorter window; here it is counted.

    Args:
        model: called with ids `[batch, length]`; returns logits `[batch, length, vocabulary]` or something with
            `.logits`, those at position t for token t + 1. That it is causal is not checked.
        tokens: ids of one text, `[n]` or `[1, n]`, taken as they are: no token for the beginning is added.
        length: tokens in a window.
        stride: tokens between the beginnings of windows, `length` when left out.
        batch: windows at a time; changes the time and the memory only.
        text_bytes: bytes of the text that the tokens stand for, for `bits_per_byte`.

    Cost: n / stride windows of one forward each. In memory are the logits of one batch, and of some positions at a time
    float32 copies (float64, where the model is) of 64 MiB each. Evaluation mode, no gradients, no key-value cache; the
    model is left as found.
    Errors: `SpecError` for a length below 2, a stride outside [1, length], a batch below 1; `DataError` for fewer than
    two tokens, for ids outside the vocabulary (another model's tokenizer), for outputs that are no such logits, for NaN
    logits, with their window.
    """
    stride = length if stride is None else stride
    if length < 2 or not 1 <= stride <= length or batch < 1:
        raise SpecError(
            f"length={length}, stride={stride}, batch={batch}: a window has at least 2 tokens, the next one begins 1 "
            f"to {length} tokens further, and a batch has at least 1 window"
        )
    if text_bytes is not None and text_bytes < 1:
        raise SpecError(f"text_bytes={text_bytes}: a text that has tokens has at least one byte")
    ids = as_ids(tokens)
    check_vocabulary(ids, vocabulary(model))
    starts = _starts(len(ids), length, stride)
    device = device_of(model, ())
    sums: list[float] = []
    counts: list[int] = []
    with as_found(model, device), uncached(model):
        for first in range(0, len(starts), batch):
            # The last window is shorter, so it goes alone.
            for begins in _even(starts[first : first + batch], len(ids), length):
                nll = _window_nll(model, ids, begins, length, device, len(sums))
                for begin, row in zip(begins, nll, strict=True):
                    fresh = row if begin == 0 or stride == length else row[length - stride - 1 :]
                    sums.append(float(fresh.sum()))
                    counts.append(len(fresh))
    mean = math.fsum(sums) / sum(counts)
    key = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    return Perplexity(mean, sum(counts), length, stride, tuple(sums), tuple(counts), len(ids), text_bytes, key)


@dataclass(frozen=True)
class Paired:
    """The difference of two models' mean negative log-likelihood on one text, window by window.

    Attributes:
        difference: first less second, in nats per token; below zero the first predicts better.
        error: its standard error over windows, as if these were independent; NaN for one window.
        windows: how many there are.
        tokens: how many were counted.
    """

    difference: float
    error: float
    windows: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.5f} ± {self.error:.5f} nats per token (standard error over {self.windows} windows, "
            f"{self.tokens:,} tokens), perplexity × {math.exp(min(self.difference, 709)):.4f}"
        )


def paired(one: Perplexity, other: Perplexity) -> Paired:
    """The mean difference of token NLL, and its standard error as that of a ratio over windows: what a text is hard in
    is the same for both and falls out, so far smaller differences show than in two perplexities.

    error = sqrt(k / (k - 1) * sum_w (d_w - n_w * difference)^2) / sum_w n_w, with d_w the difference of the sums of
    window w, n_w its tokens, k windows (the ratio estimator of survey sampling, Cochran 1977).
    Errors: `DataError` for results on different tokens, lengths or strides.
    """
    if (one.text, one.length, one.stride, one.counts) != (other.text, other.length, other.stride, other.counts):
        raise DataError(
            f"two perplexities are paired on the same tokens, length and stride; these have {one.given:,} and "
            f"{other.given:,} tokens, lengths {one.length} and {other.length}, strides {one.stride} and {other.stride}"
            f"{'' if one.text == other.text else ', and are of different texts or tokenizers'}"
        )
    gaps = [a - b for a, b in zip(one.sums, other.sums, strict=True)]
    total, k = sum(one.counts), len(gaps)
    mean = math.fsum(gaps) / total
    squares = math.fsum((d - n * mean) ** 2 for d, n in zip(gaps, one.counts, strict=True))
    error = math.sqrt(k / (k - 1) * squares) / total if k > 1 else math.nan
    return Paired(mean, error, k, total)


def vocabulary(model: nn.Module) -> int | None:
    """How many ids a model knows: the rows of its input embeddings, where it says which these are, else of its largest
    table; None where it has none.
    """
    asked = getattr(model, "get_input_embeddings", None)
    try:
        table = None if asked is None else asked()
    except NotImplementedError:  # how transformers says that there is none
        table = None
    if isinstance(table, nn.Embedding):
        return table.num_embeddings
    return max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=None)


def check_vocabulary(ids: Int[Tensor, "..."], size: int | None) -> None:
    """Refuse ids that a vocabulary of this size does not have, before a model reads past its table.

    Errors: `DataError`.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (size is not None and high >= size):
        known = "at least 0" if size is None else f"0 to {size - 1}"
        raise DataError(
            f"token ids run from {low} to {high}, the model knows {known}: wrong tokenizer? Take the one of the "
            f"model's own folder"
        )


def as_ids(tokens: Shaped[Tensor, "..."] | Sequence[int]) -> Int[Tensor, " n"]:
    """Token ids of one text as int64 on the CPU."""
    ids = tokens if isinstance(tokens, Tensor) else torch.tensor(list(tokens), dtype=torch.int64)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(
            f"tokens are {str(ids.dtype).removeprefix('torch.')}{list(ids.shape)}: give the integer ids of one text, "
            f"[n] or [1, n] (several texts are joined first)"
        )
    if len(ids) < 2:
        raise DataError(f"too few tokens: {len(ids)}, and the first one is not predicted; at least 2 are needed")
    return ids.detach().cpu().long()


def _starts(n: int, length: int, stride: int) -> list[int]:
    """Where windows begin: as long as there is a token that none before has predicted."""
    starts = [0]
    while (end := starts[-1] + length) < n:
        begin = starts[-1] + stride
        if n - max(begin + 1, end) < 1:  # only the first token of a window would be left, which is not predicted
            break
        starts.append(begin)
    return starts


def _even(begins: list[int], n: int, length: int) -> Iterator[list[int]]:
    """The windows that are whole, then the one that is not."""
    whole = [b for b in begins if b + length <= n]
    yield from (part for part in (whole, begins[len(whole) :]) if part)


def _window_nll(
    model: nn.Module, ids: Int[Tensor, " n"], begins: list[int], length: int, device: torch.device, index: int
) -> Float[Tensor, "batch predicted"]:
    """The negative log-likelihood of every token of the windows but the first."""
    x = torch.stack([ids[b : b + length] for b in begins]).to(device)
    logits = _logits(run(model, (x,), {}), x)
    check_vocabulary(x, logits.shape[-1])
    rows = max(1, ENTRIES // (logits.shape[0] * logits.shape[-1]))
    pieces = []
    for start in range(0, x.shape[1] - 1, rows):
        end = min(start + rows, x.shape[1] - 1)
        part = logits[:, start:end]
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        own = part.gather(2, x[:, start + 1 : end + 1, None])[..., 0]
        whole = torch.logsumexp(part, 2)
        pieces.append((whole - own).masked_fill(~whole.isfinite(), math.nan))
    nll = torch.cat(pieces, 1).double().cpu()
    if bool(nll.isnan().any()):
        bad = int(nll.isnan().any(1).nonzero()[0])
        last = min(begins[bad] + length, len(ids)) - 1
        raise DataError(
            f"the logits of window {index + bad} (tokens {begins[bad]} to {last}) hold NaN or infinity: the model's "
            f"weights do, or it overflows in {str(logits.dtype).removeprefix('torch.')}; try float32 or bfloat16"
        )
    return nll


def _logits(output: Any, x: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
    """The logits in a model's output, checked against its input."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise DataError(f"model returned a {type(output).__name__}: perplexity needs a tensor of logits or `.logits`")
    if found.ndim != 3 or found.shape[:2] != x.shape:
        raise DataError(
            f"logits are {list(found.shape)} for ids {list(x.shape)}: perplexity needs [batch, length, vocabulary], "
            f"as causal language models give"
        )
    return found


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """No cache of keys and values, which whole windows have no use for."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", None) is True]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True
