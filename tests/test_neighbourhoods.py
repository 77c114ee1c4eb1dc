"""The worst loss in balls, boxes and along geodesics, against solutions found by other routes."""

from itertools import product
from math import log

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import quotientnet as qn
from quotientnet.sharpness import (
    adaptive_sharpness,
    average_riemannian_sharpness,
    ball_sharpness,
    box_sharpness,
    riemannian_sharpness,
    second_order_sharpness,
    volume_flatness,
)


def quadratic(size=5, samples=9, seed=0):
    """A least-squares loss: the point, and its exact gradient and Hessian."""
    torch.manual_seed(seed)
    x, y = torch.randn(samples, size).double(), torch.randn(samples, 1).double()
    model = nn.Linear(size, 1, bias=False).double()
    objective = qn.Objective(model, nn.MSELoss(), (x, y))
    w = torch.randn(size).double()
    hessian = 2 / samples * x.T @ x
    return objective.at(w), hessian @ w - 2 / samples * (x.T @ y)[:, 0], hessian


def network(seed=0, bias=True, activation=nn.ReLU):
    """A small classifier with its group."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=bias), activation(), nn.Linear(6, 3, bias=bias)
    ).double()
    data = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    return objective, qn.discover(model, data[0]), objective.layout.flatten(model)


def largest_in_ball(gradient, hessian, radius):
    """The maximum of ``gᵀd + dᵀHd/2`` in a ball, by the secular equation."""
    values, vectors = np.linalg.eigh(hessian.numpy())
    g = vectors.T @ gradient.numpy()
    top = values[-1]

    def excess(mu):
        return np.linalg.norm(g / (mu - values)) - radius

    mu = scipy.optimize.brentq(excess, top + 1e-12, top + 1e6, xtol=1e-15, rtol=1e-15)
    d = g / (mu - values)
    return g @ d + d @ (values * d) / 2


@pytest.mark.parametrize("radius", [1e-3, 0.3, 5.0])
def test_a_ball_of_a_quadratic_has_the_secular_equations_maximum(radius):
    point, gradient, hessian = quadratic()
    found = ball_sharpness(point, radius)
    best = largest_in_ball(gradient, hessian, radius)
    assert found.converged
    assert found.value == pytest.approx(best / (1 + float(point.value)), rel=1e-9)
    assert float((found.neighbour - point.w).norm()) == pytest.approx(radius, rel=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_an_adaptive_ball_is_a_ball_of_scaled_weights(eta):
    point, gradient, hessian = quadratic(seed=1)
    t = point.w.abs() + eta
    best = largest_in_ball(t * gradient, t[:, None] * hessian * t, 0.5)
    assert adaptive_sharpness(point, 0.5, eta).value == pytest.approx(best, rel=1e-9)


def test_a_ball_around_a_maximum_has_no_rise():
    model = nn.Linear(3, 1, bias=False).double()
    objective = qn.Objective(
        model,
        lambda out, y: 2 - (out**2).mean(),
        (torch.eye(3).double(), torch.zeros(3, 1)),
    )
    found = ball_sharpness(objective.at(torch.zeros(3).double()), 0.1)
    assert found.value == 0.0 and torch.equal(found.neighbour, torch.zeros(3).double())


def test_a_ball_at_a_minimum_finds_the_top_eigenvector():
    point, _, hessian = quadratic(seed=2)
    x, y = point.objective.data[0]
    minimum = point.objective.at(torch.linalg.lstsq(x, y).solution[:, 0])
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    found, second = (f(minimum, 0.1) for f in (ball_sharpness, second_order_sharpness))
    exact = 0.5 * top * 0.01 / (1 + float(minimum.value))
    assert found.value == pytest.approx(exact, rel=1e-8)
    assert second.value == pytest.approx(exact, rel=1e-8) and second.converged
    away = second_order_sharpness(point, 1e-3)
    assert not away.converged and away.error > away.value


@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_a_box_of_a_convex_quadratic_has_its_maximum_at_a_vertex(epsilon):
    point, gradient, hessian = quadratic(seed=3)
    half = epsilon * (point.w.abs() + 1)
    vertices = torch.tensor(list(product([-1.0, 1.0], repeat=5))).double() * half
    rises = vertices @ gradient + ((vertices @ hessian) * vertices).sum(1) / 2
    found = box_sharpness(point, epsilon, restarts=8)
    best = 100 * float(rises.max()) / (1 + float(point.value))
    assert found.value == pytest.approx(best, rel=1e-9)
    assert bool(((found.neighbour - point.w).abs() <= half * (1 + 1e-12)).all())


def test_a_box_in_a_subspace_is_a_box_of_its_coordinates():
    point, gradient, hessian = quadratic(seed=4)
    columns = torch.randn(5, 2, generator=torch.Generator().manual_seed(5)).double()
    centre = torch.linalg.pinv(columns) @ point.w
    half = 0.1 * (centre.abs() + 1)
    vertices = torch.tensor(list(product([-1.0, 1.0], repeat=2))).double() * half
    steps = vertices @ columns.T
    rises = steps @ gradient + ((steps @ hessian) * steps).sum(1) / 2
    best = 100 * float(rises.max()) / (1 + float(point.value))
    assert box_sharpness(point, 0.1, columns).value == pytest.approx(best, rel=1e-9)
    drawn = [box_sharpness(point, 0.1, 3).value for _ in range(2)]
    assert drawn[0] == drawn[1] and 0 < drawn[0]


def test_keskars_box_agrees_with_l_bfgs_b_on_a_network():
    objective, _, w = network(seed=1, activation=nn.Tanh)
    point, half = objective.at(w), 0.05 * (w.abs() + 1)

    def negative(z):
        value, gradient = objective.value_and_gradient(w + torch.from_numpy(z))
        return -float(value), -gradient.numpy()

    bounds = list(zip(-half.numpy(), half.numpy()))
    starts = torch.randn(
        20, len(w), generator=torch.Generator().manual_seed(0)
    ).double()
    best = max(
        -scipy.optimize.minimize(
            negative,
            (half * s.sign()).numpy() * 0.5,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
        ).fun
        for s in starts
    )
    rise = 100 * (best - float(point.value)) / (1 + float(point.value))
    found = box_sharpness(point, 0.05, restarts=5)
    assert found.value >= rise * (1 - 1e-6)


def entrywise_rise(objective, manifold, w, epsilon):
    """The largest rise over ``w ⊙ exp(P z)``, ``‖P z‖ ≤ ε``, by SLSQP from many starts."""
    n = len(w)
    project = torch.stack(
        [manifold.proju(w, e * w) / w for e in torch.eye(n).double()], 1
    )
    values, vectors = torch.linalg.eigh((project + project.T) / 2)
    basis = vectors[:, values > 0.5]

    def negative(c):
        c = torch.from_numpy(c).requires_grad_()
        value = -objective(w * torch.exp(basis @ c))
        (gradient,) = torch.autograd.grad(value, c)
        return float(value.detach()), gradient.numpy()

    ball = {
        "type": "ineq",
        "fun": lambda c: epsilon**2 - c @ c,
        "jac": lambda c: -2 * c,
    }
    starts = torch.randn(
        12, basis.shape[1], generator=torch.Generator().manual_seed(1)
    ).double()
    found = [
        scipy.optimize.minimize(
            negative, (epsilon / s.norm() * s).numpy(), jac=True, method="SLSQP",
            constraints=[ball], options={"ftol": 1e-14, "maxiter": 500},
        )
        for s in starts
    ]  # fmt: skip
    return max(-each.fun for each in found) - float(objective(w))


def test_riemannian_sharpness_agrees_with_constrained_optimisation():
    objective, symmetry, w = network(seed=2)
    manifold, point = qn.NodeWiseQuotient(symmetry), objective.at(w)
    best = entrywise_rise(objective, manifold, w, 0.3) / (1 + float(point.value))
    found = riemannian_sharpness(point, manifold, 0.3, restarts=4)
    assert found.value == pytest.approx(best, rel=1e-7)


def test_small_balls_are_the_gradient_and_small_spheres_the_trace():
    objective, symmetry, w = network(seed=3)
    point = objective.at(w)
    for quotient in (qn.LayerScaleQuotient, qn.NodeWiseQuotient):
        manifold = quotient(symmetry)
        base = 1 + float(point.value)
        length = float(manifold.norm(w, manifold.egrad2rgrad(w, point.gradient)))
        worst = riemannian_sharpness(point, manifold, 1e-6, restarts=0)
        assert worst.value * base / 1e-6 == pytest.approx(length, rel=1e-5)
        mean = average_riemannian_sharpness(point, manifold, 1e-3, samples=400)
        trace = qn.sharpness.riemannian_trace(point, manifold).value
        expected = 1e-6 * trace / (2 * manifold.dimension) / base
        assert abs(mean.value - expected) < 4 * mean.error


@pytest.mark.parametrize("quotient", [qn.LayerScaleQuotient, qn.NodeWiseQuotient])
def test_measures_along_geodesics_are_the_same_at_equivalent_points(quotient):
    objective, symmetry, w = network(seed=4)
    manifold = quotient(symmetry)
    t = manifold.group.random(spread=1.5, generator=torch.Generator().manual_seed(2))
    points = objective.at(w), objective.at(manifold.group.act(w, t))
    worst = [riemannian_sharpness(p, manifold, 0.2).value for p in points]
    mean = [
        average_riemannian_sharpness(p, manifold, 0.2, samples=9).value for p in points
    ]
    assert worst[1] == pytest.approx(worst[0], rel=1e-6)
    assert mean[1] == pytest.approx(mean[0], rel=1e-9)


def test_adaptive_sharpness_is_invariant_without_eta_only():
    objective, symmetry, w = network(seed=5)
    t = symmetry.group.random(spread=1.0, generator=torch.Generator().manual_seed(3))
    points = objective.at(w), objective.at(symmetry.group.act(w, t))
    exact = [adaptive_sharpness(p, 0.1).value for p in points]
    asam = [adaptive_sharpness(p, 0.1, 0.01).value for p in points]
    assert exact[1] == pytest.approx(exact[0], rel=1e-6)
    assert abs(asam[1] / asam[0] - 1) > 1e-3


def test_balls_of_single_tensors_lie_in_the_whole_ball():
    objective, _, w = network(seed=6)
    whole = ball_sharpness(objective.at(w), 0.2, layers=True)
    assert list(whole.layers) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert 0 < max(part.value for part in whole.layers.values()) <= whole.value
    moved = whole.layers["0.bias"].neighbour != w
    assert set(objective.layout.count(moved)) == {"0.bias"}


def test_volumes_grow_with_the_number_of_boxes():
    objective, symmetry, w = network(seed=7, bias=False)
    options = {"tolerance": 0.3, "restarts": 1}
    one = volume_flatness(objective.at(w), symmetry, 0.05, boxes=2, **options)
    # A group element stretches 24 weights by alpha and shrinks 18, so its image is larger.
    growth = one.boxes.alpha ** (24 - 18)
    assert one.value == pytest.approx(len(w) * log(2 * one.radius) + log(1 + growth), abs=1e-9)
    box = w + one.radius * (2 * torch.rand(200, len(w), dtype=w.dtype) - 1)
    rises = torch.stack([objective(x) for x in box]) - objective(w)
    assert rises.max() < 0.05 <= (objective(w) + 10) * 0.05
    wider = box_rise(objective, w, 1.5 * one.radius)
    assert box_rise(objective, w, one.radius) < 0.05 < wider


def box_rise(objective, w, radius):
    """The largest rise over the corners of a cube that single gradients point to."""
    x = w
    for _ in range(20):
        x = w + radius * objective.value_and_gradient(x)[1].sign()
    return float(objective(x) - objective(w))


def infinite_far_away(outputs, targets):
    value = ((outputs - targets) ** 2).mean()
    return torch.where(value > 30, torch.full_like(value, torch.nan), value)


@pytest.mark.parametrize("measure", [ball_sharpness, box_sharpness, adaptive_sharpness])
def test_a_loss_that_is_nan_at_a_neighbour_is_refused(measure):
    x, y = quadratic()[0].objective.data[0]
    objective = qn.Objective(
        nn.Linear(5, 1, bias=False).double(), infinite_far_away, (x, y)
    )
    point = objective.at(torch.ones(5).double())
    assert measure(point, 1e-3).value > 0
    with pytest.raises(
        ValueError, match=f"{measure.__name__}: the loss is nan.*smaller"
    ):
        measure(point, 50.0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_radii_that_make_no_sense_are_refused(epsilon):
    objective, symmetry, w = network()
    point, manifold = objective.at(w), qn.NodeWiseQuotient(symmetry)
    for measure in (ball_sharpness, box_sharpness, second_order_sharpness):
        with pytest.raises(ValueError, match="epsilon must be positive and finite"):
            measure(point, epsilon)
    with pytest.raises(ValueError, match="rho must be positive and finite"):
        adaptive_sharpness(point, epsilon)
    with pytest.raises(
        ValueError, match="riemannian_sharpness: epsilon must be positive"
    ):
        riemannian_sharpness(point, manifold, epsilon)


def test_other_bad_input_is_refused():
    objective, symmetry, w = network()
    point = objective.at(w)
    with pytest.raises(TypeError, match="manifold must be a QuotientManifold"):
        riemannian_sharpness(point, symmetry.group, 0.1)
    with pytest.raises(NotImplementedError, match="BalancedQuotient.*geodesics"):
        riemannian_sharpness(point, qn.BalancedQuotient(symmetry), 0.1)
    with pytest.raises(ValueError, match="subspace must have"):
        box_sharpness(point, 0.1, torch.ones(3, 2))
    with pytest.raises(ValueError, match="eta must be at least 0 and finite"):
        adaptive_sharpness(point, 0.1, -1.0)
    low = qn.Objective(objective.model, lambda out, y: out.mean() - 50, objective.data)
    with pytest.raises(ValueError, match="divided by 1 . f"):
        ball_sharpness(low.at(w), 0.1)
