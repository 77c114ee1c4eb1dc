"""Whose name an error bears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["errors_of"]


@contextmanager
def errors_of(caller: str) -> Iterator[None]:
    """Errors of the derivation that ``caller`` starts name ``caller``, not ``discover``."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("discover:"):
            raise
        text = str(error).replace("discover:", f"{caller}:", 1)
        raise ValueError(text) from error.__cause__
