"""Fisher–Rao norms of the parameters: Liang's, and the diagonal one that tsuzuku2019 compares."""

from __future__ import annotations

from quotientnet.curvature.scales import require_resolved
from quotientnet.curvature.slopes import sample_slopes, squared_gradients
from quotientnet.estimate import Estimate
from quotientnet.losses import output_invariances
from quotientnet.point import require_point
from quotientnet.sharpness.curvatures import parameters_of

__all__ = ["fisher_rao_norm", "diagonal_fisher_rao_norm"]

_SYMMETRIES = ("layer scales", "unit scales", "filter scales")


def fisher_rao_norm(point) -> Estimate:
    r"""The mean square of the slope of a sample's loss along the parameters themselves.

    .. math:: \mathbb{E}_z \langle w, \nabla \ell_z(w) \rangle^2

    Liang's Fisher–Rao norm [Liang2019]_, of the empirical distribution of samples and targets:
    :math:`w^\top F w` with the empirical Fisher matrix, not its root. Invariant to every
    scaling that changes no sample's loss, because :math:`w` and :math:`\nabla \ell_z` scale against
    each other; also to moving weight between parallel branches
    (:func:`~quotientnet.reparametrisation.share_branches`), and to shifts of the outputs that the
    loss ignores.

    Args:
        point: A :class:`~quotientnet.Point`; samples must not interact.

    Returns:
        The norm in units of squared loss, exact up to rounding.

    Raises:
        TypeError: ``point`` is none.
        ValueError: Batch statistics, or samples that interact in the model or in the loss; a loss
            that reads parameters.

    Note:
        Three gradients, whatever the number of samples.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.zeros(2, 1).double()
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(1).double())
        >>> qn.sharpness.fisher_rao_norm(point).value  # (2² + 8²) / 2
        34.0
    """
    require_point(point, "fisher_rao_norm")
    slopes = sample_slopes(point, point.w)
    value = float(slopes.double().square().mean())
    invariant_to = (*_SYMMETRIES, *output_invariances(point.objective.loss))
    return Estimate(value, 0.0, True, 3, invariant_to)


def diagonal_fisher_rao_norm(point) -> Estimate:
    r"""The mean square of each derivative against the square of its parameter.

    .. math:: \sum_i w_i^2\, \mathbb{E}_z \left(\frac{\partial \ell_z}{\partial w_i}\right)^2

    Eq. (25) of [Tsuzuku2019]_, which the paper calls the Fisher–Rao norm; it is the diagonal part
    of :func:`fisher_rao_norm`. Invariant to scalings as that is; but it doubles where weight
    shared between two equal branches is moved to one (section 7.3, which says that it becomes
    half), and a shift of the outputs by a bias changes it.

    Args:
        point: As in :func:`fisher_rao_norm`.

    Returns:
        The norm and the part of each tensor in ``layers``, in units of squared loss, exact up to
        rounding.

    Raises:
        TypeError: ``point`` is none.
        ValueError: As :func:`fisher_rao_norm`.

    Note:
        A backward pass, and derivatives of single samples for some layers; see
        :func:`~quotientnet.curvature.squared_gradients`.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[1.0, 1.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(2).double())
        >>> found = qn.sharpness.diagonal_fisher_rao_norm(point)
        >>> found.value, qn.sharpness.fisher_rao_norm(point).value
        (32.0, 64.0)
    """
    require_point(point, "diagonal_fisher_rao_norm")
    squares = squared_gradients(point)
    require_resolved(point, squares, "diagonal_fisher_rao_norm")
    products = (point.w.double() * squares.double().sqrt()).square()
    layers = {
        entry.name: Estimate(
            float(products[entry.slice].sum()), 0.0, True, 1, _SYMMETRIES
        )
        for entry in parameters_of(point)
    }
    own = (s for s in output_invariances(point.objective.loss) if s == "output scale")
    value = sum(part.value for part in layers.values())
    return Estimate(value, 0.0, True, 1, (*_SYMMETRIES, *own), layers)
