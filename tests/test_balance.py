"""Canonical networks against hand values, a general minimiser and pairwise equalisation."""

import copy
from math import sqrt

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Block
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

import quotientnet as qn
from quotientnet.symmetry import balancing, default_levels
from quotientnet.testing.networks import networks

OPTIONS = {"deadline": None, "derandomize": True, "database": None}
NAMES = [n for n in ARCHITECTURES if ARCHITECTURES[n].dimension]
NORMS = [2, "max"]


def derived(name, training=True):
    """A model, its inputs, its group and its point."""
    architecture = ARCHITECTURES[name]
    model, x = architecture.build().train(training), architecture.inputs()
    group = qn.discover(model, x).group
    return model, x, group, group.layout.flatten(model)


def two_layers(first, bias, second):
    """A network of one hidden layer from numbers, and its group."""
    model = nn.Sequential(
        nn.Linear(len(first[0]), len(first)), nn.ReLU(),
        nn.Linear(len(first), len(second), bias=False),
    ).double()  # fmt: skip
    for p, value in zip(model.parameters(), (first, bias, second)):
        p.data = torch.tensor(value, dtype=torch.float64)
    group = qn.discover(model, torch.randn(3, len(first[0]), dtype=torch.float64)).group
    return model, group


def relative(a, b):
    return float(((a - b).abs() / b.abs().clamp(min=1e-300)).max())


def dense_exponents(group):
    return group.exponents(torch.eye(group.dimension, dtype=torch.float64)).T


# -- hand values ---


def test_incoming_norms_equal_outgoing_norms_by_hand():
    model, group = two_layers([[3.0, 4.0], [1.0, 0.0]], [0.0, 0.0], [[20.0, 1.0]])
    w = qn.canonical(group.layout.flatten(model), group)
    expected = [6.0, 8.0, 1.0, 0.0, 0.0, 0.0, 10.0, 1.0]
    assert relative(w[:4], torch.tensor(expected[:4]).double()) < 1e-14
    torch.testing.assert_close(w, torch.tensor(expected).double(), rtol=1e-14, atol=0)


def test_largest_entries_are_equal_by_hand():
    model, group = two_layers([[3.0, 4.0]], [8.0], [[2.0], [-0.5]])
    w = qn.canonical(group.layout.flatten(model), group, norm="max")
    expected = torch.tensor([1.5, 2.0, 4.0, 4.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(w, expected, rtol=1e-14, atol=0)


def test_filters_before_a_normalisation_get_norm_one():
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, eps=1e-30), nn.ReLU(),
        nn.Linear(4, 2),
    ).double()  # fmt: skip
    x = torch.randn(9, 3, dtype=torch.float64)
    model(x)
    for norm, size in ((2, 2), ("max", float("inf"))):
        twin = qn.balance(model, qn.discover(model, x), norm=norm, inputs=x)
        filters = twin[0].weight.norm(size, dim=1)
        torch.testing.assert_close(
            filters, torch.ones_like(filters), rtol=1e-13, atol=0
        )
        scale = filters / model[0].weight.norm(size, dim=1)
        mean, variance = twin[1].running_mean, twin[1].running_var
        torch.testing.assert_close(mean, model[1].running_mean * scale)
        torch.testing.assert_close(variance, model[1].running_var * scale**2)
        with torch.no_grad():
            out, expected = twin.eval()(x), copy.deepcopy(model).eval()(x)
        assert relative(out, expected) < 1e-10


def test_levels_by_name():
    model, group = two_layers([[3.0], [1.0]], [0.0, 0.0], [[2.0, 5.0]])
    w = group.layout.flatten(model)
    balanced = qn.canonical(w, group, levels={group.names[0]: 5.0})
    into, out = balanced[[0, 2]].square().sum(), balanced[4] ** 2
    assert float(into - out) == pytest.approx(5.0, rel=1e-13)
    assert float(balanced[1].abs()) == pytest.approx(sqrt(5.0), rel=1e-13)
    largest = qn.canonical(w, group, levels={group.names[0]: 5.0}, norm="max")
    assert float(largest[0] ** 2 - largest[4] ** 2) == pytest.approx(5.0, rel=1e-13)


def test_default_levels_follow_the_signs_of_exponents():
    layout = qn.ParameterLayout({"a": (2,), "b": (2,), "c": (1,)}, {"mean": (2,)})
    units = [
        qn.Unit("filter", 1, (qn.Scale("a", None, 2), qn.Scale("mean", None, -1))),
        qn.Unit("hidden", 1, (qn.Scale("a", None), qn.Scale("b", None, -3))),
        qn.Unit("divisor", 1, (qn.Scale("c", None, -1),)),
    ]
    group = qn.ScalingGroup.from_units(layout, units)
    assert default_levels(group).tolist() == [1.0, 0.0, -1.0]


# -- every architecture, and random networks ---


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_one_network_an_orbit(name, norm):
    """The same from twelve orders of magnitude away, idempotent, and the function is kept."""
    model, x, group, w = derived(name)
    star = qn.canonical(w, group, norm=norm)
    generator = torch.Generator().manual_seed(0)
    t = 27.6 * torch.rand(group.dimension, generator=generator).double() - 13.8
    crowded = group.magnitudes().exponents(torch.ones_like(t)).max()
    t = t * min(1.0, 2 / float(crowded))
    moved = qn.canonical(group.act(w, t), group, norm=norm)
    assert relative(moved, star) < 1e-12
    assert relative(qn.canonical(star, group, norm=norm), star) < 1e-12
    qn.balance(model, group, norm=norm, inputs=x, tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_reached_and_nothing_is_smaller(name):
    """``Aᵀ(w*²) = c`` with dense exponents, at the minimum that a general minimiser finds."""
    _, _, group, w = derived(name)
    n = group.layout.parameter_size
    a, c = dense_exponents(group)[:n], default_levels(group)
    star = qn.canonical(w, group)[:n]
    sums = a.T @ star**2
    assert float((sums - c).abs().max()) < 1e-11 * float(star.square().sum())
    found = balancing(w, group)
    value = float(star.square().sum() / 2 - c @ found.t)
    a, c, squares = a.numpy(), c.numpy(), w[:n].square().numpy()
    reference = minimize(
        lambda t: (squares * np.exp(2 * a @ t)).sum() / 2 - c @ t,
        np.zeros(group.dimension),
        jac=lambda t: a.T @ (squares * np.exp(2 * a @ t)) - c,
        method="BFGS",
        options={"gtol": 1e-9},
    )
    assert value <= reference.fun + 1e-9 * abs(reference.fun)
    assert value == pytest.approx(reference.fun, rel=1e-6)


@pytest.mark.slow
@given(model=networks(), norm=st.sampled_from(NORMS), seed=st.integers(0, 2**16))
@settings(max_examples=30, phases=[Phase.generate], **OPTIONS)
def test_random_networks(model, norm, seed):
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    group = qn.discover(model, x).group
    w = group.layout.flatten(model)
    t = group.random(spread=2.0, generator=torch.Generator().manual_seed(seed))
    points = w, group.act(w, t)
    found = [balancing(y, group, norm=norm, runaways="exclude") for y in points]
    assert found[0].excluded == found[1].excluded
    if not found[0].excluded:
        # A statistic of nothing but zeros may have a generator of its own, which stays as it is.
        n = group.layout.parameter_size
        star, other = (group.act(y, f.t)[:n] for y, f in zip(points, found))
        assert relative(other, star) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "vgg", "u-net", "depthwise-separable"])
def test_equalisation_is_the_limit_of_pairwise_averaging(name):
    """Without residual cycles, from anywhere: one generator after the other, thousands of times."""
    _, _, group, w = derived(name)
    a, y = dense_exponents(group), w.abs().log()
    for _ in range(3000):
        for j in range(group.dimension):
            out, into = y[a[:, j] < 0].max(), y[a[:, j] > 0].max()
            y = y + a[:, j] * (out - into) / 2
    star = qn.canonical(w, group, norm="max")
    assert relative(star.abs(), y.exp()) < 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_entries_that_do_not_move_are_in_no_balance(norm):
    """The diagonal of a residual map, however large."""
    layout = qn.ParameterLayout({"i": (3, 2), "map": (3, 3), "o": (2, 3)})
    scales = (
        qn.Scale("i", 0),
        qn.Scale("map", 0),
        qn.Scale("map", 1, -1),
        qn.Scale("o", 1, -1),
    )
    group = qn.ScalingGroup.from_units(layout, [qn.Unit("stream", 3, scales)])
    w = torch.randn(layout.size, generator=torch.Generator().manual_seed(0)).double()
    diagonal = layout["map"].start + 4 * torch.arange(3)
    large = w.index_fill(0, diagonal, 1e3)
    stars = [
        qn.canonical(p, group, norm=norm).index_fill(0, diagonal, 0.0)
        for p in (w, large)
    ]
    torch.testing.assert_close(stars[1], stars[0], rtol=1e-12, atol=0)


def test_a_basis_change_carries_levels_along():
    """``A' = A B`` and ``c' = Bᵀ c`` give the same network."""
    _, _, group, w = derived("normalised mlp")
    rng = np.random.default_rng(0)
    basis = np.eye(group.dimension, dtype=np.int64)
    basis += np.triu(rng.integers(-1, 2, basis.shape), 1)
    other = qn.ScalingGroup(group.layout, group.incidence, group.classes @ basis)
    levels = torch.from_numpy(basis.T) @ default_levels(group).long()
    star = qn.canonical(w, other, levels=levels.double())
    assert relative(star, qn.canonical(w, group)) < 1e-12


# -- zeros, extremes, dtypes, batches ---


def test_exact_zeros_stay_and_do_not_matter():
    model, x, group, w = derived("mlp")
    w[torch.randperm(len(w), generator=torch.Generator().manual_seed(0))[:12]] = 0.0
    star = qn.canonical(w, group)
    assert ((star == 0) == (w == 0)).all() and torch.isfinite(star).all()
    moved = group.act(w, group.random(spread=5.0))
    assert relative(qn.canonical(moved, group), star) < 1e-12


@pytest.mark.parametrize("size", [1e-250, 1e-160, 1e160, 1e250])
def test_squares_beyond_the_range_of_float64(size):
    _, _, group, w = derived("mlp")
    t = torch.full((group.dimension,), np.log(size) / 2, dtype=torch.float64)
    t[0] *= 2
    star = qn.canonical(w, group)
    assert relative(qn.canonical(group.act(w, t), group), star) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_float32_and_batches(norm):
    _, _, group, w = derived("vgg")
    points = torch.stack([w, 2 * w, w.flip(0)]).reshape(3, 1, -1)
    together = qn.canonical(points, group, norm=norm)
    assert together.shape == points.shape
    alone = [qn.canonical(p, group, norm=norm) for p in points[:, 0]]
    assert torch.equal(together[:, 0], torch.stack(alone))
    single = qn.canonical(w.float(), group, norm=norm)
    assert single.dtype == torch.float32
    assert relative(single.double(), alone[0]) < 1e-6
    assert relative(qn.canonical(single, group, norm=norm), single) < 1e-6
    assert qn.canonical(points[:0], group, norm=norm).shape == (0, 1, w.numel())


def recurrent(width, outside, seed=0):
    """A stream that feeds itself, with weak weights from and to the outside."""
    model = Block(
        lambda m, x: m.o(F.relu((h := F.relu(m.i(x))) + m.m(h))),
        i=nn.Linear(3, width, bias=False), m=nn.Linear(width, width, bias=False),
        o=nn.Linear(width, 2, bias=False),
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
        model.i.weight *= outside
        model.o.weight *= 0.1 * outside
    x = torch.randn(5, 3, generator=generator).double()
    return model, qn.discover(model, x).group


@pytest.mark.slow
@pytest.mark.parametrize(
    "width, outside",
    [*((width, outside) for width in (4, 60) for outside in (1e-2, 1e-5, 1e-9)), (1100, 1e-9)],
)
def test_a_stream_hardly_tied_to_the_outside(width, outside):
    """The sum of all balances: what comes in is what goes out, though it is a rounding error of
    what circulates."""
    model, group = recurrent(width, outside)
    w = group.layout.flatten(model)
    star = qn.canonical(w, group)
    views = group.layout.unflatten(star)
    into, out = (float(views[f"{k}.weight"].square().sum()) for k in "io")
    assert into == pytest.approx(out, rel=1e-11)
    t = group.random(spread=3.0, generator=torch.Generator().manual_seed(1))
    assert relative(qn.canonical(group.act(w, t), group), star) < 1e-11


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e-160, 1e-155, 1e155, 1e200])
def test_all_weights_tiny_or_huge(norm, size):
    _, _, group, w = derived("mlp")
    star = qn.canonical(w, group, norm=norm)
    scaled = qn.canonical(size * w, group, norm=norm)
    assert relative(scaled / size, star) < 1e-12


def test_what_underflows_when_squared_is_still_there():
    layout = qn.ParameterLayout({name: (1,) for name in ("i", "o", "p", "ab", "ba")})
    a = [qn.Scale("i", None), qn.Scale("o", None, -1), qn.Scale("ab", None, -1)]
    b = [qn.Scale("ab", None), qn.Scale("p", None, -1), qn.Scale("ba", None, -1)]
    units = [
        qn.Unit("a", 1, (*a, qn.Scale("ba", None))),
        qn.Unit("b", 1, tuple(b)),
    ]
    group = qn.ScalingGroup.from_units(layout, units)
    w = torch.tensor([1.0, 0.0, 1e-170, 1.0, 1.0], dtype=torch.float64)
    star = qn.canonical(w, group)
    assert float(star[0] / star[2]) == pytest.approx(1.0, rel=1e-12)
    w = torch.tensor([1e-200, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    with pytest.raises(qn.NotOnManifoldError, match="2 generators"):
        qn.canonical(w, group)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 40])
def test_deep_narrow_networks(depth):
    layers = [nn.Linear(4, 4) for _ in range(depth)]
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    model = model.double()
    group = qn.discover(model, torch.randn(3, 4).double()).group
    w = group.layout.flatten(model)
    t = group.random(spread=2.0, generator=generator)
    for norm in NORMS:
        star = qn.canonical(w, group, norm=norm)
        assert relative(qn.canonical(group.act(w, t), group, norm=norm), star) < 1e-11


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_normalised_stream_needs_a_level_and_gets_one(norm_first):
    """Generators of a transformer's layer that are one-signed only in combination."""
    model = nn.Sequential(*[
        nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=norm_first)
        for _ in range(2)
    ]).double()  # fmt: skip
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).double()
    group = qn.discover(model, x).group
    if not group.dimension:
        pytest.skip("no symmetry")
    w = group.layout.flatten(model)
    star = qn.canonical(w, group)
    t = group.random(spread=2.0, generator=torch.Generator().manual_seed(1))
    assert relative(qn.canonical(group.act(w, t), group), star) < 1e-11
    qn.balance(model, group, inputs=x, tolerance=1e-2)
    assert qn.BalancedQuotient(group).check_point_on_manifold(w)


# -- units without a balance ---


def dead():
    """Of three hidden units, unit 1 has no outgoing weights and unit 2 no weights at all."""
    return two_layers(
        [[3.0, 4.0], [1.0, 2.0], [0.0, 0.0]], [0.0, 1.0, 0.0], [[20.0, 0.0, 0.0]]
    )


def test_dead_units_are_named_and_excluded_on_request():
    model, group = dead()
    w = group.layout.flatten(model)
    before = copy.deepcopy(model.state_dict())
    for call in (lambda: qn.canonical(w, group), lambda: qn.balance(model, group)):
        with pytest.raises(
            qn.NotOnManifoldError, match="1 generators .* run away"
        ) as e:
            call()
        assert repr(group.names[1]) in str(e.value)
        assert "runaways='exclude'" in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    found = balancing(w, group, runaways="exclude")
    assert found.excluded == (group.names[1],)
    star = group.act(w, found.t)
    expected = [6.0, 8.0, 1.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10.0, 0.0, 0.0]
    torch.testing.assert_close(
        star, torch.tensor(expected).double(), rtol=1e-13, atol=0
    )


def residual_cycle(closed):
    """A stream of two channels and a block; the first channel feeds the outside if not closed."""

    def forward(m, x):
        h = m.i(x)
        return m.o(h + m.b(F.relu(m.a(h))))

    model = Block(
        forward, i=nn.Linear(2, 2, bias=False), a=nn.Linear(2, 2, bias=False),
        b=nn.Linear(2, 2, bias=False), o=nn.Linear(2, 1, bias=False),
    ).double()  # fmt: skip
    with torch.no_grad():
        model.a.weight.copy_(torch.diag(torch.tensor([1.0, 2.0])))
        model.b.weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        if closed:
            model.o.weight[0, 1] = 0.0
    return model, torch.randn(5, 2, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_cycle_runs_away_as_a_set(norm):
    """Channel 1 of the stream and unit 1 of the block only feed each other."""
    model, x = residual_cycle(closed=False)
    group = qn.discover(model, x).group
    assert group.dimension == 4
    qn.balance(model, group, norm=norm, inputs=x)
    model, x = residual_cycle(closed=True)
    w = group.layout.flatten(model)
    with pytest.raises(qn.NotOnManifoldError, match="2 generators"):
        qn.canonical(w, group, norm=norm)
    found = balancing(w, group, runaways="exclude", norm=norm)
    assert len(found.excluded) == 2
    star = group.layout.unflatten(group.act(w, found.t))
    kept = group.layout.unflatten(w)
    assert torch.equal(star["b.weight"][1, 1], kept["b.weight"][1, 1])


# -- refusals ---


def test_bad_input_is_refused_and_nothing_changes():
    model, x, group, w = derived("mlp")
    before = w.clone()
    cases = [
        (ValueError, "w has shape", lambda: qn.canonical(w[:-1], group)),
        (ValueError, "'0.weight' has .* NaN", lambda: qn.canonical(w / 0, group)),
        (TypeError, "levels must be a dict", lambda: qn.canonical(w, group, levels=1.0)),
        (TypeError, "model must be", lambda: qn.balance(w, group)),
        (ValueError, "balance: the layout belongs", lambda: qn.balance(nn.Linear(2, 2), group)),
        (ValueError, "norm must be 2", lambda: qn.canonical(w, group, norm=1)),
        (ValueError, "runaways", lambda: qn.canonical(w, group, runaways="x")),
        (ValueError, "'unit'.*no generator", lambda: qn.canonical(w, group, levels={"unit": 1})),
        (ValueError, "levels must be 8", lambda: qn.canonical(w, group, levels=torch.ones(2))),
        (TypeError, "balance", lambda: qn.balance(model, "group")),
        (TypeError, "model", lambda: qn.transform(w, group, torch.zeros(8))),
        (ValueError, "another model", lambda: qn.transform(nn.Linear(2, 2), group, torch.zeros(8))),
        (ValueError, r"t must be .* \(8,\)", lambda: qn.transform(model, group, torch.zeros(7))),
        (ValueError, "t has NaN", lambda: qn.transform(model, group, torch.zeros(8) / 0)),
        (ValueError, "range", lambda: qn.transform(model, group, torch.full((8,), 1e4))),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert torch.equal(group.layout.flatten(model), before)
