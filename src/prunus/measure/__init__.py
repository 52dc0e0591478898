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
    from prunus.measure.curvature import Spectrum, hessian_spectrum
    from prunus.measure.evaluation import Harness, TaskScore, harness
    from prunus.measure.gradients import GradientFlow, gradient_flow
    from prunus.measure.inputs import Example
    from prunus.measure.likelihood import Paired, Perplexity, paired, perplexity
    from prunus.measure.operations import MacCount, macs
    from prunus.measure.parameters import Count, ParamCount, params
    from prunus.measure.peak import PeakMemory, peak_memory
    from prunus.measure.quality import accuracies, accuracy
    from prunus.measure.scaling import ScalingLaw, fit_scaling_law, scaling_intervals
    from prunus.measure.sentences import SentenceSimilarity, sentence_embeddings, sentence_similarity
    from prunus.measure.similarity import chance, jaccard, jaccards
    from prunus.measure.storage import StateBytes, disk_bytes, state_bytes
    from prunus.measure.summary import Profile, Ratios, profile, ratios
    from prunus.measure.tangent import JacobianValues, TangentKernel, jacobian_values, tangent_kernel
    from prunus.measure.timing import Comparison, Latency, LatencyRatio, compare, latency
    from prunus.measure.turning import DoubleDescent, EssentialSparsity, double_descent, essential_sparsity

_HOME = {
    "Comparison": "timing",
    "Count": "parameters",
    "DoubleDescent": "turning",
    "EssentialSparsity": "turning",
    "Example": "inputs",
    "GradientFlow": "gradients",
    "Harness": "evaluation",
    "JacobianValues": "tangent",
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
    "Spectrum": "curvature",
    "StateBytes": "storage",
    "TangentKernel": "tangent",
    "TaskScore": "evaluation",
    "WeightCorrelation": "correlation",
    "accuracies": "quality",
    "accuracy": "quality",
    "chance": "similarity",
    "compare": "timing",
    "disk_bytes": "storage",
    "double_descent": "turning",
    "essential_sparsity": "turning",
    "fit_scaling_law": "scaling",
    "gradient_flow": "gradients",
    "harness": "evaluation",
    "hessian_spectrum": "curvature",
    "instability": "connectivity",
    "jaccard": "similarity",
    "jaccards": "similarity",
    "jacobian_values": "tangent",
    "latency": "timing",
    "line_errors": "connectivity",
    "macs": "operations",
    "paired": "likelihood",
    "params": "parameters",
    "peak_memory": "peak",
    "perplexity": "likelihood",
    "profile": "summary",
    "ratios": "summary",
    "scaling_intervals": "scaling",
    "sentence_embeddings": "sentences",
    "sentence_similarity": "sentences",
    "state_bytes": "storage",
    "tangent_kernel": "tangent",
    "twins": "connectivity",
    "weight_correlation": "correlation",
}

__all__ = [
    "Comparison",
    "Count",
    "DoubleDescent",
    "EssentialSparsity",
    "Example",
    "GradientFlow",
    "Harness",
    "JacobianValues",
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
    "Spectrum",
    "StateBytes",
    "TangentKernel",
    "TaskScore",
    "WeightCorrelation",
    "accuracies",
    "accuracy",
    "chance",
    "compare",
    "disk_bytes",
    "double_descent",
    "essential_sparsity",
    "fit_scaling_law",
    "gradient_flow",
    "harness",
    "hessian_spectrum",
    "instability",
    "jaccard",
    "jaccards",
    "jacobian_values",
    "latency",
    "line_errors",
    "macs",
    "paired",
    "params",
    "peak_memory",
    "perplexity",
    "profile",
    "ratios",
    "scaling_intervals",
    "sentence_embeddings",
    "sentence_similarity",
    "state_bytes",
    "tangent_kernel",
    "twins",
    "weight_correlation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
