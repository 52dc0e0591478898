"""Parameter-efficient sparse training."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import FactoredMovement
from prunus.parts.granularity import Element
from prunus.parts.schedule import MarkGradually

pst = Recipe(
    name="pst",
    source="Li et al. 2022, IJCAI, arXiv:2205.11005",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=MarkGradually(begin=0.1, end=0.7, every=1, power=3.0),
    gate=FactoredMovement(),
    on="pretrained",
)

card = Card(
    title="PST (parameter-efficient sparse training)",
    use_when="a large pretrained network is fine-tuned and pruned, and there is no memory to train all of its weights",
    avoid_when="there are only a few hundred steps at the published rate: then it is magnitude pruning",
    deviations=(
        "After the official code; of the paper its beginning and the figure of the method could be read. All linear "
        "maps and convolutions are pruned, where the code takes the linear maps of the encoder: Element(exclude=...) "
        "leaves others whole. As in the code nothing is trained but the factors, not even a new classifier: train that "
        "first. Its rate is for tens of thousands of steps; FactoredMovement(lr=1e-3) is for short runs."
    ),
    rows=(224,),
)
