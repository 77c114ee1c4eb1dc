"""What is wrong with the answer to a malformed argument, if anything."""

from __future__ import annotations

import copy
import inspect
import random
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import torch
from hostile import Call, World, calls
from malformed import malformed, same
from torch import nn

import quotientnet as qn

CALLS = calls()
DOCUMENTED = (TypeError, ValueError, NotImplementedError, qn.NotOnManifoldError)
LIBRARY = str(Path(qn.__file__).parent)

HAND_ON = {
    "group.act", "group.generate", "group.exponents", "group.adjoint", "layout.flatten",
    "layout.unflatten", "layout.substitutes", "objective.__call__", "objective.value_and_gradient",
    "manifold.retr", "node_wise.retr", "node_wise.proju", "node_wise.vertical", "balanced.proju",
    "balanced.egrad2rgrad", "balanced.transp", "sample_slopes",
}  # fmt: skip
"""Arithmetic on entries, where a number that is NaN or too large is handed on as NaN."""


MAY_BE_NAN = "error", "violation", "slope", "losses"
"""Fields that say so: no error is known, a law does not hold, a loss that is none on a line."""

ON_THE_WAY = {
    "train", "training.SGDS", "training.SAM", "training.ASAM", "training.EntropySGD",
    "check_equivariant_training",
}  # fmt: skip
"""Calls that run the user's own module and loss, and hand their exceptions on."""


class TooLong(BaseException):
    """A call is still running; no ``except Exception`` on the way takes it for its own."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Interrupt instead of hanging."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@cache
def shared_world() -> World:
    """One for all calls: none may change it."""
    return World()


def chosen(label: str, part: int | None) -> list[tuple[str, str, object]]:
    """An argument, a stand-in's label, the stand-in: a seeded part of all, or all."""
    given = CALLS[label].arguments(shared_world())
    found = [
        (name, kind, other)
        for name, value in given.items()
        if name != "self_"
        for kind, other in (*malformed(value), *_guises(value))
    ]
    return found if part is None else random.Random(label).sample(found, min(part, len(found)))


def _guises(value) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim:
        yield from same(value)


def fault(label: str, name: str, other, seconds: int) -> str | None:
    """What is wrong with the answer, or None."""
    world = shared_world()
    call, before = CALLS[label], world.state()
    given = call.arguments(world) | {name: other}
    passed = _held(given)
    try:
        found, raised = _answer(label, call, given, seconds)
    finally:
        changed = [] if label in World.WRITES else world.changes(before)
        world.restore(before)
    if found:
        return found
    if changed:
        return f"changed {changed}"
    if raised and label not in World.WRITES and not _equal(passed, _held(given)):
        return "an argument is not as it was before the exception"
    return None


def _answer(label: str, call: Call, given: dict, seconds: int) -> tuple[str | None, bool]:
    """What is wrong, and whether an exception was raised."""
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call.function(**given)
    except TooLong:
        return f"still running after {seconds} s", True
    except Exception as error:
        return _judged(label, error), True
    if label not in HAND_ON and any(x.isnan().any() for x in numbers(result)):
        return "NaN without a word", False
    return None, False


def _judged(label: str, error: Exception) -> str | None:
    """What is wrong with an exception."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = max((n for n, name in enumerate(frames) if name.startswith(LIBRARY)), default=0)
    theirs = (str(Path(__file__).parent), str(Path(nn.__file__).parent))
    if label in ON_THE_WAY and any(name.startswith(theirs) for name in frames[inside + 1 :]):
        return None
    if not (isinstance(error, DOCUMENTED) or type(error).__name__ in documentation(label)):
        return f"undocumented: {error!r}"
    return None if frames[-1].startswith(LIBRARY) else f"another library's error: {error!r}"


def _held(value, depth: int = 0):
    """Copies of the tensors in arguments, and the modes of modules."""
    if isinstance(value, torch.Tensor):
        facts = [value.requires_grad, value.dtype, value.layout]
        return facts if value.is_meta or nn.parameter.is_lazy(value) else [*facts, _bits(value)]
    if isinstance(value, nn.Module):
        return [value.training, _held(dict(value.named_parameters()), depth),
                _held(dict(value.named_buffers()), depth)]  # fmt: skip
    if isinstance(value, torch.optim.Optimizer):
        return _held(copy.copy(value.state_dict()), depth)
    if isinstance(value, dict) and depth < 3:
        return {key: _held(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and depth < 3:
        return [_held(each, depth + 1) for each in value]
    return None


def _bits(x: torch.Tensor) -> torch.Tensor:
    """Its bytes, of which NaN are equal to themselves."""
    return torch.cat([x.detach().to_dense().resolve_conj().reshape(-1)]).view(torch.uint8)


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def numbers(value, depth: int = 0) -> Iterator[torch.Tensor]:
    """All tensors and floats of a result."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and not value.is_meta and not value.is_sparse:
            yield value.detach()
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif isinstance(value, (list, tuple)) and depth < 3:
        for part in value:
            yield from numbers(part, depth + 1)
    elif is_dataclass(value) and depth < 3:
        for field in fields(value):
            if field.name not in MAY_BE_NAN:
                yield from numbers(getattr(value, field.name), depth + 1)


def documentation(label: str) -> str:
    """Of the function, or of the method and its class."""
    kind, _, method = label.partition(".")
    if not method:
        return inspect.getdoc(CALLS[label].function) or ""
    if kind == "training":
        owner = getattr(qn.training, method)
        return f"{inspect.getdoc(owner)}{inspect.getdoc(owner.step)}"
    owner = type(getattr(shared_world(), kind))
    owner = qn.ProductOblique if method.startswith("ProductOblique") else owner
    return f"{inspect.getdoc(owner)}{inspect.getdoc(getattr(owner, method.split('.')[-1]))}"
