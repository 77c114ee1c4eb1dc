"""Whatever strangers give to a public function: a documented error, or a result without NaN.

Nothing of the user's is changed by any call. Every argument of every call in ``hostile.py`` is
replaced by every value of ``malformed.py``: a run tries a seeded part, ``HOSTILE=all`` all.
"""

import inspect
import os
import random
import signal
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from hostile import World, calls
from malformed import malformed

import quotientnet as qn

CALLS = calls()
DOCUMENTED = (TypeError, ValueError, NotImplementedError, qn.NotOnManifoldError)
LIBRARY = str(Path(qn.__file__).parent)
PART = None if os.environ.get("HOSTILE") == "all" else 6
SECONDS = 120

HAND_ON = {
    "group.act", "group.generate", "group.exponents", "group.adjoint", "layout.flatten",
    "layout.unflatten", "objective.__call__", "objective.value_and_gradient", "manifold.retr",
    "node_wise.retr", "node_wise.proju", "node_wise.vertical", "sample_slopes",
}  # fmt: skip
"""Arithmetic on entries, where a number that is NaN or too large is handed on as NaN."""


@contextmanager
def time_limit(seconds: int):
    """Fail instead of hanging."""

    def stop(*_):
        raise AssertionError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@cache
def shared_world() -> World:
    return World()


def chosen(label: str, world: World):
    """Pairs of an argument and a stand-in with its label."""
    given = CALLS[label].arguments(world)
    pairs = [
        (name, kind, other)
        for name, value in given.items()
        if name != "self_"
        for kind, other in malformed(value)
    ]
    if PART is None or len(pairs) <= PART:
        return pairs
    return random.Random(label).sample(pairs, PART)


def numbers(value, depth: int = 0):
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
            if field.name != "error":  # NaN where a measure has none
                yield from numbers(getattr(value, field.name), depth + 1)


def documentation(label: str) -> str:
    """Of the function, or of the method and its class."""
    kind, _, method = label.partition(".")
    if not method:
        return inspect.getdoc(CALLS[label].function) or ""
    owner = type(getattr(shared_world(), kind))
    return f"{inspect.getdoc(owner)}{inspect.getdoc(getattr(owner, method))}"


def outcome(label: str, world: World, name: str, other) -> str | None:
    """What is wrong with the answer, or None."""
    call = CALLS[label]
    given = call.arguments(world) | {name: other}
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call.function(**given)
    except DOCUMENTED as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        return None if last.startswith(LIBRARY) else f"another library's error: {error!r}"
    except Exception as error:
        if type(error).__name__ in documentation(label):
            return None
        return f"undocumented: {error!r}"
    if label not in HAND_ON and any(x.isnan().any() for x in numbers(result)):
        return "NaN without a word"
    return None


@pytest.mark.parametrize("label", CALLS)
def test_the_call_itself_changes_nothing(label):
    world = shared_world()
    before = world.state()
    CALLS[label].function(**CALLS[label].arguments(world))
    assert world.changes(before) == [] or label in World.WRITES


@pytest.mark.parametrize("label", CALLS)
def test_malformed_arguments_are_answered_and_change_nothing(label):
    world, wrong = shared_world(), []
    for name, kind, other in chosen(label, world):
        before = world.state()
        found = outcome(label, world, name, other)
        if found:
            wrong.append(f"{label}({name}={kind}): {found}")
        changed = world.changes(before)
        if changed and label not in World.WRITES:
            wrong.append(f"{label}({name}={kind}): changed {changed}")
        world.restore(before)
    assert not wrong, "\n".join(wrong)
