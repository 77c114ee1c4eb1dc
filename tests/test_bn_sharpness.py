"""BN-sharpness against quadrature and search by other routes, its limit, and its theorems."""

from math import inf, pi

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from torch import nn

import quotientnet as qn
from quotientnet.sharpness import ball_sharpness, bn_sharpness, bn_sharpness_limit
from quotientnet.sharpness.bn import integral_diameter
from quotientnet.sharpness.bn_bounds import (
    ball_bound,
    generalisation_bound,
    power_bound,
    trace_bound,
)
from quotientnet.sharpness.quadrature import power_rule
from quotientnet.symmetry.normalised import normalised_blocks


def normalised(seed=0, eps=1e-30, train=True, activation=nn.Tanh):
    """A batch-normalised classifier, its group, and a point."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False),
        nn.BatchNorm1d(5, eps=eps),
        activation(),
        nn.Linear(5, 3),
    ).double()
    data = torch.randn(16, 4).double(), torch.randint(0, 3, (16,))
    model(data[0])
    model.train(train)
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    w = objective.layout.flatten(model)
    w[: objective.layout.parameter_size] *= 1 + 0.1 * torch.rand(
        objective.layout.parameter_size
    )
    return objective, qn.discover(model, data[0], layout=objective.layout), w


def by_quadrature(objective, w, v, p, delta):
    """Definition 3.1 of yi2019 along one direction, by adaptive quadrature."""
    f = float(objective(w))

    def integrand(t):
        return abs((float(objective(w + t * v)) - f) / delta) ** p

    parts = [
        scipy.integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-10)[0]
        for a, b in ((-delta, 0), (0, delta))
    ]
    return (sum(parts) / delta) ** (1 / p)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0, 9.0])
@pytest.mark.parametrize("delta", [1e-3, 0.1])
def test_the_integral_agrees_with_adaptive_quadrature(p, delta):
    objective, symmetry, w = normalised()
    point, manifold = objective.at(w), qn.ProductOblique.at(w, symmetry)
    # Near the gradient, so that the loss does not come back to its value on the way.
    v = manifold.random(dtype=w.dtype, generator=torch.Generator().manual_seed(1))
    v = manifold.projx(point.gradient / point.gradient.norm() + 0.1 * v)
    found = float(integral_diameter(point, p, delta, nodes=8)(v))
    assert found == pytest.approx(by_quadrature(objective, w, v, p, delta), rel=1e-8)
    few = float(integral_diameter(point, p, delta)(v))
    assert few == pytest.approx(found, rel=1e-8 if delta < 0.01 else 1e-3)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 7.0])
def test_the_rule_is_exact_for_polynomials(p):
    nodes, weights = power_rule(p, 3)
    for degree in range(0, 6):
        exact = 2 / (p + degree + 1) if degree % 2 == 0 else 0.0
        assert (weights * nodes**degree).sum() == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_the_limit_of_small_delta_is_reached(p):
    objective, symmetry, w = normalised(seed=1)
    point = objective.at(w)
    limit = bn_sharpness_limit(point, symmetry, p).value
    gradient = objective.layout.unflatten(point.gradient)
    filters = objective.layout.unflatten(w)["0.weight"].norm(dim=1)
    by_hand = float((filters * gradient["0.weight"].norm(dim=1)).sum())
    rest = torch.cat([gradient[k].flatten() for k in list(gradient)[1:5]]).norm()
    assert limit == pytest.approx(
        (2 / (p + 1)) ** (1 / p) * (by_hand + float(rest)), rel=1e-12
    )
    gaps = [bn_sharpness(point, symmetry, p, d).value / limit - 1 for d in (1e-3, 1e-4)]
    assert abs(gaps[0]) < 1e-3 and abs(gaps[1]) < 2e-2 * abs(gaps[0]) + 1e-10


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_no_direction_of_another_search_is_sharper(p):
    objective, symmetry, w = normalised(seed=2)
    point, manifold = objective.at(w), qn.ProductOblique.at(w, symmetry)
    value = integral_diameter(point, p, 0.3)
    free = torch.nonzero(manifold.origin(dtype=w.dtype) != 0)[:, 0]

    def negative(z):
        z = torch.from_numpy(z).requires_grad_()
        v = torch.zeros_like(w).index_add(0, free, z)
        norms = manifold.blocks.expand(manifold.blocks.dot(v, v)).sqrt()
        radii = manifold.blocks.expand(manifold.blocks.dot(v0, v0)).sqrt()
        scaled = torch.where(norms > 0, v * radii / norms.clamp(min=1e-30), v)
        found = -value(scaled)
        (gradient,) = torch.autograd.grad(found, z)
        return float(found.detach()), gradient.numpy()

    v0 = manifold.origin(dtype=w.dtype)
    starts = torch.randn(
        5, len(free), generator=torch.Generator().manual_seed(3)
    ).double()
    best = max(
        -scipy.optimize.minimize(negative, s.numpy(), jac=True, method="BFGS").fun
        for s in starts
    )
    found = bn_sharpness(point, symmetry, p, 0.3, restarts=6)
    assert found.value >= best * (1 - 1e-6)
    assert manifold.check_point_on_manifold(found.direction)
    assert float(value(found.direction)) == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_filter_scales_do_not_change_it_and_other_scales_do(train):
    objective, symmetry, w = normalised(seed=3, train=train, activation=nn.ReLU)
    point, t = objective.at(w), torch.zeros(symmetry.group.dimension).double()
    own = torch.as_tensor(normalised_blocks(symmetry.group).generators)
    assert len(own) == 5
    t[own] = torch.randn(5, generator=torch.Generator().manual_seed(4)).double()
    moved = objective.at(symmetry.group.act(w, t))
    assert float(moved.value) == pytest.approx(float(point.value), rel=1e-12)
    for measure in (bn_sharpness, bn_sharpness_limit):
        values = [measure(each, symmetry).value for each in (point, moved)]
        assert values[1] == pytest.approx(values[0], rel=1e-8)
    units = torch.randn(len(t), generator=torch.Generator().manual_seed(5)).double()
    units[own] = 0
    other = objective.at(symmetry.group.act(w, units))
    assert abs(bn_sharpness(other, symmetry).value / values[0] - 1) > 1e-2


def test_theorem_a2_holds_in_the_ball_of_the_directions():
    objective, symmetry, w = normalised(seed=4)
    point, delta = objective.at(w), 0.05
    manifold = qn.ProductOblique.at(w, symmetry)
    length = float(manifold.origin(dtype=w.dtype).norm())
    assert length**2 == pytest.approx(1 + float((manifold.radii**2).sum()), rel=1e-12)
    largest = ball_sharpness(point, delta * length).value * (1 + float(point.value))
    for p in (1.0, 2.0, 6.0):
        found = bn_sharpness(point, symmetry, p, delta)
        assert ball_bound(found.value, largest, p, delta).holds()


def linear_loss():
    """A loss that is linear in the parameters, with one normalised block for its group."""
    layout = qn.ParameterLayout({"weight": (1, 3)})
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0, 2.0]]).double()
    objective = qn.Objective(
        model, lambda out, y: out.mean() + 9, (x, torch.zeros(1, 1))
    )
    group = qn.ScalingGroup.from_units(
        layout, [qn.Unit("filter", 1, (qn.Scale("weight", None),))]
    )
    return objective.at(torch.tensor([0.0, 3.0, 4.0]).double()), group


def test_equation_23_as_printed_fails_and_the_corrected_one_is_sharp():
    point, group = linear_loss()
    p, q, delta = 1.0, 2.0, 1e-2
    low, high = (bn_sharpness(point, group, each, delta).value for each in (p, q))
    assert low == pytest.approx(15.0, rel=1e-9)  # ‖w‖ ‖g‖ (2/(p+1))^{1/p}
    printed = high * (2 * delta) ** (1 / p - 1 / q)
    assert low > 4 * printed
    assert power_bound(low, high, p, q).holds()
    constant = [
        (1 / delta * 2 * delta) ** (1 / e) for e in (p, q)
    ]  # |f − f(w)| = δ throughout
    assert power_bound(*constant, p, q).slack == pytest.approx(0.0, abs=1e-14)


def test_equation_21_as_printed_fails_at_a_linear_loss():
    point, group = linear_loss()
    p, delta = 4.0, 1e-2
    largest = delta * 5 * 3  # at the end of the segment along the gradient
    found = bn_sharpness(point, group, p, delta).value
    assert found > 20 * (2 / delta) ** (1 / p) * largest
    assert found <= 2 ** (1 / p) / delta * largest
    assert ball_bound(found, largest, p, delta).holds()


def test_theorem_b2_as_printed_fails_and_the_corrected_one_holds():
    torch.manual_seed(5)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 1).double()
    objective = qn.Objective(nn.Linear(3, 1, bias=False).double(), nn.MSELoss(), (x, y))
    minimum = objective.at(torch.linalg.lstsq(x, y).solution[:, 0])
    hessian = minimum.hessian.to_dense()
    layout = objective.layout
    unit = qn.Unit("filter", 1, (qn.Scale("weight", None),))
    group, length = qn.ScalingGroup.from_units(layout, [unit]), float(minimum.w.norm())
    for p in (1.0, 2.0, 3.0):
        found = bn_sharpness(minimum, group, p, 1e-2, restarts=6).value
        bound = trace_bound(found, float(hessian.trace()), length, p, 1e-2)
        assert bound.holds() and bound.slack > 0
        top = float(torch.linalg.eigvalsh(hessian)[-1])
        sharp = trace_bound(found, top, length, p, 1e-2)
        assert sharp.slack == pytest.approx(0.0, abs=1e-6 * found)
        assert not trace_bound(found, top / 1.01, length, p, 1e-2).holds()
        printed = 2 * bound.right  # and with ≥
        assert found < printed


def test_theorem_33_has_the_factor_of_the_mean_change():
    point, group = linear_loss()
    p, delta = 2.0, 1e-2
    found = bn_sharpness(point, group, p, delta).value
    # A posterior uniform on the segment along v: E |f(w + tv) − f(w)|.
    mean = 15 * delta / 2
    bound = 2 ** (-1 / p) * delta * found
    assert mean <= bound <= 1.2 * mean
    assert delta ** (1 + 1 / p) * found < mean  # as printed
    whole = generalisation_bound(
        found, p, delta, divergence=3.0, samples=100, confidence=0.05
    )
    assert whole == pytest.approx(
        bound + 4 * np.sqrt((3 + np.log(4000)) / 100), rel=1e-12
    )
    assert (
        generalisation_bound(1.0, 2.0, 0.1, divergence=inf, samples=9, confidence=0.1)
        == inf
    )


def test_restarts_reach_at_least_as_high():
    objective, symmetry, w = normalised(seed=6)
    found = bn_sharpness(objective.at(w), symmetry, 2.0, 0.2, restarts=4)
    assert len(found.values) == 5 and max(found.values) == pytest.approx(
        found.value, rel=1e-12
    )
    assert found.converged and found.error < 1e-3 * found.value


def test_a_flat_loss_has_none():
    objective = qn.Objective(
        nn.Linear(2, 1).double(),
        lambda out, y: 0 * out.sum() + pi,
        (torch.ones(3, 2), torch.ones(3)),
    )
    point = objective.at(torch.ones(3).double())
    group = qn.ScalingGroup.from_units(
        objective.layout, [qn.Unit("f", 1, (qn.Scale("weight", None),))]
    )
    assert (
        bn_sharpness(point, group).value
        == 0.0
        == bn_sharpness_limit(point, group).value
    )


def test_bad_input_is_refused():
    objective, symmetry, w = normalised()
    point = objective.at(w)
    for p in (0.5, -1.0, inf, float("nan")):
        for measure in (bn_sharpness, bn_sharpness_limit):
            with pytest.raises(ValueError, match="p must be at least 1 and finite"):
                measure(point, symmetry, p)
    for delta in (0.0, -1e-3, inf, float("nan")):
        with pytest.raises(ValueError, match="delta must be positive and finite"):
            bn_sharpness(point, symmetry, 2.0, delta)
    with pytest.raises(ValueError, match="nodes must be an integer of at least 1"):
        bn_sharpness(point, symmetry, nodes=0)
    with pytest.raises(ValueError, match="q must be above 2 and finite"):
        power_bound(1.0, 1.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def integral_and_gradients():
    """``R`` = BN-sharpness^p along one direction that scales with the filters, and its parts."""
    objective, symmetry, w = normalised(seed=7)
    point, p, delta = objective.at(w), 2, 1e-3
    manifold = qn.ProductOblique.at(w, symmetry)
    v = manifold.random(dtype=w.dtype, generator=torch.Generator().manual_seed(2))
    slope = float(point.gradient @ v)

    def shifted(a):
        return [objective.value_and_gradient(w + s * a * delta * v)[1] for s in (1, -1)]

    def numerical(path, size):
        """The gradient of ``R`` along ``path(h, e) = (w', v')``, by central differences."""
        found = torch.zeros(size).double()
        for i, e in enumerate(torch.eye(size).double()):
            ends = [integral(objective, *path(h * e), p, delta) for h in (1e-4, -1e-4)]
            found[i] = (ends[0] - ends[1]) / 2e-4
        return found

    return point, manifold, v, slope, p, delta, shifted, numerical


def integral(objective, w, v, p, delta):
    """``R`` by Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    f = float(objective(w))
    rises = [float(objective(w + delta * s * v)) - f for s in nodes]
    return sum(a * abs(r / delta) ** p for a, r in zip(weights, rises))


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_equation_15_as_printed_is_off_by_all_and_the_difference_is_right(
    integral_and_gradients,
):
    point, _, v, slope, p, delta, shifted, numerical = integral_and_gradients
    exact = numerical(
        lambda e: (point.w.index_add(0, torch.arange(len(e)), e), v),
        point.layout.parameter_size,
    )
    plus, minus = (g[: len(exact)] for g in shifted(p / (p + 1)))
    factor = slope ** (p - 1) / delta
    corrected = factor * (plus - minus)
    printed = factor * (plus + minus - 2 * point.gradient[: len(exact)])
    assert relative(corrected, exact) < 1e-4
    assert relative(printed, exact) > 0.9


def test_equation_16_is_the_gradient_in_the_direction(integral_and_gradients):
    point, _, v, slope, p, delta, shifted, numerical = integral_and_gradients
    exact = numerical(
        lambda e: (point.w, v.index_add(0, torch.arange(len(e)), e)),
        point.layout.parameter_size,
    )
    plus, minus = (g[: len(exact)] for g in shifted((p + 1) / (p + 2)))
    assert relative(p / (p + 1) * slope ** (p - 1) * (plus + minus), exact) < 1e-4


def test_the_whole_gradient_follows_the_filters(integral_and_gradients):
    point, manifold, v, slope, p, delta, shifted, numerical = integral_and_gradients
    count, blocks = point.layout.parameter_size, manifold.blocks

    def following(e):
        moved = point.w.index_add(0, torch.arange(count), e)
        old, new = (blocks.expand(blocks.dot(x, x)).sqrt() for x in (point.w, moved))
        own = torch.zeros_like(v, dtype=torch.bool)
        own[point.layout["0.weight"].slice] = True
        return moved, torch.where(own, v * new / old, v)

    exact = numerical(following, count)
    plus, minus = shifted(p / (p + 1))
    partial = slope ** (p - 1) / delta * (plus - minus)
    plus, minus = shifted((p + 1) / (p + 2))
    along = p / (p + 1) * slope ** (p - 1) * (plus + minus)
    rates = blocks.dot(along, v) / blocks.dot(point.w, point.w)
    whole = partial.clone()
    place = point.layout["0.weight"].slice
    whole[place] += (blocks.expand(rates) * point.w)[place]
    assert (
        relative(whole[:count], exact) < 1e-4 < 1e-2 < relative(partial[:count], exact)
    )
    radial = point.layout.unflatten(point.w * whole)["0.weight"].sum(1)
    assert radial.abs().max() < 1e-5 * whole.norm()


def test_a_filter_without_slope_has_a_direction_all_the_same():
    objective, symmetry, w = normalised(seed=8)
    w[objective.layout["1.weight"].start] = 0.0  # nothing passes the first channel
    point = objective.at(w)
    assert not point.gradient[objective.layout["0.weight"].slice][:4].any()
    limit = bn_sharpness_limit(point, symmetry).value
    found = bn_sharpness(point, symmetry, delta=1e-5, restarts=0)
    assert found.value == pytest.approx(limit, rel=1e-4)
    manifold = qn.ProductOblique.at(w, symmetry)
    assert manifold.check_point_on_manifold(found.direction)


def test_zeros_in_the_rest_are_no_obstacle():
    objective, symmetry, w = normalised(seed=9)
    rest = ~objective.layout.mask("0.weight")
    rest[objective.layout.parameter_size :] = False
    point = objective.at(w.masked_fill(rest, 0.0))
    found, limit = (
        f(point, symmetry).value for f in (bn_sharpness, bn_sharpness_limit)
    )
    assert limit > 0 and found == pytest.approx(limit, rel=1e-3)
