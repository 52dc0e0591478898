"""One-shot against iterative pruning."""

from prunus.lab.contrast.contrast import Claim, Contrast, arm
from prunus.parts.schedule import OneShot, Rounds

contrast = Contrast(
    name="pace",
    title="One-shot and iterative pruning",
    section="7.2, figure 7",
    question="Is it better to remove everything at once or little by little?",
    arms=(
        arm("SynFlow, one shot", "synflow", schedule=OneShot()),
        arm("SynFlow, 100 rounds", "synflow"),
        arm("magnitude, one shot", "magnitude"),
        arm("magnitude, rounds", "magnitude", schedule=Rounds(what="rate"), on="initialized", training="both"),
    ),
    claims=(
        Claim(
            id="synflow",
            text="rounds are better than one shot (SynFlow)",
            left="SynFlow, 100 rounds",
            right="SynFlow, one shot",
            survey="figure 7: iterative above one-shot, the more so the sparser",
        ),
        Claim(
            id="synflow-collapse",
            text="one shot of SynFlow leaves more layers empty",
            left="SynFlow, one shot",
            right="SynFlow, 100 rounds",
            metric="collapsed",
            survey="one-shot data-free scores collapse layers (Tanaka et al. 2020)",
        ),
        Claim(
            id="magnitude",
            text="rounds are better than one shot (magnitude)",
            left="magnitude, rounds",
            right="magnitude, one shot",
            survey="figure 7: iterative above one-shot",
        ),
    ),
    notes=(
        (
            "SynFlow is not trained between its rounds. Magnitude in rounds takes 20 % of what is left, trains with "
            "the whole curve of learning rates, and so on; all its rounds share the epochs of one training and one "
            "fine-tuning, so both arms take equally long."
        ),
    ),
)
