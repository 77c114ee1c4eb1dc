"""Laws of quotient manifolds."""

from __future__ import annotations

import copy
import pickle

import geoopt
import torch

from quotientnet.manifolds.base import QuotientManifold
from quotientnet.testing.laws import Verdict, registry, worst
from quotientnet.testing.samples import Sample

__all__ = ["MANIFOLD_LAWS", "check_manifold"]

MANIFOLD_LAWS = {}
law = registry(MANIFOLD_LAWS)

EXP, LOG, DIST = ("expmap",), ("expmap", "logmap"), ("expmap", "dist")
FOLLOW = ("expmap", "transp_follow_expmap")


def check_manifold(
    manifold, *, seed: int = 0, dtype=torch.float64, **options
) -> list[Verdict]:
    """Every law that applies to the manifold, on one random sample.

    Args:
        manifold: A :class:`~quotientnet.QuotientManifold`. Laws on methods it does not implement
            are left out.
        seed: Of the sample.
        dtype: float32 or float64.
        options: Passed to :class:`~quotientnet.testing.Sample`.
    """
    sample = Sample(manifold, seed, dtype=dtype, **options)
    laws = [each for each in MANIFOLD_LAWS.values() if dtype in each.tolerances]
    return [each.check(sample) for each in laws if supports(manifold, each.requires)]


def supports(manifold, methods) -> bool:
    """Whether the manifold implements the methods that geoopt or our base leave open."""
    open_methods = {
        "expmap": QuotientManifold.expmap,
        "logmap": QuotientManifold.logmap,
        "dist": QuotientManifold.dist,
        "transp_follow_expmap": geoopt.Manifold.transp_follow_expmap,
    }
    return all(
        getattr(type(manifold), name) is not open_methods[name] for name in methods
    )


# -- metric, gradient, projection ---


@law()
def metric_is_the_frame(s):
    """The metric is the identity in frame coordinates, and positive."""
    u, v, d = s.vector(4), s.vector(5), s.manifold.frame(s.x)
    product = s.manifold.inner(s.x, u, v)
    scale = s.manifold.norm(s.x, u) * s.manifold.norm(s.x, v)
    positive = (s.manifold.inner(s.x, u) > 0).all()
    gap = float(((product - (d * u * d * v).sum(-1)).abs() / scale).max())
    return gap if positive else float("inf")


@law()
def components_add_up(s):
    """``component_inner`` is constant on each block and adds up to ``inner``."""
    u, v = s.vector(4), s.vector(5)
    components = s.manifold.component_inner(s.x, u, v)
    blocks = getattr(s.manifold, "blocks", None)
    if blocks is not None:
        sums = blocks.dot(components, torch.ones_like(components)) / blocks.lengths.to(
            components
        )
        gap = (blocks.expand(sums).to(components) - components).abs().max()
        total = sums.sum(-1)
    else:
        gap, total = 0.0, components.sum(-1)
    scale = s.manifold.norm(s.x, u) * s.manifold.norm(s.x, v)
    return float(gap + ((total - s.manifold.inner(s.x, u, v)).abs() / scale).max())


@law()
def gradient_represents_the_differential(s):
    """``⟨egrad2rgrad(g), v⟩_x = ⟨g, v⟩`` for horizontal ``v``."""
    g, v = s.covector(4), s.tangent(5)
    left = s.manifold.inner(s.x, s.manifold.egrad2rgrad(s.x, g), v)
    scale = (g / s.manifold.frame(s.x)).norm(dim=-1) * s.length
    return float(((left - (g * v).sum(-1)).abs() / scale).max())


@law()
def gradient_is_horizontal(s):
    """``egrad2rgrad`` returns a horizontal vector."""
    grad = s.manifold.egrad2rgrad(s.x, s.covector(4))
    return s.difference(s.x, s.manifold.proju(s.x, grad), grad)


@law()
def projection_is_idempotent(s):
    """Projecting twice is projecting once, and ``horizontal`` is ``proju``."""
    once = s.manifold.proju(s.x, s.vector(4))
    twice = s.manifold.horizontal(s.x, once)
    return s.difference(s.x, twice, once)


@law()
def projection_is_self_adjoint(s):
    """``⟨P u, v⟩ = ⟨u, P v⟩`` in the metric."""
    m, u, v = s.manifold, s.vector(4), s.vector(5)
    left, right = m.inner(s.x, m.proju(s.x, u), v), m.inner(s.x, u, m.proju(s.x, v))
    return float(((left - right).abs() / (m.norm(s.x, u) * m.norm(s.x, v))).max())


@law()
def projection_annihilates_orbits(s):
    """The velocity of an orbit has no horizontal part."""
    velocity = s.manifold._keep(s.group.generate(s.x, s.normal(4, s.group.dimension)))
    size = s.manifold.norm(s.x, velocity).clamp(min=torch.finfo(s.dtype).tiny)
    return float((s.manifold.norm(s.x, s.manifold.proju(s.x, velocity)) / size).max())


@law()
def vertical_and_horizontal_add_up(s):
    """A vector is the sum of its vertical and horizontal parts, and they are orthogonal."""
    m, u = s.manifold, s.vector(4)
    vertical, horizontal = m.vertical(s.x, u), m.horizontal(s.x, u)
    cosine = m.inner(s.x, vertical, horizontal).abs() / m.inner(s.x, u)
    return worst(s.difference(s.x, vertical + horizontal, u), float(cosine.max()))


@law(single=None)
def projection_has_rank_dimension(s):
    """The projection's trace is the manifold's dimension; for one point of a small manifold."""
    m, x = s.manifold, s.x.reshape(-1, s.manifold.layout.size)[0]
    d = m.frame(x)
    projected = m.proju(x, torch.eye(len(x), dtype=s.dtype, device=s.device) / d) * d
    return float((projected.trace() - m.dimension).abs())


# -- equivariance ---


@law()
def metric_is_equivariant(s):
    """Corresponding vectors at equivalent points have equal inner products."""
    u, v = s.vector(4), s.vector(5)
    left, right = s.manifold.inner(s.moved, s.push(u), s.push(v)), s.manifold.inner(
        s.x, u, v
    )
    scale = s.manifold.norm(s.x, u) * s.manifold.norm(s.x, v)
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


# -- geodesics ---


@law(requires=LOG)
def logarithm_inverts_exponential(s):
    """``log∘exp`` is the identity on horizontal vectors within the injectivity radius."""
    u = s.tangent(4)
    return s.difference(s.x, s.manifold.logmap(s.x, s.manifold.expmap(s.x, u)), u)


@law(requires=LOG)
def logarithm_is_horizontal(s):
    """The logarithm of any representative is the same horizontal vector."""
    m, u = s.manifold, s.tangent(4)
    log = m.logmap(s.x, s.group.act(m.expmap(s.x, u), s.t))
    return worst(s.difference(s.x, m.proju(s.x, log), log), s.difference(s.x, log, u))


@law(requires=LOG + DIST)
def exponential_of_logarithm_is_on_the_orbit(s):
    """``exp(log y)`` lies on the orbit of ``y``."""
    m = s.manifold
    y = s.group.act(m.expmap(s.x, s.tangent(4)), s.t)
    return float(m.dist(m.expmap(s.x, m.logmap(s.x, y)), y).max())


@law(requires=LOG + DIST)
def distance_is_length_of_logarithm(s):
    """``dist(x, y) = ‖log_x y‖_x``."""
    y = s.group.act(s.manifold.expmap(s.x, s.tangent(4)), s.t)
    return s.gap(
        s.manifold.dist(s.x, y), s.manifold.norm(s.x, s.manifold.logmap(s.x, y))
    )


@law(requires=DIST)
def distance_is_zero_on_the_orbit(s):
    """Equivalent points are at distance zero."""
    return float(s.manifold.dist(s.x, s.moved).max())


@law(requires=DIST)
def distance_is_length_off_the_orbit(s):
    """The end of a short horizontal geodesic is as far as the geodesic is long; symmetric."""
    y = s.group.act(s.manifold.expmap(s.x, s.tangent(4)), s.t)
    lengths = torch.full(s.batch, s.length, dtype=s.dtype, device=s.device)
    forth = s.gap(s.manifold.dist(s.x, y), lengths)
    return worst(forth, s.gap(s.manifold.dist(y, s.x), lengths))


@law(requires=FOLLOW)
def geodesics_stay_horizontal(s):
    """A geodesic's velocity stays horizontal and keeps its length."""
    u = s.tangent(4)
    y, velocity = s.manifold.expmap_transp(s.x, u, u)
    speed = s.gap(s.manifold.norm(y, velocity), s.manifold.norm(s.x, u))
    return worst(speed, s.difference(y, s.manifold.proju(y, velocity), velocity))


@law(double=1e-6, single=None, requires=FOLLOW)
def velocity_is_the_derivative_of_the_exponential(s):
    """The transported velocity is the derivative of the geodesic, also far out."""
    u, h = s.tangent(4), 1e-5
    far, near = s.manifold.expmap(s.x, (1 + h) * u), s.manifold.expmap(s.x, (1 - h) * u)
    y, velocity = s.manifold.expmap_transp(s.x, u, u)
    return s.difference(y, (far - near) / (2 * h), velocity)


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


@law(requires=FOLLOW)
def transport_is_an_isometry_along_geodesics(s):
    """Transport keeps inner products and horizontality, where a geodesic is followed."""
    m, u, v = s.manifold, s.tangent(4), s.tangent(5)
    y = m.expmap(s.x, u)
    total = 0.0
    for carry in (
        lambda v: m.transp(s.x, y, v),
        lambda v: m.transp_follow_expmap(s.x, u, v),
    ):
        a, b = carry(u), carry(v)
        product = (m.inner(y, a, b) - m.inner(s.x, u, v)).abs().max() / s.length**2
        sizes = worst(
            s.gap(m.norm(y, a), m.norm(s.x, u)), s.gap(m.norm(y, b), m.norm(s.x, v))
        )
        total = worst(total, product, sizes, s.difference(y, m.proju(y, b), b))
    return total


@law(requires=FOLLOW)
def transports_along_one_geodesic_agree(s):
    """``transp`` to the end of a geodesic within the injectivity radius is ``transp_follow``."""
    m, u, v = s.manifold, s.tangent(4), s.tangent(5)
    y = m.expmap(s.x, u)
    return s.difference(y, m.transp(s.x, y, v), m.transp_follow_expmap(s.x, u, v))


@law()
def transport_to_the_point_itself_is_the_identity(s):
    """``transp(x, x, v) = v`` for horizontal ``v``."""
    v = s.tangent(5)
    return s.difference(s.x, s.manifold.transp(s.x, s.x, v), v)


@law(double=1e-7, single=None)
def retraction_starts_with_its_vector(s):
    """The derivative of ``retr(x, h u)`` at ``h = 0`` is ``u``."""
    m, u, h = s.manifold, s.direction(4), 1e-6
    return s.difference(s.x, (m.retr(s.x, h * u) - m.retr(s.x, -h * u)) / (2 * h), u)


@law(double=0.2, single=None, requires=EXP)
def retraction_is_first_order(s):
    """``retr`` and ``exp`` agree to first order: their gap shrinks at least as the square."""
    u, steps = s.direction(4), (1e-3, 1e-4)
    gaps = [
        s.manifold.norm(
            s.x, s.manifold.retr(s.x, h * u) - s.manifold.expmap(s.x, h * u)
        ).max()
        for h in steps
    ]
    slope = torch.log10(gaps[0] / gaps[1].clamp(min=1e-300))
    return worst(2.0 - slope, 0.0)


# -- contract ---


@law(double=1e-12, single=1e-4)
def batch_is_loop(s):
    """A batch of points gives what each point gives alone."""
    m = s.manifold
    points = Sample(m, s.seed, (3,), s.spread, s.length, s.dtype, s.device)
    x, u, v = points.x, points.tangent(4), points.tangent(5)
    y = m.retr(x, 0.1 * u)
    calls = {
        "inner": (x, u, v), "proju": (x, v), "egrad2rgrad": (x, v), "retr": (x, u),
        "transp": (x, y, v), "component_inner": (x, u),
    }  # fmt: skip
    if supports(m, LOG + DIST):
        calls |= {"expmap": (x, u), "logmap": (x, y), "dist": (x, y)}
        calls |= {"transp_follow_expmap": (x, u, v)}
    total = 0.0
    for name, arguments in calls.items():
        together = getattr(m, name)(*arguments)
        alone = torch.stack([getattr(m, name)(*each) for each in zip(*arguments)])
        total = worst(total, (together - alone).abs().max() / alone.abs().max())
    return total


@law(double=0.0, single=0.0)
def projection_to_the_manifold_moves_no_point(s):
    """``projx`` returns points as they are, and the checks accept points and tangent vectors."""
    m = s.manifold
    point, why = m.check_point_on_manifold(s.x, explain=True)
    vector, why_not = m.check_vector_on_tangent(
        s.x, s.tangent(4), explain=True, rtol=1e-3
    )
    moved = float((m.projx(s.x) - s.x).abs().max())
    return moved if point and vector else float("inf")


@law(double=0.0, single=0.0, requires=EXP)
def derivatives_are_finite_at_zero(s):
    """``exp``, ``retr``, ``norm`` and ``dist`` have finite gradients at a zero tangent vector."""
    m, zero = s.manifold, torch.zeros_like(s.x)
    functions = [lambda u: m.expmap(s.x, u).sum(), lambda u: m.norm(s.x, u).sum()]
    functions += [lambda u: m.retr(s.x, u).sum(), lambda u: m.inner(s.x, u).sum()]
    if supports(m, DIST):
        functions += [lambda u: m.dist(s.x, m.retr(s.x, u)).sum()]
    if supports(m, LOG):
        functions += [lambda u: m.logmap(s.x, m.expmap(s.x, u)).sum()]
    for function in functions:
        u = zero.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(u), u)
        if not torch.isfinite(gradient).all():
            return float("inf")
    return 0.0


@law(double=0.0, single=0.0)
def copies_are_equal(s):
    """A deep copy, a pickled copy and ``.to`` behave the same; groups compare equal by value."""
    m, u = s.manifold, s.tangent(4)
    expected = m.proju(s.x, u)
    copies = [
        copy.deepcopy(m),
        pickle.loads(pickle.dumps(m)),
        copy.deepcopy(m).to(s.device),
    ]
    if any(other.group != m.group for other in copies):
        return float("inf")
    return worst(*((other.proju(s.x, u) - expected).abs().max() for other in copies))
