"""Preference pairs made from a scenario: replies of its expert, and worse ones, in simulated conversations.

The expert holds conversations with the scenario's partner; in every second one, some of its acts are random. At a turn,
the expert's reply is the better one, and the worse one has one of `KINDS` of badness. Nothing is labelled by hand: an
act is a policy violation if the same conversation, continued by the expert after it, ends worse.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from chatgym.dynamics.room import ChatRoom
from chatgym.envs.interfaces import draw_allowed
from chatgym.rewards.features import READ_CHARS
from chatgym.rewards.pairs import Pair, message
from chatgym.scenarios import Meaning, Scenario, fill

KINDS: Mapping[str, str] = {
    "off_topic": "something that has nothing to do with the conversation",
    "rude": "an insult, alone or beside the right words",
    "wrong_fact": "the right words with another number, date or name in them",
    "policy_violation": "an act after which even the expert ends worse",
    "repetition": "what the agent said before",
    "role_flip": "what the partner would say, or said",
    "gaming": "no reply at all: empty, endless, flattering, keywords, random words",
    "whole": "a whole conversation in which every act is drawn at random",
}
TURNS = 6
"""The most turns of a conversation that pairs are made from, drawn at random."""
KINDS_A_TURN = 2
WANDER = 0.25
"""Share of random acts in every second conversation, so that agents that make mistakes are judged, too."""
WORSE = 0.3
"""By how much a policy violation's return is below that of the expert's act, at least."""
STUCK = 0.25
"""Share of the pairs in whose conversation the agent has said only the worse reply at every turn."""

Message: TypeAlias = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Situation:
    """An agent's turn in a conversation.

    Attributes:
        said: The messages before it.
        meaning, reply: The meaning of the expert's act, and its words.
        violations: Meanings of the acts that violate the policy.
    """

    said: list[Message]
    meaning: Meaning
    reply: str
    violations: list[Meaning]


def pairs_of(
    scenario: Scenario, conversations: int = 300, *, seed: int = 0, progress: Callable[[int], None] | None = None
) -> list[Pair]:
    """Make pairs from a scenario; the same arguments give the same pairs, and more conversations add to them.

    Args:
        scenario: The scenario.
        conversations: Number of conversations of the expert, and of an agent with random acts.
        seed: Seed of the first conversation; the i-th has ``seed + i``.
        progress: Called with the number of conversations done.

    Returns:
        For each conversation about `TURNS` times `KINDS_A_TURN` pairs, and for every second one a pair of kind "whole".
    """
    pairs: list[Pair] = []
    for i in range(conversations):
        group = f"{scenario.name}/{seed + i}"
        random = np.random.Generator(np.random.Philox(key=[seed + i, 1]))
        situations, whole = _held(scenario, seed + i, random, WANDER * (i % 2))
        chosen = random.choice(len(situations), min(TURNS, len(situations)), replace=False)
        for situation in (situations[turn] for turn in sorted(chosen.tolist())):
            pairs += _of_turn(scenario, situation, random, group)
        _, other = _held(scenario, seed + i, random, 1.0)
        if whole[0] == other[0] and whole != other and i % 2 == 0:  # the expert's own, undisturbed
            pairs.append(Pair([whole[0]], whole[1:], other[1:], "whole", group))
        if progress is not None:
            progress(i + 1)
    return pairs


def _held(
    scenario: Scenario, seed: int, random: np.random.Generator, wander: float
) -> tuple[list[Situation], list[Message]]:
    """Simulate a conversation of the expert, with a share `wander` of random acts; returns its turns and messages."""
    from chatgym.envs.vector_env import ChatVectorEnv

    envs = ChatVectorEnv(1, scenario=scenario, llm="template", texts=True, reward_model=None, observation="belief")
    envs.reset(seed=seed)
    room = envs.room
    said: list[Message] = [message("user", envs.texts[0])]
    situations = []
    while True:
        best = room.expert_acts()
        acts = best
        if random.random() < wander:
            acts = draw_allowed(room.action_masks(), random.random(1))
        meanings = [scenario.agent_meaning(act, room.belief[0]) for act in range(len(scenario.agent_acts))]
        meaning = meanings[int(best[0])]
        if wander < 1:
            worse = [meanings[act] for act in _violations(room, int(best[0]))]
            situations.append(Situation(list(said), meaning, word(scenario, meaning, random), worse))
        kept = wander < 1 and int(acts[0]) == int(best[0])
        said.append(
            message("assistant", situations[-1].reply if kept else word(scenario, meanings[int(acts[0])], random))
        )
        envs.step(acts)
        if room.outcomes[0]:
            return situations, said
        said.append(message("user", envs.texts[0]))


def _violations(room: ChatRoom, best: int) -> list[int]:
    """Return the acts whose return, continued by the expert, is lower than that of `best` by more than `WORSE`."""
    count = len(room.scenario.agent_acts)
    fork = room.fork(0, count)
    acts, going = np.arange(count), np.ones(count, bool)
    returns = np.zeros(count)
    while going.any():
        fork.step(acts, going)
        returns[going] += fork.rewards[going]
        going &= fork.outcomes == 0
        acts = fork.expert_acts()
    return np.flatnonzero(returns < returns[best] - WORSE).tolist()  # type: ignore[no-any-return]


def word(scenario: Scenario, meaning: Meaning, random: np.random.Generator) -> str:
    """Return a random wording of an agent's meaning: a sentence of the scenario, or of its NLU training data."""
    wordings = _wordings(scenario, meaning.parts[0])
    fitting = [text for text in wordings if all(name in meaning.slots for name in re.findall(r"\{(\w+)\}", text))]
    return fill(_drawn(fitting, random), meaning.slots)


@functools.cache
def _wordings(scenario: Scenario, part: str) -> list[str]:
    """Return the wordings of an agent's part, the scenario's own repeated to be about half of them."""
    own: list[str] = scenario.sentences["agent"][part]
    more: list[str] = scenario.sentences["nlu"]["agent"].get(part, [])
    return [*(own * max(1, len(more) // len(own))), *more]  # each about half of the time


def _of_turn(scenario: Scenario, situation: Situation, random: np.random.Generator, group: str) -> Iterator[Pair]:
    """Yield up to `KINDS_A_TURN` pairs of one turn."""
    kinds: list[str] = random.permutation(list(_MAKERS)).tolist()
    if situation.meaning.slots and random.random() < 0.5:  # most replies name no fact, so the kind would be rare
        kinds.insert(0, "wrong_fact")
    made = 0
    for kind in dict.fromkeys(kinds):
        worse = _MAKERS[kind](scenario, situation, random)
        if worse is None or worse == situation.reply:
            continue
        said = situation.said
        if random.random() < STUCK and kind not in ("wrong_fact", "policy_violation"):
            said = [message("assistant", worse) if one["role"] == "assistant" else one for one in said]
        yield Pair(said, [message("assistant", situation.reply)], [message("assistant", worse)], kind, group)
        made += 1
        if made == KINDS_A_TURN:
            return


def _off_topic(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    foreign: list[str] = scenario.sentences["nlu"]["out_of_domain"]
    return _drawn(foreign, random)


def _rude(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    rude = _drawn(_words()["rude"], random)
    return (rude, f"{rude} {situation.reply}", f"{situation.reply} {rude}")[random.integers(3)]


def _wrong_fact(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    """Return the reply with another value of one of its slots, or None if it has none."""
    meaning = situation.meaning
    slots = [name for name, value in meaning.slots.items() if value in situation.reply and not value.endswith("?")]
    if not slots:
        return None
    slot = _drawn(slots, random)
    value, others = meaning.slots[slot], [one for one in scenario.choices.get(slot, ()) if one != meaning.slots[slot]]
    if others:
        other = _drawn(others, random)
    else:
        other = re.sub(r"\d", lambda digit: str((int(digit[0]) + int(random.integers(1, 9))) % 10), value)
    return situation.reply.replace(value, other) if other != value else None


def _policy_violation(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    return word(scenario, _drawn(situation.violations, random), random) if situation.violations else None


def _repetition(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    said = [one["content"] for one in situation.said if one["role"] == "assistant"]
    return _drawn(said, random) if said else None


def _role_flip(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    heard = [one["content"] for one in situation.said if one["role"] == "user"]
    if random.random() < 0.3:
        return _drawn(heard, random)
    said: dict[str, dict[str, list[str]]] = scenario.sentences["partner"]
    tones = _drawn(list(said.values()), random)
    return fill(_drawn(_drawn(list(tones.values()), random), random), scenario.examples)


def _gaming(scenario: Scenario, situation: Situation, random: np.random.Generator) -> str | None:
    return _drawn(list(GAMES.values()), random)(scenario, situation.reply, random)


def _empty(scenario: Scenario, reply: str, random: np.random.Generator) -> str:
    return _drawn(_words()["empty"], random)


def _endless(scenario: Scenario, reply: str, random: np.random.Generator) -> str:
    """Return the reply repeated, with or without other sentences, until it is too long to be read."""
    text = reply or "yes"
    while len(text) <= READ_CHARS:
        text += " " + (reply if random.random() < 0.5 else _stuffed(scenario, reply, random))
    return text


def _flattering(scenario: Scenario, reply: str, random: np.random.Generator) -> str:
    flattery = _drawn(_words()["flattery"], random)
    return (flattery, f"{flattery} {_drawn(_words()['flattery'], random)}", f"{reply} {flattery}")[random.integers(3)]


def _stuffed(scenario: Scenario, reply: str, random: np.random.Generator) -> str:
    """Return sentences of several acts at once, or their words in random order."""
    said: dict[str, list[str]] = scenario.sentences["agent"]
    sentences = [
        fill(_drawn(_drawn(list(said.values()), random), random), scenario.examples)
        for _ in range(int(random.integers(3, 6)))
    ]
    if random.random() < 0.5:
        return " ".join(sentences)
    words = re.findall(r"[a-z]{4,}", " ".join(sentences).lower())
    return " ".join(random.permutation(words).tolist())


def _babbled(scenario: Scenario, reply: str, random: np.random.Generator) -> str:
    return " ".join(_drawn(_vocabulary(scenario), random) for _ in range(int(random.integers(2, 13))))


GAMES: Mapping[str, Callable[[Scenario, str, np.random.Generator], str]] = {
    "empty": _empty, "endless": _endless, "flattering": _flattering, "stuffed": _stuffed, "babbled": _babbled,
}  # fmt: skip
"""Texts that try to get a high score without a reply, by name: (scenario, expert's reply, generator) to text."""

_MAKERS: Mapping[str, Callable[[Scenario, Situation, np.random.Generator], str | None]] = {
    "off_topic": _off_topic, "rude": _rude, "wrong_fact": _wrong_fact, "policy_violation": _policy_violation,
    "repetition": _repetition, "role_flip": _role_flip, "gaming": _gaming,
}  # fmt: skip


@functools.cache
def _words() -> dict[str, list[str]]:
    """Return texts by kind of badness, from ``preferences.json``."""
    found: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


@functools.cache
def _vocabulary(scenario: Scenario) -> list[str]:
    """Return the words of the agent's sentences and of those out of domain, sorted."""
    sentences = scenario.sentences
    texts = [*(text for said in sentences["agent"].values() for text in said), *sentences["nlu"]["out_of_domain"]]
    return sorted(set(re.findall(r"[a-z']{2,}", " ".join(texts).lower())))


def _drawn(things: Sequence[T], random: np.random.Generator) -> T:
    """Return a random item."""
    return things[int(random.integers(len(things)))]
