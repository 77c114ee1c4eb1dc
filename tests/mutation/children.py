"""Functions run in processes forked from this one, a few at a time, each held to a time."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

PATIENCE = 8
"""How many times the processor's seconds the clock may take."""

OUT_OF_TIME = -1
"""The exit status of what was stopped."""


@dataclass(frozen=True)
class Job:
    """One function.

    Attributes:
        key: What to call it by.
        function: Returns the exit status, 0 to 255.
        seconds: Of the processor that it may take.
    """

    key: Any
    function: Callable[[], int]
    seconds: float


def run(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Any, int]]:
    """Keys with exit statuses, as they end; a crash has that of the signal plus 128."""
    running, waiting = {}, iter(jobs)
    while True:
        while len(running) < workers and (job := next(waiting, None)):
            running[_started(job)] = job, monotonic() + PATIENCE * job.seconds
        if not running:
            return
        for child, (job, deadline) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del running[child]
                yield job.key, _exit_status(status)
            elif monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        sleep(0.01)


def _exit_status(status: int) -> int:
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    return OUT_OF_TIME if number in (signal.SIGXCPU, signal.SIGKILL) else 128 + number


def _started(job: Job) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        limit = int(job.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        code = job.function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(int(code))
