"""What calls refuse as numbers, seeds, modules and tensors: one wording for all."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real

import torch
from torch import Tensor, nn

__all__ = [
    "grown", "require_count", "require_kind", "require_module", "require_number", "require_seed",
    "require_values", "seeded",
]  # fmt: skip


def require_number(
    value: float,
    caller: str,
    name: str,
    *,
    least: float = 0.0,
    most: float = inf,
    strict: bool = False,
    below: float = inf,
) -> float:
    """A finite number from ``least`` to ``most``, and less than ``below``.

    Args:
        value: What was given.
        caller: Who is to be named in errors.
        name: Of the option.
        least: The smallest that is allowed, or the largest that is not.
        most: The largest that is allowed.
        strict: Whether ``least`` itself is refused.
        below: The smallest that is not allowed.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{caller}: {name} must be a number, got {type(value).__name__}"
        )
    if not (least <= value <= most and value < below) or (strict and value == least):
        range_ = f"above {least:g}" if strict else f"at least {least:g}"
        upper = f"at most {most:g}" if most < inf else f"below {below:g}"
        upper = "finite" if most == below == inf else upper
        raise ValueError(f"{caller}: {name} must be {range_} and {upper}, got {value}")
    return float(value)


def require_count(
    value: int, caller: str, name: str, least: int = 1, most: float = inf
) -> int:
    """An integer from ``least`` to ``most``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}")
    if not least <= value <= most:
        upper = "" if most == inf else f" and at most {most}"
        raise ValueError(
            f"{caller}: {name} must be an integer of at least {least}{upper}, got {value}"
        )
    return int(value)


def grown(value: float, growth: float, times: int, caller: str, name: str) -> float:
    """``value * growth**times``.

    Raises:
        ValueError: It is beyond all numbers.
    """
    try:
        return value * growth**times
    except OverflowError:
        raise ValueError(
            f"{caller}: {name} has grown {times} times by {growth}, beyond all numbers; let it "
            "grow less, or less often"
        ) from None


def seeded(seed: int, caller: str) -> torch.Generator:
    """A generator on the host.

    Raises:
        TypeError: ``seed`` is no integer.
        ValueError: It is negative, or beyond 64 bits.
    """
    return torch.Generator().manual_seed(require_seed(seed, caller))


def require_seed(seed: int, caller: str) -> int:
    """An integer of 64 bits.

    Raises:
        TypeError: It is no integer.
        ValueError: It is negative, or beyond 64 bits.
    """
    return require_count(seed, caller, "seed", least=0, most=2**64 - 1)


def require_kind(value, kind: type, caller: str, name: str, remedy: str = ""):
    """An object of a type.

    Raises:
        TypeError: It is of another type; says what makes one, if a remedy is given.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{caller}: {name} must be of type {kind.__name__}, got {type(value).__name__}"
            f"{f'; {remedy}' if remedy else ''}"
        )
    return value


def require_module(value, caller: str, name: str = "module") -> nn.Module:
    """A module.

    Raises:
        TypeError: It is none; says how to make one of a class.
    """
    if not isinstance(value, nn.Module):
        called = isinstance(value, type) and issubclass(value, nn.Module)
        remedy = f"; pass {value.__name__}(...), not the class" if called else ""
        raise TypeError(
            f"{caller}: {name} must be a torch.nn.Module, got {type(value).__name__}{remedy}"
        )
    return value


def require_values(value, caller: str, name: str, ndim: int | None = None) -> Tensor:
    """A dense tensor of finite float32 or float64 numbers.

    Args:
        value: What was given.
        caller: Who is to be named in errors.
        name: Of the argument.
        ndim: The number of axes; None for any.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has no values, or NaN or infinite ones; another dtype or number of axes.
    """
    require_kind(value, Tensor, caller, name)
    kinds = torch.float32, torch.float64
    if value.is_meta or value.layout != torch.strided or value.dtype not in kinds:
        raise ValueError(
            f"{caller}: {name} must be a dense tensor of float32 or float64 with values, got "
            f"{value.dtype} of layout {value.layout} on {value.device}"
        )
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{caller}: {name} needs {ndim} axes, got shape {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{caller}: {name} has NaN or infinite entries")
    return value
