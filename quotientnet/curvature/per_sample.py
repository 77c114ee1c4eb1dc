"""Derivatives of single samples, for parameters that no rule covers."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from quotientnet.curvature.forward import Batch, Leaves
from quotientnet.curvature.plan import Plan
from quotientnet.curvature.scales import widened

__all__ = ["squares"]

_WORKING_SET = 1 << 24  # entries of derivatives at a time


def squares(
    leaves: Leaves, plan: Plan, batch: Batch, rows: Tensor, wide: bool = False
) -> dict[str, Tensor]:
    """Squared derivatives of ``⟨seed, outputs⟩`` in each parameter, summed over samples and seeds.

    Args:
        leaves: The point.
        plan: Where samples are, and which parameters are asked for.
        batch: The samples.
        rows: Seeds, shape ``(columns, samples, outputs)``.
        wide: Whether squares are taken in float64.

    Returns:
        By name, in the shape of the parameter.
    """
    theta = {name: leaves.parameters[name].detach() for name in plan.generic}
    size = len(rows) * sum(p.numel() for p in theta.values())
    step = max(1, min(_WORKING_SET // size, 64))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*performance drop.*")
            return _vectorised(leaves, plan, batch, rows, theta, step, wide)
    except (RuntimeError, UserWarning):
        return _one_by_one(leaves, plan, batch, rows, theta, wide)


def _vectorised(leaves, plan, batch, rows, theta, step, wide):
    tensors, form = tree_flatten((batch.args, batch.kwargs))
    own = [isinstance(t, Tensor) and t.ndim > 0 and len(t) == batch.n for t in tensors]

    def one(samples, seeds):
        given = iter(samples)
        full = [next(given)[None] if o else t for o, t in zip(own, tensors)]
        args, kwargs = tree_unflatten(full, form)
        single = Batch(args, kwargs, None, 1)

        def outputs(parameters):
            found = leaves.call(single, {**_detached(leaves), **parameters})
            return tuple(plan.readout.tensors(found))

        values, pull = torch.func.vjp(outputs, theta)
        cotangents = plan.readout.unrows(seeds[:, None], list(values))
        (grads,) = torch.func.vmap(lambda *c: pull(c))(*cotangents)
        return {n: (g.double() if wide else g).square().sum(0) for n, g in grads.items()}

    samples = [t for o, t in zip(own, tensors) if o]
    total: dict[str, Tensor] = {}
    for start in range(0, batch.n, step):
        chosen = slice(start, start + step)
        found = torch.func.vmap(one)(
            [t[chosen] for t in samples], rows[:, chosen].movedim(1, 0)
        )
        total = {name: total.get(name, 0) + f.sum(0) for name, f in found.items()}
    return total


def _one_by_one(leaves, plan, batch, rows, theta, wide):
    wanted = [leaves.parameters[name] for name in theta]
    total: dict[str, Tensor] = {}
    for i in range(batch.n):
        with torch.enable_grad():
            outputs = plan.readout.tensors(leaves.call(batch.take(slice(i, i + 1))))
        for seeds in zip(*plan.readout.unrows(rows[:, i : i + 1], outputs)):
            grads = torch.autograd.grad(
                outputs, wanted, seeds, retain_graph=True, materialize_grads=True
            )
            for name, g in zip(theta, grads):
                total[name] = total.get(name, 0) + (widened(g) if wide else g).square()
    return total


def _detached(leaves: Leaves) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in leaves.parameters.items()}
