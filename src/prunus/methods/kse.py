"""Kernel sparsity and entropy (removal alone)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import KernelSparsityEntropy
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

kse = Recipe(
    name="kse",
    source="Li et al. 2019, CVPR, arXiv:1812.04368",
    granularity=Channel(),
    criterion=KernelSparsityEntropy(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Kernel sparsity and entropy (removal alone)",
    use_when="you prune channels of a trained network without data, by the kernels that read them",
    avoid_when=(
        "readers are linear maps with one weight per channel, or layers have few outputs: five neighbours say little"
    ),
    deviations=(
        "Channels with a low indicator go; those in between keep all their kernels, which the paper clusters. "
        "Each channel is measured by its own kernels, where the released code mixes them."
    ),
    rows=(79,),
)
