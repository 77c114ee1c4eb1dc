"""Traces and diagonals of the Hessian itself, layer by layer, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quotientnet.curvature.layers import LayerTraces, ggn_traces, labelled_diagonal
from quotientnet.curvature.scales import require_finite_diagonal, require_resolved
from quotientnet.estimate import Estimate
from quotientnet.options import require_count
from quotientnet.point import Point, require_point
from quotientnet.progress import progress

__all__ = ["hessian_diagonal", "hessian_traces"]

_BLOCK = 1 << 22  # entries of unit vectors at a time


def hessian_diagonal(point: Point, *, limit: int = 20_000) -> Tensor:
    r"""The exact diagonal :math:`\partial^2 f / \partial w_i^2` of the Hessian.

    The entries of a tensor in which the outputs are piecewise linear are those of the
    Gauss-Newton matrix (:func:`ggn_diagonal`), which needs no product. All others, and all of a
    model in which samples interact, come one by one from products with unit vectors.

    Args:
        point: A point of an objective; any differentiable model and loss.
        limit: Products at most.

    Returns:
        Shape ``(size,)``, zero on passive coordinates, in units of the loss over squared
        parameters; may be negative. Not invariant: under a group of scalings it is multiplied
        entry by entry by :math:`e^{-2At}`.

    Raises:
        TypeError: ``point`` is none.
        ValueError: More products than ``limit``.

    Note:
        The passes of :func:`ggn_diagonal`, and a product for each entry without a closed form.

    Example:
        >>> import torch, quotientnet as qn
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> data = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        >>> objective = qn.Objective(model, lambda z, y: (z**4).mean(), data)
        >>> round(hessian_diagonal(objective.at(torch.tensor([2.0]).double())).item(), 9)
        48.0
    """
    values = exact_diagonal(point, limit, "hessian_diagonal").values
    require_finite_diagonal(point, values, "hessian_diagonal")
    return values


def hessian_traces(point: Point, *, limit: int = 20_000) -> LayerTraces:
    """The exact trace of every tensor's diagonal block of the Hessian.

    As :func:`hessian_diagonal`, summed; ``ways`` says ``"products"`` where there was no closed
    form, and ``kinds`` says ``"Hessian"`` throughout.

    Args:
        point: As in :func:`hessian_diagonal`.
        limit: As in :func:`hessian_diagonal`.

    Returns:
        The traces, exact up to rounding; a trace may be negative.

    Raises:
        TypeError: ``point`` is none.
        ValueError: More products than ``limit``.

    Example:
        >>> import torch, quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()).double()
        >>> data = torch.ones(4, 2).double(), torch.ones(4, 3).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), data)
        >>> found = hessian_traces(objective.at(torch.zeros(9).double()))
        >>> round(found.traces["0.weight"].value, 9), found.ways["0.weight"]
        (4.0, 'products')
    """
    require_point(point, "hessian_traces")
    closed = _closed_traces(point)
    if closed is not None and set(closed.kinds.values()) == {"Hessian"}:
        return closed
    found = exact_diagonal(point, limit, "hessian_traces")
    require_resolved(point, found.values, "hessian_traces")
    sums = {name: float(found.of(point, name).sum()) for name in found.products}
    traces = {
        name: Estimate(value, 0.0, True, found.cost) for name, value in sums.items()
    }
    total = Estimate(sum(sums.values()), 0.0, True, found.cost)
    ways = {
        name: "products" if by_products else closed.ways[name]
        for name, by_products in found.products.items()
    }
    return LayerTraces(traces, total, dict.fromkeys(traces, "Hessian"), ways)


@dataclass(frozen=True)
class Diagonal:
    """An exact diagonal and how it was found.

    Attributes:
        values: Shape ``(size,)``.
        products: By the name of a tensor, whether it took products.
        cost: Backward passes and products.
    """

    values: Tensor
    products: dict[str, bool]
    cost: int

    def of(self, point: Point, name: str) -> Tensor:
        """The entries of one tensor."""
        return self.values[point.layout[name].slice]


def exact_diagonal(point: Point, limit: int, caller: str) -> Diagonal:
    """The diagonal, with what was spent on it.

    Raises:
        ValueError: More products than ``limit``.
    """
    require_point(point, caller)
    require_count(limit, caller, "limit", least=0)
    parameters = [entry for entry in point.layout.entries if not entry.passive]
    try:
        values, kinds, cost = labelled_diagonal(point)
    except ValueError:  # samples interact, say: there is a Hessian all the same
        values, kinds, cost = torch.zeros_like(point.w), {}, 0
    products = {entry.name: kinds.get(entry.name) != "Hessian" for entry in parameters}
    wanted = [entry for entry in parameters if products[entry.name]]
    count = sum(entry.numel for entry in wanted)
    if count > limit:
        raise ValueError(
            f"{caller}: {len(wanted)} tensors, such as {wanted[0].name!r}, have no closed form and "
            f"need {count:,} products with the Hessian, more than limit={limit:,}; use "
            f"hessian_diagonal(point, limit=...), {point.hessian.seconds():.1g} s a product, the "
            "Gauss-Newton matrix (ggn_diagonal), or hutchinson_diagonal(point.hessian)"
        )
    for entry in wanted:
        values[entry.slice] = _by_products(point, entry)
    return Diagonal(values, products, cost + count)


def _by_products(point: Point, entry) -> Tensor:
    """``e_iᵀ H e_i`` for the entries of a tensor, some at a time."""
    found, size = [], point.w.shape[0]
    step = max(1, min(64, _BLOCK // size))
    for start in progress(range(0, entry.numel, step), f"diagonal of {entry.name}"):
        columns = torch.arange(start, min(start + step, entry.numel)) + entry.start
        columns = columns.to(point.w.device)
        units = point.w.new_zeros(size, len(columns))
        units[columns, torch.arange(len(columns))] = 1.0
        images = point.hessian @ units
        found.append(images[columns, torch.arange(len(columns))])
    return torch.cat(found)


def _closed_traces(point: Point) -> LayerTraces | None:
    try:
        return ggn_traces(point)
    except ValueError:
        return None
