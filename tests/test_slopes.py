"""Orders read off errors, and gradients, Hessians and operators that are wrong on purpose."""

import math

import geoopt
import pytest
import torch

import quotientnet as qn
from quotientnet.testing import (
    OPERATOR_LAWS,
    Slope,
    check_derivatives,
    check_operator,
    fit_slope,
    measure_slope,
)
from quotientnet.testing.slopes import STEPS

EPS = 2.0**-52


def noise(k):
    """Numbers between 0.5 and 1.5 that look random."""
    return 0.5 + math.modf(math.sin(12.9898 * k) * 43758.5453)[0] % 1.0


# -- fits ---


@pytest.mark.parametrize("order", [0.5, 1, 2, 3, 4])
def test_the_order_of_a_power_with_noise(order):
    errors = [h**order + 1e-15 * noise(k) for k, h in enumerate(STEPS)]
    slope = fit_slope(STEPS, errors, order, rounding=1e-14)
    assert slope.order == pytest.approx(order, abs=0.02)
    assert slope.violation < 0.02


@pytest.mark.parametrize("small", [1e-1, 1e-3, 1e-5])
def test_the_order_is_that_of_the_smallest_steps(small):
    """A tiny linear part decides, though the cubic one fills most of the range."""
    slope = measure_slope(lambda h: small * h + h**3, 3, rounding=1e-15)
    assert slope.order == pytest.approx(1, abs=0.02)
    assert slope.violation == pytest.approx(2, abs=0.02)


def test_the_order_does_not_depend_on_what_is_wanted():
    errors = [h**2 + 1e-4 * h for h in STEPS]
    orders = {
        fit_slope(STEPS, errors, wanted, rounding=1e-15).order for wanted in (1, 2, 3)
    }
    assert len(orders) == 1


def test_what_is_exact_has_infinite_order():
    errors = [1e-16 * noise(k) for k in range(len(STEPS))]
    assert fit_slope(STEPS, errors, 3, rounding=1e-15).order == math.inf
    assert fit_slope(STEPS, [0.0] * len(STEPS), 3).violation == 0


@pytest.mark.parametrize("order", [0.05, 0.13, 0.2, 0.4])
def test_what_hardly_falls_is_not_taken_for_exact(order):
    slope = fit_slope(STEPS, [h**order for h in STEPS], 1, rounding=1e-15)
    assert slope.order < order + 0.01


def test_what_does_not_fall_has_order_zero():
    assert fit_slope(STEPS, [0.3] * len(STEPS), 1, rounding=1e-15).violation == 1


def test_large_steps_may_fail_and_small_ones_may_not():
    errors = [math.inf] * 3 + [h**2 for h in STEPS[3:]]
    assert fit_slope(STEPS, errors, 2, rounding=1e-15).order == pytest.approx(2)
    lost = fit_slope(STEPS, errors[:10] + [math.nan] + errors[11:], 2, rounding=1e-15)
    assert math.isnan(lost.order) and not lost.violation <= 0.1


@pytest.mark.parametrize("rounding, points", [(1e-14, 6), (1e-4, 4), (1e-3, 3)])
def test_few_errors_above_rounding_make_a_shorter_window(rounding, points):
    slope = fit_slope(STEPS, [0.3 * h**2 for h in STEPS], 2, rounding=rounding)
    low, high = slope.window
    assert slope.order == pytest.approx(2)
    assert 3 * math.log10(high / low) == pytest.approx(points - 1)
    assert (
        fit_slope(STEPS, [0.3 * h**2 for h in STEPS], 2, rounding=0.02).order
        == math.inf
    )


def test_a_dip_does_not_end_the_range():
    """An error that changes its sign on the way."""
    errors = [abs(h - 0.1) * h**2 for h in STEPS]
    assert fit_slope(STEPS, errors, 2, rounding=1e-15).order == pytest.approx(
        2, abs=0.01
    )


@pytest.mark.parametrize(
    "steps, errors", [(STEPS[:6], [1.0] * 6), (STEPS[::-1], STEPS), (STEPS, STEPS[1:])]
)
def test_bad_steps_are_refused(steps, errors):
    with pytest.raises(ValueError, match="fit_slope: needs more than 6"):
        fit_slope(steps, errors, 1)


def test_a_slope_says_what_it_saw():
    slope = measure_slope(lambda h: h**2, 3, rounding=1e-15)
    assert isinstance(slope, Slope)
    assert "order 2.00 between steps" in str(slope) and "3 wanted" in str(slope)


# -- derivatives ---

SPHERE = geoopt.Sphere()
MATRIX = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
MATRIX = MATRIX + MATRIX.T
X = SPHERE.projx(torch.arange(1.0, 6.0).double())


def f(x):
    return x @ MATRIX @ x + (x**3).sum()


def egrad(x):
    return 2 * MATRIX @ x + 3 * x**2


def hessian(u):
    """By hand: the projected second derivative less the normal part of the gradient."""
    return SPHERE.proju(X, 2 * MATRIX @ u + 6 * X * u - (X @ egrad(X)) * u)


def failed(**options):
    options = {"hessian": hessian, **options}
    verdicts = check_derivatives(f, options.pop("manifold", SPHERE), X, **options)
    return [v.law for v in verdicts if not v.holds]


def test_derivatives_by_hand_are_right():
    assert failed() == []
    assert failed(gradient=SPHERE.proju(X, egrad(X))) == []
    assert failed(hessian=None) == []


def rolled(u):
    return SPHERE.proju(X, u.roll(1))


WRONG = {
    "gradient_is_tangent": {"gradient": egrad(X)},
    "gradient_makes_a_model_of_second_order": {
        "gradient": SPHERE.proju(X, egrad(X)) + 1e-4 * rolled(MATRIX[0])
    },
    "hessian_is_tangent": {
        "hessian": lambda u: hessian(u) + 1e-6 * X * (MATRIX[0] @ u)
    },
    "hessian_is_linear": {"hessian": lambda u: hessian(u) * (1 + 1e-6 * u[0])},
    "hessian_is_self_adjoint": {"hessian": lambda u: hessian(u) + 1e-6 * rolled(u)},
    "hessian_makes_a_model_of_third_order": {
        "hessian": lambda u: SPHERE.proju(X, 2 * MATRIX @ u + 6 * X * u)
    },
}


@pytest.mark.parametrize("law", WRONG)
def test_wrong_derivatives_are_caught_by_name(law):
    assert law in failed(**WRONG[law])


def test_a_flat_hessian_is_right_where_the_gradient_vanishes_only():
    def g(x):
        return (x - X) @ MATRIX @ (x - X)

    for x, right in ((X, True), (SPHERE.projx(X.flip(0)), False)):
        normal = 2 * x @ MATRIX @ (x - X)

        def exact(u):
            return SPHERE.proju(x, 2 * MATRIX @ u) - normal * u

        def flat(u):
            return SPHERE.proju(x, 2 * MATRIX @ u)

        for candidate, holds in ((exact, True), (flat, right)):
            verdicts = check_derivatives(g, SPHERE, x, hessian=candidate)
            assert all(v.holds for v in verdicts) == holds


def test_the_verdict_has_the_slope_and_the_seed_of_the_worst_direction():
    flat = WRONG["hessian_makes_a_model_of_third_order"]["hessian"]
    verdict = check_derivatives(f, SPHERE, X, hessian=flat, seed=4)[-1]
    assert verdict.slope.order == pytest.approx(2, abs=0.1) and verdict.tried == 3
    assert 4 <= verdict.seed < 7 and "order 2.0" in str(verdict)
    again = check_derivatives(
        f, SPHERE, X, hessian=flat, seed=verdict.seed, directions=1
    )
    assert again[-1] == verdict or again[-1].violation == verdict.violation


def test_orders_need_double_precision():
    with pytest.raises(ValueError, match="x.double"):
        check_derivatives(f, SPHERE, X.float())


# -- operators ---


class Wrong(qn.Operator):
    """A diagonal matrix with one fault."""

    def __init__(self, size=6, **faults):
        super().__init__(size, torch.float64, torch.device("cpu"))
        self.diagonal = torch.arange(1.0, size + 1).double()
        self.count = 0
        for name, fault in faults.items():
            setattr(self, name, fault.__get__(self))

    def _matvec(self, v):
        return self.diagonal * v


def counted(self, v):
    self.count += 1
    return self.diagonal * v * (1 + 1e-6 * self.count)


def written(self, v):
    return v.mul_(self.diagonal)


class Careless(Wrong):
    """Checks nothing."""

    def __matmul__(self, v):
        return (
            self.diagonal[: len(v)].to(v) * v if v.ndim == 1 else super().__matmul__(v)
        )


BROKEN_OPERATORS = {
    "operator_is_symmetric": Wrong(_matvec=lambda s, v: s.diagonal * v.roll(1)),
    "operator_is_linear": Wrong(_matvec=lambda s, v: s.diagonal * v.abs()),
    "operator_on_a_block_is_columns": Wrong(
        _matmat=lambda s, v: s.diagonal[:, None] * v.flip(1)
    ),
    "operator_repeats_itself": Wrong(_matvec=counted),
    "operator_leaves_its_argument_alone": Wrong(_matvec=written),
    "operator_keeps_shape_and_dtype": Careless(),
    "known_null_directions_are_null": Wrong(
        project=lambda s, v: v - v.mean(0, keepdim=True)
    ),
}


def test_every_operator_law_has_a_broken_operator():
    assert set(BROKEN_OPERATORS) == set(OPERATOR_LAWS)


@pytest.mark.parametrize("law", OPERATOR_LAWS)
def test_broken_operators_are_caught_by_name(law):
    assert all(v.holds for v in check_operator(Wrong()))
    failed = [v.law for v in check_operator(BROKEN_OPERATORS[law]) if not v.holds]
    assert law in failed


def test_the_operators_of_this_package_hold():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    ).double()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    objective = qn.Objective(
        model, torch.nn.CrossEntropyLoss(), (x, torch.arange(9) % 3)
    )
    point = objective.at(objective.layout.flatten(model))
    manifold = qn.NodeWiseQuotient(qn.discover(model, x))
    where = objective.layout.mask("0.weight")
    operators = [
        point.hessian, point.ggn, manifold.riemannian_hessian(point),
        manifold.riemannian_ggn(point), 2 * point.hessian - point.ggn,
        point.hessian.restrict(where), qn.DenseOperator(MATRIX),
    ]  # fmt: skip
    for operator in operators:
        for verdict in check_operator(operator):
            verdict.require()
    with pytest.raises(TypeError, match="check_operator: operator must be an Operator"):
        check_operator(MATRIX)
