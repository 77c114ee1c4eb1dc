"""Equations of log-scales against dense linear algebra, entry by entry."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from quotientnet import exact
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.scales import Leaf, LogScale, Unset


def values(equations, *scales):
    """Each scale's entries as combinations of the free unknowns."""
    solution = equations.solve()
    result = []
    for scale in scales:
        total = np.zeros((*scale.shape, solution.basis.shape[1]))
        for c, index in scale.terms:
            total += c * solution.basis.toarray()[solution.row[index.numpy()]]
        result.append(total)
    return result


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    rows=st.lists(
        st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=0, max_size=7
    )
)
def test_null_space_of_any_integer_matrix(rows):
    matrix = np.array(rows, dtype=np.int64).reshape(len(rows), 6)
    pivots = exact.echelon(exact.rows_of(sparse.csr_array(matrix)))
    basis = exact.null_space(pivots, 6).toarray()
    assert (matrix @ basis == 0).all()
    rank = np.linalg.matrix_rank(matrix) if rows else 0
    independent = np.linalg.matrix_rank(basis) if basis.size else 0
    assert basis.shape[1] == 6 - rank == independent
    assert all(np.gcd.reduce(column) == 1 for column in basis.T)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    equations=st.lists(
        st.lists(
            st.tuples(st.integers(-2, 2), st.integers(0, 7)), min_size=1, max_size=4
        ),
        max_size=10,
    )
)
def test_scalar_equations_have_the_null_space_of_their_matrix(equations):
    eq = Equations()
    unknowns = [eq.fresh() for _ in range(8)]
    matrix = np.zeros((len(equations), 8))
    for row, terms in enumerate(equations):
        total = eq.pinned()
        for c, place in terms:
            matrix[row, place] += c
            total = total + c * unknowns[place]
        eq.equal(total, eq.pinned())
    found = np.stack(values(eq, *unknowns))
    assert abs(matrix @ found).max(initial=0) == 0
    assert (
        np.linalg.matrix_rank(found)
        == found.shape[1]
        == 8 - np.linalg.matrix_rank(matrix)
    )


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    terms=st.lists(
        st.tuples(st.sampled_from([-2, -1, 1, 2]), st.integers(0, 5), st.integers(1, 7)),
        min_size=1, max_size=4,
    ),
    axes=st.sets(st.integers(0, 2), max_size=3),
    uniform=st.booleans(),
)  # fmt: skip
def test_tensor_equations_are_those_of_every_entry(terms, axes, uniform):
    """Sums over axes that terms do or do not vary along, against one equation an entry."""
    shape = (2, 3, 2)
    eq, pool, total = Equations(), {}, LogScale((), shape)
    for c, seed, mask in terms:
        own = tuple(n if mask >> a & 1 else 1 for a, n in enumerate(shape))
        if (seed, mask) not in pool:
            pool[seed, mask] = eq.fresh(*own)
        total = total + c * pool[seed, mask]
    count = eq._unknowns.size
    dense = np.zeros((12, count))
    for c, index in total.terms:
        np.add.at(dense, (np.arange(12), index.reshape(-1).numpy()), c)
    if uniform:
        result = eq.uniform(total, sorted(axes))
        first = np.arange(12).reshape(shape)
        for a in axes:
            first = np.repeat(np.take(first, [0], a), shape[a], a)
        imposed = dense - dense[first.reshape(-1)]
    else:
        result, imposed = eq.equal(total, eq.pinned(*shape)), dense
    imposed[:, 0] = 0
    everything = LogScale([(1, torch.arange(1, count))], (count - 1,))
    found, ours = values(eq, everything, result)
    expected = count - 1 - np.linalg.matrix_rank(imposed)
    assert np.linalg.matrix_rank(found) == expected
    assert abs(imposed[:, 1:] @ found).max(initial=0) == 0
    # The result has the scale it says it has.
    spread = np.broadcast_to(ours, (*shape, found.shape[1])).reshape(12, -1)
    assert abs(spread - dense[:, 1:] @ found).max(initial=0) == 0


def test_a_parameter_is_determined_by_its_uses_in_any_order():
    for order in ((0, 1), (1, 0)):
        eq, leaf = Equations(), Leaf("w", (4, 3))
        whole = Unset(leaf)
        x, y = eq.fresh(1, 3), eq.fresh(2, 1)
        uses = [
            lambda: eq.contract(whole, x, [-1]),
            lambda: eq.equal(whole.map(lambda t: t[:2]), y),
        ]
        for use in order:
            uses[use]()
        (w,) = values(eq, eq.resolve(whole))
        rows = w.reshape(4, 3, -1)
        assert (rows[0] == rows[0, 0]).all() and (rows[1] == rows[1, 0]).all()
        assert np.linalg.matrix_rank(w.reshape(12, -1)) == 4


@pytest.mark.parametrize("view", [
    lambda t: t.t(), lambda t: t.view(2, 2, 3).transpose(0, 1), lambda t: t[None, :, None],
    lambda t: t.flip(0), lambda t: t.reshape(-1), lambda t: t[[3, 1, 0, 2]],
])  # fmt: skip
def test_views_of_a_parameter_are_literal(view):
    eq, leaf = Equations(), Leaf("w", (4, 3))
    seen = Unset(leaf).map(view)
    given = eq.fresh(*seen.shape)
    eq.equal(seen, given)
    w, expected = values(eq, eq.resolve(Unset(leaf)), given)
    shaped = view(torch.arange(12).view(4, 3)).numpy()
    assert (expected == w.reshape(12, -1)[shaped]).all()


def test_fractions_become_integers():
    eq = Equations()
    x = eq.fresh()
    y = eq.power(x, Fraction(2, 3))
    found = np.stack(values(eq, x, y))
    assert sorted(abs(found[:, 0]).tolist()) == [2, 3] and found[0, 0] * found[1, 0] > 0


def test_zeros_take_any_scale():
    eq = Equations()
    a, b = eq.fresh(3), eq.fresh(3)
    zeros = eq.constant(torch.tensor([1.0, 0.0, 0.0]))
    product = a + zeros
    total = eq.equal(product, b)
    found_a, found_b, found = values(eq, a, b, eq.single(total))
    assert (found_a[0] == found_b[0]).all() and np.linalg.matrix_rank(
        np.vstack([found_a, found_b])
    ) == 5
    assert (found == found_b).all()


def test_reasons_are_those_of_the_equation_that_pinned():
    eq = Equations()
    a, b, c, d = (eq.fresh() for _ in range(4))
    with eq.because(1):
        eq.equal(a, b)
    with eq.because(2):
        eq.pin(b)
    with eq.because(3):
        eq.equal(c + d, a)
    solution = eq.solve()
    reasons = [int(solution.reasons[int(x.terms[0][1])]) for x in (a, b, c)]
    assert reasons == [2, 2, -1]


def test_the_root_of_a_square_needs_no_unknown():
    """So that ``x / sqrt(mean(x²))`` is of scale 0 at once, and what follows is not entangled."""
    eq = Equations()
    x = eq.uniform(eq.fresh(3), [0])
    root = eq.power(2 * x, Fraction(-1, 2))
    assert eq.simplify(x + root).terms == () and len(eq.solve().row) == 4
