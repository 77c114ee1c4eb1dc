"""Curvature on a quotient: the same for every network that computes the same function."""

from __future__ import annotations

from quotientnet.curvature.lanczos import lanczos
from quotientnet.estimate import Estimate
from quotientnet.manifolds.base import QuotientManifold
from quotientnet.sharpness.euclidean import as_estimate

__all__ = ["riemannian_spectral_norm"]


def riemannian_spectral_norm(
    point,
    manifold,
    *,
    which: str = "algebraic",
    connection: str = "levi-civita",
    **options,
) -> Estimate:
    """The largest eigenvalue of the Riemannian Hessian (Def. 3 of [Rangamani2019]_).

    Invariant to the manifold's group: equal at all equivalent points. The eigenvalues are the
    quotient's own: null vectors along the orbit are left out.

    Args:
        point: A :class:`~quotientnet.Point`.
        manifold: The quotient.
        which: ``"algebraic"``, as in the definition, or ``"magnitude"``, which is what the paper's
            power method converges to (:func:`~quotientnet.curvature.power_method`; Lanczos needs
            fewer products).
        connection: ``"levi-civita"`` or ``"flat"``; see
            :meth:`~quotientnet.QuotientManifold.riemannian_hessian`.
        options: Passed to :func:`~quotientnet.curvature.lanczos`.

    Returns:
        The estimate in units of loss; ``error`` bounds the distance to some eigenvalue.

    Raises:
        TypeError: ``manifold`` is no quotient.
    """
    if not isinstance(manifold, QuotientManifold):
        raise TypeError(
            "riemannian_spectral_norm: manifold must be a QuotientManifold, such as "
            f"NodeWiseQuotient(symmetry), got {type(manifold).__name__}"
        )
    operator = manifold.riemannian_hessian(point, connection)
    pairs = lanczos(operator, which=which, **options)
    return as_estimate(pairs, invariant_to=(f"{manifold.name}'s group",))
