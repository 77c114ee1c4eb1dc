"""Moving a model along its orbit, with its running statistics and its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quotientnet.group import ScalingGroup, as_group
from quotientnet.options import require_number, require_values
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import (
    Replica,
    first_line,
    relative_change,
    require_layout,
)
from quotientnet.wrappers import unwrapped

__all__ = ["transform", "OPTIMIZER_UNITS"]

_ADAM = {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}

#: The power of the parameters' unit that each state tensor carries, by optimizer and key. A
#: gradient has power −1, because ``g(t·w) = e^{−At} g(w)``, and what averages gradients too.
#: Tangent vectors of a bound point move with it, and lengths in the metric do not.
OPTIMIZER_UNITS = {
    "SGD": {"momentum_buffer": -1},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "Adamax": {"exp_avg": -1, "exp_inf": -1},
    "Adagrad": {"sum": -2},
    "Adadelta": {"square_avg": -2, "acc_delta": 2},
    "RMSprop": {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0},
    "Rprop": {"prev": -1, "step_size": 1},
    "ASGD": {"ax": 1},
    "RiemannianSGD": {"momentum_buffer": 1},
    "RiemannianAdam": {"exp_avg": 1, "exp_avg_sq": 0, "max_exp_avg_sq": 0},
}

_BOUND = "the bound point"

_UNITLESS = ("step", "eta", "mu", "mu_product")
"""Bookkeeping of torch's optimizers that has no unit."""


@torch.no_grad()
def transform(
    model: nn.Module,
    group: ScalingGroup | Symmetry,
    t: Tensor,
    *,
    in_place: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Tensor | Sequence | Mapping | None = None,
    tolerance: float = 1e-6,
) -> nn.Module:
    r"""The equivalent model :math:`t \cdot w`: other parameters, the same function.

    Running statistics move too. The state of an optimizer is moved as what it stores: a momentum of
    gradients by :math:`e^{-At}`, their squares by :math:`e^{-2At}`, so that it is what it would
    have become from the gradients of the equivalent points. (Weight decay that is added to
    gradients is no gradient of the loss: its part of a momentum is moved like the rest.) Riemannian
    optimizers of a bound point keep tangent vectors, which move with it. Gradients that wait in
    ``.grad`` are not moved.

    The ``eps`` of a normalisation makes its symmetry approximate, so that the function may change:
    pass ``inputs`` to have it checked.

    Args:
        model: Any module.
        group: A group on its layout, or what :func:`~quotientnet.discover` returned.
        t: Group coordinates, shape ``(dimension,)``.
        in_place: Whether to change ``model`` itself; by default a copy is changed.
        optimizer: An optimizer of the model, of a kind in ``OPTIMIZER_UNITS``; needs ``in_place``.
        inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments: where
            given, the outputs on them must be the same before and after.
        tolerance: The largest relative change of these outputs, in float64.

    Returns:
        The model that was changed; of one that is wrapped for several processes or compiled, the
        model inside.

    Raises:
        TypeError: ``model`` or ``group`` of another kind.
        ValueError: A group of another layout; ``t`` of another shape or not finite; scales that
            leave the range of the dtype; an optimizer that is unknown, or not in place; outputs
            that change. The model and the optimizer are then as they were.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1)).double()
        >>> x = torch.randn(5, 2).double()
        >>> group = qn.discover(model, x).group
        >>> twin = qn.transform(model, group, torch.tensor([3.0]), inputs=x)
        >>> round((twin[0].weight / model[0].weight)[0, 0].item(), 3)
        20.086
    """
    group = as_group(group, "transform")
    require_number(tolerance, "transform", "tolerance")
    require_layout(model, group.layout, "transform")
    model = unwrapped(model)
    scales, moved = _moved(model, group, t)
    states = _moved_states(optimizer, model, group, scales, in_place)
    if inputs is not None:
        _require_same_outputs(model, group, moved, inputs, tolerance)
    target = model if in_place else _copied(model)
    group.layout.assign(target, moved)
    for state, value in states:
        state.copy_(value)
    return target


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"transform: {type(model).__name__} cannot be copied ({first_line(error)}); pass "
            "in_place=True, or clear what it stores: activations kept as attributes, or the hooks "
            "of torch.nn.utils.prune (prune.remove) and weight_norm"
        ) from error


def _moved(model, group: ScalingGroup, t: Tensor) -> tuple[Tensor, Tensor]:
    """``A t`` in float64, and the point ``t·w`` in the model's dtype."""
    w = group.layout.flatten(model)
    group.layout.check(w, "transform", "the model")
    if not isinstance(t, Tensor) or tuple(t.shape) != (group.dimension,):
        got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(
            f"transform: t must be a tensor of shape ({group.dimension},), one coordinate a "
            f"generator; got {got}"
        )
    require_values(t, "transform", "t")
    scales = group.exponents(t.to(device=w.device, dtype=torch.float64))
    moved = (w.double() * scales.exp()).to(w.dtype)
    lost = (torch.isinf(moved) | (moved == 0)) & torch.isfinite(w) & (w != 0)
    if lost.any():
        name, count = next(iter(group.layout.count(lost).items()))
        raise ValueError(
            f"transform: {count} entries of {name!r} leave the range of {w.dtype}; use a smaller t "
            "or model.double()"
        )
    return scales, moved


def _moved_states(
    optimizer, model, group: ScalingGroup, scales: Tensor, in_place: bool
):
    """Pairs of a state tensor of the optimizer and its new value."""
    if optimizer is None:
        return []
    if not in_place:
        raise ValueError(
            "transform: an optimizer belongs to the model it was made for; pass in_place=True"
        )
    optimizer = getattr(optimizer, "base", optimizer)  # inside SAM, say
    named = _named(optimizer, model, group)
    views, pairs = group.layout.unflatten(scales) | {_BOUND: scales}, []
    for parameter, state in optimizer.state.items():
        name, kind = named.get(id(parameter)), type(optimizer).__name__
        if name != _BOUND:  # on plain parameters they are torch's
            kind = kind.removeprefix("Riemannian")
        units = OPTIMIZER_UNITS.get(kind)
        kept = {k: v for k, v in state.items() if k not in _UNITLESS and _is_state(v)}
        unknown = [key for key in kept if units is None or key not in units]
        if unknown and name is not None:
            raise ValueError(
                f"transform: how the state {', '.join(map(repr, unknown))} of {kind} changes with "
                f"the scale of its parameter is not known; set symmetry.OPTIMIZER_UNITS[{kind!r}] "
                "to a dict of powers, −1 for what is made of gradients, or make a new optimizer"
            )
        for key, value in kept.items():
            if name is not None:
                moved = (value * (units[key] * views[name]).exp()).to(value)
                lost = (torch.isinf(moved) | (moved == 0)) & (value != 0)
                if (lost & torch.isfinite(value)).any():
                    raise ValueError(
                        f"transform: the state {key!r} of {name!r} leaves the range of "
                        f"{value.dtype}; use a smaller t, or make a new optimizer"
                    )
                pairs.append((value, moved))
    return pairs


def _is_state(value) -> bool:
    """Whether a value is a floating tensor, or holds some."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return any(x.is_floating_point() for x in tensors)


def _named(optimizer, model: nn.Module, group: ScalingGroup) -> dict[int, str]:
    """The names of what the optimizer moves, by ``id``: the model's parameters on the group's
    layout, or a point that they are views of."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"transform: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    own = dict(model.named_parameters())
    start = own[group.layout.entries[0].name].data_ptr()
    held = [p for g in optimizer.param_groups for p in g["params"]]
    bound = [
        p for p in held if p.numel() == group.layout.size and p.data_ptr() == start
    ]
    bound = [p for p in bound if all(p is not q for q in own.values())]
    if not bound and {id(p) for p in own.values()}.isdisjoint(map(id, held)):
        raise ValueError(
            "transform: the optimizer holds none of the model's parameters; was it made for "
            "another model, or for one that this is a copy of?"
        )
    names = {id(p): name for name, p in own.items() if name in group.layout}
    return names | {id(p): _BOUND for p in bound}


def _require_same_outputs(
    model, group: ScalingGroup, moved: Tensor, inputs, tolerance: float
):
    args, kwargs = call_arguments(inputs, "transform")
    replica = Replica(model, group.layout, "transform")
    changes = {}
    for exact in (False, True):
        before, after = (
            replica.run(w, args, kwargs, exact=exact)[0] for w in (replica.w, moved)
        )
        changes[exact] = max(relative_change(a, b) for a, b in zip(before, after))
        if changes[exact] <= tolerance and not exact:
            return
    if changes[True] <= tolerance:
        why = "a normalisation's eps makes its symmetry approximate: raise tolerance or lower eps"
    else:
        why = "the group is not the model's own: see verify_sound"
    raise ValueError(
        f"transform: the outputs change by {changes[False]:.1e} relative, more than {tolerance:g}; "
        f"{why}"
    )
