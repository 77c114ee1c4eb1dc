"""Weight decay that is a function on the quotient."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from quotientnet.errors import NotOnManifoldError
from quotientnet.manifolds import BalancedQuotient, QuotientManifold

__all__ = ["Decay", "decay"]

_BALANCED: WeakKeyDictionary = WeakKeyDictionary()
"""The balanced quotient of each manifold's group: costly to set up, the same at every point."""


class Decay(NamedTuple):
    """What :func:`decay` returns.

    Attributes:
        value: Shape ``(...)``, half a squared norm.
        gradient: Its Euclidean gradient, shape ``(..., n)``; 0 where the manifold is frozen.
    """

    value: Tensor
    gradient: Tensor


@torch.no_grad()
def decay(w: Tensor, manifold: QuotientManifold) -> Decay:
    r"""Half the squared norm of the canonical network, and its gradient.

    With :math:`w^* = E w` the canonical point of the orbit, the value is
    :math:`\tfrac{1}{2} \|w^*\|^2`, and the gradient is :math:`E P w^*`, where :math:`P` projects to
    the orthogonal complement of the orbit of :math:`w^*`. It is what ambient L2,
    :math:`\tfrac{1}{2} \|w\|^2`, is not: the same for all networks of an orbit, so an optimizer
    that is led by it stays equivariant.

    Where no generator has a level (see :func:`~quotientnet.symmetry.default_levels`) it is the
    least :math:`\tfrac{1}{2} \|w\|^2` of the orbit. A filter before a normalisation, whose scale is
    of no effect, has norm 1 in the canonical network and does not decay.

    Args:
        w: Points, shape ``(..., n)``.
        manifold: A quotient; its group counts, and the levels of a ``BalancedQuotient``.

    Returns:
        The value, a class invariant, and the Euclidean gradient, equivariant.

    Raises:
        TypeError: ``manifold`` is no quotient.
        NotOnManifoldError: The point has no canonical network: units run away, by name.
        RuntimeError: Weights are so far apart in scale that float64 finds none.

    Note:
        One convex problem a point, see :func:`~quotientnet.canonical`.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> manifold = qn.NodeWiseQuotient(qn.discover(model, torch.ones(4, 2).double()))
        >>> w = manifold.layout.flatten(model)
        >>> y = manifold.group.act(w, torch.tensor([1.0, -2.0, 0.5]))
        >>> a, b = (qn.training.decay(each, manifold).value for each in (w, y))
        >>> bool(torch.isclose(a, b, rtol=1e-12)), bool(a <= w.square().sum() / 2)
        (True, True)
    """
    if not isinstance(manifold, QuotientManifold):
        raise TypeError(
            "decay: manifold must be a quotient, such as NodeWiseQuotient(symmetry), got "
            f"{type(manifold).__name__}; elsewhere weight decay is w.square().sum() / 2"
        )
    balanced = _balanced(manifold)
    try:
        value = balanced.inner(w, w) / 2
        gradient = balanced.frame(w).square() * balanced.proju(w, w)
    except NotOnManifoldError as error:
        raise NotOnManifoldError(
            f"decay: weight decay needs the canonical network. {error}. Without such generators: "
            f"{type(manifold).__name__}(BalancedQuotient(symmetry, exclude=w).group)"
        ) from error
    return Decay(value, manifold._keep(gradient))


def _balanced(manifold: QuotientManifold) -> BalancedQuotient:
    """The balanced quotient by the manifold's group, without generators that move frozen zeros
    only."""
    if isinstance(manifold, BalancedQuotient):
        return manifold
    if manifold not in _BALANCED:
        group = manifold.group
        idle = torch.zeros(group.dimension, dtype=torch.bool)
        idle[group.gram(~manifold._frozen.mask).free_generators] = True
        _BALANCED[manifold] = BalancedQuotient(group.without(idle.numpy()))
    return _BALANCED[manifold]
