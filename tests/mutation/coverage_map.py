"""Which tests run which lines, how long each test takes, and which lines no test runs."""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time

import pytest
from children import Job, run
from judge import OPTIONS


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


def record(tests: list[str], folder: Path, workers: int) -> None:
    """Run files of tests once, each in a process of its own; those that are recorded are not run.

    Args:
        tests: Paths of files or folders, as pytest takes them.
        folder: Gets two files for each: coverage's own, and ``seconds`` by test with ``failed``.
        workers: How many run at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = (
        Job(test, lambda t=test: _record(t, folder), seconds=7200.0)
        for test in tests
        if not _facts(folder, test).exists()
    )
    for test, status in run(jobs, workers):
        if status:
            raise RuntimeError(f"record: {test} was not recorded")
        print(f"recorded {test}", flush=True)


def _record(test: str, folder: Path) -> int:
    from coverage import Coverage

    data = _facts(folder, test).with_suffix(".coverage")
    data.unlink(missing_ok=True)
    coverage = Coverage(source=["quotientnet"], data_file=str(data), branch=True)
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main([*OPTIONS, test], plugins=[recorder])
    coverage.stop()
    coverage.save()
    found = {"seconds": recorder.seconds, "failed": sorted(set(recorder.failed))}
    _facts(folder, test).write_text(json.dumps(found))
    return 0


def _facts(folder: Path, test: str) -> Path:
    return folder / (test.replace("/", "-").removesuffix(".py") + ".json")


def known(tests: list[str], folder: Path, files: list[str]) -> dict:
    """What was recorded.

    Returns:
        ``seconds`` by test, ``failed`` tests, and for each file and line the tests that run it in
        ``lines``; a line that runs at import has the test ``""`` among them.
    """
    found = {"seconds": {}, "failed": set(), "lines": {file: {} for file in files}}
    for test in tests:
        facts = json.loads(_facts(folder, test).read_text())
        found["seconds"] |= facts["seconds"]
        found["failed"] |= set(facts["failed"])
        data = _data(folder, test)
        for file in files:
            lines = found["lines"][file]
            for line, contexts in data.contexts_by_lineno(str(Path(file).resolve())).items():
                lines.setdefault(line, set()).update(contexts)
    return found


def _data(folder: Path, test: str):
    from coverage import CoverageData

    data = CoverageData(str(_facts(folder, test).with_suffix(".coverage")))
    data.read()
    return data


def covered(tests: list[str], folder: Path) -> dict:
    """Shares of lines and of branches that the tests run, and what each file lacks."""
    from coverage import Coverage

    whole = Coverage(source=["quotientnet"], data_file=str(folder / "whole.coverage"), branch=True)
    whole.erase()
    parts = [str(_facts(folder, test).with_suffix(".coverage")) for test in tests]
    whole.combine(parts, keep=True)
    target = folder / "whole.json"
    whole.json_report(outfile=str(target))
    found = json.loads(target.read_text())
    totals = found["totals"]
    return {
        "lines": totals["num_statements"],
        "missing_lines": totals["missing_lines"],
        "branches": totals["num_branches"],
        "missing_branches": totals["missing_branches"],
        "missing": {f: v["missing_lines"] for f, v in found["files"].items() if v["missing_lines"]},
    }
