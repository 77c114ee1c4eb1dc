"""A progress bar for loops that take long, on a terminal, where tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable

__all__ = ["progress"]


def progress(items: Iterable | int, what: str, *, delay: float = 2.0) -> Iterable:
    """The items themselves, with a bar once they have taken long.

    Args:
        items: What to go through, or how many integers from 0.
        what: The bar's label.
        delay: Seconds of silence before the bar appears.

    Returns:
        An iterable of the items, with a bar where stderr is a terminal and tqdm is installed, else
        the items as they are.

    Example:
        >>> [i for i in progress(3, "counting")]
        [0, 1, 2]
    """
    items = range(items) if isinstance(items, int) else items
    if sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, delay=delay, leave=False)
