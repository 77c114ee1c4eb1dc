"""Functions of one variable that the geometry is made of, against exact series; kinds of blocks."""

from fractions import Fraction
from math import factorial, pi

import pytest
import torch
from torch.testing import assert_close

from quotientnet.manifolds.blocks import _RUN, _kind
from quotientnet.manifolds.cylinders import _squared_angle
from quotientnet.manifolds.entire import cos_sqrt, sinc_sqrt, versine_sqrt

EPS = torch.finfo(torch.float64).eps
FUNCTIONS = [(cos_sqrt, 0, 1), (sinc_sqrt, 1, 1), (versine_sqrt, 2, -1)]


def series(x: float, shift: int) -> float:
    """``Σ_k (−x)^k / (2k + shift)!`` in fractions."""
    terms = (Fraction(-x) ** k / factorial(2 * k + shift) for k in range(40))
    return float(sum(terms))


@pytest.mark.parametrize("function, shift, sign", FUNCTIONS)
@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-9, 0.01, 0.0499999, 0.05, 0.0500001, 0.3, 2.0])
def test_entire_functions_to_the_last_digits(function, shift, sign, x):
    found = function(torch.tensor([x], dtype=torch.float64))
    assert found.item() == pytest.approx(sign * series(x, shift), rel=4 * EPS)


@pytest.mark.parametrize("function, shift, sign", FUNCTIONS)
def test_their_derivatives_are_finite_everywhere(function, shift, sign):
    """The branch that is not taken divides by nothing."""
    x = torch.tensor([0.0, 0.01, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    h = 1e-6
    expected = [sign * (series(v + h, shift) - series(v - h, shift)) / (2 * h) for v in x.tolist()]
    assert_close(slope.detach(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)
    assert torch.isfinite(second).all()


def arctangent(slope: Fraction) -> Fraction:
    """By its series, for slopes up to a tenth."""
    return sum((-1) ** k * slope ** (2 * k + 1) / (2 * k + 1) for k in range(12))


@pytest.mark.parametrize("along", [1.0, 0.37, 25.0])
@pytest.mark.parametrize("slope", [1e-12, 1e-4, 5e-4, 9.99e-4, 1.001e-3, 3e-2, 0.1])
def test_squared_angles_to_the_last_digits(slope, along):
    across2 = (slope * along) ** 2
    exact = arctangent(Fraction(across2**0.5) / Fraction(along))
    arguments = [torch.tensor([v], dtype=torch.float64) for v in (across2, along)]
    found, ratio = _squared_angle(*arguments, torch.ones(1).double())
    assert found.item() == pytest.approx(float(exact**2), rel=6 * EPS)
    assert ratio.item() == pytest.approx(float(exact) / across2**0.5, rel=6 * EPS)
    back, ratio = _squared_angle(*arguments, -torch.ones(1).double())
    assert back.item() == pytest.approx((pi - float(exact)) ** 2, rel=6 * EPS)
    assert ratio.item() == pytest.approx((pi - float(exact)) / across2**0.5, rel=6 * EPS)


def test_squared_angles_where_points_coincide():
    across2 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    along = torch.ones(1, dtype=torch.float64, requires_grad=True)
    found, ratio = _squared_angle(across2, along, torch.ones(1).double())
    slopes = torch.autograd.grad(found.sum(), (across2, along))
    assert found.item() == 0.0 and ratio.item() == 1.0
    assert [slope.item() for slope in slopes] == [1.0, 0.0]
    found, ratio = _squared_angle(across2, along, -torch.ones(1).double())
    assert found.item() == pi**2 and ratio.item() == pi


@pytest.mark.parametrize(
    "shape, blocks, kind",
    [
        ((3, 4), (3, 1), "rows"), ((3, 4), (1, 4), "general"), ((3, 4), (3, 4), "rows"),
        ((3, 4, 2), (3, 1, 1), "rows"), ((3, 4, 2), (3, 4, 1), "rows"),
        ((3, 4, 2), (3, 1, 2), "general"), ((3, 4), (1, 1), "small"), ((), (), "small"),
        ((_RUN,), (1,), "small"), ((_RUN + 1,), (1,), "whole"),
        ((0, 4), (1, 1), "general"), ((3, 0), (3, 1), "general"),
    ],
)  # fmt: skip
def test_how_inner_products_of_a_tensor_are_computed(shape, blocks, kind):
    assert _kind(shape, blocks) == kind
