"""Maximise or minimise a function on a manifold."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import geoopt
import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.manifolds import QuotientManifold
from quotientnet.optimization.descent import Descent
from quotientnet.optimization.directions import Conjugate, Steepest
from quotientnet.optimization.iteration import iterate
from quotientnet.optimization.line_search import LineSearch
from quotientnet.optimization.method import Method
from quotientnet.optimization.optimum import Optimum
from quotientnet.optimization.paths import path_on
from quotientnet.optimization.power import Power
from quotientnet.optimization.problem import Problem
from quotientnet.optimization.second_order import HESSIANS
from quotientnet.optimization.trust_region import TrustRegion
from quotientnet.options import require_count, require_number
from quotientnet.orbit import require_flat_orbit

__all__ = ["maximize", "minimize"]

_SEARCHES = {"armijo": None, "strong-wolfe": 0.1}
_METHODS = {
    "gradient": lambda search, hessian: Descent(Steepest(), search),
    "conjugate-gradient": lambda search, hessian: Descent(Conjugate(), search),
    "power": lambda search, hessian: Power(),
    "trust-region": lambda search, hessian: TrustRegion(hessian),
}


def maximize(
    function: Callable[[Tensor], Tensor],
    manifold: geoopt.Manifold,
    start: Tensor,
    *,
    method: str = "conjugate-gradient",
    line_search: str | None = None,
    along: str | None = None,
    hessian: str = "exact",
    tolerance: float = 1e-8,
    max_iterations: int = 500,
    batched: bool = True,
    callback: Callable | None = None,
) -> Optimum:
    r"""A local maximum of a function on a manifold, from one starting point or many at once.

    Every method ends where the Riemannian gradient is short, and reports why it ended:

    ``"gradient"``
        steepest ascent, with steps of Barzilai and Borwein;
    ``"conjugate-gradient"``
        nonlinear conjugate gradients of [HagerZhang2005]_, with transports;
    ``"power"``
        the generalised power method of [Journee2010]_: monotone for convex functions without any
        step size, and for others by a shift; on spheres, Stiefel and oblique manifolds;
    ``"trust-region"``
        the Riemannian trust region of [Absil2008]_ with truncated conjugate gradients, of quadratic
        convergence.

    Near an optimum, where values differ by rounding only, steps are judged by slopes, so that the
    gradient falls to its own rounding. Nothing is random.

    Args:
        function: From points, shape ``(*batch, *point)``, to values, shape ``(*batch)``,
            differentiable by autograd: twice for a trust region. On a quotient it must be
            invariant under the group.
        manifold: Any :class:`geoopt.Manifold`.
        start: One point, shape ``(*point)``, or a batch, shape ``(starts, *point)``. Rows of a
            batch do not affect each other, and those that have stopped are not evaluated again.
        method: See above.
        line_search: ``"armijo"`` or ``"strong-wolfe"`` ([NocedalWright2006]_), of the first two
            methods; by default the former for gradients, the latter for conjugate gradients.
        along: ``"retraction"``, or ``"geodesic"``, the default on log-polar quotients. Their
            retraction ``w + ξ`` is only valid near 0: steps at which a block would cross zero are
            shortened.
        hessian: ``"exact"``, by differentiating twice, or ``"differences"`` of gradients
            ([Boumal2015]_), of the trust region.
        tolerance: Largest length of the gradient in the metric, in units of the function per unit
            of length.
        max_iterations: Per start.
        batched: False if ``function`` takes one point at a time; it is then called for each.
        callback: Called after every iteration with its number, the points, shape ``(starts,
            *point)``, values and gradient norms, shape ``(starts,)``.

    Returns:
        The best optimum, all the others, and the history. No value is worse than its start's, up
        to rounding.

    Raises:
        NotOnManifoldError: ``start`` is not on the manifold.
        ValueError: An unknown option; a function that returns another shape, is not differentiable,
            not finite at ``start``, not invariant, or only once differentiable where two
            derivatives are needed; a manifold without power steps.
        TypeError: ``manifold`` or ``start`` of another type.

    Note:
        A trial of a line search costs a value and a gradient; an iteration of a trust region two of
        both and two gradients for each product with the Hessian.

    Example:
        >>> import geoopt
        >>> import torch
        >>> a = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
        >>> start = torch.tensor([0.6, 0.64, 0.48], dtype=torch.float64)
        >>> optimum = maximize(lambda x: x @ a @ x, geoopt.Sphere(), start, method="trust-region")
        >>> round(optimum.value, 12), optimum.reason
        (5.0, 'gradient norm')
    """
    return _solve(
        "maximize", -1, function, manifold, start, method, line_search, along, hessian,
        tolerance, max_iterations, batched, callback,
    )  # fmt: skip


def minimize(
    function: Callable[[Tensor], Tensor],
    manifold: geoopt.Manifold,
    start: Tensor,
    *,
    method: str = "conjugate-gradient",
    line_search: str | None = None,
    along: str | None = None,
    hessian: str = "exact",
    tolerance: float = 1e-8,
    max_iterations: int = 500,
    batched: bool = True,
    callback: Callable | None = None,
) -> Optimum:
    """A local minimum of a function on a manifold: :func:`maximize` of its negative.

    Args:
        function: See :func:`maximize`, as for all others.
        manifold: Any :class:`geoopt.Manifold`.
        start: One point or a batch.
        method: ``"gradient"``, ``"conjugate-gradient"``, ``"power"`` or ``"trust-region"``.
        line_search: ``"armijo"`` or ``"strong-wolfe"``.
        along: ``"retraction"`` or ``"geodesic"``.
        hessian: ``"exact"`` or ``"differences"``.
        tolerance: Of the gradient's length.
        max_iterations: Per start.
        batched: Whether ``function`` takes several points at once.
        callback: Called after every iteration.

    Example:
        >>> import geoopt
        >>> import torch
        >>> start = torch.zeros(2, dtype=torch.float64)
        >>> optimum = minimize(lambda x: (x - 3).square().sum(), geoopt.Euclidean(ndim=1), start)
        >>> torch.allclose(optimum.point, torch.full_like(start, 3), atol=1e-12)
        True
    """
    return _solve(
        "minimize", 1, function, manifold, start, method, line_search, along, hessian,
        tolerance, max_iterations, batched, callback,
    )  # fmt: skip


def _solve(
    caller, sign, function, manifold, start, method, line_search, along, hessian,
    tolerance, max_iterations, batched, callback,
) -> Optimum:  # fmt: skip
    chosen = _method(caller, method, line_search, hessian)
    require_number(tolerance, caller, "tolerance", most=inf)
    require_count(max_iterations, caller, "max_iterations", least=0)
    with torch.inference_mode(False), torch.no_grad():
        x, single = _rows(caller, manifold, start)
        path = path_on(manifold, along, caller)
        problem = Problem(function, path, sign, batched and not single, caller)
        first, egrad = problem.evaluate(x)
        _require_finite(caller, first)
        if isinstance(manifold, QuotientManifold):
            for row, gradient, value in zip(x, egrad, first.value):
                kept = manifold._keep(gradient)
                require_flat_orbit(manifold.group, row, kept, value, caller)
        return iterate(problem, chosen, first, tolerance, max_iterations, callback)


def _method(caller: str, method: str, line_search: str | None, hessian: str) -> Method:
    """The method of this name, out of its parts."""
    if line_search is None:
        line_search = "armijo" if method == "gradient" else "strong-wolfe"
    for name, got, known in (
        ("method", method, _METHODS),
        ("line_search", line_search, _SEARCHES),
        ("hessian", hessian, HESSIANS),
    ):
        if got not in known:
            raise ValueError(
                f"{caller}: {name} must be one of {sorted(known)}, got {got!r}"
            )
    return _METHODS[method](LineSearch(_SEARCHES[line_search]), HESSIANS[hessian])


def _rows(caller: str, manifold, start: Tensor) -> tuple[Tensor, bool]:
    """The starting points, shape ``(rows, *point)``, and whether one point was given."""
    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(
            f"{caller}: manifold must be a geoopt.Manifold, got {type(manifold).__name__}"
        )
    if not isinstance(start, Tensor) or not start.is_floating_point():
        got = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"{caller}: start must be a floating-point tensor, got {got}")
    extra = start.ndim - manifold.ndim
    if start.is_meta or start.layout != torch.strided:
        raise ValueError(
            f"{caller}: start must be a dense tensor with values, got one of layout "
            f"{start.layout} on {start.device}"
        )
    if extra not in (0, 1) or not start.numel():
        raise ValueError(
            f"{caller}: start has shape {tuple(start.shape)}; it must be one point, with "
            f"{manifold.ndim} dimensions on this manifold, or a batch (starts, *point)"
        )
    x = start.detach().as_subclass(Tensor).clone()
    x = x if extra else x[None]
    ok, why = manifold.check_point_on_manifold(x, explain=True)
    if not ok:
        raise NotOnManifoldError(
            f"{caller}: start is not on the manifold: {why}{_violation(manifold, x)}; use "
            "manifold.projx(start)"
        )
    return x, not extra


def _violation(manifold, x: Tensor) -> str:
    """How far off the points are, where the manifold can tell."""
    try:
        far = float((manifold.projx(x) - x).abs().max())
    except (ValueError, RuntimeError):
        return ""
    return f" (off by up to {far:.1e})"


def _require_finite(caller: str, first) -> None:
    bad = ~torch.isfinite(first.value + first.norm)
    if bad.any():
        rows = torch.nonzero(bad)[:, 0].tolist()
        raise ValueError(
            f"{caller}: the function or its gradient is not finite at start "
            f"{rows[0]}: value {float(first.value[rows[0]])}, gradient norm "
            f"{float(first.norm[rows[0]])}; begin where it is finite"
        )
