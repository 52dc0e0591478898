"""Weight pruning by ADMM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

admm_nn = Recipe(
    name="admm_nn",
    source="Zhang et al. 2018, ECCV, arXiv:1804.03294; ADMM-NN: Ren et al. 2019, ASPLOS, arXiv:1812.11677",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(at=0.7),
    penalty=Anchored(rounds=3),
    on="pretrained",
)

card = Card(
    title="Weight pruning by ADMM (ADMM-NN)",
    use_when="you prune trained weights hard and have training to spend before the cut",
    avoid_when="you cannot train: without training it is magnitude pruning",
    deviations=(
        "Rho is that of the paper and grows tenfold twice before the cut, with U at zero again each time, as "
        "in the released codes; Z and U are renewed every 100 steps instead of every few epochs. Every layer "
        "keeps the same share; the paper sets one per layer by hand. The last three tenths of the steps "
        "retrain what is left. The quantization of ADMM-NN is not part of it."
    ),
    rows=(
        21,
        116,
    ),
)
