"""Curvature on a quotient: the same for every network that computes the same function."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quotientnet.curvature.lanczos import lanczos
from quotientnet.curvature.traces import hutchinson_trace
from quotientnet.estimate import Estimate
from quotientnet.manifolds.balanced import BalancedQuotient
from quotientnet.manifolds.base import QuotientManifold
from quotientnet.manifolds.log_polar import LogPolarQuotient
from quotientnet.point import require_point
from quotientnet.sharpness.arguments import parameter_names
from quotientnet.sharpness.curvatures import diagonal_of
from quotientnet.sharpness.euclidean import as_estimate

__all__ = ["riemannian_spectral_norm", "riemannian_trace"]


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
    require_point(point, "riemannian_spectral_norm")
    require_quotient(manifold, "riemannian_spectral_norm")
    operator = manifold.riemannian_hessian(point, connection)
    pairs = lanczos(operator, which=which, **options)
    return as_estimate(pairs, group_of(manifold))


def riemannian_trace(
    point,
    manifold,
    *,
    connection: str = "levi-civita",
    method: str = "exact",
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The trace of the Riemannian Hessian on the quotient.

    After Definition 3 of [Rangamani2019]_, with the connection: in the log-polar metric it is
    :math:`\sum_b \|w_b\|^2 \operatorname{tr} H_{bb} + (2 - d_b) \langle w_b, g_b \rangle`, of
    which directions along orbits have no part. Without the connection, and in the balanced metric,
    their part is subtracted, which for an invariant loss is known from the gradient:
    :math:`\langle A t \odot w, H (A t \odot w) \rangle = -\sum_i (A t)_i^2 w_i g_i`.

    Invariant to the manifold's group.

    Args:
        point: A :class:`~quotientnet.Point`.
        manifold: The quotient.
        connection: ``"levi-civita"`` or ``"flat"``.
        method: ``"exact"``, from the diagonal of the Hessian
            (:func:`~quotientnet.curvature.hessian_diagonal`), for log-polar and balanced quotients;
            or ``"hutchinson"``, by random signs, for any.
        samples: Random signs.
        generator: Their source; a fresh one with seed 0 if omitted.

    Returns:
        The estimate in units of loss. The ``error`` of the exact one is of the size of what the
        ``eps`` of a normalisation leaves of slopes along orbits. It has the parts of the tensors
        in ``layers``, on the whole tangent space: without the connection they exceed the trace by
        the part along orbits.

    Raises:
        TypeError: ``manifold`` is no quotient.
        ValueError: Another method, or what the diagonal refuses.
        NotImplementedError: The exact trace in another metric.
    """
    require_point(point, "riemannian_trace")
    require_quotient(manifold, "riemannian_trace")
    operator = manifold.riemannian_hessian(point, connection)
    if method == "hutchinson":
        found = hutchinson_trace(operator, samples=samples, generator=generator)
        return replace(found, invariant_to=group_of(manifold))
    if method != "exact":
        raise ValueError(
            f"riemannian_trace: method must be 'exact' or 'hutchinson', got {method!r}"
        )
    flat = connection == "flat" or isinstance(manifold, BalancedQuotient)
    entries = _diagonal(point, manifold, flat)
    total = float(entries.sum())
    if flat:
        total -= _vertical_trace(point, manifold)
    pieces = manifold.layout.unflatten(entries)

    def estimate(value: float, error: float = 0.0) -> Estimate:
        return Estimate(value, error, True, 1, group_of(manifold))

    names = parameter_names(point)
    layers = {name: estimate(float(pieces[name].sum())) for name in names}
    return replace(estimate(total, _left_by_eps(point, manifold)), layers=layers)


def _left_by_eps(point, manifold) -> float:
    """The slopes along orbits, which the ``eps`` of a normalisation leaves: what is known of the
    part along orbits is as uncertain. 0 if they are rounding."""
    products = manifold._keep(point.w.double() * point.gradient.double())
    slopes = float(manifold.group.adjoint(products).abs().sum())
    rounding = 1e3 * torch.finfo(point.w.dtype).eps * float(products.abs().sum())
    return slopes if slopes > rounding else 0.0


def _diagonal(point, manifold, flat: bool) -> Tensor:
    """The diagonal of ``D⁻¹ (H + Γ) D⁻¹``, float64."""
    w, gradient = point.w, point.gradient.double()
    if not flat and not isinstance(manifold, LogPolarQuotient):
        raise NotImplementedError(
            f"riemannian_trace: no exact trace in the metric of {manifold.name}; use "
            "method='hutchinson'"
        )
    hessian, _ = diagonal_of(point, "hessian", "riemannian_trace")
    frame = manifold.frame(w).double()
    diagonal = hessian.double() / frame / frame
    if not flat:
        blocks, slopes = manifold.blocks, w.double() * gradient
        along = blocks.dot(slopes, torch.ones_like(slopes))
        diagonal = diagonal + 2 * slopes - blocks.expand(along)
    return manifold._keep(diagonal)


def _vertical_trace(point, manifold) -> float:
    """The trace of ``D⁻¹ H D⁻¹`` on the directions along orbits, by the loss's invariance."""
    w, group = point.w.double(), manifold.group
    frame = manifold.frame(point.w).double()
    metric = group.gram(manifold._keep((frame * w) ** 2)).to_dense()
    slopes = manifold._keep(w * point.gradient.double())
    up, down = (group.gram(s.clamp(min=0)).to_dense() for s in (slopes, -slopes))
    inverse = torch.linalg.pinv(torch.as_tensor(metric), hermitian=True)
    return -float((inverse * (torch.as_tensor(up) - torch.as_tensor(down))).sum())


def group_of(manifold) -> tuple[str, ...]:
    """What a measure on a quotient is invariant to."""
    return (f"{manifold.name}'s group",)


def require_quotient(manifold, caller: str) -> None:
    """Refuse what is no quotient.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(manifold, QuotientManifold):
        raise TypeError(
            f"{caller}: manifold must be a QuotientManifold, such as NodeWiseQuotient(symmetry), "
            f"got {type(manifold).__name__}"
        )
