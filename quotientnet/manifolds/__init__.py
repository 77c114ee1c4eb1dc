"""Manifolds of parameters modulo scaling groups."""

from quotientnet.manifolds.balanced import BalancedQuotient
from quotientnet.manifolds.base import QuotientManifold
from quotientnet.manifolds.log_polar import (
    LayerScaleQuotient,
    LogPolarQuotient,
    NodeWiseQuotient,
)
from quotientnet.manifolds.oblique import ProductOblique
from quotientnet.manifolds.without import without_translations

__all__ = [
    "QuotientManifold",
    "LogPolarQuotient",
    "LayerScaleQuotient",
    "NodeWiseQuotient",
    "BalancedQuotient",
    "ProductOblique",
    "without_translations",
]
