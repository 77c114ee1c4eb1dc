"""Means of points on a manifold."""

from __future__ import annotations

import geoopt
import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.optimization.optimum import Optimum
from quotientnet.optimization.problem import metric
from quotientnet.optimization.solve import minimize
from quotientnet.options import require_number

__all__ = ["frechet_mean"]


def frechet_mean(
    manifold: geoopt.Manifold,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-11,
    max_iterations: int = 500,
) -> Optimum:
    r"""The point with the least mean squared distance, :math:`\tfrac{1}{2} \sum_i p_i d(x, x_i)^2`.

    Its gradient is :math:`-\sum_i p_i \log_x x_i`; :func:`minimize` does the rest, along
    geodesics. On a quotient it is a mean of orbits: moving points along their orbits does not move
    the mean's, and moving ``start`` moves the mean along.

    Args:
        manifold: A manifold with ``logmap`` and ``expmap``.
        points: Shape ``(count, *point)``.
        weights: Shape ``(count,)``, not negative; they are divided by their sum. Equal if omitted.
        start: Where to begin, shape ``(*point)``; the first point if omitted.
        tolerance: Of the gradient, the length of the mean logarithm.
        max_iterations: At most.

    Returns:
        The optimum, with half the mean squared distance as its value, a class invariant on a
        quotient. Unique if the points lie in a small ball; otherwise a local minimum.

    Raises:
        TypeError: ``manifold`` is none, points or weights no tensors, ``tolerance`` no number.
        ValueError: Points or weights of another shape, or points without a shortest geodesic.

    Note:
        As accurate as ``manifold.logmap``: that of geoopt's ``Sphere`` is wrong for points closer
        than 4e-4.

    Example:
        >>> import geoopt
        >>> import torch
        >>> points = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> mean = frechet_mean(geoopt.Sphere(), points)
        >>> [round(x, 10) for x in mean.point.tolist()]
        [0.7071067812, 0.7071067812]
    """
    require_number(tolerance, "frechet_mean", "tolerance", strict=True)
    shares = _shares(manifold, points, weights)

    def half_spread(x: Tensor) -> Tensor:
        here = x.detach()[None]
        with torch.no_grad():
            copies = here.expand_as(points)
            logs = manifold.logmap(copies, points)
            squares = metric(manifold, copies, logs, logs)
            pull = torch.tensordot(shares, logs, 1)[None]
        # The last term has the value 0 and the gradient minus the mean logarithm.
        falling = metric(manifold, here, pull, x[None] - here)[0]
        return shares @ squares / 2 - falling

    first = points[0] if start is None else start
    if not first.requires_grad and first.shape == points.shape[1:]:
        _require_geodesics(manifold, first, points)
    found = minimize(
        half_spread,
        manifold,
        first,
        along="geodesic",
        tolerance=tolerance,
        max_iterations=max_iterations,
        batched=False,
    )
    _require_geodesics(manifold, found.point, points)
    return found


def _shares(
    manifold: geoopt.Manifold, points: Tensor, weights: Tensor | None
) -> Tensor:
    """The weights, adding up to 1, of points that are points.

    Raises:
        TypeError: No tensors.
        ValueError: Points or weights of another shape, or weights of no mean.
        NotOnManifoldError: A point is none.
    """
    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(
            "frechet_mean: manifold must be a geoopt.Manifold, such as one of quotientnet, got "
            f"{type(manifold).__name__}"
        )
    for name, value in (("points", points), ("weights", weights)):
        if not isinstance(value, Tensor) and (name == "points" or value is not None):
            raise TypeError(
                f"frechet_mean: {name} must be a torch.Tensor, got {type(value).__name__}"
            )
        if value is not None and (value.is_meta or value.layout != torch.strided):
            raise ValueError(
                f"frechet_mean: {name} must be an ordinary (dense) tensor with values"
            )
    if points.ndim != manifold.ndim + 1 or not len(points):
        raise ValueError(
            f"frechet_mean: points has shape {tuple(points.shape)}, it must be (count, *point), "
            f"where a point has {manifold.ndim} dimensions"
        )
    shares = torch.ones(len(points)).to(points) if weights is None else weights
    if shares.shape != points.shape[:1] or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(
            f"frechet_mean: weights must have shape ({len(points)},), not be negative, and have a "
            "positive sum"
        )
    shares = (shares / shares.sum()).to(points)
    ok, why = manifold.check_point_on_manifold(points, explain=True)
    if not ok:
        raise NotOnManifoldError(
            f"frechet_mean: points are not all on the manifold: {why}; use manifold.projx"
        )
    return shares


def _require_geodesics(manifold: geoopt.Manifold, x: Tensor, points: Tensor) -> None:
    """Refuse points to which there is no shortest geodesic: their logarithm is then not as long as
    they are far.

    Raises:
        ValueError: There are some.
    """
    copies = x.detach()[None].expand_as(points)
    logs = manifold.logmap(copies, points)
    lengths = metric(manifold, copies, logs, logs).clamp(min=0).sqrt()
    distances = manifold.dist(copies, points).reshape(lengths.shape)
    wrong = (lengths - distances).abs() > 1e-2 * (1 + distances)
    if wrong.any():
        place = int(torch.nonzero(wrong)[0, 0])
        raise ValueError(
            f"frechet_mean: there is no shortest geodesic to point {place}, at distance "
            f"{float(distances[place]):.3g}; begin elsewhere with start=, or leave it out"
        )
