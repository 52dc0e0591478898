"""How much each row of a weight should keep, learned so that a block gives what it gave."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from prunus.core.errors import DataError, SpecError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.task import Task
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.inputs import floating_outputs
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode


class Whole(nn.Module):
    """A model and a task as one module of a batch, so that its parameters can be replaced for a call."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Any) -> Float[Tensor, "*positions hidden"]:
        found = floating_outputs(self.task.outputs(self.model, batch))
        if not found:
            raise SpecError("the block gives no floating tensor that its output could be held to")
        return found[0]


class RowMask:
    """The mask of one weight by how sparse each of its rows is, differentiable in that.

    A row's sparsity is a mixture of the candidates 1, 1 - step, ..., 0, whose shares are learned. Its weights of least
    score go; how likely each of them goes is the sum of the shares of the candidates that reach it, which is what is
    differentiated (straight through).
    """

    def __init__(self, scores: Float[Tensor, "rows n"], step: float) -> None:
        rows, self.width = scores.shape
        worst = self.width - 1 - scores.flip(1).argsort(dim=1, stable=True)  # of equals the later one goes first
        self.rank: Int[Tensor, "rows n"] = worst.argsort(dim=1)
        count = max(1, round(1 / step))
        self.candidates = torch.linspace(1, 0, count + 1, device=scores.device)
        reach = (self.candidates * self.width + 1e-4).int()
        places = torch.arange(self.width, device=scores.device)
        self.reached = (places < reach.unsqueeze(1)).float()
        self.logits = torch.zeros(rows, count + 1, device=scores.device, requires_grad=True)

    def shares(self) -> Float[Tensor, "rows candidates"]:
        return self.logits.sigmoid().softmax(1)

    def sparsity(self) -> Float[Tensor, "rows"]:
        return self.shares() @ self.candidates

    def mask(self) -> Float[Tensor, "rows n"]:
        """Zeros and ones; the gradient is that of how likely each weight stays."""
        likely = 1 - (self.shares() @ self.reached).gather(1, self.rank)
        gone = (self.sparsity().detach() * self.width + 1e-4).int()
        return (self.rank >= gone.unsqueeze(1)).float() + likely - likely.detach()


class LearnedRowShareEvidence(Evidence):
    """The share that each row of a matrix of single weights keeps, `[rows, 1]`, trained by gradient descent on

    mean over hidden entries of ||f(x) - f_pruned(x)||^2 / ||f(x)||^2, + pull (sparsity / target - 1)^2

    with f the block (the model where a recipe does not go through blocks) and norms over a batch's positions; one step
    of AdamW per batch, `rounds` times over them all. `step`, `rounds`, `rate` and `pull` are the asking part's. Needs
    what the groups were scored; weights are not touched. Undefined on other units. Processes of a distributed run need
    equally many batches. Cost: a forward, and per round a forward and backward, per batch; the masks of a block in
    float32.
    """

    reads: ClassVar[Reads] = "inputs"
    passes = "a forward, and per round a forward and backward, per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        settings, scores = sources.settings, sources.scores or {}
        groups = [g for g in sources.groups if g.elementwise and g.name in scores]
        learned = {g.name: RowMask(scores[g.name], float(settings.get("step", 0.01))) for g in groups}
        # Groups go by the names of the whole model, of which this may be a block.
        paths = {id(p): n for n, p in sources.model.named_parameters()}
        owner = {paths[id(sources.parameters[g.members[0].param])]: g.name for g in groups}
        units, target = sum(g.units for g in groups), 1 - sources.density
        if learned and target > 0:
            self.train(sources, learned, owner, units, target)
        yield {n: (1 - m.sparsity().detach()).unsqueeze(1) for n, m in learned.items()}

    def train(
        self, sources: Sources, learned: Mapping[str, RowMask], owner: Mapping[str, str], units: int, target: float
    ) -> None:
        """Move the logits."""
        settings, whole = sources.settings, Whole(sources.model, sources.task)
        weights = {n: p.detach() for n, p in sources.model.named_parameters() if n in owner}
        optimizer = torch.optim.AdamW(
            [m.logits for m in learned.values()], lr=float(settings.get("rate", 0.01)), weight_decay=0.0
        )
        seen = False
        for _ in range(int(settings.get("rounds", 1))):
            for batch in sources.task.calibration():
                seen = True
                with evidence_mode(sources.model, {}, sources.generator):
                    with torch.no_grad():
                        dense = whole(batch).float()
                    masked = {
                        f"model.{n}": w * learned[owner[n]].mask().reshape(w.shape).to(w) for n, w in weights.items()
                    }
                    off = (functional_call(whole, masked, (batch,)).float() - dense).flatten(0, -2).square().sum(0)
                    size = dense.flatten(0, -2).square().sum(0).clamp(min=1e-20)
                    gone = sum(((m.sparsity() * m.width).sum() for m in learned.values()), torch.zeros(())) / units
                    loss = (off / size).mean() + float(settings.get("pull", 1.0)) * (gone / target - 1) ** 2
                    found = torch.autograd.grad(loss, [m.logits for m in learned.values()])
                slopes = averaged_over_ranks(dict(zip(learned, found, strict=True)))
                for n, m in learned.items():
                    m.logits.grad = slopes[n]
                optimizer.step()
        if not seen:
            raise DataError(NO_BATCH)
