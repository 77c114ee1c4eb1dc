"""Finding the scaling group of a module from its outputs and their derivatives alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy import sparse
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.options import require_count
from quotientnet.symmetry.assembly import assembled, follow_rows
from quotientnet.symmetry.candidates import candidate_scalings
from quotientnet.symmetry.discover import call_arguments, layout_of
from quotientnet.symmetry.finding import NumericalSymmetry
from quotientnet.symmetry.jumps import InFull
from quotientnet.symmetry.links import named_group
from quotientnet.symmetry.replica import Replica
from quotientnet.symmetry.rows import RandomRows
from quotientnet.symmetry.search import Search
from quotientnet.symmetry.sound import verify_sound

__all__ = ["discover_numerically"]

_CALLER = "discover_numerically"

_TOLERANCE = 1e-9
"""Relative changes of outputs up to this are rounding."""


def discover_numerically(
    model: nn.Module,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    layout: ParameterLayout | None = None,
    entries: bool | None = None,
    seed: int = 0,
    max_rows: int | None = None,
) -> NumericalSymmetry:
    r"""Find the scalings of a module's parameters that leave its outputs unchanged, by trying.

    For modules that :func:`~quotientnet.discover` cannot export: data-dependent branches and loops,
    custom autograd functions, anything with derivatives. A scaling with constant exponents ``a``
    is a symmetry iff ``∂f(w) · (a ⊙ w) = 0`` at every ``w``. Random combinations of the outputs'
    derivatives at random points and on random inputs are stacked; their null space has a basis of
    integers, which is made sparse, tried at new points, and applied in full. Nothing is rounded
    that is not clear: where the rank is doubtful or exponents are no small integers, there is no
    answer.

    Nothing of the module's changes. Use ``discover`` where it works: it is faster, exact, and says
    what pins a channel.

    Args:
        model: Any module; it is copied to float64 and taken in its present mode.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments;
            floating-point ones are replaced by random numbers of the same shape, others drawn
            again from their own values.
        layout: The parameters that may be scaled; by default all that require a gradient.
        entries: Whether every entry is a candidate, or else rows, columns (by groups of a
            convolution) and entries of vectors; by default if there are no more than 1500.
        seed: Of points, inputs and group elements.
        max_rows: When to give up; by default four times the number of candidates plus 1024.

    Returns:
        The group with a name for every generator, and how clear the answer is.

    Raises:
        RuntimeError: The rank still grew after ``max_rows``, or is doubtful (the message names the
            parameters), or every random point made a normalisation see a constant channel.
        TypeError: ``model`` is not a module, ``layout`` no layout, ``entries`` no boolean, ``seed``
            or ``max_rows`` no integer.
        ValueError: ``seed`` is negative or ``max_rows`` below 1; the model does not run on the
            inputs; no parameter has an effect; a derivative is missing or not finite; exponents
            are no small integers, or random elements change the outputs.

    Note:
        About one gradient for each candidate that has an effect, many at a time where autograd can
        batch them, and the factorisation of a square matrix of their number.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> class Branches(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.last = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
        ...     def forward(self, x):
        ...         h = self.first(x)
        ...         return self.last(h.relu() if x.sum() > 0 else h.abs())
        >>> found = qn.symmetry.discover_numerically(Branches(), torch.randn(5, 4))
        >>> found.group.names[1]
        'first channel 1: rows of first.weight and bias, columns of last.weight'
    """
    if entries is not None and not isinstance(entries, bool):
        raise TypeError(
            f"{_CALLER}: entries must be True, False or None, got {entries!r}"
        )
    require_count(seed, _CALLER, "seed", least=0, most=2**64 - 1)
    if max_rows is not None:
        require_count(max_rows, _CALLER, "max_rows")
    layout = layout_of(model, layout, _CALLER)
    inputs = call_arguments(example_inputs, _CALLER)
    replica = Replica(model, layout, _CALLER)
    candidates = candidate_scalings(replica.model, layout, entries)
    search = Search(candidates, RandomRows(replica, inputs, seed), max_rows)
    incidence, classes = assembled(candidates, search.basis())
    incidence = follow_rows(layout, incidence, search.live)
    found, names = named_group(layout, incidence, classes)
    kept, jumps = InFull(search.source, found, seed).without_jumps(names)
    classes = sparse.csr_array(found.classes @ sparse.csr_array(kept.T))
    group, namings = named_group(layout, found.incidence, classes)
    soundness = verify_sound(model, group, example_inputs, modes=("own",), seed=seed)
    if not soundness.holds:
        raise ValueError(
            f"{_CALLER}: what the derivatives allow is no symmetry, {soundness}"
        )
    idle, unseen = _without_slope(search)
    return NumericalSymmetry(
        group=group,
        namings=tuple(namings),
        training=model.training,
        candidates=candidates.kind,
        gap=search.gap,
        rows=search.count,
        points=search.points,
        idle=idle,
        unseen=unseen,
        jumps=tuple(names[j] for j in jumps),
        soundness=soundness,
    )


def _without_slope(search: Search) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parameters without any effect, and those whose effect derivatives do not see."""
    layout, idle, unseen = search.candidates.group.layout, [], []
    mask = torch.from_numpy(~search.live)
    some = search.source.effect(mask) > _TOLERANCE
    for name in layout.count(mask):
        own = mask & layout.mask(name)
        seen = not some or search.source.effect(own) <= _TOLERANCE
        (idle if seen else unseen).append(name)
    return tuple(idle), tuple(unseen)
