"""Compare the agents in each scenario: ``python benchmarks/scenarios.py`` writes ``docs/scenarios.md``.

Compares random, the best constant act, the best fixed order of acts that a search finds, the expert and trained agents
on unseen conversations, with 95 % intervals. A training is a run folder, so an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.agent import Interface
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.evaluation.evaluation import EVALUATION_SEED
from chatgym.evaluation.intervals import Interval, bootstrap_mean, wilson
from chatgym.evaluation.references import scale, scored_returns
from chatgym.testing.balance import best_order
from chatgym.testing.rollouts import fixed, hold
from chatgym.training import Run, resume, train
from chatgym.training.run import find_agent

PAGE = Path(__file__).parent.parent / "docs" / "scenarios.md"
SCENARIOS = ("customer_service", "education", "social")
Row = tuple[str, Interval, Interval, Interval, float]
"""Agent, success rate, mean return, score, mean turns."""


def rows(scenario: str, options: Any) -> Iterator[Row]:
    task = Task(scenario)
    described = task.find_scenario()

    def measured(name: str, agent: Any) -> Row:
        result = evaluate(agent, task, conversations=options.conversations)
        return name, result.success_rate, result.mean_return, result.score, float(result.turns.mean())

    yield measured("random", find_agent("random")(described))
    constant = find_agent("constant")
    acts = [constant(described, constant.Config(act=act)) for act in described.agent_acts]
    fixed_acts = [measured(f"always {agent.config.act}", agent) for agent in acts]
    yield max(fixed_acts, key=lambda row: row[2].value)
    envs = task.make_envs(Interface(), options.conversations)
    envs.reset(seed=EVALUATION_SEED, options={"split": "test"})
    envs.room.episodes[:] = 0  # the conversations that the others have, from their beginning
    script = hold(envs.room, fixed(best_order(described)))
    returns = bootstrap_mean(script.returns)
    success = wilson(int((script.outcomes == described.outcomes.index(described.success)).sum()), len(script.returns))
    scored = scored_returns(task, script.returns, np.array(described.outcomes, object)[script.outcomes])
    score = scale(task, EVALUATION_SEED, options.conversations).score(scored)
    yield "fixed order", success, returns, score, float(script.turns.mean())
    yield measured("expert", find_agent("expert")(described))
    for wanted in options.agents:
        name, _, turns = wanted.partition("=")
        folder, steps = options.runs / f"{scenario}-{wanted}", int(turns) if turns else None
        agent = trained(name, folder, task=task, total_steps=steps).agent()
        yield measured(f"{name}, {agent.turns:,} turns", agent)


def trained(agent: str, folder: Path, **arguments: Any) -> Run:
    """Return a training to its end: a new one, the rest of one that broke off, or one that is there."""
    if not (folder / "config.json").exists():
        return train(agent, folder, **arguments)
    if not (folder / "transcripts.jsonl").exists():  # what a training writes last
        return resume(folder)
    return Run.open(folder)


def write_page(table: dict[str, list[Row]], options: Any) -> str:
    lines = [
        "# Scenarios and agents", "",
        "Every agent holds the same "
        f"{options.conversations:,} conversations, which are in no training. Intervals are 95 % intervals: Wilson's "
        "for the success rate, bootstrap for the means. Made by `python benchmarks/scenarios.py`.", "",
        "The score is 0 for the best agent that doesn't listen (random, or always one act) and 100 for the expert, "
        "both in these conversations. *Fixed order* is the best sequence of acts that a search finds: what an agent "
        "reaches that ignores the answers.", "",
        "| scenario | agent | success rate [%] | mean return | score | turns |",
        "|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for scenario, found in table.items():
        for name, success, returns, score, turns in found:
            share = Interval(100 * success.value, 100 * success.low, 100 * success.high)
            cells = [scenario, name, cell(share, 1), cell(returns, 3), cell(score, 1), f"{turns:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(interval: Interval, digits: int) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=["qlearning"], metavar="AGENT[=TURNS]",
                        help="those that learn, for that long or their default")  # fmt: skip
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/scenarios"), help="where the trainings are")
    options = parser.parse_args()
    table = {}
    for scenario in options.scenarios:
        table[scenario] = []
        for row in rows(scenario, options):
            table[scenario].append(row)
            print(f"{scenario}, {row[0]}: success {row[1].value:.1%}, score {row[3].value:.1f}", flush=True)
    PAGE.write_text(write_page(table, options), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
