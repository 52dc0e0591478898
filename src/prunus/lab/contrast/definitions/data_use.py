"""Data-free against data-driven pruning before training."""

from prunus.lab.contrast.contrast import Claim, Contrast, Quoted, arm

contrast = Contrast(
    name="data",
    title="Data-free and data-driven pruning",
    section="7.3, table 8, figure 8",
    question="What do scores gain from looking at the data?",
    arms=(
        arm("Smart-Ratio", "smart_ratio"),
        arm("SynFlow, 100 rounds", "synflow"),
        arm("SNIP, noise", "snip_data_free"),
        arm("SNIP, weights", "snip"),
        arm("magnitude, one shot", "magnitude"),
    ),
    claims=(
        Claim(
            id="snip",
            text="SNIP is better with data than with noise",
            left="SNIP, weights",
            right="SNIP, noise",
            survey="better in 5 of 6 cells, by at most 0.3 points but on CIFAR-100",
        ),
        Claim(
            id="synflow",
            text="SNIP with data is better than SynFlow",
            left="SNIP, weights",
            right="SynFlow, 100 rounds",
            survey="better in 5 of 6 cells",
        ),
        Claim(
            id="ratio",
            text="SNIP with data is better than Smart-Ratio",
            left="SNIP, weights",
            right="Smart-Ratio",
            survey="better in 5 of 6 cells",
        ),
    ),
    survey=(
        Quoted(
            title="Survey, table 8: VGG-16, best of three runs, top-1 accuracy in %, dense 93.76 / 96.36 / 73.22",
            columns=("", "CIFAR-10, 50 %", "90 %", "SVHN, 50 %", "90 %", "CIFAR-100, 90 %", "95 %"),
            rows=(
                ("Smart-Ratio", "93.71", "93.20", "96.34", "96.23", "71.37", "70.16"),
                ("SynFlow, 100 rounds", "93.74", "93.26", "96.28", "96.34", "71.03", "69.16"),
                ("SNIP, noise", "93.90", "93.20", "96.37", "96.29", "71.46", "70.23"),
                ("SNIP, weights", "93.70", "93.40", "96.39", "96.60", "71.65", "70.32"),
                ("magnitude, one shot", "93.65", "93.18", "96.23", "96.26", "71.15", "70.35"),
            ),
        ),
    ),
    notes=("Magnitude ranks trained weights: before training its masks could not differ between data sets.",),
)
