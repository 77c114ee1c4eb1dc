"""The convex solver against scipy, closed forms and linear programs."""

import numpy as np
import pytest
import torch
from exponentials import chain, dense_group, numbers, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

import quotientnet as qn
from quotientnet import gram
from quotientnet.exponential import minimise_exponentials

OPTIONS = {"deadline": None, "derandomize": True, "database": None}


def reference(a, c, b=0.0):
    """The minimum by scipy's trust region, with exact derivatives."""

    def value(t):
        return (c * np.exp(a @ t)).sum() - np.sum(b * t)

    def slope(t):
        return a.T @ (c * np.exp(a @ t)) - b

    def curvature(t):
        return a.T @ ((c * np.exp(a @ t))[:, None] * a)

    start = np.zeros(a.shape[1])
    options = {"gtol": 1e-12}
    found = minimize(
        value, start, jac=slope, hess=curvature, method="trust-exact", options=options
    )
    return found.fun


@pytest.mark.parametrize("seed", range(6))
def test_against_a_general_minimiser(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(-2, 3, (12, 4))
    a = np.concatenate([a, -a[:4], np.eye(4, dtype=int), -np.eye(4, dtype=int)])
    a = a[np.abs(a).sum(1) > 0]
    c, b = numbers(seed, len(a)), 0.1 * rng.standard_normal(4)
    found = minimise_exponentials(dense_group(a), torch.from_numpy(c), b)
    assert found.attained and found.converged and found.residual < 1e-13
    assert found.value == pytest.approx(reference(a, c, b), rel=1e-9)
    slope = a.T @ (c * np.exp(a @ found.t.numpy())) - b
    assert np.abs(slope).max() < 1e-12 * c.sum()


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_layers_without_biases_have_a_closed_form(layers):
    """ibayashi2021: the minimum over products that are 1 is ``D (∏ tr)^{1/D}``."""
    traces = torch.from_numpy(numbers(layers, layers, 5.0))
    a = np.eye(layers, dtype=int)[:, :-1] - np.eye(layers, dtype=int)[:, 1:]
    found = minimise_exponentials(dense_group(a), traces, factor=-2.0)
    expected = layers * float(traces.log().mean().exp())
    assert found.value == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("band", [1, 2, 9])
def test_rows_and_columns_against_plain_sweeps(band):
    """tsuzuku2019 (17); closed-form sweeps alone are slow on narrow bands."""
    n = 8
    where = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) < band
    h, w = (np.where(where, numbers(s, (n, n), 2.0), 0.0) for s in (1, 2))
    group = pairs(n, n)
    c = torch.from_numpy(np.concatenate([h.reshape(-1), w.reshape(-1)]))
    found = minimise_exponentials(group, c)
    x, y = np.zeros((n, 1)), np.zeros((1, n))
    for _ in range(20_000):
        x = 0.5 * np.log((w * np.exp(-y)).sum(1) / (h * np.exp(y)).sum(1))[:, None]
        y = 0.5 * np.log((w * np.exp(-x)).sum(0) / (h * np.exp(x)).sum(0))[None]
    swept = (h * np.exp(x + y) + w * np.exp(-x - y)).sum()
    assert found.converged and found.attained
    assert found.value == pytest.approx(swept, rel=1e-12)


def test_scales_of_any_size_reach_the_same_minimum():
    """Iterations, not accuracy, depend on how far away the start is."""
    group = pairs(5, 4)
    c = torch.from_numpy(numbers(3, 40))
    near = minimise_exponentials(group, c)
    t = group.random(spread=60.0, generator=torch.Generator().manual_seed(0))
    far = minimise_exponentials(group, group.act(c, t))
    assert far.converged and far.value == pytest.approx(near.value, rel=1e-12)
    moved = group.exponents(far.t + t - near.t)
    assert moved.abs().max() < 1e-12


def test_many_generators_take_the_same_path(monkeypatch):
    layout = qn.ParameterLayout({"u": (30, 20), "v": (25, 30), "bias": (30,)})
    hidden = qn.Unit(
        "hidden", 30, (qn.Scale("u", 0), qn.Scale("bias", 0), qn.Scale("v", 1, -1))
    )
    outer = qn.Unit("outer", 20, (qn.Scale("u", 1, -1),))
    group = qn.ScalingGroup.from_units(layout, [hidden, outer])
    c = torch.from_numpy(numbers(4, layout.size, 3.0))
    b = torch.cat([torch.zeros(30), -torch.ones(20)]).double()
    dense = minimise_exponentials(group, c, b)
    monkeypatch.setattr(gram, "_DENSE", 0)
    iterative = minimise_exponentials(group, c, b)
    assert iterative.converged and iterative.residual < 1e-13
    torch.testing.assert_close(iterative.t, dense.t, rtol=0, atol=1e-12)


def test_no_newton_step_goes_uphill():
    """A long chain whose first weights are large: every layer is in its own balance soon, the
    whole is not, and full Newton steps would overshoot by orders of magnitude."""
    layers = 80
    a = np.eye(layers, dtype=int)[:, :-1] - np.eye(layers, dtype=int)[:, 1:]
    c = torch.exp(torch.linspace(60.0, -60.0, layers, dtype=torch.float64))
    c[: layers // 4] *= 1e30
    steps = [
        minimise_exponentials(dense_group(a), c, max_iterations=k) for k in range(12)
    ]
    values = np.array([found.value for found in steps])
    assert (np.diff(values) <= 1e-12 * values[:-1]).all() and values[0] > 2 * values[-1]
    found = minimise_exponentials(dense_group(a), c)
    assert found.converged
    expected = layers * float(c.log().mean().exp())
    assert found.value == pytest.approx(expected, rel=1e-12)


def test_terms_that_underflow_on_the_way_come_back():
    """From scales of 1e±130 sweeps pass through numbers that float64 does not have."""
    group = pairs(6, 6)
    c = torch.from_numpy(numbers(8, 72, 3.0))
    near = minimise_exponentials(group, c)
    sign = torch.where(torch.arange(12) % 2 == 0, 300.0, -300.0).double()
    far = minimise_exponentials(group, group.act(c, sign))
    assert far.converged and far.residual < 1e-12
    assert far.value == pytest.approx(near.value, rel=1e-11)


def test_a_function_of_the_entry_makes_the_coefficients():
    group = pairs(3, 2)
    c = torch.from_numpy(numbers(5, 12))
    pieces = group.layout.unflatten(c)
    made = minimise_exponentials(group, lambda entry: pieces[entry.name])
    assert made.value == minimise_exponentials(group, c).value


def test_what_no_generator_moves_is_added():
    layout = qn.ParameterLayout({"a": (1,), "b": (1,), "still": (3,)})
    unit = qn.Unit("unit", 1, (qn.Scale("a", None), qn.Scale("b", None, -1)))
    group = qn.ScalingGroup.from_units(layout, [unit])
    c = torch.tensor([1.0, 4.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert minimise_exponentials(group, c).value == pytest.approx(10.0, rel=1e-14)


def test_entries_on_which_terms_cancel_do_not_move():
    layout = qn.ParameterLayout({"map": (3, 3)})
    stream = qn.Unit("stream", 3, (qn.Scale("map", 0), qn.Scale("map", 1, -1)))
    group = qn.ScalingGroup.from_units(layout, [stream])
    c = torch.from_numpy(numbers(6, 9, 2.0))
    found = minimise_exponentials(group, c)
    balanced = (c * group.exponents(found.t).exp()).reshape(3, 3)
    torch.testing.assert_close(balanced.sum(0), balanced.sum(1), rtol=1e-13, atol=0)
    assert found.value == pytest.approx(float(balanced.sum()), rel=1e-13)


# -- infima that are not attained ---


def test_a_unit_without_outgoing_weights_runs_away():
    group = chain(2, 3, 2)
    c = torch.ones(12, dtype=torch.float64)
    views = group.layout.unflatten(c)
    views["w1"][:, 1] = 0
    found = minimise_exponentials(group, c)
    assert not found.attained and found.runaways == ("unit 1 of h1",)
    assert found.t.isnan().tolist() == [False, True, False]
    # The others balance 2 and 2; the unit's own terms are left out.
    assert found.value == pytest.approx(8.0, rel=1e-13) and found.converged


def test_units_that_follow_one_that_runs_away():
    """Unit 0 of h2 gets all it has from unit 1 of h1, which has no weights of its own."""
    group = chain(2, 2, 2, 2)
    c = torch.ones(12, dtype=torch.float64)
    views = group.layout.unflatten(c)
    views["w0"][1] = 0
    views["w1"][0, 0] = 0
    found = minimise_exponentials(group, c)
    assert found.runaways == ("unit 1 of h1", "unit 0 of h2")


def cycle(links, back):
    """Two units that feed each other, ``links`` from outside, ``back`` to the outside."""
    a = [[1, -1], [-1, 1], [1, 0], [0, -1]]
    return dense_group(a), torch.tensor([1.0, 1.0, links, back], dtype=torch.float64)


def test_a_cycle_runs_away_together_though_every_side_is_there():
    group, c = cycle(1.0, 0.0)
    found = minimise_exponentials(group, c)
    assert found.runaways == ("g0", "g1")
    assert found.value == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("weak", [1e-3, 1e-8, 1e-14])
def test_a_cycle_with_weak_links_has_a_minimum(weak):
    group, c = cycle(weak, weak**3)
    found = minimise_exponentials(group, c)
    assert found.attained and found.converged
    assert found.value == pytest.approx(2 + 2 * weak**2, rel=1e-12)
    moved = c * group.exponents(found.t).exp()
    assert float(moved[2]) == pytest.approx(float(moved[3]), rel=1e-3)


@pytest.mark.parametrize("count", [8, 40])
def test_sets_within_sets_have_their_own_balance(count):
    """Nested cycles, each tied to the next a million times more weakly: mpmath is not needed,
    because what crosses the boundary of each set must balance by itself."""
    a, c = [], []
    for j in range(count):
        row = np.zeros(count, dtype=int)
        row[j] = 1
        a += [row, -row]
        c += [1e-30 * (j + 1), 1e-31]
        for k in range(j):
            tie = 10.0 ** (-8 * ((j ^ k).bit_length() - 1))
            pair = np.zeros(count, dtype=int)
            pair[[j, k]] = 1, -1
            a += [pair, -pair]
            c += [tie * (1 + j), tie * (1 + k)]
    a, c = np.array(a), np.array(c)
    found = minimise_exponentials(dense_group(a), torch.from_numpy(c))
    assert found.attained and found.converged
    for size in (1, 2, 4, 8):
        for start in range(0, count - size + 1, size):
            inside = np.zeros(count, dtype=int)
            inside[start : start + size] = 1
            crossing = a @ inside
            m = c * np.exp(a @ found.t.numpy())
            into, out = m[crossing > 0].sum(), m[crossing < 0].sum()
            assert into == pytest.approx(out, rel=1e-9)
    m = c * np.exp(a @ found.t.numpy())
    whole = a.sum(1)
    assert m[whole > 0].sum() == pytest.approx(m[whole < 0].sum(), rel=1e-9)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_levels_of_any_size_can_be_unbounded(size):
    group = dense_group([[1, 1, -1], [-1, -1, 1]])
    b = torch.tensor([size, -size, 0.0], dtype=torch.float64)
    assert minimise_exponentials(group, torch.ones(2), b).value == -np.inf


@pytest.mark.parametrize("count", [5, 15, 20])
def test_directions_with_large_entries(count):
    """``t_0`` shrinks for ever, and ``t_j = 2^j t_0`` with it."""
    a = np.zeros((2 * count - 1, count), dtype=int)
    a[0, 0] = 1
    for j in range(count - 1):
        a[2 * j + 1, [j, j + 1]] = 2, -1
        a[2 * j + 2] = -a[2 * j + 1]
    found = minimise_exponentials(dense_group(a), torch.ones(len(a)))
    assert not found.attained
    assert found.value == pytest.approx(2 * (count - 1), rel=1e-9)


def test_a_cycle_apart_from_all_else_stays():
    group, c = cycle(0.0, 0.0)
    found = minimise_exponentials(group, 4.0 ** torch.arange(4) * (c > 0))
    assert found.attained and found.value == pytest.approx(4.0, rel=1e-12)


def test_a_level_without_terms_is_unbounded():
    group = chain(1, 1, 1)
    found = minimise_exponentials(group, torch.zeros(2), torch.tensor([1.0]))
    assert found.value == -np.inf and found.runaways == ("h1",)
    found = minimise_exponentials(group, torch.tensor([1.0, 0.0]), torch.tensor([-1.0]))
    assert found.value == -np.inf


def test_a_source_and_a_drain_of_one_size_leave_nothing_for_others():
    """What the source gives is what the drain takes, so the term from outside must vanish."""
    group = dense_group([[0, 1, 0], [0, -1, 1], [-1, 1, 0]])
    b = torch.tensor([-1.0, 0.0, 1.0])
    found = minimise_exponentials(group, torch.tensor([2.0, 0.5, 3.0]), b)
    assert not found.attained and np.isfinite(found.value)
    more = minimise_exponentials(
        group, torch.tensor([2.0, 0.5, 3.0]), torch.tensor([-1.0, 0.0, 1.5])
    )
    assert more.attained and more.converged


def test_nothing_at_all_is_a_minimum():
    group = chain(2, 2, 2)
    found = minimise_exponentials(group, torch.zeros(8))
    assert found.attained and found.converged and found.value == 0.0
    assert (found.t == 0).all()
    trivial = qn.ScalingGroup(group.layout, {})
    assert minimise_exponentials(trivial, torch.ones(8)).value == 8.0


@given(seed=st.integers(0, 10_000), graph=st.booleans(), tilted=st.booleans())
@settings(max_examples=150, **OPTIONS)
def test_attained_iff_positive_multipliers_balance(seed, graph, tilted):
    """A minimum exists iff some ``m > 0`` has ``Aᵀm = b``: another linear program."""
    rng = np.random.default_rng(seed)
    n, k = rng.integers(2, 9), rng.integers(1, 5)
    if graph:
        ends = rng.integers(0, k + 1, (n, 2))
        basis = np.eye(k + 1, k, dtype=int)
        a = basis[ends[:, 0]] - basis[ends[:, 1]]
    else:
        a = rng.integers(-2, 3, (n, k))
    c = np.where(rng.random(n) < 0.8, numbers(seed, n), 0.0)
    a[0] = np.where(np.abs(a).sum(0) > 0, a[0], 1)  # every generator moves something
    active = a[c > 0]
    b = rng.integers(-1, 2, k).astype(float) if tilted else np.zeros(k)
    if tilted and seed % 2:
        b = active.T @ rng.random(len(active))
    margin = linprog(
        np.r_[np.zeros(len(active)), -1.0],
        np.c_[-np.eye(len(active)), np.ones(len(active))],
        np.zeros(len(active)),
        np.c_[active.T, np.zeros(k)],
        b,
        bounds=[(None, None)] * len(active) + [(None, 1.0)],
    )
    exists = margin.status == 0 and (not len(active) or margin.x[-1] > 1e-7)
    found = minimise_exponentials(dense_group(a), torch.from_numpy(c), b)
    assert found.attained == exists
    assert found.converged
    if exists:
        # Positive multipliers that balance exactly: the certificate itself.
        m = c * np.exp(a @ found.t.numpy())
        assert np.abs(a.T @ m - b).max() <= 1e-11 * max(
            m.sum(), np.abs(b).sum(), 1e-300
        )


def test_what_is_said_of_a_sum_without_bound_and_of_one_with():
    group = dense_group([[1, 0], [0, 1], [0, -1]])
    c = torch.ones(3, dtype=torch.float64)
    found = minimise_exponentials(group, c, [-1.0, 0.0])
    assert (found.value, found.residual, found.error, found.iterations) == (-np.inf, 0, 0, 0)
    assert found.converged and found.vanishing["a"].tolist() == [True, False, False]
    bounded = minimise_exponentials(group, c, [1.0, 0.0])
    assert bounded.vanishing == {} and bounded.attained
    assert bounded.value == pytest.approx(3.0, rel=1e-14)


def test_one_small_coefficient_among_others_is_none_too_few():
    c = torch.tensor([1.0, 1e-310], dtype=torch.float64)
    assert minimise_exponentials(dense_group([[1], [-1]]), c).converged


# -- refusals ---


@pytest.mark.parametrize(
    "c, b, factor, message",
    [
        ([1.0, -1.0], None, 1.0, "1 coefficients of 'a' are negative"),
        ([1.0, float("nan")], None, 1.0, "1 coefficients of 'a'"),
        ([1.0, float("inf")], None, 1.0, "1 coefficients of 'a'"),
        ([1.0], None, 1.0, "coefficients has shape"),
        ([1.0, 1.0], [1.0, 2.0], 1.0, "linear must be finite and of shape"),
        ([1.0, 1.0], [float("nan")], 1.0, "linear must be finite"),
        ([1.0, 0.0], [float("nan")], 1.0, "linear must be finite"),
        ([0.0, -1.0], None, 1.0, "1 coefficients of 'a' are negative"),
        ([[1.0, 1.0]], None, 1.0, "coefficients must have shape"),
        ([1.0, 1.0], None, float("nan"), "factor must be"),
        ([1.0, 1.0], None, 0.0, "factor must be finite and not 0"),
    ],
)
def test_bad_programs_are_refused(c, b, factor, message):
    group = dense_group([[1], [-1]])
    b = None if b is None else torch.tensor(b)
    with pytest.raises(ValueError, match=message):
        minimise_exponentials(group, torch.tensor(c), b, factor=factor)


@pytest.mark.parametrize(
    "b, message",
    [
        ([0.0, float("nan")], "linear must be finite"),
        ([1.7e308, 1.7e308], "the minimum is beyond all numbers"),
    ],
)
def test_levels_without_a_minimum_in_numbers_are_refused(b, message):
    group = dense_group([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=message):
        minimise_exponentials(group, torch.ones(2), torch.tensor(b, dtype=torch.float64))


def test_coefficients_that_are_all_too_small_are_refused():
    c = torch.full((2,), 1e-310, dtype=torch.float64)
    with pytest.raises(ValueError, match="all coefficients are below 2e-308"):
        minimise_exponentials(dense_group([[1], [-1]]), c)


def test_a_factor_must_be_a_number():
    with pytest.raises(TypeError, match="factor"):
        minimise_exponentials(dense_group([[1], [-1]]), torch.ones(2), factor="two")
