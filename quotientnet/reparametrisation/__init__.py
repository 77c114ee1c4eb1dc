"""Other parameters for the same function: the constructions that make flatness arbitrary."""

from quotientnet.reparametrisation.eigenvalues import (
    SharpDirections,
    exceed_eigenvalues,
)
from quotientnet.reparametrisation.scales import layer_scales, unit_scales
from quotientnet.reparametrisation.sharpness import SharpNeighbour, exceed_sharpness
from quotientnet.reparametrisation.spectral_norm import (
    SharpDirection,
    exceed_spectral_norm,
)

__all__ = [
    "layer_scales", "unit_scales", "exceed_spectral_norm", "SharpDirection", "exceed_eigenvalues",
    "SharpDirections", "exceed_sharpness", "SharpNeighbour",
]  # fmt: skip
