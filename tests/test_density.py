"""Spectral densities against dense spectra, and the rate at which their errors cover."""

import pytest
import torch
from scipy.stats import binom
from scipy.stats import t as student
from test_curvature import Diagonal, NotANumber, symmetric
from test_spectrum import Quotient, negative_quotient, seeded

import quotientnet as qn
from quotientnet.curvature import spectral_density

SPREAD = (torch.linspace(-1, 4, 40, dtype=torch.float64) ** 3).tolist()


SAMPLES = 30


def covered(hits, trials=200, level=0.95):
    """Whether a count of covered truths is likely, at 1 in 1,000, for intervals of that level."""
    low, high = binom.interval(0.999, trials, level)
    return low <= hits <= high


def test_density_covers_the_truth_at_the_rate_of_its_standard_error():
    quantile = student.ppf(0.975, SAMPLES - 1)
    values = torch.tensor(SPREAD[::3], dtype=torch.float64)
    operator = symmetric(*values.tolist())
    grid = torch.tensor([0.3, 10.0, 40.0], dtype=torch.float64)
    mean = torch.exp(-values / 20).mean().item()
    below = (values[:, None] <= grid).double().mean(0)
    bumps = torch.exp(-(((grid - values[:, None]) / 5) ** 2) / 2).mean(0)
    bumps /= 5 * (2 * torch.pi) ** 0.5
    hits = torch.zeros(7)
    for seed in range(200):
        found = spectral_density(
            operator, samples=SAMPLES, steps=14, block=SAMPLES, generator=seeded(seed)
        )
        e = found.expectation(lambda x: torch.exp(-x / 20))
        hits[0] += abs(e.value - mean) <= quantile * e.error
        fraction, error = found.cumulative(grid)
        hits[1:4] += abs(fraction - below) <= quantile * error
        height, error = found.density(grid, 5.0)
        hits[4:] += abs(height - bumps) <= quantile * error
    assert all(covered(h) for h in hits.tolist()), hits


def test_quadrature_is_exact_for_polynomials_and_smooth_functions():
    operator = symmetric(*SPREAD)
    few = spectral_density(operator, steps=4, samples=5, generator=seeded(0))
    full = spectral_density(operator, steps=40, samples=5, generator=seeded(0))
    for power in range(8):
        a = few.expectation(lambda x: (x / 64) ** power).value
        b = full.expectation(lambda x: (x / 64) ** power).value
        assert a == pytest.approx(b, rel=1e-10)
    assert few.expectation(lambda x: (x / 64) ** 8).value != pytest.approx(b, rel=1e-4)


def test_few_distinct_eigenvalues_end_a_probe_early():
    operator = Diagonal(*[3.0] * 100, *[-1.0] * 400, rest=0.0)
    found = spectral_density(operator, samples=8, block=3, generator=seeded(1))
    assert found.products == 24 and (found.weights[:, 3:] == 0).all()
    exact = torch.tensor([-1.0, 0, 3]).double()
    assert (found.nodes[:, :3] - exact).abs().max() < 1e-12
    probes = found.weights[:, :3]
    assert (probes.mean(0) - torch.tensor([0.4, 0.5, 0.1])).abs().max() < 0.02
    assert found.expectation(lambda x: x * 0 + 1).value == pytest.approx(1)
    zero = spectral_density(qn.DenseOperator(torch.zeros(4, 4)), samples=2)
    assert zero.products == 2 and zero.cumulative(torch.tensor([0.0]))[0] == 1


def test_density_integrates_to_one_and_cumulates():
    found = spectral_density(symmetric(*SPREAD), samples=4, steps=20)
    grid = torch.linspace(-30, 100, 2000, dtype=torch.float64)
    height, error = found.density(grid, 3.0)
    assert torch.trapezoid(height, grid).item() == pytest.approx(1, abs=1e-6)
    fraction = found.cumulative(grid)[0]
    assert fraction[0] == 0 and fraction[-1].item() == pytest.approx(1)
    assert (fraction.diff() >= 0).all() and (error >= 0).all()


def test_density_is_that_of_the_quotient():
    operator, values = negative_quotient()
    found = spectral_density(operator, samples=40, steps=40)
    mean = found.expectation(lambda x: x)
    assert found.nodes.max() < -0.99 or (found.nodes[found.weights > 0] < -0.99).all()
    assert abs(mean.value - values.mean().item()) <= 4 * mean.error
    everything = Quotient(torch.eye(2).double(), torch.eye(2).double())
    with pytest.raises(ValueError, match="no direction outside its null directions"):
        spectral_density(everything)


def test_density_does_not_depend_on_the_block():
    operator = symmetric(*SPREAD)
    one, four = (spectral_density(operator, steps=15, block=b) for b in (1, 4))
    assert torch.allclose(one.nodes, four.nodes, rtol=1e-9)
    assert torch.allclose(one.weights, four.weights, atol=1e-9)


def test_density_refusals():
    operator = symmetric(1, 2)
    with pytest.raises(ValueError, match="samples must be at least 2"):
        spectral_density(operator, samples=1)
    with pytest.raises(ValueError, match="a product is NaN or infinite"):
        spectral_density(NotANumber(2, torch.float64, "cpu"))
    found = spectral_density(operator)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        found.density(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="function must be finite at every node"):
        found.expectation(lambda x: torch.log(x - 5))
