"""Small tensors, many tests: one thread each is faster, and two runs do not fight for cores."""

import os

# Before they are loaded, and for commands that tests run.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from importlib.util import find_spec  # noqa: E402
from math import ceil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# Doctests are looked for in every module; this one needs a library that the tests do not.
collect_ignore = [] if find_spec("transformers") else ["families.py"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Single files run in this process, where they start at once; folders on every core."""
    paths = [Path(argument.split("::")[0]) for argument in config.args]
    return None if any(path.is_dir() for path in paths) else 0


def pytest_collection_modifyitems(items):
    """Marks the quick tests: of each file, the first cases of four tests that are not slow."""
    files = {}
    for item in items:
        if isinstance(item, pytest.Function) and not item.get_closest_marker("slow"):
            files.setdefault(item.path, {}).setdefault(item.originalname, item)
    for tests in files.values():
        for item in list(tests.values())[:: ceil(len(tests) / 4)]:
            item.add_marker("quick")
