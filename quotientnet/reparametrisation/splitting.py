"""Weight shared between two equal branches: tsuzuku2019 §7.3."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import inf

import torch
from torch import Tensor, nn

from quotientnet.layout import ParameterLayout
from quotientnet.options import require_kind, require_module, require_number
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.replica import Replica, relative_change

__all__ = ["share_branches"]

_ROUNDING = 1000
"""Units of rounding by which outputs and parallel tensors may differ."""


@torch.no_grad()
def share_branches(
    model: nn.Module,
    branches: Mapping[str, str],
    share: float,
    inputs: Tensor | Sequence | Mapping,
) -> nn.Module:
    r"""Move weight between two parallel branches that compute multiples of each other.

    Eqs. (26)–(30) of [Tsuzuku2019]_. Of
    :math:`y = \mathrm{ReLU}(W^{(1)} x) + \mathrm{ReLU}(W^{(2)} x)` with
    :math:`W^{(1)} = (1 - s) W` and :math:`W^{(2)} = s W` the function does not depend on
    ``s``: ``share=0.5`` is (27) and ``share=0`` is (29)–(30). It is no scaling of parameters (a
    branch that is zero cannot be scaled back), so that no group contains it. Liang's Fisher–Rao
    norm does not change; the diagonal Fisher–Rao norm (25) doubles from (27) to (29)–(30), where
    the paper says that it becomes half.

    Args:
        model: Any module.
        branches: The names of parameters of the first branch and of the second's, pair by pair:
            weights, and biases if there are any.
        share: ``s``, from 0 to 1: the part of the second branch afterwards.
        inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments, on which
            the outputs must stay the same.

    Returns:
        A copy of the model, with the sum of each pair divided anew.

    Raises:
        TypeError: An argument of another kind.
        ValueError: No pairs, a name that the model does not have, one parameter under two names, a
            share outside 0 to 1, tensors that are no non-negative multiples of each other with one
            ratio for all pairs, or outputs that change because the branches are not parallel.

    Example:
        >>> import torch
        >>> from quotientnet.reparametrisation import share_branches
        >>> class Branches(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        ...         self.b.load_state_dict(self.a.state_dict())
        ...     def forward(self, x):
        ...         return self.a(x).relu() + self.b(x).relu()
        >>> model = Branches()
        >>> pairs = {"a.weight": "b.weight", "a.bias": "b.bias"}
        >>> merged = share_branches(model, pairs, 0.0, torch.randn(5, 3))
        >>> torch.equal(merged.a.weight, 2 * model.a.weight), merged.b.weight.any().item()
        (True, False)
    """
    require_module(model, "share_branches", "model")
    require_kind(branches, Mapping, "share_branches", "branches", "pass names by names")
    require_number(share, "share_branches", "share", least=-inf)
    if not branches or not 0 <= share <= 1:
        raise ValueError(
            f"share_branches: needs pairs of names and a share from 0 to 1, got {branches} and "
            f"share={share}"
        )
    args, kwargs = call_arguments(inputs, "share_branches")
    layout = ParameterLayout.from_module(model, include_frozen=True)
    w = layout.flatten(model)
    layout.check(w, "share_branches", "the model")
    first, second = _parallel(layout, w, branches)
    total, moved = w[first] + w[second], w.clone()
    moved[first], moved[second] = (1 - share) * total, share * total
    replica = Replica(model, layout, "share_branches")
    before, after = (replica.run(at, args, kwargs)[0] for at in (w, moved))
    change = max(relative_change(a, b) for a, b in zip(before, after))
    if not change <= _ROUNDING * torch.finfo(w.dtype).eps:
        raise ValueError(
            f"share_branches: the outputs change by {change:.1e} relative: what "
            f"{', '.join(branches)} feed is not the sum of two parallel branches with one "
            "homogeneous activation each"
        )
    twin = copy.deepcopy(model)
    layout.assign(twin, moved)
    return twin


def _parallel(layout: ParameterLayout, w: Tensor, branches: Mapping[str, str]):
    """The coordinates of both branches, whose values are multiples of each other."""
    for names in branches.items():
        missing = [name for name in names if name not in layout]
        if missing:
            raise ValueError(
                f"share_branches: the model has no parameter {missing[0]!r}; it has "
                f"{', '.join(layout.names)}"
            )
        a, b = (layout[name] for name in names)
        if a == b or a.shape != b.shape:
            raise ValueError(
                f"share_branches: {names[0]!r} and {names[1]!r} are one parameter or of different "
                f"shapes, {a.shape} and {b.shape}"
            )
    numbers = torch.arange(layout.size, device=w.device)
    first = torch.cat([numbers[layout[name].slice] for name in branches])
    second = torch.cat([numbers[layout[name].slice] for name in branches.values()])
    a, b = w[first].double(), w[second].double()
    gap = (a * b.norm() - b * a.norm()).norm()
    if gap > _ROUNDING * torch.finfo(w.dtype).eps * a.norm() * b.norm():
        raise ValueError(
            f"share_branches: {', '.join(branches)} and {', '.join(branches.values())} are no "
            "non-negative multiples of each other, with one ratio for all pairs"
        )
    return first, second
