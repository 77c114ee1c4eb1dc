"""Files that are replaced as a whole, so that an interrupted run leaves the previous ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

__all__ = ["plain", "write_json", "write_text"]


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
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
