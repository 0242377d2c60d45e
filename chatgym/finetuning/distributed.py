"""Processes that train together: their ranks, and values that they exchange.

A launcher starts them (`chatgym.finetuning.launch`) and sets RANK and WORLD_SIZE.
"""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """Return this process's rank, from RANK."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return the number of processes, from WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Return whether this process has rank 0, the one that writes the run folder."""
    return rank() == 0


def largest(value: float) -> float:
    """Return the maximum of a number over the processes; all of them have to call it."""
    if processes() == 1:
        return value
    import torch

    found = torch.tensor(value, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return float(found)


def anywhere(here: bool) -> bool:
    """Return whether `here` is true in any process; all of them have to call it."""
    return bool(largest(float(here)))


def join() -> None:
    """Wait until all processes have called this."""
    if processes() > 1:
        import torch

        initialize()
        torch.distributed.barrier()


def initialize() -> Any:
    """Join the other processes, and return the module deepspeed; a single process needs no launcher and no port.

    Raises:
        Unavailable: DeepSpeed isn't installed.
    """
    import torch

    from chatgym.engines.deepspeed import import_deepspeed

    deepspeed = import_deepspeed()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if processes() == 1:
            store: Any = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            torch.distributed.init_process_group(backend)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
