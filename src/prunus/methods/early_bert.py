"""EarlyBERT: heads and neurons by learned coefficients, as soon as they agree."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Isomorphic
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Coefficient
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import EarlyBird

early_bert = Recipe(
    name="early_bert",
    source="Chen et al. 2021, ACL, arXiv:2101.00063",
    granularity=Coupled(),
    criterion=LearnedGate(),
    allocate=Isomorphic(),
    schedule=EarlyBird(probes=10, until=0.2, rewind=0.0),
    gate=Coefficient(),
    on="pretrained",
)

card = Card(
    title="EarlyBERT",
    use_when="you fine-tune a pre-trained transformer and want most of the fine-tuning to be cheap",
    avoid_when="there are no steps, or the network must not be trained",
    deviations=(
        "Heads and neurons are ranked globally, each kind on its own (the paper: heads per layer, neurons "
        "globally), at one density (the paper has two). Everything else that can be removed is a unit as well. "
        "The search ends at a fifth of the steps at the latest, and the ticket starts from the weights that the "
        "run began with."
    ),
    rows=(123,),
)
