"""The whole of ChatGym in a few minutes: train an agent to serve customers, and see that it learned.

`make demo` runs it. It trains Q-learning in ``runs/demo``, compares it with the random agent and the expert over
conversations that no training saw, once more in the words of a language model, which come with the scenario, and shows
the same conversation before and after. Then it fetches that model and has it generate new wordings.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.rule import Rule

from chatgym import plugins
from chatgym.cli.terminal import console, progress_bar, replace_what_cannot_be_shown, table
from chatgym.engines import make_engine
from chatgym.envs.rendering import print_turns
from chatgym.envs.task import Task
from chatgym.evaluation import Evaluation, converse, evaluate
from chatgym.evaluation.intervals import Interval
from chatgym.scenarios import Scenario, fill
from chatgym.storage import model_store
from chatgym.training import Run, train
from chatgym.words.guard import Guard
from chatgym.words.nlg import LIST_SAMPLING, LISTS, Speaker, list_lines
from chatgym.words.nlu import ENCODER, nlu_of

LLM = "smollm2-135m-partner"
FRESH, SITUATION = 8, ("state_problem/late_delivery", "angry")


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

    out.print(Rule("1. Training"))
    run = train_agent(options.run, options.steps)
    trained = run.agent()
    out.print(f"Q-learning held {run.turns:,} turns of conversation; learning curve: {options.run / 'curve.png'}")

    out.print(Rule(f"2. {options.conversations:,} conversations with customers never met before"))
    agents = {name: plugins.load().agents[name](task.find_scenario()) for name in ("random", "expert")}
    order = {"random": agents["random"], "Q-learning": trained, "expert": agents["expert"]}
    results = {name: evaluate(agent, task, conversations=options.conversations) for name, agent in order.items()}
    out.print(table(("agent", "resolved", "mean return", "score (95 % interval)", "turns"),
                    [row(name, result) for name, result in results.items()], range(1, 5)))  # fmt: skip

    out.print(Rule(f"3. {options.worded} of them again, in the words of {LLM}"))
    worded = evaluate(trained, task, conversations=options.worded, llm=LLM)
    compare(out, results["Q-learning"], worded)

    out.print(Rule("4. The same conversation before and after training"))
    seed = telling_seed(run, task)
    env = task.make_env(trained.requires, llm=LLM)
    for title, agent in (("before", run.new_agent()), ("after", trained)):
        held = converse(agent, env, seed, deterministic=agent is trained)
        out.print(f"\n{title}: {held['outcome'].replace('_', ' ')}, return {held['return']:+.2f}\n")
        print_turns(held["turns"], env.scenario)
    out.print()
    out.print(Rule("5. The model that words the customers"))
    show_fresh(out, env.scenario)
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


def show_fresh(out: Console, scenario: Scenario) -> None:
    """Have the model generate wordings now, other ones at each run, and let the guard check them."""
    for name in ("smollm2-135m", ENCODER):
        out.print(f"{name}: {model_store.path(name)}")
    engine, guard = make_engine(LLM), Guard(scenario, nlu_of(scenario))
    assert engine is not None
    part, tone = SITUATION
    prompt = Speaker(scenario, engine).prompt("|".join(SITUATION))
    err = Console(stderr=True)
    with err.status("Loading the model"):
        engine.generate([prompt], max_new_tokens=1)
    began, tried, fresh = time.perf_counter(), 0, dict[str, None]()
    with err.status(f"{LLM} generates wordings"):
        while len(fresh) < FRESH and tried < 10 * FRESH:
            seeds = np.random.SeedSequence().generate_state(LISTS).tolist()
            completions = engine.generate([prompt] * LISTS, seeds=seeds, **LIST_SAMPLING)
            lines = [line for completion in completions for line in list_lines(completion)]
            tried += len(lines)
            passed = (verdict.wording for verdict in guard.check(lines, part, tone))
            fresh |= {fill(wording, scenario.examples): None for wording in passed if wording}
    seconds = time.perf_counter() - began
    situation = scenario.sentences["situations"][part].rstrip(".")
    out.print(f"{situation}; tone: {tone}")
    for wording in fresh:
        out.print(f"  {wording}")
    out.print(f"{len(fresh)} fresh wordings by {LLM} in {seconds:.1f} s; the wording guard rejected the other "
              f"{tried - len(fresh)} of {tried} lines, or they were repeated")  # fmt: skip
    engine.close()


def telling_seed(run: Run, task: Task) -> int:
    """Choose a conversation that the trained agent resolves and the untrained one doesn't."""
    agents = (run.new_agent(), run.agent())
    before, after = (evaluate(agent, task, conversations=50, deterministic=agent is agents[1]) for agent in agents)
    success = task.find_scenario().success
    chosen = (after.outcomes == success) & (before.outcomes != success) & (before.turns >= 4) & (after.turns >= 7)
    return after.seed + int(chosen.argmax())


if __name__ == "__main__":
    main()
