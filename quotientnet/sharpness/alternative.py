"""Normalised sharpness without the second-order approximation (tsuzuku2019, appendix D)."""

from __future__ import annotations

from math import log

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.estimate import Estimate
from quotientnet.options import require_number
from quotientnet.point import require_finite, require_point
from quotientnet.progress import progress
from quotientnet.sharpness.normalised import normalised_sharpness
from quotientnet.sharpness.variances import Variances

__all__ = ["alternative_normalised_sharpness"]

_FAR = 12.0
"""How far a logarithm of a variance may move from the start: a factor of 160,000."""


def alternative_normalised_sharpness(
    point, *, curvature="hessian", lambda_: float = 0.5, samples: int = 16,
    max_iterations: int = 100, generator: torch.Generator | None = None,
) -> Estimate:  # fmt: skip
    r"""What noise adds to the loss plus the weight term, over a variance for each row and column.

    .. math:: \min_{\sigma, \sigma'} \mathbb{E}_\epsilon f(w + s \odot \epsilon) - f(w)
              + \sum_i \frac{w_i^2}{2 \lambda s_i^2}, \qquad s_{ij} = \sigma_i \sigma'_j, \quad
              \epsilon \sim N(0, I)

    Eq. (62) of [Tsuzuku2019]_. Not convex, and no multiple of itself at another λ. The same noise,
    drawn once in pairs of opposite signs, serves the whole search, which is by L-BFGS from the
    solution of (17) with the factor ½ that belongs to it: a local minimum of an average over
    samples, which is biased downwards as every such minimum is.

    Invariant as :func:`normalised_sharpness` is, to the accuracy of the search: the noise scales
    with the rows and columns. With rectifiers the function has kinks, between which rounding may
    decide: searches from equivalent networks end a thousandth apart.

    Args:
        point: A :class:`~quotientnet.Point`.
        curvature: For the start, as in :func:`normalised_sharpness`.
        lambda_: λ.
        samples: Pairs of noise vectors, at least 2.
        max_iterations: Of L-BFGS.
        generator: Source of the noise; a fresh one with seed 0 if omitted.

    Returns:
        The value in units of the loss. ``error`` is one standard error of the noise term at the
        variances found; ``converged`` says whether the search ended by itself; ``cost`` counts
        gradients.

    Raises:
        TypeError: ``point`` is none.
        ValueError: Fewer than 2 samples, λ that is not positive, or a loss that is not finite at a
            neighbour.

    Note:
        ``2 · samples`` gradients an iteration.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(2).double())
        >>> found = qn.sharpness.alternative_normalised_sharpness(point, samples=30)
        >>> abs(found.value - 14) < 4 * found.error  # a quadratic: 2 (3 + 4)
        True
    """
    caller = "alternative_normalised_sharpness"
    require_point(point, caller)
    if samples < 2 or max_iterations < 1:
        raise ValueError(
            f"{caller}: needs at least 2 samples and an iteration, got {samples} and "
            f"{max_iterations}"
        )
    require_number(lambda_, caller, "lambda_", strict=True)
    start = normalised_sharpness(point, curvature=curvature, lambda_=lambda_)
    search = _Search(point, start.variances, lambda_, samples, generator)
    x = search.start
    if len(x):
        found = minimize(
            search.value_and_gradient, x, jac=True, method="L-BFGS-B",
            bounds=np.stack([x - _FAR, x + _FAR], 1),
            options={"maxiter": max_iterations, "ftol": 1e-13, "gtol": 1e-9},
        )  # fmt: skip
        x, converged = found.x, bool(found.success)
    else:
        converged = True
    search.value_and_gradient(x)
    losses = torch.tensor(search.losses, dtype=torch.float64)
    error = float(losses.std() / samples**0.5)
    return Estimate(
        search.value, error, converged, start.cost + search.gradients,
        start.invariant_to,
    )  # fmt: skip


class _Search:
    """The objective as a function of the logarithms of all variances, in a row."""

    def __init__(self, point, variances, lambda_: float, samples: int, generator):
        self.point, self.lambda_, self.samples = point, lambda_, samples
        generator = generator or torch.Generator(point.w.device).manual_seed(0)
        self._seed = generator.get_state()
        self._generator = generator
        self.gradients, self.losses, self.value = 0, [], 0.0
        self._base = float(point.value)
        self._entries = [point.layout[name] for name in variances]
        self._shapes = [
            (len(v.rows), len(v.columns), e)
            for v, e in zip(variances.values(), self._entries)
        ]
        pieces = [np.empty(0)]
        for v, e in zip(variances.values(), self._entries):
            squares = point.w[e.slice].square().reshape(*e.shape[:2], -1).sum(2)
            pieces += _start(v, squares, len(v.columns) // e.shape[1])
        self.start = np.concatenate(pieces)
        self.start += (
            log(2) / 4
        )  # (17) counts the noise twice: each variance of a product √√2

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """For :func:`scipy.optimize.minimize`."""
        logs = torch.from_numpy(np.array(x)).requires_grad_()
        with torch.enable_grad():
            scales = self._scales(logs)
        s = scales.detach().to(self.point.w)
        noise_term, slope = self._noise(s)
        w = torch.cat([self.point.w[e.slice] for e in self._entries]).double()
        packed = torch.cat([s[e.slice] for e in self._entries]).double()
        weight_terms = (w / packed).square() / (2 * self.lambda_)
        self.value = noise_term - self._base + float(weight_terms.sum())
        whole = slope.double()
        whole = torch.cat([whole[e.slice] for e in self._entries])
        whole = whole - 2 * weight_terms / packed
        entries = torch.cat([scales[e.slice] for e in self._entries])
        (gradient,) = torch.autograd.grad(entries, logs, whole.cpu())
        return self.value, gradient.numpy()

    def _scales(self, logs: Tensor) -> Tensor:
        """The standard deviation of each coordinate, 0 where there is no noise; float64."""
        pieces, place = {}, 0
        for rows, columns, entry in self._shapes:
            x, y = (
                logs[place : place + rows],
                logs[place + rows : place + rows + columns],
            )
            place += rows + columns
            groups = columns // entry.shape[1]
            both = (x.reshape(groups, -1, 1) + y.reshape(groups, 1, -1)).reshape(
                rows, -1
            )
            each = both.reshape(*entry.shape[:2], *[1] * (len(entry.shape) - 2))
            pieces[entry.name] = (each / 2).exp().expand(entry.shape).reshape(-1)
        return torch.cat([
            pieces.get(e.name, logs.new_zeros(e.numel)) for e in self.point.layout.entries
        ])  # fmt: skip

    def _noise(self, s: Tensor) -> tuple[float, Tensor]:
        """The mean loss under noise of these standard deviations, and its slope in them."""
        point, slope, self.losses = self.point, torch.zeros_like(s), []
        self._generator.set_state(self._seed)
        for _ in progress(range(self.samples), "noise"):
            noise = normal(*s.shape, like=s, generator=self._generator)
            pair = 0.0
            for sign in (1.0, -1.0):
                value, gradient = point.objective.value_and_gradient(
                    point.w + sign * s * noise
                )
                pair += float(require_finite(value)) / 2
                slope += gradient * noise * (sign / (2 * self.samples))
            self.losses.append(pair)
        self.gradients += 2 * self.samples
        return sum(self.losses) / self.samples, slope


def _start(variances: Variances, squares: Tensor, groups: int) -> list[np.ndarray]:
    """Logarithms of the variances of rows and columns. Those that run away begin where the noise
    has the size of the weights, which is the same for equivalent networks, and those without
    weight far below the others."""
    x = variances.rows.double().log().cpu().reshape(groups, -1, 1)
    y = variances.columns.double().log().cpu().reshape(groups, 1, -1)
    squares = squares.double().cpu().reshape(groups, x.shape[1], y.shape[2])
    found = []
    for own, other, axis in ((x, y, 2), (y, x, 1)):
        usual = torch.isfinite(other)
        sizes = torch.where(usual, squares * (-other).exp(), 0.0).sum(
            axis, keepdim=True
        )
        sizes = (sizes / usual.sum(axis, keepdim=True)).log()
        filled = torch.where(torch.isfinite(own), own, sizes).flatten()
        known = filled[torch.isfinite(filled)]
        least = known.min() - _FAR if len(known) else 0.0
        found.append(torch.where(torch.isfinite(filled), filled, least).numpy())
    return found
