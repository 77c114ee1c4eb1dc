"""How long each example runs, in seconds of the processor: waiting for others does not count."""

from __future__ import annotations

from pathlib import Path
from time import process_time

_started: dict[str, float] = {}


def record(gallery_conf: dict, fname: str, when: str) -> None:
    """Called by sphinx-gallery before and after an example; writes ``gallery/NAME.seconds``."""
    name = Path(fname).stem
    if when == "before":
        _started[name] = process_time()
    else:
        target = Path(gallery_conf["src_dir"], gallery_conf["gallery_dirs"])
        taken = process_time() - _started[name]
        (target / f"{name}.seconds").write_text(f"{taken:.1f}\n")
