"""What an optimisation promises beside the optimum: batches, reasons, refusals, no changes."""

import geoopt
import pytest
import torch
from cases import CASES

import quotientnet as qn
from quotientnet.optimization import frechet_mean, maximize, minimize
from quotientnet.optimization.directions import Conjugate
from quotientnet.optimization.paths import path_on
from quotientnet.optimization.problem import Problem

METHODS = ["gradient", "conjugate-gradient", "power", "trust-region"]
SPHERE, LINE = geoopt.Sphere(), geoopt.Euclidean(ndim=1)
SLOPES = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)


def starts(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1)


def quartic(x):
    return (SLOPES * x.square()).sum(-1) + (x**4).sum(-1)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_a_loop(method):
    x = starts(7, 4)
    batch = maximize(quartic, SPHERE, x, method=method, tolerance=1e-10)
    for row in range(7):
        single = maximize(quartic, SPHERE, x[row], method=method, tolerance=1e-10)
        assert torch.equal(single.point, batch.points[row])
        assert single.value == float(batch.values[row])
        assert single.reason == batch.reasons[row]
        norms = batch.history.gradient_norms[:, row]
        kept = norms[~torch.isnan(norms)]
        assert torch.equal(kept, single.history.gradient_norms[:, 0])
    assert float(batch.values.max()) - batch.value < 1e-13
    assert torch.equal(batch.point, batch.points[batch.best])


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_have_stopped_are_not_evaluated_again(method):
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return quartic(x)

    top = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    x = torch.cat([top[None], starts(3, 4)])
    found = maximize(counted, SPHERE, x, method=method, tolerance=1e-8)
    assert sizes[0] == 4 and max(sizes[3:]) <= 3  # two more calls look at the start
    assert torch.equal(found.points[0], top)
    assert found.evaluations.values == sum(sizes)


@pytest.mark.parametrize("method", METHODS)
def test_runs_repeat_and_change_nothing(method):
    x = starts(3, 4).requires_grad_()
    before, state = x.detach().clone(), torch.random.get_rng_state()
    first = maximize(quartic, SPHERE, x, method=method)
    with torch.no_grad():
        second = maximize(quartic, SPHERE, x, method=method)
        assert not torch.is_grad_enabled()
    assert torch.equal(first.points, second.points)
    assert torch.equal(x.detach(), before) and x.grad is None and x.requires_grad
    assert not first.points.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.inference_mode():
        third = maximize(quartic, SPHERE, x.detach(), method=method)
    assert torch.equal(first.points, third.points)


def test_single_points_can_be_looped_over():
    def single(x):
        assert x.shape == (4,)
        return quartic(x)

    x = starts(3, 4)
    looped = maximize(single, SPHERE, x, batched=False)
    assert torch.equal(looped.points, maximize(quartic, SPHERE, x).points)
    assert torch.equal(maximize(single, SPHERE, x[0]).point, looped.points[0])


@pytest.mark.parametrize("dtype, reach", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_the_dtype_is_the_starts(dtype, reach):
    found = maximize(
        lambda x: (SLOPES.to(dtype) * x.square()).sum(-1), SPHERE, starts(4).to(dtype)
    )
    assert found.point.dtype == dtype and abs(found.value - 5) < reach
    assert found.point[3].abs() > 1 - reach


class TestReasons:
    def test_gradient(self):
        found = maximize(quartic, SPHERE, starts(4), tolerance=1e-3)
        assert found.reason == "gradient norm" and found.gradient_norm <= 1e-3
        exact = maximize(quartic, SPHERE, found.point, tolerance=1e-3)
        assert exact.iterations == 0 and torch.equal(exact.point, found.point)

    @pytest.mark.parametrize("method", METHODS)
    def test_iterations(self, method):
        found = maximize(quartic, SPHERE, starts(4), method=method, max_iterations=2)
        assert found.reason == "maximum number of iterations"
        assert found.iterations == 2 and not found.converged
        assert len(found.history.values) == 3

    @pytest.mark.parametrize("method", METHODS)
    def test_precision(self, method):
        found = maximize(
            quartic,
            SPHERE,
            starts(4),
            method=method,
            tolerance=0.0,
            max_iterations=4000,
        )
        end = ("no further progress possible in this precision", "gradient norm")
        assert found.reason in end
        assert found.gradient_norm < 1e-13
        assert found.iterations < 1000

    @pytest.mark.parametrize(
        "method", ["gradient", "conjugate-gradient", "trust-region"]
    )
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite_neighbours_shorten_the_step(self, method, bad):
        # Finite below 1 only, with the minimum at 0.9: the first unit steps leave the domain.
        def bounded(x):
            value = (x - 0.9).square().sum(-1)
            return torch.where((x < 1).all(-1), value, bad + 0 * value)

        start = torch.full((2,), -5.0, dtype=torch.float64)
        found = minimize(bounded, LINE, start, method=method, tolerance=1e-11)
        assert found.converged and (found.point - 0.9).abs().max() < 1e-10

    @pytest.mark.parametrize(
        "method", ["gradient", "conjugate-gradient", "trust-region"]
    )
    def test_no_finite_neighbour(self, method):
        start = torch.tensor([1.0, 1.0], dtype=torch.float64)

        def lonely(x):
            alone = (x == start).all(-1)
            return torch.where(alone, x.sum(-1), torch.full_like(x[..., 0], torch.nan))

        found = minimize(lonely, LINE, start, method=method, hessian="differences")
        assert found.reason == "no finite value near the point"
        assert torch.equal(found.point, start) and not found.converged


def test_points_outside_a_quotient_are_not_accepted():
    # In one step of w + ξ the weights would change sign, where the loss is smaller still.
    manifold = CASES["node-wise-one-layer"].build()
    w = torch.ones(manifold.layout.size, dtype=torch.float64)
    for along in ("retraction", "geodesic"):
        found = minimize(
            lambda x: (x + 3).square().sum(-1),
            manifold,
            w,
            along=along,
            max_iterations=20,
        )
        assert (found.point > 0).all() and found.value < 9.1 * len(w)


REFUSED = {
    "method": (dict(method="newton"), "method must be one of"),
    "line_search": (dict(line_search="exact"), "line_search must be one of"),
    "hessian": (dict(hessian="bfgs"), "hessian must be one of"),
    "along": (dict(along="line"), "along must be"),
    "tolerance": (dict(tolerance=-1.0), "tolerance must be at least 0"),
    "NaN tolerance": (dict(tolerance=float("nan")), "tolerance must be at least 0"),
    "iterations": (dict(max_iterations=-1), "max_iterations must be .* at least 0"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"maximize: .*{message}"):
        maximize(quartic, SPHERE, starts(4), **options)


FUNCTIONS = {
    "shape": (lambda x: x, r"function returned \(1, 4\).*values of shape \(1,\)"),
    "number": (lambda x: 1.0, "function returned .*float"),
    "detached": (lambda x: quartic(x.detach()), "not differentiable in the point"),
    "constant": (lambda x: torch.ones(len(x)), "not differentiable in the point"),
    "NaN": (lambda x: quartic(x) * torch.nan, "not finite at start 0: value nan"),
}


@pytest.mark.parametrize("function, message", FUNCTIONS.values(), ids=FUNCTIONS)
def test_bad_functions_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        maximize(function, SPHERE, starts(1, 4))


def test_bad_starts_and_manifolds_are_refused():
    x = starts(4)
    with pytest.raises(
        qn.NotOnManifoldError, match="off by up to .*use manifold.projx"
    ):
        maximize(quartic, SPHERE, 2 * x)
    with pytest.raises(ValueError, match="start has shape"):
        maximize(quartic, SPHERE, x[None, None])
    with pytest.raises(TypeError, match="start must be a floating-point tensor"):
        maximize(quartic, SPHERE, torch.ones(4, dtype=torch.long))
    with pytest.raises(TypeError, match="must be a geoopt.Manifold, got str"):
        maximize(quartic, "sphere", x)
    with pytest.raises(ValueError, match=r"take Euclidean\(ndim=1\)"):
        minimize(lambda v: v.square().sum(), geoopt.Euclidean(), x)
    with pytest.raises(ValueError, match="no geodesics"):
        maximize(
            lambda v: v.sum((-1, -2)), geoopt.Stiefel(), torch.eye(3), along="geodesic"
        )


@pytest.mark.parametrize(
    "manifold, start",
    [
        (LINE, starts(4)),
        (geoopt.PoincareBall(), 0.3 * starts(4)),
        (CASES["node-wise-one-layer"].build(), torch.ones(9, dtype=torch.float64)),
    ],
    ids=["euclidean", "ball", "quotient"],
)
def test_power_steps_need_a_set_of_constant_norm(manifold, start):
    with pytest.raises(ValueError, match="'power' needs a set of constant norm"):
        maximize(lambda x: x.square().sum(-1), manifold, start, method="power")


def test_functions_with_one_derivative_need_differences():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return quartic(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, outer):
            (x,) = ctx.saved_tensors
            return outer[..., None] * (2 * SLOPES * x + 4 * x**3)

    manifold = CASES["balanced-mlp"].build()
    once = {
        "function": (Once.apply, SPHERE, starts(4)),
        "retraction": (
            lambda x: manifold.canonical(x).square().sum(-1),
            manifold,
            manifold.random(
                dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            ),
        ),
    }
    for case in once.values():
        with pytest.raises(ValueError, match="pass hessian='differences'"):
            maximize(*case, method="trust-region")
    found = maximize(
        Once.apply, SPHERE, starts(4), method="trust-region", hessian="differences"
    )
    assert found.converged and abs(found.value - 6) < 1e-12


def test_functions_that_are_not_invariant_are_refused_on_quotients():
    manifold = CASES["layer-scale-mlp"].build()
    w = manifold.origin(dtype=torch.float64)
    with pytest.raises(ValueError, match="minimize: the loss is not invariant"):
        minimize(lambda x: x.square().sum(-1) + x[..., 0], manifold, w)


def test_bad_means_are_refused():
    points = starts(3, 4)
    with pytest.raises(ValueError, match="points has shape"):
        frechet_mean(SPHERE, points[0])
    for weights in (torch.ones(2), -torch.ones(3), torch.zeros(3)):
        with pytest.raises(ValueError, match="weights must have shape"):
            frechet_mean(SPHERE, points, weights)


def test_conjugate_directions_are_tangent_where_they_begin():
    problem = Problem(
        lambda x: -quartic(x), path_on(SPHERE, None, "test"), 1, True, "test"
    )
    old, step = problem.at(starts(3, 4)), torch.tensor([0.3, 0.5, 0.7]).double()
    direction = -old.gradient + 0.1 * SPHERE.proju(old.point, starts(3, 4, seed=1))
    new = problem.trial(old.point, direction, step).after(old)
    following, _ = Conjugate().following(problem, old, new, direction, step)
    assert not torch.equal(following, -new.gradient)
    normal = (new.point * following).sum(-1).abs() / following.norm(dim=-1)
    assert normal.max() < 1e-14


def test_the_table_has_a_line_for_each_iteration():
    found = maximize(quartic, SPHERE, starts(4), method="trust-region")
    lines = str(found).splitlines()
    assert len(lines) == found.iterations + 3
    assert lines[0].split() == ["value", "gradient", "ratio", "order"]
    assert lines[-1].startswith("gradient norm; ")
    seen = []
    maximize(quartic, SPHERE, starts(4), callback=lambda *a: seen.append(a[0]))
    assert seen == list(range(1, len(seen) + 1)) and seen
