"""Numbers that are the same for every split of the data, and the same bits every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from hashlib import sha256
from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quotientnet.estimate import Estimate
from quotientnet.group import as_group
from quotientnet.objective import Objective
from quotientnet.point import Point, require_point
from quotientnet.sharpness.catalogue import as_measures
from quotientnet.testing.laws import Verdict
from quotientnet.testing.precision import tensors, value_of

__all__ = ["check_batches", "check_repeatable", "fingerprint"]

TIMES = {"seconds", "gradients", "gradient_seconds"}
"""Fields that are times, of which no two are the same."""


def check_batches(
    point: Point, group=None, *, measures: Iterable | None = (), seed: int = 0
) -> Verdict:
    """Whether loss, derivatives and measures are the same for every split of the data.

    Each batch is split unevenly, and into single samples. Batch normalisation in train mode
    couples the samples of a batch: such a loss depends on the split, and does not hold.

    Args:
        point: A point whose batches have the samples on the first axis of all their tensors.
        group: As in :func:`precision`.
        measures: As in :func:`precision`.
        seed: Of everything random.

    Returns:
        The verdict on the worst of the loss, gradient, a product with the Hessian, and measures,
        relative to 64 ``eps √n`` of its size, for errors that are stated besides.

    Raises:
        TypeError: ``point`` is none.
    """
    require_point(point, "check_batches")
    unit = 64 * torch.finfo(point.w.dtype).eps * sqrt(point.layout.parameter_size)
    kinds = list(tensors(None, seed))
    chosen = as_measures(measures) if measures is None or list(measures) else ()
    worst, case, tried = 0.0, "", 0
    for way, sizes in (("uneven batches", _uneven), ("single samples", lambda n: [1] * n)):
        own = point.objective
        data = [part for batch in own.data for part in _split(point, batch, sizes)]
        kept = {"target_key": own.target_key, "layout": own.layout}
        parts = Objective(own.model, own.loss, data, **kept).at(point.w)
        gaps = {name: _gap(f(point), f(parts)) / unit for _, name, f in kinds}
        for measure in chosen:
            a, b = (value_of(measure, p, as_group(group, "check_batches"), seed)
                    for p in (point, parts))
            if a is not None:
                gaps[measure.label] = inf if b is None else _estimates(a, b) / unit
        tried += len(gaps)
        name = max(gaps, key=lambda name: inf if gaps[name] != gaps[name] else gaps[name])
        if not gaps[name] <= worst:
            worst, case = gaps[name], f"{name}, {way}"
    return Verdict("splits_of_the_data_change_nothing", worst, 1.0, seed, case, tried=tried)


def _uneven(count: int) -> list[int]:
    """Parts of about two fifths and a rest."""
    size = max(1, (2 * count) // 5)
    return [size] * (count // size) + [count % size] * bool(count % size)


def _split(point: Point, batch, sizes: Callable) -> list:
    """The parts of a batch along the first axes of its tensors."""
    count = len(pytree.tree_leaves(point.objective._read(batch, point.w)[-1])[0])
    parts, start = [], 0
    for size in sizes(count):
        chosen = slice(start, start + size)
        parts.append(pytree.tree_map_only(Tensor, lambda t, at=chosen: t[at], batch))
        start += size
    return parts


def _gap(a: Tensor, b: Tensor) -> float:
    size = float(a.double().norm())
    return float((a.double() - b.double()).norm()) / (size or 1.0)


def _estimates(a: Estimate, b: Estimate) -> float:
    """The relative difference beyond what errors explain, per size of the layers' parts."""
    size = max(abs(a.value), sum(abs(part.value) for part in a.layers.values()))
    return max(abs(a.value - b.value) - a.error - b.error, 0.0) / (size or 1.0)


def check_repeatable(function: Callable[[], object]) -> Verdict:
    """Whether a function returns the same bits twice, and leaves global random states alone.

    Args:
        function: Without arguments; what it returns may be made of tensors, arrays, numbers,
            containers and dataclasses. Times (``seconds``) are not compared.

    Returns:
        The verdict; the violation is 0 or infinite.

    Example:
        >>> import torch
        >>> from quotientnet.testing import check_repeatable
        >>> check_repeatable(lambda: torch.randn(3)).reason
        'the results differ, and so do the global random states before and after'
    """
    before = _states()
    results = [fingerprint(function()) for _ in range(2)]
    moved = before != _states()
    reasons = ["the results differ"] * (results[0] != results[1])
    if moved:
        reasons.append("so do the global random states before and after"
                       if reasons else "the global random states differ before and after")
    violation = inf if reasons else 0.0
    return Verdict("twice_the_same_bits", violation, 0.0, 0, reason=", and ".join(reasons))


def fingerprint(result) -> str:
    """A digest of every bit of a result, the same in every process; times are left out."""
    return sha256("\n".join(_words(result)).encode()).hexdigest()


def _words(value) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}"
        yield value.detach().cpu().double().numpy().tobytes().hex()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    elif isinstance(value, float):
        yield value.hex()
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            if each.name not in TIMES:
                yield each.name
                yield from _words(getattr(value, each.name))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _words(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _words(each)
    elif value is None or isinstance(value, (str, int, bool)):
        yield repr(value)
    else:
        raise TypeError(f"fingerprint: cannot compare a {type(value).__name__}")


def _states() -> str:
    """Of the global random generators."""
    numpy_state = np.random.get_state(legacy=False)["state"]["key"]
    states = [torch.get_rng_state(), numpy_state, repr(random.getstate())]
    return fingerprint(states)
