"""Training learns, is deterministic, resumes bit-identically, and refuses checkpoints damaged or of another run."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError, SpecError, VerificationError
from prunus.deploy import atomic
from prunus.lab import data, presets, zoo
from prunus.lab.data.dataset import Split
from prunus.lab.trainer import Batches, History, State, evaluate, factor, sgd, train
from prunus.lab.trainer_progress import Lines, clock, shown

torch.set_num_threads(1)


def loader(n: int = 48, seed: int = 0) -> data.Loader:
    g = torch.Generator().manual_seed(7)
    y = torch.arange(n) % 4
    x = torch.randint(0, 60, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    for i in range(n):
        x[i, 0, 2 * y[i]] += 180  # the class is the row that is bright
    return data.Loader(
        Split(x, y, torch.full((1,), 50.0), torch.full((1,), 60.0)),
        16,
        seed=seed,
        shuffle=True,
        augment=data.Augment(flip=True),
    )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = zoo.build("resnet8", in_channels=1, size=8, num_classes=4, width=0.25)
    return nn.Sequential(body, nn.Dropout(0.1))


class Interrupted(Exception):
    pass


def run(folder: Path | None = None, *, stop_at: int | None = None, kind: str = "sgd", **kw: Any) -> tuple[Any, History]:
    model = network()
    optimizer: torch.optim.Optimizer = (
        sgd(model, 0.05) if kind == "sgd" else torch.optim.AdamW(model.parameters(), 1e-2, amsgrad=True)
    )

    def stop(step: int, _: nn.Module) -> None:
        if step == stop_at:
            raise Interrupted

    options = {"epochs": 4, "lr_schedule": "one-cycle"} | kw
    history = train(model, loader(), optimizer=optimizer, checkpoint=folder, on_step=stop, **options)
    return (model.state_dict(), optimizer.state_dict()), history


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_training_learns_and_is_deterministic() -> None:
    before = evaluate(network(), loader()).loss
    (a, _), history = run()
    (b, _), _ = run()
    assert same(a, b)
    assert history.epochs[-1].loss < before and len(history.epochs) == 4 and history.steps == 12


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_at", [5, 6, 11])
def test_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, kind: str, stop_at: int) -> None:
    whole, history = run(kind=kind)
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at=stop_at, kind=kind)
    resumed, again = run(tmp_path, kind=kind)
    assert again.resumed_at == (stop_at - 1) // 3
    assert same(whole, resumed)
    assert again.epochs == history.epochs
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training-00004.safetensors", "training.json"]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path, valid=loader())
    again, history = run(tmp_path, stop_at=1, valid=loader())
    assert same(first, again) and history.resumed_at == 4
    assert history.epochs[-1].valid is not None and history.epochs[-1].valid.count == 48


def test_extra_state_is_kept(tmp_path: Path) -> None:
    class Counter:
        def __init__(self) -> None:
            self.state: dict[str, Any] = {"n": 0, "mask": {"w": torch.tensor([True, False])}, 3: (1.5, None)}

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
            self.state = state_dict

    saved, found = Counter(), Counter()
    saved.state["n"] = 5
    run(tmp_path, extra=saved)
    run(tmp_path, extra=found)
    assert same(found.state, saved.state) and found.state["n"] == 5
    with pytest.raises(SpecError, match="extra"):
        run(tmp_path)


def test_training_leaves_global_generator_and_modes(tmp_path: Path) -> None:
    model = network()
    model[1].eval()
    state = torch.get_rng_state()
    train(model, loader(), epochs=1)
    assert torch.equal(torch.get_rng_state(), state) and not any(m.training for m in model.modules())
    model[0].train()
    modes = [m.training for m in model.modules()]
    evaluate(model, loader())
    assert [m.training for m in model.modules()] == modes


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    tensors = tmp_path / "training-00004.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-4])
    with pytest.raises(VerificationError, match=r"training-00004.*cut off"):
        run(tmp_path)
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError, match="SHA-256"):
        run(tmp_path)
    tensors.unlink()
    with pytest.raises(VerificationError, match="cannot be read"):
        run(tmp_path)
    (tmp_path / "training.json").write_text('{"file": ')
    with pytest.raises(VerificationError, match=r"training\.json is damaged"):
        run(tmp_path)
    run(tmp_path, resume=False)


@pytest.mark.parametrize("change", [{"epochs": 5}, {"lr_schedule": "cosine"}, {"seed": 1}])
def test_checkpoint_of_another_plan_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(SpecError, match=f"{next(iter(change))}.*then.*now"):
        run(tmp_path, **change)


def test_checkpoint_of_another_network_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    other = zoo.build("mlp", num_classes=4)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(SpecError, match="another training"):
        train(other, loader(), epochs=4, lr_schedule="one-cycle", optimizer=sgd(other, 0.05), checkpoint=tmp_path)
    assert same(dict(other.state_dict()), before)


def test_checkpoint_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PrunusError, match="cannot write"):
        train(network(), loader(), epochs=1, checkpoint=tmp_path / "file" / "folder")


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_bytes(tmp_path / "a", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(PrunusError, match="No space left"):
        atomic.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    run(tmp_path)
    index = json.loads((tmp_path / "training.json").read_text())
    assert len(index["history"]) == 4 and index["file"] == "training-00004.safetensors"


def test_tied_weights_survive(tmp_path: Path) -> None:
    tokens = torch.randint(32, (8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches = data.Loader(Split(tokens, tokens, kind="tokens"), 4)
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        model = zoo.build("gpt_tiny", vocabulary=32, size=8, dim=16, heads=2, depth=1)
        train(model, batches, epochs=1, checkpoint=tmp_path)
        assert model.get_parameter("head.weight") is model.get_parameter("tokens.weight")
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    assert same(*ends)


def test_divergence_is_an_error() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("0.fc.weight").fill_(math.inf)
    with pytest.raises(PrunusError, match=r"diverged.*step 1 of 6"):
        train(model, loader(), epochs=2)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"lr_schedule": "ramp"}])
def test_bad_arguments_change_nothing(options: dict[str, Any]) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SpecError):
        train(model, loader(), **({"epochs": 1} | options))
    assert same(dict(model.state_dict()), before)


def test_empty_evaluation_is_an_error() -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

        def batches(self, epoch: int) -> Any:
            return iter(())

    empty: Batches = Empty()
    with pytest.raises(SpecError, match="no batch"):
        evaluate(network(), empty)


def test_evaluation_equals_a_direct_computation() -> None:
    model, batches = network().eval(), loader(50)
    batches.augment = None
    x, y = batches.split.inputs(batches.split.x), batches.split.y
    with torch.no_grad():
        logits = model(x)
    found = evaluate(model, batches)
    assert found.count == 50 and found.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)


def test_learning_rate_curves() -> None:
    assert [factor("constant", s, 4) for s in (0, 3)] == [1, 1]
    assert [factor("cosine", s, 4) for s in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert [factor("one-cycle", s, 8) for s in (0, 1, 2, 5, 8)] == pytest.approx([0.04, 0.52, 1, 0.5, 0])
    assert [factor("step", s, 8) for s in (0, 3, 4, 5, 6, 7)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_learning_rate_is_set_for_every_step_and_put_back() -> None:
    model = network()
    optimizer = sgd(model, 0.2)
    seen: list[float] = []
    train(
        model,
        loader(),
        epochs=2,
        optimizer=optimizer,
        lr_schedule="cosine",
        on_step=lambda *_: seen.append(optimizer.param_groups[0]["lr"]),
    )
    assert seen == [0.2 * factor("cosine", s, 6) for s in range(6)]
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.2]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4, 0.0]


@pytest.mark.parametrize("option", ["bf16", "channels_last"])
def test_options_train_to_finite_weights(option: str) -> None:
    model = network()
    history = train(model, loader(), epochs=2, optimizer=sgd(model, 0.05), **{option: True})
    assert math.isfinite(history.epochs[-1].loss)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_progress_states_count_up_to_the_end() -> None:
    states: list[State] = []
    train(network(), loader(), epochs=2, progress=states.append)
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6] and {s.steps for s in states} == {6}
    assert [s.epoch for s in states] == [1, 1, 1, 2, 2, 2] and states[-1].seconds_left == 0
    assert all(0 <= s.accuracy <= 1 and s.loss > 0 and s.seconds_left >= 0 for s in states)


def state(step: int, steps: int) -> State:
    return State(step, steps, 1, 1, 0.5, 0.25, 0.1, 1.0, 3700.0)


def test_progress_lines_come_once_per_tenth() -> None:
    out = io.StringIO()
    with shown("training", out) as show:
        assert isinstance(show, Lines)
        for step in range(1, 101):
            show(state(step, 100))
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and lines[0].startswith("training:  10%, epoch 1/1, loss 0.500, accuracy 25.0%")
    assert lines[-1].startswith("training: 100%") and lines[0].endswith("1:01:40 left")


def test_progress_lines_of_a_resumed_run_begin_where_it_does() -> None:
    out = io.StringIO()
    show = Lines("t", out)
    for step in range(51, 101):
        show(state(step, 100))
    assert len(out.getvalue().splitlines()) == 5


def test_progress_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with shown("training", out) as show:
        show(state(5, 10))
    assert "5/10" in out.getvalue() and "loss 0.500" in out.getvalue() and "1:01:40 left" in out.getvalue()


def test_clock() -> None:
    assert [clock(s) for s in (-1.0, 7.0, 760.4, 3723.0)] == ["0:00", "0:07", "12:40", "1:02:03"]


def test_digits_train_to_97_percent() -> None:
    pytest.importorskip("sklearn")
    digits = data.load("digits")
    torch.manual_seed(0)
    model = zoo.build("resnet8", in_channels=1, size=8, width=0.5)
    train(
        model,
        data.Loader(digits.train, 64, shuffle=True),
        epochs=5,
        optimizer=sgd(model, 0.1),
        lr_schedule="one-cycle",
    )
    assert evaluate(model, data.Loader(digits.test, 256)).accuracy >= 0.97


@pytest.mark.parametrize("name", presets.QUICKSTART)
def test_presets_name_what_exists(name: str) -> None:
    preset = presets.QUICKSTART[name]
    assert preset.dataset in data.names()
    size = 8 if preset.dataset == "digits" else 28
    model = zoo.build(preset.network, in_channels=1, size=size, **preset.options)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 10)
    assert 0.5 < preset.expected[0] <= preset.expected[1] <= 1 and preset.lr > 0 and preset.epochs > 0
    assert factor(preset.lr_schedule, 0, 10) > 0
