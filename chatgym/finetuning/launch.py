"""Start training processes on one machine by DeepSpeed's launcher."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from chatgym.errors import Unavailable


def launch(kind: str, folder: Path, processes: int) -> None:
    """Train the run in a folder by several processes, and wait until they end.

    On several machines start ``deepspeed --hostfile FILE --module chatgym.cli.worker KIND FOLDER`` instead.

    Args:
        kind: Kind of the run: ``"sft"``, ``"reward"`` or ``"train"``.
        folder: The run folder.
        processes: Number of processes.

    Raises:
        Unavailable: A process failed; it has printed why.
        KeyboardInterrupt: After Ctrl-C.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(processes))}).encode()).decode()
    command = [
        sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1",
        f"--master_port={_free_port()}", "--no_local_rank", "--module", "chatgym.cli.worker", kind,
        str(folder),
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    with subprocess.Popen(command, env={**threads, **os.environ}, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the processes got the signal, too, and write a checkpoint
            process.wait()
            raise
    if code:
        raise Unavailable(f"one of the {processes} processes ended with code {code}; see its message above")


def _free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
