"""DPPA: what fine-tuning added, pruned for merging."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import DeviationDensities
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

dppa = Recipe(
    name="dppa",
    source="Zhu et al. 2024, arXiv:2403.02799",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=DeviationDensities(often=3.0, times=5.0, spread=0.08),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="DPPA (pruned and amplified deltas, for merging)",
    use_when="what fine-tuning added to a model (prunus.engine.deltas.difference) is to be merged with what other "
    "tunings added: most of it goes, and what stays is amplified (prunus.engine.deltas.amplified)",
    avoid_when="the model itself is to be pruned: the paper is about differences of two models alone",
    deviations=(
        "The recipe is the first stage (Dynamic Pruning), on a model whose weights are deltas; the second one, "
        "Dynamically Partition Amplification, is prunus.engine.deltas.amplified. Densities are those of the official "
        "code, with means weighted by the layers' sizes. All matrices are pruned; the code leaves embeddings and the "
        "output layer whole: exclude them."
    ),
    rows=(204,),
)
