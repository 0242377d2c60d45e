"""Audit a simulated partner: let agents of many kinds talk to it, and count its contradictions.

Conversations are held many at a time, recorded turn by turn, and checked one by one by the rules of
`chatgym.scenarios.contradictions`. In a part of them the partner's utterances are also generated as text and read by
the scenario's NLU; an utterance that NLU reads as another act or value counts as misheard.
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
from chatgym.evaluation.audit_policies import policies
from chatgym.evaluation.intervals import Interval, wilson
from chatgym.scenarios import NO_ACT, Meaning, Scenario, find_scenario
from chatgym.scenarios.contradictions import KINDS, WORDING, Exchange, Finding, never_ends, repeats
from chatgym.words.nlu import UNCLEAR, Understanding, nlu_of

Progress = Callable[[int], None]

AUDIT_SEED = 5_000_000
"""Seed of the first conversation; training and evaluations have lower ones."""
ROWS = 500
"""Conversations at a time; their whole records are in memory."""
TRACES = 20
"""Most conversations in the trace of a kind of contradiction."""
LISTED = 200
"""Most contradictions of a kind that `Audit.to_json` lists; all are counted."""


@dataclass(frozen=True)
class AuditFinding:
    """A contradiction, the name of the agent that met it, and the key of the conversation."""

    agent: str
    key: int
    finding: Finding


@dataclass
class RecognitionCounts:
    """How often NLU recognises the partner's utterances.

    Attributes:
        utterances: Number of utterances.
        missed: (bank, text, what was heard) of misheard utterances to their number.
    """

    utterances: int = 0
    missed: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def rate(self) -> Interval:
        """Share of misheard utterances, with Wilson's interval; before there are any, that of 0 in 1."""
        return wilson(self.missed.total(), max(self.utterances, 1))

    def to_json(self) -> dict[str, Any]:
        """Return the figures and the misheard utterances as JSON values."""
        missed = [
            {"banks": banks, "text": text, "heard": heard, "times": times}
            for (banks, text, heard), times in self.missed.most_common()
        ]
        return {"utterances": self.utterances, **dataclasses.asdict(self.rate), "missed": missed}


class Audit:
    """The audit of one scenario's partner, and its findings so far.

    Attributes:
        scenario: The scenario.
        conversations: Agent's name to the number of conversations checked.
        turns: Agent turns checked.
        findings: The contradictions.
        simple, joined: Recognition of utterances that say one thing, and of those that say several.
        wording_progress: Called with the number of banks of wordings that the model has filled (`Speaker.progress`).
    """

    def __init__(
        self, scenario: str | Scenario = "customer_service", *, error_rate: float = 0.1, llm: str | Engine = "template"
    ) -> None:
        """Prepare an audit.

        Args:
            scenario: A scenario or its name.
            error_rate: Probability that an agent misunderstands the partner, see `chatgym.envs.chat_env.ChatEnv`.
            llm: The model that generates the partner's utterances, or ``"template"``.
        """
        self.scenario, self.error_rate, self.llm = find_scenario(scenario), error_rate, llm
        self.conversations: Counter[str] = Counter()
        self.turns = 0
        self.findings: list[AuditFinding] = []
        self.simple, self.joined = RecognitionCounts(), RecognitionCounts()
        self.wording_progress: Progress | None = None
        self._policies = policies(self.scenario)
        self._traced: dict[str, dict[tuple[str, int], list[int]]] = {}  # kind to the acts of some conversations

    def audit_acts(
        self, agent: str, conversations: int, *, seed: int = AUDIT_SEED, progress: Progress | None = None
    ) -> None:
        """Let an agent hold conversations without words, and check them for contradictions.

        Args:
            agent: One of `chatgym.evaluation.audit_policies.AGENTS`.
            conversations: Number of conversations; the i-th has seed ``seed + i``.
            seed: Seed of the first conversation.
            progress: Called with the number of conversations checked in this call.
        """
        for first in range(0, conversations, ROWS):
            size = min(ROWS, conversations - first)
            envs = self._envs(size, llm="template")
            for row, conversation in enumerate(self.record(envs, agent, seed + first)):
                self._judge(agent, int(envs.room.keys[row]), conversation)
            if progress is not None:
                progress(first + size)

    def audit_words(
        self, agent: str, conversations: int, *, seed: int = AUDIT_SEED, progress: Progress | None = None
    ) -> None:
        """Let an agent hold conversations in words, and read the partner's by NLU; arguments as of `audit_acts`."""
        nlu = nlu_of(self.scenario)
        for first in range(0, conversations, ROWS):
            size = min(ROWS, conversations - first)
            envs = self._envs(size, llm=self.llm, texts=True)
            assert envs.speaker is not None
            envs.speaker.progress = self.wording_progress
            texts: list[list[str]] = []
            for row, conversation in enumerate(self.record(envs, agent, seed + first, texts)):
                said = [exchange.meaning for exchange in conversation]
                heard = nlu.understand(words := [texts[exchange.turn][row] for exchange in conversation])
                for exchange, meaning, text, understood in zip(conversation, said, words, heard, strict=True):
                    wording = self.simple if len(meaning.parts) == 1 else self.joined
                    wording.utterances += 1
                    if wrong := misheard(self.scenario, meaning, understood):
                        wording.missed[" + ".join(meaning.banks), text, wrong] += 1
                        finding = Finding(exchange.turn, WORDING, f"{text!r}: {wrong}")
                        self._keep(agent, int(envs.room.keys[row]), conversation, finding)
            if not hasattr(self.llm, "generate"):  # an `Engine` belongs to the caller and stays open
                envs.close()
            if progress is not None:
                progress(first + size)

    def of_kind(self, kind: str) -> list[AuditFinding]:
        """Return the findings of one of `KINDS`, or of `WORDING`."""
        return [one for one in self.findings if one.finding.kind == kind]

    def rate(self, kind: str) -> Interval:
        """Return the share of conversations with a contradiction of a kind, with Wilson's interval."""
        where = {(one.agent, one.key) for one in self.of_kind(kind)}
        return wilson(len(where), max(self.conversations.total(), 1))

    def contradictions(self, agent: str | None = None) -> int:
        """Count the contradictions, misheard wordings excluded; only those that `agent` met, if given."""
        return sum(one.finding.kind != WORDING and agent in (None, one.agent) for one in self.findings)

    def write_traces(self, folder: Path) -> dict[str, Path]:
        """Write the conversations with findings as traces for `chatgym replay`, at most `TRACES` of each kind.

        Returns:
            Kind of finding to the file.
        """
        paths = {kind: folder / f"{kind}.jsonl" for kind in self._traced}
        for kind, path in paths.items():
            self._write_trace(path, self._traced[kind])
        return paths

    def to_json(self) -> dict[str, Any]:
        """Return the figures and findings as JSON values."""
        kinds = {
            kind: {"what": what, **dataclasses.asdict(self.rate(kind)),
                   "found": len(self.of_kind(kind))}
            for kind, what in KINDS.items()
        }  # fmt: skip
        findings = [
            {"kind": one.finding.kind, "agent": one.agent, "key": f"{one.key:016x}",
             "turn": one.finding.turn, "what": one.finding.what}
            for kind in (*KINDS, WORDING) for one in self.of_kind(kind)[:LISTED]
        ]  # fmt: skip
        llm = self.llm if isinstance(self.llm, str) else self.llm.identity
        return {
            "scenario": {"name": self.scenario.name, "version": self.scenario.version, "sha256": self.scenario.digest},
            "own_checks": self.scenario.audit is not None,
            "error_rate": self.error_rate,
            "conversations": dict(self.conversations),
            "turns": self.turns,
            "kinds": kinds,
            "wording": {"llm": llm, "simple": self.simple.to_json(), "joined": self.joined.to_json()},
            "findings": findings,
        }  # fmt: skip

    def record(
        self, envs: ChatVectorEnv, agent: str, seed: int, texts: list[list[str]] | None = None
    ) -> Iterator[list[Exchange]]:
        """Hold a conversation in each row and return the records; append the partner's texts of a turn to `texts`."""
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
        """Make `size` environments."""
        return ChatVectorEnv(
            size, scenario=self.scenario, observation="discrete", error_rate=self.error_rate,
            autoreset_mode="Disabled", **words,
        )  # fmt: skip

    def _judge(self, agent: str, key: int, conversation: list[Exchange]) -> None:
        """Count a conversation and keep its contradictions."""
        self.conversations[agent] += 1
        self.turns += len(conversation) - 1
        for finding in judge(conversation):
            self._keep(agent, key, conversation, finding)

    def _keep(self, agent: str, key: int, conversation: list[Exchange], finding: Finding) -> None:
        """Keep a finding, and the conversation's acts for the trace of its kind."""
        self.findings.append(AuditFinding(agent, key, finding))
        traced = self._traced.setdefault(finding.kind, {})
        if len(traced) < TRACES:
            traced[agent, key] = [exchange.act for exchange in conversation[1:]]

    def _write_trace(self, path: Path, conversations: Mapping[tuple[str, int], list[int]]) -> None:
        """Hold conversations again, given by (agent, key) and acts, and write the trace."""
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
    """Return the partner's contradictions in a conversation of at most `max_turns` (None: the scenario's)."""
    scenario = conversation[0].scenario
    yield from never_ends(conversation, max_turns or scenario.max_turns)
    yield from repeats(conversation) if scenario.audit is None else scenario.audit(conversation)


def misheard(scenario: Scenario, meaning: Meaning, understood: Understanding) -> str:
    """Return how NLU misread an utterance; empty if it read it correctly.

    Of an utterance with several parts NLU must recognise one act, but every value.
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
    """Return the value of a slot that a piece of text names."""
    return scenario.find_slots(surface)[0].get(slot)


def _rows(records: npt.NDArray[Any]) -> list[Mapping[str, Any]]:
    """Return a copy of records[B] as B mappings of field to value; array fields are views, here of the copy."""
    names = records.dtype.names or ()
    return [dict(zip(names, values, strict=True)) for values in records.copy().tolist()]
