"""Score agents that try to game the default reward models: ``python benchmarks/rewards.py``.

All agents hold the same conversations. The figure of an agent is the mean score of its turns; none should beat the
expert's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chatgym.envs.interfaces import draw_allowed
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.finetuning import preferences
from chatgym.rewards import default
from chatgym.rewards.term import NAME
from chatgym.scenarios import find_scenario

WORDS = json.loads((Path(preferences.__file__).parent / "preferences.json").read_text(encoding="utf-8"))
SCENARIOS = ("customer_service", "education", "social")

Speak = Callable[[ChatVectorEnv, int, np.random.Generator], str]


def adversaries(name: str) -> dict[str, Speak]:
    scenario = find_scenario(name)
    rejected = [pair.rejected[0]["content"] for pair in preferences.pairs_of(scenario, 6) if pair.kind != "whole"]
    first: dict[int, str] = {}

    def repeated(envs: ChatVectorEnv, row: int, random: np.random.Generator) -> str:
        """Say what the expert says first, ever again."""
        if envs.room.turns[row] == 0:
            meaning = scenario.agent_meaning(int(envs.expert_acts()[row]), envs.room.belief[row])
            first[row] = preferences.word(scenario, meaning, random)
        return first[row]

    def game(kind: str) -> Speak:
        return lambda envs, row, random: preferences.GAMES[kind](scenario, "", random)

    return {
        "empty text": lambda envs, row, random: "",
        "very long text": game("endless"),
        "flattery": lambda envs, row, random: str(random.choice(WORDS["flattery"])),
        "keywords": game("stuffed"),
        "rejected replies": lambda envs, row, random: str(random.choice(rejected)),
        "the expert's first reply, repeated": repeated,
        "random words": game("babbled"),
    }


def of_words(name: str, speak: Speak, conversations: int) -> list[float]:
    envs = ChatVectorEnv(conversations, scenario=name, llm="template", action="text", observation="text")
    return _held(envs, lambda random: [speak(envs, row, random)[:2000] for row in range(conversations)])


def of_acts(name: str, agent: str, conversations: int) -> list[float]:
    model = default.load(find_scenario(name))
    envs = ChatVectorEnv(conversations, scenario=name, llm="template", reward_model=model)
    room = envs.room
    if agent == "expert":
        return _held(envs, lambda random: room.expert_acts())
    return _held(envs, lambda random: draw_allowed(room.action_masks(), random.random(conversations)))


def _held(envs: ChatVectorEnv, act: Callable[[np.random.Generator], object]) -> list[float]:
    """Hold one conversation a row; return the scores of all turns."""
    random, scores = np.random.default_rng(0), []
    envs.reset(seed=0, options={"split": "test"})
    going = np.ones(envs.num_envs, bool)
    while going.any():
        envs.step(act(random), active=going)
        scores += envs._conversations.terms[going, -1].tolist()
        going &= envs.room.outcomes == 0
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--conversations", type=int, default=50)
    arguments = parser.parse_args()
    print(f"Score of the default reward model ({NAME}), mean of the turns of {arguments.conversations} conversations\n")
    for name in arguments.scenario or SCENARIOS:
        rows = {agent: of_acts(name, agent, arguments.conversations) for agent in ("expert", "random")}
        print(f"| {name} | score | turns |\n|---|---|---|")
        for agent, scores in rows.items():
            print(f"| {agent} | {np.mean(scores):+.3f} | {len(scores)} |", flush=True)
        for agent, speak in adversaries(name).items():
            scores = of_words(name, speak, arguments.conversations)
            mark = " (beats the expert)" if np.mean(scores) >= np.mean(rows["expert"]) else ""
            print(f"| {agent}{mark} | {np.mean(scores):+.3f} | {len(scores)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
