"""Files that are replaced as a whole, so that an interrupted run leaves the previous ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

__all__ = ["plain", "replaced", "write_json", "write_text"]


def plain(value):
    """Mappings, lists and numbers for JSON, which knows no number that is not finite: null."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write_json(path: Path, facts) -> None:
    """Replace the file by facts as JSON; what is not finite is null.

    Raises:
        TypeError: Something that JSON has no word for, such as a tensor; the file is as it was.
    """
    text = json.dumps(plain(facts), ensure_ascii=False, allow_nan=False, indent=1)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Replace the file by a text and the end of its last line."""
    with replaced(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside another, for the block to write, which then takes the other's place.

    It is on the disk before it does. After any exception, as of a full disk, the other file is as
    it was, and there is none beside it; a kill may leave one, which the next write replaces.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
