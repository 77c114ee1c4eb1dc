"""Drawing architectures, at random or by hypothesis, and making them smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random

import torch
from torch import Tensor

from quotientnet.options import require_count
from quotientnet.testing.drawn.effects import steady, without_effect
from quotientnet.testing.drawn.program import (
    Architecture,
    Step,
    operation_named,
)
from quotientnet.testing.drawn.registry import OPERATIONS, Kind

__all__ = ["architectures", "random_architecture", "informative"]

Choose = Callable[[Sequence], object]
"""Takes one of several; the first ones are simple."""

_FAMILIES = (
    "linear", *["filter"] * 3, *["relu"] * 2, *["homogeneous"] * 3, *["two"] * 4, "add",
    *["parameter"] * 3, *["along"] * 3, *["move"] * 3, *["join"] * 2, *["normalisation"] * 4,
    *["contraction"] * 3, *["image"] * 3, *["weight"] * 3, *["again"] * 2, *["pinning"] * 2,
    "recurrence",
)  # fmt: skip
"""How often each family is drawn."""

_LARGEST = 48
"""Entries of a result, for each sample."""


def random_architecture(seed: int, *, least: int = 5, most: int = 40) -> Architecture:
    """A network of so many operations at least and at most; the same for the same seed.

    Args:
        seed: Of everything that is drawn. No random state of torch's is read or changed.
        least: The smallest number of operations, 1 or more.
        most: The largest.

    Raises:
        TypeError: No integers.
        ValueError: ``least`` is below 1, or ``most`` below ``least``.
    """
    require_count(seed, "random_architecture", "seed", least=0)
    _require_range(least, most, "random_architecture")
    choose = Random(seed).choice
    while True:
        network = _draw(choose, least, most)
        if not without_effect(network) and steady(network):
            return network


def architectures(least: int = 5, most: int = 40):
    """A hypothesis strategy: networks of so many operations.

    Args:
        least: The smallest number of operations, 1 or more.
        most: The largest.

    Raises:
        TypeError: No integers.
        ValueError: ``least`` is below 1, or ``most`` below ``least``.
    """
    _require_range(least, most, "architectures")
    try:
        from hypothesis import assume
        from hypothesis import strategies as st
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "architectures needs hypothesis: pip install quotientnet[test]"
        ) from error

    @st.composite
    def drawn(draw) -> Architecture:
        def choose(options: Sequence):
            return options[draw(st.integers(0, len(options) - 1))]

        network = _draw(choose, least, most)
        assume(not without_effect(network) and steady(network))
        return network

    return drawn()


def _require_range(least: int, most: int, caller: str) -> None:
    require_count(least, caller, "least")
    require_count(most, caller, "most")
    if most < least:
        raise ValueError(
            f"{caller}: most must be at least least, got most={most} and least={least}; pass both"
        )


def _draw(choose: Choose, least: int, most: int) -> Architecture:
    count = choose(range(least, choose((max(most // 2, least), most)) + 1))
    network = Architecture(
        *_inputs(choose), training=choose((False, True)), seed=choose(range(1000))
    )
    for _ in range(20 * count):
        if network.operations.total() >= count:
            break
        _grow(network, *_steps(choose, network))
    sinks = network.unread
    kept = [n for n in sinks[:-1] if choose((False, False, True))]
    outputs = [*kept, sinks[-1]]
    smaller = network.returning(*outputs)
    network = smaller if smaller.operations.total() >= least else network
    # Units whose scale a last layer makes up for are more telling than what is returned as it is.
    for output in network.unread:
        if network.operations.total() < most and choose((True, True, False)):
            _grow(network, Step("linear", output, out=2, bias=choose((True, False))))
    return network.returning(*network.unread)


def _grow(network: Architecture, *steps: Step) -> None:
    """Add steps, unless one of them computes something degenerate."""
    for number, step in enumerate(steps):
        if not informative(network.append(step)):
            for _ in range(number + 1):
                network.retract()
            return


def _inputs(choose: Choose) -> Iterator[Step]:
    shapes = [(4,), (3, 4), (2, 4, 4), (2, 6), (2, 4, 4), (3, 2)]
    for _ in range(choose((1, 1, 2))):
        shape = choose(shapes)
        yield Step("input", shape=shape, image=shape in ((2, 4, 4), (2, 6)))
    if choose((False, False, True)):
        yield Step("embedding", words=3, length=3, width=choose((4, 2)))


def _steps(choose: Choose, network: Architecture) -> list[Step]:
    """A step on results so far, perhaps after a layer; none where what is drawn does not fit."""
    everything = range(len(network.kinds) - 1, -1, -1)
    unread = network.unread[::-1]
    source = choose([*unread, *unread, *everything])
    family = choose(_FAMILIES)
    if family == "again":
        return _again(choose, network, source)
    kind = network.kinds[source]
    fitting = {}
    for name, operation in OPERATIONS[family].items():
        others = [
            rest
            for rest in product(everything, repeat=operation.arity - 1)
            if operation.fits(kind, *(network.kinds[n] for n in rest))
            and len(set(rest) - {source}) >= min(operation.arity - 1, 1)
            and len(set(rest)) == len(rest)
        ]
        if others:
            fitting[name] = others
    if not fitting:
        return []
    name = choose(sorted(fitting, key=list(OPERATIONS[family]).index))
    rest = choose(fitting[name])
    kinds = [network.kinds[n] for n in (source, *rest)]
    options = operation_named(name).options(choose, *kinds)
    given = kind.given and not operation_named(name).fits(
        replace(kind, given=False), *kinds[1:]
    )
    if given or network.made_by(source) in _LAYERS or choose((False, True)):
        return [Step(name, source, *rest, **options)]
    # What a rule demands tells only where scales are free: after a layer of the same shape.
    layer = _layer(choose, source, kind)
    return [layer, Step(name, len(network.kinds), *rest, **options)]


_LAYERS = ("linear", "conv", "product", "transposed_conv")


def _layer(choose: Choose, source: int, x: Kind) -> Step:
    bias = choose((True, False))
    if x.image and len(x.shape) > 1:
        return Step(
            "conv", source, out=x.shape[0], size=1, groups=1, same=True, bias=bias
        )
    return Step("linear", source, out=x.shape[-1], bias=bias)


def _again(choose: Choose, network: Architecture, source: int) -> list[Step]:
    """The layer of a step before, or its weight transposed."""
    found, x = [], network.kinds[source]
    for step, (of, *_) in zip(network.steps, network.numbers):
        if step.operation == "embedding":
            found += [(of, True)] * (x.shape[-1] == step.options["width"])
        elif len(step.operands) == 1 and hasattr(network, f"{step.operation}{of}"):
            operand, result = network.kinds[step.operands[0]], network.kinds[of]
            alike = operand.shape == x.shape and operand.image <= x.image
            one = len(network.numbers[network.steps.index(step)]) == 1
            if step.operation in ("linear", "product"):
                alike = operand.shape[-1] == x.shape[-1]
                found += [(of, True)] * (result.shape[-1] == x.shape[-1])
            found += [(of, False)] * (alike and one)
    if not found:
        return []
    of, transposed = choose(found)
    return [Step("again", source, of=of, transposed=transposed)]


def informative(values: Sequence[Tensor]) -> bool:
    """Whether results are of a fair size, and every entry depends on the sample."""
    for x in values:
        if x[0].numel() > _LARGEST or not torch.isfinite(x).all():
            return False
        size = x.abs().amax()
        if not 1e-3 < size < 1e3 or not (x.std(0) > 1e-6 * size).all():
            return False
    return True
