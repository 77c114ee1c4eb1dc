"""Small tensors, many tests: one thread each is faster, and two runs do not fight for cores."""

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # before they are loaded, and in commands run by tests
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from importlib.util import find_spec  # noqa: E402
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
    """Quick tests: the first case of every test that is not slow, and no doctest."""
    seen = set()
    for item in items:
        name = item.nodeid.split("[")[0]
        first = name not in seen
        seen.add(name)
        if first and isinstance(item, pytest.Function) and not item.get_closest_marker("slow"):
            item.add_marker("quick")
