"""The audit of a simulated partner: agents of many kinds play, and its contradictions are found and counted.

Conversations are played side by side, recorded turn by turn, and judged in plain Python
(`chatgym.scenarios.contradictions`). The words of some of them are understood by the scenario's NLU: wording that
misses its act.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from chatgym.engines import Engine
from chatgym.envs import replay
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.evaluation.intervals import Interval, wilson
from chatgym.evaluation.probes import policies
from chatgym.scenarios import NO_ACT, Meaning, Scenario, find_scenario
from chatgym.scenarios.contradictions import KINDS, WORDING, Exchange, Finding, never_ends, repeats
from chatgym.words.nlu import UNCLEAR, Understanding, nlu_of

Progress = Callable[[int], None]

AUDIT_SEED = 5_000_000
"""First seed of an audit, apart from those of training and of evaluation."""
ROWS = 500
"""Conversations side by side: their whole record is in memory until it is judged."""
TRACES = 20
"""Conversations written down per kind of contradiction."""
LISTED = 200
"""Contradictions of a kind that are listed one by one; all are counted."""


@dataclass(frozen=True)
class Found:
    """A contradiction, and where: the agent's name and the conversation's key."""

    agent: str
    key: int
    finding: Finding


@dataclass
class Wording:
    """How utterances were understood.

    Attributes:
        utterances: How many.
        missed: (bank, text, what was heard) of those that were misheard, to how often.
    """

    utterances: int = 0
    missed: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def rate(self) -> Interval:
        """Share that misses its act or a value, with Wilson's interval; that of 0 in 1 before there is any."""
        return wilson(self.missed.total(), max(self.utterances, 1))

    def to_json(self) -> dict[str, Any]:
        """Return the figures and what was misheard, JSON-able."""
        missed = [
            {"banks": banks, "text": text, "heard": heard, "times": times}
            for (banks, text, heard), times in self.missed.most_common()
        ]
        return {"utterances": self.utterances, **dataclasses.asdict(self.rate), "missed": missed}


class Audit:
    """Plays and judges the conversations of one scenario; what was found so far is here at any moment.

    Attributes:
        scenario: Whose partner is audited.
        played: Agent's name to the number of conversations judged.
        turns: Agent turns judged.
        found: The contradictions.
        simple, joined: How the partner's utterances in words were understood: those that say one thing, and several.
        wording_progress: Called with the number of banks of wordings that the model has filled (`Speaker.progress`).
    """

    def __init__(
        self, scenario: str | Scenario = "customer_service", *, error_rate: float = 0.1, llm: str | Engine = "template"
    ) -> None:
        """Prepare an audit.

        Args:
            scenario: Its name, or itself.
            error_rate: How often agents misunderstand the partner, see `chatgym.envs.chat_env.ChatEnv`.
            llm: Who words the partner.
        """
        self.scenario, self.error_rate, self.llm = find_scenario(scenario), error_rate, llm
        self.played: Counter[str] = Counter()
        self.turns = 0
        self.found: list[Found] = []
        self.simple, self.joined = Wording(), Wording()
        self.wording_progress: Progress | None = None
        self._policies = policies(self.scenario)
        self._traced: dict[str, dict[tuple[str, int], list[int]]] = {}  # kind to the acts of some conversations

    def play(self, agent: str, conversations: int, *, seed: int = AUDIT_SEED, progress: Progress | None = None) -> None:
        """Let an agent hold conversations, without words, and judge them.

        Args:
            agent: One of `chatgym.evaluation.probes.AGENTS`.
            conversations: How many; the i-th has seed ``seed + i``.
            seed: See `AUDIT_SEED`.
            progress: Called with the number of conversations judged in this call.
        """
        for first in range(0, conversations, ROWS):
            size = min(ROWS, conversations - first)
            envs = self._envs(size, llm="template")
            for row, conversation in enumerate(self.hold(envs, agent, seed + first)):
                self._judge(agent, int(envs.room.keys[row]), conversation)
            if progress is not None:
                progress(first + size)

    def listen(
        self, agent: str, conversations: int, *, seed: int = AUDIT_SEED, progress: Progress | None = None
    ) -> None:
        """Let an agent hold conversations in words, and understand those of the partner; arguments as for `play`."""
        nlu = nlu_of(self.scenario)
        for first in range(0, conversations, ROWS):
            size = min(ROWS, conversations - first)
            envs = self._envs(size, llm=self.llm, texts=True)
            assert envs.speaker is not None
            envs.speaker.progress = self.wording_progress
            texts: list[list[str]] = []
            for row, conversation in enumerate(self.hold(envs, agent, seed + first, texts)):
                said = [exchange.meaning for exchange in conversation]
                heard = nlu.understand(words := [texts[exchange.turn][row] for exchange in conversation])
                for exchange, meaning, text, understood in zip(conversation, said, words, heard, strict=True):
                    wording = self.simple if len(meaning.parts) == 1 else self.joined
                    wording.utterances += 1
                    if wrong := misheard(self.scenario, meaning, understood):
                        wording.missed[" + ".join(meaning.banks), text, wrong] += 1
                        finding = Finding(exchange.turn, WORDING, f"{text!r}: {wrong}")
                        self._keep(agent, int(envs.room.keys[row]), conversation, finding)
            if not hasattr(self.llm, "generate"):  # an engine of the caller's own stays open
                envs.close()
            if progress is not None:
                progress(first + size)

    def of_kind(self, kind: str) -> list[Found]:
        """Return what was found of one of `KINDS`, or of `WORDING`."""
        return [found for found in self.found if found.finding.kind == kind]

    def rate(self, kind: str) -> Interval:
        """Return the share of conversations with a contradiction of one of `KINDS`, with Wilson's interval."""
        where = {(found.agent, found.key) for found in self.of_kind(kind)}
        return wilson(len(where), max(self.played.total(), 1))

    def contradictions(self, agent: str | None = None) -> int:
        """Count the contradictions, wording apart; those that one agent met, if named."""
        return sum(found.finding.kind != WORDING and agent in (None, found.agent) for found in self.found)

    def write_traces(self, folder: Path) -> dict[str, Path]:
        """Write the conversations behind the findings for `chatgym replay`, at most `TRACES` of each kind.

        Returns:
            Kind to the file that was written; none of a kind that wasn't found.
        """
        paths = {kind: folder / f"{kind}.jsonl" for kind in self._traced}
        for kind, path in paths.items():
            self._write_trace(path, self._traced[kind])
        return paths

    def to_json(self) -> dict[str, Any]:
        """Return the figures and findings, JSON-able."""
        kinds = {
            kind: {"what": what, **dataclasses.asdict(self.rate(kind)),
                   "found": len(self.of_kind(kind))}
            for kind, what in KINDS.items()
        }  # fmt: skip
        findings = [
            {"kind": found.finding.kind, "agent": found.agent, "key": f"{found.key:016x}",
             "turn": found.finding.turn, "what": found.finding.what}
            for kind in (*KINDS, WORDING) for found in self.of_kind(kind)[:LISTED]
        ]  # fmt: skip
        llm = self.llm if isinstance(self.llm, str) else self.llm.identity
        return {
            "scenario": {"name": self.scenario.name, "version": self.scenario.version, "sha256": self.scenario.digest},
            "own_checks": self.scenario.audit is not None,
            "error_rate": self.error_rate,
            "conversations": dict(self.played),
            "turns": self.turns,
            "kinds": kinds,
            "wording": {"llm": llm, "simple": self.simple.to_json(), "joined": self.joined.to_json()},
            "findings": findings,
        }  # fmt: skip

    def hold(
        self, envs: ChatVectorEnv, agent: str, seed: int, texts: list[list[str]] | None = None
    ) -> Iterator[list[Exchange]]:
        """Hold one conversation in each row and return their records; `texts` takes in the words of each turn."""
        room, policy = envs.room, self._policies[agent]
        envs.reset(seed=seed)
        words = [] if texts is None else texts
        hidden, said, beliefs = [_rows(room.hidden)], [_rows(room.said)], [room.belief.copy()]
        acts, outcomes = [np.full(room.size, NO_ACT)], [room.outcomes.copy()]
        words.append(list(envs.texts))
        going = np.ones(room.size, bool)
        while going.any() and len(acts) <= room.max_turns:
            acts.append(policy(room))
            beliefs.append(room.belief.copy())
            envs.step(acts[-1], active=going)
            hidden.append(_rows(room.hidden))
            said.append(_rows(room.said))
            outcomes.append(room.outcomes.copy())
            words.append(list(envs.texts))
            going &= room.outcomes == 0
        for row in range(room.size):
            yield [
                Exchange(
                    self.scenario, turn, int(acts[turn][row]), beliefs[turn][row], hidden[max(turn - 1, 0)][row],
                    hidden[turn][row], said[turn][row], self.scenario.outcomes[outcomes[turn][row]],
                )
                for turn in range(int(room.turns[row]) + 1)
            ]  # fmt: skip

    def _envs(self, size: int, **words: Any) -> ChatVectorEnv:
        return ChatVectorEnv(
            size,
            scenario=self.scenario,
            observation="discrete",
            error_rate=self.error_rate,
            autoreset_mode="Disabled",
            **words,
        )

    def _judge(self, agent: str, key: int, conversation: list[Exchange]) -> None:
        self.played[agent] += 1
        self.turns += len(conversation) - 1
        for finding in judge(conversation):
            self._keep(agent, key, conversation, finding)

    def _keep(self, agent: str, key: int, conversation: list[Exchange], finding: Finding) -> None:
        self.found.append(Found(agent, key, finding))
        traced = self._traced.setdefault(finding.kind, {})
        if len(traced) < TRACES:
            traced[agent, key] = [exchange.act for exchange in conversation[1:]]

    def _write_trace(self, path: Path, conversations: Mapping[tuple[str, int], list[int]]) -> None:
        env: Any = gym.make(
            "ChatEnv-v0", scenario=self.scenario, observation="discrete", llm=self.llm, error_rate=self.error_rate,
            disable_env_checker=True,
        )  # fmt: skip
        acts = iter([act for taken in conversations.values() for act in taken])
        try:
            replay.record(env, lambda *_: next(acts), path, keys=[key for _, key in conversations])
        except OSError as error:
            raise InvalidValue(f"the trace can't be written to {path} ({error.strerror})") from error
        if not hasattr(self.llm, "generate"):
            env.close()


def judge(conversation: list[Exchange], max_turns: int | None = None) -> Iterator[Finding]:
    """Find the partner's contradictions in the record of a conversation; `max_turns` is the scenario's when None."""
    scenario = conversation[0].scenario
    yield from never_ends(conversation, max_turns or scenario.max_turns)
    yield from repeats(conversation) if scenario.audit is None else scenario.audit(conversation)


def misheard(scenario: Scenario, meaning: Meaning, understood: Understanding) -> str:
    """Say how what was understood of an utterance isn't what was meant; empty if it is.

    Of an utterance that says several things it is enough that one of them is heard, but all values must be.
    """
    if understood.act == UNCLEAR:
        return f"not understood ({understood.confidence:.2f})"
    if understood.act not in {part.partition("/")[0] for part in meaning.parts}:
        return f"heard as {understood.part} ({understood.confidence:.2f})"
    for slot, surface in meaning.slots.items():
        if understood.slots.get(slot) != _value(scenario, surface, slot):
            return f"{slot} heard as {understood.slots.get(slot, 'nothing')}"
    return ""


@functools.lru_cache(maxsize=4096)
def _value(scenario: Scenario, surface: str, slot: str) -> Any:
    return scenario.find_slots(surface)[0].get(slot)


def _rows(records: npt.NDArray[Any]) -> list[Mapping[str, Any]]:
    """Return records as plain values, field to value."""
    names = records.dtype.names or ()
    return [dict(zip(names, values, strict=True)) for values in records.tolist()]
