"""Which slices of parameters live and die together, in any model; compaction and its proof."""

from prunus.graph.compact import Edit, compact, replay_
from prunus.graph.structure import CoupledGroup, Structure, trace
from prunus.graph.verify import masked_, verify

__all__ = ["CoupledGroup", "Edit", "Structure", "compact", "masked_", "replay_", "trace", "verify"]
