"""Laws of Riemannian manifolds of flat vectors, quotients or not.

On a quotient "tangent" means horizontal, and every point stands for its orbit.
"""

from __future__ import annotations

import copy
import inspect
import pickle

import geoopt
import torch

from quotientnet.manifolds.base import QuotientManifold
from quotientnet.testing.laws import registry, worst
from quotientnet.testing.samples import Sample

__all__ = ["RIEMANNIAN_LAWS", "supports"]

RIEMANNIAN_LAWS = {}
law = registry(RIEMANNIAN_LAWS)

EXP, LOG, DIST = ("expmap",), ("expmap", "logmap"), ("expmap", "dist")
FOLLOW, TRANSPORT = ("expmap", "transp_follow_expmap"), ("transp",)


_LEFT_OPEN = {
    name: getattr(QuotientManifold, name) for name in ("expmap", "logmap", "dist")
}


def supports(manifold, methods) -> bool:
    """Whether the manifold implements the methods that geoopt or our base leave open.

    ``"out"`` asks for a projection that writes its result where it is told.
    """
    parts = getattr(manifold, "parts", (type(manifold),))
    if "out" in methods:
        return all(_takes_out(part, "proju") for part in parts)
    return all(
        getattr(part, name, None)
        not in (None, getattr(geoopt.Manifold, name, None), _LEFT_OPEN.get(name))
        for name in methods
        for part in parts
    )


def _takes_out(written: type, name: str) -> bool:
    """Whether a method writes to ``out``; one with ``**options`` does what the next class does."""
    for cls in written.__mro__:
        if name in vars(cls):
            found = inspect.signature(vars(cls)[name]).parameters
            if all(p.kind is not p.VAR_KEYWORD for p in found.values()):
                return "out" in found
    return False


# -- metric, gradient, projection ---


@law(requires=("component_inner",))
def components_add_up(s):
    """``component_inner`` is constant on each block and adds up to ``inner``."""
    u, v = s.vector(4), s.vector(5)
    components = s.manifold.component_inner(s.x, u, v)
    blocks = getattr(s.manifold, "blocks", None)
    if blocks is not None:
        lengths = blocks.lengths.to(components).clamp(min=1)
        sums = blocks.dot(components, torch.ones_like(components)) / lengths
        gap = (
            (s.manifold._keep(blocks.expand(sums).to(components)) - components)
            .abs()
            .max()
        )
        total = sums.sum(-1)
    else:
        gap, total = 0.0, components.sum(-1)
    scale = s.norm(s.x, u) * s.norm(s.x, v)
    return float(gap + ((total - s.manifold.inner(s.x, u, v)).abs() / scale).max())


@law()
def gradient_represents_the_differential(s):
    """``⟨egrad2rgrad(g), v⟩_x = ⟨g, v⟩`` for horizontal ``v``."""
    g, v = s.covector(4), s.tangent(5)
    left = s.manifold.inner(s.x, s.manifold.egrad2rgrad(s.x, g.clone()), v)
    scale = (g / s.frame).norm(dim=-1) * s.length
    return float(((left - (g * v).sum(-1)).abs() / scale).max())


@law()
def gradient_is_horizontal(s):
    """``egrad2rgrad`` returns a horizontal vector."""
    grad = s.manifold.egrad2rgrad(s.x, s.covector(4))
    return s.difference(s.x, s.manifold.proju(s.x, grad), grad)


@law()
def projection_is_idempotent(s):
    """Projecting twice is projecting once, and a quotient's ``horizontal`` is ``proju``."""
    m, once = s.manifold, s.manifold.proju(s.x, s.vector(4))
    twice = getattr(m, "horizontal", m.proju)(s.x, once)
    return s.difference(s.x, twice, once)


@law()
def projection_is_self_adjoint(s):
    """``⟨P u, v⟩ = ⟨u, P v⟩`` in the metric."""
    m, u, v = s.manifold, s.vector(4), s.vector(5)
    pu, pv = m.proju(s.x, u), m.proju(s.x, v)
    gap = (m.inner(s.x, pu, v) - m.inner(s.x, u, pv)).abs()
    sizes = [s.norm(s.x, a) * s.norm(s.x, b) for a, b in ((u, v), (pu, pv))]
    return float((gap / torch.maximum(*sizes)).max())


@law(single=None, requires=("dimension",))
def projection_has_rank_dimension(s):
    """The projection's trace is the manifold's dimension; for one point of a small manifold."""
    m, x = s.manifold, s.x.reshape(-1, s.manifold.layout.size)[0]
    d = s.frame.reshape(-1, len(x))[0]
    projected = m.proju(x, torch.eye(len(x), dtype=s.dtype, device=s.device) / d) * d
    return float((projected.trace() - m.dimension).abs())


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
    log = m.logmap(s.x, s.elsewhere(m.expmap(s.x, u)))
    return worst(s.difference(s.x, m.proju(s.x, log), log), s.difference(s.x, log, u))


@law(requires=LOG + DIST)
def exponential_of_logarithm_is_on_the_orbit(s):
    """``exp(log y)`` lies on the orbit of ``y``."""
    m = s.manifold
    y = s.elsewhere(m.expmap(s.x, s.tangent(4)))
    return float(m.dist(m.expmap(s.x, m.logmap(s.x, y)), y).max())


@law(requires=LOG + DIST)
def distance_is_length_of_logarithm(s):
    """``dist(x, y) = ‖log_x y‖_x``."""
    y = s.elsewhere(s.manifold.expmap(s.x, s.tangent(4)))
    return s.gap(s.manifold.dist(s.x, y), s.norm(s.x, s.manifold.logmap(s.x, y)))


@law(requires=DIST)
def distance_is_length_off_the_orbit(s):
    """The end of a short horizontal geodesic is as far as the geodesic is long; symmetric."""
    y = s.elsewhere(s.manifold.expmap(s.x, s.tangent(4)))
    lengths = torch.full(s.batch, s.length, dtype=s.dtype, device=s.device)
    forth = s.gap(s.manifold.dist(s.x, y), lengths)
    return worst(forth, s.gap(s.manifold.dist(y, s.x), lengths))


@law(requires=DIST)
def distance_obeys_the_triangle_inequality(s):
    """The way through a third point is no shorter, also where that lies nearly between."""
    m, u, v = s.manifold, 0.5 * s.tangent(4), 0.1 * s.tangent(5)
    x, y, z = s.x, s.elsewhere(m.expmap(s.x, u)), m.expmap(s.x, m.proju(s.x, v - u))
    excess = m.dist(y, z) - m.dist(y, x) - m.dist(x, z)
    return float((excess / m.dist(y, z)).max().clamp(min=0))


@law(requires=FOLLOW)
def geodesics_stay_horizontal(s):
    """A geodesic's velocity stays horizontal and keeps its length."""
    u = s.tangent(4)
    y, velocity = s.manifold.expmap_transp(s.x, u, u)
    speed = s.gap(s.norm(y, velocity), s.norm(s.x, u))
    return worst(speed, s.difference(y, s.manifold.proju(y, velocity), velocity))


@law(double=1e-6, single=None, requires=FOLLOW)
def velocity_is_the_derivative_of_the_exponential(s):
    """The transported velocity is the derivative of the geodesic, also far out."""
    m, u, h = s.manifold, s.tangent(4), 1e-5 / s.length
    far, near = m.expmap(s.x, (1 + h) * u), m.expmap(s.x, (1 - h) * u)
    y, velocity = m.expmap_transp(s.x, u, u)
    return s.difference(y, (far - near) / (2 * h), velocity)


@law(requires=FOLLOW + TRANSPORT)
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
            s.gap(s.norm(y, a), s.norm(s.x, u)), s.gap(s.norm(y, b), s.norm(s.x, v))
        )
        total = worst(total, product, sizes, s.difference(y, m.proju(y, b), b))
    return total


@law(requires=FOLLOW + TRANSPORT)
def transports_along_one_geodesic_agree(s):
    """``transp`` to the end of a geodesic within the injectivity radius is ``transp_follow``."""
    m, u, v = s.manifold, s.tangent(4), s.tangent(5)
    y = m.expmap(s.x, u)
    return s.difference(y, m.transp(s.x, y, v), m.transp_follow_expmap(s.x, u, v))


@law(requires=TRANSPORT)
def transport_to_the_point_itself_is_the_identity(s):
    """``transp(x, x, v) = v`` for horizontal ``v``."""
    v = s.tangent(5)
    return s.difference(s.x, s.manifold.transp(s.x, s.x, v), v)


@law(double=0.0, single=0.0)
def moves_end_on_the_manifold(s):
    """Retraction, exponential map and transport end at points and tangent vectors."""
    m, u, v = s.manifold, s.tangent(4), s.tangent(5)
    y, carried = m.retr_transp(s.x, 0.1 * u, v)
    ends = [y, m.expmap(s.x, u)] if supports(m, EXP) else [y]
    points = all(m.check_point_on_manifold(end) for end in ends)
    tangent = m.check_vector_on_tangent(y, carried, rtol=1e-3)
    return 0.0 if points and tangent else float("inf")


# -- contract ---


@law(double=1e-10, single=1e-4)
def batch_is_loop(s):
    """A batch of points gives what each point gives alone."""
    m, total = s.manifold, 0.0
    three = Sample(m, s.seed, (3,), s.spread, s.length, s.dtype, s.device)
    for name, arguments in _calls(three).items():
        together = getattr(m, name)(*(t.clone() for t in arguments))
        alone = torch.stack(
            [getattr(m, name)(*(t.clone() for t in each)) for each in zip(*arguments)]
        )
        total = worst(total, (together - alone).abs().max() / alone.abs().max())
    return total


@law(double=0.0, single=0.0)
def arguments_are_left_alone(s):
    """No method writes to the points and vectors that it is given."""
    total = 0.0
    for name, arguments in _calls(s).items():
        given = [t.clone() for t in arguments]
        getattr(s.manifold, name)(*given)
        changes = [(a - b).abs().max() for a, b in zip(given, arguments)]
        total = worst(total, *changes)
    return total


def _calls(s) -> dict[str, tuple[torch.Tensor, ...]]:
    """The methods that the manifold has, with arguments."""
    m, x, u, v = s.manifold, s.x, s.tangent(4), s.tangent(5)
    y = m.retr(x, 0.1 * u)
    calls = {"inner": (x, u, v), "proju": (x, v), "egrad2rgrad": (x, v), "retr": (x, u)}
    if supports(m, TRANSPORT):
        calls["transp"] = x, y, v
    if supports(m, ("component_inner",)):
        calls["component_inner"] = x, u
    if supports(m, LOG + DIST):
        calls |= {"expmap": (x, u), "logmap": (x, y), "dist": (x, y)}
    if supports(m, FOLLOW):
        calls["transp_follow_expmap"] = x, u, v
    return calls


@law(double=1e-12, single=1e-4, requires=("out",))
def out_is_the_result(s):
    """What is written to ``out`` is what is returned without it, and is returned."""
    m, n = s.manifold, s.manifold.layout.size
    x, u, v = (t.reshape(-1, n)[0] for t in (s.x, s.tangent(4), s.vector(5)))
    total = 0.0
    for name, vector in {"proju": v, "egrad2rgrad": v, "retr": u, "expmap": u}.items():
        if not _takes_out(type(m), name):
            continue
        out = torch.full_like(x, torch.nan)
        found, expected = getattr(m, name)(x, vector, out=out), getattr(m, name)(
            x, vector
        )
        gap = (found - expected).abs().max() / expected.abs().max()
        total = worst(total, gap if found is out else torch.inf)
    return total


@law(double=1e-14, single=1e-6)
def projection_to_the_manifold_moves_no_point(s):
    """``projx`` returns points as they are, but for rounding, and the checks accept points and
    tangent vectors."""
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
    if any(other.layout != m.layout for other in copies):
        return float("inf")
    if any(getattr(other, "group", None) != s.group for other in copies):
        return float("inf")
    return worst(*((other.proju(s.x, u) - expected).abs().max() for other in copies))
