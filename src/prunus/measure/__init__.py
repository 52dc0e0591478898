"""Sizes and costs of a model, every number with its definition and every ratio with its denominator.

>>> from prunus import measure
>>> measure.params(model).nonzero                          # doctest: +SKIP
>>> measure.macs(model, (images,)).effective               # doctest: +SKIP
>>> measure.compare({"dense": a, "pruned": b}, (images,)).latency_ratio["pruned"].verdict   # doctest: +SKIP

Nothing here changes the model: hooks, flags, buffers and random state are as they were, also after an exception.
The files are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.measure.connectivity import instability, line_errors, twins
    from prunus.measure.correlation import WeightCorrelation, weight_correlation
    from prunus.measure.evaluation import Harness, TaskScore, harness
    from prunus.measure.inputs import Example
    from prunus.measure.likelihood import Paired, Perplexity, paired, perplexity
    from prunus.measure.operations import MacCount, macs
    from prunus.measure.parameters import Count, ParamCount, params
    from prunus.measure.peak import PeakMemory, peak_memory
    from prunus.measure.quality import accuracies, accuracy
    from prunus.measure.scaling import ScalingLaw, fit_scaling_law
    from prunus.measure.sentences import SentenceSimilarity, sentence_embeddings, sentence_similarity
    from prunus.measure.similarity import jaccard, jaccards
    from prunus.measure.storage import StateBytes, disk_bytes, state_bytes
    from prunus.measure.summary import Profile, Ratios, profile, ratios
    from prunus.measure.timing import Comparison, Latency, LatencyRatio, compare, latency

_HOME = {
    "Comparison": "timing",
    "Count": "parameters",
    "Example": "inputs",
    "Harness": "evaluation",
    "Latency": "timing",
    "LatencyRatio": "timing",
    "MacCount": "operations",
    "Paired": "likelihood",
    "ParamCount": "parameters",
    "PeakMemory": "peak",
    "Perplexity": "likelihood",
    "Profile": "summary",
    "Ratios": "summary",
    "ScalingLaw": "scaling",
    "SentenceSimilarity": "sentences",
    "StateBytes": "storage",
    "TaskScore": "evaluation",
    "WeightCorrelation": "correlation",
    "accuracies": "quality",
    "accuracy": "quality",
    "compare": "timing",
    "disk_bytes": "storage",
    "fit_scaling_law": "scaling",
    "harness": "evaluation",
    "instability": "connectivity",
    "jaccard": "similarity",
    "jaccards": "similarity",
    "latency": "timing",
    "line_errors": "connectivity",
    "macs": "operations",
    "paired": "likelihood",
    "params": "parameters",
    "peak_memory": "peak",
    "perplexity": "likelihood",
    "profile": "summary",
    "ratios": "summary",
    "sentence_embeddings": "sentences",
    "sentence_similarity": "sentences",
    "state_bytes": "storage",
    "twins": "connectivity",
    "weight_correlation": "correlation",
}

__all__ = [
    "Comparison",
    "Count",
    "Example",
    "Harness",
    "Latency",
    "LatencyRatio",
    "MacCount",
    "Paired",
    "ParamCount",
    "PeakMemory",
    "Perplexity",
    "Profile",
    "Ratios",
    "ScalingLaw",
    "SentenceSimilarity",
    "StateBytes",
    "TaskScore",
    "WeightCorrelation",
    "accuracies",
    "accuracy",
    "compare",
    "disk_bytes",
    "fit_scaling_law",
    "harness",
    "instability",
    "jaccard",
    "jaccards",
    "latency",
    "line_errors",
    "macs",
    "paired",
    "params",
    "peak_memory",
    "perplexity",
    "profile",
    "ratios",
    "sentence_embeddings",
    "sentence_similarity",
    "state_bytes",
    "twins",
    "weight_correlation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
