"""The distribution of eigenvalues, by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from quotientnet.curvature.draws import normal
from quotientnet.estimate import Estimate
from quotientnet.operator import Operator, require_operator
from quotientnet.progress import progress

__all__ = ["SpectralDensity", "spectral_density"]


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of the eigenvalues, each counted as often as it occurs, of total mass 1.

    Every probe gives a quadrature rule, exact for polynomials of degree below ``2 steps``; their
    mean is the estimate. Standard errors are those over probes. They do not cover the error of
    the rule, which is none for operators with at most ``steps`` distinct eigenvalues and small
    for functions that are smooth on the scale between nodes.

    With few probes use Student's *t* with ``samples − 1`` degrees of freedom for intervals.

    Attributes:
        nodes: Ritz values of each probe, ascending, in the operator's unit, shape
            ``(samples, steps)``, float64 on the host.
        weights: Their weights, shape ``(samples, steps)``, each row of sum 1; 0 where a probe
            needed fewer nodes.
        products: Products with the operator.

    Example:
        >>> import torch
        >>> from quotientnet import DenseOperator
        >>> operator = DenseOperator(torch.eye(5, dtype=torch.float64) * 2)
        >>> density = spectral_density(operator, samples=3)
        >>> below, error = density.cumulative(torch.tensor([1.9, 2.1]))
        >>> [round(x, 6) for x in below.tolist()], density.products
        ([0.0, 1.0], 3)
    """

    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    products: int

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """The mean of a function over the eigenvalues.

        Args:
            function: Maps values, shape ``(samples, steps)``, elementwise.

        Returns:
            The estimate; ``error`` one standard error over probes.

        Raises:
            ValueError: The function is NaN or infinite at a node.
        """
        values = function(self.nodes)
        fits = isinstance(values, Tensor) and values.shape == self.nodes.shape
        values = torch.where(self.weights > 0, values, 0.0) if fits else values
        if not fits or not torch.isfinite(values).all():
            raise ValueError(
                "expectation: function must be finite at every node and keep the shape"
            )
        mean, error = _over_probes((self.weights * values).sum(1))
        return Estimate(float(mean), float(error), True, self.products)

    def density(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """The density smoothed by a Gaussian.

        Args:
            grid: Where, in the operator's unit, shape ``(n,)``.
            width: Standard deviation of the Gaussian, in the operator's unit; positive.

        Returns:
            The density, of integral 1, and its standard error, each of shape ``(n,)``, per unit
            of the operator.

        Raises:
            ValueError: A width that is not positive.
        """
        if not width > 0:
            raise ValueError(f"density: width must be positive, got {width}")

        def bump(distance: Tensor) -> Tensor:
            return torch.exp(-((distance / width) ** 2) / 2) / (width * sqrt(2 * pi))

        return self._at(grid, bump)

    def cumulative(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The fraction of eigenvalues at or below each value.

        Args:
            grid: The values, in the operator's unit, shape ``(n,)``.

        Returns:
            The fractions and their standard errors, each of shape ``(n,)``. Between nodes a
            probe's own fraction is uncertain by the weights of the two nodes beside, which the
            standard error does not cover: the fraction below zero is not resolved where most
            eigenvalues crowd around zero.
        """
        return self._at(grid, lambda distance: (distance >= 0).double())

    def _at(self, grid: Tensor, kernel) -> tuple[Tensor, Tensor]:
        """Mean and standard error of ``Σ weight · kernel(grid − node)``."""
        grid = grid.to(self.nodes)
        found = [
            (w[:, None] * kernel(grid - x[:, None])).sum(0)
            for x, w in zip(self.nodes, self.weights)
        ]
        return _over_probes(torch.stack(found))


def spectral_density(
    operator: Operator,
    *,
    samples: int = 10,
    steps: int = 60,
    block: int = 1,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""Stochastic Lanczos quadrature ([Ghorbani2019]_; Section 3.2 of [Lin2016]_).

    .. math:: \frac{1}{n} \operatorname{tr} f(H) = \mathbb{E}\, q^\top f(H) q
              \approx \frac{1}{s} \sum_{p=1}^{s} \sum_i w_{pi} f(\theta _{pi})

    for ``q`` uniform on the unit sphere; nodes and weights come from ``steps`` Lanczos steps from
    each ``q``, orthogonalised in full. Null directions that ``operator.project`` removes are left
    out of the probes: the density is that on the complement.

    Args:
        operator: The symmetric operator.
        samples: Probes, at least 2.
        steps: Products a probe, at most; fewer where its Krylov space is invariant earlier.
        block: Probes multiplied at a time. The result does not depend on it, the memory does:
            ``block · steps`` vectors.
        generator: Source of randomness; a fresh one with seed 0 if omitted.

    Returns:
        The density, in the operator's unit.

    Raises:
        ValueError: Fewer than 2 samples, steps or block below 1, an empty operator or complement,
            or a product that is NaN or infinite.
    """
    if samples < 2 or steps < 1 or block < 1:
        raise ValueError(
            "spectral_density: samples must be at least 2, steps and block at least 1, got "
            f"{samples}, {steps} and {block}"
        )
    require_operator(operator, "spectral_density")
    generator = generator or torch.Generator(operator.device).manual_seed(0)
    steps, rules, products = min(steps, operator.size), [], 0
    for first in progress(range(0, samples, block), "spectral density"):
        probes = _probes(operator, min(block, samples - first), generator)
        found, spent = _quadrature(operator, probes, steps)
        rules, products = rules + found, products + spent
    nodes = torch.zeros(samples, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for p, (x, w) in enumerate(rules):
        nodes[p, : len(x)], weights[p, : len(x)] = torch.tensor(x), torch.tensor(w)
    return SpectralDensity(nodes, weights, products)


def _probes(operator: Operator, number: int, generator) -> Tensor:
    """Uniform on the unit sphere of the complement, as rows."""
    rows = [
        normal(operator.size, like=operator, generator=generator) for _ in range(number)
    ]
    rows = torch.stack(rows)
    projected = operator.project(rows.T).T
    norms, eps = projected.norm(dim=1, keepdim=True), torch.finfo(rows.dtype).eps
    if operator.size == 0 or not (norms > 100 * eps * operator.size**0.5).all():
        raise ValueError(
            "spectral_density: the operator has no direction outside its null directions"
        )
    return projected / norms


def _quadrature(operator: Operator, q: Tensor, steps: int):
    """Nodes and weights of each probe, rows of ``q``, advancing side by side."""
    chains, eps = [_Chain() for _ in q], torch.finfo(q.dtype).eps
    basis, products = q.new_empty(len(q), steps, operator.size), 0
    for step in range(steps):
        active = [p for p, chain in enumerate(chains) if not chain.closed]
        if not active:
            break
        basis[active, step] = q
        image = _images(operator, q)
        products += len(active)
        sizes = image.norm(dim=1).tolist()
        if not max(sizes) < float("inf"):
            raise ValueError(
                "spectral_density: a product is NaN or infinite; is the point valid?"
            )
        image = operator.project(image.T).T
        diagonal = (q * image).sum(1).tolist()
        q = torch.stack(
            [_reduced(row, basis[p, : step + 1]) for p, row in zip(active, image)]
        )
        norms = q.norm(dim=1)
        for p, *numbers in zip(active, diagonal, norms.tolist(), sizes):
            chains[p].extend(*numbers, eps)
        going = [i for i, p in enumerate(active) if not chains[p].closed]
        q = _refined(operator, q[going], basis[[active[i] for i in going], : step + 1])
    return [chain.rule() for chain in chains], products


def _images(operator: Operator, q: Tensor) -> Tensor:
    return (operator @ q[0])[None] if len(q) == 1 else (operator @ q.T).T


def _reduced(row: Tensor, basis: Tensor) -> Tensor:
    """The row orthogonal to the basis, by Gram–Schmidt twice."""
    for _ in range(2):
        row = row - (basis @ row) @ basis
    return row


def _refined(operator: Operator, q: Tensor, bases: Tensor) -> Tensor:
    """Unit rows, orthogonal once more: rounding has grown with division."""
    if not len(q):
        return q
    q = operator.project((q / q.norm(dim=1, keepdim=True)).T).T
    q = torch.stack([_reduced(row, basis) for row, basis in zip(q, bases)])
    return q / q.norm(dim=1, keepdim=True)


class _Chain:
    """The tridiagonal matrix of one probe."""

    def __init__(self):
        self.diagonal, self.beside, self.scale, self.closed = [], [], 0.0, False

    def extend(self, diagonal: float, norm: float, size: float, eps: float) -> None:
        """One step; the chain closes where nothing but rounding is left."""
        self.diagonal.append(diagonal)
        self.beside.append(norm)
        self.scale = max(self.scale, size)
        self.closed = norm <= 10 * eps * self.scale

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, and the squares of their vectors' first entries."""
        beside = np.array(self.beside[: len(self.diagonal) - 1])
        matrix = np.diag(self.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        nodes, vectors = np.linalg.eigh(matrix)
        weights = vectors[0] ** 2
        return nodes, weights / weights.sum()


def _over_probes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over the first axis."""
    return values.mean(0), values.std(0) / sqrt(len(values))
