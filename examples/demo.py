"""The whole of ChatGym in a few minutes: train an agent to serve customers, and see that it learned.

`make demo` runs it. It fetches the models, trains Q-learning in ``runs/demo``, compares it with the random agent and
the expert over conversations that no training saw, once more with a language model wording the customers, and shows
the same conversation before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule

from chatgym import plugins
from chatgym.cli.terminal import console, progress_bar, replace_what_cannot_be_shown, table
from chatgym.envs.rendering import print_turns
from chatgym.envs.task import Task
from chatgym.evaluation import Evaluation, converse, evaluate
from chatgym.evaluation.intervals import Interval
from chatgym.storage import model_store
from chatgym.training import Run, train

LLM = "smollm2-135m-partner"


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, help="turns to train for (default: the agent's own)")
    parser.add_argument("--conversations", type=int, default=1000, help="to measure on")
    parser.add_argument("--worded", type=int, default=100, help="of them, to hold with a language model's words")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder, replaced if it is there")
    options = parser.parse_args()
    replace_what_cannot_be_shown()
    out, task = console(), Task()

    out.print(Rule("1. Models"))
    for name in model_store.MODELS:
        out.print(f"{name}: {model_store.path(name)}")

    out.print(Rule("2. Training"))
    run = train_agent(options.run, options.steps)
    trained = run.agent()
    out.print(f"Q-learning held {run.turns:,} turns of conversation; learning curve: {options.run / 'curve.png'}")

    out.print(Rule(f"3. {options.conversations:,} conversations with customers never met before"))
    agents = {name: plugins.load().agents[name](task.find_scenario()) for name in ("random", "expert")}
    order = {"random": agents["random"], "Q-learning": trained, "expert": agents["expert"]}
    results = {name: evaluate(agent, task, conversations=options.conversations) for name, agent in order.items()}
    out.print(table(("agent", "resolved", "mean return", "score (95 % interval)", "turns"),
                    [row(name, result) for name, result in results.items()], range(1, 5)))  # fmt: skip

    out.print(Rule(f"4. {options.worded} of them again, in the words of {LLM}"))
    worded = evaluate_worded(trained, task, options.worded)
    compare(out, results["Q-learning"], worded)

    out.print(Rule("5. The same conversation before and after training"))
    seed = telling_seed(run, task)
    env = task.make_env(trained.requires, llm=LLM)
    for title, agent in (("before", run.new_agent()), ("after", trained)):
        held = converse(agent, env, seed, deterministic=agent is trained)
        out.print(f"\n{title}: {held['outcome'].replace('_', ' ')}, return {held['return']:+.2f}\n")
        print_turns(held["turns"], env.scenario)
    out.print()
    out.print(Rule("What now"))
    out.print(
        f"chatgym play                                 be the agent yourself\n"
        f"chatgym play {options.run} --as-partner         be the customer of the trained one\n"
        f"chatgym evaluate {options.run} --llm {LLM} --trace t.jsonl && chatgym replay t.jsonl\n"
        f"chatgym train qlearning --help               what can be set"
    )


def train_agent(folder: Path, steps: int | None) -> Run:
    """Train Q-learning in a run folder, with a progress bar on a terminal."""
    total = steps or plugins.load().agents["qlearning"].default_steps
    with progress_bar("Q-learning", total, "turns") as progress:
        return train("qlearning", folder, total_steps=total, overwrite=True, progress=progress)


def row(name: str, result: Evaluation) -> tuple[str, ...]:
    """Write an agent's results as a row of a table."""
    success, score = result.success_rate.scaled(0.0, 0.01), result.score
    return (
        name, f"{success.value:.1f} % ({span(success)})", f"{result.mean_return.value:+.3f}",
        f"{score.value:.1f} ({span(score)})", f"{result.turns.mean():.1f}",
    )  # fmt: skip


def span(interval: Interval) -> str:
    """Write an interval's ends."""
    return f"{interval.low:.1f} to {interval.high:.1f}"


def evaluate_worded(agent: Any, task: Task, conversations: int) -> Evaluation:
    """Evaluate with a language model's words; what it says first takes a minute or two, then it is stored."""
    err = Console(stderr=True)
    with err.status(f"{LLM} finds its words (a minute or two, the first time)") as status:

        def filled(banks: int) -> None:
            status.update(f"{LLM} finds its words (a minute or two, the first time): {banks} kinds of utterance")

        return evaluate(agent, task, conversations=conversations, llm=LLM, wording_progress=filled)


def compare(out: Console, plain: Evaluation, worded: Evaluation) -> None:
    """Say whether the words changed any outcome, and how they came about."""
    count = len(worded.outcomes)
    same = (plain.outcomes[:count] == worded.outcomes) & np.isclose(plain.returns[:count], worded.returns, atol=0)
    out.print(f"the same outcome and return as with templates: {same.sum()} of {count}")
    report = worded.wording or {}
    out.print(
        f"{report['utterances']:,} customer utterances, {report['by_model']:.1%} worded by the model, "
        f"{1 - report['without_call']:.1%} of them by a call of it; "
        f"{report['accepted']:.1%} of {report['candidates']:,} candidates were new and passed the guard"
    )


def telling_seed(run: Run, task: Task) -> int:
    """Choose a conversation that the trained agent resolves and the untrained one doesn't."""
    agents = (run.new_agent(), run.agent())
    before, after = (evaluate(agent, task, conversations=50, deterministic=agent is agents[1]) for agent in agents)
    success = task.find_scenario().success
    chosen = (after.outcomes == success) & (before.outcomes != success) & (before.turns >= 4) & (after.turns >= 7)
    return after.seed + int(chosen.argmax())


if __name__ == "__main__":
    main()
