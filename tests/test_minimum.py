"""Minimum sharpness: closed forms, scipy's optimum, dense Hessians, and groups that are wrong."""

from __future__ import annotations

import chains
import numpy as np
import pytest
import torch
from cases import NETWORKS
from equivalents import hessian
from scipy.optimize import minimize
from torch import nn

import quotientnet as qn
from quotientnet.curvature import (
    ggn_diagonal,
    ggn_traces,
    ggn_traces_estimate,
    hessian_diagonal,
)
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.orbit import require_invariant
from quotientnet.sharpness import minimum_sharpness


def at(name, train=False, loss=None):
    net = NETWORKS[name]
    data = net.data()
    objective = qn.Objective(
        net.build().train(train), loss or nn.CrossEntropyLoss(), data
    )
    return objective.at(objective.layout.flatten(objective.model))


def reference(group, coefficients):
    """The minimum by scipy's trust region, with the exponents as a dense matrix."""
    exponents = group.exponents(torch.eye(group.dimension).double()).T.numpy()
    c = coefficients.numpy()

    def value(t):
        terms = c * np.exp(-2 * exponents @ t)
        return terms.sum(), -2 * exponents.T @ terms

    def second(t):
        return 4 * exponents.T @ ((c * np.exp(-2 * exponents @ t))[:, None] * exponents)

    found = minimize(
        value, np.zeros(group.dimension), jac=True, hess=second, method="trust-exact",
        options={"gtol": 1e-9, "maxiter": 5000},
    )  # fmt: skip
    assert np.abs(found.jac).max() < 1e-6 * found.fun
    return found.fun


def test_without_biases_it_is_the_product_of_traces():
    """Theorem 1, from the dense Hessian of autograd."""
    point = at("mlp-without-bias")
    dense = hessian(point.objective.model, point.objective).diagonal()
    traces = [float(dense[entry.slice].sum()) for entry in point.layout.entries]
    group = chains.layer_scale_group(point.layout)
    found = minimum_sharpness(point, group)
    depth = len(traces)
    assert found.converged and found.runaways == ()
    assert found.value == pytest.approx(
        depth * np.prod(traces) ** (1 / depth), rel=1e-10
    )
    assert (
        len({round(part.value, 9) for part in found.layers.values()}) == 1
    )  # all are equal


@pytest.mark.parametrize("make", [chains.layer_scale_group, chains.node_wise_group])
@pytest.mark.parametrize("name", ["mlp", "deep", "one-unit", "conv", "conv1d"])
def test_against_scipy(name, make):
    point = at(name)
    group = make(point.layout)
    diagonal = hessian(point.objective.model, point.objective).diagonal().clamp(min=0)
    found = minimum_sharpness(point, group)
    assert found.runaways == ()
    assert found.value == pytest.approx(reference(group, diagonal), rel=1e-10)


@pytest.mark.parametrize("make", [chains.layer_scale_group, chains.node_wise_group])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_network_that_attains_it(name, make):
    point = at(name)
    group = make(point.layout)
    found = minimum_sharpness(point, group)
    there = point.objective.at(found.w)
    assert float(there.value) == pytest.approx(float(point.value), rel=1e-12)
    trace = float(ggn_diagonal(there).sum())
    assert trace == pytest.approx(found.value, rel=1e-10)
    assert sum(part.value for part in found.layers.values()) == pytest.approx(
        trace, rel=1e-10
    )
    assert found.value < ggn_traces(point).total.value
    torch.testing.assert_close(group.act(point.w, found.t), found.w)


@pytest.mark.parametrize("make", [chains.layer_scale_group, chains.node_wise_group])
@pytest.mark.parametrize("name", ["mlp", "conv", "batch-norm"])
def test_the_same_over_the_orbit(name, make):
    """With batch normalisation in eval mode: its buffers go along."""
    point = at(name)
    group = make(point.layout)
    here = minimum_sharpness(point, group)
    for seed in range(3):
        t = group.random(generator=torch.Generator().manual_seed(seed))
        there = minimum_sharpness(point.objective.at(group.act(point.w, t)), group)
        assert there.value == pytest.approx(here.value, rel=1e-8)
        assert there.runaways == here.runaways
        for layer, part in here.layers.items():
            scale = 1e-8 * here.value
            assert there.layers[layer].value == pytest.approx(
                part.value, rel=1e-6, abs=scale
            )


def test_filters_before_batch_normalisation_run_away():
    """In train mode a filter's scale goes one way only; its terms are left out, and it stays."""
    point = at("batch-norm", train=True)
    group = chains.node_wise_group(point.layout)
    diagonal = hessian_diagonal(point).clamp(min=0)
    found = minimum_sharpness(point, group, curvature=diagonal)
    filters = {
        f"unit {i} of {name}" for name, n in (("0", 3), ("3", 4)) for i in range(n)
    }
    assert filters <= set(found.runaways)
    for name in ("0.weight", "0.bias", "3.weight"):
        assert found.layers[name].value == 0
    entry = point.layout["0.weight"]
    torch.testing.assert_close(found.w[entry.slice], point.w[entry.slice])
    rest = sum(part.value for part in found.layers.values())
    assert rest == pytest.approx(found.value, rel=1e-10) and found.value > 0
    there = float(point.objective.at(found.w).value)
    assert there == pytest.approx(float(point.value), rel=1e-10)


def test_estimated_traces_bring_their_error():
    """The way for large networks with batch normalisation in train mode."""
    point = at("batch-norm", train=True)
    group = chains.layer_scale_group(point.layout)
    few, many = (
        minimum_sharpness(
            point, group, curvature=ggn_traces_estimate(point, draws=draws)
        )
        for draws in (20, 4000)
    )
    assert 0 < many.error < few.error < few.value
    assert abs(few.value - many.value) < 4 * (few.error + many.error)
    with pytest.raises(ValueError, match="curvature of single entries"):
        units = chains.node_wise_group(point.layout)
        minimum_sharpness(point, units, curvature=ggn_traces_estimate(point, draws=2))


def test_shifts_of_the_outputs():
    point = at("mlp")
    group = chains.node_wise_group(point.layout)
    shifted = point.w.clone()
    shifted[point.layout["4.bias"].slice] += 2.0
    here = minimum_sharpness(point, group)
    there = minimum_sharpness(point.objective.at(shifted), group)
    assert here.invariant_to == ("the group given", "output shift")
    assert there.value == pytest.approx(here.value, rel=1e-8)


# -- bad input ---


def wrong(layout):
    """Layer scales that forget the first bias."""
    return qn.ScalingGroup.from_units(
        layout,
        [
            qn.Unit(
                "hidden",
                1,
                (qn.Scale("0.weight", None), qn.Scale("2.weight", None, -1)),
            )
        ],
    )


def test_a_group_that_the_network_does_not_have():
    point = at("mlp")
    with pytest.raises(
        ValueError, match="not invariant under the group: along generator .hidden."
    ):
        minimum_sharpness(point, wrong(point.layout))


def test_a_wrong_group_is_seen_at_a_critical_point():
    """Where the gradient is 0, and every slope with it."""
    net = NETWORKS["mlp"]
    model, (inputs, _) = net.build(), net.data()
    objective = qn.Objective(model, nn.MSELoss(), (inputs, model(inputs).detach()))
    point = objective.at(objective.layout.flatten(model))
    assert point.gradient.abs().max() == 0
    with pytest.raises(
        ValueError, match="minimum_sharpness: the loss is not invariant"
    ):
        minimum_sharpness(point, wrong(point.layout))
    require_invariant(point, chains.node_wise_group(point.layout), "test")


def test_one_wrong_generator_among_many():
    """Too small to change the loss by 2 %, its slope is seen by its name."""
    point = at("mlp")
    units = [qn.Unit("head", 1, (qn.Scale("4.bias", None),))]
    group = qn.ScalingGroup.from_units(point.layout, units)
    small = point.w.clone()
    small[point.layout["4.bias"].slice] *= 1e-4
    with pytest.raises(ValueError, match="along generator 'head' its slope is"):
        minimum_sharpness(point.objective.at(small), group)


def test_wrong_exponents_of_running_statistics():
    """Slopes do not see them; the loss at another point does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        ).double().eval()  # fmt: skip
    objective = qn.Objective(model, nn.CrossEntropyLoss(), NETWORKS["mlp"].data())
    point = objective.at(5 * objective.layout.flatten(model))
    right = [
        qn.Scale("0.weight", 0),
        qn.Scale("0.bias", 0),
        qn.Scale("1.running_mean", 0),
    ]
    for power in (2, 1):
        unit = qn.Unit("filters", 5, (*right, qn.Scale("1.running_var", 0, power)))
        group = qn.ScalingGroup.from_units(point.layout, [unit])
        if power == 2:
            require_invariant(point, group, "test")
        else:
            with pytest.raises(ValueError, match="at a random equivalent point it is"):
                require_invariant(point, group, "test")


def test_a_small_wrong_generator_at_a_critical_point():
    """Too small to change the loss by 2 %: only the slope at the other point sees it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = nn.Linear(3, 2).double(), torch.randn(9, 3).double()
    with torch.no_grad():
        model.bias.mul_(1e-3)
    residual = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    design = torch.cat([inputs, torch.ones(9, 1).double()], 1)
    residual -= design @ torch.linalg.lstsq(design, residual).solution
    objective = qn.Objective(
        model, nn.MSELoss(), (inputs, model(inputs).detach() + residual)
    )
    point = objective.at(objective.layout.flatten(model))
    assert point.gradient.abs().max() < 1e-14
    unit = qn.Unit("bias", 1, (qn.Scale("bias", None),))
    group = qn.ScalingGroup.from_units(point.layout, [unit])
    with pytest.raises(ValueError, match="along generator 'bias' its slope is"):
        require_invariant(point, group, "test")


def test_eps_of_batch_normalisation_is_forgiven():
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    inputs, targets = NETWORKS["mlp"].data()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    point = objective.at(objective.layout.flatten(model))
    group = qn.discover(model, inputs).group
    t = group.random(spread=0.5, generator=torch.Generator().manual_seed(0))
    drift = abs(float(objective(group.act(point.w, t)) - point.value))
    assert 1e-9 < drift / float(point.value) < 2e-2  # more than rounding
    assert require_invariant(point, group, "test") is None


def test_the_group_of_the_train_mode_with_frozen_statistics():
    """Filters alone have no scale in eval mode."""
    point = at("batch-norm")
    unit = qn.Unit("filters", 3, (qn.Scale("0.weight", 0), qn.Scale("0.bias", 0)))
    group = qn.ScalingGroup.from_units(point.layout, [unit])
    with pytest.raises(ValueError, match="discovered in the mode that it is in.*a smaller eps"):
        minimum_sharpness(point, group)


def test_negative_curvature_has_no_minimum():
    net = NETWORKS["mlp"]
    model, data = net.build(), net.data()
    objective = qn.Objective(model, NormalisedCrossEntropy(), data)
    point = objective.at(objective.layout.flatten(model))
    group = chains.layer_scale_group(point.layout)
    with pytest.raises(ValueError, match="negative trace, -.*clamp"):
        minimum_sharpness(point, group)
    clamped = minimum_sharpness(
        point, group, curvature=hessian_diagonal(point).clamp(min=0)
    )
    assert clamped.value > 0


def test_other_bad_input():
    point = at("mlp")
    with pytest.raises(TypeError, match="group must be a ScalingGroup"):
        minimum_sharpness(point, "layers")
    with pytest.raises(ValueError, match="another layout than the group"):
        minimum_sharpness(point, chains.layer_scale_group(NETWORKS["deep"].layout()))


# -- errata of ibayashi2021 ---


def logit_norms(model, inputs):
    """``(n, K + 1)`` by tensor: norms of the derivatives of each logit, and of ``ln Z``."""
    outputs = model(inputs)
    heads = torch.cat([outputs, outputs.logsumexp(1, keepdim=True)], 1)
    probabilities = outputs.softmax(1).detach()
    norms = {name: torch.zeros_like(heads) for name, _ in model.named_parameters()}
    for i in range(len(heads)):
        for k in range(heads.shape[1]):
            grads = torch.autograd.grad(
                heads[i, k], list(model.parameters()), retain_graph=True
            )
            for name, g in zip(norms, grads):
                norms[name][i, k] = g.norm()
    return {name: norm.detach() for name, norm in norms.items()}, probabilities


def test_proposition_1_needs_squared_norms():
    point = at("mlp-without-bias")
    model, ((inputs, _),) = point.objective.model, point.objective.data
    dense = hessian(model, point.objective).diagonal()
    norms, p = logit_norms(model, inputs)
    for entry in point.layout.entries:
        trace = float(dense[entry.slice].sum())
        terms = {
            power: float(((p * norms[entry.name][:, :-1] ** power).sum(1)
                          - norms[entry.name][:, -1] ** power).mean())
            for power in (1, 2)
        }  # fmt: skip
        assert terms[2] == pytest.approx(trace, rel=1e-10)
        assert abs(terms[1] / trace - 1) > 0.05  # as printed


def test_proposition_2_and_the_scale_of_theorem_1():
    """``∂o/∂W = α ∂o/∂W'`` for ``W' = αW``; the minimiser is the root of what is printed."""
    point = at("mlp-without-bias")
    group = chains.layer_scale_group(point.layout)
    t = torch.tensor([0.7] * group.dimension).double()
    there = point.objective.at(group.act(point.w, t))
    alpha = group.exponents(t).exp()
    torch.testing.assert_close(point.gradient, alpha * there.gradient)
    assert not torch.allclose(
        point.gradient, there.gradient / alpha, rtol=0.1
    )  # as printed
    traces = {name: each.value for name, each in ggn_traces(point).traces.items()}
    mean = np.prod(list(traces.values())) ** (1 / len(traces))
    found = minimum_sharpness(point, group)
    for name, trace in traces.items():
        scale = float(
            found.w[point.layout[name].slice][0] / point.w[point.layout[name].slice][0]
        )
        assert scale == pytest.approx((trace / mean) ** 0.5, rel=1e-9)
        assert scale != pytest.approx(mean / trace, rel=0.05)  # as printed


def constrained(h, v):
    """Appendix G: the products of the scales of the rows, and of the columns, are both 1."""
    rows, columns = h.shape

    def value(z):
        x, y = z[:rows] - z[:rows].mean(), z[rows:] - z[rows:].mean()
        e = np.exp(x[:, None] + y[None])
        a, b = h * e, v / e
        up, right = (a - b).sum(1), (a - b).sum(0)
        return (a + b).sum(), np.concatenate([up - up.mean(), right - right.mean()])

    return minimize(value, np.zeros(rows + columns), jac=True, method="BFGS").fun


def test_two_product_constraints_destroy_the_invariance_of_normalised_sharpness():
    rng = np.random.default_rng(0)
    h, v = rng.exponential(size=(3, 4)), rng.exponential(size=(3, 4))
    here, there = constrained(h, v), constrained(h / 100, v * 100)  # W → 10 W
    assert there > 20 * here
    free = [
        qn.sharpness.variances.minimise_variances(
            torch.from_numpy(a), torch.from_numpy(b)
        ).value
        for a, b in ((h, v), (h / 100, v * 100))
    ]
    assert free[1] == pytest.approx(free[0], rel=1e-12)
