"""Laws of quotient manifolds."""

from __future__ import annotations

import geoopt
import torch

from quotientnet.manifolds.base import QuotientManifold
from quotientnet.testing import curve_laws  # noqa: F401  adds to RIEMANNIAN_LAWS
from quotientnet.testing.laws import Law, Verdict, check_laws, registry, worst
from quotientnet.testing.profiles import Profile, samples_for
from quotientnet.testing.riemannian_laws import (
    DIST,
    EXP,
    FOLLOW,
    RIEMANNIAN_LAWS,
    supports,
)
from quotientnet.testing.shaped import Unrolled

__all__ = ["MANIFOLD_LAWS", "applies", "check_manifold", "laws_of"]

RANK, SMALL = "projection_has_rank_dimension", 2000
"""The law for which a projection is written out as a matrix, and for how many coordinates it is."""

MANIFOLD_LAWS = dict(RIEMANNIAN_LAWS)
law = registry(MANIFOLD_LAWS)


def check_manifold(
    manifold,
    *,
    shape: tuple[int, ...] | None = None,
    profile: str | Profile | None = None,
    seed: int = 0,
    dtype=torch.float64,
    device="cpu",
    **options,
) -> list[Verdict]:
    """Every law that applies to the manifold; of each, the worst sample.

    Args:
        manifold: A :class:`~quotientnet.QuotientManifold`; a manifold of flat vectors that is no
            quotient, as :class:`~quotientnet.ProductOblique`; or, with ``shape``, any manifold of
            geoopt. Laws of groups and orbits are left out where there is no group, and laws on
            methods that it does not implement everywhere.
        shape: Of one point, such as ``(5, 3)``, for manifolds that do not have a ``layout``.
        profile: ``"quick"``, ``"ci"``, ``"thorough"``, or a :class:`~quotientnet.testing.Profile`:
            which samples are tried. By default one, as ``dtype`` and ``options`` say.
        seed: Of the samples.
        dtype: float32 or float64, without a profile.
        device: Of the points.
        options: Passed to :class:`~quotientnet.testing.Sample`, without a profile.

    Returns:
        One verdict for each law; what a method of the manifold raises is a violation, too.

    Raises:
        TypeError: What is no manifold of geoopt; options together with a profile.
        ValueError: A manifold without a layout, and no ``shape``; another profile.

    Example:
        >>> import geoopt
        >>> from quotientnet.testing import check_manifold
        >>> for verdict in check_manifold(geoopt.Sphere(), shape=(5,)):
        ...     if not verdict.holds:
        ...         print(f"{verdict.law}: {verdict.violation:.1e}")
        exponential_of_logarithm_is_on_the_orbit: 4.5e-04
        derivatives_are_finite_at_zero: inf
    """
    manifold = _of_vectors(manifold, shape)
    samples = samples_for(
        manifold, profile, "check_manifold", seed, dtype, device, options
    )
    return check_laws(laws_of(manifold).values(), samples, applies)


def laws_of(manifold) -> dict[str, Law]:
    """The laws that apply to a manifold of flat vectors, by name."""
    quotient = isinstance(manifold, QuotientManifold)
    laws = dict(MANIFOLD_LAWS if quotient else RIEMANNIAN_LAWS)
    if manifold.layout.size > SMALL:
        del laws[RANK]
    return {name: law for name, law in laws.items() if supports(manifold, law.requires)}


def applies(law: Law, sample) -> bool:
    """Whether a law is stated for a sample: the rank is that of one point, not badly scaled."""
    return law.name != RANK or (not sample.batch and sample.spread <= 1)


def _of_vectors(manifold, shape):
    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(
            "check_manifold: manifold must be a geoopt.Manifold, got "
            f"{type(manifold).__name__}"
        )
    if shape is not None:
        return Unrolled(manifold, shape)
    if not hasattr(manifold, "layout"):
        raise ValueError(
            f"check_manifold: {type(manifold).__name__} has no layout; pass the shape of a point, "
            "such as shape=(5, 3)"
        )
    return manifold


@law()
def metric_is_the_frame(s):
    """The metric is the identity in frame coordinates, and positive."""
    u, v, d = s.vector(4), s.vector(5), s.manifold.frame(s.x)
    product = s.manifold.inner(s.x, u, v)
    scale = s.norm(s.x, u) * s.norm(s.x, v)
    positive = (s.manifold.inner(s.x, u) > 0).all()
    gap = float(((product - (d * u * d * v).sum(-1)).abs() / scale).max())
    return gap if positive else float("inf")


@law()
def projection_annihilates_orbits(s):
    """The velocity of an orbit has no horizontal part."""
    velocity = s.manifold._keep(s.group.generate(s.x, s.normal(4, s.group.dimension)))
    size = s.norm(s.x, velocity).clamp(min=torch.finfo(s.dtype).tiny)
    return float((s.norm(s.x, s.manifold.proju(s.x, velocity)) / size).max())


@law()
def vertical_and_horizontal_add_up(s):
    """A vector is the sum of its vertical and horizontal parts, and they are orthogonal."""
    m, u = s.manifold, s.vector(4)
    vertical, horizontal = m.vertical(s.x, u), m.horizontal(s.x, u)
    cosine = m.inner(s.x, vertical, horizontal).abs() / m.inner(s.x, u)
    return worst(s.difference(s.x, vertical + horizontal, u), float(cosine.max()))


@law()
def metric_is_equivariant(s):
    """Corresponding vectors at equivalent points have equal inner products."""
    u, v = s.vector(4), s.vector(5)
    left, right = s.manifold.inner(s.moved, s.push(u), s.push(v)), s.manifold.inner(
        s.x, u, v
    )
    scale = s.norm(s.x, u) * s.norm(s.x, v)
    return float(((left - right).abs() / scale).max())


@law()
def projection_is_equivariant(s):
    """Projection commutes with the group."""
    u = s.vector(4)
    projected = s.push(s.manifold.proju(s.x, u))
    return s.difference(s.moved, s.manifold.proju(s.moved, s.push(u)), projected)


@law()
def gradient_is_equivariant(s):
    """Gradients of an invariant function at equivalent points correspond."""
    g = s.covector(4)
    moved = s.manifold.egrad2rgrad(s.moved, s.group.act(g, -s.t))
    return s.difference(s.moved, moved, s.push(s.manifold.egrad2rgrad(s.x, g)))


@law()
def retraction_is_equivariant(s):
    """Retraction commutes with the group."""
    u = 0.1 * s.tangent(4)
    moved = s.manifold.retr(s.moved, s.push(u))
    return s.difference(s.moved, moved - s.moved, s.push(s.manifold.retr(s.x, u) - s.x))


@law(requires=EXP)
def exponential_is_equivariant(s):
    """Geodesics from equivalent points stay equivalent."""
    u = s.tangent(4)
    moved = s.manifold.expmap(s.moved, s.push(u))
    return s.difference(
        s.moved, moved - s.moved, s.push(s.manifold.expmap(s.x, u) - s.x)
    )


@law(requires=DIST)
def distance_is_equivariant(s):
    """The distance does not depend on the representatives of either point."""
    y = s.manifold.expmap(s.x, s.tangent(4))
    other = s.group.act(y, s.element(5))
    return s.gap(s.manifold.dist(s.moved, other), s.manifold.dist(s.x, y))


@law()
def transport_is_equivariant(s):
    """Transport commutes with the group, also where only the target moves."""
    m, v = s.manifold, s.tangent(5)
    y = m.retr(s.x, 0.1 * s.tangent(4))
    expected = s.push(m.transp(s.x, y, v))
    target = s.group.act(y, s.t)
    aligned = s.difference(target, m.transp(s.x, target, v), expected)
    return worst(
        aligned, s.difference(target, m.transp(s.moved, target, s.push(v)), expected)
    )


@law(requires=DIST)
def distance_is_zero_on_the_orbit(s):
    """Equivalent points are at distance zero."""
    return float(s.manifold.dist(s.x, s.moved).max())


@law(double=1e-5, single=None, requires=EXP)
def geodesics_obey_the_levi_civita_connection(s):
    """The acceleration of a geodesic is that of the connection derived from the frame."""
    u, h, m = s.direction(4), 1e-3, s.manifold
    acceleration = (m.expmap(s.x, h * u) - 2 * s.x + m.expmap(s.x, -h * u)) / h**2
    return _against_connection(s, acceleration, u, u)


@law(double=1e-5, single=None, requires=FOLLOW)
def transport_obeys_the_levi_civita_connection(s):
    """The derivative of a transported vector is that of the connection derived from the frame."""
    u, v, h, m = s.direction(4), s.direction(5), 1e-4, s.manifold
    ahead, behind = (m.transp_follow_expmap(s.x, a * u, v) for a in (h, -h))
    return _against_connection(s, (ahead - behind) / (2 * h), u, v)


def _against_connection(s, derivative, u, v) -> float:
    """``⟨g, derivative⟩ = ⟨Γ u, v⟩`` for a random covector, with Γ by automatic differentiation."""
    g = s.covector(6)
    expected = (QuotientManifold.connection_term(s.manifold, s.x, g, u) * v).sum(-1)
    scale = (g / s.manifold.frame(s.x)).norm(dim=-1)
    return float((((g * derivative).sum(-1) - expected).abs() / scale).max())


@law(single=None, requires=EXP)
def connection_is_the_frames(s):
    """The connection term in closed form is the one derived from the frame."""
    g, u, d = s.covector(4), s.vector(5), s.manifold.frame(s.x)
    derived = QuotientManifold.connection_term(s.manifold, s.x, g, u)
    gap = ((s.manifold.connection_term(s.x, g, u) - derived) / d).norm(dim=-1)
    return float((gap / (derived / d).norm(dim=-1)).max())
