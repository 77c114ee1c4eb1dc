"""Relative flatness of one layer, a baseline of today (Petzka et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quotientnet.curvature.scales import finite
from quotientnet.estimate import Estimate
from quotientnet.losses import output_invariances
from quotientnet.point import require_point
from quotientnet.progress import progress
from quotientnet.sharpness.curvatures import parameters_of

__all__ = ["relative_flatness"]

_BLOCK = 32
"""Products at a time."""


def relative_flatness(
    point, layer: str | None = None, *, limit: int = 20_000
) -> Estimate:
    r"""The traces of a layer's blocks of the Hessian against its rows' inner products.

    .. math:: \kappa_{\mathrm{Tr}}(W) = \sum_{s, s'} \langle w_s, w_{s'} \rangle
              \operatorname{tr} H_{s s'}, \qquad
              H_{s s'} = \frac{\partial^2 f}{\partial w_s\, \partial w_{s'}}

    Definition 3 of [Petzka2021]_, with :math:`w_s` the row of ``W`` that makes output ``s``; in a
    convolution the flattened filter, by output channel in a transposed one, too. The larger, the
    sharper, despite the name. Invariant to a scale of the layer and to scales of its rows, so to
    layer scales; not to node-wise scales of the layer's inputs, which are its columns.

    Args:
        point: A :class:`~quotientnet.Point`.
        layer: The name of the weight; by default the last parameter of two axes that is no table of
            embeddings.
        limit: Products with the Hessian at most.

    Returns:
        The number in units of the loss, exact up to rounding; may be negative.

    Raises:
        TypeError: ``point`` is none.
        ValueError: No such matrix, or more products than ``limit``.

    Note:
        ``rank W`` times the length of a row products with the Hessian.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(2).double())
        >>> round(qn.sharpness.relative_flatness(point).value, 9)  # 2 · (18 + 32)
        100.0
    """
    require_point(point, "relative_flatness")
    entry = _matrix(point, layer)
    place = _by_output(point, entry)
    weight = point.w[place]
    rows, columns = weight.shape
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    kept = s > s.max() * rows * torch.finfo(s.dtype).eps if s.numel() else s > 0
    root = (u * s)[:, kept]  # W Wᵀ = root rootᵀ
    count = root.shape[1] * columns
    if count > limit:
        raise ValueError(
            f"relative_flatness: {entry.name!r} needs {count:,} products with the Hessian, more "
            f"than limit={limit:,}; raise the limit or choose a smaller layer"
        )
    total = 0.0
    for start in progress(range(0, count, _BLOCK), "relative flatness"):
        part = torch.arange(start, min(start + _BLOCK, count), device=root.device)
        directions = point.w.new_zeros(len(part), rows, columns)
        chosen = root.T[part // columns]
        directions[torch.arange(len(part)), :, part % columns] = chosen
        whole = point.w.new_zeros(point.w.shape[0], len(part))
        whole[place.flatten()] = directions.flatten(1).T
        total += float((whole * (point.hessian @ whole)).double().sum())
    invariant_to = ("layer scales", *output_invariances(point.objective.loss))
    return Estimate(finite(total, "relative_flatness"), 0.0, True, count, invariant_to)


def _matrix(point, layer: str | None):
    """The weight's entry."""
    matrices = {e.name: e for e in parameters_of(point) if len(e.shape) > 1}
    if layer is None:
        inputs = _inputs_first(point)
        dense = [
            e for n, e in matrices.items() if len(e.shape) == 2 and n not in inputs
        ]
        if dense:
            return dense[-1]
    named = isinstance(layer, str) and layer in point.layout
    found = point.layout[layer].name if named else None
    if found not in matrices:
        raise ValueError(
            f"relative_flatness: layer={layer!r} is no matrix; choose one of "
            f"{', '.join(map(repr, matrices)) or 'none: the model has only vectors'}"
        )
    return matrices[found]


def _inputs_first(point) -> dict[str, int]:
    """The groups of weights whose first axis is that of inputs: transposed convolutions', and
    tables of embeddings that nothing else uses."""
    found, others = {}, set()
    for name, module in point.objective.model.named_modules():
        weight = f"{name}.weight" if name else "weight"
        if weight not in point.layout:
            continue
        own = point.layout[weight].name
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            found[own] = 1
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            found[own] = module.groups
        else:
            others.add(own)
    return {name: groups for name, groups in found.items() if name not in others}


def _by_output(point, entry) -> Tensor:
    """The places of a weight's entries, shape ``(outputs, length)``.

    Raises:
        ValueError: A transposed convolution of several groups.
    """
    places = torch.arange(entry.start, entry.start + entry.numel, device=point.w.device)
    groups = _inputs_first(point).get(entry.name)
    if groups is None:
        return places.reshape(entry.shape[0], -1)
    if groups > 1:
        raise ValueError(
            f"relative_flatness: {entry.name!r} is a transposed convolution of {groups} groups, "
            "whose outputs have no rows; choose another layer"
        )
    return places.reshape(entry.shape).transpose(0, 1).reshape(entry.shape[1], -1)
