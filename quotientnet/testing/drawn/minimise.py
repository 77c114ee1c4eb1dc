"""Making a failing architecture smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quotientnet.testing.drawn.drawing import informative
from quotientnet.testing.drawn.program import (
    Architecture,
    Step,
    fits,
    renumbered,
    require_architecture,
)

__all__ = ["minimised"]


def minimised(
    network: Architecture, fails: Callable[[Architecture], bool]
) -> Architecture:
    """A network that still fails, none of whose next smaller ones does.

    Args:
        network: One that fails.
        fails: Whether a network does; it gets only ones with parameters.

    Raises:
        TypeError: ``network`` is no architecture, or ``fails`` cannot be called.
        ValueError: ``network`` does not fail.
    """
    require_architecture(network, "minimised")
    if not callable(fails):
        raise TypeError(
            "minimised: fails must be a function of a network, got "
            f"{type(fails).__name__}"
        )
    if not fails(network):
        raise ValueError(
            "minimised: fails(network) is false; pass a network that fails"
        )
    while True:
        some = (small for small in _smaller(network) if [*small.parameters()])
        found = next(filter(fails, some), None)
        if found is None:
            return network
        network = found


def _smaller(network: Architecture) -> Iterator[Architecture]:
    """Networks with fewer results, outputs or options, much smaller ones first."""
    for number in range(len(network.kinds) - 1):
        if number not in network.outputs:
            yield network.returning(number)
    if network.training:
        yield network.returning(*network.outputs, training=False)
    if len(network.outputs) > 1:
        for output in network.outputs:
            yield network.returning(*(n for n in network.outputs if n != output))
    for number, step in enumerate(network.steps):
        for operand in dict.fromkeys(step.operands):
            found = _bypassed(network, number, operand)
            if found is not None:
                yield found
        if step.options.get("bias"):
            yield _replaced(
                network,
                number,
                Step(step.operation, *step.operands, **step.options | {"bias": False}),
            )


def _replaced(network: Architecture, number: int, step: Step) -> Architecture:
    steps = [*network.steps[:number], step, *network.steps[number + 1 :]]
    return Architecture(
        *steps, outputs=network.outputs, training=network.training, seed=network.seed
    )


def _bypassed(network: Architecture, number: int, operand: int) -> Architecture | None:
    """The network without a step, what it read in the place of its results; ``None`` if what
    comes after does not take that."""
    own = network.numbers[number]

    def moved(n: int) -> int:
        n = operand if n in own else n
        return n - len(own) * (n > own[-1])

    made = Architecture(
        *network.steps[:number], training=network.training, seed=network.seed
    )
    for step in network.steps[number + 1 :]:
        if step.options.get("of") in own:
            return None
        step = renumbered(step, moved)
        if not fits(step, [made.kinds[n] for n in step.operands]):
            return None
        try:
            values = made.append(step)
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ):  # another shape than it was drawn for
            return None
        if not informative(values):
            return None
    made.outputs = tuple(dict.fromkeys(map(moved, network.outputs)))
    return made.returning(*made.outputs)
