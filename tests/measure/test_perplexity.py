"""Perplexity against a loop over tokens and against transformers' own loss; paired differences; its errors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import DataError, SpecError
from prunus.measure import likelihood

VOCABULARY = 23


class Decoder(nn.Module):
    """Causal: a token's logits come from the running mean of the embeddings up to it."""

    def __init__(self, seed: int = 0, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, vocabulary)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, ids: Tensor) -> Any:
        x = self.table(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return SimpleNamespace(logits=self.head(x))


def ids(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed))


def by_hand(model: nn.Module, tokens: Tensor, length: int, stride: int) -> list[float]:
    """The NLL of every token that some window predicts: by the first that does, one forward per window and token."""
    found: dict[int, float] = {}
    begin = 0
    while begin < len(tokens):
        window = tokens[begin : begin + length]
        for k in range(1, len(window)):
            if begin + k not in found:
                logits = model(window[None, : k + 1]).logits[0, k - 1].double()
                found[begin + k] = float(logits.exp().sum().log() - logits[window[k]])
        begin += stride
    return list(found.values())


@pytest.mark.parametrize(("n", "length", "stride"), [(40, 8, 8), (41, 8, 8), (43, 8, 8), (40, 8, 3), (37, 8, 1)])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_equals_a_loop_over_tokens(n: int, length: int, stride: int, batch: int) -> None:
    model, tokens = Decoder(), ids(n)
    with torch.no_grad():
        each = by_hand(model, tokens, length, stride)
    found = measure.perplexity(model, tokens, length=length, stride=stride, batch=batch)
    assert found.tokens == len(each) == sum(found.counts)
    assert found.nll == pytest.approx(sum(each) / len(each), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert found.tokens == n - 1 if stride < length else found.tokens == n - math.ceil(n / length)


def test_equals_transformers_own_loss_window_by_window() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).train()
    tokens = ids(48)
    found = measure.perplexity(model, tokens[None], length=12, batch=3)
    assert model.training and model.config.use_cache
    model.eval()
    with torch.no_grad():
        losses = [float(model(input_ids=w[None], labels=w[None]).loss) for w in tokens.split(12)]
    assert [s / c for s, c in zip(found.sums, found.counts, strict=True)] == pytest.approx(losses, rel=1e-5)
    assert found.nll == pytest.approx(sum(losses) / 4, rel=1e-5)
    half = measure.perplexity(model.bfloat16(), tokens, length=12)
    assert half.nll == pytest.approx(found.nll, rel=0.02) and half.nll != found.nll


def test_chunks_over_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.perplexity(Decoder(), ids(50), length=10, stride=4)
    monkeypatch.setattr(likelihood, "ENTRIES", 2 * VOCABULARY)
    pieces = measure.perplexity(Decoder(), ids(50), length=10, stride=4)
    assert pieces.sums == pytest.approx(whole.sums, rel=1e-6)


def test_uniform_logits_have_the_vocabulary_as_perplexity_and_log2_of_it_as_bits() -> None:
    model = Decoder()
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    found = measure.perplexity(model, ids(30).tolist(), length=10, text_bytes=60)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(VOCABULARY) * 30 / 60, rel=1e-6)
    told = str(found)
    assert "evaluation length 10, stride 10" in told and "27 of 30 tokens in 3 windows" in told
    assert f"perplexity {found.perplexity:.4f}" in told and "bits per byte" in told
    assert "bits per byte" not in str(measure.perplexity(model, ids(30), length=10))


def test_paired_is_the_mean_difference_with_its_error_over_windows() -> None:
    a, b = (measure.perplexity(Decoder(s), ids(96), length=8) for s in (0, 1))
    found = measure.paired(a, b)
    gaps = torch.tensor([(x - y) / 7 for x, y in zip(a.sums, b.sums, strict=True)], dtype=torch.float64)
    assert found.difference == pytest.approx(a.nll - b.nll)
    assert found.error == pytest.approx(float(gaps.std() / len(gaps) ** 0.5))  # all windows count seven tokens
    assert (found.windows, found.tokens) == (12, 84)
    same = measure.paired(a, a)
    assert (same.difference, same.error) == (0.0, 0.0) and "12 windows" in str(same)


def test_paired_weighs_a_short_window_by_its_tokens() -> None:
    a, b = (measure.perplexity(Decoder(s), ids(20), length=8) for s in (0, 1))
    assert a.counts == (7, 7, 3)
    assert measure.paired(a, b).difference == pytest.approx(a.nll - b.nll)
    one = measure.perplexity(Decoder(), ids(8), length=8)
    assert math.isnan(measure.paired(one, one).error)


def test_paired_refuses_what_does_not_belong_together() -> None:
    a = measure.perplexity(Decoder(), ids(40), length=8)
    for other in (
        measure.perplexity(Decoder(), ids(40), length=10),
        measure.perplexity(Decoder(), ids(40), length=8, stride=4),
        measure.perplexity(Decoder(), ids(40, seed=1), length=8),
    ):
        with pytest.raises(DataError, match="same tokens, length and stride"):
            measure.paired(a, other)


@pytest.mark.parametrize(("length", "stride", "batch"), [(1, None, 1), (8, 0, 1), (8, 9, 1), (8, 4, 0), (-3, None, 1)])
def test_numbers_that_make_no_windows(length: int, stride: int | None, batch: int) -> None:
    with pytest.raises(SpecError, match="length"):
        measure.perplexity(Decoder(), ids(40), length=length, stride=stride, batch=batch)


def test_bad_tokens() -> None:
    model = Decoder()
    for few in (torch.zeros(0, dtype=torch.int64), torch.tensor([1])):
        with pytest.raises(DataError, match="too few tokens"):
            measure.perplexity(model, few, length=8)
    for wrong in (torch.tensor([1, VOCABULARY]), torch.tensor([-1, 2])):
        with pytest.raises(DataError, match="wrong tokenizer"):
            measure.perplexity(model, wrong, length=8)
    with pytest.raises(DataError, match="integer ids"):
        measure.perplexity(model, torch.ones(5), length=8)
    with pytest.raises(DataError, match="one text"):
        measure.perplexity(model, torch.ones(2, 5, dtype=torch.int64), length=8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_logits_name_their_window(value: float) -> None:
    class Breaks(Decoder):
        def forward(self, ids: Tensor) -> Any:
            out = super().forward(ids)
            out.logits[(ids == 5).any(1), :, 2] = value
            return out

    tokens = torch.ones(40, dtype=torch.int64)
    tokens[26] = 5
    for batch in (1, 2, 16):
        with pytest.raises(DataError, match=r"window 3 \(tokens 24 to 31\)"):
            measure.perplexity(Breaks(), tokens, length=8, batch=batch)


def test_outputs_that_are_no_logits() -> None:
    with pytest.raises(DataError, match="batch, length, vocabulary"):
        measure.perplexity(nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten()), ids(9), length=4)
    with pytest.raises(DataError, match="wrong tokenizer"):  # a head that is smaller than the table
        measure.perplexity(nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, 3)), ids(9), length=4)


def test_a_probability_of_zero_is_infinite_and_no_error() -> None:
    class Sure(Decoder):
        def forward(self, ids: Tensor) -> Any:
            out = super().forward(ids)
            out.logits[..., 3] = -math.inf
            return out

    found = measure.perplexity(Sure(), torch.tensor([1, 3, 1, 2]), length=4)
    assert found.perplexity == math.inf


class Encoder(nn.Module):
    """States that are its table's rows."""

    def __init__(self, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(
            torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(seed)), freeze=False
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def padded(*sentences: list[int]) -> dict[str, Tensor]:
    longest = max(map(len, sentences))
    rows = [s + [0] * (longest - len(s)) for s in sentences]
    masks = [[1] * len(s) + [0] * (longest - len(s)) for s in sentences]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def test_sentence_similarity_is_the_cosine_of_means_without_padding() -> None:
    one, other = Encoder(0), Encoder(1)
    sentences = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    found = measure.sentence_similarity(one, other, [padded(*sentences[:3]), padded(sentences[3])])
    cosines = []
    for s in sentences:
        a, b = (sum(m.table.weight[t].double() for t in s) / len(s) for m in (one, other))
        cosines.append(float((a @ b).detach() / (a.norm() * b.norm()).detach()))
    assert found.cosines == pytest.approx(cosines) and found.mean == pytest.approx(sum(cosines) / 4)
    assert found.quantiles[0.0] == pytest.approx(min(cosines)) and found.quantiles[1.0] == pytest.approx(max(cosines))
    assert "over 4 sentences" in str(found)
    known = measure.sentence_embeddings(other, [padded(*sentences)])
    again = measure.sentence_similarity(one, known, [padded(*sentences)])
    assert again.cosines == pytest.approx(found.cosines)
    assert measure.sentence_similarity(one, one, [torch.tensor([[1, 2], [3, 4]])]).mean == pytest.approx(1.0)


def test_sentence_embeddings_say_what_is_wrong() -> None:
    with pytest.raises(DataError, match="no batch"):
        measure.sentence_embeddings(Encoder(), [])
    empty = padded([1, 2], [3])
    empty["attention_mask"][1] = 0
    with pytest.raises(DataError, match="sentence 3 has no token"):
        measure.sentence_embeddings(Encoder(), [padded([1], [2]), empty])
    broken = Encoder()
    with torch.no_grad():
        broken.table.weight[9] = math.nan
    with pytest.raises(DataError, match="sentence 2 hold"):
        measure.sentence_embeddings(broken, [padded([1], [2]), padded([9], [3])])
    with torch.no_grad():
        broken.table.weight[0] = math.nan  # the id of padding
    assert measure.sentence_embeddings(broken, [padded([1, 2], [3])]).isfinite().all()
    with pytest.raises(DataError, match="without a head"):
        measure.sentence_embeddings(nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten()), [torch.tensor([[1, 2]])])
    with pytest.raises(DataError, match="no angles"):
        measure.sentence_similarity(Encoder(), Encoder(width=5), [padded([1])])
    with torch.no_grad():
        broken.table.weight.zero_()
    with pytest.raises(DataError, match="length zero"):
        measure.sentence_similarity(Encoder(), broken, [padded([1])])
