"""N:M masks by a Gumbel softmax over all candidates."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import NofM
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Candidates
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

mask_llm = Recipe(
    name="mask_llm",
    source="Fang et al. 2024 (MaskLLM), NeurIPS, arXiv:2409.17481",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=NofM(n=2, m=4),
    schedule=OneShot(at=1.0),
    gate=Candidates(n=2, m=4),
    on="pretrained",
)

card = Card(
    title="MaskLLM (learned N:M masks)",
    use_when="2:4 is wanted, one-shot masks lose too much, and there is data to train masks on",
    avoid_when="memory is short: six numbers are trained for every four weights, and Adam keeps two more of each",
    deviations=(
        "The prior mask is that of the largest weights; GivenCandidates(of=...) takes another criterion's (the "
        "paper: SparseGPT's). Other patterns are other numbers in gate and allocation alike: Candidates(n=1, m=4) "
        "with NofM(1, 4). Gates start without random deviations."
    ),
    rows=(235,),
)
