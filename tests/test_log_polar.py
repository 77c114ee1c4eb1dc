"""The closed forms against hand-computed values, other coordinates, float64 and geoopt."""

from math import log, pi, sqrt

import chains
import geoopt
import numpy as np
import pytest
import torch
from cases import NETWORKS
from scipy.integrate import solve_ivp

import quotientnet as qn

TWO = qn.ParameterLayout({"first": (1, 2), "second": (2, 1)})


def two_layers():
    return qn.LayerScaleQuotient(chains.layer_scale_group(TWO))


def point(*entries, dtype=torch.float64):
    return torch.tensor(entries, dtype=dtype)


# -- by hand ---


def test_distances_by_hand():
    m, x = two_layers(), point(3, 4, 0, 1)
    assert m.dist(x, 2 * x).item() == pytest.approx(
        sqrt(2) * log(2)
    )  # both norms doubled
    assert m.dist(x, point(6, 8, 0, 0.5)).item() == pytest.approx(
        0, abs=1e-15
    )  # the orbit
    assert m.dist(x, point(6, 8, 0, 1)).item() == pytest.approx(log(2) / sqrt(2))
    assert m.dist(x, point(4, -3, 0, 1)).item() == pytest.approx(pi / 2)
    assert m.dist(x, point(4, -3, 1, 0)).item() == pytest.approx(pi / sqrt(2))
    assert m.injectivity_radius() == pi and m.dimension == 3


def test_exponential_by_hand():
    m, x = two_layers(), point(3, 4, 0, 1)
    turn = point(-4, 3, 0, 0) * pi / 2  # a quarter turn of the first block
    torch.testing.assert_close(m.expmap(x, turn), point(-4, 3, 0, 1))
    grow = point(3, 4, 0, 1) * log(2)  # both norms doubled
    torch.testing.assert_close(m.expmap(x, grow), 2 * x)


def test_projection_by_hand():
    m, x = two_layers(), point(3, 4, 0, 1)
    torch.testing.assert_close(m.vertical(x, point(3, 4, 0, 0)), point(1.5, 2, 0, -0.5))
    torch.testing.assert_close(m.vertical_coordinates(x, point(3, 4, 0, 0)), point(0.5))
    assert m.inner(x, point(3, 4, 0, 0)).item() == pytest.approx(1)
    torch.testing.assert_close(
        m.egrad2rgrad(x, point(1, 0, 0, 0)), point(25 - 4.5, -6, 0, 1.5)
    )


# -- other coordinates and other routes ---


@pytest.mark.parametrize("name", ["mlp", "mlp-without-bias", "conv", "batch-norm"])
def test_node_wise_hessian_is_the_projected_hessian_in_logarithms(name):
    """With ``w = σ e^s`` the metric is the identity in ``s``: dense Hessian and dense Π there."""
    objective = NETWORKS[name].objective()
    w = objective.layout.flatten(objective.model)
    manifold = qn.NodeWiseQuotient(chains.node_wise_group(objective.layout))
    count, k = objective.layout.parameter_size, manifold.group.dimension
    signs, rest = torch.sign(w[:count]), w[count:]

    def in_logarithms(s):
        return objective(torch.cat([signs * torch.exp(s), rest]))

    hessian = torch.autograd.functional.hessian(in_logarithms, w[:count].abs().log())
    a = manifold.group.exponents(torch.eye(k, dtype=torch.float64)).T[:count]
    projection = torch.eye(count, dtype=torch.float64) - a @ torch.linalg.pinv(a)
    expected = signs[:, None] * (projection @ hessian @ projection) * signs
    operator = manifold.riemannian_hessian(objective.at(w)).to_dense()[:count, :count]
    assert (operator - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_layer_scale_hessian_trace_formula(name):
    """``Σ ‖w_b‖² tr H_bb + (2 − d_b)⟨w_b, g_b⟩``, with a dense Euclidean Hessian."""
    objective = NETWORKS[name].objective()
    w = objective.layout.flatten(objective.model)
    hessian = torch.autograd.functional.hessian(objective, w)
    p = objective.at(w)
    expected = 0.0
    for entry in objective.layout.entries:
        b = entry.slice
        expected += w[b] @ w[b] * hessian[b, b].trace() + (2 - entry.numel) * (
            w[b] @ p.gradient[b]
        )
    manifold = qn.LayerScaleQuotient(chains.layer_scale_group(objective.layout))
    trace = manifold.riemannian_hessian(p).to_dense().trace()
    assert trace.item() == pytest.approx(expected.item(), rel=1e-10)


def test_geodesic_by_integrating_its_equation():
    """The paper's metric on one block, its Christoffel symbols by hand, Runge–Kutta in between."""
    manifold = qn.LayerScaleQuotient(
        qn.ScalingGroup(qn.ParameterLayout({"w": (3,)}), {})
    )
    x, u = point(1, -2, 0.5), point(0.8, 0.1, -1.7)

    def equation(_, state):
        w, v = state[:3], state[3:]
        rate = w @ v / (w @ w)
        return np.concatenate([v, 2 * rate * v - (v @ v) * w / (w @ w)])

    start = np.concatenate([x, u])
    end = solve_ivp(equation, (0, 1), start, rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(manifold.expmap(x, u), end[:3], rtol=1e-9)
    np.testing.assert_allclose(
        manifold.transp_follow_expmap(x, u, u), end[3:], rtol=1e-9
    )


def test_block_geometry_against_geoopts_sphere_and_line():
    layout = qn.ParameterLayout({"w": (4,)})
    manifold = qn.LayerScaleQuotient(qn.ScalingGroup(layout, {}))
    sphere = geoopt.Sphere()
    x, y = point(1, 2, 3, 4) * 0.7, point(-1, 2, 1, 0.5) * 3
    u, v = x / x.norm(), y / y.norm()
    squares = sphere.dist(u, v) ** 2 + (y.norm() / x.norm()).log() ** 2
    assert manifold.dist2(x, y).item() == pytest.approx(squares.item())
    angular = manifold.logmap(x, y) / x.norm() - (y.norm() / x.norm()).log() * u
    torch.testing.assert_close(angular, sphere.logmap(u, v))
    tangent = sphere.proju(u, point(0.3, -1, 2, 0.1))
    # geoopt's Sphere.transp projects, which is no isometry; the rotation that takes u to v is.
    turn = tangent - (tangent @ v) / (1 + u @ v) * (u + v)
    torch.testing.assert_close(
        manifold.transp(x, y, tangent * x.norm()) / y.norm(), turn
    )


def test_long_geodesics_transport_along_themselves():
    m, x = two_layers(), point(3, 4, 0, 1)
    u = point(-4, 3, 0, 0) * (1.5 * pi)  # three quarters of a turn
    y, velocity = m.expmap_transp(x, u, u)
    torch.testing.assert_close(y, point(4, -3, 0, 1))
    torch.testing.assert_close(velocity, point(3, 4, 0, 0) * 1.5 * pi)


# -- accuracy ---


@pytest.mark.parametrize("kind", ["tensors", "entries"])
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_nearly_coincident_points_in_float32(kind, gap):
    """Distances and logarithms of float32 points agree with those computed in float64."""
    layout = NETWORKS["mlp"].layout()
    manifold = qn.LogPolarQuotient(chains.layer_scale_group(layout), kind)
    generator = torch.Generator().manual_seed(3)
    x = manifold.random(layout.size, dtype=torch.float32, generator=generator)
    y = x * (1 + gap * torch.randn(layout.size, generator=generator))
    exact = manifold.dist(x.double(), y.double()).item()
    assert manifold.dist(x, y).item() == pytest.approx(exact, rel=3e-6)
    log, reference = manifold.logmap(x, y).double(), manifold.logmap(
        x.double(), y.double()
    )
    assert manifold.norm(x.double(), log - reference) <= 1e-5 * exact


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_nearly_antipodal_points_in_float32(gap):
    manifold, generator = two_layers(), torch.Generator().manual_seed(4)
    x = manifold.random(4, dtype=torch.float32, generator=generator)
    y = -x + gap * x.norm() * torch.randn(4, generator=generator)
    y[2:] = x[2:]
    exact = manifold.dist(x.double(), y.double()).item()
    assert manifold.dist(x, y).item() == pytest.approx(exact, rel=1e-6)
    log, reference = manifold.logmap(x, y).double(), manifold.logmap(
        x.double(), y.double()
    )
    assert manifold.norm(x.double(), log - reference) <= 1e-3 * exact
    v = manifold.proju(x, torch.randn(4, generator=generator))
    carried = manifold.transp(x, y, v)
    assert manifold.norm(y, carried).item() == pytest.approx(
        manifold.norm(x, v).item(), rel=1e-5
    )


def test_badly_scaled_orbits_in_float32():
    layout = NETWORKS["mlp"].layout()
    manifold = qn.NodeWiseQuotient(chains.node_wise_group(layout))
    x = manifold.random(layout.size, generator=torch.Generator().manual_seed(0))
    t = manifold.group.random(spread=6.0, generator=torch.Generator().manual_seed(1))
    assert manifold.dist(x, manifold.group.act(x, t)) < 1e-4


# -- refusals ---


def normal(manifold):
    return manifold.random(
        dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


METHODS = {
    "inner": lambda m, x: m.inner(x, x),
    "proju": lambda m, x: m.proju(x, torch.ones_like(x)),
    "egrad2rgrad": lambda m, x: m.egrad2rgrad(x, torch.ones_like(x)),
    "expmap": lambda m, x: m.expmap(x, torch.ones_like(x)),
    "logmap": lambda m, x: m.logmap(x, 2 * x),
    "dist": lambda m, x: m.dist(2 * x, x),
    "transp": lambda m, x: m.transp(x, 2 * x, torch.ones_like(x)),
    "projx": lambda m, x: m.projx(x),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["tensors", "entries"])
@pytest.mark.parametrize("tensor", ["0.bias", "4.bias", "2.weight"])
def test_zero_blocks_are_refused_by_name(method, kind, tensor):
    manifold = qn.LogPolarQuotient(
        chains.layer_scale_group(NETWORKS["mlp"].layout()), kind
    )
    x = normal(manifold)
    x[manifold.layout[tensor].slice] = 0
    with pytest.raises(
        qn.NotOnManifoldError, match=rf"{method}: zero .* '{tensor}'.*frozen_zeros=w"
    ):
        METHODS[method](manifold, x)
    thawed = qn.LogPolarQuotient(manifold.group, kind, frozen_zeros=x)
    METHODS[method](
        thawed, thawed.projx(torch.where(x == 0, 0.0, x))
    )  # the remedy works


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_not_finite_are_refused_by_name(method, bad):
    manifold = two_layers()
    x = point(1, bad, 3, 4)
    with pytest.raises(
        qn.NotOnManifoldError, match=r"'first' \(1\) entries are NaN or infinite"
    ):
        METHODS[method](manifold, x)


def test_vectors_that_are_not_finite_are_refused():
    manifold = two_layers()
    with pytest.raises(
        ValueError, match=r"vector has NaN or infinite entries in 'second' \(1\)"
    ):
        manifold.proju(point(1, 2, 3, 4), point(1, 2, float("nan"), 4))


@pytest.mark.parametrize(
    "x, u, message",
    [
        (torch.ones(5), torch.ones(4), "last dimension of 4"),
        (torch.ones(4), torch.ones(3), "the vector or second point has shape"),
        (
            torch.ones(4),
            torch.ones(4).double(),
            "the vector or second point is torch.float64 on cpu, the point is torch.float32",
        ),
        (
            torch.ones(4),
            torch.ones(4, device="meta"),
            "the vector or second point is on the meta device",
        ),
        (torch.ones(4).half(), torch.ones(4).half(), "must be float32 or float64"),
    ],
)
def test_wrong_shapes_dtypes_and_devices_are_refused(x, u, message):
    with pytest.raises(ValueError, match=message):
        two_layers().proju(x, u)


@pytest.mark.parametrize("kind", ["tensors", "filters", "entries"])
@pytest.mark.parametrize("method", ["proju", "egrad2rgrad", "retr", "expmap"])
def test_buffers_and_strided_arguments(kind, method):
    layout = NETWORKS["conv"].layout()
    manifold = qn.LogPolarQuotient(chains.layer_scale_group(layout), kind)
    x = manifold.random(2, layout.size, dtype=torch.float64)
    u, out = 0.1 * torch.randn_like(x), torch.empty_like(x[0])
    call = getattr(manifold, method)
    expected = call(x[0], u[0])
    assert call(x[0], u[0], out=out) is out
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        call(x.T.contiguous().T[0], u.T.contiguous().T[0]), expected
    )
    with pytest.raises(ValueError, match="out shares memory with an argument"):
        call(x[0], u[0], out=x[0])
    with pytest.raises(ValueError, match="out needs a single point"):
        call(x, u, out=torch.empty_like(x))
    with pytest.raises(ValueError, match="out must be contiguous, torch.float64"):
        call(x[0], u[0], out=out.float())


def test_antipodes_and_other_signs_have_no_logarithm():
    manifold, x = two_layers(), point(3, 4, 0, 1)
    with pytest.raises(ValueError, match=r"blocks of 'first' \(1\) are antipodal in y"):
        manifold.logmap(x, point(-6, -8, 0, 1))
    entries = qn.NodeWiseQuotient(chains.node_wise_group(TWO))
    x, y = point(3, 4, 2, 1), point(3, -4, 2, 1)
    with pytest.raises(
        ValueError, match=r"blocks of 'first' \(1\) have the other sign in y"
    ):
        entries.logmap(x, y)
    assert entries.dist(x, y) == torch.inf and entries.injectivity_radius() == torch.inf


def test_a_group_that_scales_a_block_unevenly_is_refused():
    with pytest.raises(ValueError, match="scales 'first' differently along axis 0"):
        qn.LogPolarQuotient(
            chains.node_wise_group(
                qn.ParameterLayout({"first": (2, 1), "second": (1, 2)})
            ),
            "tensors",
        )
    with pytest.raises(ValueError, match="blocks names 'frist', not in the layout"):
        qn.LogPolarQuotient(chains.layer_scale_group(TWO), {"frist": "entries"})
    with pytest.raises(ValueError, match="blocks must be one of"):
        qn.LogPolarQuotient(chains.layer_scale_group(TWO), "rows")
    with pytest.raises(TypeError, match="or what discover returned, got str"):
        qn.NodeWiseQuotient("group")


def test_a_group_of_another_layout_is_refused():
    objective = NETWORKS["mlp"].objective()
    p = objective.at(objective.layout.flatten(objective.model))
    renamed = qn.ParameterLayout(
        {f"other.{e.name}": e.shape for e in objective.layout.entries}
    )
    with pytest.raises(ValueError, match="the point has another layout than the group"):
        qn.LayerScaleQuotient(chains.layer_scale_group(renamed)).riemannian_hessian(p)
    manifold = qn.LayerScaleQuotient(chains.layer_scale_group(objective.layout))
    with pytest.raises(
        ValueError, match="connection must be 'levi-civita' or 'flat', got 'Weyl'"
    ):
        manifold.riemannian_hessian(p, "Weyl")


def test_checks_give_reasons():
    manifold = qn.NodeWiseQuotient(
        chains.node_wise_group(TWO), frozen_zeros=point(0, 1, 1, 1)
    )
    x = point(0, 1, 2, 3)
    assert manifold.check_point_on_manifold(x)
    ok, why = manifold.check_point_on_manifold(point(1, 1, 2, 3), explain=True)
    assert not ok and "frozen zeros have moved in 'first' (1)" in why
    torch.testing.assert_close(manifold.projx(point(1, 1, 2, 3)), x)
    ok, why = manifold.check_vector_on_tangent(x, point(1, 0, 0, 0), explain=True)
    assert not ok and "moves frozen coordinates of 'first' (1)" in why
    ok, why = manifold.check_vector_on_tangent(
        x, manifold.group.generate(x, torch.ones(1)), explain=True
    )
    assert not ok and "vertical part of length" in why
    ok, why = manifold.check_point_on_manifold(torch.ones(3), explain=True)
    assert not ok and "last dimension of 4" in why


# -- geoopt ---


@pytest.mark.parametrize("optimizer", ["RiemannianAdam", "RiemannianSGD"])
@pytest.mark.parametrize("kind", [qn.LayerScaleQuotient, qn.NodeWiseQuotient])
def test_geoopt_trains_on_the_quotients(kind, optimizer):
    objective = NETWORKS["mlp"].objective()
    group = (
        chains.layer_scale_group
        if kind is qn.LayerScaleQuotient
        else chains.node_wise_group
    )
    manifold = kind(group(objective.layout))
    w = geoopt.ManifoldParameter(
        objective.layout.flatten(objective.model), manifold=manifold
    )
    options = (
        {"lr": 0.03} if optimizer == "RiemannianAdam" else {"lr": 0.01, "momentum": 0.9}
    )
    method = getattr(geoopt.optim, optimizer)([w], stabilize=10, **options)
    first = objective(w).item()
    for _ in range(100):
        method.zero_grad()
        objective(w).backward()
        method.step()
    assert objective(w).item() < 0.8 * first
    assert manifold.check_point_on_manifold(w.detach())


def test_scaled_manifolds():
    manifold = two_layers()
    scaled, x, u = (
        geoopt.Scaled(manifold, 2.0),
        point(3, 4, 0, 1),
        point(-0.4, 0.3, 0, 0),
    )
    torch.testing.assert_close(scaled.expmap(x, 2 * u), manifold.expmap(x, u))
    y = manifold.expmap(x, u)
    torch.testing.assert_close(scaled.dist(x, y), 2 * manifold.dist(x, y))
    torch.testing.assert_close(scaled.logmap(x, y), 2 * manifold.logmap(x, y))
    torch.testing.assert_close(
        scaled.transp_follow_expmap(x, 2 * u, u), manifold.transp_follow_expmap(x, u, u)
    )
    assert float(scaled.injectivity_radius()) == pytest.approx(2 * pi)
    with pytest.raises(NotImplementedError, match="frame"):
        scaled.frame(x)


def test_origin_random_and_shapes():
    manifold = two_layers()
    assert manifold.origin().tolist() == [1, 1, 1, 1]
    assert (
        manifold.random(3, 4).shape == (3, 4)
        and manifold.random((2, 4), dtype=torch.float64).dtype == torch.float64
    )
    with pytest.raises(ValueError, match="last dimension of 4"):
        manifold.random(3)


# -- the edges of the number range ---


@pytest.mark.parametrize("method", ["dist", "logmap"])
def test_overflowing_ratios_are_refused_and_never_zero(method):
    manifold = two_layers()
    x, y = point(1e-160, 1e-160, 1e160, 1), point(1e160, 1e150, 1, 1e-160)
    with pytest.raises(ValueError, match="overflow"):
        getattr(manifold, method)(x, y)
    single = torch.tensor([1e20, 2e20, 1, 1])
    with pytest.raises(ValueError, match="overflows in this dtype; use float64"):
        manifold.dist(single, 2 * single)


def test_large_ratios_within_the_range():
    manifold = two_layers()
    x, y = point(1e-70, 2e-70, 1e70, 1), point(2e70, 1e70, 1e-70, 1)
    r = np.array([140 * log(10), 0.5 * log((1e-140 + 1) / (1e140 + 1))])
    angles = np.array([np.arccos(4 / 5), pi / 2])
    expected = sqrt((angles**2).sum() + (r.sum() ** 2) / 2)
    assert manifold.dist(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_second_derivative_of_the_squared_distance_at_coincident_points():
    manifold, x = two_layers(), point(3, 4, 0, 1)
    hessian = torch.autograd.functional.hessian(lambda y: manifold.dist2(x, y), x)
    d = manifold.frame(x)
    assert (hessian / d / d[:, None]).trace().item() == pytest.approx(
        2 * manifold.dimension
    )
