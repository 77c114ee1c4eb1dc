"""Spheres of fixed radii: laws, hand-computed values, geoopt's spheres and scaled networks."""

from math import cos, inf, pi, sin, sqrt

import geoopt
import pytest
import torch
from cases import DIRECTIONS
from oblique_cases import DOUBLE, generator, joint, point
from scipy.optimize import minimize

import quotientnet as qn
from quotientnet.testing import RIEMANNIAN_LAWS, Sample, check_manifold

# -- laws ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", DIRECTIONS)
@pytest.mark.parametrize("law", RIEMANNIAN_LAWS.values(), ids=lambda law: law.name)
def test_law(law, case, dtype):
    if dtype not in law.tolerances:
        pytest.skip("stated in float64 only")
    law.check(Sample(DIRECTIONS[case](), dtype=dtype)).require()


@pytest.mark.parametrize("options", [{"batch": (2, 3)}, {"length": 1e-3}, {"seed": 3}])
def test_laws_on_batches_and_short_vectors(options):
    verdicts = check_manifold(DIRECTIONS["filters"](), **options)
    of_one_point = {"projection_has_rank_dimension"} if "batch" in options else set()
    assert {v.law for v in verdicts} == RIEMANNIAN_LAWS.keys() - of_one_point
    for verdict in verdicts:
        verdict.require()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", DIRECTIONS)
def test_laws_on_gpu(case):
    for law in RIEMANNIAN_LAWS.values():
        law.check(Sample(DIRECTIONS[case]().to("cuda"), device="cuda")).require()


def plain(name):
    return getattr(qn.ProductOblique, name)


def acos_distance(m, x, y, keepdim=False):
    radii2 = m.blocks.dot(x, x).clamp(min=1e-30)
    return (radii2 * torch.acos(m.blocks.dot(x, y) / radii2).square()).sum(-1).sqrt()


BROKEN = {
    "components_add_up": {"component_inner": lambda m, x, u, v=None: u * u},
    "gradient_represents_the_differential": {
        "egrad2rgrad": lambda m, x, u: 1.01 * m.proju(x, u)
    },
    "gradient_is_horizontal": {"egrad2rgrad": lambda m, x, u: u},
    "projection_is_idempotent": {"proju": lambda m, x, u, out=None: u - x},
    "projection_is_self_adjoint": {
        "proju": lambda m, x, u, out=None: plain("proju")(m, x, u.roll(1, -1))
    },
    "projection_has_rank_dimension": {"dimension": property(lambda m: m.layout.size)},
    "logarithm_inverts_exponential": {"logmap": lambda m, x, y: m.proju(x, y - x)},
    "logarithm_is_horizontal": {"logmap": lambda m, x, y: y - x},
    "exponential_of_logarithm_is_on_the_orbit": {
        "logmap": lambda m, x, y: 0.9 * plain("logmap")(m, x, y)
    },
    "distance_is_length_of_logarithm": {
        "dist": lambda m, x, y, keepdim=False: (x - y).norm(dim=-1)
    },
    "distance_is_length_off_the_orbit": {"dist": acos_distance},
    "distance_obeys_the_triangle_inequality": {
        "dist": lambda m, x, y, keepdim=False: m.dist2(x, y)
    },
    "geodesics_stay_horizontal": {"transp_follow_expmap": lambda m, x, u, v: v},
    "velocity_is_the_derivative_of_the_exponential": {
        "expmap": lambda m, x, u: plain("retr")(m, x, u)
    },
    "transport_is_an_isometry_along_geodesics": {
        "transp": lambda m, x, y, v: m.proju(y, v)
    },
    "transports_along_one_geodesic_agree": {"transp": lambda m, x, y, v: m.proju(y, v)},
    "transport_to_the_point_itself_is_the_identity": {
        "transp": lambda m, x, y, v: -plain("transp")(m, x, y, v)
    },
    "metric_is_bilinear": {
        "inner": lambda m, x, u, v=None, keepdim=False: (
            u * (u if v is None else 1.01 * v)
        ).sum(-1, keepdim=keepdim)
        - 0.01 * u.norm(dim=-1, keepdim=keepdim)
    },
    "arguments_are_left_alone": {
        "proju": lambda m, x, u, out=None: plain("proju")(m, x, u.mul_(2)) / 2
    },
    "metric_has_the_shape_of_the_batch": {
        "norm": lambda m, x, u, keepdim=False: u.norm()
    },
    "out_is_the_result": {"retr": lambda m, x, u, *, out=None: plain("retr")(m, x, u)},
    "transport_starts_at_the_identity": {"transp": lambda m, x, y, v: v.roll(1, -1)},
    "geodesics_have_critical_energy": {
        "expmap": lambda m, x, u: plain("retr")(m, x, u)
    },
    "moves_end_on_the_manifold": {"retr": lambda m, x, u: x + u},
    "retraction_starts_with_its_vector": {"retr": lambda m, x, u: x},
    "retraction_is_first_order": {
        "retr": lambda m, x, u: plain("retr")(m, x, 1.01 * u)
    },
    "batch_is_loop": {
        "component_inner": lambda m, x, u, v=None: u * x.ndim,
    },
    "projection_to_the_manifold_moves_no_point": {"projx": lambda m, x: x * 1.1},
    "derivatives_are_finite_at_zero": {
        "norm": lambda m, x, u, keepdim=False: m.inner(x, u).sqrt()
    },
    "copies_are_equal": {"__deepcopy__": lambda m, memo: joint()},
}


@pytest.mark.parametrize("name", RIEMANNIAN_LAWS)
def test_law_catches_broken_spheres(name, monkeypatch):
    monkeypatch.setattr("pickle.dumps", lambda m: m)
    monkeypatch.setattr("pickle.loads", lambda m: m)
    length = 1e-5 if name == "distance_is_length_off_the_orbit" else 1.0
    intact = DIRECTIONS["filters"]()
    assert RIEMANNIAN_LAWS[name].check(Sample(intact, length=length)).holds
    intact.__class__ = type("Broken", (qn.ProductOblique,), BROKEN[name])
    assert not RIEMANNIAN_LAWS[name].check(Sample(intact, length=length)).holds


# -- by hand ---


def test_projections_by_hand():
    m = joint()
    x = m.projx(point(6, 0, 0, 0, 8, 2, 0, 0, 7, 1, 1))
    torch.testing.assert_close(x, point(3, 0, 0, 0, 4, 1, 0, 0, 1, 0, 0))
    u = m.proju(x, point(1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1))
    # The first row and its bias: (1, 2, 5) less 23/25 of (3, 0, 4).
    expected = point(1 - 69 / 25, 2, 3, 4, 5 - 92 / 25, 0, 7, 8, 0, 0, 0)
    torch.testing.assert_close(u, expected)
    assert m.dimension == 2 + 2 + 2 and m.radii.tolist() == [5, 1]


def test_moves_by_hand():
    m, x = joint(), point(3, 0, 0, 0, 4, 1, 0, 0, 1, 0, 0)
    u = point(0, 5 * pi / 2, pi / 6, 0, 0, 0, 0, 0, 0, 0, 0)
    y = m.expmap(x, u)
    expected = point(0, 5, sin(pi / 6), 0, 0, cos(pi / 6), 0, 0, 1, 0, 0)
    torch.testing.assert_close(y, expected)
    assert m.dist(x, y).item() == pytest.approx(sqrt((5 * pi / 2) ** 2 + (pi / 6) ** 2))
    torch.testing.assert_close(m.logmap(x, y), u)
    # Across the plane of motion nothing turns; in it the vector turns with the velocity.
    v = point(4, 1, 0, 0, -3, 0, 1, 0, 0, 0, 0)
    carried = point(4 - 3 / 5, 0, 0, 0, -3 - 4 / 5, 0, 1, 0, 0, 0, 0)
    torch.testing.assert_close(m.transp(x, y, v), carried)
    small = point(0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    retracted = point(3, 5, 0, 0, 4, sqrt(2), 0, 0, sqrt(2), 0, 0) / sqrt(2)
    torch.testing.assert_close(m.retr(x, small), retracted)


def test_distances_of_nearby_points_in_single_precision():
    m = qn.ProductOblique(qn.ParameterLayout({"v": (50,)}), torch.ones(0), {})
    x = m.random(generator=generator())
    u = 1e-4 * m.proju(x, torch.randn(50, generator=generator(1)))
    y = m.expmap(x, u)
    exact = 2 * torch.asin((x.double() - y.double()).norm() / 2)
    assert m.dist(x, y).item() == pytest.approx(exact.item(), rel=1e-5)
    assert m.dist(x, x).item() == 0


def test_near_the_antipode():
    m = joint()
    x = m.random(generator=generator(), **DOUBLE)
    u = m.proju(x, torch.randn(11, generator=generator(1), **DOUBLE))
    u = m.blocks.combine(None, u, torch.zeros(4), u)
    speeds = m.blocks.dot(u, u).sqrt() / m._per_block(x.device)
    u = u / m.blocks.expand(speeds.clamp(min=1e-30)) * (pi - 1e-4)
    y = m.expmap(x, u)
    assert m.dist(x, y).item() == pytest.approx((pi - 1e-4) * sqrt(27), rel=1e-12)
    assert (m.logmap(x, y) - u).norm() < 1e-9 * u.norm()
    with pytest.raises(ValueError, match="'rows' .* antipodal in y: no shortest"):
        m.logmap(x, -x)
    assert m.dist(x, -x).item() == pytest.approx(pi * sqrt(27), rel=1e-7)


def test_a_block_of_one_entry_is_two_points():
    layout = qn.ParameterLayout({"v": (2,), "one": (1,)})
    m = qn.ProductOblique(layout, point(3), {"v": [-1], "one": [0]})
    x, y = point(1, 0, 3), point(1, 0, -3)
    assert m.dimension == 1 and m.dist(x, y) == inf
    assert m.injectivity_radius() == pi
    torch.testing.assert_close(m.proju(x, point(1, 1, 1)), point(0, 1, 0))
    with pytest.raises(ValueError, match="'one'"):
        m.logmap(x, y)


# -- geoopt's spheres ---


def spheres():
    """Three spheres in our coordinates and in geoopt's, of radius 1, and the map between them."""
    layout = qn.ParameterLayout({"rows": (2, 4), "rest": (5,)})
    ours = qn.ProductOblique(layout, torch.ones(2), {"rows": [[0], [1]]})
    sphere = geoopt.Sphere()
    return ours, geoopt.ProductManifold((sphere, 4), (sphere, 4), (sphere, 5))


def test_geoopt_product_of_unit_spheres():
    ours, theirs = spheres()
    x, y = ours.random(2, 6, 13, generator=generator(), **DOUBLE)
    a, b = torch.randn(2, 6, 13, generator=generator(1), **DOUBLE)
    u, v = ours.proju(x, a), ours.proju(x, b)
    pairs = {
        "proju": (x, a), "egrad2rgrad": (x, b), "retr": (x, u), "expmap": (x, 0.4 * u),
        "logmap": (x, y), "inner": (x, u, v), "transp": (x, ours.retr(x, u), v),
    }  # fmt: skip
    for name, arguments in pairs.items():
        if name == "transp":  # geoopt's is a projection: compare lengths only
            moved = ours.transp(*arguments)
            assert torch.allclose(ours.norm(x, moved), ours.norm(x, v), rtol=1e-12)
            continue
        mine, reference = (getattr(m, name)(*arguments) for m in (ours, theirs))
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)
    each = geoopt.Sphere().dist(x[:, :4], y[:, :4])
    mine = ours.dist(x, torch.cat([y[:, :4], x[:, 4:]], -1))
    torch.testing.assert_close(mine, each, rtol=1e-9, atol=1e-11)


def test_geoopt_spheres_of_other_radii():
    """A sphere of radius r is the unit sphere with lengths r times as long."""
    radii = point(0.3, 7.0)
    layout = qn.ParameterLayout({"rows": (2, 4)})
    m = qn.ProductOblique(layout, radii, {"rows": [[0], [1]]})
    x, y = m.random(2, 8, generator=generator(), **DOUBLE)
    u = 0.2 * m.proju(x, torch.randn(8, generator=generator(1), **DOUBLE))
    unit, scale = geoopt.Sphere(), radii[:, None]
    views = [t.reshape(2, 4) / scale for t in (x, y, u)]
    end = unit.expmap(views[0], views[2]) * scale
    torch.testing.assert_close(m.expmap(x, u), end.reshape(8))
    back = unit.logmap(*views[:2]) * scale
    torch.testing.assert_close(m.logmap(x, y), back.reshape(8))
    each = unit.dist(*views[:2]) * radii
    torch.testing.assert_close(m.dist(x, y), each.norm())


@pytest.mark.parametrize(
    "optimizer", [geoopt.optim.RiemannianAdam, geoopt.optim.RiemannianSGD]
)
def test_geoopt_optimizers_find_the_best_direction(optimizer):
    """The largest ⟨g, v⟩ is Σ r_b ‖g_b‖, the small-δ limit of BN-sharpness."""
    m = joint()
    g = torch.randn(11, generator=generator(2), **DOUBLE)
    g[9:] = 0
    v = geoopt.ManifoldParameter(m.random(generator=generator(), **DOUBLE), manifold=m)
    step = optimizer([v], lr=0.05)
    for _ in range(600):
        step.zero_grad()
        (-(g * v).sum()).backward()
        step.step()
    lengths = g[[0, 1, 4]].norm(), g[[2, 3, 5]].norm(), g[6:9].norm()
    best = 5 * lengths[0] + lengths[1] + lengths[2]
    assert (g * v).sum().item() == pytest.approx(best.item(), rel=1e-4)
    assert m.check_point_on_manifold(v.data)


def test_scaled_manifold_and_submodules():
    m = geoopt.Scaled(joint(), 2.0)
    x, y = m.base.random(2, 11, generator=generator(), **DOUBLE)
    assert m.dist(x, y).item() == pytest.approx(2 * m.base.dist(x, y).item())
    u = m.base.logmap(x, y)
    torch.testing.assert_close(m.expmap(x, m.logmap(x, y)), y)
    assert torch.equal(m.expmap(x, 2 * u), m.base.expmap(x, u))
    assert m.injectivity_radius() == 2 * pi


# -- derivatives and rounding ---


def test_retraction_is_of_second_order_and_twice_differentiable():
    m = joint()
    x = m.random(generator=generator(), **DOUBLE)
    u = m.proju(x, torch.randn(11, generator=generator(1), **DOUBLE))
    gaps = [(m.retr(x, h * u) - m.expmap(x, h * u)).norm() for h in (1e-2, 1e-3)]
    assert torch.log10(gaps[0] / gaps[1]) > 2.9
    zero = torch.zeros_like(x)
    for move in (m.retr, m.expmap):
        assert torch.autograd.gradcheck(lambda u: move(x, u), (zero.requires_grad_(),))
        assert torch.autograd.gradgradcheck(lambda u: move(x, u), (zero,))


def test_the_second_derivative_along_the_retraction_is_the_riemannian_hessian():
    """For a linear function on a sphere it is −⟨g, x⟩/r² times the metric, on tangent vectors."""
    m, g = joint(), torch.randn(11, generator=generator(2), **DOUBLE)
    x = m.random(generator=generator(), **DOUBLE)
    zero = torch.zeros(11, **DOUBLE)
    hessian = torch.autograd.functional.hessian(
        lambda u: (g * m.retr(x, m.proju(x, u))).sum(), zero
    )
    rate = m.blocks.dot(g, x) / m._per_block(x.device) ** 2
    eye = torch.eye(11, **DOUBLE)
    tangent = m.proju(x, eye)
    expected = -m.blocks.expand(rate) * tangent
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("move", ["retr", "expmap"])
def test_rounding_does_not_add_up(move):
    m = joint()
    x = m.random(generator=generator())
    step = torch.randn(2000, 11, generator=generator(1))
    for u in step:
        x = getattr(m, move)(x, m.proju(x, u))
    norms = m.blocks.dot(x, x)[:3].sqrt()
    torch.testing.assert_close(norms, point(5, 1, 1), rtol=1e-6, atol=0)


def test_the_nearest_point_by_minimisation():
    m, y = joint(), torch.randn(11, generator=generator(), **DOUBLE)
    y[9:] = 0
    equations = [
        {
            "type": "eq",
            "fun": lambda x, b=b, r=r: m.blocks.dot(*[torch.tensor(x)] * 2)[b] - r**2,
        }
        for b, r in enumerate((5, 1, 1))
    ]
    start = m.random(generator=generator(1), **DOUBLE)
    found = minimize(
        lambda x: ((x - y.numpy()) ** 2).sum(), start, constraints=equations, tol=1e-14
    )
    torch.testing.assert_close(m.projx(y), torch.tensor(found.x), rtol=1e-5, atol=1e-5)
    assert m.projx(m.projx(y)) is not y and torch.equal(m.projx(m.projx(y)), m.projx(y))
    exact = torch.autograd.gradcheck(m.projx, (m.projx(y).requires_grad_(),), atol=1e-6)
    assert exact  # the value snaps to the point, the derivative does not


@pytest.mark.parametrize("name", ["proju", "egrad2rgrad", "retr", "expmap"])
@pytest.mark.parametrize("case", DIRECTIONS)
def test_out(name, case):
    m = DIRECTIONS[case]()
    x = m.random(generator=generator(), **DOUBLE)
    u = m.proju(x, torch.randn(len(x), generator=generator(1), **DOUBLE))
    out, before = torch.full_like(x, torch.nan), (x.clone(), u.clone())
    assert getattr(m, name)(x, u, out=out) is out
    torch.testing.assert_close(out, getattr(m, name)(x, u))
    assert torch.equal(x, before[0]) and torch.equal(u, before[1])
    with pytest.raises(ValueError, match=f"ProductOblique.{name}: out shares memory"):
        getattr(m, name)(x, u, out=u)
