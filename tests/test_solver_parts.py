"""The parts of the convex solver, each by itself, against the dense matrix of exponents.

A minimum that is found says little of them: they correct one another.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exponentials import chain, dense_group, numbers, pairs
from scipy import sparse
from scipy.optimize import brentq

import quotientnet as qn
from quotientnet import descent, exponents
from quotientnet import recession as runaways
from quotientnet.aggregation import crossing, merged, partitions
from quotientnet.descent import Descent
from quotientnet.recession import _as_edges, _by_cycles, _by_program, _one_sided, recession


def stream():
    """A residual map, whose diagonal two terms leave where it is, and one entry for the whole."""
    shapes = {"map": (3, 3), "into": (3, 2), "out": (2, 3), "whole": (1,)}
    layout = qn.ParameterLayout(shapes)
    units = [
        qn.Unit("stream", 3, (
            qn.Scale("map", 0), qn.Scale("map", 1, -1), qn.Scale("into", 0),
            qn.Scale("out", 1, -1),
        )),
        qn.Unit("all", 1, (qn.Scale("whole", None, 2), qn.Scale("into", None, -1))),
    ]  # fmt: skip
    return qn.ScalingGroup.from_units(layout, units)


def integers():
    rng = np.random.default_rng(0)
    a = rng.integers(-3, 4, (14, 4))
    return dense_group(a[np.abs(a).sum(1) > 0])


GROUPS = {
    "integers": integers, "pairs": lambda: pairs(3, 4), "chain": lambda: chain(2, 3, 4, 2),
    "stream": stream,
}  # fmt: skip


@pytest.fixture(params=GROUPS)
def group(request):
    return GROUPS[request.param]()


def dense(group):
    """The matrix of exponents, shape ``(size, dimension)``."""
    return group.exponents(torch.eye(group.dimension).double()).T.numpy()


def terms_of(group, seed=0):
    c = numbers(seed, group.layout.size, 2.0)
    c[np.random.default_rng(seed).random(len(c)) < 0.2] = 0.0
    return torch.from_numpy(c)


# -- exponents ---


def test_rows_are_those_of_the_matrix(group):
    places = np.array([0, 2, group.layout.size - 1, 5])
    places.sort()
    rows = exponents.rows_at(group, places)
    np.testing.assert_array_equal(rows.toarray(), dense(group)[places])


def test_sums_by_exponent(group):
    """Where two terms cancel the entry counts for both; elsewhere it is the matrix's exponent."""
    c, a = terms_of(group), dense(group)
    sums = exponents.sums_by_exponent(group, c)
    gradient = sum(e * s for e, s in sums.items())
    np.testing.assert_allclose(gradient, a.T @ c.numpy(), rtol=1e-13, atol=1e-13)
    assert all(s.shape == (group.dimension,) and (s >= 0).all() for s in sums.values())
    if "map" not in group.layout.names:
        for e in set(a[a != 0]):
            expected = ((a == e) * c.numpy()[:, None]).sum(0)
            np.testing.assert_allclose(sums[e], expected, rtol=1e-13)


@pytest.mark.parametrize("name", [*GROUPS, "one side"])
def test_the_largest_of_each_side(name):
    """For entries that no two terms move, by the matrix."""
    one_side = dense_group([[1, 0], [2, -1], [1, -1]])
    group = one_side if name == "one side" else GROUPS[name]()
    c, a = terms_of(group), dense(group)
    value, place, exponent = exponents.largest_by_side(group, c)
    assert value.shape == place.shape == exponent.shape == (2, group.dimension)
    cancelled = {0, 4, 8} if "map" in group.layout.names else set()
    for side, sign in enumerate((1, -1)):
        for j in range(group.dimension):
            own = [i for i in range(len(c)) if sign * a[i, j] > 0 or i in cancelled and j < 3]
            if not own:
                assert value[side, j] == -np.inf
                continue
            i = max(own, key=lambda i: c[i])
            assert value[side, j] == c[i] and (place[side, j] == i or c[i] == 0)
            if i not in cancelled and c[i] > 0:
                assert exponent[side, j] == a[i, j]


def test_entries_that_reach_a_bound_of_one_of_their_generators(group):
    c, a = terms_of(group), dense(group)
    c[1] = torch.inf
    bounds = np.quantile(c[torch.isfinite(c)].numpy(), [0.3, 0.6])[:, None].repeat(
        group.dimension, 1
    ) * np.linspace(0.5, 2.0, group.dimension)
    bounds[0, 0] = float(c[0])  # reached, not passed
    found = exponents.entries_above(group, c, bounds)
    cancelled = {0, 4, 8} if "map" in group.layout.names else set()
    for i in set(range(len(c))) - cancelled:
        sides = [bounds[int(a[i, j] < 0), j] for j in np.flatnonzero(a[i])]
        assert found[i] == (bool(torch.isfinite(c[i])) and any(c[i] >= b for b in sides)), i


def test_entries_that_reach_the_lower_of_two_bounds_of_one_class():
    """Two generators at one place, far apart in their bounds."""
    group = dense_group([[1, 1], [1, 0], [0, -1]])
    bounds = np.array([[9.0, 3.0], [9.0, 1.0]])
    found = exponents.entries_above(group, torch.tensor([4.0, 4.0, 2.0]), bounds)
    np.testing.assert_array_equal(found, [True, False, True])


def test_no_more_generators_move_an_entry_than_the_crowd(group):
    most = exponents.crowd(group)
    moved = (dense(group) != 0).sum(1).max()
    assert moved <= most <= group.dimension
    if "map" not in group.layout.names:
        assert most == moved
    assert exponents.crowd(qn.ScalingGroup(group.layout, {})) == 1


def test_one_sums_for_many_entries_on_the_compact_group(group):
    """The same gradient, on fewer entries."""
    c = terms_of(group)
    small = exponents.compact_group(group)
    sums = exponents.compact_sums(group, c)
    assert small.layout.size <= group.layout.size and sums.shape == (small.layout.size,)
    np.testing.assert_allclose(
        dense(small).T @ sums.numpy(), dense(group).T @ c.numpy(), rtol=1e-12, atol=1e-12
    )
    assert float(sums.sum()) == pytest.approx(float(c.sum()), rel=1e-13)


def test_entries_that_two_opposite_terms_leave():
    fixed = exponents.fixed_entries(stream().incidence["map"])
    np.testing.assert_array_equal(fixed, np.eye(3, dtype=bool))
    assert exponents.fixed_entries(chain(2, 3, 4, 2).incidence["w1"]) is None
    assert exponents.fixed_entries(chain(2, 3, 2).incidence["w0"]) is None
    same = qn.Unit("same", 3, (qn.Scale("map", 0), qn.Scale("map", 1)))
    layout = qn.ParameterLayout({"map": (3, 3)})
    group = qn.ScalingGroup.from_units(layout, [same])
    assert exponents.fixed_entries(group.incidence["map"]) is None


# -- descent ---


@pytest.fixture(params=["matrix", "sums"])
def route(request, monkeypatch):
    """The exponents written down, or sums over entries."""
    if request.param == "sums":
        monkeypatch.setattr(descent, "exponent_matrix", lambda group: None)
    return request.param


def test_gradient_and_value(group, route):
    c, a = terms_of(group), dense(group)
    b = 0.3 * np.random.default_rng(1).standard_normal(group.dimension)
    at = Descent(group, c, b)
    t = 0.1 * np.random.default_rng(2).standard_normal(group.dimension)
    at.move(t)
    moved = c_at(group, terms_of(group), t)
    gradient, ratio = at.gradient()
    np.testing.assert_allclose(gradient, a.T @ moved - b, rtol=1e-12, atol=1e-12)
    assert at.value == pytest.approx(moved.sum() - b @ t, rel=1e-13)
    if "map" not in group.layout.names or route == "matrix":
        size = abs(a).T @ moved + abs(b)
        assert ratio == pytest.approx((abs(a.T @ moved - b) / size).max(), rel=1e-9)
    assert Descent(group, 0 * c, 0 * b).gradient()[1] == 0.0


def c_at(group, c, t):
    return c.numpy() * np.exp(dense(group) @ t)


@pytest.mark.parametrize("length", [0.0, 0.5, 29.0, 31.0, 95.0])
def test_moves_of_any_length(group, route, length):
    """In stages where they are far."""
    step = np.random.default_rng(3).uniform(-1, 1, group.dimension)
    step *= length / abs(step).max()
    at = Descent(group, terms_of(group), np.zeros(group.dimension))
    at.move(step)
    np.testing.assert_allclose(at.terms, c_at(group, terms_of(group), step), rtol=1e-12)
    np.testing.assert_array_equal(at.t, step)
    at.follow(-step)
    np.testing.assert_allclose(at.terms, terms_of(group), rtol=1e-12)
    np.testing.assert_array_equal(at.t, step)


def test_moves_piece_by_piece(route, monkeypatch):
    """Rows that fit the cache, the last of them fewer."""
    monkeypatch.setattr(descent, "_PIECE", 8)
    group = chain(5, 7, 4)
    step = np.random.default_rng(3).uniform(-1, 1, group.dimension)
    at = Descent(group, terms_of(group), np.zeros(group.dimension))
    at.move(step)
    np.testing.assert_allclose(at.terms, c_at(group, terms_of(group), step), rtol=1e-12)


def test_pieces_are_rows_that_fit(monkeypatch):
    view = torch.arange(35.0).reshape(7, 5)
    whole, *parts = next(descent._chunks(view, [torch.ones(7, 1)]))
    assert whole is view and len(parts) == 1
    monkeypatch.setattr(descent, "_PIECE", 11)
    pieces = list(descent._chunks(view, [torch.arange(7.0)[:, None], torch.ones(1, 5)]))
    assert [len(piece) for piece, *_ in pieces] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([piece for piece, *_ in pieces]), view)
    assert torch.equal(torch.cat([own for _, own, _ in pieces])[:, 0], torch.arange(7.0))
    assert all(len(shared) == 1 for *_, shared in pieces)
    monkeypatch.setattr(descent, "_PIECE", 3)
    pieces = list(descent._chunks(view[:2, :3], [torch.arange(2.0)[:, None]]))
    assert [own.flatten().tolist() for _, own in pieces] == [[0.0], [1.0]]


def test_the_reach_bounds_changes_of_exponents(group, route):
    at = Descent(group, terms_of(group), np.zeros(group.dimension))
    for seed in range(5):
        step = np.random.default_rng(seed).standard_normal(group.dimension)
        exact, found = abs(dense(group) @ step).max(), at.reach(step)
        if route == "matrix":
            assert found == pytest.approx(exact, rel=1e-14)
        else:
            assert exact * (1 - 1e-14) <= found <= abs(step).sum() * 4
    # Each side decides once, and nothing is added to a small one.
    ones = np.ones(group.dimension)
    assert at.reach(1e-3 * ones) < 0.1
    for step in (ones, -ones):
        assert at.reach(step) >= abs(dense(group) @ step).max() * (1 - 1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_each_generator_to_its_own_minimiser(seed):
    """The root of a function of one variable, by Brent's method."""
    rng = np.random.default_rng(seed)
    sums = {e: numbers(seed + e + 9, 6, 3.0) for e in (-2, -1, 1, 3)}
    linear = rng.standard_normal(6) * numbers(seed, 6, 2.0)
    found = descent._own_minimisers(sums, linear)
    for j in range(6):
        expected = brentq(
            lambda x: sum(e * s[j] * np.exp(e * x) for e, s in sums.items()) - linear[j], -60, 60,
            xtol=1e-13,
        )  # fmt: skip
        assert found[j] == pytest.approx(expected, abs=4e-9)


def test_a_level_stands_for_the_side_that_has_no_terms():
    """``S e^x = b`` and ``−S e^{−x} = b``; who has one side alone, or nothing, stays."""
    grows, shrinks = np.array([2.0, 0.0, 2.0, 0.0, 0.0]), np.array([0.0, 2.0, 0.0, 2.0, 0.0])
    linear = np.array([8.0, -8.0, -8.0, 8.0, 0.0])
    found = descent._own_minimisers({1: grows, -1: shrinks}, linear)
    np.testing.assert_allclose(found, [np.log(4), -np.log(4), 0, 0, 0], atol=4e-9)


def test_a_sweep_never_raises_the_sum_and_is_counted(group, route):
    at = Descent(group, terms_of(group) + 1e-3, np.zeros(group.dimension))
    before = at.value
    at._sweep()
    assert at.value <= before * (1 + 1e-14) and 1 <= at.iterations <= descent._SWEEPS


def test_sweeps_stop_where_they_move_little(monkeypatch):
    """Two layers are in balance after one."""
    group, c = dense_group([[1], [-1]]), torch.tensor([1e8, 1e-8]).double()
    at = Descent(group, c, np.zeros(1))
    at._sweep()
    assert at.iterations == 2 and at.t[0] == pytest.approx(-8 * np.log(10), rel=1e-8)
    monkeypatch.setattr(descent, "_SWEEPS", 1)
    again = Descent(group, torch.tensor([1e8, 1e-8]).double(), np.zeros(1))
    again._sweep()
    assert again.iterations == 1


def test_where_a_descent_ended(group, route):
    """Steps, residuals and errors are what they are called."""
    c = terms_of(group) + 1e-3
    at = Descent(group, c.clone(), np.zeros(group.dimension))
    state = at.minimise(100)
    moved = c_at(group, c, at.t)
    slope = dense(group).T @ moved
    assert state.converged and state.value == pytest.approx(moved.sum(), rel=1e-12)
    assert abs(slope).max() <= 1e-12 * moved.sum() and state.residual <= 1e-12
    assert 0 <= state.error <= 1e-12 and state.iterations == at.iterations
    short = Descent(group, c.clone(), np.zeros(group.dimension)).minimise(0)
    assert not short.converged and short.error == np.inf


def test_a_newton_step_is_counted_and_settles():
    group, c = pairs(3, 4), terms_of(pairs(3, 4)) + 1e-3
    at = Descent(group, c, np.zeros(group.dimension))
    at.minimise(100)
    done = at.iterations
    step, _ = at._newton(100)
    assert at.iterations - done == 1 and step <= 1e-7
    step, _ = at._newton(0)
    assert step == np.inf
    nothing = Descent(qn.ScalingGroup(group.layout, {}), c, np.zeros(0))
    assert nothing._newton(5)[0] == 0.0 and nothing.minimise(5).converged


def test_the_error_of_a_minimum_that_is_well_determined_is_rounding():
    c = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert Descent(dense_group([[1], [-1]]), c, np.zeros(1)).minimise(100).error < 9e-15


def test_the_residual_of_sets_is_the_largest_of_any(monkeypatch):
    """Not moved at all, so that it is known."""
    monkeypatch.setattr(descent, "_SWEEPS", 0)
    group = dense_group([[1, -1], [-1, 1], [1, 0], [0, -1], [-1, 0]])
    c = torch.tensor([1.0, 1.0, 3e-6, 1e-6, 1e-6], dtype=torch.float64)
    at = Descent(group, c, np.zeros(2))
    found = at._settle_sets(descent.Gram(group, c))
    assert found == pytest.approx((3 - 2) / (3 + 2), rel=1e-9)
    monkeypatch.setattr(Descent, "_settle_sets", lambda self, gram: 0.25)
    monkeypatch.setattr(descent, "_EXACT", 0.0)
    assert at.minimise(100).residual == 0.25


# -- sets that hold together ---


def test_partitions_are_the_components_above_each_threshold():
    """Three sets: two hold together firmly, the third more loosely, all of them hardly."""
    matrix = np.eye(7)
    ties = {(0, 1): 0.9, (2, 3): -0.8, (1, 2): 2e-4, (4, 5): 3e-9}
    for (i, j), tie in ties.items():
        matrix[i, j] = matrix[j, i] = tie
    scale = np.array([1.0, 1e5, 1e-5, 10.0, 2.0, 3.0, 1.0])
    matrix = scale[:, None] * matrix * scale
    found = [sets(labels) for labels in partitions(matrix)]
    assert found == [
        [{0, 1}, {2, 3}, {4}, {5}, {6}],
        [{0, 1, 2, 3}, {4}, {5}, {6}],
        [{0, 1, 2, 3}, {4, 5}, {6}],
    ]
    matrix[6] = matrix[:, 6] = 0.0  # moves nothing
    assert [sets(labels) for labels in partitions(matrix)] == found
    assert partitions(np.eye(3)) == []


def sets(labels):
    return sorted(({*np.flatnonzero(labels == k)} for k in set(labels)), key=min)


def test_merged_generators_move_as_one(group):
    labels = np.arange(group.dimension) % 2
    whole, basis = merged(group, labels)
    assert whole.dimension == 2
    t = torch.tensor([0.7, -1.3]).double()
    expected = group.exponents(torch.from_numpy(basis @ t.numpy()))
    torch.testing.assert_close(whole.exponents(t), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(basis @ [5.0, 6.0], np.where(labels, 6.0, 5.0))


def test_terms_that_cross_the_boundary_of_a_set():
    group = dense_group([[1, -1], [1, 0], [0, -1], [2, -1]])
    together, _ = merged(group, np.array([0, 0]))
    c = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    assert crossing(together, c).tolist() == [0.0, 2.0, 3.0, 4.0]


# -- recession ---


@pytest.mark.parametrize("seed", range(60))
def test_cycles_and_linear_programs_agree(seed):
    """Wherever rows are edges of a graph, what runs away is the same by both."""
    rng = np.random.default_rng(seed)
    count, lines = int(rng.integers(2, 6)), int(rng.integers(2, 9))
    basis = np.eye(count + 1, count, dtype=int)
    ends = rng.integers(0, count + 1, (lines, 2))
    a = basis[ends[:, 0]] - basis[ends[:, 1]]
    linear = np.zeros(count)
    free = [j for j in range(count) if not (a[:, j] < 0).any()]
    linear[free[: seed % 3]] = 1.0 + rng.random(len(free[: seed % 3]))
    sign = (-1) ** seed
    rows = sparse.csr_array(sign * a.astype(float))
    graph = _as_edges(rows, sign * linear)
    assert graph is not None
    moving, lost, unbounded = _by_cycles(*graph)
    expected = _by_program(rows, sign * linear)
    assert unbounded == expected[2]
    if not unbounded:  # else a level pays for whatever else moves
        np.testing.assert_array_equal(lost, expected[1])
        assert (moving >= expected[0]).all() and moving.any() == expected[0].any()


@pytest.mark.parametrize("seed", range(20))
def test_rows_whose_entries_cancel_hold_nobody(seed):
    """Two terms of a residual map leave a 0 that is written down."""
    group = stream()
    places = np.flatnonzero(np.random.default_rng(seed).random(group.layout.size) < 0.4)
    rows = exponents.rows_at(group, places)
    graph = _as_edges(rows, np.zeros(group.dimension))
    moving, lost, _ = _by_cycles(*graph)
    expected = _by_program(rows, np.zeros(group.dimension))
    np.testing.assert_array_equal(lost, expected[1])
    assert (moving >= expected[0]).all() and moving.any() == expected[0].any()


def test_a_few_supports_are_remembered():
    group = pairs(2, 3)
    for seed in range(9):
        recession(group, terms_of(group, seed), np.zeros(group.dimension))
    assert len(group.derived("recessions", dict)) == 4


def test_a_linear_program_that_fails_says_so(monkeypatch):
    failed = SimpleNamespace(status=4, message="numbers", x=None)
    monkeypatch.setattr(runaways, "linprog", lambda *args, **options: failed)
    rows = sparse.csr_array(np.array([[1.0, 2.0]]))
    with pytest.raises(RuntimeError, match="the linear program was not solved: numbers"):
        _by_program(rows, np.zeros(2))


@pytest.mark.parametrize(
    "rows, linear, edges",
    [
        ([[1, -1, 0], [0, 1, -1]], [0, 0, 0], True),
        ([[1, -1, 0], [0, 1, 0]], [0, 2, 0], False),  # a drain that is a source of a flow
        ([[1, 0, 0], [0, 1, 0]], [1, 2, 0], True),
        ([[-1, 0, 0], [0, -1, 0]], [-1, -2, 0], True),
        ([[1, 0, 0], [0, -1, 0]], [1, -2, 0], False),  # drains and sources
        ([[-1, 0, 0], [0, 1, 0]], [1, 0, 0], False),  # a level of the other sign
        ([[1, 0, 0], [0, 1, 0]], [-1, 0, 0], False),
        ([[1, 1, 0], [0, 1, 0]], [0, 0, 0], False),
        ([[1, -2, 0], [0, 1, 0]], [0, 0, 0], False),
        ([[1, -1, 1], [0, 1, 0]], [0, 0, 0], False),
    ],
)
def test_which_rows_are_edges(rows, linear, edges):
    found = sparse.csr_array(np.array(rows, dtype=float))
    assert (_as_edges(found, np.array(linear, dtype=float)) is not None) == edges


@pytest.mark.parametrize(
    "rows, linear, moving, vanishing, unbounded",
    [
        ([[1, 0], [1, -1], [0, 1]], [0, 0], [1, 1], [1, 1, 1], False),
        ([[-1, 0], [0, 1], [0, -1]], [0, 0], [1, 0], [1, 0, 0], False),
        ([[1, 0], [-1, 0], [1, -1], [0, 1]], [0, 0], [0, 0], [0, 0, 0, 0], False),
        ([[1, 0], [-1, 0], [0, 1]], [0, -1], [0, 1], [0, 0, 1], True),
        ([[1, 0], [-1, 0], [0, 1]], [0, 1], [0, 0], [0, 0, 0], False),
        ([[1, 0], [-1, 0], [0, -1]], [0, 1], [0, 1], [0, 0, 1], True),
        ([[1, 0], [-1, 0], [0, -1]], [0, -1], [0, 0], [0, 0, 0], False),
        ([[1, 0], [-1, 0], [0, 0]], [0, 1], [0, 1], [0, 0, 0], True),
        ([[1, 0], [-1, 0], [0, 0]], [0, 0], [0, 0], [0, 0, 0], False),
    ],
)
def test_generators_of_one_side(rows, linear, moving, vanishing, unbounded):
    """Those all of whose terms grow or shrink leave, and then those that only they held."""
    group = dense_group([*rows, [1, 1]])  # the last is 0, and holds nobody
    terms = torch.tensor([1.0] * len(rows) + [0.0]).double()
    found = _one_sided(group, terms, np.array(linear, dtype=float))
    np.testing.assert_array_equal(found.moving, np.array(moving, dtype=bool))
    assert found.vanishing.tolist() == [bool(v) for v in [*vanishing, 0]]
    assert found.unbounded is unbounded and not found.held
