"""The Gauss-Newton traces of all layers from one backward pass with random signs."""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor

from quotientnet.curvature.factor import LossFactor, draw_signs, loss_factor
from quotientnet.curvature.forward import (
    Batch,
    Leaves,
    loss_places,
    parameters_in_loss,
)
from quotientnet.curvature.graph import ParameterGraph, agreed
from quotientnet.curvature.layers import LayerTraces
from quotientnet.curvature.samples import Readout, SampleAxis
from quotientnet.estimate import Estimate
from quotientnet.losses import normaliser, refuse_linear
from quotientnet.options import require_count
from quotientnet.point import Point, require_point
from quotientnet.progress import progress

__all__ = ["ggn_traces_estimate"]


def ggn_traces_estimate(
    point: Point, *, draws: int = 2, generator: torch.Generator | None = None
) -> LayerTraces:
    r"""The traces of all tensors' blocks of the Gauss-Newton matrix, by random signs.

    With :math:`S_z` a factor of the loss's second derivative at sample ``z`` and independent random
    signs :math:`u_z`, the gradient :math:`g` of :math:`\sum_z \langle S_z u_z, f_z \rangle` has
    :math:`\mathbb{E} \|g_l\|^2 = \operatorname{tr} G_{ll}` for every tensor ``l`` at once, also
    where batch normalisation in train mode couples samples. A loss that is not convex in the
    outputs needs a second backward pass, whose squares are subtracted.

    Args:
        point: A point of an objective. The loss must be a sum over the rows of the outputs.
        draws: Independent repetitions, at least 1.
        generator: Source of the signs; a fresh one with seed 0 if omitted.

    Returns:
        For each tensor the mean over draws and its standard error, infinite for one draw; all
        per sample if the loss is a mean. They are not invariant to symmetries.

    Raises:
        ValueError: Fewer than 1 draw, or a loss that :func:`ggn_traces` refuses.

    Note:
        One forward pass, and one backward pass a draw; each of several processes makes another
        forward pass, by which it has the signs that its batches have in one process. The spread is
        that of the signs only: the variance of a draw is at most twice the squared Frobenius norm
        of the block.

    Example:
        >>> import torch, quotientnet as qn
        >>> from quotientnet.curvature import ggn_traces
        >>> model = torch.nn.Linear(2, 3).double()
        >>> data = torch.ones(4, 2).double(), torch.tensor([0, 1, 2, 0])
        >>> objective = qn.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> point = objective.at(torch.zeros(9).double())
        >>> estimate = ggn_traces_estimate(point, draws=400).traces["weight"]
        >>> exact = ggn_traces(point).traces["weight"].value
        >>> abs(estimate.value - exact) < 4 * estimate.error
        True
    """
    require_point(point, "ggn_traces_estimate")
    require_count(draws, "ggn_traces_estimate", "draws")
    generator = generator or torch.Generator(point.w.device).manual_seed(0)
    leaves, processes = Leaves(point), point.objective._processes

    def within(function):
        """Where the loss sees the point's parameters, too."""
        with torch.enable_grad(), point.objective._preserved(point.w):
            return point.objective._within(point.w, function)

    parts = [[]]
    if processes.several:
        parts = processes.gather(
            "layers' traces", lambda: within(lambda: _forms(leaves)), point=point.w
        )
    _skip(parts[: processes.rank], draws, generator)
    found = processes.sum(
        "layers' traces", lambda: within(lambda: _added(leaves, draws, generator))
    )
    _skip(parts[processes.rank + 1 :], draws, generator)
    kinds = dict.fromkeys(leaves.parameters, "Hessian")
    for each, _ in found.facts:
        kinds = agreed(kinds, each)
    passes = sum(each for _, each in found.facts)
    if not passes:
        refuse_linear()
    return _result(found.mean, list(kinds), kinds, passes)


def _forms(leaves: Leaves) -> list[list[tuple]]:
    """The shapes of the signs that a draw takes, batch by batch."""
    with torch.no_grad():
        return [_factored(leaves, batch)[3].forms for batch in leaves.batches()]


def _skip(others: list, draws: int, generator: torch.Generator) -> None:
    """Draw what other ranks draw, so that all have the signs that one process has."""
    for forms in (forms for each in others for forms in each):
        for shape in forms * draws:
            draw_signs(shape, generator)


def _added(leaves: Leaves, draws: int, generator: torch.Generator):
    """The squares of each draw, shape ``(draws, tensors)``, summed over this process's batches;
    the batches' weights; the kinds of the tensors and the passes."""
    names = list(leaves.parameters)
    kinds, weights, passes = dict.fromkeys(names, "Hessian"), [], 0
    norms = torch.zeros(
        draws, len(names), dtype=torch.float64, device=leaves.point.w.device
    )
    for batch in progress(leaves.batches(), "layer traces"):
        outputs, tensors, readout, factor, weight = _factored(leaves, batch)
        found = ParameterGraph(tensors, leaves.parameters).kinds()
        for name in parameters_in_loss(leaves.point, outputs, batch.targets):
            found[name] = "Gauss-Newton"
        kinds = agreed(kinds, found)
        weights.append(weight)
        for draw in range(draws):
            norms[draw] += _squares(leaves, tensors, readout, factor, generator)
        passes += draws * len(factor.parts)
    return norms, weights, (kinds, passes)


def _factored(leaves: Leaves, batch: Batch):
    """Outputs with their graph, and the factor of the loss there, row by row."""
    loss, outputs = leaves.point.objective.loss, leaves.call(batch)
    places = loss_places(leaves.point, outputs, batch.targets)
    readout = Readout(places, (SampleAxis(0),) * len(places))
    tensors = readout.tensors(outputs)
    weight = normaliser(loss, outputs, batch.targets)
    factor = loss_factor(loss, outputs, batch.targets, readout, len(tensors[0]))
    return outputs, tensors, readout, factor, weight


def _squares(leaves, tensors, readout, factor: LossFactor, generator) -> Tensor:
    """One draw of every tensor's trace."""
    wanted, total = list(leaves.parameters.values()), 0.0
    for sign, rows in factor.draw(generator):
        seeds = [seed[0] for seed in readout.unrows(rows[None], tensors)]
        grads = torch.autograd.grad(
            tensors, wanted, seeds, retain_graph=True, materialize_grads=True
        )
        norms = torch.stack([torch.linalg.vector_norm(g) for g in grads])
        total = total + sign * norms.double().square()
    return total


def _result(draws: Tensor, names, kinds, passes: int) -> LayerTraces:
    """Means and standard errors over draws, shape ``(draws, tensors)``, and of their sum."""

    def estimate(values: Tensor) -> Estimate:
        error = float(values.std()) / sqrt(len(values)) if len(values) > 1 else inf
        return Estimate(float(values.mean()), error, len(values) > 1, passes)

    traces = {name: estimate(draws[:, i]) for i, name in enumerate(names)}
    ways = {name: "random signs" for name in names}
    return LayerTraces(traces, estimate(draws.sum(1)), kinds, ways)
