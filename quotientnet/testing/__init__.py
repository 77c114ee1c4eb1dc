"""Property-based tests for your own groups, manifolds, measures, optimizers and models.

Laws are functions that return a :class:`Verdict`; strategies draw networks, groups and points with
hypothesis and are in :mod:`quotientnet.testing.strategies`. ``check_manifold(manifold)`` runs every
law that applies, ``conformance(model, inputs)`` makes test cases of all that there is to say of a
model.
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
from quotientnet.testing.conformance import Case, conformance
from quotientnet.testing.curve_laws import retraction_slope
from quotientnet.testing.derivatives import DERIVATIVE_LAWS, check_derivatives
from quotientnet.testing.hessian_laws import HESSIAN_LAWS, check_hessian
from quotientnet.testing.laws import Law, Verdict
from quotientnet.testing.manifold_laws import MANIFOLD_LAWS, check_manifold
from quotientnet.testing.measure_laws import check_invariance
from quotientnet.testing.number_laws import check_batches, check_repeatable, fingerprint
from quotientnet.testing.operator_laws import OPERATOR_LAWS, check_operator
from quotientnet.testing.precision import BOUNDS, Bound, Precision, check_precision, precision
from quotientnet.testing.profiles import PROFILES, REGIMES, Profile
from quotientnet.testing.riemannian_laws import RIEMANNIAN_LAWS
from quotientnet.testing.samples import Sample
from quotientnet.testing.shaped import Unrolled
from quotientnet.testing.slopes import Slope, fit_slope, measure_slope
from quotientnet.testing.training_laws import check_equivariant_training

__all__ = [
    "conformance", "Case", "Profile", "PROFILES", "REGIMES",
    "Law", "Verdict", "Sample", "Unrolled", "Slope", "fit_slope", "measure_slope",
    "GROUP_LAWS", "RIEMANNIAN_LAWS", "MANIFOLD_LAWS", "HESSIAN_LAWS", "OPERATOR_LAWS",
    "DERIVATIVE_LAWS",
    "check_group", "check_manifold", "check_hessian", "check_derivatives", "check_operator",
    "check_invariance", "check_equivariant_training", "retraction_slope",
    "check_precision", "check_batches", "check_repeatable", "precision", "Precision", "Bound",
    "BOUNDS", "fingerprint",
    "architectures", "random_architecture", "Architecture", "Step", "minimised", "without_effect",
]  # fmt: skip
