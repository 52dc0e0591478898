"""LLM-Streamline, without a replacement."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConsecutiveInfluence
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

llm_streamline = Recipe(
    name="llm_streamline",
    source="inspired by Chen et al. 2024 (LLM-Streamline), arXiv:2403.19135",
    granularity=Block(),
    criterion=ConsecutiveInfluence(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Consecutive layers (inspired by LLM-Streamline)",
    use_when="you drop a run of layers of a language model at once, after one pass over unlabelled data",
    avoid_when="the layers that do least lie apart: `shortgpt` takes them wherever they are",
    deviations=(
        "The pruning stage alone (the paper's variant None); the small network that it trains in the place of the "
        "layers is not in here. ConsecutiveInfluence(angular=True, tokens='last') is the choice of Gromov "
        "et al. 2024, arXiv:2403.17887."
    ),
    rows=(233,),
)
