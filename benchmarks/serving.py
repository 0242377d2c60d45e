"""Compare eight processes that share one server with eight that load a model each: ``python benchmarks/serving.py``.

Each process holds conversations with an empty wording cache of its own, so it asks the model for everything that the
partner says: sixteen wordings at once if the model words the partner (``--simulator agenda``), one reply for each
conversation if it plays the partner (``--simulator llm``). Both set-ups run one after the other. Compare the ratios of
their times (from the start of the processes, loading included) and of their memory (proportional set size: memory that
processes share is counted once).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from chatgym.storage import model_store

SAMPLED_EVERY = 0.2  # seconds
PART = """
import sys
import numpy as np
from chatgym.scenarios import fill
from chatgym.envs.vector_env import ChatVectorEnv
llm, simulator, scenario, rows, turns, seed = *sys.argv[1:4], *map(int, sys.argv[4:])
envs = ChatVectorEnv(
    rows, scenario=scenario, llm=llm, simulator=simulator, action="text", observation="text", reward_model=None
)
envs.reset(seed=seed)
known = envs.scenario
says = [fill(texts[0], known.examples) for texts in known.sentences["agent"].values()]
draws = np.random.default_rng(seed)
for _ in range(turns):
    envs.step(draws.choice(says, rows).tolist())
"""


def memory(processes: list[subprocess.Popen[str]]) -> int:
    """Bytes that the processes hold together."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
        total += 1024 * int(found[1]) if found else 0
    return total


def serve(llm: str, *options: str, **environment: str) -> tuple[subprocess.Popen[str], str, str]:
    """Start a server; return its process, its URL and its model's name."""
    command = [sys.executable, "-c", "from chatgym.cli import main; main()", "serve", "--llm", llm, "--port", "0"]
    process = subprocess.Popen([*command, *options], env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = re.search(r"Serving (\S+) at (\S+)", process.stdout.readline())
    assert said, "the server didn't start"
    return process, said[2], said[1]


def own_cache(folder: Path, threads: int = 1) -> dict[str, str]:
    """Return the environment of a process with a words' cache of its own, whose models are those already here."""
    folder.mkdir()
    (folder / "models").symlink_to(model_store.cache_root() / "models")
    return {"CHATGYM_CACHE": str(folder), "OMP_NUM_THREADS": str(threads)}


def measure(options: argparse.Namespace, folder: Path, shared: bool) -> tuple[float, int]:
    """Return seconds and most bytes."""
    begun, peak, over = time.monotonic(), 0, threading.Event()
    processes, llm = [], options.llm
    folder.mkdir()

    def watch() -> None:
        nonlocal peak
        while not over.wait(SAMPLED_EVERY):
            peak = max(peak, memory(list(processes)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        if shared:
            server, url, name = serve(llm, "--queue", "10000", **own_cache(folder / "server", os.cpu_count() or 1))
            processes.append(server)
            llm = f"openai:{url}#{name}"
        for i in range(options.processes):
            numbers = map(str, (options.rows, options.turns, 100 * i))
            part = [sys.executable, "-c", PART, llm, options.simulator, options.scenario, *numbers]
            environment = os.environ | own_cache(folder / str(i))
            processes.append(subprocess.Popen(part, env=environment, stdout=subprocess.PIPE, text=True))
        failed = [process.wait() for process in processes[1 if shared else 0 :]]
        assert not any(failed), f"exit codes: {failed}"
        return time.monotonic() - begun, peak
    finally:
        over.set()
        watcher.join()
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--scenario", default="social")
    parser.add_argument("--simulator", choices=("agenda", "llm"), default="agenda")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4, help="conversations of a process")
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    for model in ("smollm2-135m", "all-minilm-l6-v2"):
        model_store.path(model)
    with tempfile.TemporaryDirectory() as folder:
        each = measure(options, Path(folder) / "each", shared=False)
        one = measure(options, Path(folder) / "one", shared=True)
    sizes = f"{options.processes} processes x {options.rows} conversations x {options.turns} turns"
    print(f"{sizes} of {options.scenario}, {options.simulator}")
    print(f"a model each: {each[0]:6.1f} s, {each[1] / 1e6:7,.0f} MB")
    print(f"one server:   {one[0]:6.1f} s, {one[1] / 1e6:7,.0f} MB")
    print(f"ratio: {each[0] / one[0]:.2f} x the time, {each[1] / one[1]:.2f} x the memory")


if __name__ == "__main__":
    main()
