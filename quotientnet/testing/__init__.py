"""Property-based tests for your own groups, manifolds and models.

Laws are functions that return a :class:`Verdict`; strategies draw networks, groups and points with
hypothesis and are in :mod:`quotientnet.testing.strategies`. ``check_manifold(manifold)`` runs every
law that applies.
"""

from quotientnet.testing.drawn import (
    Architecture,
    Step,
    architectures,
    minimised,
    random_architecture,
    without_effect,
)
from quotientnet.testing.group_laws import GROUP_LAWS, check_group
from quotientnet.testing.hessian_laws import HESSIAN_LAWS, check_hessian
from quotientnet.testing.laws import Law, Verdict
from quotientnet.testing.manifold_laws import MANIFOLD_LAWS, check_manifold
from quotientnet.testing.riemannian_laws import RIEMANNIAN_LAWS
from quotientnet.testing.samples import Sample
from quotientnet.testing.training_laws import check_equivariant_training

__all__ = [
    "Law", "Verdict", "Sample", "GROUP_LAWS", "RIEMANNIAN_LAWS", "MANIFOLD_LAWS", "HESSIAN_LAWS",
    "check_group", "check_manifold", "check_hessian", "check_equivariant_training",
    "architectures", "random_architecture", "Architecture", "Step", "minimised", "without_effect",
]  # fmt: skip
