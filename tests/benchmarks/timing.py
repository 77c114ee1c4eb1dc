"""Ratios in one run: every operation timed in turn with its unit, medians compared."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch


@dataclass(frozen=True)
class Measurement:
    """One line of a benchmark's table.

    Attributes:
        task: What was done, on what.
        unit: What its time is divided by.
        ratio: The median time over the unit's.
        target: The largest ratio the issue allows, if it names one.
        milliseconds: The median time.
        operations: Multiply-adds in those of the unit, where they are counted.
        mebibytes: Extra memory at the peak, where it is measured.
    """

    task: str
    unit: str
    ratio: float
    target: float | None
    milliseconds: float
    operations: float | None = None
    mebibytes: float | None = None


def ratios(
    unit, tasks: dict, *, name: str, rounds: int = 15, clock=perf_counter
) -> list[Measurement]:
    """Time each task against the unit, interleaved so that drifts of the machine cancel.

    Args:
        unit: The function whose time is 1.
        tasks: Functions and targets, by what they do.
        name: The unit's name.
        rounds: Repetitions; medians are reported.
        clock: Seconds; ``time.process_time`` where others use the machine's cores, too.
    """
    seconds = {key: [] for key in tasks}
    units = []
    for function in (unit, *(function for function, _ in tasks.values())):
        function()
    for _ in range(rounds):
        units.append(_seconds(unit, clock))
        for key, (function, _) in tasks.items():
            seconds[key].append(_seconds(function, clock))
    base = median(units)
    return [
        Measurement(key, name, median(times) / base, tasks[key][1], 1e3 * median(times))
        for key, times in seconds.items()
    ]


def _seconds(function, clock) -> float:
    """One call's seconds, after a call that warms caches up."""
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_of(script: str, *arguments: str) -> float:
    """What ``script --peak arguments`` prints in a process of its own: extra memory in MiB."""
    command = [sys.executable, script, "--peak", *arguments]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def extra_peak(task) -> float:
    """How far this process's memory rises during a task, in MiB."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    task()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def report(name: str, measurements: list[Measurement], folder: Path) -> None:
    """Print the table and write it as JSON beside the machine's description."""
    width = max(len(m.task) for m in measurements)
    unit = measurements[0].unit
    print(
        f"{'task':{width}}  ratio  target       ms  operations    MiB  (unit: {unit})"
    )
    for m in measurements:
        target, operations, mebibytes = (
            "" if value is None else f"{value:.2f}"
            for value in (m.target, m.operations, m.mebibytes)
        )
        verdict = "" if not m.target else "met" if m.ratio <= m.target else "MISSED"
        print(
            f"{m.task:{width}}  {m.ratio:5.2f}  {target:>6}  {m.milliseconds:7.1f}  "
            f"{operations:>10} {mebibytes:>6}  {verdict}"
        )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    facts = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "measurements": [asdict(m) for m in measurements],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"peak memory {facts['peak_mebibytes']} MiB; wrote {path}")
