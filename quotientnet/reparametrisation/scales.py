"""Group elements from the scales that one wants: of whole tensors, or of single units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, inf, log

import torch
from torch import Tensor

from quotientnet.group import ScalingGroup, as_group
from quotientnet.layout import Entry, ParameterLayout
from quotientnet.symmetry import Symmetry

__all__ = ["layer_scales", "unit_scales", "coordinates_of"]

_TOLERANCE = 1e-9
"""How far the logarithm of a scale may be from the one asked for."""


def layer_scales(
    group: ScalingGroup | Symmetry, scales: Mapping[str, float] | Sequence[float]
) -> Tensor:
    r"""The element that multiplies whole tensors by given factors: α-scale transformations.

    For one hidden layer this is Definition 5 of [Dinh2017]_, :math:`T_\alpha`; for a deep network
    its extension in §4.2; with biases that of Appendix B, where a bias follows its layer with the
    product of the factors up to there. All of it is in the group: tensors that are not given follow
    from those that are, and what even these leave free moves least.

    Args:
        group: A group, or what :func:`~quotientnet.discover` returned.
        scales: A positive factor for each parameter named, or one for each tensor of two axes or
            more in the order of the layout.

    Returns:
        Coordinates ``t`` of the given group, shape ``(dimension,)``, float64, on the CPU, for
        ``group.act(w, t)`` or ``transform(model, group, t)``.

    Raises:
        ValueError: A name that is not in the layout, another number of factors, a factor that is
            not positive and finite, or factors that no element of the group has.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import layer_scales
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
        >>> group = qn.discover(model, torch.randn(5, 4).double()).group
        >>> t = layer_scales(group, {"0.weight": 5.0})
        >>> twin = qn.transform(model, group, t)
        >>> ratios = [a / b for a, b in zip(twin.parameters(), model.parameters())]
        >>> [round(ratio.max().item(), 3) for ratio in ratios]
        [5.0, 5.0, 0.2, 1.0]
    """
    group = as_group(group, "layer_scales")
    layout = group.layout
    factors = _by_name(layout, scales)
    target = torch.zeros(layout.size, dtype=torch.float64)
    given = torch.zeros(layout.size, dtype=torch.bool)
    for name, factor in factors.items():
        target[layout[name].slice] = _log(factor, name, "layer_scales")
        given[layout[name].slice] = True
    t = coordinates_of(group, target, given)
    _require_reached(group, t, target, given, factors)
    return t


def unit_scales(
    group: ScalingGroup | Symmetry, scales: Mapping[str | int, float]
) -> Tensor:
    """The element that scales single units: Eqs. (15)–(16) of [Tsuzuku2019]_.

    The paper divides a unit's row by α and multiplies its column by α: here that is the factor
    ``1/α``, because a generator multiplies what the unit's output is made of.

    Args:
        group: A group, or what :func:`~quotientnet.discover` returned.
        scales: A positive factor for each generator, by its name in ``group.names`` or its number.
            A generator with exponent 1 on a row multiplies the row by the factor.

    Returns:
        Coordinates ``t`` of the group, shape ``(dimension,)``, float64, on the CPU.

    Raises:
        ValueError: A generator that does not exist, or a factor that is not positive and finite.

    Example:
        >>> import quotientnet as qn
        >>> from quotientnet.reparametrisation import unit_scales
        >>> layout = qn.ParameterLayout({"W1": (2, 2), "W2": (2, 2)})
        >>> hidden = qn.Unit("hidden", 2, (qn.Scale("W1", 0), qn.Scale("W2", 1, -1)))
        >>> group = qn.ScalingGroup.from_units(layout, [hidden])
        >>> w = torch.arange(1.0, 9.0)
        >>> moved = group.act(w, unit_scales(group, {"unit 0 of hidden": 1 / 10, 1: 10}))
        >>> [round(x, 4) for x in moved.tolist()]
        [0.1, 0.2, 30.0, 40.0, 50.0, 0.6, 70.0, 0.8]
    """
    group = as_group(group, "unit_scales")
    if not isinstance(scales, Mapping):
        raise TypeError(
            "unit_scales: scales must be a dict of factors by a generator's name or number, got "
            f"{type(scales).__name__}"
        )
    numbers = {name: number for number, name in enumerate(group.names)}
    numbers |= {number: number for number in range(group.dimension)}
    t = group.identity()
    for key, factor in scales.items():
        if key not in numbers:
            raise ValueError(
                f"unit_scales: the group has no generator {key!r}; it has {group.dimension}, with "
                f"names such as {', '.join(map(repr, group.names[:2])) or 'none'}"
            )
        t[numbers[key]] = _log(factor, str(key), "unit_scales")
    return t


def coordinates_of(
    group: ScalingGroup, exponents: Tensor, given: Tensor | None = None
) -> Tensor:
    """Coordinates whose ``A t`` is nearest to the given exponents.

    Args:
        group: The group.
        exponents: Logarithms of scales, shape ``(size,)``, float64.
        given: Which of them count, boolean, shape ``(size,)``; all if omitted.
    """
    masked = exponents if given is None else torch.where(given, exponents, 0.0)
    return group.gram(given).solve(group.adjoint(masked))


def _require_reached(group, t: Tensor, target: Tensor, given: Tensor, factors) -> None:
    found = group.exponents(t)
    gap = torch.where(given, found - target, 0.0).abs()
    if gap.max() <= _TOLERANCE * (1 + target.abs().max()):
        return
    worst = int(gap.argmax())
    name = next(n for n in factors if _holds(group.layout[n], worst))
    raise ValueError(
        f"layer_scales: no element of the group scales {name!r} by {factors[name]:g} together "
        f"with the other factors given (the nearest: {exp(float(found[worst])):.4g}); in a chain "
        "the factors of all weights have product 1: leave one out, and it follows"
    )


def _holds(entry: Entry, coordinate: int) -> bool:
    return entry.slice.start <= coordinate < entry.slice.stop


def _by_name(layout: ParameterLayout, scales) -> dict[str, float]:
    if isinstance(scales, Mapping):
        missing = [name for name in scales if name not in layout]
        if missing:
            raise ValueError(
                f"layer_scales: {missing[0]!r} is not in the layout; it has "
                f"{', '.join(layout.names)}"
            )
        return {layout[name].name: factor for name, factor in scales.items()}
    weights = [e.name for e in layout.entries if len(e.shape) > 1 and not e.passive]
    if len(scales) != len(weights):
        raise ValueError(
            f"layer_scales: got {len(scales)} factors for the {len(weights)} tensors of two axes "
            f"or more, {', '.join(weights)}; pass a dict to name only some"
        )
    return dict(zip(weights, scales))


def _log(factor: float, name: str, caller: str) -> float:
    factor = float(factor)
    if not 0 < factor < inf:
        raise ValueError(
            f"{caller}: the factor of {name!r} is {factor}; factors are positive and finite "
            "(signs are not in the group)"
        )
    return log(factor)
