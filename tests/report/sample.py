"""A report with invented numbers, of the size and kind that a quickstart makes. Nobody measured any of them."""

from __future__ import annotations

from prunus.report import Curve, Latency, LayerDensity, MethodRecord, Point, Ratio, Report

LAYERS = [
    ("conv1", 144),
    *((f"layer1.{b}.conv{c}", 2304) for b in range(3) for c in (1, 2)),
    ("layer2.0.conv1", 4608),
    *((f"layer2.{b}.conv{c}", 9216) for b, c in ((0, 2), (1, 1), (1, 2), (2, 1), (2, 2))),
    ("layer3.0.conv1", 18432),
    *((f"layer3.{b}.conv{c}", 36864) for b, c in ((0, 2), (1, 1), (1, 2), (2, 1), (2, 2))),
    ("fc", 640),
]
DENSE_PARAMS = 269_434
DENSE_MACS = 31_021_440


def densities(start: float, end: float, wobble: float) -> list[LayerDensity]:
    last = len(LAYERS) - 1
    found = []
    for i, (name, weights) in enumerate(LAYERS):
        density = min(1.0, max(0.0, start + (end - start) * i / last + wobble * (-1) ** i))
        found.append(
            LayerDensity(
                layer=name, weights=weights, kept=round(weights * density), kind="linear" if name == "fc" else "conv"
            )
        )
    return found


def latency(median: float, spread: float) -> Latency:
    return Latency(
        median_ms=median,
        q25_ms=median * (1 - spread),
        q75_ms=median * (1 + 1.4 * spread),
        runs=60,
        threads=2,
        batch=32,
        device="cpu",
    )


def taxonomy(structure: str, when: str, **more: str) -> dict[str, str]:
    usual = {"how": "criteria", "pace": "one_shot", "scope": "global", "data": "nothing", "weights": "pretrained"}
    return {"structure": structure, "when": when, **usual, **more}


def method(name: str = "magnitude", **changes: object) -> MethodRecord:
    """One record; everything that a test does not care about is filled in."""
    usual: dict[str, object] = {
        "name": name,
        "title": "Global magnitude",
        "source": "Han et al. 2015, NeurIPS, arXiv:1506.02626",
        "taxonomy": taxonomy("unstructured", "after"),
        "use_when": "you want a strong, cheap baseline for a trained network",
        "avoid_when": "the network must become faster on ordinary hardware",
        "deviations": "",
        "budget": "90 % of the weights removed",
        "accuracy_before": 0.9183,
        "accuracy_pruned": 0.6127,
        "accuracy_after": 0.9121,
        "steps": 470,
        "params_dense": DENSE_PARAMS,
        "params_kept": 27_742,
        "macs_dense": DENSE_MACS,
        "macs_kept": DENSE_MACS,
        "macs_nonzero": 4_301_922,
        "bytes_dense": 1_100_328,
        "bytes_kept": 161_204,
        "latency_dense": latency(21.4, 0.03),
        "latency": latency(21.5, 0.035),
        "latency_ratio": Ratio(median=0.996, q25=0.96, q75=1.03, verdict="not faster"),
        "layers": densities(0.55, 0.07, 0.03),
        "compacted": False,
        "verified_error": None,
        "seconds": 38.2,
        "notes": ["Fine-tuned for one epoch with the masks held."],
    }
    return MethodRecord.model_validate({**usual, **changes})


def report() -> Report:
    methods = [
        method(),
        method(
            "n_of_m",
            title="2:4 magnitude",
            source="Mishra et al. 2021, arXiv:2104.08378",
            taxonomy=taxonomy("semi-structured", "after", scope="local"),
            budget="2 of every 4 weights kept",
            accuracy_pruned=0.9011,
            accuracy_after=0.9174,
            params_kept=135_474,
            macs_nonzero=15_600_320,
            bytes_kept=601_884,
            latency=latency(21.2, 0.04),
            latency_ratio=Ratio(median=1.009, q25=0.97, q75=1.05, verdict="not faster"),
            layers=densities(0.5, 0.5, 0.0),
            use_when="your hardware runs the 2:4 pattern",
            avoid_when="you need more than half of the weights gone",
            deviations="Blocks run along the input channels.",
            seconds=31.0,
        ),
        method(
            "l1_filter",
            title="L1 filter pruning (PFEC)",
            source="Li et al. 2017, ICLR, arXiv:1608.08710",
            taxonomy=taxonomy("structured", "after", scope="local"),
            budget="half of the MACs",
            accuracy_pruned=0.3310,
            accuracy_after=0.9092,
            params_kept=139_882,
            macs_kept=15_412_864,
            macs_nonzero=15_412_864,
            bytes_kept=581_420,
            latency=latency(13.1, 0.05),
            latency_ratio=Ratio(median=1.634, q25=1.55, q75=1.72, verdict="1.63x faster"),
            layers=densities(0.7, 0.48, 0.06),
            compacted=True,
            verified_error=2.3e-14,
            use_when="you want a smaller, faster convolutional network without data, then fine-tune",
            avoid_when="layers differ in sensitivity: the paper sets ratios by hand after a scan",
            deviations="Coupled filters (residual connections) are scored by the sum of their norms.",
            steps=940,
            seconds=74.9,
        ),
        method(
            "snip",
            title="SNIP",
            source="Lee, Ajanthan & Torr 2019, ICLR, arXiv:1810.02340",
            taxonomy=taxonomy("unstructured", "before", data="labels", weights="initialized"),
            budget="90 % of the weights removed",
            accuracy_pruned=None,
            accuracy_after=0.8987,
            layers=densities(0.8, 0.04, 0.05),
            latency=latency(21.9, 0.03),
            latency_ratio=Ratio(median=0.977, q25=0.95, q75=1.01, verdict="not faster"),
            bytes_kept=158_010,
            use_when="you train once, from scratch, and want the sparse network from the first step",
            avoid_when="a trained network is at hand",
            steps=2345,
            seconds=96.3,
            notes=["Scored on 100 examples.", "Trained as long as the dense network."],
        ),
    ]
    curves = [
        Curve(
            name="magnitude",
            points=[
                Point(sparsity=s, accuracy=a)
                for s, a in ((0.0, 0.9183), (0.5, 0.9178), (0.8, 0.9151), (0.9, 0.9121), (0.95, 0.9012), (0.98, 0.8570))
            ],
            note="Fine-tuned for one epoch at each point.",
        ),
        Curve(
            name="SNIP",
            points=[
                Point(sparsity=s, accuracy=a, std=0.0025)
                for s, a in ((0.5, 0.9102), (0.8, 0.9047), (0.9, 0.8987), (0.95, 0.8866), (0.98, 0.8490))
            ],
        ),
        Curve(
            name="random",
            points=[
                Point(sparsity=s, accuracy=a)
                for s, a in ((0.5, 0.9078), (0.8, 0.8911), (0.9, 0.8702), (0.95, 0.8361), (0.98, 0.7540))
            ],
        ),
    ]
    return Report(
        title="ResNet-20 on Fashion-MNIST, pruned four ways",
        subtitle="One trained network, four corners of the field: what each method removed, what it cost in accuracy, "
        "and whether anything became faster.",
        dataset={"name": "Fashion-MNIST", "training examples": 60000, "test examples": 10000, "input": "1 × 28 × 28"},
        network={"name": "ResNet-20", "parameters": DENSE_PARAMS, "MACs": DENSE_MACS, "epochs trained": 5},
        environment={"python": "3.11.9", "torch": "2.13.0", "processor": "2 cores", "threads": 2, "load": 0.25},
        methods=methods,
        curves=curves,
        commands=["make quickstart", "prunus quickstart --seed 0"],
        notes=["Accuracies are on the whole test set, at the last epoch."],
        version="0.1.0",
        created="2026-11-21 03:30 UTC",
        seed=0,
    )
