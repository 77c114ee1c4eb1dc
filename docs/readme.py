"""The two commands of the README, which is their one place."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def write() -> None:
    """Write each into a file to include."""
    text = (FOLDER.parent / "README.md").read_text()
    for name, command in zip(
        ("first", "second"), re.findall(r"^\$ .*$", text, re.MULTILINE), strict=True
    ):
        command = command.replace(" && ", " && \\\n       ")
        block = f".. code-block:: console\n\n   {command}\n"
        (FOLDER / "_generated" / f"{name}_command.rst").write_text(block)
