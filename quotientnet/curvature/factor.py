"""The second derivative of a loss in the outputs, factored sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quotientnet.curvature.samples import Readout
from quotientnet.losses import normaliser

__all__ = ["LossFactor", "draw_signs", "loss_factor", "has_closed_form"]

_FUNCTIONS = {
    F.cross_entropy: nn.CrossEntropyLoss(), F.mse_loss: nn.MSELoss(),
    F.binary_cross_entropy: nn.BCELoss(),
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}  # fmt: skip


@dataclass(frozen=True)
class LossFactor:
    """``∇²_z(loss · normaliser) = Σ ± S Sᵀ`` at the outputs ``z`` of some samples.

    The outputs of a sample are ``T`` positions of ``C`` entries that do not interact in the loss.

    Attributes:
        parts: A sign and the columns ``S``, shape ``(samples, T, C, R)``, for each part; the
            second one only if the loss is not convex in the outputs.
        trailing: The positions that follow the entries in the layout of the outputs.
    """

    parts: tuple[tuple[float, Tensor], ...]
    trailing: int

    @property
    def rank(self) -> int:
        """Backward passes that each sample needs."""
        return sum(s.shape[1] * s.shape[3] for _, s in self.parts)

    def select(self, chosen: slice) -> LossFactor:
        """The factor of some of the samples."""
        return replace(self, parts=tuple((sign, s[chosen]) for sign, s in self.parts))

    def blocks(self, width: int) -> Iterator[tuple[float, Tensor]]:
        """A sign and at most ``width`` columns at a time, shape ``(columns, samples, outputs)``."""
        for sign, s in self.parts:
            count = s.shape[1] * s.shape[3]
            for start in range(0, count, width):
                yield sign, self._columns(s, start, min(start + width, count))

    def _columns(self, s: Tensor, start: int, stop: int) -> Tensor:
        n, positions, entries, rank = s.shape
        if positions == 1:
            return self._arranged(s[..., start:stop].permute(3, 0, 1, 2))
        columns = s.new_zeros(stop - start, n, positions, entries)
        for i, q in enumerate(range(start, stop)):
            columns[i, :, q // rank] = s[:, q // rank, :, q % rank]
        return self._arranged(columns)

    @property
    def forms(self) -> list[tuple[int, ...]]:
        """The shapes of the random signs of a draw, in order."""
        return [(*s.shape[:2], s.shape[3], 1) for _, s in self.parts]

    def draw(self, generator: torch.Generator) -> list[tuple[float, Tensor]]:
        """A sign and ``S u`` with random signs ``u``, shape ``(samples, outputs)``."""
        drawn = []
        for (sign, s), shape in zip(self.parts, self.forms):
            u = draw_signs(shape, generator).to(s)
            drawn.append((sign, self._arranged((s @ u).squeeze(-1))))
        return drawn

    def _arranged(self, seeds: Tensor) -> Tensor:
        """From ``(..., positions, entries)`` to the order of the outputs."""
        grouped = seeds.unflatten(-2, (-1, self.trailing))
        return grouped.transpose(-1, -2).flatten(-3)


def draw_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random signs on the generator's device."""
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return 2.0 * bits - 1


def loss_factor(loss, outputs, targets, readout: Readout, n: int) -> LossFactor:
    """The factor of a loss at a batch's outputs: in closed form for cross-entropy, the squared
    error and both binary cross-entropies of torch, else by double backward and one
    eigendecomposition a sample.

    Args:
        loss: ``loss(outputs, targets)``, a scalar whose samples do not interact.
        outputs: What the model returned.
        targets: The batch's targets.
        readout: Where the samples are in ``outputs``.
        n: The number of samples.

    Raises:
        ValueError: The loss is linear in the outputs, couples samples, or has a second derivative
            that is not finite.
    """
    known = _known(loss)
    if has_closed_form(loss, outputs, targets, readout):
        tensor = outputs.detach()
        if type(known) is nn.CrossEntropyLoss:
            factor = _softmax(known, tensor, targets, readout, n)
        else:
            second = readout.rows([_by_element(known, tensor, targets)], n)[..., None]
            factor = LossFactor(_signed(second, torch.ones_like(second)[..., None]), 1)
    else:
        factor = _generic(loss, outputs, targets, readout, n)
    if not all(torch.isfinite(s).all() for _, s in factor.parts):
        raise ValueError(
            "ggn: the second derivative of the loss in the outputs is not finite"
        )
    return factor


def has_closed_form(loss, outputs, targets, readout: Readout) -> bool:
    """Whether no double backward is needed; the loss is then a sum over any split of samples."""
    known = _known(loss)
    if not isinstance(outputs, Tensor) or readout.axes[0].axis != 0:
        return False
    if type(known) is nn.CrossEntropyLoss:
        return outputs.ndim > 1
    if type(known) not in (nn.MSELoss, nn.BCELoss, nn.BCEWithLogitsLoss):
        return False
    weights = [getattr(known, "weight", None), getattr(known, "pos_weight", None)]
    per_sample = any(
        w is not None and w.ndim == outputs.ndim and len(w) > 1 for w in weights
    )
    return targets.shape == outputs.shape and not per_sample


def _known(loss):
    return next((module for f, module in _FUNCTIONS.items() if loss is f), loss)


def _signed(eigenvalues: Tensor, vectors: Tensor):
    """Parts with columns ``√|λ| v``, from λ of shape ``(n, T, R)`` and v ``(n, T, C, R)``."""
    parts = [(1.0, vectors * eigenvalues.clamp(min=0).sqrt()[..., None, :])]
    if (eigenvalues < 0).any():
        parts.append((-1.0, vectors * (-eigenvalues).clamp(min=0).sqrt()[..., None, :]))
    return tuple(parts)


def _softmax(loss, outputs: Tensor, targets, readout: Readout, n: int) -> LossFactor:
    """``c (diag p − p pᵀ)`` with ``K − 1`` columns: ``diag(√p) Q``, where ``Q`` is a Householder
    basis of the complement of ``√p`` that leaves out the direction of the largest entry.
    """
    classes = outputs.shape[1]
    coefficient = _position_weights(loss, outputs, targets)
    trailing = outputs[0, 0].numel()
    axis = readout.axes[0]
    logits = axis.front(outputs, n).reshape(n, -1, classes, trailing)
    coefficient = axis.front(coefficient, n).reshape(n, -1)
    root = (0.5 * logits.transpose(2, 3).reshape(n, -1, classes).log_softmax(-1)).exp()
    columns = root[..., None] * _complement(root)
    scales = coefficient[..., None].expand(*coefficient.shape, classes - 1)
    return LossFactor(_signed(scales, columns), trailing)


def _position_weights(loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """By how much ``diag p − p pᵀ`` counts at each position: the total weight of its targets."""
    weight = outputs.new_ones(outputs.shape[1])
    if loss.weight is not None:
        weight = loss.weight.to(outputs)
    smooth = loss.label_smoothing
    if targets.is_floating_point():
        own = targets.movedim(1, -1) @ weight
        return (1 - smooth) * own + smooth * weight.mean()
    counted = targets != loss.ignore_index
    own = weight[targets.masked_fill(~counted, 0)]
    return ((1 - smooth) * own + smooth * weight.mean()) * counted


def _complement(unit: Tensor) -> Tensor:
    """Orthonormal columns orthogonal to nonnegative unit vectors: ``(..., K) → (..., K, K−1)``."""
    count = unit.shape[-1]
    pivot = unit.argmax(-1, keepdim=True)
    largest = unit.gather(-1, pivot)
    normal = unit.scatter_add(-1, pivot, torch.ones_like(largest))
    others = torch.arange(count - 1, device=unit.device)
    others = others + (others >= pivot)
    rest = unit.gather(-1, others) / (1 + largest)
    basis = -normal[..., None] * rest[..., None, :]
    return basis.scatter_add(
        -2, others[..., None, :], torch.ones_like(rest)[..., None, :]
    )


def _by_element(loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Second derivatives of a sum of losses of single entries."""
    if type(loss) is nn.MSELoss:
        return torch.full_like(outputs, 2.0)
    if type(loss) is nn.BCELoss:
        second = targets / outputs**2 + (1 - targets) / (1 - outputs) ** 2
    else:
        p = outputs.sigmoid()
        positive = 1.0 if loss.pos_weight is None else loss.pos_weight.to(outputs)
        second = (1 + (positive - 1) * targets) * p * (1 - p)
    return second if loss.weight is None else second * loss.weight.to(outputs)


def _generic(loss, outputs, targets, readout: Readout, n: int) -> LossFactor:
    """Parts from the eigenvectors of each sample's second derivative."""
    hessian = _second_derivative(loss, outputs, targets, readout, n)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    small = 8 * hessian.shape[-1] * torch.finfo(hessian.dtype).eps
    eigenvalues = eigenvalues * (
        eigenvalues.abs() > small * eigenvalues.abs().amax(-1, keepdim=True)
    )
    parts = _signed(eigenvalues[:, None], vectors[:, None])
    kept = [(sign, s[..., s.square().sum((0, 1, 2)) > 0]) for sign, s in parts]
    return LossFactor(tuple((sign, s) for sign, s in kept if s.shape[-1]), 1)


def _second_derivative(loss, outputs, targets, readout: Readout, n: int) -> Tensor:
    """The Hessian of ``loss · normaliser`` in each sample's outputs, shape ``(n, D, D)``."""
    with torch.enable_grad():
        tensors = [t.detach().requires_grad_() for t in readout.tensors(outputs)]
        rebuilt = readout.replace(outputs, tensors)
        value, weight = loss(rebuilt, targets), normaliser(loss, rebuilt, targets)
        if weight is not None:
            value = (
                value * weight
                if float(weight)
                else 0.0 * sum(t.square().sum() for t in tensors)
            )
        grads = torch.autograd.grad(
            value, tensors, create_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = readout.rows(grads, n)

    def product(v: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(v)
        found = torch.autograd.grad(
            gradient, tensors, v, retain_graph=True, allow_unused=True
        )
        found = [
            torch.zeros_like(t) if f is None else f for f, t in zip(found, tensors)
        ]
        return readout.rows(found, n)

    _require_separate(product, gradient)
    basis = torch.eye(gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    return torch.stack([product(e.expand_as(gradient)) for e in basis], dim=1)


def _require_separate(product, gradient: Tensor) -> None:
    """Refuse a loss in which samples interact: flipping some must flip exactly their products."""
    generator = torch.Generator(gradient.device).manual_seed(0)
    v = torch.randn(
        gradient.shape,
        generator=generator,
        dtype=gradient.dtype,
        device=gradient.device,
    )
    signs = torch.ones_like(v[:, :1])
    signs[::2] = -1
    plain, flipped = product(v), signs * product(signs * v)
    bound = 1e4 * torch.finfo(v.dtype).eps * plain.abs().max()
    if (plain - flipped).abs().max() > bound:
        raise ValueError(
            "ggn: the loss couples the samples of a batch, so it has no factor a sample"
        )
