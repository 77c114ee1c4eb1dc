"""Several eigenvalues of a symmetric operator by few products."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quotientnet.curvature.krylov import Krylov
from quotientnet.curvature.search import Search
from quotientnet.operator import Operator, require_operator, require_vectors
from quotientnet.options import require_count, require_number
from quotientnet.progress import progress

__all__ = ["Eigenpairs", "lanczos"]

_KEYS = {
    "algebraic": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": np.abs,
}  # the larger, the more wanted


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues with their vectors and residuals, the most wanted first.

    Certified: for each pair *some* eigenvalue lies within its residual. Only probable, by a
    random start and a second search from random vectors: that these are the outermost ones, each
    as often as it occurs.

    Attributes:
        values: Shape ``(count,)``, float64 on the host.
        vectors: Orthonormal columns, shape ``(size, count)``, of the operator's dtype and device.
        residuals: ``‖H v − λ v‖`` for each, from the recurrence and at least rounding; shape
            ``(count,)``, float64 on the host. With ``deflate``, of the compression of ``H``.
        products: Products with the operator.
        converged: Whether every residual reached the tolerance and the second search ended.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor
    products: int
    converged: bool


def lanczos(
    operator: Operator,
    count: int = 1,
    *,
    which: str = "algebraic",
    tolerance: float = 1e-4,
    max_products: int = 10_000,
    basis: int | None = None,
    block: int = 1,
    start: Tensor | None = None,
    deflate: Tensor | None = None,
    confirm: bool | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    r"""The outermost eigenvalues, by block Lanczos with thick restart [WuSimon2000]_.

    .. math:: H V = V T + R, \qquad T y = \theta  y, \qquad \|H V y - \theta  V y\| = \|R y\|

    The basis is orthogonalised in full, twice. Directions that ``operator.project`` removes, and
    ``deflate``, are left out: the eigenvalues are those on the complement, so that the largest one
    is negative where all of them are.

    One starting vector sees one copy of every eigenvalue. When the wanted ones have converged, the
    search begins again from random vectors orthogonal to all so far, and ends when an eigenvalue
    at least as wanted would have shown: the best value found there has converged; or it lies so
    low that its chance is below 1e-3, by the bound of [KuczynskiWozniakowski1992]_ for Lanczos
    without restarts; or the second search has cost as much as the first, and 20 products. In a
    space that fits into the basis and of which half is there, the basis is completed instead.

    Args:
        operator: The symmetric operator.
        count: How many eigenvalues, at most as many as there are.
        which: ``"algebraic"`` for the largest, ``"smallest"`` for the lowest, ``"magnitude"`` for
            the largest in absolute value.
        tolerance: Stop at ``residual ≤ tolerance · |value|`` for each, or at rounding. The error
            of a value is of the order of ``residual² / gap``.
        max_products: Products at most, at least ``count``.
        basis: Vectors kept at most, at least ``2 count + 3 block``; memory is ``basis · size``.
            Fewer cost more products where eigenvalues lie close. By default
            ``3 count + 5 block + 20``, or up to 128 where 2²⁴ numbers hold them.
        block: Vectors a product. One pass over the data serves a block; the products needed grow
            unless eigenvalues are multiple or close.
        start: A vector, shape ``(size,)``, or at most ``count + block`` of them as columns, such
            as the eigenvectors at a nearby point; random if omitted.
        deflate: Directions to leave out as columns, shape ``(size, k)``, orthonormal or not, such
            as null vectors or eigenvectors already known.
        confirm: Whether to search a second time, before which multiple eigenvalues are seen once
            and a start without a part along the wanted vector misleads. By default where
            ``count > 1`` or a start is given.
        generator: Source of random vectors; a fresh one with seed 0 if omitted.

    Returns:
        The eigenpairs. Without convergence in ``max_products``, the best so far.

    Raises:
        ValueError: A count below 1 or above the number of directions, another ``which``, a
            tolerance that is not positive, too few products or basis vectors, a start or
            ``deflate`` of another shape, dtype or device or without any direction, a product that
            is NaN or infinite, or an operator found not to be symmetric.

    Note:
        Besides the products, each costs six passes over the basis: for millions of coordinates and
        products as cheap as that, take a small ``basis`` or ``confirm=False``.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, -4.0, 3.0, 1.0])))
        >>> [round(value, 3) for value in lanczos(operator, 2).values.tolist()]
        [3.0, 3.0]
        >>> round(lanczos(operator, which="smallest").values.item(), 3)
        -4.0
    """
    require_operator(operator, "lanczos")
    _check(operator, count, which, tolerance, max_products, block)
    least = 2 * count + 3 * block
    capacity = _default(operator.size, count, block) if basis is None else basis
    if capacity < min(least, operator.size):
        raise ValueError(
            f"lanczos: basis={basis} is too small, count={count} and block={block} need {least}"
        )
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    start = _columns(operator, start, "start", count + block)
    deflate = _columns(operator, deflate, "deflate", operator.size)
    space = Krylov(operator, capacity, deflate, generator, "lanczos")
    found = space.inject(block) if start is None else space.insert(start.T)
    if not found:
        raise ValueError(
            "lanczos: nothing is left of the start after projection and deflation"
            if start is not None
            else "lanczos: no direction is left after projection and deflation"
        )
    confirm = count > 1 or start is not None if confirm is None else confirm
    search = Search(space, count, _KEYS[which], tolerance, block, max_products, confirm)
    for _ in progress(itertools.count(), "Lanczos products"):
        if search.step():
            return Eigenpairs(*search.result())
    raise AssertionError("unreachable: the search ends")


def _default(size: int, count: int, block: int) -> int:
    return max(3 * count + 5 * block + 20, min(128, 2**24 // size))


def _check(operator, count, which, tolerance, max_products, block) -> None:
    if operator.size == 0:
        raise ValueError("lanczos: the operator has size 0")
    if not require_count(count, "lanczos", "count") <= operator.size:
        raise ValueError(
            f"lanczos: count={count} must lie between 1 and the size, {operator.size}"
        )
    if which not in _KEYS:
        raise ValueError(
            f"lanczos: which must be 'algebraic', 'smallest' or 'magnitude', got {which!r}"
        )
    require_number(tolerance, "lanczos", "tolerance", strict=True)
    require_count(block, "lanczos", "block")
    if max_products < count:
        raise ValueError(
            f"lanczos: max_products={max_products} is below count={count}: every eigenvalue needs "
            "a product"
        )


def _columns(operator: Operator, value, name: str, most: int) -> Tensor | None:
    """``start`` or ``deflate`` as a block of columns, after a look at its shape and kind."""
    if value is None:
        return None
    require_vectors(operator, value, "lanczos", name)
    columns = value[:, None] if value.ndim == 1 else value
    if columns.ndim != 2 or len(columns) != operator.size or columns.shape[1] > most:
        raise ValueError(
            f"lanczos: {name} has shape {tuple(value.shape)}, it needs ({operator.size},) or "
            f"({operator.size}, m) with m at most {most}"
        )
    return columns.detach()
