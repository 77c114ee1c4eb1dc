"""Run tests on one mutant in a process of its own.

Where the change is in the body of a function, the function that is loaded gets other code, and the
tests are collected once, for all mutants. Else the module is imported with another source.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, FunctionType

from children import OUT_OF_TIME, Job, run
from mutants import Mutant

KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
OPTIONS = (  # hypothesis is imported before pytest could rewrite its asserts
    "-q", "-s", "-n", "0", "-p", "no:cacheprovider",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip
"""Of pytest, in a process that has been warmed up."""

_MOST = 100
"""Exit statuses up to this say which test failed, unless it is one after those."""

Task = tuple[Mutant | None, list[str], float]
"""A mutant, or ``None`` for the library as it is; the tests to run on it, in order, up to the first
that fails; and seconds of the processor, after which it is ``"timeout"``, as one that is caught."""


def warm_up() -> None:
    """Import all that is large and not ours, once; children share it."""
    for name in ("torch", "geoopt", "scipy.optimize", "scipy.sparse.linalg", "hypothesis", "pytest",
                 "torch._dynamo", "torch.export", "sklearn.datasets", "torch.func"):  # fmt: skip
        __import__(name)
    import torch
    from hypothesis import Phase, settings

    torch.set_num_threads(1)
    # What fails need not be made small, nor remembered.
    settings.register_profile("mutation", database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutation")
    if any(name.split(".")[0] == "quotientnet" for name in sys.modules):
        raise RuntimeError("warm_up: quotientnet is imported already")


def judge(tasks: Iterable[Task], add: Callable[[Mutant | None, str], None], workers: int) -> None:
    """Import the library with each mutant, run its tests, and give each verdict to ``add``."""
    jobs = (
        Job(mutant, lambda m=mutant, t=tests: _imported(m, t), seconds)
        for mutant, tests, seconds in tasks
    )
    for mutant, status in run(jobs, workers):
        add(mutant, _word(status))


def judge_loaded(
    tasks: list[Task], add: Callable[[Mutant | None, str], None], workers: int
) -> None:
    """As ``judge``, for those mutants alone that a function which is loaded can take the code of.

    It imports the library, so that this process can use neither of the two afterwards.
    """
    import pytest

    files = sorted({test.split("::")[0] for _, tests, _ in tasks for test in tests})
    code = pytest.main([*OPTIONS, "-x", *files], plugins=[_Loaded(tasks, add, workers)])
    if code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"judge_loaded: pytest ended with {code}")


def _word(status: int) -> str:
    return {0: SURVIVED, OUT_OF_TIME: TIMEOUT}.get(status, KILLED)


# --- functions that are loaded


class _Loaded:
    """A pytest plugin: collects tests and runs them, for each mutant, in a process of its own."""

    def __init__(self, tasks, add, workers):
        self.tasks, self.add, self.workers = tasks, add, workers
        self.failures = Counter()

    def pytest_runtestloop(self, session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = _functions()

        def jobs():
            for mutant, tests, seconds in self.tasks:
                swaps = [] if mutant is None else _swaps(mutant, functions)
                tests = self._likely_first(mutant, [test for test in tests if test in items])
                if swaps is not None and tests:
                    chosen = [items[test] for test in tests]
                    function = lambda s=swaps, c=chosen: _swapped(s, c, session)  # noqa: E731
                    yield Job((mutant, tests), function, seconds)

        gc.freeze()
        for (mutant, tests), status in run(jobs(), self.workers):
            if mutant is not None and 0 < status <= min(len(tests), _MOST):
                self.failures[mutant.path, tests[status - 1]] += 1
            self.add(mutant, _word(status))
        return True

    def _likely_first(self, mutant: Mutant | None, tests: list[str]) -> list[str]:
        """Tests that failed on other mutants of the file are tried before the others."""
        if mutant is None:
            return tests
        return sorted(tests, key=lambda test: -self.failures[mutant.path, test])


def _swapped(swaps: list[tuple[FunctionType, CodeType]], items: list, session) -> int:
    """The exit status: which of the tests failed, counted from 1, or 0."""
    _silence()
    for function, code in swaps:
        function.__code__ = code
    for number, (item, following) in enumerate(zip(items, [*items[1:], None]), 1):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed or session.shouldstop:
            return min(number, _MOST)
    return 0


def _functions() -> dict[tuple, list[FunctionType]]:
    """Those that are loaded, by where their code is from."""
    found = defaultdict(list)
    for each in gc.get_objects():
        if type(each) is FunctionType:
            found[_origin(each.__code__)].append(each)
    return found


def _origin(code: CodeType) -> tuple:
    return os.path.realpath(code.co_filename), code.co_qualname, code.co_firstlineno


def _swaps(mutant: Mutant, functions: dict) -> list[tuple[FunctionType, CodeType]] | None:
    """Functions and their new code; None where more than bodies of functions changes."""
    path = os.path.realpath(mutant.path)
    before = compile(Path(path).read_text(), path, "exec")
    after = compile(mutant.source(), path, "exec")
    if _shape(before, bodies=False) != _shape(after, bodies=False):
        return None
    found = []
    for old, new in zip(_outermost(before), _outermost(after)):
        if _shape(old) != _shape(new):
            loaded = functions.get(_origin(old), [])
            if not loaded or old.co_freevars != new.co_freevars:
                return None
            found += [(function, new) for function in loaded]
    return found


def _outermost(code: CodeType) -> list[CodeType]:
    """Functions and methods of a module or a class, in order; not what is inside of them."""
    return [
        inner
        for each in code.co_consts
        if isinstance(each, CodeType)
        for inner in ([each] if _is_function(each) else _outermost(each))
    ]


def _is_function(code: CodeType) -> bool:
    optimized = 0x1  # inspect.CO_OPTIMIZED: modules and bodies of classes are not
    return bool(code.co_flags & optimized)


def _shape(code: CodeType, bodies: bool = True) -> tuple:
    """All of a code but its lines; without the bodies of functions if so asked."""
    inner = tuple(
        repr(each) if not isinstance(each, CodeType)
        else each.co_qualname if not bodies and _is_function(each)
        else _shape(each, bodies)
        for each in code.co_consts
    )  # fmt: skip
    return (
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable,
        inner,
    )  # fmt: skip


# --- modules that are imported


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


def _imported(mutant: Mutant | None, tests: list[str]) -> int:
    import pytest

    _silence()
    if mutant is not None:
        sys.meta_path.insert(0, Mutated(mutant))
    return int(pytest.main([*OPTIONS, "-x", *tests]))


def _silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
