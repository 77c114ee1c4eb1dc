"""The Riemannian geometry of network parameters modulo the symmetries of the network."""

from quotientnet import curvature, sharpness
from quotientnet.chains import layer_scale_group, node_wise_group
from quotientnet.errors import NotOnManifoldError
from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.manifolds import (
    LayerScaleQuotient,
    LogPolarQuotient,
    NodeWiseQuotient,
    QuotientManifold,
)
from quotientnet.objective import Objective, Point
from quotientnet.operator import DenseOperator, Operator
from quotientnet.units import Scale, Term, Unit
from quotientnet.version import __version__

__all__ = [
    "ParameterLayout", "ScalingGroup", "Unit", "Scale", "Term", "layer_scale_group",
    "node_wise_group", "QuotientManifold", "LogPolarQuotient", "LayerScaleQuotient",
    "NodeWiseQuotient", "NotOnManifoldError", "Objective", "Point", "Operator", "DenseOperator",
    "Estimate", "curvature", "sharpness", "__version__",
]  # fmt: skip
