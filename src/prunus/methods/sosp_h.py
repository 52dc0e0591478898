"""Second-order structured pruning with a Hessian product."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SecondOrderProduct
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

sosp_h = Recipe(
    name="sosp_h",
    source="Nonnenmacher et al. 2022, ICLR, arXiv:2110.11395",
    granularity=Channel(),
    criterion=SecondOrderProduct(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="SOSP-H",
    use_when="channels of the whole network are to be ranked together once, and fine-tuned afterwards",
    avoid_when="the loss cannot be differentiated twice (custom kernels)",
    deviations=(
        "The Hessian is taken at the calibration batches, with fused attention replaced by its plain form. A coupled "
        "unit's weights are those of all layers that produce it; the paper prunes layers that are not coupled."
    ),
    rows=(75,),
)
