"""Normalised sharpness: against scipy's convex optimum, by hand, and over orbits."""

from __future__ import annotations

from math import inf, sqrt

import chains
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from cases import NETWORKS
from scipy.optimize import minimize
from torch import nn

import quotientnet as qn
from quotientnet import sharpness
from quotientnet.curvature import LayerTraces, hessian_diagonal, hutchinson_trace
from quotientnet.losses import NormalisedCrossEntropy
from quotientnet.sharpness.variances import minimise_variances


def draw(*shape, seed=0):
    """Positive numbers over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).exp()


def reference(h, v):
    """The minimum by scipy's trust region with the dense Hessian."""
    h, v = h.numpy(), v.numpy()
    rows, columns = h.shape

    def parts(z):
        e = np.exp(z[:rows, None] + z[None, rows:])
        return h * e, np.divide(v, e)

    def value(z):
        a, b = parts(z)
        d = a - b
        return a.sum() + b.sum(), np.concatenate([d.sum(1), d.sum(0)])

    def hessian(z):
        m = sum(parts(z))
        return np.block([[np.diag(m.sum(1)), m], [m.T, np.diag(m.sum(0))]])

    found = minimize(
        value, np.zeros(rows + columns), jac=True, hess=hessian, method="trust-exact",
        options={"gtol": 1e-9, "maxiter": 10_000, "max_trust_radius": 50.0},
    )  # fmt: skip
    assert np.abs(found.jac).max() < 1e-6 * found.fun
    return found.fun


def banded(rows, width, seed):
    """Matrices whose sweeps are slow: mass moves along a band."""
    band = torch.ones(rows, rows).tril(width).triu(-width)
    return [draw(rows, rows, seed=seed + i) * band for i in range(2)]


@pytest.mark.slow  # with SciPy 1.12, whose trust region does not end on singular Hessians
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 4), (30, 20)])
def test_dense_matrices_against_scipy(shape):
    h, v = draw(*shape), draw(*shape, seed=1)
    found = minimise_variances(h, v)
    assert found.converged and found.error == 0
    assert found.value == pytest.approx(reference(h, v), rel=1e-10)
    s = torch.outer(found.rows, found.columns)
    assert float((h * s + v / s).sum()) == pytest.approx(found.value, rel=1e-13)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("rows, width", [(20, 1), (60, 1), (60, 2)])
def test_banded_matrices_against_scipy(rows, width):
    h, v = banded(rows, width, seed=3)
    found = minimise_variances(h, v)
    assert found.converged and found.iterations > 60  # sweeps alone are too slow
    assert found.value == pytest.approx(reference(h, v), rel=1e-10)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("seed", range(4))
def test_sparse_matrices_with_rows_of_zeros(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(12, 9, generator=generator) < 0.4
    h, v = draw(12, 9, seed=seed) * mask, draw(12, 9, seed=seed + 50) * mask
    h[2], v[5], h[:, 1], v[:, 3] = 0, 0, 0, 0
    h[7] = v[7] = 0
    v[2, 0] = h[5, 0] = v[0, 1] = h[0, 3] = 1
    found = minimise_variances(h, v)
    kept = (h > 0) & (v > 0)
    rows, columns = kept.any(1), kept.any(0)
    left = h[rows][:, columns], v[rows][:, columns]
    gone = kept[rows][:, columns]
    assert found.value == pytest.approx(reference(*(t * gone for t in left)), rel=1e-10)
    assert found.rows[2] == inf and found.rows[5] == 0 and found.rows[7] == 1
    assert found.columns[1] == inf and found.columns[3] == 0


def test_rows_and_columns_that_run_away_together():
    """Neither a row nor a column is zero, and yet two terms vanish in the infimum."""
    h = torch.tensor([[1.0, 1.0], [0.0, 4.0]]).double()
    v = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    found = minimise_variances(h, v)
    assert found.value == pytest.approx(2 * 1 + 2 * sqrt(4), rel=1e-12)


def test_scales_of_rows_and_columns_of_any_size_change_nothing():
    h, v = draw(40, 30), draw(40, 30, seed=1)
    a, b = draw(40, 1, seed=2) ** 12, draw(1, 30, seed=3) ** 12
    value = minimise_variances(h, v).value
    assert minimise_variances(h / (a * b), v * (a * b)).value == pytest.approx(
        value, rel=1e-12
    )


def test_groups_have_their_own_columns():
    h, v = draw(6, 4), draw(6, 4, seed=1)
    found = minimise_variances(h, v, groups=3)
    apart = [minimise_variances(h[i : i + 2], v[i : i + 2]).value for i in (0, 2, 4)]
    assert found.value == pytest.approx(sum(apart), rel=1e-12)
    assert found.rows.shape == (6,) and found.columns.shape == (12,)


# -- on networks ---


def at(name, loss=None, train=False):
    """A point, its targets what the network says: curvature is then mostly positive."""
    net = NETWORKS[name]
    model, (inputs, _) = net.build().train(train), net.data()
    targets = model.eval()(inputs).argmax(1)
    model.train(train)
    objective = qn.Objective(model, loss or nn.CrossEntropyLoss(), (inputs, targets))
    return objective.at(objective.layout.flatten(model))


def moved(point, group, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    t = group.random(spread=spread, generator=generator)
    return point.objective.at(group.act(point.w, t))


LOSSES = {"cross-entropy": nn.CrossEntropyLoss, "normalised": NormalisedCrossEntropy}


CASES = [(n, "cross-entropy") for n in NETWORKS if n != "one-layer"]
CASES += [(n, "normalised") for n in ("mlp", "deep", "conv", "batch-norm", "conv1d")]


@pytest.mark.parametrize("name, loss", CASES)
def test_the_measures_over_orbits(name, loss):
    point = at(name, LOSSES[loss]())
    layers, units = (
        make(point.layout)
        for make in (chains.layer_scale_group, chains.node_wise_group)
    )
    for seed in range(3):
        for measure, group in (
            (sharpness.matrix_normalised_sharpness, layers),
            (lambda p: sharpness.matrix_normalised_sharpness(p, biases=True), layers),
            (sharpness.normalised_sharpness, layers),
            (sharpness.normalised_sharpness, units),
        ):
            here, there = measure(point), measure(moved(point, group, seed))
            assert there.value == pytest.approx(here.value, rel=1e-8)
            for layer, part in here.layers.items():
                assert there.layers[layer].value == pytest.approx(part.value, rel=1e-8)
    if units.dimension > layers.dimension:
        other = sharpness.matrix_normalised_sharpness(moved(point, units)).value
        assert (
            abs(other / sharpness.matrix_normalised_sharpness(point).value - 1) > 1e-2
        )


@pytest.mark.parametrize(
    "name",
    ["depthwise-separable", "grouped sink", "grouped transposed", "conv3d", "resnet", "u-net",
     "resnet, normalised", "weight normalisation", "gated product", "linear attention"],
)  # fmt: skip
def test_grouped_transposed_and_normalised_layers_over_orbits(name):
    """In train mode, so that filters have their scales; exact products where samples interact."""
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(model, nn.Flatten())
    group = qn.discover(model, inputs).group
    targets = torch.randint(0, 2, (len(inputs),), generator=generator)
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    point = objective.at(objective.layout.flatten(model))
    here = sharpness.normalised_sharpness(point)
    there = sharpness.normalised_sharpness(moved(point, group, spread=0.5))
    assert here.converged and here.value > 0
    assert there.value == pytest.approx(here.value, rel=1e-8)


def test_an_embedding_is_a_matrix_whose_columns_are_units():
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Flatten(), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    data = torch.randint(0, 4, (9, 2)), torch.randint(0, 3, (9,))
    objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(model))
    group = qn.discover(model, data[0]).group
    here = sharpness.normalised_sharpness(point)
    there = sharpness.normalised_sharpness(moved(point, group))
    assert group.dimension > 0 and there.value == pytest.approx(here.value, rel=1e-8)
    assert here.variances["0.weight"].rows[4] == inf  # a token that does not occur


def test_a_tied_matrix_counts_once():
    model = nn.Sequential(
        nn.Linear(3, 3, False), nn.ReLU(), nn.Linear(3, 3, False)
    ).double()
    model[2].weight = model[0].weight
    objective = qn.Objective(model, nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 3)))
    found = sharpness.normalised_sharpness(
        objective.at(objective.layout.flatten(model))
    )
    assert (
        set(found.layers) == {"0.weight"}
        and found.layers["0.weight"].value == found.value
    )


def test_scales_and_shifts_of_the_outputs():
    """Of the normalised loss neither matters, of the cross-entropy only scales do."""
    for loss, scaled in (("cross-entropy", False), ("normalised", True)):
        point = at("mlp", LOSSES[loss]())
        layout, shifted, stretched = point.layout, point.w.clone(), point.w.clone()
        shifted[layout["4.bias"].slice] += 3.0
        for name in ("4.weight", "4.bias"):
            stretched[layout[name].slice] *= 2.0
        for measure in (
            sharpness.normalised_sharpness, sharpness.matrix_normalised_sharpness,
        ):  # fmt: skip
            here, shift, stretch = (
                measure(point.objective.at(w)) for w in (point.w, shifted, stretched)
            )
            assert shift.value == pytest.approx(here.value, rel=1e-8)
            assert ("output scale" in here.invariant_to) == scaled
            assert "output shift" in here.invariant_to
            change = abs(stretch.value / here.value - 1)
            assert change < 1e-8 if scaled else change > 1e-2
        with_biases = sharpness.matrix_normalised_sharpness(point, biases=True)
        assert "output shift" not in with_biases.invariant_to


def test_lambda_rescales():
    """(17) with λ has the value of λ = ½ times √(1/2λ), and the variances follow."""
    point = at("mlp")
    half, two = (sharpness.normalised_sharpness(point, lambda_=x) for x in (0.5, 2.0))
    assert two.value == pytest.approx(half.value / 2, rel=1e-14)
    h = hessian_diagonal(point).clamp(min=0)
    for name, v in two.variances.items():
        entry = point.layout[name]
        s = torch.outer(v.rows, v.columns).flatten()
        terms = h[entry.slice] * s + point.w[entry.slice].square() / (4 * s)
        usual = torch.isfinite(s) & (s > 0)
        assert terms[usual].sum() == pytest.approx(v.value, rel=1e-10)


def test_negative_curvature_is_cut_off_entry_by_entry():
    point = at("mlp", NormalisedCrossEntropy())
    diagonal = hessian_diagonal(point)
    assert (diagonal < 0).any()
    given = sharpness.normalised_sharpness(point, curvature=diagonal.clamp(min=0))
    assert given.value == pytest.approx(
        sharpness.normalised_sharpness(point).value, rel=1e-12
    )


def test_estimated_traces_bring_their_error():
    point = at("mlp")
    entries = [e for e in point.layout.entries]
    traces = {
        e.name: hutchinson_trace(
            point.hessian.restrict(point.layout.mask(e.name)), samples=200
        )
        for e in entries
    }
    given = LayerTraces(traces, None, {}, {})
    found = sharpness.matrix_normalised_sharpness(point, curvature=given)
    exact = sharpness.matrix_normalised_sharpness(point)
    assert 0 < found.error < exact.value
    assert abs(found.value - exact.value) < 4 * found.error


def test_bad_input():
    point = at("mlp")
    with pytest.raises(TypeError, match="point must be a Point"):
        sharpness.normalised_sharpness(point.w)
    with pytest.raises(
        ValueError, match="'hessian', 'gauss-newton' or a diagonal, got 'exact'"
    ):
        sharpness.normalised_sharpness(point, curvature="exact")
    with pytest.raises(
        ValueError, match=r"diagonal of shape \(\d+,\), got shape \(3,\)"
    ):
        sharpness.normalised_sharpness(point, curvature=torch.ones(3))
    with pytest.raises(ValueError, match="lambda_ must be positive"):
        sharpness.normalised_sharpness(point, lambda_=0.0)
    with pytest.raises(TypeError, match="got int"):
        sharpness.matrix_normalised_sharpness(point, curvature=3)
