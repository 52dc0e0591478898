"""Why a tensor has no atoms: the freezing reason that took them, passed on to all that is computed from it.

What meets such a tensor is frozen because of its fixed size. That alone tells a user nothing; what made the size fixed
may be many operations back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from prunus.graph.flow import Flow

_FIXED = "fixed size"
_LINK = ", which was fixed by "


class Causes:
    """The first freezing reason behind each tensor of one run, where there is one."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._of: Any = WeakTensorKeyDictionary()

    def pass_on(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], fresh: str | None) -> None:
        """Outputs owe their fixed sizes to what the operation froze, or else to what their inputs owe theirs to."""
        if fresh is None or (_FIXED in fresh and _LINK not in fresh):  # frozen by a size, not the cause of one
            found = (self._of.get(tensor) for tensor in inputs)
            fresh = next((reason for reason in found if reason is not None), None)
        if fresh is not None:
            root = fresh.rpartition(_LINK)[2]
            for tensor in outputs:
                self._of[tensor] = root

    def told(self, reason: str, inputs: Sequence[Tensor]) -> str:
        """The reason, followed by what fixed one of these tensors if the reason speaks of a fixed size."""
        if _FIXED not in reason:
            return reason
        bare = sorted(inputs, key=lambda t: (bool(self.flow.planes_of(t)), self.flow.source_of(t) is None))
        found = next((cause for t in bare if (cause := self._of.get(t)) is not None), None)
        return reason if found is None or found == reason else f"{reason}{_LINK}{found}"
