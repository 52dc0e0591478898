"""The whole list, and its parts by family."""

from __future__ import annotations

from tests.graph.networks import other_nets, timm_nets, torchvision_nets, transformers_nets
from tests.graph.networks.entry import Network

NETWORKS: tuple[Network, ...] = (
    *torchvision_nets.NETWORKS,
    *timm_nets.NETWORKS,
    *transformers_nets.NETWORKS,
    *other_nets.NETWORKS,
)
BY_NAME: dict[str, Network] = {network.name: network for network in NETWORKS}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(network.family for network in NETWORKS))
