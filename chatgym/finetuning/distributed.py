"""Several processes that train together: their ranks, and what they agree on.

A launcher starts them (`chatgym.finetuning.launch`) and sets RANK and WORLD_SIZE.
"""

from __future__ import annotations

import os
from typing import Any

from chatgym.errors import Unavailable


def rank() -> int:
    """Return the number of this process, as a launcher set it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return how many processes train together, as a launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Tell whether this is the process that keeps the run."""
    return rank() == 0


def largest(value: float) -> float:
    """Return the largest of a number over the processes; each has to ask."""
    if processes() == 1:
        return value
    import torch

    found = torch.tensor(value, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return float(found)


def anywhere(here: bool) -> bool:
    """Tell whether something is so in any of the processes; each has to ask."""
    return bool(largest(float(here)))


def join() -> None:
    """Wait until all processes are here; one alone goes on at once."""
    if processes() > 1:
        import torch

        initialize()
        torch.distributed.barrier()


def initialize() -> Any:
    """Import DeepSpeed, join the other processes; a process alone needs no launcher and no port."""
    import torch

    from chatgym.engines.deepspeed import import_deepspeed

    try:
        deepspeed = import_deepspeed()
    except ImportError as error:
        raise Unavailable("training needs DeepSpeed: pip install deepspeed") from error
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
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
