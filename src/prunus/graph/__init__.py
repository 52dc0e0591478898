"""Which slices of parameters live and die together, in any model; compaction and its proof."""

from prunus.graph.compact import Edit, compact, prove_compact, replay_
from prunus.graph.depth import Blocks, blocks
from prunus.graph.depth_drop import BlockGroup
from prunus.graph.exported import exported
from prunus.graph.structure import CoupledGroup, Structure, trace
from prunus.graph.training import compact_optimizer, compact_optimizer_
from prunus.graph.verify import masked_, verify

__all__ = [
    "BlockGroup",
    "Blocks",
    "CoupledGroup",
    "Edit",
    "Structure",
    "blocks",
    "compact",
    "compact_optimizer",
    "compact_optimizer_",
    "exported",
    "masked_",
    "prove_compact",
    "replay_",
    "trace",
    "verify",
]
