"""Operators, the power method and traces against dense matrices."""

import chains
import pytest
import torch
from cases import NETWORKS

import quotientnet as qn
from quotientnet.curvature import hutchinson_trace, power_method


def symmetric(*eigenvalues, seed=0):
    """A matrix with these eigenvalues in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(
        torch.randn(
            len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64
        )
    )[0]
    matrix = (basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return qn.DenseOperator((matrix + matrix.T) / 2)


@pytest.mark.parametrize(
    "eigenvalues, which, expected",
    [
        ((5, 3, -1, 0), "magnitude", 5),
        ((-5, 3, 1, 0), "magnitude", -5),
        ((-5, 3, 1, 0), "algebraic", 3),
        ((-5, -3, -1, -1), "algebraic", -1),
        ((4, -4, 1, 0), "algebraic", 4),
        ((2, 2, 2, 1), "magnitude", 2),
        ((7,), "algebraic", 7),
    ],
)
def test_power_method_returns_what_was_asked_for(eigenvalues, which, expected):
    pair = power_method(symmetric(*eigenvalues), which=which, tolerance=1e-9)
    assert pair.converged and pair.value == pytest.approx(expected, rel=1e-9)
    operator = symmetric(*eigenvalues)
    residual = (operator @ pair.vector - pair.value * pair.vector).norm().item()
    assert residual == pytest.approx(
        pair.residual, rel=1e-3, abs=1e-14
    ) and residual <= 1e-9 * abs(expected)


class Diagonal(qn.Operator):
    """A diagonal operator."""

    def __init__(self, *entries, rest=0.0, size=1000):
        self.entries = torch.full((size,), rest, dtype=torch.float64)
        self.entries[: len(entries)] = torch.tensor(entries)
        super().__init__(size, torch.float64, "cpu")

    def _matvec(self, v):
        return self.entries * v


@pytest.mark.parametrize(
    "operator, largest",
    [
        (Diagonal(-2.5, -0.5, rest=-1.0), -0.5),
        (Diagonal(-3.0, 0.3), 0.3),
        (Diagonal(-7.0, 3.0, size=5000), 3.0),
        (Diagonal(rest=-1.0), -1.0),
        (Diagonal(-4.0, -2.0), 0.0),
    ],
)
def test_the_largest_eigenvalue_below_a_bulk_that_hides_the_smallest(operator, largest):
    for seed in range(10):
        pair = power_method(
            operator,
            which="algebraic",
            generator=torch.Generator().manual_seed(seed),
            tolerance=1e-5,
        )
        assert pair.converged and pair.value == pytest.approx(
            largest, rel=1e-4, abs=1e-4
        )


def test_the_largest_eigenvalue_from_the_vector_of_the_smallest():
    operator = symmetric(-5, 1, 2)
    start = power_method(operator, tolerance=1e-12).vector
    pair = power_method(operator, which="algebraic", start=start)
    assert pair.value == pytest.approx(2, rel=1e-6)


def test_power_method_says_when_it_has_not_converged():
    tie = power_method(symmetric(4, -4, 1, 0), max_iterations=500)
    assert not tie.converged and tie.residual > 0.01
    short = power_method(symmetric(1.0, 0.999, 0.5), tolerance=1e-9, max_iterations=10)
    assert not short.converged and short.iterations == 10


def test_power_method_on_the_zero_operator():
    pair = power_method(qn.DenseOperator(torch.zeros(3, 3)), which="algebraic")
    assert (pair.value, pair.residual, pair.converged) == (0, 0, True)


def test_power_method_starts_from_what_it_is_given():
    operator = symmetric(3, 2, 1)
    a = power_method(
        operator, generator=torch.Generator().manual_seed(1), max_iterations=3
    )
    b = power_method(
        operator, generator=torch.Generator().manual_seed(2), max_iterations=3
    )
    again = power_method(
        operator, generator=torch.Generator().manual_seed(1), max_iterations=3
    )
    assert a.value != b.value and a.value == again.value
    exact = power_method(
        operator, start=torch.linalg.eigh(operator.to_dense())[1][:, -1]
    )
    assert exact.iterations == 1 and exact.value == pytest.approx(3)


def test_riemannian_spectral_norm_against_a_dense_eigensolver():
    objective = NETWORKS["mlp"].objective()
    w = objective.layout.flatten(objective.model)
    for manifold in (
        qn.LayerScaleQuotient(chains.layer_scale_group(objective.layout)),
        qn.NodeWiseQuotient(chains.node_wise_group(objective.layout)),
    ):
        for connection in ("levi-civita", "flat"):
            dense = manifold.riemannian_hessian(objective.at(w), connection).to_dense()
            expected = torch.linalg.eigvalsh(dense)[-1].item()
            found = qn.sharpness.riemannian_spectral_norm(
                objective.at(w), manifold, connection=connection, tolerance=1e-7
            )
            assert found.converged and found.value == pytest.approx(expected, rel=1e-9)
            assert found.invariant_to == (f"{manifold.name}'s group",)


def test_hutchinson_covers_the_trace_at_the_rate_of_its_standard_error():
    operator = symmetric(*range(-3, 12))
    truth, hits = 15 * 4.0, 0
    for seed in range(200):
        estimate = hutchinson_trace(
            operator, samples=50, generator=torch.Generator().manual_seed(seed)
        )
        hits += abs(estimate.value - truth) <= 1.96 * estimate.error
    assert 180 <= hits <= 198  # 95 % ± 3 standard deviations


def test_euclidean_measures():
    objective = NETWORKS["mlp"].objective()
    p = objective.at(objective.layout.flatten(objective.model))
    dense = p.hessian.to_dense()
    eigenvalues = torch.linalg.eigvalsh(dense)
    top = eigenvalues[eigenvalues.abs().argmax()].item()
    assert qn.sharpness.spectral_norm(p, tolerance=1e-7).value == pytest.approx(
        top, rel=1e-9
    )
    trace = qn.sharpness.trace(p, samples=400)
    assert abs(trace.value - dense.trace().item()) <= 4 * trace.error


class NotANumber(qn.Operator):
    def _matvec(self, v):
        return v * torch.nan


def test_refusals():
    operator = symmetric(1, 2)
    with pytest.raises(
        ValueError, match=r"v has shape \(3,\), it needs \(2,\) or \(2, m\)"
    ):
        operator @ torch.ones(3).double()
    with pytest.raises(
        ValueError, match="v is torch.float32 on cpu, the operator is torch.float64"
    ):
        operator @ torch.ones(2)
    with pytest.raises(TypeError, match="v must be a torch.Tensor, got list"):
        operator @ [1, 2]
    with pytest.raises(ValueError, match="differs from its transpose by 1.0e\\+00"):
        qn.DenseOperator(torch.tensor([[0.0, 1], [0, 0]]))
    with pytest.raises(
        ValueError,
        match="which must be 'magnitude', 'algebraic' or 'smallest', got 'largest'",
    ):
        power_method(operator, which="largest")
    with pytest.raises(ValueError, match="start must be a nonzero vector"):
        power_method(operator, start=torch.zeros(2).double())
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        power_method(operator, tolerance=0)
    with pytest.raises(ValueError, match="product 1 is NaN or infinite"):
        power_method(NotANumber(2, torch.float64, "cpu"))
    with pytest.raises(ValueError, match="a product is NaN"):
        hutchinson_trace(NotANumber(2, torch.float64, "cpu"))
    with pytest.raises(ValueError, match="samples must be an integer of at least 2"):
        hutchinson_trace(operator, samples=1)


def test_a_symmetry_is_no_manifold():
    network = NETWORKS["mlp"]
    objective = network.objective()
    point = objective.at(objective.layout.flatten(objective.model))
    symmetry = qn.discover(objective.model, network.data()[0])
    with pytest.raises(
        TypeError, match="manifold must be a QuotientManifold, such as Node"
    ):
        qn.sharpness.riemannian_spectral_norm(point, symmetry)
