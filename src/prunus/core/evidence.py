"""Evidence: what a criterion may be told about units, and how it is collected.

A part names its evidence in its annotations (`w: Weight, g: Grad`); each of those types carries one `Evidence`
object. The engine asks that object to collect, and passes on exactly what was asked for. Data-free, label-free and
the cost in passes are read off the evidence, never declared by hand.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from prunus.core.budget import Prices
from prunus.core.groups import Group, Role
from prunus.core.task import Task

Reads = Literal["nothing", "inputs", "labels"]
GroupTensors = Mapping[str, Tensor]
T = TypeVar("T")


@runtime_checkable
class SideBySide(Protocol):
    """Runs batches on several devices at once (`prunus.engine.crew`)."""

    def each(self, act: Callable[[nn.Module, Any], T], batches: Iterable[Any]) -> Iterator[T]:
        """`act(model, batch)` for every batch, in their order, each on a copy of the model; without gradients."""


@dataclass(eq=False)
class Sources:
    """Everything evidence may be collected from.

    Attributes:
        model: the network; weights of pruned units are already zero.
        task: the user's task.
        groups: the groups to collect for.
        parameters: parameters by name, each tied tensor once.
        generator: the only source of randomness.
        settings: fields of the part that asks (a temperature, a number of probes).
        gradients: gradients that are there anyway (inside a training loop), by parameter name.
        shared: results several evidences of one part have in common, so that one pass serves them.
        initial: the weights before the first training step, by parameter name; there where `InitialWeight` is asked.
        running: what running evidence has gathered, by its key: parameter name -> tensor.
        scores: what the groups were scored, for the evidence of an allocation.
        masks: what is kept now, by group name; missing groups are whole.
        survivors: what a drop leaves, before anything is regrown, by group name; there for what says how it is spread.
        final: whether no event comes after the one at hand.
        gates: what the gates say that units are worth, by group name.
        progress: how far the steps since the last event have come towards the next, in [0, 1].
        age: optimizer steps since the last event.
        left: optimizer steps, the one at hand included, until the next event that does more than mark.
        step: optimizer steps since the beginning.
        rate: the learning rate of the step at hand; None outside of training.
        momenta: what the optimizer has averaged gradients to, by parameter name.
        density: what the allocation that asks is to keep, as a fraction; of other parts, what the next event keeps.
        blocks: the block in which a group lies, by group name; there where evidence asks for it (`blocks = True`),
            empty where the model has fewer than two.
        known: what was collected of the asking criterion's evidence before, by parameter name of its `__call__`.
        choose: the masks that the recipe's allocation would make of scores at the density of the next event; scores are
            those of its criterion where none are given. None outside of a session.
        prices: gives what prices widths by this machine's tables, where the budget is in latency.
        crew: runs batches on several devices at once; None where the model alone does.
    """

    model: nn.Module
    task: Task
    groups: tuple[Group, ...]
    parameters: Mapping[str, nn.Parameter]
    generator: torch.Generator
    settings: Mapping[str, Any] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    initial: Mapping[str, Tensor] | None = None
    running: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    scores: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    survivors: Mapping[str, Tensor] = field(default_factory=dict)
    final: bool = True
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    age: int = 0
    left: int = 0
    step: int = 0
    rate: float | None = None
    momenta: Mapping[str, Tensor] = field(default_factory=dict)
    density: float = 1.0
    blocks: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, GroupTensors] = field(default_factory=dict)
    choose: "Callable[[dict[str, Tensor] | None], dict[str, Tensor]] | None" = None
    prices: "Callable[[], Prices | None] | None" = None
    crew: SideBySide | None = None


class Evidence(ABC):
    """One kind of evidence. Subclasses say what they read and collect `[*units, k]` tensors by group name."""

    reads: ClassVar[Reads] = "nothing"
    roles: ClassVar[tuple[Role, ...]] = ("out",)
    per_batch: ClassVar[bool] = False
    random: ClassVar[bool] = False  # whether it hangs on the session's seed
    passes: ClassVar[str] = "none"
    in_training: ClassVar[bool] = False  # whether the gradients of a training step, if given, take the place of a run

    @abstractmethod
    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        """Yield one mapping (or one per batch where `per_batch`), group name -> `[*units, k]`.

        A group on which the evidence is undefined is left out of the mapping.
        """

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        """Views of per-parameter tensors, the scored members of each group side by side along k."""
        views: dict[str, Tensor] = {}
        for group in sources.groups:
            members = [m for m in group.with_role(*self.roles) if m.param in tensors]
            if members:
                views[group.name] = group.views(members, tensors)
        return views


class RunningEvidence(Evidence):
    """Evidence that is gathered at every training step (movement, averages of sensitivities).

    A session calls `step` before each optimizer step, with the gradients that are about to be used, pruned weights'
    included; what belongs to single weights says so in `observe`. Where nothing was trained yet, the gradients of the
    calibration batches at the weights as they are take the place of the steps.
    """

    reads: ClassVar[Reads] = "labels"
    key: ClassVar[str]

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        """Add one step to `store`, whose keys are parameter names, or parameter names with a suffix after `|`.

        Nothing by default: for evidence that goes by more than gradients, and overrides `step` or `renew`.
        """

    def step(
        self,
        store: dict[str, Tensor],
        groups: tuple[Group, ...],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        """Observe the parameters that are scored. Evidence whose numbers belong to units overrides this."""
        names = {m.param for g in groups for m in g.with_role(*self.roles)}
        asked = {n: g for n, g in gradients.items() if n in names}
        self.observe(store, weights, asked, settings)

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        """After `step`, with everything that evidence may be told of; for what needs more than gradients."""
