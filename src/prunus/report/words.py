"""The taxonomy in plain words, and a glossary of the terms that a report uses."""

from __future__ import annotations

from collections.abc import Mapping

# In the order of a grid: rows are what is removed, columns are when.
STRUCTURE = {
    "unstructured": "single weights, anywhere",
    "semi-structured": "a fixed number of the weights in every small block",
    "structured": "whole channels, heads or blocks",
}
WHEN = {
    "before": "at initialization; the sparse network is then trained",
    "during": "while the network trains",
    "after": "from a network that is already trained",
}
_PACE = {
    "one_shot": "in one step",
    "iterative": "over several rounds",
    "gradual": "a little at a time",
    "prune_and_grow": "while growing others back",
}
_SCOPE = {"global": "All layers compete for the budget", "local": "Each layer has its own share of the budget"}
_DATA = {"nothing": "it reads no data", "inputs": "it reads inputs, no labels", "labels": "it reads inputs and labels"}
_VALUES = {
    "pace": _PACE,
    "how": {"criteria": "by a score", "learned": "learned in training"},
    "scope": {"global": "across the network", "local": "within each layer"},
    "data": {"nothing": "none", "inputs": "inputs only", "labels": "inputs and labels"},
    "weights": {"initialized": "initial weights", "pretrained": "trained weights"},
}

AXES = {
    "structure": "What is removed",
    "when": "When",
    "pace": "Pace",
    "how": "How it is decided",
    "scope": "Scope",
    "data": "Data read",
    "weights": "Starts from",
}

GLOSSARY = {
    "Sparsity": "The share of the weights that were removed. 90 % sparsity means that one weight in ten is left.",
    "Density": "The opposite: the share of the weights that are kept. Density = 100 % − sparsity.",
    "Mask": "A yes-or-no for every weight. Where it says no, the weight is held at zero.",
    "Parameters": "The numbers a network has learned: its weights, biases and normalization factors.",
    "MACs": "Multiply-accumulate operations for one input: one multiplication and one addition each. Kernels for dense "
    "matrices also multiply the zeros, so only cutting parts out lowers the MACs that are really run.",
    "Compacted": "The removed parts are cut out of the tensors, so that the network is really smaller. It is then "
    "compared with the masked network, and the largest difference between their outputs is stated.",
    "On disk": "The size of the saved file. 1 kB is 1,000 bytes and 1 MB is 1,000,000 bytes.",
    "Latency": "How long one forward pass takes on the stated device, threads and batch size.",
    "Median and middle half": "Half of the runs were faster than the median. The middle half (inter-quartile range) "
    "leaves out the fastest and the slowest quarter: where it is wide, the measurement was noisy.",
    "Ratio": "Every ratio here is dense divided by pruned, so above 1 the pruned network needs less.",
    "Percentage points": "The difference of two percentages: from 92 % to 91 % is −1 point.",
    "Unstructured": "Weights are removed one by one. It keeps accuracy best and needs special kernels to be fast.",
    "Semi-structured": "In every block of m weights n are kept (2:4: two of four). Some hardware runs that faster.",
    "Structured": "Whole channels, heads or blocks are removed. The network becomes smaller for any hardware.",
    "Fine-tuning": "Further training after pruning, so that the remaining weights make up for what is gone.",
}


def axis(name: str) -> str:
    """A taxonomy axis as a heading."""
    return AXES.get(name, name.replace("_", " ").capitalize())


def value(name: str, key: str) -> str:
    """A taxonomy value in a few words; one that this list does not know is shown as it is."""
    if name == "when":
        return f"{key} training" if key in WHEN else key
    return _VALUES.get(name, {}).get(key, key.replace("_", " "))


def sentence(taxonomy: Mapping[str, str]) -> str:
    """What a method does, from where it sits in the taxonomy.

    >>> sentence({"structure": "unstructured", "when": "before", "pace": "one_shot", "data": "labels"})
    'Removes single weights, anywhere, before training, in one step. It reads inputs and labels.'
    """
    removes = taxonomy.get("structure", "")
    parts = [f"Removes {STRUCTURE.get(removes, removes or 'weights')}"]
    if when := taxonomy.get("when"):
        parts.append(value("when", when))
    if pace := taxonomy.get("pace"):
        parts.append(value("pace", pace))
    second = [
        words
        for words in (_SCOPE.get(taxonomy.get("scope", "")), _DATA.get(taxonomy.get("data", "")))
        if words is not None
    ]
    text = ", ".join(parts) + "."
    if second:
        joined = "; ".join(second)
        text += f" {joined[0].upper()}{joined[1:]}."
    return text
