"""The processes that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

import torch
import torch.distributed as dist

from quotientnet.processes import Processes

__all__ = ["launched"]


@contextmanager
def launched(options) -> Iterator[Processes]:
    """All processes of a run by torchrun, of which only the first prints; else this one alone.

    Args:
        options: What was typed; the device becomes each process's own.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_available():
        yield Processes(None, torch.device("cpu"))
        return
    device = torch.device("cpu")
    if options.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        options.device = str(device)
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        processes = Processes("world", device)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            silent = redirect_stdout(nowhere) if processes.rank else nullcontext()
            with silent:
                yield processes
    finally:
        if own:
            dist.destroy_process_group()
