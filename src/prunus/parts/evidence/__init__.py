"""Evidence types. Annotate a criterion's parameters with them; the engine collects exactly what is asked for."""

from prunus.parts.evidence.flow import SynapticFlow
from prunus.parts.evidence.gradients import BatchGrad, BatchGradAffine, Grad, HessianGrad
from prunus.parts.evidence.noise import Noise
from prunus.parts.evidence.weights import Affine, Scale, Weight

__all__ = ["Affine", "BatchGrad", "BatchGradAffine", "Grad", "HessianGrad", "Noise", "Scale", "SynapticFlow", "Weight"]
