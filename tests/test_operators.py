"""Operators: algebra, restriction, scipy, probes, forms on quotients, refusals."""

import chains
import numpy as np
import pytest
import torch
from cases import NETWORKS
from scipy.sparse.linalg import eigsh

import quotientnet as qn
from quotientnet import curvature


def symmetric(size, seed):
    """A random symmetric matrix as an operator."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return qn.DenseOperator(matrix + matrix.T)


def test_operators_add_scale_and_restrict():
    a, b = symmetric(6, 1), symmetric(6, 2)
    dense_a, dense_b = a.to_dense(), b.to_dense()
    combined = 2 * a - b * 0.5 + (-a)
    torch.testing.assert_close(combined.to_dense(), dense_a - 0.5 * dense_b)
    mask = torch.tensor([True, False, True, True, False, False])
    block = a.restrict(mask)
    torch.testing.assert_close(block.to_dense(), dense_a[mask][:, mask])
    torch.testing.assert_close(
        block @ torch.ones(3).double(), dense_a[mask][:, mask].sum(1)
    )
    with pytest.raises(TypeError):
        a * torch.ones(2)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(ValueError, match="both must be the same"):
        a + symmetric(5, 1)
    with pytest.raises(ValueError, match="boolean mask of shape"):
        a.restrict(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="chooses no coordinate"):
        a.restrict(torch.zeros(6, dtype=torch.bool))


def test_restriction_to_layers_by_name():
    objective = NETWORKS["mlp"].objective()
    w = objective.layout.flatten(objective.model)
    layout, hessian = objective.layout, objective.at(w).hessian
    mask = layout.mask("0", "2.bias")
    assert layout.count(mask) == {"0.weight": 24, "0.bias": 6, "2.bias": 5}
    dense = hessian.to_dense()
    torch.testing.assert_close(hessian.restrict(mask).to_dense(), dense[mask][:, mask])
    with pytest.raises(KeyError, match="not in the layout"):
        layout.mask("7")


def test_scipy_finds_the_same_eigenvalues():
    a = symmetric(30, 3)
    found = eigsh(a.to_scipy(), k=3, which="LA")[0]
    expected = torch.linalg.eigvalsh(a.to_dense())[-3:].numpy()
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-10)
    block = np.random.default_rng(0).normal(size=(30, 2))
    np.testing.assert_allclose(a.to_scipy() @ block, a.to_dense().numpy() @ block)


class Skew(qn.Operator):
    """A rotation, which is no symmetric operator."""

    def __init__(self):
        super().__init__(50, torch.float64, "cpu")

    def _matvec(self, v):
        return torch.roll(v, 1)


class Noisy(qn.Operator):
    """An operator that is another one at each product."""

    def __init__(self):
        super().__init__(50, torch.float64, "cpu")
        self.calls = 0

    def _matvec(self, v):
        self.calls += 1
        return (1 + 1e-3 * self.calls) * v


def test_a_probe_tells_what_is_not_symmetric_or_not_deterministic():
    good = symmetric(50, 0).probe()
    assert good.asymmetry < 1e-14 and good.deviation == 0
    assert Skew().probe().asymmetry > 1e-3
    assert Noisy().probe().deviation > 1e-4


def test_gauss_newton_on_a_quotient():
    objective = NETWORKS["mlp"].objective()
    w = objective.layout.flatten(objective.model)
    manifold = qn.NodeWiseQuotient(chains.node_wise_group(objective.layout))
    form = manifold.riemannian_ggn(objective.at(w))
    d = manifold.frame(w)
    found, dense = form.to_dense(), objective.at(w).ggn.to_dense()
    # The orbit is its null space already.
    torch.testing.assert_close(
        found, dense / d[:, None] / d[None], rtol=1e-9, atol=1e-12
    )
    z = torch.randn(len(w), 2, dtype=torch.float64)
    torch.testing.assert_close(form @ form.project(z), form @ z)
    rank = torch.linalg.matrix_rank(form.project(torch.eye(len(w)).double()))
    assert int(rank) == manifold.dimension


def test_sums_on_a_quotient_keep_its_null_directions():
    objective = NETWORKS["mlp"].objective()
    p = objective.at(objective.layout.flatten(objective.model))
    manifold = qn.NodeWiseQuotient(chains.node_wise_group(objective.layout))
    hessian, ggn = manifold.riemannian_hessian(p), manifold.riemannian_ggn(p)
    v = torch.linspace(-1, 1, len(p.w), dtype=torch.float64)
    for operator in (hessian - 0.5 * ggn, -(hessian + hessian), ggn / 3):
        torch.testing.assert_close(operator.project(v), hessian.project(v))
        with pytest.raises(ValueError, match="directions are left"):
            qn.curvature.lanczos(operator, manifold.dimension + 1)
    assert torch.equal((hessian + p.hessian).project(v), v)
    elsewhere = manifold.riemannian_ggn(objective.at(1.5 * p.w))
    assert torch.equal((hessian + elsewhere).project(v), v)


class Flat(qn.Operator):
    """Returns too little."""

    def _matvec(self, v):
        return v[:-1]


def test_what_is_no_operator_is_refused_with_its_remedy():
    objective = NETWORKS["mlp"].objective()
    p = objective.at(objective.layout.flatten(objective.model))
    for method in (
        curvature.lanczos,
        curvature.power_method,
        curvature.spectral_density,
        curvature.hutchinson_trace,
        curvature.hutch_plus_plus_trace,
        curvature.hutchinson_diagonal,
    ):
        with pytest.raises(
            TypeError, match="got Point; pass point.hessian or point.ggn"
        ):
            method(p)
        with pytest.raises(
            TypeError, match=r"got Tensor; pass DenseOperator\(matrix\)"
        ):
            method(torch.eye(3))
    for measure in (curvature.ggn_traces, curvature.ggn_diagonal, curvature.ggn_cost):
        with pytest.raises(TypeError, match="point must be a Point, got Curvature"):
            measure(p.hessian)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        curvature.ggn_traces(p, chunk=0)
    with pytest.raises(TypeError, match="must return a torch.Tensor of shape"):
        Flat(3, torch.float64, "cpu") @ torch.ones(3).double()
    with pytest.raises(TypeError, match="float32 or float64 tensor, got torch.int64"):
        qn.DenseOperator(torch.eye(2).long())
    with pytest.raises(TypeError, match=r"layout.mask\(name\) makes one"):
        p.hessian.restrict("0.weight")
    with pytest.raises(TypeError, match=r"objective.layout.flatten\(model\) makes one"):
        objective.at(objective.model)
    with pytest.raises(ValueError, match="vectors must be at least 1"):
        p.hessian.seconds(0)
    density = curvature.spectral_density(symmetric(6, 0))
    for function in (lambda x: x.sum(), lambda x: 1.0):
        with pytest.raises(ValueError, match="keep the shape"):
            density.expectation(function)


def test_forms_name_themselves_in_refusals():
    objective = NETWORKS["mlp"].objective()
    other = NETWORKS["deep"].objective()
    manifold = qn.NodeWiseQuotient(chains.node_wise_group(objective.layout))
    elsewhere = other.at(other.layout.flatten(other.model))
    for name in ("riemannian_hessian", "riemannian_ggn"):
        with pytest.raises(TypeError, match=rf"{name}: .* got Objective; objective.at"):
            getattr(manifold, name)(objective)
        with pytest.raises(ValueError, match=f"{name}: .*"):
            getattr(manifold, name)(elsewhere)
