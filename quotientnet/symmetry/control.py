"""Operations that run graphs: branches and loops that the data decide on, and mapped axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.scales import LogScale
from quotientnet.symmetry.views import as_scale, chooses

__all__ = ["CONTROL"]


def either(eq: Equations, run: Callable, args: Sequence) -> list:
    """Results of both branches have one scale."""
    _, *graphs, operands = args
    return [_alike(eq, *pair) for pair in zip(*(run(g, operands) for g in graphs))]


def until(eq: Equations, run: Callable, args: Sequence) -> list:
    """What goes around a loop has one scale in all rounds."""
    condition, body, state, more = args
    state = [_carried(eq, x) for x in state]
    run(condition, [*state, *more])
    for before, after in zip(state, run(body, [*state, *more])):
        _alike(eq, before, after)
    return state


def scan(eq: Equations, run: Callable, args: Sequence) -> list:
    """The state has one scale in all steps, and so has what steps read and what they write."""
    body, state, steps, more = args
    count = steps[0].shape[0]
    state = [_carried(eq, x) for x in state]
    one = [eq.uniform(as_scale(eq, x), [0]).map(lambda t: t[0]) for x in steps]
    results = run(body, [*state, *one, *more])
    for before, after in zip(state, results):
        _alike(eq, before, after)
    written = (as_scale(eq, y) for y in results[len(state) :])
    return [*state, *(y.map(lambda t: t.expand(count, *t.shape)) for y in written)]


def mapped(eq: Equations, run: Callable, args: Sequence) -> LogScale:
    """A mapped axis is hidden from the operations on it: it has one scale."""
    x, axis, _ = args
    return eq.uniform(as_scale(eq, x), [axis]).map(lambda t: t.select(axis, 0))


def unmapped(eq: Equations, run: Callable, args: Sequence) -> LogScale:
    """A mapped axis is hidden from the operations on it: it has one scale."""
    x, _, size, axis = args
    x = as_scale(eq, x).map(lambda t: t.unsqueeze(axis))
    return x.map(
        lambda t: t.expand(*(size if n == axis % t.ndim else -1 for n in range(t.ndim)))
    )


CONTROL = {
    "cond": either, "while_loop": until, "scan": scan, "_add_batch_dim": mapped,
    "_remove_batch_dim": unmapped,
}  # fmt: skip
"""What to do at each of them: ``(equations, run, arguments)``, where ``run(graph, inputs)`` walks
a graph and returns the scales of its results."""


def _carried(eq: Equations, x):
    """The unknown scale of what starts as ``x`` and goes around a loop."""
    if isinstance(x, LogScale) or isinstance(x, Tensor) and x.is_floating_point():
        x = as_scale(eq, x)
        state = eq.fresh(*x.shape)
        eq.equal(x, state)
        return state
    if isinstance(x, Tensor) and chooses(x.dtype):
        return eq.choices.variables(*x.shape)
    return eq.pinned(*x.shape) if isinstance(x, Tensor) else x


def _alike(eq: Equations, x, y) -> LogScale:
    if not isinstance(x, (LogScale, Tensor)):
        return x
    return eq.equal(as_scale(eq, x), as_scale(eq, y))
