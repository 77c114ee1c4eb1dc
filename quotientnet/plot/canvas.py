"""Figures in one style: colours that everyone can tell apart, markers beside colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["COLOURS", "MARKERS", "STYLES", "new_figure", "require_named", "require_results"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, without its yellow."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLES = ("-", "--", "-.", ":")


def new_figure(caller: str, width: float, height: float):
    """An empty matplotlib figure, its size in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller} needs matplotlib: pip install quotientnet[plot]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def require_named(caller: str, parameter: str, named) -> None:
    """Refuse what is no mapping from names, or is empty.

    Raises:
        TypeError: It is no mapping.
        ValueError: It has nothing to draw.
    """
    if not isinstance(named, Mapping):
        raise TypeError(
            f"{caller}: {parameter} must be a mapping from names, got {type(named).__name__}; "
            f"pass {{'name': ...}}"
        )
    if not named:
        raise ValueError(f"{caller}: {parameter} is empty; there is nothing to draw")


def require_results(caller: str, parameter: str, found: Iterable, maker: str, *names: str) -> None:
    """Refuse what lacks the attributes of the results that are drawn.

    Raises:
        TypeError: It is something else; says which function makes it.
    """
    for each in found:
        if not all(hasattr(each, name) for name in names):
            raise TypeError(
                f"{caller}: {parameter} must be what {maker} returned, got {type(each).__name__}"
            )
