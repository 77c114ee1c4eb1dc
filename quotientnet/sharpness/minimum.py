"""The least trace of curvature among equivalent networks (ibayashi2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from quotientnet.estimate import Estimate
from quotientnet.exponential import minimise_exponentials
from quotientnet.group import ScalingGroup, as_group
from quotientnet.losses import output_invariances
from quotientnet.orbit import require_invariant
from quotientnet.point import require_point
from quotientnet.sharpness.curvatures import diagonal_of, parameters_of, traces_of

__all__ = ["MinimumSharpness", "minimum_sharpness"]


@dataclass(frozen=True, kw_only=True)
class MinimumSharpness(Estimate):
    """Minimum sharpness with the network that attains it.

    Attributes:
        t: The group coordinates that lead to it, shape ``(dimension,)``; 0 for those that run
            away.
        w: The minimising network ``t·w``, shape ``(size,)``, of the point's dtype. Where
            generators run away the blocks that they scale are left as they are, and the trace
            there is larger than the infimum by theirs.
        runaways: The generators along which the trace falls for ever, by name: scales that go one
            way only, such as those of normalised filters. Their terms count 0.
    """

    t: Tensor = field(repr=False)
    w: Tensor = field(repr=False)
    runaways: tuple[str, ...] = ()


def minimum_sharpness(point, group, *, curvature="gauss-newton") -> MinimumSharpness:
    r"""The least trace of the curvature over all networks that a group makes of this one.

    .. math:: \min_t \sum_b e^{-2 (A t)_b} \operatorname{tr} H_{bb}

    Definition 1 of [Ibayashi2021]_, for any group of scalings, because
    :math:`H(t \cdot w) = D H(w) D` with :math:`D = \operatorname{diag}(e^{-At})`. For layer scales
    without biases it is :math:`D (\prod_d \operatorname{tr} H_d)^{1/D}` (Theorem 1); with
    biases, for convolutions and node by node the same convex problem has no closed form. A scale
    that only ever goes one way, as that of a filter before batch normalisation, sends its terms to
    0: those blocks are left out, and ``runaways`` names them.

    Args:
        point: A :class:`~quotientnet.Point`.
        group: The :class:`~quotientnet.ScalingGroup`, or what :func:`~quotientnet.discover` found.
        curvature: ``"gauss-newton"``, which is never negative for a convex loss, and is the
            Hessian's where :class:`~quotientnet.curvature.LayerTraces` says so; ``"hessian"``; a
            diagonal, shape ``(size,)``; or, if the group scales every tensor as a whole,
            a :class:`~quotientnet.curvature.LayerTraces` of this point, such as
            :func:`~quotientnet.curvature.ggn_traces_estimate`, the one to take with batch
            normalisation in train mode.

    Returns:
        The minimum, in units of the loss over squared parameters, the part of each tensor at the
        minimum in ``layers``, and the network that attains it. Invariant to the group, the same at
        all equivalent points. ``error`` is that of traces that are estimates.

    Raises:
        TypeError: ``point``, ``group`` or ``curvature`` is neither of these.
        ValueError: A loss that is not invariant under the group, with the measured violation;
            negative curvature, of which the minimum may be −∞; another word for ``curvature``.

    Note:
        The passes of :func:`~quotientnet.curvature.ggn_traces`, or of
        :func:`~quotientnet.curvature.ggn_diagonal` if the group scales parts of tensors, and two
        gradients to check the group.

    Example:
        >>> import torch, quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, False), torch.nn.Linear(1, 1, False))
        >>> model, x = model.double(), torch.ones(1, 1).double()
        >>> objective = qn.Objective(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> group = qn.discover(model, x).group
        >>> found = minimum_sharpness(objective.at(torch.tensor([1.0, 9.0]).double()), group)
        >>> round(found.value, 9), found.w.round(decimals=9).tolist()  # 2 √(2·81 · 2·1)
        (36.0, [3.0, 3.0])
    """
    caller = "minimum_sharpness"
    require_point(point, caller)
    group = as_group(group, caller)
    require_invariant(point, group, caller)
    terms = _terms(point, group, curvature, caller)
    found = minimise_exponentials(group, terms.piece, factor=-2.0)
    t = torch.nan_to_num(found.t, nan=0.0).to(point.w.device)
    moved = group.exponents(t).mul(-2).exp()
    for name, mask in found.vanishing.items():
        entry = group.layout[name]
        moved[entry.slice].view(entry.shape).masked_fill_(mask.to(moved.device), 0.0)
    layers = {
        entry.name: terms.layer(entry, moved[entry.slice])
        for entry in parameters_of(point)
    }
    error = sqrt(sum(part.error**2 for part in layers.values()))
    if not found.converged:
        error += found.residual * abs(found.value)
    invariant_to = ("the group given", *_shift(point.objective.loss))
    return MinimumSharpness(
        found.value, error, found.converged and all(p.converged for p in layers.values()),
        terms.cost, invariant_to, layers,
        t=t, w=group.act(point.w, t), runaways=found.runaways,
    )  # fmt: skip


@dataclass(frozen=True)
class _Terms:
    """Coefficients by entry: spread evenly over a tensor whose trace alone is known."""

    diagonal: Tensor | None
    traces: dict[str, Estimate]
    cost: int

    def piece(self, entry) -> Tensor:
        """The coefficients of a tensor, float64, of its shape."""
        if self.diagonal is not None:
            return self.diagonal[entry.slice].double().reshape(entry.shape)
        if entry.passive:
            return torch.zeros(entry.shape, dtype=torch.float64)
        share = self.traces[entry.name].value / max(entry.numel, 1)
        return torch.tensor(share, dtype=torch.float64).expand(entry.shape)

    def layer(self, entry, scales: Tensor) -> Estimate:
        """A tensor's part at the minimum."""
        value = float(self.piece(entry).reshape(-1).to(scales) @ scales)
        own = self.traces.get(entry.name)
        if own is None:
            return Estimate(value, 0.0, True, self.cost)
        error = own.error * float(scales[0]) if entry.numel else 0.0
        return Estimate(value, error, own.converged, own.cost)


def _terms(point, group: ScalingGroup, curvature, caller: str) -> _Terms:
    """The coefficients: of tensors where the group scales each as a whole, else of entries.

    Raises:
        ValueError: Negative ones.
    """
    whole = all(term.index.size == 1 for ts in group.incidence.values() for term in ts)
    if whole:
        traces = traces_of(point, curvature, caller)
        cost = max(trace.cost for trace in traces.values())
        low = min(traces, key=lambda name: traces[name].value)
        lowest, size = traces[low].value, max(t.value for t in traces.values())
        terms = _Terms(None, _rounded(traces, size, point.w.dtype), cost)
    else:
        diagonal, cost = diagonal_of(point, curvature, caller)
        place = int(diagonal.argmin())
        lowest, size = float(diagonal[place]), float(diagonal.max())
        low = next(e.name for e in point.layout.entries if place < e.slice.stop)
        terms = _Terms(diagonal.clamp(min=0), {}, cost)
    if lowest < -_rounding(point.w.dtype) * size:
        what = "trace" if whole else "entry of the diagonal"
        raise ValueError(
            f"{caller}: {low!r} has a negative {what}, {lowest:.3g}, whose scale would take the "
            "sum to −∞; use curvature='gauss-newton' with a convex loss, or leave negative parts "
            "out with curvature=hessian_diagonal(point).clamp(min=0)"
        )
    return terms


def _rounding(dtype: torch.dtype) -> float:
    return 1e3 * torch.finfo(dtype).eps


def _rounded(traces, size: float, dtype) -> dict[str, Estimate]:
    """Traces without what rounding left below 0."""
    return {
        name: Estimate(max(each.value, 0.0), each.error, each.converged, each.cost)
        for name, each in traces.items()
    }


def _shift(loss) -> tuple[str, ...]:
    return tuple(name for name in output_invariances(loss) if name == "output shift")
