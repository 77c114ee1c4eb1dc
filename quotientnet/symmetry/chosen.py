"""Entries that the data choose: their log-scales, and one equation for each possible choice."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.scales import LogScale, Unset, compact

__all__ = ["choose", "for_each_choice"]


def choose(eq: Equations, x: LogScale, places: LogScale) -> LogScale:
    """The log-scale of the entries of ``x`` along its last axis that the data choose.

    Args:
        eq: Where they are unknowns.
        x: Shape ``(..., size)``.
        places: Which entry, of a shape that broadcasts against ``(...)``.

    Returns:
        The shape of ``places`` and ``(...)`` together.
    """
    x = eq.simplify(eq.resolve(x))
    shape = torch.broadcast_shapes(x.shape[:-1], places.shape)
    tables = [compact(index) for _, index in x.terms]
    varies = any(table.shape[-1] > 1 for table in tables)
    nested = any(eq.choices.among(table.numpy()).any() for table in tables)
    if not isinstance(places, Choice) or (varies and (nested or eq.has_zeros(x))):
        x = eq.uniform(x, [-1])
        return LogScale([(c, index[..., 0]) for c, index in x.terms], shape)
    terms = [
        (c, _unknowns(eq, table, places.variables))
        for (c, _), table in zip(x.terms, tables)
    ]
    return LogScale(terms, shape)


def _unknowns(eq: Equations, table: Tensor, variables: Tensor) -> Tensor:
    """One unknown for each table (along the last axis) and variable."""
    if table.shape[-1] == 1:
        return table[..., 0]
    size = table.shape[-1]
    rows, which = np.unique(
        table.numpy().reshape(-1, size), axis=0, return_inverse=True
    )
    which = torch.from_numpy(which.reshape(table.shape[:-1]))
    which, variables = torch.broadcast_tensors(which, variables)
    dims = [a for a in range(which.ndim) if which.stride(a) or variables.stride(a)]
    cut = tuple(slice(None) if a in dims else slice(0, 1) for a in range(which.ndim))
    pairs = torch.stack([which[cut], variables[cut]], -1).reshape(-1, 2).numpy()
    pairs, inverse = np.unique(pairs, axis=0, return_inverse=True)
    numbers = eq.chosen_unknowns([rows[r] for r, _ in pairs.tolist()], pairs[:, 1])
    return torch.from_numpy(numbers[inverse.reshape(-1)]).view(which[cut].shape)


def for_each_choice(eq: Equations, x: LogScale, places: Choice, size: int) -> LogScale:
    """``x`` as it is for each value of the variables, along a new first axis.

    Args:
        eq: Where its unknowns are.
        x: Any log-scale.
        places: The variable that each of its entries may depend on, broadcastable.
        size: How many values they have.
    """
    terms = []
    for c, index in eq.simplify(eq.resolve(x)).terms:
        narrow = compact(index)
        if not eq.choices.among(narrow.numpy()).any():
            terms.append((c, narrow[None]))
            continue
        index, variables = torch.broadcast_tensors(narrow, places.variables)
        terms.append((c, _for_each_value(eq, index.numpy(), variables.numpy(), size)))
    return LogScale(terms, (size, *x.shape))


def _for_each_value(eq: Equations, index, variables, size: int) -> Tensor:
    values = np.repeat(index[None], size, 0)
    keys, choices = eq.choices.keys(index), eq.choices
    own = keys >= 0
    expected = np.array([choices.key(v, size) for v in variables[own].tolist()])
    own[own] = keys[own] == expected
    if own.any():
        values[:, own] = np.stack(choices.tables(index[own]), 1)
    return torch.from_numpy(values)


def rows_and_columns(eq: Equations, weight: Unset) -> None:
    """Give a table that has not been used one unknown for each row and one for each column."""
    rows, columns = (eq.fresh(n).terms[0][1] for n in weight.leaf.shape)
    columns[0] = 0  # a scale common to all columns is one of the rows
    weight.leaf.complete_with([(1, rows[:, None].expand(weight.leaf.shape)),
                               (1, columns[None].expand(weight.leaf.shape))])  # fmt: skip
