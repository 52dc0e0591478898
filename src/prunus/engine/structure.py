"""What can be pruned in a model, and why the rest cannot."""

from typing import Any

from torch import nn

from prunus.core.groups import Group
from prunus.core.part import Granularity
from prunus.core.task import as_call
from prunus.engine.prepare import unwrap


def groups(
    model: nn.Module, example_inputs: Any = None, *, granularity: Granularity | None = None
) -> tuple[Group, ...]:
    """The groups of a model at a granularity: what would be ranked, and every slice that would go with each unit.

    Args:
        model: any module; it is run once on the example where the granularity needs it, and left as it was.
        example_inputs: a tensor, a tuple of inputs or a dict of keyword inputs; may be left out for single weights.
        granularity: `prunus.parts.granularity.Coupled()` if left out.
    """
    if granularity is None:
        from prunus.parts.granularity import Coupled

        granularity = Coupled()
    call = None if example_inputs is None else as_call(example_inputs)
    return granularity(unwrap(model), None if call is None else (call[1] or call[0]))
