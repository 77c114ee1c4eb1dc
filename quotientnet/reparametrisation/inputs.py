"""Other representations of the inputs: dinh2017 §5.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quotientnet.options import require_module, require_values

__all__ = ["AffinePreprocessing", "OnPreprocessed", "standardise", "whiten"]


class AffinePreprocessing(nn.Module):
    r"""An invertible preprocessing :math:`u = \xi^{-1}(x) = M (x - m)`, the last axis the features.

    Args:
        shift: ``m``, shape ``(features,)``.
        matrix: ``M``, shape ``(features, features)``, invertible.

    Raises:
        TypeError: What is no tensor.
        ValueError: Shapes that do not fit, entries that are not finite, or a matrix that is
            singular to rounding.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import AffinePreprocessing
        >>> halve = AffinePreprocessing(torch.ones(2), torch.eye(2) / 2)
        >>> halve(torch.tensor([3.0, 5.0])), halve.inverse(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]), tensor([3., 5.]))
    """

    def __init__(self, shift: Tensor, matrix: Tensor):
        super().__init__()
        require_values(shift, "AffinePreprocessing", "shift")
        require_values(matrix, "AffinePreprocessing", "matrix")
        size = shift.numel()
        if shift.ndim != 1 or tuple(matrix.shape) != (size, size):
            raise ValueError(
                "AffinePreprocessing: needs a shift of shape (d,) and a matrix of shape (d, d), "
                f"got {tuple(shift.shape)} and {tuple(matrix.shape)}"
            )
        sizes = matrix.abs().amax(1, keepdim=True)  # features may have any unit
        rank = int(
            torch.linalg.matrix_rank(matrix / torch.where(sizes > 0, sizes, 1.0))
        )
        if rank < size:
            raise ValueError(
                f"AffinePreprocessing: the matrix has rank {rank} of {size}, so the preprocessing "
                "has no inverse"
            )
        self.register_buffer("shift", shift.clone())
        self.register_buffer("matrix", matrix.clone())
        self.register_buffer("inverse_matrix", torch.linalg.inv(matrix))

    def forward(self, x: Tensor) -> Tensor:
        """``u = ξ⁻¹(x)``, shape ``(..., features)``."""
        return (x - self.shift) @ self.matrix.mT

    def inverse(self, u: Tensor) -> Tensor:
        """``x = ξ(u)``, shape ``(..., features)``."""
        return u @ self.inverse_matrix.mT + self.shift


class OnPreprocessed(nn.Module):
    r"""The same prediction function on preprocessed inputs, :math:`f_\xi = f \circ \xi`.

    Its gradients are others, :math:`\partial f_\xi/\partial u^\top = \partial f/\partial x^\top \,
    \partial\xi/\partial u^\top` (§5.2 of [Dinh2017]_), so that how small they are says nothing
    before the representation is fixed. The paper prints the left one at ``ξ(u)``; it is taken at
    ``u``.

    Args:
        model: ``f``, not copied; its parameters are those of this module, under ``model.``.
        preprocessing: ``ξ⁻¹``, with a method ``inverse``.

    Raises:
        TypeError: ``model`` is no module, or ``preprocessing`` none with this method.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import OnPreprocessed, standardise
        >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> model, preprocessing = torch.nn.Linear(3, 2), standardise(x)
        >>> same = OnPreprocessed(model, preprocessing)(preprocessing(x))
        >>> torch.allclose(same, model(x), atol=1e-5)
        True
    """

    def __init__(self, model: nn.Module, preprocessing: nn.Module):
        super().__init__()
        require_module(model, "OnPreprocessed", "model")
        require_module(preprocessing, "OnPreprocessed", "preprocessing")
        if not callable(getattr(preprocessing, "inverse", None)):
            raise TypeError(
                f"OnPreprocessed: preprocessing needs a method inverse, and "
                f"{type(preprocessing).__name__} has none; standardise(x) or whiten(x) makes one"
            )
        self.model, self.preprocessing = model, preprocessing

    def forward(self, u: Tensor) -> Tensor:
        """``f(ξ(u))``."""
        return self.model(self.preprocessing.inverse(u))


def standardise(x: Tensor) -> AffinePreprocessing:
    """Feature standardisation: mean 0 and variance 1 of each feature on the data.

    Args:
        x: The data, shape ``(samples, features)``.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: Another dtype or number of axes, numbers whose squares overflow, or a feature
            that is constant.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import standardise
        >>> standardise(torch.tensor([[0.0, 1.0], [4.0, 3.0]])).matrix.diagonal()
        tensor([0.5000, 1.0000])
    """
    _require_samples(x, "standardise")
    deviation = x.std(0, correction=0)
    _require_range(deviation, x, "standardise")
    constant = (x == x[:1]).all(0)
    if constant.any():
        raise ValueError(
            f"standardise: {int(constant.sum())} of {x.shape[1]} features are constant, the first "
            f"number {int(constant.nonzero()[0])}; a standardised constant has no inverse: leave "
            "them out"
        )
    return AffinePreprocessing(x.mean(0), torch.diag(1 / deviation))


def whiten(x: Tensor) -> AffinePreprocessing:
    """Whitening: mean 0 and covariance 1 on the data, by the symmetric root (the least change).

    Args:
        x: The data, shape ``(samples, features)``, more samples than features.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: Another dtype or number of axes, numbers whose squares overflow, or features
            that depend on each other linearly.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import whiten
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> u = whiten(x @ torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
        >>> u.matrix.shape
        torch.Size([3, 3])
    """
    _require_samples(x, "whiten")
    mean = x.mean(0)
    covariance = (x - mean).mT @ (x - mean) / len(x)
    _require_range(covariance, x, "whiten")
    values, vectors = torch.linalg.eigh(covariance)
    rank = int((values > values[-1] * len(values) * torch.finfo(x.dtype).eps).sum())
    if rank < len(values):
        raise ValueError(
            f"whiten: the covariance has rank {rank} of {len(values)}: features are constant or "
            "depend on each other; leave some out"
        )
    return AffinePreprocessing(mean, vectors @ torch.diag(values**-0.5) @ vectors.mT)


def _require_range(moments: Tensor, x: Tensor, caller: str) -> None:
    if not torch.isfinite(moments).all():
        raise ValueError(
            f"{caller}: squares of x, which is as large as {float(x.abs().max()):.1e}, are beyond "
            "all numbers; choose another unit"
        )


def _require_samples(x: Tensor, caller: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{caller}: x must be a torch.Tensor, got {type(x).__name__}"
        )
    if x.dtype not in (torch.float32, torch.float64) or x.is_meta or x.is_sparse:
        raise ValueError(
            f"{caller}: x must be an ordinary tensor of float32 or float64, got {x.dtype} of "
            f"layout {x.layout} on {x.device}"
        )
    if x.ndim != 2 or not x.numel() or not torch.isfinite(x).all():
        raise ValueError(
            f"{caller}: x must be finite and of shape (samples, features), got shape "
            f"{tuple(x.shape)}"
        )
