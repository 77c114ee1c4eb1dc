"""Which second derivatives a measure sums: those of the Hessian, of Gauss-Newton, or given."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from quotientnet.curvature.hessian import exact_diagonal, hessian_traces
from quotientnet.curvature.layers import LayerTraces, ggn_traces, labelled_diagonal
from quotientnet.curvature.scales import REMEDY, require_resolved
from quotientnet.estimate import Estimate

__all__ = ["diagonal_of", "traces_of", "parameters_of"]

_LIMIT = 20_000
"""Products with the Hessian that a measure spends without being asked."""


def traces_of(point, curvature, caller: str) -> dict[str, Estimate]:
    """The trace of each parameter tensor's block, by name.

    Args:
        point: The point.
        curvature: ``"hessian"``, ``"gauss-newton"``, a diagonal of shape ``(size,)``, or a
            :class:`~quotientnet.curvature.LayerTraces`.
        caller: Who asks.
    """
    if isinstance(curvature, LayerTraces):
        names = {entry.name for entry in parameters_of(point)}
        if set(curvature.traces) != names:
            raise ValueError(
                f"{caller}: curvature has traces of {', '.join(sorted(curvature.traces))}, the "
                f"point has {', '.join(sorted(names))}; take them at this point"
            )
        return dict(curvature.traces)
    if isinstance(curvature, str) and curvature == "hessian":
        found = point.known("hessian traces", lambda: hessian_traces(point))
        return _finite(found.traces, caller)
    if isinstance(curvature, str) and curvature == "gauss-newton":
        found = point.known("ggn traces", lambda: ggn_traces(point))
        return _finite(found.traces, caller)
    values, cost = diagonal_of(point, curvature, caller)
    return {
        entry.name: Estimate(float(values[entry.slice].sum()), 0.0, True, cost)
        for entry in parameters_of(point)
    }


def diagonal_of(point, curvature, caller: str) -> tuple[Tensor, int]:
    """A diagonal, shape ``(size,)``, not to be written to, and the passes and products spent.

    What a measure has found at a point, the next one takes from there.

    Raises:
        ValueError: Another word, or a tensor of another shape or with NaN.
        TypeError: Neither a word nor a tensor.
    """
    if isinstance(curvature, Tensor):
        if curvature.shape != point.w.shape or not torch.isfinite(curvature).all():
            raise ValueError(
                f"{caller}: curvature must be a finite diagonal of shape {tuple(point.w.shape)}, "
                f"got shape {tuple(curvature.shape)}; hessian_diagonal(point) makes one"
            )
        return curvature.detach().to(point.w), 0
    if isinstance(curvature, LayerTraces):
        raise ValueError(
            f"{caller}: needs the curvature of single entries, curvature has traces of tensors; "
            "pass 'hessian', 'gauss-newton' or a diagonal, shape (size,)"
        )
    if not isinstance(curvature, str):
        raise TypeError(
            f"{caller}: curvature must be 'hessian', 'gauss-newton' or a diagonal, got "
            f"{type(curvature).__name__}"
        )
    if curvature == "hessian":
        key = "hessian diagonal"
        found = point.known(key, lambda: exact_diagonal(point, _LIMIT, caller))
        require_resolved(point, found.values, caller)
        return found.values, found.cost
    if curvature == "gauss-newton":
        found = point.known("ggn diagonal", lambda: labelled_diagonal(point))
        values, _, cost = found
        require_resolved(point, values, caller)
        return values, cost
    raise ValueError(
        f"{caller}: curvature must be 'hessian', 'gauss-newton' or a diagonal, got {curvature!r}"
    )


def _finite(traces: dict[str, Estimate], caller: str) -> dict[str, Estimate]:
    """The traces.

    Raises:
        ValueError: One is NaN or infinite.
    """
    bad = [name for name, trace in traces.items() if not isfinite(trace.value)]
    if bad:
        raise ValueError(f"{caller}: the trace of {bad[0]!r} overflows; {REMEDY}")
    return dict(traces)


def parameters_of(point) -> list:
    """The layout's entries that are parameters."""
    return [entry for entry in point.layout.entries if not entry.passive]
