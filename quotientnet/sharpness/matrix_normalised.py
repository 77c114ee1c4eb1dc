"""Sharpness in units of each matrix's norm (tsuzuku2019, section 4)."""

from __future__ import annotations

from math import sqrt

from quotientnet.curvature.scales import finite
from quotientnet.estimate import Estimate
from quotientnet.losses import output_invariances
from quotientnet.point import require_point
from quotientnet.sharpness.curvatures import parameters_of, traces_of

__all__ = ["matrix_normalised_sharpness"]


def matrix_normalised_sharpness(
    point, *, curvature="hessian", biases: bool = False
) -> Estimate:
    r"""The trace of each matrix's Hessian against the matrix's norm, summed over matrices.

    .. math:: \sum_l \sqrt{\|W_l\|_F^2\, \max(\operatorname{tr} H_l, 0)}

    Eq. (13) of [Tsuzuku2019]_. A matrix is a parameter of two axes or more. Invariant to a scale
    of each tensor, so to layer scales, but not to scales of single units or filters:
    :func:`normalised_sharpness` is. Shifts of the outputs by the last bias change nothing if the
    loss ignores them and biases do not count.

    Args:
        point: A :class:`~quotientnet.Point`.
        curvature: ``"hessian"``, exactly; ``"gauss-newton"``; a
            :class:`~quotientnet.curvature.LayerTraces` of this point; or a diagonal, shape
            ``(size,)``, such as the values of
            :func:`~quotientnet.curvature.hutchinson_diagonal`.
        biases: Whether parameters of one axis count, too (footnote 1 of the paper).

    Returns:
        The sum, and its part of each tensor in ``layers``, in units of the square root of the
        loss; ``error`` is that of traces that are estimates, to first order.

    Raises:
        TypeError: ``point`` or ``curvature`` is neither of these.
        ValueError: Another word for ``curvature``, or a diagonal of another shape.

    Note:
        The passes of :func:`~quotientnet.curvature.hessian_traces`.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double()
        >>> objective = qn.Objective(torch.nn.Linear(2, 1).double(), torch.nn.MSELoss(), data)
        >>> point = objective.at(torch.tensor([3.0, 4.0, 0.0]).double())
        >>> round(qn.sharpness.matrix_normalised_sharpness(point).value**2, 9)  # 25 · 50
        1250.0
    """
    require_point(point, "matrix_normalised_sharpness")
    traces = traces_of(point, curvature, "matrix_normalised_sharpness")
    invariant_to = ("layer scales", *output_invariances(point.objective.loss))
    if biases:
        invariant_to = tuple(name for name in invariant_to if name != "output shift")
    layers = {
        entry.name: _normalised(
            point.w[entry.slice], traces[entry.name], ("layer scales",)
        )
        for entry in parameters_of(point)
        if biases or len(entry.shape) > 1
    }
    return Estimate(
        finite(sum(part.value for part in layers.values()), "matrix_normalised_sharpness"),
        sum(part.error**2 for part in layers.values()) ** 0.5,
        all(part.converged for part in layers.values()),
        max((trace.cost for trace in traces.values()), default=0),
        invariant_to,
        layers,
    )


def _normalised(w, trace: Estimate, invariant_to) -> Estimate:
    """``‖w‖ √(tr H)`` of one tensor."""
    norm = float(w.double().norm())
    root = sqrt(max(trace.value, 0.0))
    error = norm * (trace.error / (2 * root) if root else sqrt(trace.error))
    return Estimate(norm * root, error, trace.converged, trace.cost, invariant_to)
