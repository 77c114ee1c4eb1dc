"""Other parameters for the same function: the constructions that make flatness arbitrary."""

from quotientnet.reparametrisation.bijections import Bijection, transformed_hessian
from quotientnet.reparametrisation.boxes import Box, DisjointBoxes, disjoint_boxes
from quotientnet.reparametrisation.eigenvalues import (
    SharpDirections,
    exceed_eigenvalues,
)
from quotientnet.reparametrisation.inputs import (
    AffinePreprocessing,
    OnPreprocessed,
    standardise,
    whiten,
)
from quotientnet.reparametrisation.power import PowerTransformation
from quotientnet.reparametrisation.radial import RadialTransformation
from quotientnet.reparametrisation.scales import layer_scales, unit_scales
from quotientnet.reparametrisation.sharpness import SharpNeighbour, exceed_sharpness
from quotientnet.reparametrisation.spectral_norm import (
    SharpDirection,
    exceed_spectral_norm,
)
from quotientnet.reparametrisation.splitting import share_branches

__all__ = [
    "layer_scales", "unit_scales", "exceed_spectral_norm", "SharpDirection", "exceed_eigenvalues",
    "SharpDirections", "exceed_sharpness", "SharpNeighbour", "disjoint_boxes", "DisjointBoxes",
    "Box", "Bijection", "PowerTransformation", "RadialTransformation", "transformed_hessian",
    "AffinePreprocessing", "OnPreprocessed", "standardise", "whiten", "share_branches",
]  # fmt: skip
