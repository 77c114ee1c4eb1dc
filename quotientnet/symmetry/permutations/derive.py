"""Deriving the classes of exchangeable channels from a module's graph, and trying them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.options import require_count, require_number
from quotientnet.symmetry.discover import call_arguments, layout_of
from quotientnet.symmetry.exactly import Degenerate
from quotientnet.symmetry.export import export
from quotientnet.symmetry.permutations.axes import Axis, factors_of, parts_of
from quotientnet.symmetry.permutations.classes import (
    Move,
    PermutationClass,
    PermutationClasses,
)
from quotientnet.symmetry.permutations.registry import Axes
from quotientnet.symmetry.permutations.walk import AxisWalk
from quotientnet.symmetry.refusals import errors_of
from quotientnet.symmetry.replica import Replica, drawn_again, relative_change

__all__ = ["permutation_classes"]

_CALLER = "permutation_classes"


def permutation_classes(
    model: nn.Module,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    layout: ParameterLayout | None = None,
    samples: int = 2,
    tolerance: float = 1e-9,
) -> PermutationClasses:
    """The channels of a module that can be exchanged without changing its function.

    Hidden units, channels of convolutions, heads, channels within heads, a residual stream: each
    class can be permuted at will if all that writes and reads it is permuted alike. The graph
    of the module tells which axes of parameters go together; an axis that a reshape splits or
    a concatenation joins is taken apart. Activation functions may be any, so there are classes
    where nothing can be scaled. Every class is tried before it is reported: random
    permutations must leave the outputs unchanged, at the model's parameters and at random ones.

    Nothing of the module's changes. Merging of networks aligns them by such permutations
    ([Ainsworth2023]_); see :func:`~quotientnet.symmetry.match_channels`.

    Args:
        model: Any module that ``torch.export`` can export.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        layout: The parameters that may move; by default all that require a gradient.
        samples: Random permutations that each class is tried with, at each of two points.
        tolerance: The largest relative change of an output, in float64.

    Returns:
        The classes; ``print`` them for a table.

    Raises:
        TypeError: ``model`` is not a module, ``layout`` no layout, ``samples`` no integer,
            ``tolerance`` no number.
        ValueError: The module cannot be exported; the layout is another model's; ``samples`` is
            below 1, ``tolerance`` negative.

    Note:
        An export, and ``2 · samples`` forwards in float64; more where a class is refused.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2)).double()
        >>> x = torch.randn(5, 4).double()
        >>> classes = qn.permutation_classes(model, x)
        >>> print(classes)
        channels  for each of  what moves together
               3               rows of 0.weight and bias, columns of 2.weight
        >>> w = classes.layout.flatten(model)
        >>> classes[0].apply(w, [2, 0, 1])[12:15].equal(model[0].bias[[2, 0, 1]])
        True
    """
    require_count(samples, _CALLER, "samples")
    require_number(tolerance, _CALLER, "tolerance")
    layout = layout_of(model, layout, _CALLER)
    args, kwargs = call_arguments(example_inputs, _CALLER)
    with errors_of(_CALLER):
        walk = AxisWalk(export(model, args, kwargs), layout)
    candidates = list(_candidates(walk, layout))
    trial = _Trial(model, layout, args, kwargs, samples, tolerance)
    refused = trial.refused(candidates)
    kept = [c for c in candidates if c not in refused]
    return PermutationClasses(layout, kept, walk.unknown, refused)


# -- from axes to classes ---


def _candidates(walk: AxisWalk, layout: ParameterLayout) -> Iterator[PermutationClass]:
    beside = _beside(walk.tensors)
    order: dict[Axis, None] = {}
    tables = {
        name: [_coordinates(a) for a in axes] for name, axes in walk.parameters.items()
    }
    for entry in layout.entries:
        for table in tables.get(entry.name, ()):
            order.update(dict.fromkeys(table))
    for leaf in order:
        if leaf.fixed or leaf.size < 2:
            continue
        each = [c for c in beside.get(leaf, ()) if _tells(tables, leaf, c)]
        moves = [
            move
            for entry in layout.entries
            if entry.name in tables
            for move in _moves(
                entry.name, walk.parameters[entry.name], tables[entry.name], leaf, each
            )
        ]
        yield PermutationClass(
            leaf.size, tuple(c.size for c in each), tuple(moves), layout
        )


def _beside(tensors: Sequence[Axes]) -> dict[Axis, dict[Axis, None]]:
    """For each axis without structure, those that are beside it wherever it occurs."""
    beside: dict[Axis, dict[Axis, None]] = {}
    for axes in tensors:
        tops = [dict.fromkeys(_top(axis)) for axis in axes]
        for d, axis in enumerate(axes):
            others = {c: None for o, top in enumerate(tops) if o != d for c in top}
            for leaf, near in _occurrences(axis, others):
                known = beside.get(leaf, near)
                beside[leaf] = {c: None for c in known if c in near and c is not leaf}
    return beside


def _top(axis: Axis) -> Iterator[Axis]:
    """The axes without structure that tell places along a whole axis apart."""
    axis = axis.found
    if axis.factors is not None:
        for factor in axis.factors:
            yield from _top(factor)
    elif axis.parts is None and axis.size > 1:
        yield axis


def _occurrences(axis: Axis, beside: dict) -> Iterator[tuple[Axis, dict]]:
    axis = axis.found
    if axis.factors is not None:
        for number, factor in enumerate(axis.factors):
            others = [
                c for n, f in enumerate(axis.factors) if n != number for c in _top(f)
            ]
            yield from _occurrences(factor, beside | dict.fromkeys(others))
    elif axis.parts is not None:
        for part in axis.parts:
            yield from _occurrences(part, beside)
    else:
        yield axis, beside


def _coordinates(axis: Axis) -> dict[Axis, list[tuple[np.ndarray, np.ndarray]]]:
    """Where the axes without structure are along an axis.

    Returns:
        For each occurrence: the place within it of every place along the axis, −1 where it is
        not, and how far apart neighbours are.
    """
    axis, found = axis.found, {}
    places = np.arange(axis.size)
    if axis.factors is not None:
        inner = axis.size
        for factor in axis.factors:
            inner //= factor.size
            at = places // inner % factor.size
            for leaf, own in _coordinates(factor).items():
                found.setdefault(leaf, []).extend(
                    (c[at], s[at] * inner) for c, s in own
                )
    elif axis.parts is not None:
        start = 0
        for part in axis.parts:
            for leaf, own in _coordinates(part).items():
                for c, s in own:
                    whole, steps = np.full(axis.size, -1), np.zeros(
                        axis.size, dtype=np.int64
                    )
                    whole[start : start + part.size] = c
                    steps[start : start + part.size] = s
                    found.setdefault(leaf, []).append((whole, steps))
            start += part.size
    else:
        found[axis] = [(places, np.ones(axis.size, dtype=np.int64))]
    return found


def _tells(tables, leaf: Axis, context: Axis) -> bool:
    """Whether each place of an axis has one place of another, in every parameter."""
    return all(
        _context(table, d, channels, context) is not None
        for table in tables.values()
        for d, own in enumerate(table)
        for channels, _ in own.get(leaf, ())
    )


def _context(table, axis: int, channels: np.ndarray, context: Axis):
    """The axis of a parameter along which a context lies, and its number at each place."""
    inside = [
        c for c, _ in table[axis].get(context, ()) if (c[channels >= 0] >= 0).all()
    ]
    if inside:
        return (axis, inside[0]) if len(inside) == 1 else None
    outside = [
        (d, c)
        for d, own in enumerate(table)
        if d != axis
        for c, _ in own.get(context, ())
        if (c >= 0).all()
    ]
    return outside[0] if len(outside) == 1 else None


def _moves(
    name: str, axes: Axes, table, leaf: Axis, each: Sequence[Axis]
) -> Iterator[Move]:
    for axis, own in enumerate(table):
        texts = _layouts(axes[axis], leaf)
        for (channels, strides), text in zip(own.get(leaf, ()), texts, strict=True):
            contexts = tuple(_context(table, axis, channels, c) for c in each)
            yield Move(name, axis, channels, strides, contexts, text, len(axes))


def _layouts(axis: Axis, leaf: Axis) -> list[str]:
    """Each occurrence of an axis in another, in words."""
    axis = axis.found
    if axis is leaf:
        return [f"[{axis.size}]"]
    if axis.factors is not None:
        factors = factors_of(axis)
        sizes = [str(f.size) for f in factors]
        return [
            "·".join([*sizes[:n], text, *sizes[n + 1 :]])
            for n, factor in enumerate(factors)
            for text in _layouts(factor, leaf)
        ]
    found, start = [], 0
    for part in parts_of(axis) if axis.parts is not None else ():
        place = f"{start}:{start + part.size}"
        found += [f"({place} as {text})" for text in _layouts(part, leaf)]
        start += part.size
    return found


# -- trying them ---


class _Trial:
    """Random permutations on a copy of a model, at its own point and at a random one."""

    def __init__(self, model, layout, args, kwargs, samples: int, tolerance: float):
        self.replica = Replica(model, layout, _CALLER)
        for module in self.replica.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()  # which channels it drops is no part of the function
        self.generator = torch.Generator().manual_seed(0)
        self.samples, self.tolerance = samples, tolerance
        drawn = torch.utils._pytree.tree_map_only(
            Tensor, lambda x: drawn_again(x, self.generator), (args, kwargs)
        )
        points = self.replica.w, self.replica.random_point(self.generator)
        self.starts = [
            (w, *inputs, self._run(w, *inputs))
            for w, inputs in zip(points, ((args, kwargs), drawn))
        ]

    def _run(self, w: Tensor, args, kwargs):
        """Outputs in float64 throughout; with the normalisations' ``eps`` where it is needed."""
        try:
            return self.replica.run(w, args, kwargs)
        except Degenerate:
            return self.replica.run(w, args, kwargs, exact=False)

    def violation(self, classes: Sequence[PermutationClass]) -> float:
        """The largest relative change of an output or of running statistics."""
        worst, count = 0.0, self.replica.layout.parameter_size
        for w, args, kwargs, (outputs, statistics) in self.starts:
            for _ in range(self.samples):
                chosen = [c.random(self.generator) for c in classes]
                moved = _applied(classes, w, chosen)
                found, after = self._run(moved, args, kwargs)
                expected = _applied(classes, torch.cat([w[:count], statistics]), chosen)
                pairs = [*zip(outputs, found), (expected[count:], after)]
                changes = [relative_change(a, b) for a, b in pairs]
                worst = max([worst, *changes])
        return worst

    def refused(self, classes: Sequence[PermutationClass]) -> list[PermutationClass]:
        """Those that change the outputs: found by halves, as most or all do not."""
        if not classes or self.violation(classes) <= self.tolerance:
            return []
        if len(classes) == 1:
            return list(classes)
        half = len(classes) // 2
        return self.refused(classes[:half]) + self.refused(classes[half:])


def _applied(
    classes: Sequence[PermutationClass], w: Tensor, chosen: Sequence[Tensor]
) -> Tensor:
    for own, permutation in zip(classes, chosen):
        w = own.apply(w, permutation)
    return w
