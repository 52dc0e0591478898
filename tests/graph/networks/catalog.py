"""The whole list, and its parts by family."""

from __future__ import annotations

from tests.graph.networks import (
    more_nets,
    other_nets,
    timm_nets,
    torchvision_nets,
    transformers_more,
    transformers_nets,
)
from tests.graph.networks.entry import Network
from tests.graph.networks.stays import as_it_is

NETWORKS: tuple[Network, ...] = tuple(
    as_it_is(network)
    for part in (torchvision_nets, timm_nets, transformers_nets, transformers_more, other_nets, more_nets)
    for network in part.NETWORKS
)
BY_NAME: dict[str, Network] = {network.name: network for network in NETWORKS}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(network.family for network in NETWORKS))
