"""The first stage of STUN: one expert of each cluster of alike ones."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ExpertClusters
from prunus.parts.criteria import RouterDistance
from prunus.parts.granularity import Expert
from prunus.parts.schedule import OneShot

expert_clusters = Recipe(
    name="expert_clusters",
    source="Lee et al. 2025, ACL, arXiv:2409.06211",
    granularity=Expert(),
    criterion=RouterDistance(),
    allocate=ExpertClusters(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Clusters of experts (the first stage of STUN)",
    use_when="experts have to go and there is no data at hand: only the weights are looked at",
    avoid_when="you have calibration text: reap sees what the experts do with it",
    deviations=(
        "Distances are those of the router's rows; the code may mix in how often experts are chosen together. Mixtures "
        "then keep unequal numbers, which no configuration of transformers can say: ExpertClusters('layer') keeps as "
        "many in all. Experts stay as they are, as in the code; the paper's means of few clusters are "
        "recover=ClusterMean()."
    ),
)
