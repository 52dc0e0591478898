"""CoFi: layers, heads, neurons and dimensions by hard concrete gates under a Lagrangian."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Lagrangian
from prunus.parts.granularity import Joint
from prunus.parts.schedule import OneShot

cofi = Recipe(
    name="cofi",
    source="Xia, Zhong & Chen 2022, ACL, arXiv:2204.00408",
    granularity=Joint(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=Lagrangian(weighs="products"),
    on="pretrained",
)

card = Card(
    title="CoFi",
    use_when="you fine-tune a transformer, and layers, heads, neurons and dimensions are to find their shares together",
    avoid_when="the network must not be trained",
    formula="E[product of the hard concrete gates over a weight], summed over all weights, under a Lagrangian",
    deviations=(
        "Dimensions of a stream with LayerNorm have gates with granularity=Joint(of=(Coupled(exact=False), Branch())) "
        "only: a compact model takes mean and variance of those that are left, as CoFi does; those of streams with "
        "root-mean-square norms have them always. Embeddings and the head count among the weights where dimensions "
        "have gates. What stays are the gates with the largest log-odds, to the budget, where CoFi rounds the expected "
        "number of every kind; use a budget in parameters, as CoFi does. Its distillation is recover="
        "Distill(layers=(...), throughout=True), layer by layer as you pair them, where CoFi pairs them anew as it "
        "trains. Other units that can be removed (channels of convolutions) have gates too."
    ),
    rows=(177,),
)
