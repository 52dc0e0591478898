"""Calibration text: tokens of files, windows drawn by a seed, and what can be wrong with either."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from prunus import Task
from prunus.core.errors import DataError, SpecError
from prunus.lab.data import calibration
from prunus.lab.data.calibration import Text


def text_of(n: int, tokenizer: str = "bytes") -> Text:
    """A text whose tokens are their own positions."""
    return Text(torch.arange(n), n, 1, "a file", tokenizer, n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as save_pretrained leaves it."""
    pytest.importorskip("transformers")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 4], 280, special_tokens=["<|end|>"])
    where = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<|end|>").save_pretrained(where)
    return where


def test_windows_follow_each_other_and_are_drawn_without_replacement() -> None:
    made = calibration.draw(text_of(107), count=10, length=10, seed=0)
    starts = made.tokens[:, 0]
    assert torch.equal(made.tokens, starts[:, None] + torch.arange(10)) and not made.overlapping
    assert len({int(s) % 10 for s in starts}) == 1 and len(set(starts.tolist())) == 10
    assert 0 <= int(starts.min()) <= 7 and int(made.tokens.max()) < 107
    beginnings = {int(calibration.draw(text_of(107), count=1, length=10, seed=s).tokens[0, 0]) for s in range(200)}
    assert {b % 10 for b in beginnings} == set(range(8)) and max(beginnings) > 90  # every phase, up to the end


def test_a_short_text_gives_different_windows_that_overlap_and_says_so() -> None:
    made = calibration.draw(text_of(20), count=11, length=10, seed=3)
    assert sorted(made.tokens[:, 0].tolist()) == list(range(11)) and made.overlapping
    assert "11 overlapping windows of 10 tokens, seed 3" in str(made)
    with pytest.raises(DataError, match=r"20 tokens .* fewer than the 21 .* \(120 if they are not to overlap\)"):
        calibration.draw(text_of(20), count=12, length=10)


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others() -> None:
    a, b, c = (calibration.draw(text_of(999), count=4, length=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.tokens, b.tokens) and a.digest == b.digest != c.digest
    expected = hashlib.sha256(b"torch.int64 (4, 8)" + a.tokens.numpy().tobytes()).hexdigest()
    assert a.digest == expected and expected[:12] in str(a)


def test_batches_are_what_a_task_calibrates_with() -> None:
    made = calibration.draw(text_of(100), count=5, length=8, batch=2)
    assert [tuple(b.shape) for b in made.batches] == [(2, 8), (2, 8), (1, 8)]
    assert torch.equal(torch.cat(made.batches), made.tokens)
    assert torch.equal(Task(calib=made.batches).outputs(torch.nn.Identity(), made.batches[0]), made.batches[0])


def test_numbers_and_vocabularies_that_make_no_sense() -> None:
    for numbers in ({"count": 0, "length": 8}, {"count": 1, "length": 0}, {"count": 1, "length": 8, "batch": 0}):
        with pytest.raises(SpecError, match="at least 1"):
            calibration.draw(text_of(100), **numbers)
    with pytest.raises(DataError, match=r"token id 99 .* vocabulary of 99: wrong tokenizer"):
        calibration.draw(text_of(100), count=1, length=8, vocabulary=99)
    assert len(calibration.draw(text_of(100), count=1, length=8, vocabulary=100).tokens) == 1


def test_bytes_of_files_in_order_with_zeros_between(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.md").write_bytes(b"not this one")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"zip"))
    found = calibration.read(tmp_path)
    assert bytes(found.ids.tolist()) == b"one\0\xff\xfe" and (found.bytes, found.files, found.vocabulary) == (6, 2, 256)
    some = calibration.read([tmp_path / "e.txt.gz", tmp_path / "a.txt"])
    assert bytes(some.ids.tolist()) == b"zip\0one" and "and 1 more" in str(some)
    assert calibration.calibration(tmp_path, pattern="*.md", count=2, length=4).tokens.shape == (2, 4)


def test_tokens_of_a_folders_tokenizer_with_its_end_between_texts(tmp_path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["the quick dog\r\n", "the fox, ärgerlich 狐"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    found = calibration.read(tmp_path, tokenizer=folder)
    known = AutoTokenizer.from_pretrained(str(folder))
    a, b = (known(t, add_special_tokens=False)["input_ids"] for t in texts)
    assert found.ids.tolist() == [*a, known.eos_token_id, *b] and found.vocabulary == len(known) == 280
    assert known.decode(a) == texts[0] and found.bytes == sum(len(t.encode()) for t in texts) + 1
    made = calibration.calibration(tmp_path, tokenizer=folder, count=2, length=5, vocabulary=280)
    assert str(folder) in str(made)
    with pytest.raises(DataError, match="wrong tokenizer"):
        calibration.calibration(tmp_path, tokenizer=folder, count=2, length=5, vocabulary=100)


def test_text_that_is_not_there(tmp_path: Path) -> None:
    for nothing in (None, []):
        with pytest.raises(SpecError, match="pass a text file"):
            calibration.calibration(nothing)
    with pytest.raises(DataError, match="does not exist"):
        calibration.calibration(tmp_path / "no.txt")
    with pytest.raises(DataError, match="no file that matches"):
        calibration.calibration(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="is empty: 1 files without a byte"):
        calibration.calibration(tmp_path)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(DataError, match=r"too few tokens: 5 tokens of 5 bytes in 1 files of .*, by bytes"):
        calibration.calibration(tmp_path)


def test_text_that_is_not_utf_8_names_the_byte(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin.txt is not UTF-8: byte 3 is 0xe9"):
        calibration.read(tmp_path, tokenizer=folder)
    assert len(calibration.read(tmp_path).ids) == 12


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match=r"has no tokenizer.json \(it has a.txt\)"):
        calibration.read(tmp_path, tokenizer=tmp_path)
    with pytest.raises(DataError, match="no folder"):
        calibration.read(tmp_path, tokenizer=tmp_path / "absent")
    for content in ("{", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match="cannot be read as a tokenizer"):
            calibration.read(tmp_path, tokenizer=tmp_path)
