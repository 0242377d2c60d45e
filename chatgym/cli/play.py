"""``chatgym play``: take part in a conversation, as the agent, or as the partner of a trained agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import budget
from chatgym.cli.dialogue import print_utterance, read_line
from chatgym.cli.options import PartnerLLM, RewardWeight
from chatgym.cli.tasks import read_weights, reweighted
from chatgym.cli.terminal import console
from chatgym.errors import InvalidValue, unknown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from chatgym.engines import Engine
    from chatgym.envs.chat_env import ChatEnv
    from chatgym.envs.task import Task
    from chatgym.scenarios import Scenario
    from chatgym.training import Run

SAID = ("act", "text")


def play(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Run folder, for its scenario and, with --as-partner, its agent."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Scenario.", show_default="the run's, or customer_service"),
    ] = None,
    llm: PartnerLLM = "template",
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Seed of the conversation, one for training.", show_default="random"),
    ] = None,
    action: Annotated[
        str, typer.Option(metavar="HOW", help="How you answer: act (choose an act), or text (your own words).")
    ] = "act",
    as_partner: Annotated[
        bool, typer.Option("--as-partner", help="Be the partner of the agent trained in RUN, in your own words.")
    ] = False,
    reward_weight: RewardWeight = None,
    max_requests: budget.MaxRequests = None,
    max_tokens: budget.MaxTokens = None,
    max_cost: budget.MaxCost = None,
    prompt_price: budget.PromptPrice = None,
    completion_price: budget.CompletionPrice = None,
) -> None:
    """Take part in a conversation yourself.

    You are the agent and choose its acts; with --as-partner you talk to a trained agent in your own words.

    As the agent, answer with an act's number, its name or the beginning of it; ? lists the acts, q quits. With
    --action text write your own words; below them you see the act that NLU understood. At the end you see the outcome,
    the return and the partner's hidden goal.

    \b
    Examples:
      chatgym play
      chatgym play --seed 7 --llm smollm2-135m-partner
      chatgym play --scenario education --action text
      chatgym play runs/qlearning --as-partner
    """
    from chatgym.cli.partner import talk_to
    from chatgym.envs.task import Task
    from chatgym.training import Run

    opened = None if run is None else Run.open(run)
    if opened is not None and scenario not in (None, opened.task.scenario):
        raise InvalidValue(f"{run} was trained for {opened.task.scenario!r}; leave out --scenario")
    if action not in SAID:
        raise unknown("--action", action, SAID)
    weights = read_weights(reward_weight or ())
    if as_partner:
        if weights:
            raise InvalidValue("with --as-partner nothing is rewarded; leave out --reward-weight")
        talk_to(_check_partner(opened, llm), console())
        return
    task = reweighted(opened.task if opened else Task(scenario or "customer_service"), weights)
    engine = budget.open_engine(
        llm, max_requests=max_requests, max_tokens=max_tokens, max_cost=max_cost, prompt_price=prompt_price,
        completion_price=completion_price,
    )  # fmt: skip
    kept = "the utterances generated so far are kept"
    with budget.explain_interruption(engine, kept, "begins a conversation anew"):
        _play_agent(task, engine or llm, seed, action)


def _check_partner(run: Run | None, llm: str) -> Run:
    """Return the run that --as-partner needs; --llm isn't allowed with it."""
    if run is None:
        raise InvalidValue("--as-partner needs the run folder of a trained agent: `chatgym play RUN --as-partner`")
    if llm != "template":
        raise InvalidValue("with --as-partner you write the partner's words; leave out --llm")
    return run


def _play_agent(task: Task, llm: str | Engine, seed: int | None, action: str) -> None:
    """Let a person play the agent in one conversation."""
    from chatgym.agent import Interface

    observation = "text" if task.find_scenario().heard_meaning else "discrete"
    env, out = task.make_env(Interface(action, observation), llm=llm), console()
    scenario, rate = env.scenario, env.room.error_rate
    out.print(f"{scenario.description} You are the {scenario.agent_role}; at most {env.room.max_turns} turns.")
    out.print(INVITATION[action], style="dim")
    if rate:
        out.print(f"You misunderstand the partner at a rate of {rate:g}: confirm what you doubt.", style="dim")
    _, info = env.reset(seed=seed)
    _print_turn(out, env.transcript()[-1], scenario.partner_role)
    total, over = 0.0, False
    while not over:
        out.print(f"{'noted':>9}  {scenario.describe_belief(env.room.belief[0])}", style="dim")
        answer = _ask_text(out, env) if action == "text" else _ask_act(out, scenario, info["action_mask"])
        if answer is None:
            out.print("\nYou left before the end.")
            break
        _, reward, terminated, truncated, info = env.step(answer)
        total, over = total + reward, terminated or truncated
        for turn in env.transcript()[-3:] if over else env.transcript()[-2:]:
            _print_turn(out, turn, scenario.partner_role)
    if over:
        _print_end(out, env, info["outcome"], total)
    env.close()


INVITATION = {
    "act": "Answer with an act: its number, its name or the beginning of it; ? lists them and the rules, q quits.",
    "text": (
        "Answer in your own words; ? lists the acts and the rules, q quits. Below your words you see what was heard: "
        "one act, with a question or values of the scenario if it needs any. Only that act counts."
    ),
}


def _print_end(out: Console, env: ChatEnv, outcome: str, total: float) -> None:
    """Print outcome, return and the partner's hidden goal."""
    goal = env.transcript()[-1]["text"]
    won = "" if outcome != env.scenario.success else ", which counts as success"
    out.print(f"\nOutcome: {outcome.replace('_', ' ')}{won}")
    out.print(f"Return:  {total:.2f} in {int(env.room.turns[0])} turns")
    out.print(f"The {env.scenario.partner_role} had in mind: {goal}", soft_wrap=True)


def _print_turn(out: Console, turn: dict[str, Any], partner: str) -> None:
    """Print a turn of the transcript, with what was heard; `partner` is the partner's role."""
    from chatgym.words.nlu import UNCLEAR

    if turn["role"] == "goal":
        return
    note = f"{turn['act']}, reward {turn['reward']:+.2f}" if "reward" in turn else ""
    print_utterance(out, turn["role"], turn["text"], note, partner=turn["role"] == partner)
    if turn["act"] == UNCLEAR:
        out.print(f"{'heard':>9}  nothing that was understood: say one thing in other words; ? lists the acts")
    elif "heard" in turn:
        out.print(f"{'heard':>9}  {turn['act']}: {turn['heard']}", style="dim", soft_wrap=True)


def _ask_text(out: Console, env: ChatEnv) -> str | None:
    """Ask for words until there are some; return None when the person leaves."""
    from chatgym.words.charset import MAX_CHARS

    room = env.room
    while True:
        line = read_line(out, "you> ")
        if line is None:
            return None
        if line == "?":
            for act in room.action_masks()[0].nonzero()[0].tolist():
                words = env.agent_words(0, act)
                out.print(f"  {env.scenario.agent_acts[act]:<18} {words}", soft_wrap=True)
            out.print(env.scenario.instructions(), soft_wrap=True)
        elif len(line) > MAX_CHARS:
            out.print(f"That is too long: {len(line)} characters, of {MAX_CHARS} at most")
        elif line:
            return line


def _ask_act(out: Console, scenario: Scenario, mask: npt.NDArray[np.bool_]) -> int | None:
    """Ask for an act until one is named; `mask` is the action mask, [acts]. Return None when the person leaves."""
    acts = scenario.agent_acts
    while True:
        line = read_line(out, "act> ")
        if line is None:
            return None
        if line == "?":
            for number, (act, sensible) in enumerate(zip(acts, mask.tolist(), strict=True)):
                out.print(
                    f"  {number:>2}  {act}{'' if sensible else '   (makes no sense now)'}",
                    style="" if sensible else "dim",
                )
            out.print(scenario.instructions(), soft_wrap=True)
            continue
        matches = find_acts(line, acts)
        if len(matches) == 1:
            return matches[0]
        if matches:
            out.print(f"{line!r} could be {', '.join(acts[act] for act in matches)}")
        elif line:
            out.print(f"There is no act {line!r}; ? lists them")


def find_acts(line: str, acts: tuple[str, ...]) -> list[int]:
    """Return the indices of the acts that a number, a name or the beginning of names matches."""
    if line.isdecimal():
        return [int(line)] if int(line) < len(acts) else []
    name = line.lower().replace(" ", "_").replace("-", "_")
    if name in acts:
        return [acts.index(name)]
    return [index for index, act in enumerate(acts) if name and act.startswith(name)]
