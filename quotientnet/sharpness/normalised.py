"""Sharpness in units of a variance for each row and column (tsuzuku2019, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

from torch import Tensor

from quotientnet.curvature.forward import convolution_groups
from quotientnet.estimate import Estimate
from quotientnet.losses import output_invariances
from quotientnet.point import require_point
from quotientnet.sharpness.curvatures import diagonal_of, parameters_of
from quotientnet.sharpness.variances import Variances, minimise_variances

__all__ = ["NormalisedSharpness", "normalised_sharpness"]

_SYMMETRIES = ("layer scales", "unit scales", "filter scales")


@dataclass(frozen=True, kw_only=True)
class NormalisedSharpness(Estimate):
    """Normalised sharpness with the variances that attain it.

    Attributes:
        variances: For each matrix, by name, the :class:`~quotientnet.sharpness.Variances` of its
            rows and columns: the variance of entry ``(i, j)`` is their product.
    """

    variances: Mapping[str, Variances] = field(default_factory=dict, repr=False)


def normalised_sharpness(
    point, *, curvature="hessian", lambda_: float = 0.5
) -> NormalisedSharpness:
    r"""The least noise term plus weight term over a variance for each row and each column.

    .. math:: \sum_l \min_{\sigma, \sigma'} \sum_{ij} h_{ij} (\sigma_i \sigma'_j)^2
              + \frac{W_{ij}^2}{2 \lambda (\sigma_i \sigma'_j)^2}, \qquad
              h = \max(\operatorname{diag} H, 0)

    Eq. (17) of [Tsuzuku2019]_ with λ = ½ by default, so that the second term is
    :math:`W^2/(\sigma\sigma')^2`; convex in the logarithms. In a convolution rows and columns are
    output and input channels, those of each group their own, and both terms are summed over
    the kernel. The first two axes of any other parameter are rows and columns, and parameters of
    one axis do not count (footnote 5). A tied matrix counts once. Rows and columns without
    curvature, or without weight, contribute their infimum.

    Invariant to any scale of a row or a column, so to layer scales, node-wise scales and scales of
    normalised filters, unless these run along a further axis of a parameter that enters no
    convolution: then only layer scales are claimed. Invariant to a shift or scale of the outputs
    where the loss is, which :class:`~quotientnet.losses.NormalisedCrossEntropy` is and the paper
    asks for.

    Args:
        point: A :class:`~quotientnet.Point`.
        curvature: ``"hessian"``, exactly; ``"gauss-newton"``; or a diagonal, shape ``(size,)``,
            such as the values of :func:`~quotientnet.curvature.hutchinson_diagonal`.
        lambda_: λ, which multiplies the value by :math:`\sqrt{1/(2\lambda)}`.

    Returns:
        The sum over matrices, and each matrix's part in ``layers``, in units of the square root of
        the loss, with the variances.

    Raises:
        TypeError: ``point`` or ``curvature`` is neither of these.
        ValueError: Another word for ``curvature``, a diagonal of another shape, or λ that is not
            positive.

    Note:
        The passes of :func:`~quotientnet.curvature.hessian_diagonal`; the rest is quicker.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), data)
        >>> point = objective.at(torch.tensor([5.0, 1.0]).double())
        >>> round(qn.sharpness.normalised_sharpness(point).value / 2 / 2**0.5, 9)  # 5·3 + 1·4
        19.0
    """
    require_point(point, "normalised_sharpness")
    if not 0 < lambda_ < float("inf"):
        raise ValueError(
            f"normalised_sharpness: lambda_ must be positive, got {lambda_}"
        )
    diagonal, cost = diagonal_of(point, curvature, "normalised_sharpness")
    groups = convolution_groups(point)
    found = {
        entry.name: _rescaled(
            _solve(point, entry, diagonal, groups.get(entry.name, 1)), lambda_
        )
        for entry in parameters_of(point)
        if len(entry.shape) > 1
    }
    deep = [n for n in found if len(point.layout[n].shape) > 2 and n not in groups]
    symmetries = ("layer scales",) if deep else _SYMMETRIES
    layers = {
        name: Estimate(each.value, each.error, each.converged, cost, symmetries)
        for name, each in found.items()
    }
    return NormalisedSharpness(
        sum(part.value for part in layers.values()),
        sum(part.error for part in layers.values()),
        all(part.converged for part in layers.values()),
        cost,
        (*symmetries, *output_invariances(point.objective.loss)),
        layers,
        variances=found,
    )


def _solve(point, entry, diagonal: Tensor, groups: int) -> Variances:
    """The variances of one matrix."""
    rows, columns = entry.shape[:2]
    h = diagonal[entry.slice].double().clamp(min=0)
    squares = point.w[entry.slice].double().square()
    h, squares = (t.reshape(rows, columns, -1).sum(2) for t in (h, squares))
    return minimise_variances(h, squares, groups)


def _rescaled(found: Variances, lambda_: float) -> Variances:
    """From λ = ½ to another: the weight term falls, and all variances with it."""
    factor = sqrt(1 / (2 * lambda_))
    return replace(
        found,
        rows=found.rows * factor,
        value=found.value * factor,
        error=found.error * factor,
    )
