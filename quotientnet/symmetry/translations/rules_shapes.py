"""Rules on moves of operations that move entries; they run literally on index tensors."""

from __future__ import annotations

import torch

from quotientnet.symmetry.rules.shapes import MOVES, move
from quotientnet.symmetry.translations.registry import shift_rule
from quotientnet.symmetry.translations.rules_products import mapped
from quotientnet.symmetry.translations.shifts import Seen, Shift, Term, plain

__all__ = []


def _register(name: str) -> None:
    as_view = name in ("view", "_unsafe_view")
    operation = getattr(torch.ops.aten, "reshape" if as_view else name)

    @shift_rule(name)
    def moving(call, x, *args, **kwargs):
        odd = (Shift, Seen, torch.dtype)
        if any(isinstance(a, odd) for a in (*args, *kwargs.values())):
            return call.pin(x, *args)
        return move(operation, x, args, kwargs)


for _name in MOVES:
    if hasattr(torch.ops.aten, _name):
        _register(_name)


@shift_rule("expand_as", "view_as", "reshape_as")
def like_another(call, x, other):
    change = "expand" if call.operation.endswith("expand_as") else "reshape"
    return mapped(x, lambda t: getattr(t, change)(call.shape))


@shift_rule("index")
def index(call, x, indices):
    by_data = [a for a, i in enumerate(indices) if isinstance(i, (Shift, Seen))]
    if by_data:
        x = plain(call.uniform(x, by_data))
        indices = [
            torch.zeros(i.shape, dtype=torch.long) if a in by_data else i
            for a, i in enumerate(indices)
        ]
    return move(torch.ops.aten.index, x, (indices,), {})


@shift_rule("index_select", "gather")
def index_along(call, x, dim, places, **kwargs):
    if isinstance(places, (Shift, Seen)):
        x = plain(call.uniform(x, [dim]))
        places = torch.zeros(places.shape, dtype=torch.long)
    single = len(places.shape) <= 1
    operation = torch.ops.aten.index_select if single else torch.ops.aten.gather
    return move(operation, x, (dim, places), {})


def _join(name: str) -> None:
    operation = getattr(torch.ops.aten, name)

    @shift_rule(name)
    def joined(call, tensors, *args, **kwargs):
        shifts = [call.shift(x) for x in tensors]
        kinds = sorted({_kind(t) for s in shifts for t in s.terms})
        terms = []
        for kind in kinds:
            own = [[t for t in s.terms if _kind(t) == kind] for s in shifts]
            for n in range(max(map(len, own))):
                each = [o[n] if n < len(o) else _still(s) for o, s in zip(own, shifts)]
                site, places = (
                    operation([getattr(t, field) for t in each], *args, **kwargs)
                    for field in ("site", "index")
                )
                terms.append(Term(kind[0], site, places))
        return Shift(call.shape, terms)


def _kind(term: Term) -> tuple[float, bool]:
    """Terms of one kind may share one tensor of sites."""
    return term.coefficient, term.constant


def _still(x: Shift) -> Term:
    zeros = torch.zeros((), dtype=torch.long).expand(x.shape)
    return Term(1.0, zeros, zeros)


for _name in ("cat", "concat", "stack", "hstack", "vstack", "dstack", "column_stack"):
    _join(_name)


@shift_rule("pad", "constant_pad_nd")
def pad(call, x, padding, mode="constant", value=None):
    if mode != "constant" and isinstance(mode, str):
        return call.pin(x)
    x = call.shift(x)
    return x.map(lambda t: torch.nn.functional.pad(t, padding))
