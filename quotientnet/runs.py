"""Experiments of many runs, which can be killed at any moment and go on: one line a run."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from time import process_time
from zlib import crc32

import numpy
import scipy
import torch

from quotientnet.files import write_json
from quotientnet.version import __version__

try:
    import fcntl
except ImportError:
    fcntl = None
"""None where the system has no ``flock``: nothing sees to it that a journal is open only once."""

__all__ = ["Journal"]


class Journal:
    """Runs that were carried out, one a line of a file; the others are when they are asked for.

    A run is known by its settings alone, so put everything into them that decides its result. Its
    line is written, and flushed to the disk, when it is finished: a kill at any moment loses at
    most the run in progress. What a kill leaves of a line has no end; it is cut off when the
    journal is opened again, and that run is made anew. Every line has a checksum.

    Args:
        path: The file, made with its folder if it is not there.

    Raises:
        RuntimeError: Another process has the journal open (where the system has ``flock``).
        ValueError: A line, other than an unfinished last one, is no run, or not as it was written:
            something else wrote here.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "squares.jsonl"
        >>> for call in "first", "second":
        ...     with Journal(path) as journal:
        ...         for side in (2, 3):
        ...             known = {"side": side} in journal
        ...             found = journal.run({"side": side}, lambda: {"area": side**2})
        ...             print(call, found["area"], "known" if known else "made")
        first 4 made
        first 9 made
        second 4 known
        second 9 known
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self._lines, self._asked = Path(path), {}, {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; other processes may open it."""
        self._file.close()

    def __len__(self) -> int:
        """How many runs are known."""
        return len(self._lines)

    def __contains__(self, settings: object) -> bool:
        """Whether the run of these settings is known."""
        return _key(settings) in self._lines

    def run(self, settings: Mapping, carry_out: Callable[[], Mapping]) -> dict:
        """What a run gave, by carrying it out unless it is known.

        Args:
            settings: Everything that decides the result, for JSON.
            carry_out: Makes the run; returns a mapping for JSON. NaN and infinities are kept.

        Returns:
            The result as the file has it, the same on the first call and on later ones. Tuples
            are lists, and keys are strings.

        Raises:
            TypeError: Settings or a result that JSON has no word for; the journal is as it was.
        """
        key = _key(settings)
        if key not in self._lines:
            started = process_time()
            result = dict(carry_out())
            self._append(
                key,
                {
                    "settings": dict(settings),
                    "result": result,
                    "date": _now(),
                    "seconds": round(process_time() - started, 2),
                    "versions": _versions(),
                },
            )
        self._asked[key] = None
        return self._lines[key]["result"]

    def write_results(self, path: str | os.PathLike, facts: Mapping) -> None:
        """Write what came out as JSON, with where it is from, replacing the file as a whole.

        Before the facts come the command, the date, the versions of all runs that were asked for,
        how many these were, and the seconds of the processor that they took.

        Args:
            path: The file.
            facts: The results, for JSON; numbers that are not finite become null.
        """
        lines = [self._lines[key] for key in self._asked]
        versions = [line["versions"] for line in lines]
        origin = {
            "command": _command(),
            "date": _now(),
            "versions": [v for i, v in enumerate(versions) if v not in versions[:i]],
            "runs": len(lines),
            "seconds": round(sum(line["seconds"] for line in lines), 1),
        }
        write_json(Path(path), origin | dict(facts))

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Journal: another process has {self.path} open; wait for its end, or write to "
                "another folder"
            ) from None

    def _read(self) -> None:
        """Take the lines in, and cut off what a kill left of the last one."""
        self._file.seek(0)
        whole, _, rest = self._file.read().rpartition(b"\n")
        for number, text in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                line = json.loads(_checked(text))
                self._lines[_key(line["settings"])] = line
                line["result"], line["seconds"], line["versions"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Journal: line {number} of {self.path} is no run; mend it, or move the file "
                    "away to begin anew"
                ) from error
        if rest:
            self._file.truncate(len(whole) + bool(whole))

    def _append(self, key: str, line: dict) -> None:
        """Write a line to the disk; if that fails, leave no part of it."""
        text = json.dumps(line)
        data, end = _with_checksum(text) + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise
        self._lines[key] = json.loads(text)


_CHECKSUM = b', "crc32": '
"""What stands before the checksum, the last entry of a line."""


def _with_checksum(text: str) -> bytes:
    data = text.encode()
    return data[:-1] + _CHECKSUM + b"%d}" % crc32(data)


def _checked(line: bytes) -> bytes:
    """A line without its checksum; older ones have none.

    Raises:
        ValueError: It has another.
    """
    data, found, number = line.rpartition(_CHECKSUM)
    if not found:
        return line
    data += b"}"
    if number != b"%d}" % crc32(data):
        raise ValueError("the line does not have its checksum")
    return data


def _key(settings) -> str:
    """Settings as one text, whatever the order of their names."""
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"Journal: settings must be a mapping from names, got {type(settings).__name__}"
        )
    return json.dumps(dict(settings), sort_keys=True)


def _versions() -> dict[str, str]:
    return {
        "quotientnet": __version__, "torch": torch.__version__, "numpy": numpy.__version__,
        "scipy": scipy.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _command() -> str:
    """The command line, from the folder where it was given."""
    script = Path(sys.argv[0])
    if script.is_absolute():
        here = Path.cwd()
        inside = script.is_relative_to(here)
        script = script.relative_to(here) if inside else Path(script.name)
    return shlex.join(["python", script.as_posix(), *sys.argv[1:]])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
