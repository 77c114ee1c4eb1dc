"""Rules of inverses, determinants and factors of matrices: rows and columns have scales."""

from __future__ import annotations

from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import PINNED, LogScale

__all__ = []


def _rows_and_columns(eq: Equations, x) -> tuple[LogScale, LogScale]:
    """``x = rows + columns``, of shapes ``(..., n, 1)`` and ``(..., 1, m)``."""
    *batch, n, m = x.shape
    rows, columns = eq.fresh(*batch, n, 1), _first_pinned(eq.fresh(*batch, 1, m), -1)
    eq.equal(x, rows + columns)
    return rows, columns


def _conjugation(eq: Equations, x, common: bool) -> tuple[LogScale, LogScale]:
    """``x_ij = d_i − d_j``, on request and one scale of all: what survives powers of a matrix."""
    *batch, n, _ = x.shape
    rows = _first_pinned(eq.fresh(*batch, n, 1), -2)
    whole = eq.fresh(*batch, 1, 1) if common else eq.pinned(*batch, 1, 1)
    change = rows - rows.map(lambda t: t.mT)
    eq.equal(x, change + whole)
    return change, whole


def _first_pinned(x: LogScale, axis: int) -> LogScale:
    """New unknowns, of which only differences along an axis count: the first of them is 0."""
    index = x.terms[0][1].clone()
    index.select(axis, 0).fill_(PINNED)
    return LogScale([(1, index)], x.shape)


def _total(x: LogScale, axis: int) -> LogScale:
    """The sum along an axis."""
    return sum(
        (x.map(lambda t, n=n: t.select(axis, n)) for n in range(1, x.shape[axis])),
        x.map(lambda t: t.select(axis, 0)),
    )


@rule("aten::linalg_inv", "aten::inverse", "aten::linalg_pinv")
def inverse(call, x, *args, **kwargs):
    """Rows of the inverse have the inverse scales of columns, and columns those of rows."""
    eq, x = call.equations, call.scale(x)
    if x.shape[-1] != x.shape[-2]:  # a pseudo-inverse knows no scales of single rows
        return call.spread(-eq.uniform(x, [-1, -2]))
    if call.operation.endswith("pinv"):
        return call.spread(-eq.uniform(x, [-1, -2]))
    rows, columns = _rows_and_columns(eq, x)
    return call.spread(-(rows + columns).map(lambda t: t.mT))


@rule("aten::linalg_det", "aten::det")
def determinant(call, x):
    """Scales of rows and columns multiply."""
    rows, columns = _rows_and_columns(call.equations, call.scale(x))
    rows, columns = rows.map(lambda t: t[..., 0]), columns.map(lambda t: t[..., 0, :])
    return call.spread(_total(rows, -1) + _total(columns, -1))


@rule("aten::linalg_slogdet", "aten::slogdet", "aten::logdet")
def log_determinant(call, x):
    """The logarithm pins the product of all scales of rows and columns."""
    call.equations.pin(determinant(call, x))
    pinned = call.equations.pinned(*call.shape)
    return pinned if call.operation == "aten::logdet" else [pinned, pinned]


@rule("aten::linalg_solve")
def solve(call, a, b, *, left=True):
    """Equations and unknowns have scales: those of right-hand sides and columns."""
    a, b = call.scale(a), call.scale(b)
    if not left or len(b.shape) != len(a.shape):
        return call.unsupported(a, b)
    return _solved(call, a, b)


@rule("aten::linalg_solve_triangular")
def solve_triangular(call, a, b, *, upper, left=True, unitriangular=False):
    """As solving with any matrix."""
    a, b = call.scale(a), call.scale(b)
    if not left or unitriangular:
        return call.unsupported(a, b)
    return _solved(call, a, b)


def _solved(call, a, b) -> LogScale:
    """``a_ij = r_i + c_j`` and ``b_ik = r_i + d_k`` give ``x_jk = d_k − c_j``."""
    rows, columns = _rows_and_columns(call.equations, a)
    right = call.equations.uniform(call.equations.resolve(b) - rows, [-2])
    return call.spread(right - columns.map(lambda t: t.mT))


@rule("aten::linalg_cholesky", "aten::cholesky")
def cholesky(call, x, *args, **kwargs):
    """Of ``D A D`` it is ``D L``: a scale a row."""
    eq, x = call.equations, call.scale(x)
    rows = eq.fresh(*x.shape[:-1], 1)
    eq.equal(x, rows + rows.map(lambda t: t.mT))
    return call.spread(rows)


@rule("aten::linalg_qr")
def qr(call, x, mode="reduced"):
    """Columns have scales, which the triangular factor takes."""
    eq, x = call.equations, call.scale(x)
    columns = eq.uniform(x, [-2])
    count = min(x.shape[-2:]) if mode == "reduced" else x.shape[-2]
    factor = columns.map(lambda t: t.expand(*t.shape[:-2], count, t.shape[-1]))
    return [eq.pinned(*call.shape), factor]


@rule("aten::linalg_svdvals", "aten::linalg_eigvalsh")
def singular_values(call, x, *args, **kwargs):
    """One scale for the whole matrix, which the values have."""
    whole = call.equations.uniform(call.scale(x), [-1, -2])
    return call.spread(whole.map(lambda t: t[..., 0]))


@rule("aten::linalg_matrix_norm")
def matrix_norm(call, x, order="fro", dim=(-2, -1), keepdim=False, **kwargs):
    """One scale for the whole matrix, which its norm has."""
    whole = call.equations.uniform(call.scale(x), list(dim))
    return whole.map(lambda t: t.reshape(call.shape))


@rule("aten::matrix_exp", "aten::linalg_matrix_exp")
def matrix_exp(call, x):
    """All powers are summed up: what is left are scales ``d_i / d_j``."""
    return call.spread(_conjugation(call.equations, call.scale(x), False)[0])


@rule("aten::linalg_matrix_power", "aten::matrix_power")
def matrix_power(call, x, n):
    """Scales ``d_i / d_j``, and the power of a scale of all."""
    change, whole = _conjugation(call.equations, call.scale(x), True)
    return call.spread((change if n else call.equations.pinned(*x.shape)) + n * whole)


@rule("aten::trace")
def trace(call, x):
    """The diagonal has one scale."""
    diagonal = call.scale(x).map(lambda t: t.diagonal())
    return call.equations.uniform(diagonal, [0]).map(lambda t: t.reshape(()))


@rule("aten::linalg_cross", "aten::cross")
def cross(call, x, y, dim=-1):
    """Differences of products: both have one scale."""
    eq = call.equations
    x, y = (eq.resolve(call.scale(z)) for z in (x, y))
    if dim is None:
        return call.unsupported(x, y)
    ahead, behind = (
        x.map(lambda t, a=a: t.roll(a, dim)) + y.map(lambda t, a=a: t.roll(-a, dim))
        for a in (-1, 1)
    )
    return call.spread(eq.equal(ahead, behind))
