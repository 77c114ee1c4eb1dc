"""What may stand in for an argument, by the kind of what should be there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from math import inf, nan

import torch
from torch import Tensor, nn

WRONG = {"None": None, "a word": "nonsense", "an object": object(), "a set": {1}}


def malformed(value) -> Iterator[tuple[str, object]]:
    """Labels and stand-ins."""
    yield from ((label, other) for label, other in WRONG.items() if other is not value)
    if isinstance(value, bool):
        return
    if isinstance(value, Tensor):
        yield from _tensors(value)
    elif isinstance(value, nn.Module):
        yield from _modules(value)
    elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        yield from _batches(value)
    elif isinstance(value, int):
        yield from {"0": 0, "-1": -1, "1.5": 1.5, "nan": nan}.items()
    elif isinstance(value, float):
        numbers = (nan, inf, -inf, -1.0, 0.0, 1e308, 5e-324, 1j)
        yield from ((str(number), number) for number in numbers)
        yield "two numbers", torch.ones(2)
    else:
        yield from (("3", 3), ("a list", []), ("a tensor", torch.ones(2)))


def _tensors(x: Tensor) -> Iterator[tuple[str, object]]:
    yield "3", 3
    yield "an array", x.numpy()
    yield "one too many", torch.cat([x, x[:1]])
    yield "empty", x[:0]
    yield "a number", torch.ones((), dtype=x.dtype)
    yield "rows of it", x.expand(1, 1, *x.shape)
    yield "on meta", x.to("meta")
    yield "complex", x.to(torch.complex128)
    yield "sparse", x.to_sparse()
    if x.is_floating_point():
        yield "integers", x.long()
        yield "half", x.half()
        for number in (nan, inf):
            other = x.clone()
            other.view(-1)[-1] = number
            yield f"with {number}", other
        yield "zeros", torch.zeros_like(x)
        yield "subnormal", 5e-324 * torch.ones_like(x)
        yield "huge", 1e308 * torch.ones_like(x)
    elif x.dtype == torch.bool:
        yield "integers", x.long()
        yield "floats", x.double()


class Changed(nn.Module):
    """A network whose outputs are something else."""

    def __init__(self, inside: nn.Module, change):
        super().__init__()
        self.inside, self.change = inside, change

    def forward(self, *inputs):
        return self.change(self.inside(*inputs))


def _modules(model: nn.Module) -> Iterator[tuple[str, object]]:
    yield from {
        "its class": type(model),
        "without parameters": nn.Sequential(nn.ReLU()),
        "frozen": copy.deepcopy(model).requires_grad_(False),
        "half": copy.deepcopy(model).half(),
        "complex": _complex(model),
        "on meta": copy.deepcopy(model).to("meta"),
        "another": nn.Linear(5, 1).double(),
        "uninitialised": nn.LazyLinear(2),
        "returning None": Changed(copy.deepcopy(model), lambda y: None),
        "returning a number": Changed(copy.deepcopy(model), lambda y: 1.0),
        "returning a list": Changed(copy.deepcopy(model), lambda y: []),
        "returning NaN": Changed(copy.deepcopy(model), lambda y: y * nan),
        "returning nothing of it": Changed(copy.deepcopy(model), lambda y: torch.zeros(6, 2)),
    }.items()
    for number in (nan, inf, 1e308):
        other = copy.deepcopy(model)
        for parameter in list(other.parameters())[:1]:
            parameter.data.view(-1)[-1] = number
        yield f"with {number}", other


def _complex(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it new
        return copy.deepcopy(model).to(torch.complex128)


def _batches(pair: tuple) -> Iterator[tuple[str, object]]:
    x, y = pair
    yield from {
        "a list": [], "a tensor": x, "one of two": (x,), "three": (x, y, y), "turned": (y, x),
        "unequal": (x, y[:-1]), "empty": (x[:0], y[:0]), "a batch of None": [None],
        "a batch without targets": [(x, None)], "read once": iter([pair]), "words": [("a", "b")],
        "a dict": {"x": x}, "on meta": (x.to("meta"), y.to("meta")), "with nan": (x * nan, y),
        "huge": (x * 1e308, y), "complex": (x.to(torch.complex128), y),
    }.items()  # fmt: skip


def same(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same numbers in another guise."""
    yield "strided", torch.stack([x, x], -1)[..., 0]
    yield "requires grad", x.clone().requires_grad_()
