"""Run tests on one mutant in a process of its own, in which only that source is another."""

from __future__ import annotations

import os
import resource
import signal
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from time import monotonic, sleep

from mutants import Mutant

KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
_OPTIONS = (  # hypothesis is imported before pytest could rewrite its asserts
    "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip


def warm_up() -> None:
    """Import all that is large and not ours, once; children share it."""
    for name in ("torch", "geoopt", "scipy.optimize", "scipy.sparse.linalg", "hypothesis", "pytest",
                 "torch._dynamo", "torch.export", "sklearn.datasets", "torch.func"):  # fmt: skip
        __import__(name)
    import torch

    torch.set_num_threads(1)
    if any(name.split(".")[0] == "quotientnet" for name in sys.modules):
        raise RuntimeError("warm_up: quotientnet is imported already")


class Mutated(MetaPathFinder, Loader):
    """Gives one module another source."""

    def __init__(self, mutant: Mutant):
        self.path, self.source = mutant.path, mutant.source()
        name = mutant.path.removesuffix(".py").replace("/", ".")
        self.name = name.removesuffix(".__init__")

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        spec = spec_from_loader(fullname, self, origin=self.path)
        spec.has_location = True
        if self.path.endswith("__init__.py"):
            spec.submodule_search_locations = [str(Path(self.path).resolve().parent)]
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = str(Path(self.path).resolve())
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)


def verdict(mutant: Mutant | None, tests: list[str], seconds: float) -> str:
    """Whether one of the tests fails on a mutant; ``None`` is the library as it is.

    Args:
        mutant: The change.
        tests: What pytest is to run, in this order, up to the first failure.
        seconds: Of the processor; when they are over the mutant is ``"timeout"``, as one that is
            caught. The clock may take eight times as long.

    Returns:
        ``"killed"``, ``"survived"`` or ``"timeout"``.
    """
    child = os.fork()
    if child == 0:
        _run(mutant, tests, seconds)
    deadline = monotonic() + 8 * seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return TIMEOUT
        sleep(0.02)
    if os.WIFSIGNALED(status):
        slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return TIMEOUT if slow else KILLED
    return SURVIVED if os.WEXITSTATUS(status) == 0 else KILLED


def _run(mutant: Mutant | None, tests: list[str], seconds: float) -> None:
    """Never returns."""
    code = 1
    try:
        import pytest

        limit = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutant is not None:
            sys.meta_path.insert(0, Mutated(mutant))
        code = pytest.main([*_OPTIONS, *tests])
    finally:
        os._exit(int(code))
