"""Architectures as programs: networks that are lists of steps, and show themselves as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quotientnet.testing.drawn.registry import OPERATIONS, Kind, Operation

__all__ = ["Step", "Architecture"]


class Step:
    """One step of an architecture: an operation on earlier results.

    Args:
        operation: Its name, such as ``"linear"``. Besides those of the registry there are
            ``"input"``, ``"embedding"`` of an input of words, and ``"again"``: the layer that made
            the result ``of``, once more.
        operands: Numbers of results.
        options: What the operation needs besides.
    """

    def __init__(self, operation: str, *operands: int, **options):
        self.operation, self.operands, self.options = operation, operands, options

    def __repr__(self) -> str:
        options = (f"{name}={value!r}" for name, value in self.options.items())
        parts = [repr(self.operation), *map(repr, self.operands), *options]
        return f"Step({', '.join(parts)})"

    @property
    def read(self) -> tuple[int, ...]:
        """The numbers of all results that it needs, a layer's among them."""
        of = self.options.get("of")
        return self.operands if of is None else (*self.operands, of)


class Architecture(nn.Module):
    """A network given by its steps; it shows itself as a program that makes it once more.

    Results are numbered from 0 in the order of the steps; a step with several results takes as
    many numbers. It takes ``inputs()`` and is of ``float64``.

    Args:
        steps: What it does.
        outputs: The numbers of the results that it returns; by default the last.
        training: Whether it is in train mode.
        seed: Of parameters, running statistics and inputs.

    Example:
        >>> from quotientnet import discover
        >>> from quotientnet.testing import Architecture, Step
        >>> network = Architecture(
        ...     Step("input", shape=(4,)),
        ...     Step("linear", 0, out=3, bias=True),
        ...     Step("relu", 1),
        ...     Step("linear", 2, out=2, bias=True),
        ... )
        >>> discover(network, network.inputs()).group.names[0]
        'linear1 channel 0: rows of linear1.weight and bias, columns of linear3.weight'
    """

    def __init__(
        self,
        *steps: Step,
        outputs: Sequence[int] = (-1,),
        training: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.train(training)
        self.seed = seed
        self.steps: tuple[Step, ...] = ()
        self.kinds: list[Kind] = []
        self.numbers: list[tuple[int, ...]] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._values: list[Tensor] = []
        for step in steps:
            self.append(step)
        self.outputs = tuple(n % max(len(self.kinds), 1) for n in outputs)

    # -- running ---

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, each with one row a sample."""
        values = self.results(inputs)
        return tuple(values[n] for n in self.outputs)

    def results(
        self, inputs: Sequence[Tensor], seen: Callable[[Step, Tensor], Tensor] = None
    ) -> list[Tensor]:
        """All results.

        Args:
            inputs: Those of the network.
            seen: Gives what a step is to see in the place of each of its operands.
        """
        given, values = iter(inputs), []
        for step in self.steps:
            operands = [values[n] for n in step.operands]
            if seen is not None:
                operands = [seen(step, x) for x in operands]
            values += self._results(step, operands, len(values), given)
        return values

    def inputs(self, count: int = 5) -> tuple[Tensor, ...]:
        """Seeded inputs of as many samples as are asked for, with every word among them."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [_input(step, count, generator) for step in self.steps]
        for step, words in zip(self.steps, drawn):
            if step.operation == "embedding":
                first = words.view(-1)[: step.options["words"]]
                first.copy_(torch.arange(len(first)))
        return tuple(x for x in drawn if x is not None)

    def _results(
        self,
        step: Step,
        operands: Sequence[Tensor],
        number: int,
        given: Iterator[Tensor],
    ) -> Sequence[Tensor]:
        layer = getattr(self, f"{step.operation}{number}", None)
        if step.operation == "input":
            return [next(given)]
        if step.operation == "embedding":
            return [layer(next(given))]
        if step.operation == "again":
            return [self._again(*operands, **step.options)]
        result = operation_named(step.operation).run(layer, *operands, **step.options)
        return result if isinstance(result, tuple) else [result]

    def _again(self, x: Tensor, of: int, transposed: bool) -> Tensor:
        """The layer of another step, or a product with its weight the other way round."""
        step = next(s for s, numbers in zip(self.steps, self.numbers) if of in numbers)
        layer = getattr(self, f"{step.operation}{of}")
        if step.operation == "embedding":
            return F.linear(x, layer.weight)
        if transposed:
            return x @ (
                layer.weight.mT if step.operation == "product" else layer.weight
            )
        return operation_named(step.operation).run(layer, x, **step.options)

    # -- growing ---

    @torch.no_grad()
    def append(self, step: Step) -> list[Tensor]:
        """Add a step; returns its results for eight samples.

        Raises:
            ValueError: There is no such operation, or no such result, or it does not fit.
        """
        for n in step.read:
            if n not in range(len(self.kinds)):
                raise ValueError(
                    f"Architecture: {step.operation!r} reads result {n}; results so far are "
                    f"0 to {len(self.kinds) - 1}"
                )
        operands = [self.kinds[n] for n in step.operands]
        number = len(self.kinds)
        if not fits(step, operands):
            shapes = ", ".join(str(k.shape) for k in operands)
            raise ValueError(
                f"Architecture: step {len(self.steps)}, {step.operation!r}, does not take results "
                f"of shapes {shapes}"
            )
        with torch.random.fork_rng(devices=[]):  # what layers draw, _drawn replaces
            layer = _layer(step, operands)
        if layer is not None:
            self.add_module(f"{step.operation}{number}", self._drawn(layer))
        given = iter([_input(step, 8, self._generator)])
        seen = [self._values[n] for n in step.operands]
        values = self._results(step, seen, number, given)
        image = (
            all(k.image for k in operands) if operands else step.options.get("image")
        )
        image = bool(image) and _keeps_images(step)
        self.kinds += [
            Kind(
                tuple(v.shape[1:]),
                image,
                bool((v == 0).any()),
                step.operation == "input",
                _mixed(v),
            )
            for v in values
        ]
        self.numbers.append(tuple(range(number, len(self.kinds))))
        self.steps += (step,)
        self._values += values
        return list(values)

    def retract(self) -> None:
        """Take the last step back."""
        numbers, step = self.numbers.pop(), self.steps[-1]
        self._modules.pop(f"{step.operation}{numbers[0]}", None)
        self.steps = self.steps[:-1]
        del self._values[numbers[0] :], self.kinds[numbers[0] :]

    def _drawn(self, layer: nn.Module) -> nn.Module:
        """A layer with numbers of its own, none of them near zero, in this network's mode."""
        layer = layer.double().train(self.training)
        for p in layer.parameters():
            fan = p[0].numel() if p.ndim > 1 else 1
            noise = torch.randn(p.shape, generator=self._generator, dtype=p.dtype)
            p.copy_((noise + 0.1 * noise.sign()) / max(fan, 1) ** 0.5)
        for b in layer.buffers():
            if b.is_floating_point():
                b.copy_(
                    torch.rand(b.shape, generator=self._generator, dtype=b.dtype) + 0.5
                )
        return layer

    # -- reading ---

    def __repr__(self) -> str:
        lines = ["Architecture("]
        for step, numbers in zip(self.steps, self.numbers):
            shapes = ", ".join(f"{n}: {self.kinds[n].shape}" for n in numbers)
            lines.append(f"    {step!r},  # {shapes}")
        options = f"outputs={self.outputs}, training={self.training}, seed={self.seed}"
        return "\n".join([*lines, f"    {options},", ")"])

    @property
    def operations(self) -> Counter:
        """How often each operation occurs; inputs are none."""
        return Counter(s.operation for s in self.steps if s.operation != "input")

    @property
    def unread(self) -> list[int]:
        """The numbers of results that no step reads."""
        read = {n for step in self.steps for n in step.operands}
        return [n for n in range(len(self.kinds)) if n not in read]

    def made_by(self, number: int) -> str:
        """The operation of a result."""
        pairs = zip(self.steps, self.numbers)
        return next(step.operation for step, numbers in pairs if number in numbers)

    def returning(self, *outputs: int, training: bool | None = None) -> Architecture:
        """The network of other outputs, without what they do not need.

        Where a step has several results and one is needed, those that nothing reads are outputs,
        and so is that of a step whose layer another step uses.
        """
        live, outputs, kept = set(outputs), list(dict.fromkeys(outputs)), []
        for step, numbers in reversed(list(zip(self.steps, self.numbers))):
            if live.isdisjoint(numbers):
                continue
            outputs += [n for n in numbers if n not in live]
            kept.insert(0, (step, numbers))
            live.update(numbers, step.operands)
            if step.options.get("of", next(iter(live))) not in live:
                outputs.append(step.options["of"])
                live.add(step.options["of"])
        places = [n for _, numbers in kept for n in numbers]
        steps = [renumbered(step, places.index) for step, _ in kept]
        training = self.training if training is None else training
        return Architecture(
            *steps,
            outputs=sorted(map(places.index, outputs)),
            training=training,
            seed=self.seed,
        )


def require_architecture(network, caller: str) -> None:
    """Refuse what is no architecture."""
    if not isinstance(network, Architecture):
        raise TypeError(
            f"{caller}: network must be an Architecture, got {type(network).__name__}; "
            "random_architecture(seed) draws one"
        )


def renumbered(step: Step, number) -> Step:
    """The step with other numbers of what it reads."""
    options = dict(step.options)
    if "of" in options:
        options["of"] = number(options["of"])
    return Step(step.operation, *map(number, step.operands), **options)


def operation_named(name: str) -> Operation:
    """An operation of the registry."""
    for own in OPERATIONS.values():
        if name in own:
            return own[name]
    raise ValueError(f"Architecture: {name!r} is no operation of the registry")


def _mixed(x: Tensor) -> bool:
    """Whether every channel has entries of both signs."""
    channels = x.transpose(0, 1).flatten(1)
    return bool(((channels > 0).any(1) & (channels < 0).any(1)).all())


def fits(step: Step, operands: Sequence[Kind]) -> bool:
    """Whether a step takes operands of these shapes."""
    operands = [replace(x, zeros=False, mixed=True) for x in operands]
    if step.operation in ("input", "embedding", "again"):
        return True
    return operation_named(step.operation).fits(*operands)


def _keeps_images(step: Step) -> bool:
    if step.operation in ("input", "embedding"):
        return True
    if step.operation == "again":
        return not step.options["transposed"]  # of an image, its own shape once more
    return operation_named(step.operation).image


def _layer(step: Step, operands: Sequence[Kind]) -> nn.Module | None:
    if step.operation in ("input", "again"):
        return None
    if step.operation == "embedding":
        return nn.Embedding(step.options["words"], step.options["width"])
    make = operation_named(step.operation).layer
    return make(*operands, **step.options) if make else None


def _input(step: Step, count: int, generator: torch.Generator) -> Tensor | None:
    """A step's own input, if it has one."""
    if step.operation == "input":
        shape = (count, *step.options["shape"])
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if step.operation == "embedding":
        shape = (count, step.options["length"])
        return torch.randint(step.options["words"], shape, generator=generator)
    return None
