"""Which slices of parameters live and die together, in any model; compaction and its proof."""

from prunus.graph.compact import Edit, compact, prove_compact, replay_
from prunus.graph.depth.blocks import Blocks, blocks
from prunus.graph.depth.branches import branches
from prunus.graph.depth.drop import BlockGroup
from prunus.graph.depth.nothing import Nothing
from prunus.graph.exported import exported
from prunus.graph.flow import Call, rule
from prunus.graph.mixture.experts import Experts, experts
from prunus.graph.mixture.group import ExpertGroup
from prunus.graph.structure import CoupledGroup, Structure, trace
from prunus.graph.training import compact_optimizer, compact_optimizer_
from prunus.graph.verify import masked_, verify

__all__ = [
    "BlockGroup",
    "Blocks",
    "Call",
    "CoupledGroup",
    "Edit",
    "ExpertGroup",
    "Experts",
    "Nothing",
    "Structure",
    "blocks",
    "branches",
    "compact",
    "compact_optimizer",
    "compact_optimizer_",
    "experts",
    "exported",
    "masked_",
    "prove_compact",
    "replay_",
    "rule",
    "trace",
    "verify",
]
