"""Every method reaches known optima, on geoopt's manifolds and on quotients."""

import geoopt
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from cases import CASES

import quotientnet as qn
from quotientnet.optimization import frechet_mean, maximize, minimize

METHODS = ["gradient", "conjugate-gradient", "power", "trust-region"]
SEARCHES = ["armijo", "strong-wolfe"]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def on_sphere(*shape, seed=0):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


def spread_matrix(n, seed=0):
    """A symmetric matrix with a gap below its largest eigenvalue."""
    q = torch.linalg.qr(draw(n, n, seed=seed))[0]
    eigenvalues = torch.cat(
        [torch.linspace(-3, 2, n - 1), torch.tensor([3.5])]
    ).double()
    return (q * eigenvalues) @ q.T


def rayleigh(a):
    return lambda x: ((x @ a) * x).sum(-1)


@pytest.mark.parametrize("line_search", SEARCHES)
@pytest.mark.parametrize("method", METHODS)
def test_rayleigh_quotient_from_many_starts(method, line_search):
    a = spread_matrix(20)
    values, vectors = np.linalg.eigh(a.numpy())
    found = maximize(
        rayleigh(a),
        geoopt.Sphere(),
        on_sphere(6, 20),
        method=method,
        line_search=line_search,
        tolerance=1e-11,
        max_iterations=3000,
    )
    assert found.converged and set(found.reasons) == {"gradient norm"}
    overlaps = (found.points.numpy() @ vectors[:, -1])[:, None]
    assert (
        np.abs(found.points.numpy() - overlaps.round() * vectors[:, -1]).max() < 1e-10
    )
    assert (found.values - values[-1]).abs().max() < 1e-12
    assert abs(found.value - values[-1]) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "manifold",
    [
        geoopt.CanonicalStiefel(),
        geoopt.EuclideanStiefel(),
        geoopt.EuclideanStiefelExact(),
    ],
    ids=["canonical", "euclidean", "exact"],
)
def test_procrustes(manifold, method):
    target = draw(7, 3, seed=1)
    u, s, vt = np.linalg.svd(target.numpy(), full_matrices=False)
    start = torch.linalg.qr(draw(4, 7, 3, seed=2))[0]
    found = maximize(
        lambda x: (x * target).sum((-1, -2)),
        manifold,
        start,
        method=method,
        tolerance=1e-11,
    )
    assert set(found.reasons) == {"gradient norm"}
    assert np.abs(found.points.numpy() - u @ vt).max() < 1e-10
    assert abs(found.value - s.sum()) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_products_of_spheres(method):
    layout = qn.ParameterLayout({"rows": (3, 4), "rest": (2,)})
    radii = torch.tensor([0.5, 2.0, 3.0]).double()
    manifold = qn.ProductOblique(layout, radii, {"rows": np.arange(3)[:, None]})
    slope, bends = draw(14, seed=3), draw(14, seed=4).abs() / 5
    linear = maximize(lambda v: v @ slope, manifold, start_on(manifold), method=method)
    blocks = np.split(slope.numpy(), [4, 8, 12])
    sizes = [0.5, 2.0, 3.0, 1.0]
    best = np.concatenate([r * g / np.linalg.norm(g) for r, g in zip(sizes, blocks)])
    assert linear.converged and np.abs(linear.point.numpy() - best).max() < 1e-8
    # On each sphere a quadratic has its maximum at the block's largest coefficient.
    found = maximize(
        lambda v: (bends * v * v).sum(-1),
        manifold,
        start_on(manifold),
        method=method,
        tolerance=1e-11,
        max_iterations=20000,
    )
    tops = [r**2 * b.max() for r, b in zip(sizes, np.split(bends.numpy(), [4, 8, 12]))]
    assert found.converged and abs(found.value - sum(tops)) < 1e-10


def start_on(manifold):
    generator = torch.Generator().manual_seed(2)
    return manifold.random(3, 14, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("method", ["gradient", "conjugate-gradient", "trust-region"])
def test_quadratic_in_euclidean_space(method):
    root = draw(6, 6, seed=3)
    a, b = root @ root.T + torch.eye(6).double(), draw(6, seed=4)
    found = minimize(
        lambda x: 0.5 * ((x @ a) * x).sum(-1) - x @ b,
        geoopt.Euclidean(ndim=1),
        torch.stack([torch.zeros(6).double(), draw(6, seed=5)]),
        method=method,
        tolerance=1e-12,
        max_iterations=2000,
    )
    exact = scipy.linalg.solve(a.numpy(), b.numpy(), assume_a="pos")
    assert np.abs(found.points.numpy() - exact).max() < 1e-10
    assert abs(found.value + 0.5 * b.numpy() @ exact) < 1e-12


@pytest.mark.parametrize("method", ["conjugate-gradient", "trust-region"])
def test_rosenbrock_against_scipy(method):
    def rosenbrock(x):
        return (
            100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2
        ).sum(-1)

    start = torch.tensor([-1.2, 1.0, 0.8], dtype=torch.float64)
    reference = scipy.optimize.minimize(
        scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, tol=1e-12
    )
    found = minimize(
        rosenbrock,
        geoopt.Euclidean(ndim=1),
        start,
        method=method,
        tolerance=1e-11,
        max_iterations=2000,
    )
    assert found.reason == "gradient norm"
    assert np.abs(found.point.numpy() - reference.x).max() < 1e-7
    assert (found.point - 1).abs().max() < 1e-10


@pytest.mark.parametrize("hessian", ["exact", "differences"])
@pytest.mark.parametrize("seed", range(3))
def test_trust_region_is_superlinear_by_its_printed_rates(hessian, seed):
    a = spread_matrix(30, seed)
    found = maximize(
        rayleigh(a),
        geoopt.Sphere(),
        on_sphere(30, seed=seed),
        method="trust-region",
        hessian=hessian,
        tolerance=1e-11,
    )
    printed = str(found).splitlines()[1:-1]
    orders = [float(line.split()[-1]) for line in printed[2:]]
    ratios, measured = found.rates()
    # A step that ends in the rounding of the gradient shows no order.
    clear = int((found.history.gradient_norms[:, 0] > 1e-13).sum()) - 1
    assert found.converged and orders[clear - 2] > 1.8
    assert (ratios[clear - 3 : clear].diff() < 0).all() and ratios[clear - 1] < 1e-3
    assert np.allclose(orders, measured[1:], atol=0.006)
    assert found.evaluations.hessian_products > 0


def test_conjugate_gradients_are_linear_by_the_same_rates():
    found = maximize(
        rayleigh(spread_matrix(30)), geoopt.Sphere(), on_sphere(30), tolerance=1e-11
    )
    assert 0.7 < float(found.rates()[1][-12:].median()) < 1.4
    assert float(found.rates()[0][-12:].median()) > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_power_steps_are_monotone_on_convex_functions_without_a_shift(seed):
    rows = draw(9, 5, seed=seed)
    seen = []

    def convex(x):
        seen.append(x.detach().clone())
        return (x @ rows.T).abs().pow(3).sum(-1)

    start = on_sphere(5, seed=seed)
    found = maximize(
        lambda x: convex(x), geoopt.Sphere(), start, method="power", tolerance=1e-10
    )
    steps = found.history.values[:, 0].diff()
    assert found.converged and (steps >= -1e-13 * abs(found.value)).all()
    # No step was refused: the start and one evaluation an iteration.
    assert found.evaluations.values == found.iterations + 1
    x = seen[1]
    slope = torch.autograd.functional.jacobian(lambda v: convex(v), x.clone())
    assert torch.allclose(seen[2], slope / slope.norm(), atol=1e-14)


def test_power_steps_shift_where_the_function_is_not_convex():
    a = spread_matrix(8) - 10 * torch.eye(8, dtype=torch.float64)
    found = maximize(
        rayleigh(a),
        geoopt.Sphere(),
        on_sphere(8),
        method="power",
        tolerance=1e-11,
        max_iterations=5000,
    )
    steps = found.history.values[:, 0].diff()
    assert found.converged and (steps >= -1e-13).all()
    assert abs(found.value - np.linalg.eigvalsh(a.numpy())[-1]) < 1e-12
    assert found.evaluations.values > found.iterations + 1


@pytest.mark.parametrize("method", METHODS)
def test_cancellation_does_not_keep_the_point_from_its_optimum(method):
    # The value is a difference of numbers near 1e3, so its rounding is 1e-13.
    a = spread_matrix(6)
    found = maximize(
        lambda x: rayleigh(a)(x) + 1e3 - 1e3 * (x * x).sum(-1),
        geoopt.Sphere(),
        on_sphere(6, seed=1),
        method=method,
        tolerance=1e-10,
        max_iterations=20000,
    )
    top = torch.linalg.eigh(a)[1][:, -1]
    assert (found.point.abs() - top.abs()).abs().max() < 1e-10


def spiral(manifold, x, seed=6):
    """A geodesic through ``x``."""
    u = manifold.proju(x, 0.3 * x * draw(*x.shape, seed=seed))
    return lambda t: manifold.expmap(x, t * u)


def geodesics():
    sphere, ball = geoopt.Sphere(), geoopt.PoincareBall()
    plane = torch.linalg.qr(draw(4, 2))[0].T
    yield "sphere", sphere, lambda t: np.cos(t) * plane[0] + np.sin(t) * plane[1]
    p, d = draw(3) / 5, draw(3, seed=1) / 3
    yield "ball", ball, lambda t: ball.expmap(p, t * d)
    root, c = draw(3, 3), draw(3, 3, seed=1)
    spd = geoopt.SymmetricPositiveDefinite()
    yield "spd", spd, lambda t: root @ torch.matrix_exp(t * (c + c.T) / 2) @ root.T
    for name in ("node-wise-mlp", "layer-scale-conv", "filters-batch-norm"):
        manifold = CASES[name].build()
        yield name, manifold, spiral(manifold, quotient_point(manifold))


def quotient_point(manifold, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return manifold.random(dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    "manifold, curve", [pytest.param(m, c, id=name) for name, m, c in geodesics()]
)
def test_mean_of_points_on_a_geodesic(manifold, curve):
    times, weights = [0.0, 0.2, 0.9, 1.0], [1.0, 2.0, 1.0, 3.0]
    points = torch.stack([curve(t) for t in times])
    if isinstance(manifold, qn.QuotientManifold):
        generator = torch.Generator().manual_seed(0)
        points = torch.stack(
            [
                manifold.group.act(p, manifold.group.random(generator=generator))
                for p in points
            ]
        )
    for shares in (None, torch.tensor(weights).double()):
        found = frechet_mean(manifold, points, shares)
        expected = curve(float(np.average(times, weights=shares)))
        assert found.converged
        if isinstance(manifold, qn.QuotientManifold):
            assert manifold.dist(found.point, expected) < 1e-10
        else:
            assert (found.point - expected).abs().max() < 1e-10
        half = np.average(
            np.subtract(times, np.average(times, weights=shares)) ** 2, weights=shares
        )
        speed = float(manifold.dist(curve(0.0), curve(1.0)))
        assert abs(found.value - 0.5 * half * speed**2) < 1e-10 * (1 + speed**2)


def test_mean_on_a_quotient_moves_with_its_start_only():
    manifold = CASES["layer-scale-mlp"].build()
    group, x = manifold.group, quotient_point(manifold)
    generator = torch.Generator().manual_seed(1)
    points = torch.stack(
        [manifold.expmap(x, 0.2 * x * draw(len(x), seed=i)) for i in range(5)]
    )
    moved = torch.stack(
        [group.act(p, group.random(generator=generator)) for p in points]
    )
    t = group.random(generator=generator)
    here = frechet_mean(manifold, points, start=x)
    there = frechet_mean(manifold, moved, start=group.act(x, t))
    assert here.converged and there.converged and here.iterations > 0
    assert abs(here.value - there.value) < 1e-10 * here.value
    assert torch.allclose(group.act(here.point, t), there.point, rtol=1e-9, atol=0)


def invariant_loss():
    """A linear chain near a minimum: a smooth function of products of weights alone."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    layout = qn.ParameterLayout.from_module(model)
    w = torch.where(draw(layout.size, seed=7) > 0, 1.0, -1.0) * (
        1 + 0.3 * draw(layout.size, seed=5).clamp(-2, 2)
    )
    inputs = draw(40, 3, seed=8)
    teacher = layout.unflatten(w * (1 + 0.2 * draw(layout.size, seed=6).clamp(-2, 2)))
    with torch.no_grad():
        targets = torch.func.functional_call(model, teacher, inputs)
    targets = targets + 0.1 * draw(40, 2, seed=9)
    objective = qn.Objective(model, torch.nn.MSELoss(), (inputs, targets))
    return objective, qn.discover(model, inputs).group, w


QUOTIENTS = [
    (qn.NodeWiseQuotient, "geodesic"),
    (qn.NodeWiseQuotient, "retraction"),
    (qn.BalancedQuotient, "retraction"),
]


@pytest.mark.parametrize("method", ["gradient", "conjugate-gradient", "trust-region"])
@pytest.mark.parametrize("kind, along", QUOTIENTS)
def test_iterates_are_equivariant(kind, along, method):
    objective, group, w = invariant_loss()
    t = group.random(generator=torch.Generator().manual_seed(0))
    runs = []
    for start in (w, group.act(w, t)):
        points = []
        minimize(
            objective,
            kind(group),
            start,
            method=method,
            along=along,
            hessian="differences",
            max_iterations=4,
            callback=lambda k, x, f, g: points.append(x[0].clone()),
        )
        runs.append(points)
    assert len(runs[0]) == len(runs[1]) == 4
    assert (runs[0][-1] / w - 1).abs().max() > 0.05
    for here, there in zip(*runs):
        assert (group.act(here, t) / there - 1).abs().max() < 1e-6


def test_minimum_on_a_quotient_is_that_of_least_squares():
    objective, group, w = invariant_loss()
    inputs, targets = objective.data[0]
    design = np.c_[inputs.numpy(), np.ones(len(inputs))]
    fit = np.linalg.lstsq(design, targets.numpy(), rcond=None)[0]
    least = np.mean((design @ fit - targets.numpy()) ** 2)
    found = minimize(objective, qn.BalancedQuotient(group), w, tolerance=1e-10)
    assert found.converged and abs(found.value - least) < 1e-12
