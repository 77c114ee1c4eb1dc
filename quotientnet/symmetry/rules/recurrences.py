"""Rules of recurrent layers: gates pin what they read, weights take up the scales of inputs."""

from __future__ import annotations

import torch

from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


def _through(eq: Equations, weight: LogScale, x: LogScale) -> LogScale:
    """The log-scales of ``weight @ x``, shape ``(outputs,)``, at all times and in all samples."""
    x = eq.uniform(x, range(len(x.shape) - 1)).map(lambda t: t.reshape(1, -1))
    return eq.contract(weight, x, [-1]).map(lambda t: t[:, 0])


def _direction(eq: Equations, x, state, parameters, relu: bool) -> LogScale:
    """One layer in one direction: the log-scales of its hidden state, shape ``(hidden,)``."""
    ih, hh, *rest = parameters
    projection = rest.pop() if len(rest) % 2 else None
    if relu:
        hidden = _through(eq, ih, x)
        eq.equal(_through(eq, hh, hidden), hidden)
    else:
        eq.pin(_through(eq, ih, x))
        hidden = eq.pinned(hh.shape[1])
        if projection is not None:
            hidden = _through(eq, projection, eq.pinned(projection.shape[1]))
        eq.pin(_through(eq, hh, hidden))
    for bias in rest:
        eq.equal(bias, hidden) if relu else eq.pin(bias)
    eq.equal(state, hidden)
    return hidden


def _layers(call, x, hidden, parameters, biases, layers, bidirectional, relu):
    """The log-scales of all outputs, and of the last states."""
    eq, directions = call.equations, 2 if bidirectional else 1
    parameters = [call.scale(p) for p in parameters]
    each, hidden = len(parameters) // (layers * directions), call.scale(hidden)
    last = []
    for layer in range(layers):
        states = []
        for number in range(layer * directions, (layer + 1) * directions):
            own = parameters[number * each : (number + 1) * each]
            state = hidden.map(lambda t, n=number: t[n])
            states.append(eq.single(_direction(eq, x, state, own, relu)))
        both = torch.cat([s.terms[0][1] for s in states])
        x, last = LogScale([(1, both)], both.shape), [*last, *states]
    index = torch.stack([s.terms[0][1] for s in last])
    index = index if len(hidden.shape) == 2 else index[:, None]
    return call.spread(x), LogScale([(1, index)], hidden.shape)


def _arguments(args):
    """States, parameters and options; packed sequences have the sizes of their batches first."""
    packed = not isinstance(args[1], (list, tuple)) or isinstance(
        args[2], (list, tuple)
    )
    return args[1:] if packed else args


@rule("aten::lstm")
def lstm(call, x, *args):
    """Gates and cells are pinned; inputs are not, nor what a projection makes of outputs."""
    (hidden, cell), parameters, biases, layers, _, _, bidirectional, *_ = _arguments(
        args
    )
    cell = call.scale(cell)
    call.equations.pin(cell)
    out, hidden = _layers(
        call, call.scale(x), hidden, parameters, biases, layers, bidirectional, False
    )
    return [out, hidden, call.equations.pinned(*cell.shape)]


def _simple(name: str) -> None:
    @rule(f"aten::{name}")
    def recurrence(call, x, *args):
        """Hidden states have scales if what makes them is ReLU."""
        hidden, parameters, biases, layers, _, _, bidirectional, *_ = _arguments(args)
        return list(
            _layers(
                call, call.scale(x), hidden, parameters, biases, layers, bidirectional,
                name == "rnn_relu",
            )
        )  # fmt: skip


for _name in ("gru", "rnn_tanh", "rnn_relu"):
    _simple(_name)


def _gates(call, x, hidden, w_ih, w_hh, *biases) -> None:
    """Pin what weights make of the input and of the state."""
    for weight, y in ((w_ih, x), (w_hh, hidden)):
        call.equations.pin(_through(call.equations, call.scale(weight), call.scale(y)))
    for bias in biases:
        if bias is not None:
            call.equations.pin(call.scale(bias))


@rule("aten::lstm_cell")
def lstm_cell(call, x, states, w_ih, w_hh, b_ih=None, b_hh=None):
    """Gates and states are pinned; inputs are not."""
    _gates(call, x, states[0], w_ih, w_hh, b_ih, b_hh)
    call.equations.pin(call.scale(states[1]))
    return [call.equations.pinned(*call.shape), call.equations.pinned(*call.shape)]


@rule("aten::gru_cell")
def gru_cell(call, x, hidden, w_ih, w_hh, b_ih=None, b_hh=None):
    """Gates and states are pinned; inputs are not."""
    _gates(call, x, hidden, w_ih, w_hh, b_ih, b_hh)
    return call.equations.pin(call.scale(hidden))


@rule("aten::rnn_tanh_cell")
def tanh_cell(call, x, hidden, w_ih, w_hh, b_ih=None, b_hh=None):
    """What is made of input and state is pinned; they are not."""
    _gates(call, x, hidden, w_ih, w_hh, b_ih, b_hh)
    return call.equations.pinned(*call.shape)


@rule("aten::rnn_relu_cell")
def relu_cell(call, x, hidden, w_ih, w_hh, b_ih=None, b_hh=None):
    """What is made of input and of state has one scale."""
    eq = call.equations
    out = _through(eq, call.scale(w_ih), call.scale(x))
    out = eq.equal(out, _through(eq, call.scale(w_hh), call.scale(hidden)))
    for bias in (b_ih, b_hh):
        out = out if bias is None else eq.equal(out, call.scale(bias))
    return call.spread(out)
