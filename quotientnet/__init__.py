"""The Riemannian geometry of network parameters modulo the symmetries of the network."""

from quotientnet import (
    curvature,
    optimization,
    reparametrisation,
    sharpness,
    symmetry,
    training,
)
from quotientnet.errors import NotOnManifoldError
from quotientnet.estimate import Estimate
from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.manifolds import (
    BalancedQuotient,
    LayerScaleQuotient,
    LogPolarQuotient,
    NodeWiseQuotient,
    ProductOblique,
    QuotientManifold,
    without_translations,
)
from quotientnet.objective import Objective
from quotientnet.operator import DenseOperator, Operator
from quotientnet.point import Point
from quotientnet.symmetry import (
    Symmetry,
    balance,
    canonical,
    discover,
    layer_scale_group,
    permutation_classes,
    scale_mappings,
    transform,
    verify_complete,
    verify_sound,
)
from quotientnet.units import Scale, Term, Unit
from quotientnet.version import __version__

__all__ = [
    "ParameterLayout", "ScalingGroup", "Unit", "Scale", "Term", "discover", "Symmetry",
    "verify_sound", "verify_complete", "layer_scale_group", "transform", "canonical", "balance",
    "scale_mappings", "permutation_classes",
    "QuotientManifold", "LogPolarQuotient", "LayerScaleQuotient", "NodeWiseQuotient",
    "BalancedQuotient", "ProductOblique", "without_translations", "NotOnManifoldError",
    "Objective", "Point", "Operator", "DenseOperator", "Estimate",
    "curvature", "optimization", "sharpness", "symmetry", "reparametrisation",
    "training", "__version__",
]  # fmt: skip
