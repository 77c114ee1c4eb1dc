"""Which tests run which lines, and how long each test takes."""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time

import pytest


class Recorder:
    """A pytest plugin: one coverage context and the processor's seconds for each test."""

    def __init__(self, coverage):
        self.coverage, self.seconds, self.failed = coverage, {}, []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = process_time()
        result = yield
        self.seconds[item.nodeid] = process_time() - start
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


def record(files: list[str], arguments: list[str], target: Path) -> None:
    """Run tests once and write, for each line of each file, the tests that run it.

    Args:
        files: Sources to watch, relative to the repository.
        arguments: Of pytest: which tests.
        target: The JSON to write: ``seconds`` by test, ``lines`` by file and line, and ``failed``.
    """
    from coverage import Coverage

    coverage = Coverage(include=files, data_file=None)
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main(["-p", "no:cacheprovider", "-q", *arguments], plugins=[recorder])
    coverage.stop()
    data, lines = coverage.get_data(), {}
    for file in files:
        contexts = data.contexts_by_lineno(str(Path(file).resolve()))
        lines[file] = {line: sorted(filter(None, c)) for line, c in contexts.items()}
    found = {
        "seconds": recorder.seconds,
        "lines": lines,
        "failed": sorted(set(recorder.failed)),
    }
    target.write_text(json.dumps(found))
