"""Rules on moves of recurrent layers: the biases that are added to one value trade."""

from __future__ import annotations

from quotientnet.symmetry.rules.recurrences import _arguments
from quotientnet.symmetry.translations.registry import ShiftCall, shift_rule
from quotientnet.symmetry.translations.rules_products import linear, mapped
from quotientnet.symmetry.translations.shifts import Shift

__all__ = []


def _still_gates(call, x, w_ih, w_hh, b_ih=None, b_hh=None, *projection) -> None:
    """Let ``W_ih x + b_ih + b_hh`` not move.

    The last third of a GRU reads ``W_ih x + b_ih`` and ``b_hh`` apart: a gate multiplies ``b_hh``.
    """
    u = call.unknowns
    u.pin(w_hh, *projection)
    shape = (*x.shape[:-1], w_ih.shape[0])
    total = linear(ShiftCall(u, shape, call.operation), x, w_ih, b_ih)
    if b_hh is not None and "gru" in call.operation:
        shared = 2 * w_ih.shape[0] // 3
        u.pin(Shift(shape, total.terms).map(lambda t: t[..., shared:]))
        u.pin(call.shift(mapped(b_hh, lambda t: t[shared:])))
        total = total.map(lambda t: t[..., :shared])
        b_hh = mapped(b_hh, lambda t: t[:shared])
    if b_hh is not None:
        total = total + call.shift(b_hh)
    u.pin(total)


def _layers(call, x, hidden, parameters, layers: int, directions: int) -> None:
    """All layers: states do not move, so that only the first can be handed a shift."""
    call.unknowns.pin(hidden)
    each = len(parameters) // (layers * directions)
    for number in range(layers * directions):
        own = parameters[number * each : (number + 1) * each]
        both = 2 if each > 3 else 0
        biases, projection = own[2 : 2 + both], own[2 + both :]
        if number >= directions:
            x = Shift((*x.shape[:-1], own[0].shape[1]))
        _still_gates(call, x, *own[:2], *(biases or (None, None)), *projection)


@shift_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrence(call, x, *args):
    """Outputs and states do not move."""
    hidden, parameters, _, layers, _, _, bidirectional, *_ = _arguments(args)
    _layers(call, x, hidden, parameters, layers, 2 if bidirectional else 1)
    states = hidden if isinstance(hidden, (list, tuple)) else [hidden]
    return [Shift(call.shape), *(Shift(h.shape) for h in states)]


@shift_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call, x, hidden, w_ih, w_hh, b_ih=None, b_hh=None):
    """As a layer of one step."""
    call.unknowns.pin(hidden)
    _still_gates(call, x, w_ih, w_hh, b_ih, b_hh)
    if call.operation.endswith("lstm_cell"):
        return [Shift(call.shape), Shift(call.shape)]
    return Shift(call.shape)
