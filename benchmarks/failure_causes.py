"""Check the causes of failures: do garbled conversations succeed when the same agent hears everything right?

The agent holds the same conversations (the same keys) with and without the error channel. If a cause is what it says,
most of the conversations that count as garbled succeed without the channel, and those that count as policy don't.
Prints a table in Markdown.

    python benchmarks/failure_causes.py [--conversations 4000] [RUN ...]
"""

from __future__ import annotations

import argparse
from typing import Any

from chatgym_agents.scripted import Expert

from chatgym.cli.terminal import percent
from chatgym.dynamics.hearing import CAUSES
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.training import Run

SCENARIOS = ("customer_service", "education", "social")


def rows(name: str, make_agent: Any, task: Task, conversations: int) -> str:
    """Return a row of the table: per cause the number of failures, and the share that succeeds without the channel."""
    noisy, clear = (
        evaluate(make_agent(), Task(task.scenario, {**task.arguments, **rate}), conversations=conversations,
                 references=False)
        for rate in ({}, {"error_rate": 0.0})
    )  # fmt: skip
    right = clear.outcomes == clear.success
    cells = [f"{percent(noisy.success_rate.value)}", f"{percent(clear.success_rate.value)}"]
    for cause in CAUSES:
        of_it = noisy.causes == cause
        cells.append(f"{of_it.sum():,}: {100 * right[of_it].mean():.0f} %" if of_it.any() else "0")
    return f"| {task.scenario} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of trained agents, besides the experts")
    parser.add_argument("--conversations", type=int, default=4000)
    options = parser.parse_args()
    print(f"| scenario | agent | success | without errors | {' | '.join(CAUSES)} |")
    print(f"|---|---|---:|---:|{'---:|' * len(CAUSES)}")
    for scenario in SCENARIOS:
        task = Task(scenario)
        print(rows("expert", lambda task=task: Expert(task.find_scenario()), task, options.conversations))
    for folder in options.runs:
        run = Run.open(folder)
        print(rows(run.config["agent"], run.agent, run.task, options.conversations))
