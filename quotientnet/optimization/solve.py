"""Maximise or minimise a function on a manifold."""

from __future__ import annotations

from collections.abc import Callable

import geoopt
import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.optimization.descent import Descent
from quotientnet.optimization.directions import Conjugate, Steepest
from quotientnet.optimization.iteration import iterate
from quotientnet.optimization.line_search import LineSearch
from quotientnet.optimization.method import Method
from quotientnet.optimization.optimum import Optimum
from quotientnet.optimization.paths import path_on
from quotientnet.optimization.problem import Problem

__all__ = ["maximize", "minimize"]

_SEARCHES = {"armijo": None, "strong-wolfe": 0.1}


def maximize(
    function: Callable[[Tensor], Tensor],
    manifold: geoopt.Manifold,
    start: Tensor,
    *,
    method: str = "conjugate-gradient",
    line_search: str = "strong-wolfe",
    along: str | None = None,
    hessian: str = "exact",
    tolerance: float = 1e-8,
    max_iterations: int = 500,
    batched: bool = True,
    callback: Callable | None = None,
) -> Optimum:
    """A local maximum of a function on a manifold; see :func:`minimize`."""
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
    line_search: str = "strong-wolfe",
    along: str | None = None,
    hessian: str = "exact",
    tolerance: float = 1e-8,
    max_iterations: int = 500,
    batched: bool = True,
    callback: Callable | None = None,
) -> Optimum:
    """A local minimum of a function on a manifold."""
    return _solve(
        "minimize", 1, function, manifold, start, method, line_search, along, hessian,
        tolerance, max_iterations, batched, callback,
    )  # fmt: skip


def _solve(
    caller, sign, function, manifold, start, method, line_search, along, hessian,
    tolerance, max_iterations, batched, callback,
) -> Optimum:  # fmt: skip
    chosen = _method(caller, method, line_search, hessian)
    with torch.inference_mode(False), torch.no_grad():
        x, single = _rows(caller, manifold, start)
        path = path_on(manifold, along, caller)
        problem = Problem(function, path, sign, batched and not single, caller)
        first = problem.at(x)
        _require_finite(caller, first)
        return iterate(problem, chosen, first, tolerance, max_iterations, callback)


def _method(caller: str, method: str, line_search: str, hessian: str) -> Method:
    directions = {"gradient": Steepest, "conjugate-gradient": Conjugate}
    if method not in directions:
        raise ValueError(
            f"{caller}: method must be one of {sorted(directions)}, got {method!r}"
        )
    if line_search not in _SEARCHES:
        raise ValueError(
            f"{caller}: line_search must be one of {sorted(_SEARCHES)}, got {line_search!r}"
        )
    return Descent(directions[method](), LineSearch(_SEARCHES[line_search]))


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
            f"{caller}: start is not on the manifold: {why}; use manifold.projx(start)"
        )
    return x, not extra


def _require_finite(caller: str, first) -> None:
    bad = ~torch.isfinite(first.value + first.norm)
    if bad.any():
        rows = torch.nonzero(bad)[:, 0].tolist()
        raise ValueError(
            f"{caller}: the function or its gradient is not finite at start "
            f"{rows[0]}: value {float(first.value[rows[0]])}, gradient norm "
            f"{float(first.norm[rows[0]])}; begin where it is finite"
        )
