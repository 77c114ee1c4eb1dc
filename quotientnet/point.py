"""All local knowledge of a function on parameter space at one point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from quotientnet.hessian import Curvature
from quotientnet.kinds import GAUSS_NEWTON, HESSIAN
from quotientnet.layout import ParameterLayout
from quotientnet.losses import require_curved

__all__ = ["Point", "require_finite", "require_point"]


class Point:
    """The value, gradient and second derivatives of an objective at ``w``, computed once each.

    A snapshot: what is changed in the model, the loss or the data afterwards may or may not be
    seen; take a new point.

    Attributes:
        objective: The function, for its values at neighbours.
        w: The point, shape ``(size,)``; a detached copy.
    """

    def __init__(self, objective, w: Tensor):
        self.objective, self.w = objective, w.detach().clone()
        self._modes = objective._modes()
        self._known = {}

    def known(self, key, find: Callable):
        """What ``find()`` returns here, found once; not to be written to.

        Args:
            key: What it is, hashable.
            find: A function without arguments.
        """
        self.require_modes()
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def require_modes(self) -> None:
        """Refuse to go on in other modes than those in which the loss has been checked.

        Raises:
            ValueError: A module has been switched between train and eval mode since.
        """
        if self._modes != self.objective._modes():
            raise ValueError(
                "Point: the model has been switched between train and eval mode since "
                "objective.at(w); switch it back, or take a new point"
            )

    @property
    def layout(self) -> ParameterLayout:
        """The coordinates."""
        return self.objective.layout

    @cached_property
    def value(self) -> Tensor:
        """``f(w)``, a scalar, per sample if the loss is a mean."""
        self.require_modes()
        with torch.no_grad():
            return require_finite(self.objective(self.w))

    @cached_property
    def gradient(self) -> Tensor:
        """``∇f(w)``, shape ``(size,)``, Euclidean; zero on passive coordinates."""
        self.require_modes()
        value, gradient = self.objective.value_and_gradient(self.w)
        require_finite(value)
        return gradient

    @cached_property
    def hessian(self) -> Curvature:
        """``∇²f(w)``, zero on passive coordinates."""
        return Curvature(self, HESSIAN)

    @cached_property
    def ggn(self) -> Curvature:
        r"""The generalised Gauss–Newton matrix :math:`J^\top (\nabla^2_z \ell) J`, with ``z`` the
        model's outputs ([Schraudolph2002]_); zero on passive coordinates.

        The Fisher information where the loss is the negative log-likelihood of a natural
        parameter: the cross-entropy of logits, binary or not, and half the squared error.

        Raises:
            ValueError: The loss is linear in the outputs, such as ``nn.NLLLoss``: the matrix is 0.
        """
        require_curved(self.objective.loss)
        return Curvature(self, GAUSS_NEWTON)


def require_finite(value: Tensor) -> Tensor:
    """The value of a loss, refused if it is NaN or infinite."""
    if not torch.isfinite(value):
        raise ValueError(
            f"Objective.at: the loss is {value.item()} at this point; check the data, the "
            "targets and the scale of w"
        )
    return value


def require_point(point, caller: str) -> None:
    """Refuse what is no point, and say what makes one.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(point, Point):
        raise TypeError(
            f"{caller}: point must be a Point, got {type(point).__name__}; objective.at(w) makes "
            "one"
        )
