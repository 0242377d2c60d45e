"""Measure what words cost: conversations of the expert with banks that are there, and how a bank's time is spent.

python benchmarks/wording.py                      the plain model, customer_service, 300 conversations
python benchmarks/wording.py --llm hf:FOLDER      another model

All figures are of one run and one core, in seconds of its processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chatgym_agents.scripted import Expert

from chatgym.engines import DEFAULT_MODEL, PLAIN_MODEL, make_engine
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.evaluation.rollouts import converse
from chatgym.storage.cache import Cache
from chatgym.words.nlg import Speaker

PARTS: tuple[tuple[str, str, str, bool], ...] = (
    ("matrix products of the model", "", "torch._C._nn.linear", False),
    ("attention", "", "scaled_dot_product_attention", False),
    ("sampling tokens", "engines/sampling.py", "choose", True),
    ("keys and values of rows that end", "engines/batch.py", "_keep", True),
    ("the wording guard, with NLU", "words/guard.py", "check", True),
)
"""Label, file, function, and whether its time includes that of what it calls."""


def seconds(work: Callable[[], object]) -> float:
    """Return the processor's seconds of some work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def shares(speaker: Speaker, names: list[str]) -> Iterator[tuple[str, float]]:
    """Fill banks, and yield the share of each part of the work."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(speaker.prepare, names)
    found, rest = pstats.Stats(profile).stats, 1.0  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in found.values())
    for label, file, function, whole in PARTS:
        took = sum(
            (both if whole else own)
            for (path, _, name), (_, _, own, both, _) in found.items()
            if file in path and (name == function if whole else function in name)
        )
        rest -= took / total
        yield label, took / total
    yield "the rest: mostly calls of the model's layers in Python", rest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default=PLAIN_MODEL)
    parser.add_argument("--scenario", default="customer_service")
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--banks", type=int, default=12, help="how many banks are filled")
    options = parser.parse_args()
    task, count = Task(options.scenario), options.conversations
    expert = Expert(task.find_scenario())

    def held(llm: str | None) -> object:
        return evaluate(expert, task, conversations=count, references=False, llm=llm)

    env = task.make_env(Expert.requires, llm=DEFAULT_MODEL)
    held(DEFAULT_MODEL), converse(expert, env, 0)  # compiles
    acts, worded = seconds(lambda: held(None)), seconds(lambda: held(DEFAULT_MODEL))
    told = seconds(lambda: [converse(expert, env, seed) for seed in range(count)])
    engine = make_engine(options.llm)
    assert engine is not None
    with tempfile.TemporaryDirectory() as folder:
        speaker = Speaker(task.find_scenario(), engine, cache=Cache(Path(folder) / "words.sqlite"))
        askable = speaker.askable()
        speaker.prepare(askable[:1])  # loads the model
        step = max(1, len(askable) // options.banks)
        names = askable[1::step][: options.banks]
        begun = time.process_time()
        parts = list(shares(speaker, names))
        bank = (time.process_time() - begun) / len(names)
    print(f"{count} conversations of the expert in {options.scenario}, in the processor's seconds:")
    print(f"  acts without words                       {acts:.2f}")
    print(f"  words from banks that are there          {worded:.2f}")
    print(f"  the same one by one, as transcripts are  {told:.2f}")
    print(f"A bank of {engine.identity}: {bank:.2f}; all {len(askable)} banks {bank * len(askable):.0f}, which is")
    print(f"  {bank * len(askable) / worded:,.0f} times what the conversations take once the banks are there. Of that:")
    for label, share in parts:
        print(f"  {share:6.1%}  {label}")


if __name__ == "__main__":
    main()
