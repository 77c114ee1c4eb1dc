"""Lanczos and the spectral density against dense eigensolvers."""

from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_curvature import Diagonal, NotANumber, symmetric

import quotientnet as qn
from quotientnet.curvature import lanczos, power_method
from quotientnet.curvature.krylov import Krylov

EPS = {torch.float64: 2.3e-16, torch.float32: 1.2e-7}
KEYS = {
    "algebraic": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": lambda values: abs(values),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def entries(values):
    """A diagonal operator."""
    return qn.DenseOperator(torch.diag(torch.as_tensor(values, dtype=torch.float64)))


class Quotient(qn.Operator):
    """A matrix with null directions that it knows."""

    def __init__(self, matrix, null):
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.null = torch.linalg.qr(null)[0]
        self.matrix = self.project(self.project(matrix).T)

    def project(self, v):
        return v - self.null @ (self.null.T @ v)

    def _matvec(self, v):
        return self.matrix @ v


def negative_quotient(size=40, null=3, seed=0):
    """All eigenvalues between −2 and −1 beside the null directions."""
    generator = seeded(seed)
    basis = torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    )[0]
    values = -torch.linspace(1, 2, size - null, dtype=torch.float64)
    matrix = (basis[:, null:] * values) @ basis[:, null:].T
    return Quotient((matrix + matrix.T) / 2, basis[:, :null]), values


def check(found, operator, values, which, tolerance, scale=0.0):
    """The wanted eigenvalues, with orthonormal vectors and the residuals that are claimed."""
    values, count = torch.as_tensor(values, dtype=torch.float64), len(found.values)
    eps, scale = EPS[operator.dtype], max(values.abs().max().item(), scale)
    key = KEYS[which]
    wanted = values[torch.argsort(-key(values))][:count]
    allowed = tolerance * abs(wanted) + 100 * eps * scale
    # A tolerance of 1e-4 does not tell neighbours apart that are a thousandth from each other.
    confused = 0 if operator.dtype == torch.float64 else 30 * tolerance * scale
    assert found.converged
    assert (abs(key(found.values) - key(wanted)) <= allowed + confused).all()
    nearest = abs(found.values[:, None] - values).amin(1)
    assert (nearest <= allowed).all()
    image = operator @ found.vectors
    residuals = (image.double() - found.values * found.vectors.double()).norm(dim=0)
    assert (residuals <= 1.01 * found.residuals + 30 * eps * scale).all()
    slack = 0.02 * tolerance * scale + 1000 * eps * scale
    assert (residuals >= found.residuals / 1.01 - slack).all()
    gram = found.vectors.T.double() @ found.vectors.double()
    assert (gram - torch.eye(count)).abs().max() <= 1000 * eps


@st.composite
def problems(draw):
    """Spectra with copies, clusters, zeros and both signs, over 24 orders of magnitude."""
    size = draw(st.integers(1, 24))
    pool = draw(
        st.lists(
            st.sampled_from([0.0, 1.0, -1.0, 1.0 + 1e-3, 0.5, -2.0, 3.0, 1e-2])
            | st.floats(-4, 4, width=16),
            min_size=1,
            max_size=size,
        )
    )
    values = [pool[i % len(pool)] for i in range(size)]
    scale = 10.0 ** draw(st.integers(-12, 12))
    count = draw(st.integers(1, size))
    options = {
        "which": draw(st.sampled_from(sorted(KEYS))),
        "block": draw(st.integers(1, 4)),
        "generator": seeded(draw(st.integers(0, 10**6))),
        "confirm": True,
    }
    if draw(st.booleans()):
        options["basis"] = 2 * count + 3 * options["block"]
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    return [scale * value for value in values], dtype, count, options


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(problems())
def test_every_spectrum_against_a_dense_eigensolver(problem):
    values, dtype, count, options = problem
    matrix = symmetric(*values).to_dense().to(dtype)
    operator = qn.DenseOperator((matrix + matrix.T) / 2)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    found = lanczos(operator, count, tolerance=tolerance, **options)
    exact = torch.linalg.eigvalsh(operator.to_dense().double())
    check(found, operator, exact, options["which"], tolerance)


LINE = torch.linspace(0, 1, 400, dtype=torch.float64)
BULK = {
    "isolated": torch.cat([LINE.new_tensor([9.0, 7, 5, 4, 3, 2, -2]), LINE**4]),
    "twins": torch.cat([LINE.new_tensor([2.0, 1.99, 1.5]), LINE]),
    "copies": torch.cat([LINE.new_tensor([2.0, 2, 2, 1.5, 1.5, -3, -3]), LINE]),
    "even": LINE,
    "negative": -1 - LINE,
}


@pytest.mark.parametrize("name", BULK)
@pytest.mark.parametrize("which", KEYS)
@pytest.mark.parametrize(
    "count, block, basis",
    [(1, 1, None), (1, 1, 5), (5, 1, 13), (5, 1, None), (4, 3, 17), (7, 4, None)],
)
def test_restarts_and_blocks(name, which, count, block, basis):
    operator = entries(BULK[name])
    if name == "isolated" and which == "smallest":
        pytest.skip("the second lowest is one of many zeros, which no tolerance bounds")
    options = {"which": which, "block": block, "basis": basis, "tolerance": 1e-5}
    found = lanczos(operator, count, **options)
    check(found, operator, BULK[name], which, 1e-5)


@pytest.mark.slow
def test_copies_are_counted_from_every_seed():
    operator = entries(BULK["copies"])
    for seed in range(30):
        found = lanczos(operator, 4, generator=seeded(seed))
        assert found.values == pytest.approx(
            torch.tensor([2.0, 2, 2, 1.5]).numpy(), 1e-6
        )


def test_one_vector_sees_one_copy_without_confirmation():
    found = lanczos(entries(BULK["copies"]), 2, confirm=False)
    assert found.values.tolist() == pytest.approx([2, 1.5], rel=1e-6)


def products_of_both(operator, which, tolerance, seed):
    slow = power_method(
        operator,
        which=which,
        tolerance=tolerance,
        check_every=1,
        max_iterations=5000,
        generator=seeded(seed),
    )
    fast = lanczos(
        operator, which=which, tolerance=tolerance, generator=seeded(seed)
    )  # fmt: skip
    assert fast.converged
    return slow.iterations, fast.products


SPECTRA = {
    "uniform": lambda r: r,
    "both signs": lambda r: 2 * r - 1,
    "negative": lambda r: -r - 0.1,
    "tail": lambda r: r**8 + 0.01,
    "narrow": lambda r: 1 + 1e-3 * r,
    "heavy tail": lambda r: torch.tan(1.5 * (2 * r - 1)),
    "few outliers": lambda r: torch.where(r > 0.97, 5 * r, 1.0),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 100])
def test_never_more_products_than_the_power_method(name, size):
    for seed in range(4):
        r = torch.rand(size, generator=seeded(seed), dtype=torch.float64)
        for which in KEYS:
            for tolerance in (1e-2, 1e-4):
                operator = entries(SPECTRA[name](r))
                slow, fast = products_of_both(operator, which, tolerance, seed)
                assert fast <= slow


def test_a_fifth_of_the_products_where_the_top_two_are_within_a_hundredth():
    for seed in range(5):
        r = torch.rand(300, generator=seeded(seed), dtype=torch.float64)
        operator = entries(torch.cat([r, r.new_tensor([2.0, 1.98])]))
        slow, fast = products_of_both(operator, "algebraic", 1e-4, seed)
        assert fast * 5 <= slow


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_the_largest_is_negative_where_the_quotients_spectrum_is(method):
    operator, values = negative_quotient()
    for seed in range(5):
        options = {"tolerance": 1e-6, "generator": seeded(seed)}
        if method == "lanczos":
            found = lanczos(operator, 3, **options)
            check(found, operator, values, "algebraic", 1e-6, scale=1e3)
            assert (operator.null.T @ found.vectors).abs().max() < 1e-12
        else:
            pair = power_method(operator, which="algebraic", **options)
            assert pair.converged and pair.value == pytest.approx(-1, rel=1e-6)


def test_deflation():
    operator = symmetric(5, 4, 3, 2, 1, 0, -1, -2)
    values, vectors = torch.linalg.eigh(operator.to_dense())
    known = vectors[:, -2:] @ torch.tensor([[1.0, 2, 3], [1, 1, 1]]).double()
    found = lanczos(operator, 2, deflate=known, tolerance=1e-9)
    check(found, operator, [3, 2, 1, 0, -1, -2], "algebraic", 1e-9)
    top = lanczos(operator, deflate=vectors[:, -1], start=vectors.sum(1))
    assert top.values.item() == pytest.approx(4)
    with pytest.raises(ValueError, match="count=7, but only 6 directions are left"):
        lanczos(operator, 7, deflate=known)
    with pytest.raises(ValueError, match="no direction is left after projection"):
        lanczos(operator, deflate=vectors)


def test_deflation_beside_null_directions():
    operator, values = negative_quotient()
    known = torch.randn(40, 2, generator=seeded(1), dtype=torch.float64)
    known = torch.cat([known, operator.null[:, :1]], dim=1)
    span = torch.linalg.qr(torch.cat([known[:, :2], operator.null], 1))[0]
    beside = torch.eye(40).double() - span @ span.T
    exact = torch.linalg.eigvalsh(beside @ operator.matrix @ beside)
    found = lanczos(operator, 35, deflate=known)
    assert torch.allclose(found.values, exact[:35].flip(0), rtol=1e-6)


def test_a_start_that_misleads_is_found_out():
    operator = entries(BULK["isolated"])
    lowest = torch.zeros(operator.size).double()
    lowest[6] = 1
    found = lanczos(operator, start=lowest)
    assert found.values.item() == pytest.approx(9)
    trusted = lanczos(operator, start=lowest, confirm=False)
    assert (trusted.values.item(), trusted.products) == (-2, 1)


def test_a_good_start_saves_products():
    operator = symmetric(*LINE.tolist())
    cold = lanczos(operator, 3)
    warm = lanczos(operator, 3, start=cold.vectors)
    assert warm.converged and warm.products < cold.products / 2
    check(warm, operator, LINE, "algebraic", 1e-4)


def test_what_is_not_converged_says_so():
    operator = entries(LINE)
    found = lanczos(operator, 3, tolerance=1e-10, max_products=10)
    assert not found.converged and found.products == 10
    assert (found.residuals > 1e-10).all() and len(found.values) == 3
    image = operator @ found.vectors - found.values * found.vectors
    assert torch.allclose(image.norm(dim=0), found.residuals, rtol=1e-8)


def test_the_basis_stays_orthonormal_through_restarts():
    operator = Diagonal(*(10.0 ** -torch.arange(12.0)).tolist(), size=200)
    space = Krylov(operator, 30, None, seeded(0), "test")
    space.inject(1)
    for _ in range(60):
        if space.count == space.capacity:
            space.restart(space.ritz(lambda values: values).first(10))
        if not len(space.pending):
            space.inject(1)
        space.expand(space.pending[:1])
        used = space.vectors[: space.count]
        assert (used @ used.T - torch.eye(space.count)).abs().max() < 1e-13


class Asymmetric(qn.Operator):
    def _matvec(self, v):
        return torch.linspace(1, 2, self.size).double() * v + 1e-3 * v.roll(1)


class Drifting(qn.Operator):
    """Every product differs from the last by a thousandth."""

    factor = 1.0

    def _matvec(self, v):
        self.factor += 1e-3
        return self.factor * torch.linspace(1, 2, self.size).double() * v


def test_operators_that_are_not_symmetric_or_not_functions_are_refused():
    for kind in (Asymmetric, Drifting):
        operator = kind(50, torch.float64, "cpu")
        with pytest.raises(
            ValueError, match="the operator is not symmetric, or not the same at every"
        ):
            lanczos(operator)


class Late(qn.Operator):
    """NaN from the third product on."""

    calls = 0

    def _matvec(self, v):
        self.calls += 1
        return torch.linspace(1, 2, self.size).double() * v / (self.calls < 3)


def test_refusals():
    operator = symmetric(1, 2, 3)
    for options, message in [
        ({"count": 0}, "count must be an integer of at least 1, got 0"),
        ({"count": 4}, "count=4 must lie between 1 and the size, 3"),
        ({"which": "largest"}, "'smallest' or 'magnitude', got 'largest'"),
        ({"tolerance": 0}, "tolerance must be above 0 and finite, got 0"),
        ({"block": 0}, "block must be an integer of at least 1, got 0"),
        ({"count": 2, "max_products": 1}, "every eigenvalue needs"),
        ({"basis": 2}, "basis=2 is too small, count=1 and block=1 need 5"),
        ({"start": torch.ones(2).double()}, r"start has shape \(2,\), it needs \(3,\) or"),
        ({"start": torch.ones(3, 3).double()}, "with m at most 2"),
        ({"start": torch.ones(3)}, "start is torch.float32 on cpu, the operator is"),
        ({"start": torch.zeros(3).double()}, "nothing is left of the start"),
        ({"start": torch.ones(3).double() / 0}, "start has NaN or infinite"),
        ({"deflate": torch.ones(4, 1).double()}, r"deflate has shape \(4, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            lanczos(operator, **options)
    with pytest.raises(ValueError, match="lanczos: product 1 is NaN or infinite"):
        lanczos(NotANumber(2, torch.float64, "cpu"))
    with pytest.raises(ValueError, match="lanczos: product 3 is NaN or infinite"):
        lanczos(Late(50, torch.float64, "cpu"))
    with pytest.raises(ValueError, match="the operator has size 0"):
        lanczos(NotANumber(0, torch.float64, "cpu"))


def test_the_power_method_finds_the_smallest():
    for values in ((5, 3, -1, 0), (1, 2, 3), (-5, -3), (5, 4, 1)):
        operator = symmetric(*values)
        pair = power_method(operator, which="smallest", tolerance=1e-9)
        assert pair.converged and pair.value == pytest.approx(min(values), rel=1e-9)
        residual = operator @ pair.vector - pair.value * pair.vector
        assert residual.norm().item() <= 1e-8


def test_the_power_method_refuses_a_start_without_any_direction():
    operator, _ = negative_quotient()
    with pytest.raises(ValueError, match="lies in the null directions"):
        power_method(operator, start=operator.null[:, 0])


# Spectral density


def test_median_products_of_a_confirmation_are_moderate():
    """Ten outliers over a bulk: the second search costs less than half of the first."""
    ratios = []
    for seed in range(9):
        r = torch.rand(2000, generator=seeded(seed), dtype=torch.float64)
        operator = Diagonal(*(2 + torch.arange(10.0)).tolist(), *r.tolist(), size=2010)
        counts = [
            lanczos(operator, 10, confirm=c, generator=seeded(seed)).products
            for c in (False, True)
        ]
        ratios.append(counts[1] / counts[0])
    assert median(ratios) < 1.5


def test_nearly_scalar_operators_are_not_called_asymmetric():
    for seed in range(40):
        noise = torch.randn(30, 30, generator=seeded(seed), dtype=torch.float64)
        matrix = torch.eye(30).double() + 1e-6 * (noise + noise.T)
        found = lanczos(qn.DenseOperator(matrix), 2, generator=seeded(seed))
        assert found.converged and (found.values - 1).abs().max() < 1e-4
