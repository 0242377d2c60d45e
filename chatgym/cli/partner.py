"""A person as the partner of a trained agent.

NLU reads the person's words, the agent acts on its belief, and the templates word the act. No simulated partner takes
part: a room of one row only holds the agent's belief.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from chatgym.cli.dialogue import print_utterance, read_line
from chatgym.dynamics.room import ChatRoom
from chatgym.envs.codecs import observe
from chatgym.evaluation.audit_policies import ending_acts
from chatgym.scenarios import Scenario
from chatgym.words.nlg import Speaker
from chatgym.words.nlu import NLU, UNCLEAR, Understanding, nlu_of

if TYPE_CHECKING:
    from rich.console import Console

    from chatgym.agent import Agent
    from chatgym.training import Run

LEAVES = "bye"
ASK_AGAIN = "Sorry, I didn't understand that. Could you say it in other words?"


def talk_to(run: Run, out: Console) -> None:
    """Let a person talk to the agent of a run until one of them ends the conversation."""
    agent, scenario = run.agent(), run.task.find_scenario()
    out.print(f"{run.config['agent']} after {run.turns:,} turns of training; you are its {scenario.partner_role}.")
    out.print(f"Its task: {scenario.description} Say what you want in your own words; q quits.", style="dim")
    nlu = nlu_of(scenario)
    room = ChatRoom(scenario, 1, error_rate=0.0, max_turns=run.task.arguments.get("max_turns"))
    room.begin(keys=np.array([_silent_opening(scenario)], np.uint64))
    endings, speaker, turn = ending_acts(scenario), Speaker(scenario), 0
    while turn < room.max_turns:
        line = read_line(out, f"{scenario.partner_role}> ")
        if line is None:
            out.print("\nYou left.")
            return
        if not line:
            continue
        understood = _hear(room, nlu, line)
        out.print(_describe(understood), style="dim")
        if understood.act == UNCLEAR:
            print_utterance(out, scenario.agent_role, ASK_AGAIN, partner=False)
            continue
        if understood.act == LEAVES:
            out.print(f"\nYou left after {turn} turns of the {scenario.agent_role}.")
            return
        turn += 1
        act, text = _answer(room, agent, speaker, line, turn)
        print_utterance(out, scenario.agent_role, text, scenario.agent_acts[act], partner=False)
        if endings[act]:
            out.print(f"\nThe {scenario.agent_role} ended it after {turn} turns ({scenario.agent_acts[act]}).")
            return
    out.print(f"\nIt breaks off after {turn} turns.")


def _silent_opening(scenario: Scenario) -> int:
    """Return the key of a conversation whose opening tells nothing, so that the belief begins empty."""
    room = ChatRoom(scenario, 256, error_rate=0.0)
    room.begin(keys=np.arange(256, dtype=np.uint64))
    meanings = [scenario.partner_meaning(said) for said in room.said]
    return next((key for key, meaning in enumerate(meanings) if meaning.parts == (meaning.act,)), 0)


def _hear(room: ChatRoom, nlu: NLU, line: str) -> Understanding:
    """Read a line by NLU and update the belief."""
    scenario = room.scenario
    understood = nlu.understand([line])[0]
    scenario.parse(understood.act, understood.part, understood.slots, room.said[0])
    scenario.hear(room.belief[0], room.said[0])
    return understood


def _answer(room: ChatRoom, agent: Agent, speaker: Speaker, heard: str, turn: int) -> tuple[int, str]:
    """Return the agent's act and its words, and note the act in the belief."""
    observation = observe(room, agent.requires.observation, [heard])
    act = int(agent.act(observation, action_masks=room.action_masks())[0])
    meaning = room.scenario.agent_meaning(act, room.belief[0])
    text = speaker.say([meaning], room.keys, np.array([turn]), "agent")[0]
    room.scenario.note(room.belief[0], act, turn)
    return act, text


def _describe(understood: Understanding) -> str:
    """Return what NLU understood as a line of text: part, slots and confidence."""
    slots: Any = (f"{name} {value}" for name, value in understood.slots.items())
    what = ", ".join(itertools.chain([understood.part or understood.act], slots))
    return f"           understood: {what} ({understood.confidence:.0%})"
