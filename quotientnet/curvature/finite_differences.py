"""The diagonal of the Hessian as tsuzuku2019 approximates it: to compare, not to rely on."""

from __future__ import annotations

import torch
from torch import Tensor

from quotientnet.curvature.traces import DiagonalEstimate
from quotientnet.options import require_count, require_number
from quotientnet.point import Point, require_point
from quotientnet.progress import progress

__all__ = ["finite_difference_diagonal"]


def finite_difference_diagonal(
    point: Point,
    *,
    samples: int = 100,
    relative_step: float = 1e-4,
    generator: torch.Generator | None = None,
) -> DiagonalEstimate:
    r"""The diagonal of the Hessian from gradients at random neighbours.

    .. math:: h \approx \mathbb{E}_{\epsilon \sim N(0, I)} \left[\epsilon \odot
              \frac{\nabla f(w + r \odot \epsilon) - \nabla f(w - r \odot \epsilon)}{2 r}\right]

    Eq. (61) of [Tsuzuku2019]_, with a step :math:`r_l` for each tensor in proportion to its
    Frobenius norm. With different steps the estimate of tensor ``l`` is that of
    :math:`\sum_{l'} (r_{l'}/r_l) H_{ll'}`, whose diagonal is still that of :math:`H_{ll}`. Kept to
    compare with: it has the error of the finite step beside that of sampling, and normal
    :math:`\epsilon` sample the diagonal itself, which the signs of
    :func:`~quotientnet.curvature.hutchinson_diagonal` have exactly, for a product a sample instead
    of two gradients. :func:`~quotientnet.curvature.hessian_diagonal` is exact.

    Args:
        point: A point of an objective.
        samples: Number of directions, at least 2.
        relative_step: The standard deviation of a tensor's step over its root mean square.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        Values and standard errors, which do not know of the error of the step; ``cost`` counts
        gradients.

    Raises:
        TypeError: ``point`` is none, ``samples`` no integer or ``relative_step`` no number.
        ValueError: Fewer than 2 samples, a step that is not positive, or so large that gradients
            are not finite there.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[2.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(1).double())
        >>> found = finite_difference_diagonal(point, samples=1000)
        >>> abs(found.values.item() - 8.0) < 4 * found.errors.item(), found.cost
        (True, 2000)
    """
    caller = "finite_difference_diagonal"
    require_point(point, caller)
    require_count(samples, caller, "samples", least=2)
    require_number(relative_step, caller, "relative_step", strict=True)
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    step = _steps(point, relative_step)
    mean, squares = torch.zeros_like(point.w), torch.zeros_like(point.w)
    for seen in progress(range(1, samples + 1), "finite differences"):
        noise = torch.randn(
            point.w.shape,
            dtype=point.w.dtype,
            device=point.w.device,
            generator=generator,
        )
        ends = [
            point.objective.value_and_gradient(point.w + s * step * noise)[1]
            for s in (1, -1)
        ]
        if not all(torch.isfinite(end).all() for end in ends):
            raise ValueError(
                f"{caller}: the gradient is not finite beside the point at relative_step="
                f"{relative_step:g}; take a smaller one"
            )
        draw = (
            noise
            * (ends[0] - ends[1])
            / (2 * step).clamp(min=torch.finfo(step.dtype).tiny)
        )
        change = draw - mean
        mean = mean + change / seen
        squares = squares + change * (draw - mean)
    errors = (squares / (samples - 1) / samples).sqrt()
    return DiagonalEstimate(mean, errors, 2 * samples)


def _steps(point: Point, relative: float) -> Tensor:
    """The step of each coordinate: 0 where it is passive, that of size 1 for a tensor of zeros."""
    steps = torch.zeros_like(point.w)
    for entry in point.layout.entries:
        if not entry.passive and entry.numel:
            size = point.w[entry.slice].norm() / entry.numel**0.5
            steps[entry.slice] = relative * (size if size > 0 else 1.0)
    return steps
