"""Compare the speed of two checkouts: ``python benchmarks/checkouts.py OLD NEW``, each a folder of the repository.

One process for each checkout does the same slices of work in turn, so that a machine whose speed drifts favours none.
A figure is the median of the ratios of the new checkout's time to that of the old one just before: 1.05 is 5 % slower.
``git worktree add ../before COMMIT`` makes a checkout of another commit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

HELD_OUT = Path(__file__).parent / "heldout"
SLICES = ("find_slots", "NLU", "acts, 1,024 rows", "text, 16 rows", "server, 8 chats", "transcripts, 20")
MODEL = "smollm2-135m"
CHAT = [{"role": "system", "content": "You listen."}, {"role": "user", "content": "I can't sleep before exams."}]


def utterances(scenario: str) -> list[str]:
    """Return what people typed to the partner's and the agent's NLU."""
    held_out = json.loads((HELD_OUT / f"{scenario}.json").read_text(encoding="utf-8"))
    texts = [held_out[role][label] for role in ("partner", "agent") for label in held_out[role]]
    return [text if isinstance(text, str) else text["text"] for text in itertools.chain.from_iterable(texts)]


def find_slots(scenario: str) -> Callable[[], object]:
    from chatgym.scenarios import find_scenario

    found, texts = find_scenario(scenario), utterances(scenario)
    return lambda: [found.find_slots(text) for text in texts * 5]


def understand(scenario: str) -> Callable[[], object]:
    from chatgym.scenarios import find_scenario
    from chatgym.words.nlu import nlu_of

    nlu, texts, numbers = nlu_of(find_scenario(scenario)), utterances(scenario), itertools.count()
    draws = np.random.default_rng(0)

    def new() -> list[str]:  # the encoder keeps the vectors of what it saw
        words = f" {'ab'[next(numbers) % 2]}" + "".join(map(chr, draws.integers(97, 123, 6)))
        return [text + words for text in draws.choice(texts, 64)]

    return lambda: nlu.understand(new())


def acts(scenario: str) -> Callable[[], object]:
    from chatgym.envs.vector_env import ChatVectorEnv

    envs = ChatVectorEnv(1024, scenario=scenario, observation="discrete", llm="template")
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, envs.single_action_space.n - 1, (500, 1024))
    return lambda: [envs.step(one) for one in actions]


def text(scenario: str) -> Callable[[], object]:
    from chatgym.envs.vector_env import ChatVectorEnv
    from chatgym.scenarios import fill, find_scenario

    envs = ChatVectorEnv(16, scenario=scenario, action="text", observation="text", llm="template")
    envs.reset(seed=0)
    found, draws = find_scenario(scenario), np.random.default_rng(0)
    says = [fill(texts[0], found.examples) for texts in found.sentences["agent"].values()]
    return lambda: [envs.step(draws.choice(says, 16).tolist()) for _ in range(40)]


def server(scenario: str) -> Callable[[], object]:
    import httpx

    command = [sys.executable, "-c", "from chatgym.cli import main; main()", "serve", "--llm", MODEL, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = re.search(r"at (http\S+)", process.stdout.readline())
    client, pool = httpx.Client(timeout=120), ThreadPoolExecutor(8)

    def ask(seed: int) -> None:
        body = {"model": MODEL, "messages": CHAT, "seed": seed, "max_tokens": 16}
        client.post(f"{said[1].rstrip('/')}/chat/completions", json=body).raise_for_status()

    return lambda: list(pool.map(ask, range(8)))


def transcripts(scenario: str) -> Callable[[], object]:
    from chatgym_agents.scripted import Expert

    from chatgym.envs.task import Task
    from chatgym.evaluation.rollouts import converse

    task = Task(scenario)
    expert, env = Expert(task.find_scenario()), task.make_env(Expert.requires, llm="smollm2-135m-partner")
    return lambda: [converse(expert, env, seed) for seed in range(20)]


def work(scenario: str) -> None:
    """Do the slices that are named on standard input, and write how long each takes."""
    made = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            makers = (find_slots, understand, acts, text, server, transcripts)
            made[name] = dict(zip(SLICES, makers, strict=True))[name](scenario)
            made[name]()
        begun = time.perf_counter()
        made[name]()
        print(time.perf_counter() - begun, flush=True)


class Checkout:
    """A process that works with the code of a checkout."""

    def __init__(self, root: Path, scenario: str, folder: Path) -> None:
        """Start it; `folder` is a new one that it may use."""
        folder.mkdir()
        (folder / "chatgym_agents").symlink_to(root.resolve() / "agents")
        paths = os.pathsep.join((str(root.resolve()), str(folder)))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", "--scenario", scenario], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip

    def seconds(self, name: str) -> float:
        """Let it do a slice."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """End it, and the server that it started."""
        os.killpg(self.process.pid, 15)


def rounds(old: Checkout, new: Checkout, name: str, count: int) -> Iterator[float]:
    for number in track(range(count), name, transient=True):
        first, second = (old, new) if number % 2 else (new, old)
        took = {first: first.seconds(name)}
        took[second] = second.seconds(name)
        yield took[new] / took[old]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", type=Path)
    parser.add_argument("new", nargs="?", type=Path)
    parser.add_argument("--scenario", default="customer_service")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=SLICES, help="one slice of work")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.scenario)
    if not options.new:
        parser.error("name two folders")
    with tempfile.TemporaryDirectory() as folder:
        old = Checkout(options.old, options.scenario, Path(folder) / "old")
        new = Checkout(options.new, options.scenario, Path(folder) / "new")
        try:
            for name in [options.only] if options.only else SLICES:
                ratios = sorted(rounds(old, new, name, options.rounds))
                low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                print(f"{name:18} {statistics.median(ratios):.3f}  ({low:.3f} to {high:.3f})")
        finally:
            old.end()
            new.end()


if __name__ == "__main__":
    main()
