"""NLG: from what an utterance means to words.

A part of an utterance (``"inform/reference"``) in a tone has a bank of wordings. Without a model that is the
scenario's own sentences. With one, a plain model continues a list of those sentences, several times; a voice
(`chatgym.words.voice`) is asked for a list of its own, for some parts one that answers the agent's last act. The
wording guard (`chatgym.words.guard`) keeps what says the right thing, and that is the bank. Slots are filled in
afterwards, so a bank serves every conversation, and after it was made once no model is needed. The default model's
banks ship with the scenarios (`chatgym.words.banks`); those of other models are kept in a cache. Which wording of a
bank is said is a draw of the conversation's key.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.banks import Bank, shipped
from chatgym.dynamics import rng
from chatgym.engines import Completion, Engine
from chatgym.errors import Corrupted
from chatgym.scenarios import Meaning, Scenario, fill
from chatgym.storage.cache import Cache, default_path
from chatgym.words.guard import VERSION as GUARD_VERSION
from chatgym.words.guard import Guard, tidy
from chatgym.words.nlu import data_digest
from chatgym.words.voice import is_voice, prompts
from chatgym.words.voice.wordings import answers, askable, banks_of

VERSION = 2
CANDIDATES = 16
"""Continuations sampled at once for a bank: a batch of its own, so a bank depends on nothing but its prompt."""
ENOUGH = 2
"""With fewer accepted wordings than that, as many candidates are sampled once more."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.7, "top_p": 0.9, "stop": ("\n",)}
LISTS = 2
"""Lists that a voice says for a bank, …"""
LIST_SAMPLING: dict[str, Any] = {"max_new_tokens": 160, "temperature": 0.6, "top_p": 0.95}
TOGETHER = 8
"""… and banks asked for in one call; what it says of each doesn't hang on the others."""
AGENT = 100
"""Offset of the purposes that choose the agent's wordings from the partner's."""


@dataclass(frozen=True)
class WordingReport:
    """How a speaker's utterances of the partner came about.

    Attributes:
        utterances: How many.
        by_model: Share that is wholly the model's.
        without_call: Share that needed no call of the model at its turn.
        candidates: Continuations sampled for the banks in use, now or in a run before.
        accepted: Share of them that the guard let pass.
        distinct: Dialogue act to number of distinct wordings in use.
    """

    utterances: int
    by_model: float
    without_call: float
    candidates: int
    accepted: float
    distinct: Mapping[str, int]


class Speaker:
    """Gives the utterances of one scenario their words.

    Attributes:
        voice: Whether the engine's model was taught to word partners.
        answers: (part, agent's act) whose wordings are that act's own.
        used: Name to wordings of the banks that a model filled and that were drawn from: what a replay needs.
        progress: Called with how many banks the model filled so far, after each one; it takes a second or two.
    """

    def __init__(self, scenario: Scenario, engine: Engine | None = None, *, cache: Cache | None = None) -> None:
        """Make a speaker; without `engine` it says the scenario's own sentences.

        It uses the banks that ship with the scenario unless it is given a `cache` or its engine records.
        """
        self.scenario, self.engine = scenario, engine
        self.voice = engine is not None and is_voice(engine.identity)
        self.banks: dict[str, Bank] = {}
        self.used: dict[str, list[str]] = {}
        self.progress: Callable[[int], None] | None = None
        record = getattr(engine, "cache", None)  # of `chatgym.engines.recorded`: it keeps the banks, too
        self._cache = record if cache is None and isinstance(record, Cache) else cache
        self.answers = {(p, a) for p, acts in answers(scenario).items() for a in acts} if self.voice else set()
        self._in_use: dict[tuple[str, str], Sequence[str]] = {}  # (role, name of a bank) to what is drawn from
        self._utterances = self._by_model = self._with_call = self._filled = 0

    def say(
        self, meanings: Sequence[Meaning], keys: npt.NDArray[np.uint64], turns: npt.NDArray[np.int64],
        role: str = "partner", acts: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """Word utterances.

        Args:
            meanings: What to say, B of them.
            keys: uint64[B], the conversations' keys.
            turns: int64[B], their turns.
            role: ``"partner"``, or ``"agent"``, whose words are always the scenario's own.
            acts: The acts that the utterances answer, B of the agent's, where that is known.

        Returns:
            B texts.
        """
        called = set()
        banks = [meaning.banks for meaning in meanings]
        if acts and self.answers:
            banks = [self._answering(meaning, act) for meaning, act in zip(meanings, acts, strict=True)]
        if role == "partner" and self.engine is not None:
            called = self.prepare([name for names in banks for name in names])
        first = rng.WORDING + (AGENT if role == "agent" else 0)
        texts = []
        for meaning, names, key, turn in zip(meanings, banks, keys.tolist(), turns.tolist(), strict=True):
            said = []
            for purpose, (part, name) in enumerate(zip(meaning.parts, names, strict=True), first):
                bank = self._in_use.get((role, name)) or self._wordings(role, part, meaning.tone, name)
                said.append(fill(bank[rng.randint(key, turn, purpose, len(bank))], meaning.slots))
            texts.append(said[0] if len(said) == 1 else " ".join(said))
        if role == "partner":
            self._utterances += len(texts)
            if self.engine is not None:
                self._by_model += sum(all(self.banks[name].accepted for name in names) for names in banks)
                self._with_call += sum(not called.isdisjoint(names) for names in banks)
        return texts

    def prepare(self, names: Sequence[str] | None = None) -> set[str]:
        """Fill banks by the engine ahead of their use.

        Args:
            names: Their names; None for all that the partner could ever draw from.

        Returns:
            The names of those for which the model was called; the others were known or stored.
        """
        if self.engine is None:
            return set()
        new = [name for name in dict.fromkeys(self.askable() if names is None else names) if name not in self.banks]
        known = {name: self._shipped.get(name) or self._stored(name, self.engine) for name in new}
        self.banks |= {name: bank for name, bank in known.items() if bank}
        missing = [name for name in new if not known[name]]
        size = TOGETHER if self.voice else 1
        for first in range(0, len(missing), size):
            for name, bank in self._make(missing[first : first + size], self.engine).items():
                self.banks[name] = bank
                self._filled += 1
                if self.progress is not None:
                    self.progress(self._filled)
        return set(missing)

    def askable(self) -> list[str]:
        """Return the names of all banks that the partner could ever draw from."""
        return ["|".join(filter(None, bank)) for bank in askable(self.scenario, sorted(self.answers))]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides what an engine's model says in all banks; only with an engine."""
        assert self.engine is not None
        names = ("|".join(filter(None, bank)) for bank in sorted(banks_of(self.scenario)))
        keys = [self._key(self.prompt(name), self.engine) for name in names]
        return hashlib.sha256("".join(keys).encode()).hexdigest()

    def preload(self, banks: Mapping[str, Sequence[str]]) -> None:
        """Take banks from elsewhere, such as a trace; they go before any others."""
        for name, wordings in banks.items():
            self.banks[name] = Bank(tuple(wordings))
            part, _, act = _named(name)
            if act:
                self.answers.add((part, act))
            self._in_use.pop(("partner", name), None)

    def identity(self) -> dict[str, Any]:
        """Name all that decides the words, by version and content."""
        model = {"engine": self.engine.identity, "guard": GUARD_VERSION} if self.engine else {"engine": "template"}
        return {"version": VERSION, "sentences_sha256": self.scenario.sentences_digest, **model}

    def report(self) -> WordingReport:
        """Say how the utterances so far came about."""
        said = max(self._utterances, 1)
        accepted = sum(len(bank.accepted) for bank in self.banks.values())
        candidates = sum(bank.candidates for bank in self.banks.values())
        distinct: dict[str, set[str]] = defaultdict(set)
        for name, bank in self.banks.items():
            distinct[name.partition("/")[0].partition("|")[0]].update(bank.accepted)
        return WordingReport(
            self._utterances, self._by_model / said, 1 - self._with_call / said, candidates,
            accepted / max(candidates, 1), {act: len(wordings) for act, wordings in sorted(distinct.items())},
        )  # fmt: skip

    def prompt(self, name: str) -> str:
        """Return what the engine continues to fill a bank; slots stand there as their examples."""
        part, tone, act = _named(name)
        if self.voice:
            return prompts.prompt(prompts.messages(self.scenario, part, tone, act))
        lines = [fill(text, self.scenario.examples) for text in _sentences(self.scenario, part, tone)]
        situation = fill(self.scenario.sentences["situations"][part], self.scenario.examples)
        role = self.scenario.partner_role
        article = "an" if tone[0] in "aeiou" else "a"
        return (
            f"{situation}\nDifferent ways in which {article} {tone} {role} says that in one short sentence:\n"
            + "".join(f"- {line}\n" for line in lines)
            + "-"
        )

    def _answering(self, meaning: Meaning, act: str) -> tuple[str, ...]:
        """Return the names of an utterance's banks; what it says first is what answers the agent."""
        if (meaning.parts[0], act) not in self.answers:
            return meaning.banks
        first, *more = meaning.banks
        return (f"{first}|{act}", *more)

    def _wordings(self, role: str, part: str, tone: str, name: str) -> Sequence[str]:
        """Look up what is drawn from, and remember it."""
        wordings: Sequence[str]
        if role == "agent":
            wordings = self.scenario.sentences["agent"][part]
        else:
            wordings = _sentences(self.scenario, part, tone)
            if name in self.banks:
                self.used[name] = list(self.banks[name].accepted)
                wordings = self.banks[name].accepted or wordings[:1]
        self._in_use[role, name] = wordings
        return wordings

    @functools.cached_property
    def _guard(self) -> Guard:
        from chatgym.words.nlu import nlu_of

        return Guard(self.scenario, nlu_of(self.scenario))

    @functools.cached_property
    def _shipped(self) -> Mapping[str, Bank]:
        """The banks that ship with the scenario; none if other words would be made today."""
        found = shipped(self.scenario) if self._cache is None else None
        if found and self.engine and found.engine == self.engine.identity and found.key == self.digest:
            return found.banks
        return {}

    @functools.cached_property
    def _store(self) -> Cache:
        """Where banks are kept: the words of all runs, or the record that the engine's completions belong to."""
        return self._cache or Cache(default_path())

    def _stored(self, name: str, engine: Engine) -> Bank | None:
        """Return a bank that was made before."""
        key = self._key(self.prompt(name), engine)
        try:
            return None if (stored := self._store.get(key)) is None else Bank.from_json(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupted(f"the cache {str(self._store.path)!r} holds no bank under {key[:12]} ({error}); "
                            "delete the file: its words are made again") from error  # fmt: skip

    def _make(self, names: Sequence[str], engine: Engine) -> dict[str, Bank]:
        """Have the model fill banks, in one call or two, and store them."""
        made = {name: _Making(self.prompt(name)) for name in names}
        for round_ in range(2):
            asked = [name for name in names if len(made[name].accepted) < ENOUGH]
            rows = LISTS if self.voice else CANDIDATES
            given = [made[name].prompt for name in asked for _ in range(rows)]
            seeds = [int(rng.bits(made[name].root, round_, row)) for name in asked for row in range(rows)]
            sampling = LIST_SAMPLING if self.voice else SAMPLING
            completions = engine.generate(given, seeds=seeds, logprobs=not self.voice, **sampling) if given else []
            for i, name in enumerate(asked):
                self._judge(name, completions[i * rows : (i + 1) * rows], made[name])
        banks = {name: Bank(tuple(found.accepted), tuple(found.rejected)) for name, found in made.items()}
        for name, bank in banks.items():
            self._store.put(self._key(made[name].prompt, engine), bank.to_json())
        return banks

    def _judge(self, name: str, completions: Sequence[Completion], found: _Making) -> None:
        """Let the guard look at what a model said for a bank."""
        part, tone, act = _named(name)
        likely = None
        if self.voice:
            texts = [line for completion in completions for line in list_lines(completion)]
        else:
            texts = [c.text if c.finish_reason == "stop" else f"{c.text} ..." for c in completions]
            likely = [sum(c.logprobs) / len(c.logprobs) if c.logprobs else 0.0 for c in completions]
            shown = {fill(text, self.scenario.examples).lower() for text in _sentences(self.scenario, part, tone)}
        for text, verdict in zip(texts, self._guard.check(texts, part, tone, likely, act), strict=True):
            if not self.voice and tidy(text).lower() in shown:
                found.rejected.append((text.strip(), "an example"))
            elif verdict.wording and verdict.wording not in found.accepted:
                found.accepted[verdict.wording] = None
            else:
                found.rejected.append((text.strip(), verdict.reason or "said before"))

    def _key(self, prompt: str, engine: Engine) -> str:
        guard = [GUARD_VERSION, data_digest(self.scenario)]
        parts: list[Any] = [VERSION, guard, self.scenario.sentences_digest, engine.identity, prompt]
        parts += [LISTS, LIST_SAMPLING] if self.voice else [CANDIDATES, SAMPLING]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Making:
    """A bank while it is made: what it is asked with, the root of its seeds, what was said so far."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.root = np.uint64(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big"))
        self.accepted: dict[str, None] = {}
        self.rejected: list[tuple[str, str]] = []


def _named(name: str) -> tuple[str, str, str]:
    """Return a bank's part, tone, and the agent's act that it answers, empty where it answers any."""
    part, tone, *act = name.split("|")
    return part, tone, act[0] if act else ""


def list_lines(completion: Completion) -> list[str]:
    """Return the wordings in a list; one that was cut off is none."""
    lines = completion.text.split("\n")
    return [line for line in (lines[:-1] if completion.finish_reason == "length" else lines) if line.strip()]


def _sentences(scenario: Scenario, part: str, tone: str) -> list[str]:
    tones: dict[str, list[str]] = scenario.sentences["partner"][part]
    return tones.get(tone) or tones["calm"]
