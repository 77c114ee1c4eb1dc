"""Ranks by trees of multiples: what elimination finds, without walking through every layer."""

import numpy as np
import pytest
from scipy import sparse

from quotientnet import exact


def drawn(seed):
    """A few rows of one to four small integers."""
    dice = np.random.default_rng(seed)
    rows, columns = dice.integers(1, 12, 2)
    matrix = np.zeros((rows, columns), dtype=np.int64)
    for row in matrix:
        count = min(dice.choice([1, 2, 2, 2, 2, 3, 4]), columns)
        at = dice.choice(columns, count, replace=False)
        row[at] = dice.choice([-1, 1, -1, 1, 2, -3], count)
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_free_columns_are_those_of_elimination(seed):
    for matrix in map(drawn, range(200 * seed, 200 * seed + 200)):
        rows = sparse.csr_array(matrix)
        pivots = exact.echelon(exact.rows_of(rows))
        free = [c for c in range(matrix.shape[1]) if c not in pivots]
        assert exact.free_columns(rows).tolist() == free
        assert exact.rank(rows) == np.linalg.matrix_rank(matrix)


def test_a_long_chain_is_not_eliminated(monkeypatch):
    depth, width = 500, 8
    monkeypatch.setattr(exact, "_eliminate", None)
    dice = np.random.default_rng(0)
    layers = np.arange(depth * width).reshape(depth, width)
    below, above = layers[:-1].ravel(), dice.permuted(layers[1:], axis=1).ravel()
    across = layers[:-1].ravel(), dice.permuted(layers[1:], axis=1).ravel()
    tail, head = np.r_[below, across[0]], np.r_[above, across[1]]
    line = np.arange(len(tail))
    where = np.r_[line, line], np.r_[tail, head]
    data = np.r_[np.ones(len(tail)), -np.ones(len(tail))].astype(np.int64)
    free = exact.free_columns(sparse.csr_array(sparse.coo_array((data, where))))
    assert 1 <= len(free) < width and free[0] == 0
