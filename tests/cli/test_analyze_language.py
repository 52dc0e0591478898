"""prunus analyze on a folder of a language model, with the tokens of its own tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.cli.test_commands import call, told
from tests.cli.test_stream import folder  # noqa: F401 - a fixture

transformers = pytest.importorskip("transformers")


def test_a_language_model_is_looked_at_with_its_own_tokens(folder: Path) -> None:  # noqa: F811
    text = folder.parent / "text.txt"
    args = (f"hf:{folder}", "-d", text, "--length", 16, "--examples", 4, "--batch-size", 4)
    found = told("analyze", "gradient-flow", *args)
    # One batch of the first epoch's order, by hand.
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(words(text.read_text(encoding="utf-8"))["input_ids"])
    count = (len(ids) - 1) // 16
    windows = [(ids[16 * i : 16 * i + 16], ids[16 * i + 1 : 16 * i + 17]) for i in range(count - 2 * (count // 10))]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:4]
    x, y = (torch.stack([windows[i][k] for i in order.tolist()]) for k in (0, 1))
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    loss = F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
    loss.backward()
    flow = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    (one,) = found["networks"]
    assert one["loss"] == pytest.approx(float(loss.detach()), rel=1e-5) and one["flow"] == pytest.approx(flow, rel=1e-3)
    curved = told("analyze", "hessian", *args, "--iterations", 3, "--probes", 1)["networks"][0]
    assert curved["largest"][0] > 0
    assert "token ids" in call("analyze", "jacobian", *args, code=2).stderr
