"""The canonical network of an orbit: incoming and outgoing weights of every unit in balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.errors import NotOnManifoldError
from quotientnet.exponential import Minimum, minimise_exponentials
from quotientnet.exponents import compact_group, sums_by_exponent
from quotientnet.group import ScalingGroup, as_group
from quotientnet.recession import Recession, recession
from quotientnet.symmetry.equalise import equalise
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import require_layout
from quotientnet.symmetry.transform import transform

__all__ = [
    "Balancing",
    "balancing",
    "canonical",
    "balance",
    "default_levels",
    "levels_of",
]

_TRIED = 16
"""Generators that are tried for a level where no balance exists without."""

_TOO_FAR = (
    "balancing: weights are so far apart in scale that their squares are no numbers; multiply the "
    "smallest or largest by a constant first"
)

_RESTARTS = 8
"""Times that weights beyond the range of their squares are looked at again."""

_SAFE = 1e150
"""Weights between this and its inverse have squares in float64."""


@dataclass(frozen=True)
class Balancing:
    """The group element that balances a point.

    Attributes:
        t: Its coordinates, float64, shape ``(dimension,)``; 0 for generators that are left out.
        levels: The level of each generator, shape ``(dimension,)``.
        balanced: Which generators are in balance, boolean, shape ``(dimension,)``; the others run
            away and were left out on request.
        excluded: Those, by name.
        residual: The largest difference between the two sides of a generator's balance, relative
            to their sum.
        error: An estimate of the largest error of a logarithm of a scale.
        iterations: Sweeps and Newton steps.
    """

    t: Tensor = field(repr=False)
    levels: Tensor = field(repr=False)
    balanced: Tensor = field(repr=False)
    excluded: tuple[str, ...]
    residual: float
    error: float
    iterations: int


def default_levels(group: ScalingGroup | Symmetry) -> Tensor:
    """1 for generators whose exponents on parameters are all positive, −1 for all negative, else 0.

    A filter before a normalisation gets norm 1, together with its bias, a hidden unit equal
    incoming and outgoing norms. Where generators are one-signed only in combination, as those of
    a normalised residual stream, one of them gets the level 1 or −1: that which scales the most
    entries of those that make a balance possible.

    Args:
        group: A scaling group, or what :func:`~quotientnet.discover` returned.

    Returns:
        The levels, float64, shape ``(dimension,)``.
    """
    group = as_group(group, "default_levels")
    levels, (small, ones) = _signs(group), _structure(group)
    lost = recession(small, ones, levels.numpy())
    while lost.moving.any():
        levels, fewer = _mended(small, ones, levels, lost)
        if fewer is lost:
            break
        lost = fewer
    return levels


def _structure(group: ScalingGroup) -> tuple[ScalingGroup, Tensor]:
    """The compact group, and terms that are 1 on parameters, 0 on running statistics."""
    small = compact_group(group)
    pieces = [
        torch.full((e.numel,), float(not group.layout[e.name].passive))
        for e in small.layout.entries
    ]
    return small, torch.cat(pieces).double()


def _signs(group: ScalingGroup) -> Tensor:
    """The sign of each generator that has only one, 0 for the others."""
    sums, none = sums_by_exponent(*_structure(group)), np.zeros(group.dimension)
    grows, shrinks = (
        sum((total for e, total in sums.items() if sign * e > 0), none) > 0
        for sign in (1, -1)
    )
    return torch.from_numpy((grows & ~shrinks) - 1.0 * (shrinks & ~grows))


def _mended(group: ScalingGroup, ones: Tensor, levels: Tensor, lost: Recession):
    """One more level, with which fewer generators run away, and those that still do."""
    reach = group.magnitudes().adjoint(ones).numpy()
    candidates = np.flatnonzero(lost.moving & (levels.numpy() == 0))
    for j in candidates[np.argsort(-reach[candidates], kind="stable")][:_TRIED]:
        for level in (1.0, -1.0):
            more = levels.clone()
            more[j] = level
            fewer = recession(group, ones, more.numpy())
            if fewer.moving.sum() < lost.moving.sum():
                return more, fewer
    return levels, lost


def balancing(
    w: Tensor,
    group: ScalingGroup | Symmetry,
    *,
    levels: Mapping[str, float] | Tensor | None = None,
    norm: int | str = 2,
    runaways: str = "raise",
    start: Tensor | None = None,
) -> Balancing:
    r"""The group element that takes a point to the canonical one of its orbit.

    With ``norm=2`` it minimises :math:`\tfrac{1}{2} \sum_i w_i^2 e^{2(At)_i} - c^\top t`, so that
    :math:`A^\top (w^2) = c`: for level 0, the weights into a unit and those out of it have equal
    norms. With ``norm="max"`` their largest entries are equal in magnitude, which is known as
    cross-layer equalisation; where residual cycles leave a choice, the one that plain averaging
    reaches from the balanced point of ``norm=2``.

    Args:
        w: A point, shape ``(n,)``. Entries may be zero.
        group: The scaling group, or what :func:`~quotientnet.discover` returned.
        levels: Levels by name of a generator (others by default), or all of them, shape
            ``(dimension,)``; by default :func:`default_levels`. For ``norm="max"`` a level is
            the difference of the squared largest entries.
        norm: ``2`` or ``"max"``.
        runaways: ``"raise"``, or ``"exclude"`` to leave generators without a balance as they are:
            the form is then canonical for the others' orbits only.
        start: Coordinates to start from, shape ``(dimension,)``, such as those of a point near by:
            they save time and change the result by rounding only.

    Raises:
        ValueError: Another shape or NaN in ``w``; unknown names, NaN in ``levels``; another
            ``norm`` or ``runaways``.
        NotOnManifoldError: Units that run away, by name: all weights on one side are zero, or a
            set of units has weights to or from the others on one side only.
        ValueError: No convergence: the weights' scales are too far apart for float64.

    Note:
        For ten dense layers of 2,048 units about 5 gradient units at batch size 512 with
        ``norm=2``; ``norm="max"`` takes tens of times as long. Running statistics do not count.
        Units whose weights are zero on both sides stay as they are.
    """
    group = as_group(group, "balancing")
    group.layout.check(w, "balancing")
    if w.ndim != 1:
        raise ValueError(f"balancing: needs one point, got shape {tuple(w.shape)}")
    bad = group.layout.count(~torch.isfinite(w))
    if bad:
        name, count = next(iter(bad.items()))
        raise ValueError(f"balancing: {name!r} has {count} NaN or infinite entries")
    if norm not in (2, "max") or runaways not in ("raise", "exclude"):
        raise ValueError(
            "balancing: norm must be 2 or 'max', and runaways 'raise' or 'exclude', got "
            f"{norm!r} and {runaways!r}"
        )
    if start is not None:
        _require_start(start, group)
    w, c = w.detach(), _signs(group) if levels is None else levels_of(group, levels)
    t, found = _minimise(w, group, c, start)
    if not found.attained and levels is None:
        c = default_levels(group)
        t, found = _minimise(w, group, c)
    if not found.attained and runaways == "raise":
        raise NotOnManifoldError(_runaway_message(found.runaways))
    t, found, excluded = _without_runaways(w, group, c, t, found)
    residual, iterations = found.residual, found.iterations
    if norm == "max":
        kept = group.without(excluded.numpy())
        own = equalise(group.act(w.double(), t), kept, c[~excluded])
        t[~excluded] += own.t
        residual, iterations = own.residual, iterations + own.iterations
    names = tuple(group.names[j] for j in torch.nonzero(excluded)[:, 0].tolist())
    return Balancing(t, c, ~excluded, names, residual, found.error, iterations)


def _without_runaways(w: Tensor, group: ScalingGroup, levels: Tensor, t, found):
    """Coordinates and minimum of the generators that have one, and which were left out."""
    excluded = torch.zeros(group.dimension, dtype=torch.bool)
    while not found.attained:
        excluded[torch.nonzero(~excluded)[:, 0][torch.isnan(found.t)]] = True
        kept = group.without(excluded.numpy())
        t[excluded] = 0.0
        t[~excluded], found = _minimise(w, kept, levels[~excluded])
    return t, found, excluded


def canonical(w: Tensor, group: ScalingGroup | Symmetry, **options) -> Tensor:
    r"""The canonical point of an orbit: :math:`t^*(w) \cdot w`, the same for all its points.

    Args:
        w: Points, shape ``(..., n)``. Entries may be zero.
        group: The scaling group, or what :func:`~quotientnet.discover` returned.
        options: ``levels``, ``norm`` and ``runaways`` of :func:`~quotientnet.symmetry.balancing`.

    Returns:
        Points of the same shape, dtype and device, detached from autograd; a class invariant, as
        accurate as the dtype.

    Raises:
        ValueError, NotOnManifoldError: As :func:`~quotientnet.symmetry.balancing`.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1)).double()
        >>> group = qn.discover(model, torch.randn(5, 2).double()).group
        >>> w = torch.tensor([3.0, 4.0, 0.0, 20.0, 1.0], dtype=torch.float64)
        >>> qn.canonical(w, group)
        tensor([ 6.,  8.,  0., 10.,  1.], dtype=torch.float64)
    """
    group = as_group(group, "canonical")
    group.layout.check(w, "canonical")
    rows = [
        _act(group, row.double(), balancing(row, group, **options).t.to(w.device))
        for row in w.detach().reshape(-1, w.shape[-1])
    ]
    return torch.stack(rows).reshape(w.shape).to(w.dtype) if rows else w.clone()


def balance(
    model: nn.Module,
    group: ScalingGroup | Symmetry,
    *,
    levels: Mapping[str, float] | Tensor | None = None,
    norm: int | str = 2,
    runaways: str = "raise",
    in_place: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Tensor | Sequence | Mapping | None = None,
    tolerance: float = 1e-6,
) -> nn.Module:
    """The canonical model of an orbit: other parameters, the same function.

    Ties are kept, and running statistics and the state of an optimizer move along.

    Args:
        model: Any module.
        group: A group on its layout, or what :func:`~quotientnet.discover` returned.
        levels: See :func:`~quotientnet.symmetry.balancing`.
        norm: ``2``, or ``"max"`` for cross-layer equalisation; see
            :func:`~quotientnet.symmetry.balancing`.
        runaways: ``"raise"`` or ``"exclude"``; see :func:`~quotientnet.symmetry.balancing`.
        in_place: Whether to change ``model`` itself; by default a copy is changed.
        optimizer: See :func:`~quotientnet.transform`.
        inputs: Example inputs; where given, the outputs on them must be the same before and after.
        tolerance: The largest relative change of these outputs.

    Returns:
        The balanced model.

    Raises:
        ValueError, NotOnManifoldError: As :func:`~quotientnet.symmetry.balancing` and
            :func:`~quotientnet.transform`; the model is then as it was.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
        >>> x = torch.randn(8, 3).double()
        >>> twin = qn.balance(model, qn.discover(model, x), inputs=x)
        >>> into = twin[0].weight.square().sum(1) + twin[0].bias.square()
        >>> bool(torch.allclose(into, twin[2].weight.square().sum(0)))
        True
    """
    group = as_group(group, "balance")
    require_layout(model, group.layout, "balance")
    w = group.layout.flatten(model)
    found = balancing(w, group, levels=levels, norm=norm, runaways=runaways)
    options = {"in_place": in_place, "optimizer": optimizer}
    return transform(
        model, group, found.t, inputs=inputs, tolerance=tolerance, **options
    )


def levels_of(group: ScalingGroup, levels) -> Tensor:
    """All levels, shape ``(dimension,)``, from those that a user names; see ``balancing``."""
    if isinstance(levels, Tensor):
        c = levels.detach().to("cpu", torch.float64)
    elif levels is None or isinstance(levels, Mapping):
        c = default_levels(group)
        for name, level in (levels or {}).items():
            if name not in group.names:
                like = (
                    f"; they are named like {group.names[0]!r}" if group.names else ""
                )
                raise ValueError(
                    f"balancing: levels names {name!r}, which is no generator of the "
                    f"{group.dimension}{like}"
                )
            c[group.names.index(name)] = float(level)
    else:
        raise TypeError(
            "balancing: levels must be a dict by generator name, or a tensor with one number a "
            f"generator, got {type(levels).__name__}"
        )
    if tuple(c.shape) != (group.dimension,) or not torch.isfinite(c).all():
        raise ValueError(
            f"balancing: levels must be {group.dimension} finite numbers, got shape "
            f"{tuple(c.shape)}{'' if torch.isfinite(c).all() else ' with NaN or infinity'}"
        )
    return c


def _minimise(
    w: Tensor, group: ScalingGroup, levels: Tensor, near: Tensor | None = None
) -> tuple[Tensor, Minimum]:
    """Coordinates from ``w``, and the minimum found."""
    start = _safe_start(w, group, levels)
    if start is None:
        found = _converged(w, group, levels, near)
        return found.t, found
    for _ in range(_RESTARTS):
        found = _converged(_within_range(w, start, group, levels), group, levels)
        start = start + found.t
        # What was lost beside its neighbours may have mattered: look again from there.
        if not found.attained or group.exponents(found.t).abs().max() < 1e-12:
            return start, found
    raise ValueError(_TOO_FAR)


def _converged(
    w: Tensor, group: ScalingGroup, levels: Tensor, start: Tensor | None = None
) -> Minimum:
    squares = partial(_half_squares, w)
    found = minimise_exponentials(group, squares, levels, factor=2.0, start=start)
    if not found.converged:
        raise ValueError(
            "balancing: Newton's method stopped at exponents good to "
            f"{found.error:.1e} only; the weights' scales are too far apart for float64"
        )
    return found


def _act(group: ScalingGroup, w: Tensor, t: Tensor) -> Tensor:
    """``t·w``, in two halves where scales alone would overflow."""
    if t.numel() and t.abs().max() > 300:
        w, t = group.act(w, t / 2), t / 2
    return group.act(w, t)


def _half_squares(w: Tensor, entry) -> Tensor:
    """The terms ``½ w²`` of an entry in float64; running statistics have none."""
    square = w[entry.slice].to(torch.float64).square()
    return torch.zeros_like(square) if entry.passive else square.mul_(0.5)


def _require_start(start: Tensor, group: ScalingGroup) -> None:
    """Refuse what are no coordinates of one element.

    Raises:
        TypeError: It is no tensor.
        ValueError: Another shape, or entries that are not finite.
    """
    if not isinstance(start, Tensor):
        raise TypeError(
            f"balancing: start must be a torch.Tensor, got {type(start).__name__}"
        )
    finite = not start.is_meta and bool(torch.isfinite(start).all())
    if start.shape != (group.dimension,) or not finite:
        raise ValueError(
            f"balancing: start must be finite, of shape ({group.dimension},), got shape "
            f"{tuple(start.shape)}; leave it out to start from 0"
        )


def _safe_start(w: Tensor, group: ScalingGroup, levels: Tensor) -> Tensor | None:
    """Coordinates of balanced largest entries, if squares of weights over- or underflow."""
    size = w[: group.layout.parameter_size].abs()
    if w.dtype == torch.float32 or not size.numel():
        return None
    low = torch.where(size > 0, size, 1.0).min()
    if low > 1 / _SAFE and size.max() < _SAFE:
        return None
    return equalise(w, group, levels, tolerance=1.0).t


def _within_range(w: Tensor, t: Tensor, group: ScalingGroup, levels: Tensor) -> Tensor:
    """The point ``t·w`` with entries whose squares float64 has, and as many that are not zero.

    Without levels, up to a common factor, which changes no balance.
    """
    n = group.layout.parameter_size
    moved = _act(group, w, t)
    if not levels.any():
        moved = moved / moved[:n].abs().max().clamp(min=torch.finfo(w.dtype).tiny)
    seen = group.magnitudes().adjoint((moved.abs() > 1 / _SAFE).double())
    idle = group.magnitudes().adjoint((w != 0).double()) == 0
    if ((seen == 0) & ~idle).any() or not torch.isfinite(moved[:n].square().sum()):
        raise ValueError(_TOO_FAR)
    return torch.where((w != 0) & (moved.abs() < 1 / _SAFE), 1 / _SAFE, moved)


def _runaway_message(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4]) + (
        ", ..." if len(names) > 4 else ""
    )
    return (
        f"balancing: {len(names)} generators have no balanced form and run away: {shown}. All "
        "their weights on one side are zero, or a set of them has weights to or from the others "
        "on one side only. Pass runaways='exclude' to leave them as they are, or other levels"
    )
