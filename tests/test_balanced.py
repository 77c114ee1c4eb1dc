"""The balanced quotient: invariant curvature, an independent Hessian, zeros, refusals."""

import copy
import pickle

import geoopt
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Block
from scipy.integrate import solve_ivp
from test_balance import dead, dense_exponents, residual_cycle, two_layers
from torch import nn
from torch.nn import functional as F

import quotientnet as qn
from quotientnet.manifolds.base import QuotientManifold


def mlp_with_zeros():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    with torch.no_grad():
        for p in model.parameters():
            p[torch.rand_like(p) < 0.3] = 0.0
        model[0].bias.zero_()
    return model, torch.randn(20, 6)


def residual():
    def forward(m, x):
        h = m.i(x)
        h = h + m.b(F.relu(m.a(h)))
        return m.o(h + m.d(F.relu(m.c(h))))

    model = Block(
        forward, i=nn.Linear(5, 4), a=nn.Linear(4, 6), b=nn.Linear(6, 4),
        c=nn.Linear(4, 5), d=nn.Linear(5, 4), o=nn.Linear(4, 3),
    )  # fmt: skip
    return model, torch.randn(20, 5)


def normalised():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-30), nn.ReLU(),
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-30), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return model, torch.randn(20, 1, 6, 6)


def prepared(make):
    """A double-precision model's objective on random targets, and its group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = make()
    model, x = model.double(), x.double()
    targets = torch.arange(len(x)) % 3
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (x, targets))
    return objective, qn.discover(model, x).group


def relative(a, b):
    return float((a - b).norm() / b.norm())


# -- invariance ---


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp_with_zeros, residual, normalised])
def test_curvature_is_the_same_along_twelve_orders_of_magnitude(make):
    objective, group = prepared(make)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(6):
        t = torch.rand(group.dimension, generator=generator, dtype=torch.float64)
        point = objective.at(group.act(w, 27.6 * t - 13.8) if i else w)
        curvatures = manifold.riemannian_hessian(point), point.hessian
        dense = [operator.to_dense() for operator in curvatures]
        rows.append([(m.trace(), torch.linalg.eigvalsh(m)[-1]) for m in dense])
    balanced, euclidean = torch.tensor(rows, dtype=torch.float64).unbind(1)
    assert ((balanced - balanced[0]).abs() <= 1e-9 * balanced[0].abs()).all()
    assert ((euclidean / euclidean[0]).abs().amax(0) > 1e6).all()


@pytest.mark.slow
def test_the_operator_is_the_compressed_hessian_of_the_canonical_network():
    objective, group = prepared(residual)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    star = manifold.canonical(w)
    v = star[:, None] * dense_exponents(group)
    p = torch.eye(len(w)).double() - v @ torch.linalg.pinv(v)
    expected = p @ objective.at(star).hessian.to_dense() @ p
    for point in (w, star, group.act(w, group.random(spread=3.0))):
        for connection in ("levi-civita", "flat"):
            found = manifold.riemannian_hessian(objective.at(point), connection)
            assert relative(found.to_dense(), expected) < 1e-10


# -- independent routes to the Hessian away from critical points ---


def geodesic(group, start, velocity, time):
    """A geodesic of ``{Aᵀ(w²) = c}``: the acceleration is normal, by the constraint's Hessian."""
    a, n = dense_exponents(group).numpy(), len(start)

    def derivative(_, state):
        w, u = state[:n], state[n:]
        v = w[:, None] * a
        return np.concatenate([u, -v @ np.linalg.pinv(v.T @ v) @ (a.T @ (u * u))])

    state = np.concatenate([start.numpy(), velocity.numpy()])
    found = solve_ivp(
        derivative, (0, time), state, method="DOP853", rtol=1e-13, atol=1e-14
    )
    return torch.from_numpy(found.y[:n, -1])


def small():
    model = Block(
        lambda m, x: m.o((h := m.i(x)) + m.b(torch.relu(m.a(h)))),
        i=nn.Linear(2, 2), a=nn.Linear(2, 3), b=nn.Linear(3, 2), o=nn.Linear(2, 3),
    )  # fmt: skip
    return model, torch.randn(8, 2)


def test_hessian_against_geodesics_integrated_on_the_canonical_networks():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    star = manifold.canonical(objective.layout.flatten(objective.model))
    point = objective.at(star)
    assert point.gradient.norm() > 0.05  # far from critical
    hessian = manifold.riemannian_hessian(point)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        u = torch.randn(len(star), generator=generator, dtype=torch.float64)
        u = manifold.proju(star, u)
        u = u / u.norm()

        def second_difference(h):
            ends = [objective(geodesic(group, star, sign * u, h)) for sign in (1, -1)]
            return (ends[0] + ends[1] - 2 * point.value) / h**2

        fine, coarse = second_difference(5e-3), second_difference(1e-2)
        along = (4 * fine - coarse) / 3
        assert abs(float(u @ (hessian @ u) - along)) < 1e-6


def test_hessian_against_christoffel_symbols_by_autograd():
    """One hidden layer has its balance in closed form, and a metric autograd can differentiate."""
    model, group = two_layers(
        [[0.3, -0.4], [0.9, 0.2]], [0.5, -0.1], [[0.7, -0.2], [0.3, 0.8], [-0.6, 0.1]]
    )
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    objective = qn.Objective(
        model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 1, 2] * 3))
    )
    a = dense_exponents(group)

    def metric(w):
        into, out = (((sign * a) > 0).double().T @ (w * w) for sign in (1, -1))
        return torch.exp(2 * a @ (0.25 * (out / into).log()))

    w = objective.layout.flatten(model)
    g, dg = metric(w), torch.autograd.functional.jacobian(metric, w)
    n, slope = len(w), objective.at(w).gradient
    christoffel = torch.zeros(n, n, n, dtype=torch.float64)  # Γ^k_ij, diagonal metric
    for k in range(n):
        christoffel[k, :, k] += dg[k] / (2 * g[k])
        christoffel[k, k, :] += dg[k] / (2 * g[k])
        christoffel[k] -= torch.diag(dg[:, k]) / (2 * g[k])
    covariant = objective.at(w).hessian.to_dense()
    covariant = covariant - torch.einsum("kij,k->ij", christoffel, slope)
    root = g.sqrt()
    v = (root * w)[:, None] * a
    p = torch.eye(n).double() - v @ torch.linalg.pinv(v)
    expected = p @ (covariant / root / root[:, None]) @ p
    manifold = qn.BalancedQuotient(group)
    torch.testing.assert_close(manifold.frame(w), root, rtol=1e-13, atol=0)
    found = manifold.riemannian_hessian(objective.at(w)).to_dense()
    assert relative(found, expected) < 1e-11
    # The frame's own derivative, by the implicit function theorem, gives the same symbols.
    u = torch.randn(n, generator=torch.Generator().manual_seed(1)).double()
    term = QuotientManifold.connection_term(manifold, w, slope, u)
    torch.testing.assert_close(
        term, -torch.einsum("kij,k,j->i", christoffel, slope, u), rtol=1e-10, atol=1e-13
    )


def test_the_connection_matters_before_projection_only():
    """With the derived connection on a residual network the operator is the same."""
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    point, d = objective.at(w), manifold.frame(w)
    operator = manifold.riemannian_hessian(point)
    z = torch.randn(len(w), generator=torch.Generator().manual_seed(0)).double()
    xi = manifold.proju(w, z / d)
    term = manifold.connection_term(w, point.gradient, xi)
    whole = manifold.proju(w, (point.hessian @ xi + term) / d**2) * d
    assert term.norm() > 1e-3
    assert relative(whole, operator @ z) < 1e-10


def test_second_derivatives_of_the_frame_are_refused():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model).requires_grad_()
    (first,) = torch.autograd.grad(manifold.frame(w).sum(), w, create_graph=True)
    h, e = 1e-6, torch.eye(len(w)).double()[3]
    ends = [manifold.frame((w + s * h * e).detach()).sum() for s in (1, -1)]
    assert float(first[3].detach()) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * h), rel=1e-6
    )
    with pytest.raises(NotImplementedError, match="first derivatives"):
        torch.autograd.grad(first.sum(), w)


# -- retraction, transport, distance ---


def test_retraction_is_second_order():
    """Its gap to the integrated geodesic shrinks as the cube."""
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    star = manifold.canonical(objective.layout.flatten(objective.model))
    u = torch.randn(len(star), generator=torch.Generator().manual_seed(2)).double()
    u = manifold.proju(star, u)
    u = u / u.norm()
    steps = (0.1, 0.05)
    gaps = [
        (manifold.retr(star, h * u) - geodesic(group, star, u, h)).norm() for h in steps
    ]
    straight = [(star + h * u - geodesic(group, star, u, h)).norm() for h in steps]
    assert 2.6 < torch.log2(gaps[0] / gaps[1]) < 3.4
    assert 1.6 < torch.log2(straight[0] / straight[1]) < 2.4


def test_retraction_keeps_the_frame():
    objective, group = prepared(normalised)
    manifold = qn.BalancedQuotient(group)
    w = group.act(objective.layout.flatten(objective.model), group.random(spread=2.0))
    u = torch.randn(len(w), generator=torch.Generator().manual_seed(2)).double()
    y = manifold.retr(w, 0.3 * manifold.proju(w, u / manifold.frame(w)))
    torch.testing.assert_close(manifold.frame(y), manifold.frame(w), rtol=1e-12, atol=0)


def test_chordal_distance_bounds_lengths_from_below():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    star = manifold.canonical(objective.layout.flatten(objective.model))
    generator = torch.Generator().manual_seed(3)
    for length in (0.5, 0.01):
        u = torch.randn(len(star), generator=generator, dtype=torch.float64)
        u = manifold.proju(star, u)
        y = geodesic(group, star, u / u.norm(), length)
        moved = group.act(y, group.random(spread=3.0, generator=generator))
        chord = float(manifold.chordal_distance(group.act(star, 0 * moved[:5]), moved))
        assert chord < length
        assert chord == pytest.approx(length, rel=0.3 * length)
    batch = torch.stack([star, moved])
    between = manifold.chordal_distance(batch, star)
    assert between.shape == (2,) and between[0] == 0 and between[1] > 0


@pytest.mark.parametrize("method", ["dist", "logmap", "expmap"])
def test_geodesics_are_not_pretended(method):
    _, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    x = manifold.random(dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="chordal_distance, a lower bound"):
        getattr(manifold, method)(x, x)


# -- points that have no canonical network ---


def test_dead_units_are_refused_by_name_and_left_out_on_request():
    model, group = dead()
    w = group.layout.flatten(model)
    manifold = qn.BalancedQuotient(group)
    ok, reason = manifold.check_point_on_manifold(w, explain=True)
    assert not ok and group.names[2] in reason and "exclude=w" in reason
    alive = w.clone()
    alive[4] = 1.0  # unit 2 has a way in, none out
    for method in (manifold.frame, manifold.canonical, manifold.projx):
        with pytest.raises(qn.NotOnManifoldError) as error:
            method(alive)
        assert group.names[1] in str(error.value) and "exclude=w" in str(error.value)
    for point in (w, alive):
        left = qn.BalancedQuotient(group, exclude=point)
        assert left.group.names == (group.names[0],)
        assert left.check_point_on_manifold(point)
        assert left.dimension == group.layout.size - 1
        assert torch.isfinite(left.proju(point, torch.randn_like(point))).all()


def test_a_unit_without_any_weights_is_refused():
    model, group = dead()
    w = group.layout.flatten(model)
    w[10] = 2.0  # unit 1 has its way out again; unit 2 has nothing
    manifold = qn.BalancedQuotient(group)
    with pytest.raises(qn.NotOnManifoldError, match="1 generators move nothing") as e:
        manifold.frame(w)
    assert group.names[2] in str(e.value)
    assert qn.BalancedQuotient(group, exclude=w).group.names == group.names[:2]


def test_a_residual_cycle_is_refused_and_left_out_on_request():
    model, x = residual_cycle(closed=True)
    group = qn.discover(model, x).group
    w = group.layout.flatten(model)
    with pytest.raises(qn.NotOnManifoldError, match="2 generators"):
        qn.BalancedQuotient(group).frame(w)
    assert qn.BalancedQuotient(group, exclude=w).group.dimension == 2


def test_other_refusals():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    with pytest.raises(TypeError, match="BalancedQuotient: exclude must be"):
        qn.BalancedQuotient(group, exclude=True)
    with pytest.raises(ValueError, match="no generator"):
        qn.BalancedQuotient(group, levels={"nobody": 1.0})
    with pytest.raises(qn.NotOnManifoldError, match="NaN or infinite"):
        manifold.frame(w / 0)
    with pytest.raises(ValueError, match="connection must be"):
        manifold.riemannian_hessian(objective.at(w), "none")
    with pytest.raises(ValueError, match="last dimension"):
        manifold.chordal_distance(w[:-1], w)


# -- contract ---


def test_copies_and_pickles_are_manifolds_of_their_own():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group, levels={group.names[0]: 0.5})
    w = objective.layout.flatten(objective.model)
    expected = manifold.frame(w)
    for twin in (copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold))):
        assert torch.equal(twin.frame(w), expected)


def test_large_groups_are_pickled_after_use():
    layout = qn.ParameterLayout({"a": (1100, 2), "b": (2, 1100)})
    unit = qn.Unit("hidden", 1100, (qn.Scale("a", 0), qn.Scale("b", 1, -1)))
    manifold = qn.BalancedQuotient(qn.ScalingGroup.from_units(layout, [unit]))
    w = manifold.random(dtype=torch.float64)
    projected = manifold.proju(w, torch.ones_like(w))
    twin = pickle.loads(pickle.dumps(manifold))
    torch.testing.assert_close(twin.proju(w, torch.ones_like(w)), projected)


def test_geooptic_descent_from_equivalent_points_stays_equivalent():
    objective, group = prepared(normalised)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    t = group.random(spread=1.5, generator=torch.Generator().manual_seed(0))
    ends, values = [], []
    for start in (w, group.act(w, t)):
        p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        optimizer = geoopt.optim.RiemannianSGD([p], lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            loss = objective(p)
            loss.backward()
            optimizer.step()
        ends.append(p.detach())
        values.append(float(loss.detach()))
    assert values[0] < float(objective(w))
    assert values[1] == pytest.approx(values[0], rel=1e-10)
    n = group.layout.parameter_size
    expected = group.act(ends[0], t)[:n]
    torch.testing.assert_close(ends[1][:n], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("lr", [1e-3, 1e-1])
def test_adam_descends_though_gradients_vanish_exactly(lr):
    """A dead unit has gradients that are exactly zero, and Adam divides by their size."""
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    ).double()
    with torch.no_grad():
        model[0].bias[:4] = -50.0
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), (x, torch.arange(40) % 3))
    manifold = qn.BalancedQuotient(qn.discover(model, x))
    p = geoopt.ManifoldParameter(objective.layout.flatten(model), manifold=manifold)
    optimizer = geoopt.optim.RiemannianAdam([p], lr=lr)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = objective(p)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert (objective.at(p.detach()).gradient == 0).sum() > 30
    assert max(values) <= 1.01 * values[0] and values[-1] < values[0]


@pytest.mark.parametrize(
    "name", ["canonical", "chordal_distance", "retr", "inner", "frame"]
)
def test_gradients_in_the_point_are_those_of_differences(name):
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    generator = torch.Generator().manual_seed(0)
    u, v, weights = torch.randn(3, len(w), generator=generator, dtype=torch.float64)
    calls = {
        "canonical": lambda x: (weights * manifold.canonical(x)).sum(),
        "chordal_distance": lambda x: manifold.chordal_distance(x, w + 0.3 * v),
        "retr": lambda x: (weights * manifold.retr(x, 0.1 * u)).sum(),
        "inner": lambda x: manifold.inner(x, u, v),
        "frame": lambda x: (weights * manifold.frame(x)).sum(),
    }
    x = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(calls[name](x), x)
    h = 1e-6
    expected = (calls[name](w + h * u) - calls[name](w - h * u)) / (2 * h)
    assert float(found @ u) == pytest.approx(float(expected), rel=1e-6)


def test_a_projection_is_not_differentiated_in_the_point():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    u = torch.ones_like(w, requires_grad=True)
    (found,) = torch.autograd.grad(manifold.proju(w, u).sum(), u)
    metric = manifold.frame(w) ** 2  # the projection is self-adjoint in the metric
    expected = metric * manifold.proju(w, 1 / metric)
    torch.testing.assert_close(found, expected)
    with pytest.raises(NotImplementedError, match="in the vector only"):
        manifold.proju(w.requires_grad_(), u)


def test_a_point_changed_in_place_is_another_point():
    objective, group = prepared(small)
    manifold = qn.BalancedQuotient(group)
    w = objective.layout.flatten(objective.model)
    before = manifold.frame(w).clone()
    w.mul_(torch.linspace(0.5, 2.0, len(w)).double())
    fresh = qn.BalancedQuotient(group).frame(w)
    assert torch.equal(manifold.frame(w), fresh) and not torch.equal(before, fresh)


@pytest.mark.parametrize(
    "name", [n for n in ARCHITECTURES if ARCHITECTURES[n].dimension]
)
def test_every_architecture_has_the_geometry(name):
    architecture = ARCHITECTURES[name]
    model, x = architecture.build().train(), architecture.inputs()
    group = qn.discover(model, x).group
    manifold = qn.BalancedQuotient(group)
    w = group.layout.flatten(model)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, len(w), generator=generator, dtype=torch.float64)
    t = group.random(spread=2.0, generator=generator)
    here = manifold.proju(w.expand(3, -1), u)
    there = manifold.proju(group.act(w, t).expand(3, -1), group.act(u, t))
    assert relative(group.act(there, -t), here) < 1e-10
    v = manifold.canonical(w)[:, None] * dense_exponents(group)
    v[manifold.layout.parameter_size :] = 0.0
    flat = here * manifold.frame(w)
    assert float((flat @ v).abs().max()) < 1e-12 * float(flat.norm() * v.norm())
