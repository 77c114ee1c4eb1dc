"""The PAC-Bayesian terms, the alternative (62), and errata of tsuzuku2019."""

from __future__ import annotations

from math import exp, log, sqrt

import chains
import numpy as np
import pytest
import torch
from cases import NETWORKS
from scipy.optimize import minimize_scalar
from torch import nn

import quotientnet as qn
from quotientnet.curvature import hessian_traces
from quotientnet.sharpness import (
    alternative_normalised_sharpness,
    gaussian_divergence,
    matrix_normalised_sharpness,
    normalised_sharpness,
    pac_bayes_terms,
)
from quotientnet.sharpness.variances import minimise_variances


def at(name="mlp", loss=None, targets=None):
    net = NETWORKS[name]
    inputs, classes = net.data()
    model = net.build().eval()
    data = inputs, classes if targets is None else targets(model, inputs)
    objective = qn.Objective(model, loss or nn.CrossEntropyLoss(), data)
    return objective.at(objective.layout.flatten(model))


def test_the_terms_against_a_search_over_variances():
    """Each matrix's noise and weight terms, minimised by a scalar search."""
    point, lambda_ = at(), 7.0
    found = pac_bayes_terms(point, samples=500, delta=0.1, lambda_=lambda_)
    traces, total = hessian_traces(point).traces, 0.0
    for name, variance in found.variances.items():
        squares = float(point.w[point.layout[name].slice].square().sum())

        def both(x, h=traces[name].value, squares=squares):
            return 0.5 * h * exp(x) + squares / (2 * lambda_ * exp(x))

        best = minimize_scalar(both, bracket=(-5, 5), tol=1e-12)
        total += best.fun
        assert log(variance) == pytest.approx(best.x, abs=1e-5)
    assert found.noise + found.divergence / lambda_ == pytest.approx(total, rel=1e-10)
    deviation = lambda_**2 / 1000
    expected = float(point.value) + total + (log(10) + deviation) / lambda_
    assert found.value == pytest.approx(expected, rel=1e-12)


def test_the_bound_over_orbits_and_bad_input():
    point = at()
    group = chains.layer_scale_group(point.layout)
    t = group.random(generator=torch.Generator().manual_seed(0))
    there = pac_bayes_terms(point.objective.at(group.act(point.w, t)), samples=100)
    assert there.value == pytest.approx(
        pac_bayes_terms(point, samples=100).value, rel=1e-8
    )
    with pytest.raises(ValueError, match="samples must be an integer of at least 1"):
        pac_bayes_terms(point, samples=0)
    with pytest.raises(ValueError, match="lambda_ must be above 0"):
        pac_bayes_terms(point, samples=10, lambda_=-1.0)
    with pytest.raises(ValueError, match="posterior must be above 0"):
        gaussian_divergence(1.0, 2, 0.0, 1.0)


def test_the_divergence_against_torch():
    w = torch.tensor([1.0, -2.0, 3.0]).double()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(w, 0.7), normal(0 * w, 1.3)
    ).sum()
    found = gaussian_divergence(float(w @ w), 3, 0.49, 1.69)
    assert found == pytest.approx(float(expected), rel=1e-12)


# -- the alternative (62) ---


def quadratic():
    """A linear layer and the squared error: of second order exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = nn.Linear(3, 2, bias=False).double(), torch.randn(9, 3).double()
    objective = qn.Objective(model, nn.MSELoss(), (inputs, torch.zeros(9, 2)))
    return objective.at(objective.layout.flatten(model))


def test_the_alternative_on_a_quadratic():
    """``½ Σ h s² + w²/s²``: half the noise of (17), so its value over √2."""
    point = quadratic()
    expected = normalised_sharpness(point).value / sqrt(2)
    found = alternative_normalised_sharpness(point, samples=100)
    assert found.converged and 0 < found.error < 0.1 * expected
    assert abs(found.value - expected) < 4 * found.error


def test_the_alternative_is_a_local_minimum_over_orbits():
    point = at("mlp")
    group = chains.node_wise_group(point.layout)
    t = group.random(generator=torch.Generator().manual_seed(0))
    twin = point.objective.at(group.act(point.w, t))

    def search(p, steps):
        return alternative_normalised_sharpness(p, samples=4, max_iterations=steps)

    few, here, there = search(point, 3), search(point, 500), search(twin, 500)
    assert search(twin, 3).value == pytest.approx(few.value, rel=1e-8)
    assert here.converged and here.value < few.value
    assert there.value == pytest.approx(
        here.value, rel=5e-3
    )  # kinks: see the docstring
    assert search(point, 500).value == here.value
    with pytest.raises(ValueError, match="at least 2 samples"):
        alternative_normalised_sharpness(point, samples=1)


def test_the_alternative_is_no_multiple_of_itself():
    """Its footnote 7: (17) scales with λ, (62) does not."""
    point = at("mlp")
    small, large = (
        alternative_normalised_sharpness(point, lambda_=x, samples=8).value
        for x in (0.5, 50.0)
    )
    assert abs(small / large / 10 - 1) > 0.05
    small, large = (normalised_sharpness(point, lambda_=x).value for x in (0.5, 50.0))
    assert small / large == pytest.approx(10, rel=1e-12)


# -- errata ---


def test_equation_5_loses_a_half():
    """By quadrature along the noise of one parameter at a time: no sampling."""
    point, sigma = quadratic(), 1.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    total = 0.0
    for i in range(len(point.w)):
        for node, weight in zip(nodes, weights):
            w = point.w.clone()
            w[i] += sigma * node
            total += weight * float(point.objective(w) - point.value)
    trace = hessian_traces(point).total.value
    assert total == pytest.approx(trace / 2, rel=1e-12)
    assert abs(total / trace - 1) > 0.4  # as printed


def test_equation_6_counts_entries():
    """The logarithm and the posterior's variance count once an entry, not once a matrix."""
    w = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.1, -1.0]]).double()
    squares, d, posterior, prior = float(w.square().sum()), w.numel(), 0.3, 0.8
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence
    exact = divergence(normal(w, sqrt(posterior)), normal(0 * w, sqrt(prior))).sum()
    printed = 0.5 * log(prior / posterior) + (squares + posterior) / (2 * prior) - 0.5
    found = gaussian_divergence(squares, d, posterior, prior)
    assert found == pytest.approx(float(exact), rel=1e-12)
    assert abs(printed / float(exact) - 1) > 0.05
    best = posterior + squares / d
    at_posterior = gaussian_divergence(squares, d, posterior, posterior)
    assert gaussian_divergence(squares, d, posterior, best) < 0.5 * at_posterior


def test_equation_12_without_the_half():
    """As printed the root covers the sum; with (10) as printed the factor is √(2/λ) outside."""
    point, lambda_ = at(), 3.0
    traces = hessian_traces(point).traces
    terms, products = 0.0, []
    for entry in point.layout.entries:
        if len(entry.shape) > 1:
            h = traces[entry.name].value
            squares = float(point.w[entry.slice].square().sum())
            variance = sqrt(squares / (2 * lambda_ * h))  # (11)
            terms += h * variance + squares / (2 * lambda_ * variance)  # (10)
            products.append(sqrt(squares * h))
    assert terms == pytest.approx(sqrt(2 / lambda_) * sum(products), rel=1e-12)
    assert abs(sqrt(2 / lambda_ * sum(products)) / terms - 1) > 0.05  # as printed
    assert sum(products) == pytest.approx(
        matrix_normalised_sharpness(point).value, rel=1e-12
    )
    right = pac_bayes_terms(point, samples=10, lambda_=lambda_)
    both = right.noise + right.divergence / lambda_
    assert both == pytest.approx(sum(products) / sqrt(lambda_), rel=1e-12)


def test_equation_19_and_algorithm_1():
    """``e^y`` is a variance, not a deviation: with (19) the problem has other solutions."""
    generator = torch.Generator().manual_seed(0)
    h, v = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    found = minimise_variances(h, v)
    x, y = found.rows.log()[:, None], found.columns.log()[None]
    objective = (
        h * (x + y).exp() + v * (-x - y).exp()
    ).sum()  # (48) with σ² = e^x, σ'² = e^y
    assert float(objective) == pytest.approx(found.value, rel=1e-12)
    printed = (h * (x + 2 * y).exp() + v * (-x - 2 * y).exp()).sum()  # (18), (19)
    doubled = (
        h * (2 * x + 2 * y).exp() + v * (-2 * x - 2 * y).exp()
    ).sum()  # Algorithm 1
    assert printed > 1.01 * objective and doubled > 1.01 * objective


def test_lambda_of_appendix_c():
    """λ = 1 gives another number than the text's λ = ½."""
    point = at()
    half, one = (normalised_sharpness(point, lambda_=x).value for x in (0.5, 1.0))
    assert half / one == pytest.approx(sqrt(2), rel=1e-12)
