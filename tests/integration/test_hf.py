"""The Trainer of transformers and Accelerate's wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.engine.hooks import hookable
from tests.integration import kinds, toys

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")


class Attach(transformers.TrainerCallback):
    """All that a user adds."""

    def __init__(self, session: prunus.Session) -> None:
        self.session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self.session.attach(known["optimizer"], known["lr_scheduler"])


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=2,
        )
    )


def rows(count: int = 32) -> list[dict[str, Any]]:
    source = torch.Generator().manual_seed(1)
    words = torch.randint(5, 50, (count, 6), generator=source)
    return [{"input_ids": w, "attention_mask": torch.ones(6, dtype=torch.long), "labels": int(w[0]) % 2} for w in words]


def task() -> prunus.Task:
    batch = {k: torch.stack([torch.as_tensor(r[k]) for r in rows(8)]) for k in rows(1)[0]}
    return prunus.Task(loss=lambda model, b: model(**b).loss, calib=[batch])


def trainer(model: Any, folder: Path, steps: int, callbacks: list[Any], **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows(), callbacks=callbacks)


@pytest.mark.parametrize("name", ["snip", "rigl", "lth", *kinds.KINDS])
def test_trainer_with_a_callback(name: str, tmp_path: Path) -> None:
    model = bert()
    session = prunus.Session(model, kinds.KINDS.get(name, name), task(), prunus.Budget(0.3), steps=6)
    trainer(model, tmp_path, 6, [Attach(session)], gradient_accumulation_steps=2).train()
    assert session.step == 6 and len(session.history) == len(session.events)
    toys.zeros_hold(session)
    total = sum(m.numel() for m in session.masks.values())
    assert sum(toys.kept(session).values()) == pytest.approx(0.3 * total, abs=len(session.masks))
    assert session.result().sparsity == pytest.approx(0.7, abs=0.01)


def test_trainer_with_create_optimizer(tmp_path: Path) -> None:
    model = bert()
    ours = trainer(model, tmp_path, 4, [])
    session = prunus.Session(model, "rigl", task(), prunus.Budget(0.3), steps=4).attach(ours.create_optimizer())
    ours.train()
    assert session.step == 4
    toys.zeros_hold(session)


def test_accelerate_wrapper_is_looked_through() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    prepared, wrapped = accelerator.prepare(model, optimizer)
    assert type(wrapped).__name__ == "AcceleratedOptimizer" and hookable(wrapped) is optimizer
    session = prunus.Session(prepared, "magnitude", budget=prunus.Budget(0.5)).attach(wrapped)
    for step in range(3):
        accelerator.backward(toys.loss_of(prepared, toys.batch_at(step)))
        wrapped.step()
        wrapped.zero_grad()
        toys.zeros_hold(session)
    assert session.step == 3


@pytest.mark.parametrize("name", kinds.KINDS)
def test_accelerate_comes_to_what_the_bare_loop_does(name: str) -> None:
    def run(wrap: bool) -> prunus.Session:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model: Any = toys.network()
        optimizer: Any = toys.sgd(model.parameters())
        if wrap:
            model, optimizer = accelerator.prepare(model, optimizer)
        session = prunus.Session(model, kinds.KINDS[name], toys.task(), prunus.Budget(0.5), steps=8).attach(optimizer)
        for step in range(16):
            loss = toys.loss_of(model, toys.batch_at(step))
            if wrap:
                with accelerator.accumulate(model):
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                continue
            (loss / 2).backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        return session

    ours, plain = run(True), run(False)
    assert ours.step == 8 and ours.history == plain.history and toys.same(ours.masks, plain.masks)
    assert toys.same(toys.state_of(ours.model), toys.state_of(plain.model))
    toys.zeros_hold(ours)
