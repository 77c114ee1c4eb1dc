"""Disjoint boxes, and changes of parameter that are no symmetries."""

from math import exp, log, prod, sqrt

import pytest
import torch
from equivalents import seeded  # noqa: F401, an autouse fixture
from equivalents import LAW, architecture, chain, mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quotientnet as qn
from quotientnet import reparametrisation as rp


def two_layers(n1, n2):
    """A point and the group of T_α, with n1 and n2 weights."""
    layout = qn.ParameterLayout({"first": (n1,), "second": (n2,)})
    unit = qn.Unit("layer", 1, (qn.Scale("first", None), qn.Scale("second", None, -1)))
    generator = torch.Generator().manual_seed(n1 * 10 + n2)
    w = torch.randn(n1 + n2, generator=generator, dtype=torch.float64)
    return w, qn.ScalingGroup.from_units(layout, [unit])


@pytest.mark.parametrize("n1, n2", [(6, 2), (2, 6), (4, 4)])
@pytest.mark.parametrize("radius", [0.05, 100.0])
def test_the_boxes_are_those_of_theorem_2(n1, n2, radius):
    w, group = two_layers(n1, n2)
    boxes = rp.disjoint_boxes(w, group, radius)
    grows = w[:n1] if n1 >= n2 else w[n1:]
    largest = grows.abs().max().item()
    inner = min(radius, largest / 2)
    alpha = 2 * (largest + inner) / (largest - inner)
    assert boxes.radius == inner and boxes.alpha == pytest.approx(alpha)
    assert boxes.tensor == ("first" if n1 >= n2 else "second")
    assert boxes.log_growth == pytest.approx(abs(n1 - n2) * log(alpha))
    for k in range(4):
        factor = alpha**k if n1 >= n2 else alpha**-k
        scale = torch.cat([torch.full((n1,), factor), torch.full((n2,), 1 / factor)])
        box = boxes.box(k)
        torch.testing.assert_close(box.centre, w * scale)
        torch.testing.assert_close(box.half_widths, inner * scale.double())
        volume = prod((2 * box.half_widths).tolist())
        assert box.log_volume == pytest.approx(log(volume))
    total = sum(exp(boxes.box(k).log_volume) for k in range(5))
    assert boxes.log_volume(5) == pytest.approx(log(total))


@LAW
@given(
    n1=st.integers(1, 4), n2=st.integers(1, 4), radius=st.floats(1e-3, 10.0),
    j=st.integers(0, 6), k=st.integers(0, 6),
)  # fmt: skip
def test_disjointness_agrees_with_the_intervals(n1, n2, radius, j, k):
    w, group = two_layers(n1, n2)
    boxes = rp.disjoint_boxes(w, group, radius)
    a, b = boxes.box(j), boxes.box(k)
    apart = ((a.centre - b.centre).abs() > a.half_widths + b.half_widths).any()
    assert boxes.are_disjoint(j, k) == bool(apart) == (j != k)
    draws = a.sample(50, torch.Generator().manual_seed(j))
    assert a.contains(draws).all() and not (j != k and b.contains(draws).any())


def test_without_the_right_factor_boxes_meet():
    w, group = two_layers(6, 2)
    boxes = rp.disjoint_boxes(w, group, 0.05)
    largest = w[:6].abs().max().item()
    for spare, apart in ((1 + 1e-9, True), (1 - 1e-9, False)):
        factor = (largest + boxes.radius) / (largest - boxes.radius) * spare
        # On the second layer the intervals may be apart sooner, so take it away.
        single, alone = two_layers(6, 2)[0], two_layers(6, 2)[1]
        single[6:] = 0.0
        closer = rp.DisjointBoxes(
            alone,
            single,
            boxes.radius,
            torch.tensor([log(factor)], dtype=torch.float64),
            factor,
            "",
            0.0,
        )
        assert closer.are_disjoint(0, 1) is apart and not closer.are_disjoint(2, 2)


def test_volumes_add_up_without_limit_where_boxes_overflow():
    for sizes in ((6, 2), (4, 4)):
        w, group = two_layers(*sizes)
        boxes = rp.disjoint_boxes(w, group, 0.1)
        volumes = [boxes.log_volume(10**k) for k in range(12)]
        gaps = [b - a for a, b in zip(volumes, volumes[1:])]
        assert min(gaps) > log(10) - 1e-9
        assert boxes.are_disjoint(0, 10**12) and boxes.are_disjoint(10**12, 10**12 + 1)
        with pytest.raises(ValueError, match="box 1000000 leaves the range"):
            boxes.box(10**6)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "normalised mlp", "resnet", "residual", "split"]
)
def test_the_loss_stays_within_epsilon_on_all_boxes(name):
    model, inputs, symmetry, objective = architecture(name)
    group = symmetry.group
    w = group.layout.flatten(model)
    boxes = rp.disjoint_boxes(w, symmetry, 1e-3)
    # Along the gradient of the volume; running statistics have none.
    coarse = symmetry.layer_scales if symmetry.layer_scales.dimension else group
    exponents = coarse.exponents(torch.eye(coarse.dimension).double())
    steepest = exponents[:, : group.layout.parameter_size].sum(1) @ exponents
    along = group.exponents(boxes.t)
    torch.testing.assert_close(
        along / along.abs().max(), steepest / steepest.abs().max(), rtol=0, atol=1e-9
    )
    first = boxes.box(0).sample(20, torch.Generator().manual_seed(0))
    losses = torch.stack([objective(x).detach() for x in first])
    epsilon = (losses - objective(w).detach()).abs().max()
    assert epsilon < 0.1
    for k in (1, 2, 3):
        box = boxes.box(k)
        assert boxes.are_disjoint(0, k) and box.log_volume >= boxes.box(0).log_volume
        images = group.act(first, k * boxes.t)
        slack = 1e-9 * box.half_widths
        grown = rp.Box(box.centre, box.half_widths + slack, box.log_volume)
        assert grown.contains(images).all()
        moved = torch.stack([objective(x).detach() for x in images])
        torch.testing.assert_close(moved, losses, rtol=1e-7, atol=1e-9)
        # The volume by another route: the determinant of the map from the first box.
        jacobian = torch.autograd.functional.jacobian(
            lambda x: group.act(x, k * boxes.t), w
        )
        count = group.layout.parameter_size
        determinant = torch.linalg.slogdet(jacobian[:count, :count]).logabsdet.item()
        assert box.log_volume - boxes.box(0).log_volume == pytest.approx(determinant)


def test_boxes_along_a_given_direction():
    model, inputs, group, _ = chain(3, 4, 5, 2)
    w = group.layout.flatten(model)
    direction = rp.layer_scales(group, {"0.weight": 1.0, "2.weight": 3.0})
    boxes = rp.disjoint_boxes(w, group, 1e-2, direction=direction)
    counts = {"2.weight": 20, "2.bias": 5, "4.weight": -10}
    growth = sum(counts.values()) * log(boxes.alpha)
    assert boxes.log_growth == pytest.approx(growth)
    with pytest.raises(ValueError, match="volumes fall"):
        rp.disjoint_boxes(w, group, 1e-2, direction=-direction)
    with pytest.raises(ValueError, match="no nonzero parameter grows"):
        rp.disjoint_boxes(torch.zeros_like(w), group, 1e-2)
    with pytest.raises(
        ValueError, match="one finite point and a positive, finite radius"
    ):
        rp.disjoint_boxes(w, group, 0.0)
    rigid = qn.discover(mlp(3, 4, 2, activation=nn.Tanh), torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match="disjoint_boxes: the group has no generators"):
        rp.disjoint_boxes(torch.ones(rigid.group.layout.size), rigid, 1.0)


# -- section 5.1: bijections ---


@LAW
@given(
    a=st.floats(-0.49, 3.0), b=st.one_of(st.just(0.0), st.floats(1e-12, 1e6)),
    x=st.lists(st.one_of(st.just(0.0), st.floats(-20, 8)), min_size=1, max_size=5),
)  # fmt: skip
def test_the_power_transformation_is_inverted_to_rounding(a, b, x):
    x = torch.tensor(
        [(-1) ** i * 10**u if u else 0.0 for i, u in enumerate(x)]
    ).double()
    bend = rp.PowerTransformation(torch.tensor(0.0).double(), a, b)
    eta = bend.forward(x)
    torch.testing.assert_close(
        eta, ((x * x + b) ** a * x).nan_to_num(0.0), rtol=1e-12, atol=0
    )
    # At 2a = −1 + small, x is a high power of eta, and rounding of eta counts as often.
    back = bend.inverse(eta)
    torch.testing.assert_close(back, x, rtol=4e-15 / min(1, 1 + 2 * a), atol=1e-300)
    torch.testing.assert_close(
        bend.forward(back), eta, rtol=4e-15 * (4 + 2 * a), atol=1e-300
    )


@pytest.mark.parametrize(
    "a, b", [(-0.4, 0.5), (0.0, 1.0), (2.0, 0.1), (1.0, 0.0), (-0.3, 0.0)]
)
def test_the_derivative_of_the_power_transformation_is_that_of_autograd(a, b):
    centre = torch.tensor([0.5, -1.0, 2.0]).double()
    bend = rp.PowerTransformation(centre, a, b)
    theta = (
        torch.tensor([[1.0, -1.7, 2.2], [-8.0, -0.9, 300.0]]).double().requires_grad_()
    )
    (slope,) = torch.autograd.grad(bend.forward(theta).sum(), theta)
    torch.testing.assert_close(bend.derivative(theta.detach()), slope)
    assert (slope > 0).all()
    at_centre = bend.derivative(centre)
    wanted = b**a if b else {1.0: 0.0, -0.3: float("inf")}[a]
    assert (at_centre == pytest.approx(wanted)) if b else (at_centre == wanted).all()


def test_the_power_transformation_at_the_ends_of_the_range():
    bend = rp.PowerTransformation(torch.tensor(0.0).double(), -0.4, 1.0)
    far = torch.tensor([1e200, -1e-200, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        bend.forward(far), torch.tensor([1e40, -1e-200, 0.0], dtype=torch.float64)
    )
    torch.testing.assert_close(bend.inverse(bend.forward(far)), far, rtol=1e-13, atol=0)
    assert torch.isfinite(bend.derivative(far)).all()
    for a, b in ((-0.5, 1.0), (1.0, -1e-9), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="needs a > -1/2 and b >= 0"):
            rp.PowerTransformation(torch.zeros(2), a, b)


def test_figure_5_makes_either_of_two_minima_the_sharper_one():
    def loss(theta):
        return (theta**2 - 1) ** 2  # minima at ±1, both of curvature 8

    for b, wanted in ((0.01, 8 / 0.01**2), (10.0, 8 / 10.0**2)):
        bend = rp.PowerTransformation(torch.tensor(1.0).double(), 1.0, b)
        step = 1e-3 * b
        grid = torch.tensor([-step, 0.0, step]).double()
        values = loss(bend.inverse(grid))
        curvature = (values[0] - 2 * values[1] + values[2]) / step**2
        assert curvature.item() == pytest.approx(wanted, rel=1e-2)


RADIAL = st.tuples(st.floats(0.1, 5.0), st.floats(0.05, 0.95), st.floats(0.05, 0.95))


def radial(sizes, dimension=3):
    """A radial transformation around a seeded centre."""
    delta, rho, r_hat = sizes
    generator = torch.Generator().manual_seed(dimension)
    centre = torch.randn(dimension, generator=generator, dtype=torch.float64)
    return rp.RadialTransformation(centre, delta, rho * delta, r_hat * delta)


@LAW
@given(sizes=RADIAL, seed=st.integers(0, 999), dimension=st.integers(1, 5))
def test_the_radial_transformation(sizes, seed, dimension):
    g = radial(sizes, dimension)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(7, dimension, generator=generator, dtype=torch.float64)
    length = 1.5 * g.delta * torch.rand(7, 1, generator=generator, dtype=torch.float64)
    theta = g.centre + step / step.norm(dim=1, keepdim=True) * length
    theta[0] = g.centre
    eta = g.forward(theta)
    torch.testing.assert_close(g.inverse(eta), theta, rtol=1e-12, atol=1e-12)
    r = (theta - g.centre).norm(dim=1)
    # ψ by interpolation between its corners.
    psi = torch.where(
        r <= g.r_hat, g.rho * r / g.r_hat,
        g.rho + (g.delta - g.rho) * (r - g.r_hat) / (g.delta - g.r_hat),
    )  # fmt: skip
    psi = torch.where(r > g.delta, r, psi)
    torch.testing.assert_close(
        (eta - g.centre).norm(dim=1), psi, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(g.psi(r), psi, rtol=1e-10, atol=1e-12)
    away = ((r - g.r_hat).abs() > 1e-6) & ((r - g.delta).abs() > 1e-6)
    v = torch.randn(7, dimension, generator=generator, dtype=torch.float64)
    dense = g.jacobian(theta)
    for i in torch.nonzero(away).flatten().tolist():
        exact = torch.autograd.functional.jacobian(g.forward, theta[i])
        torch.testing.assert_close(dense[i], exact, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            g.jvp(theta, v)[i], exact @ v[i], rtol=1e-9, atol=1e-9
        )
        solved = torch.linalg.solve(exact, v[i])
        torch.testing.assert_close(g.solve(theta, v)[i], solved, rtol=1e-8, atol=1e-8)


def test_the_jacobian_equals_the_three_terms_printed():
    g = radial((1.0, 0.3, 0.6))
    direction = torch.tensor([1.0, 2.0, -2.0]).double() / 3
    for r in (0.2, 0.6, 0.8, 1.0, 1.7):
        x, middle = r * direction, 0.6 < r <= 1.0
        slope = (
            1.0
            if r > 1.0
            else (g.rho - 1) / (g.r_hat - 1) if middle else g.rho / g.r_hat
        )
        factor = middle * 1.0 * (g.r_hat - g.rho) / (g.r_hat - 1.0)
        eye = torch.eye(3).double()
        printed = slope * eye - factor / r**3 * torch.outer(x, x) + factor / r * eye
        torch.testing.assert_close(g.jacobian(g.centre + x), printed)


def test_radial_transformations_that_do_not_exist():
    for rho, r_hat in ((0.0, 0.5), (1.0, 0.5), (0.5, 1.0), (0.5, -0.1)):
        with pytest.raises(ValueError, match="strictly between 0 and delta"):
            rp.RadialTransformation(torch.zeros(2), 1.0, rho, r_hat)
    with pytest.raises(ValueError, match="centre needs 1 axes"):
        rp.RadialTransformation(torch.tensor(0.0), 1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="needs a last dimension of 3"):
        radial((1.0, 0.5, 0.5)).forward(torch.zeros(2))


@pytest.mark.parametrize("kind", ["power", "radial"])
def test_the_hessian_in_the_new_parameter_at_a_minimum(kind):
    model, _, group, objective = chain(2, 3, 1)
    theta = group.layout.flatten(model)
    if kind == "power":
        g = rp.PowerTransformation(theta, a=0.7, b=0.2)
    else:
        centre = theta + 0.6 / sqrt(
            len(theta)
        )  # between r̂ and δ, where directions differ
        g = rp.RadialTransformation(centre, delta=1.0, rho=0.2, r_hat=0.5)
    old = objective.at(theta).hessian
    found = rp.transformed_hessian(g, old, theta)
    eta = g.forward(theta)
    # The loss in the new parameter is zero here, so that its differences are accurate.
    for v in torch.randn(
        5, len(theta), generator=torch.Generator().manual_seed(0)
    ).double():
        with torch.no_grad():
            ends = [objective(g.inverse(eta + s * v)) for s in (1e-5, -1e-5)]
        assert (v @ (found @ v)).item() == pytest.approx(
            sum(ends).item() / 1e-10, rel=1e-3
        )
    block = torch.eye(len(theta)).double()[:, :2]
    torch.testing.assert_close(found @ block, found.to_dense()[:, :2])
    with pytest.raises(ValueError, match="theta has shape"):
        rp.transformed_hessian(g, old, theta[:2])


def test_features_of_any_unit_are_standardised():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    u = rp.standardise(x * torch.tensor([1e6, 1e-3]))(x * torch.tensor([1e6, 1e-3]))
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(2))


@pytest.mark.parametrize(
    "a, b", [(1.0, 1e-300), (50.0, 1e-12), (1.0, 1e200), (-0.4, 1e-200)]
)
def test_inverses_whose_roots_leave_the_range_of_numbers(a, b):
    bend = rp.PowerTransformation(torch.zeros((), dtype=torch.float64), a, b)
    eta = torch.tensor([-3.0, -1e-9, 0.0, 1e-3, 7.0], dtype=torch.float64)
    theta = bend.inverse(eta)
    assert torch.isfinite(theta).all() and theta[2] == 0
    torch.testing.assert_close(bend.forward(theta), eta, rtol=1e-10, atol=0)


def test_numbers_of_boxes():
    layout = qn.ParameterLayout({"first": (3, 2), "second": (1, 3)})
    unit = qn.Unit("layer", 1, (qn.Scale("first", None), qn.Scale("second", None, -1)))
    group = qn.ScalingGroup.from_units(layout, [unit])
    boxes = rp.disjoint_boxes(torch.ones(9), group, 0.5)
    for call in (
        lambda: boxes.box(-1),
        lambda: boxes.box(1.5),
        lambda: boxes.log_volume(0),
    ):
        with pytest.raises(ValueError, match="got"):
            call()
    with pytest.raises(ValueError, match="one finite point"):
        rp.disjoint_boxes(torch.full((9,), torch.nan), group, 0.5)
