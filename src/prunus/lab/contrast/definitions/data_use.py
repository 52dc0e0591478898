"""Data-free against data-driven pruning before training."""

from dataclasses import replace

from prunus.lab.contrast.contrast import Claim, Contrast, Quoted, arm

_MADE = {
    "ratio": arm("Smart-Ratio", "smart_ratio"),
    "synflow": arm("SynFlow, 100 rounds", "synflow"),
    "noise": arm("SNIP, noise", "snip_data_free"),
    "snip": arm("SNIP, weights", "snip"),
    "magnitude": arm("magnitude, one shot", "magnitude"),
}
_SAME = "figure 8: every layer keeps the same share on CIFAR-10 and on SVHN"
_OTHER = "figure 8: layers keep another share on CIFAR-10 than on SVHN"
_FIGURE = {"ratio": _SAME, "synflow": _SAME, "noise": "", "snip": _OTHER, "magnitude": _OTHER}
_HALVES = {"first": (0.0, 0.5), "second": (0.5, 1.0)}

contrast = Contrast(
    name="data",
    title="Data-free and data-driven pruning",
    section="7.3, table 8, figure 8",
    question="What do scores gain from looking at the data?",
    arms=tuple(_MADE.values()),
    aside=tuple(
        replace(one, name=f"{one.name}, {half} half", training="none", where={"classes": classes})
        for one in _MADE.values()
        for half, classes in _HALVES.items()
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
        *(
            Claim(
                id=f"shares-{name}",
                text=f"{one.name}: {'other' if said == _OTHER else 'the same'} shares of layers are kept on other data",
                left=f"{one.name}, first half",
                right=f"{one.name}, second half",
                metric="shares",
                exact="some" if said == _OTHER else "none",
                survey=said,
            )
            for (name, one), said in zip(_MADE.items(), _FIGURE.values(), strict=True)
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
    notes=(
        "Magnitude ranks trained weights: before training its masks could not differ between data sets.",
        (
            "Shares of layers on other data: masks of the same network with the same initial weights on either half of "
            "the classes, not trained further, and compared exactly, number by number."
        ),
    ),
)
