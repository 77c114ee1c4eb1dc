"""Files that a command writes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from quotientnet.commands.refusal import Refusal
from quotientnet.files import replaced, write_text

__all__ = ["require_folder", "write_figure", "can_draw"]


def require_folder(folder: Path) -> None:
    """Make the folder of the results, and see that it can be written to, before any work is done.

    Raises:
        Refusal: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise Refusal(f"--output {folder}: {error.strerror}") from error


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_figure(path: Path, figure) -> None:
    """Replace the picture as a whole."""
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:])
