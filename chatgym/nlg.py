"""NLG: from what an utterance means to words.

A part of an utterance (``"inform/reference"``) in a tone has a bank of wordings. Without a model that is the
scenario's own sentences. With one, the model continues a list of those sentences, several times; the wording guard
(`chatgym.guard`) keeps what says the right thing, and that is the bank. Slots are filled in afterwards, so a bank
serves every conversation, and after it was made once no model is needed. Which wording of a bank is said is a draw of
the conversation's key.
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

from chatgym import rng
from chatgym.cache import Cache, default_path
from chatgym.engines import Engine
from chatgym.errors import Corrupted
from chatgym.guard import VERSION as GUARD_VERSION
from chatgym.guard import Guard
from chatgym.nlu import data_digest
from chatgym.scenarios import Meaning, Scenario, fill

VERSION = 1
CANDIDATES = 16
"""Continuations sampled at once for a bank: a batch of its own, so a bank depends on nothing but its prompt."""
ENOUGH = 2
"""With fewer accepted wordings than that, as many candidates are sampled once more."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.7, "top_p": 0.9, "stop": ("\n",)}
AGENT = 100
"""Offset of the purposes that choose the agent's wordings from the partner's."""


@dataclass(frozen=True)
class Bank:
    """Wordings of one part in one tone, ``{name}`` where a slot's value belongs.

    Attributes:
        accepted: What the guard let pass, in the order of sampling.
        rejected: (text, reason) of the others.
    """

    accepted: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...] = ()


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
        used: Name to wordings of the banks that a model filled and that were drawn from: what a replay needs.
        progress: Called with how many banks the model filled so far, after each one; it takes a second or two.
    """

    def __init__(self, scenario: Scenario, engine: Engine | None = None, *, cache: Cache | None = None) -> None:
        """Make a speaker; without `engine` it says the scenario's own sentences."""
        self.scenario, self.engine = scenario, engine
        self.banks: dict[str, Bank] = {}
        self.used: dict[str, list[str]] = {}
        self.progress: Callable[[int], None] | None = None
        self._cache = cache
        self._in_use: dict[tuple[str, str], Sequence[str]] = {}  # (role, name of a bank) to what is drawn from
        self._utterances = self._by_model = self._with_call = self._filled = 0

    def say(
        self, meanings: Sequence[Meaning], keys: npt.NDArray[np.uint64], turns: npt.NDArray[np.int64],
        role: str = "partner",
    ) -> list[str]:  # fmt: skip
        """Word utterances.

        Args:
            meanings: What to say, B of them.
            keys: uint64[B], the conversations' keys.
            turns: int64[B], their turns.
            role: ``"partner"``, or ``"agent"``, whose words are always the scenario's own.

        Returns:
            B texts.
        """
        called = set()
        if role == "partner" and self.engine is not None:
            called = self.prepare([name for meaning in meanings for name in meaning.banks])
        first = rng.WORDING + (AGENT if role == "agent" else 0)
        texts = []
        for meaning, key, turn in zip(meanings, keys.tolist(), turns.tolist(), strict=True):
            said = []
            for purpose, (part, name) in enumerate(zip(meaning.parts, meaning.banks, strict=True), first):
                bank = self._in_use.get((role, name)) or self._wordings(role, part, meaning.tone, name)
                said.append(fill(bank[rng.randint(key, turn, purpose, len(bank))], meaning.slots))
            texts.append(said[0] if len(said) == 1 else " ".join(said))
        if role == "partner":
            self._utterances += len(texts)
            if self.engine is not None:
                self._by_model += sum(all(self.banks[name].accepted for name in meaning.banks) for meaning in meanings)
                self._with_call += sum(not called.isdisjoint(meaning.banks) for meaning in meanings)
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
        if names is None:
            partner = self.scenario.sentences["partner"]
            names = [f"{part}|{tone}" for part, tones in partner.items() for tone in tones]
        called = set()
        for name in dict.fromkeys(names):
            if name in self.banks:
                continue
            self.banks[name], made = self._fetch(name, self.engine)
            if made:
                called.add(name)
                self._filled += 1
                if self.progress is not None:
                    self.progress(self._filled)
        return called

    def preload(self, banks: Mapping[str, Sequence[str]]) -> None:
        """Take banks from elsewhere, such as a trace; they go before any others."""
        for name, wordings in banks.items():
            self.banks[name] = Bank(tuple(wordings))
            self._in_use.pop(("partner", name), None)

    def identity(self) -> dict[str, Any]:
        """Name all that decides the words, by version and content."""
        model = {"engine": self.engine.identity, "guard": GUARD_VERSION} if self.engine else {"engine": "template"}
        return {"version": VERSION, "sentences_sha256": self.scenario.sentences_digest, **model}

    def report(self) -> WordingReport:
        """Say how the utterances so far came about."""
        said = max(self._utterances, 1)
        accepted = sum(len(bank.accepted) for bank in self.banks.values())
        candidates = accepted + sum(len(bank.rejected) for bank in self.banks.values())
        distinct: dict[str, set[str]] = defaultdict(set)
        for name, bank in self.banks.items():
            distinct[name.partition("/")[0].partition("|")[0]].update(bank.accepted)
        return WordingReport(
            self._utterances, self._by_model / said, 1 - self._with_call / said, candidates,
            accepted / max(candidates, 1), {act: len(wordings) for act, wordings in sorted(distinct.items())},
        )  # fmt: skip

    def prompt(self, name: str) -> str:
        """Return what the engine continues to fill a bank; slots stand there as their examples."""
        part, tone = name.split("|")
        lines = [fill(text, self.scenario.examples) for text in _sentences(self.scenario, part, tone)]
        situation = fill(self.scenario.sentences["situations"][part], self.scenario.examples)
        role = self.scenario.partner_role
        article = "an" if tone[0] in "aeiou" else "a"
        return (
            f"{situation}\nDifferent ways in which {article} {tone} {role} says that in one short sentence:\n"
            + "".join(f"- {line}\n" for line in lines)
            + "-"
        )

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
        from chatgym.nlu import nlu_of

        return Guard(self.scenario, nlu_of(self.scenario))

    def _fetch(self, name: str, engine: Engine) -> tuple[Bank, bool]:
        """Return a bank, and whether it had to be made."""
        if self._cache is None:
            record = getattr(engine, "cache", None)  # of `chatgym.engines.recorded`: the banks belong to it
            self._cache = record if isinstance(record, Cache) else Cache(default_path())
        prompt = self.prompt(name)
        key = self._key(prompt, engine)
        stored = self._cache.get(key)
        if stored is not None:
            try:
                found = json.loads(stored)
                return Bank(tuple(found["accepted"]), tuple((text, why) for text, why in found["rejected"])), False
            except (ValueError, TypeError, KeyError) as error:
                raise Corrupted(f"the cache {str(self._cache.path)!r} holds no bank under {key[:12]} ({error}); "
                                "delete the file: its words are made again") from error  # fmt: skip
        bank = self._make(name, prompt, engine)
        self._cache.put(key, json.dumps({"accepted": bank.accepted, "rejected": bank.rejected}, ensure_ascii=False))
        return bank, True

    def _make(self, name: str, prompt: str, engine: Engine) -> Bank:
        part, tone = name.split("|")
        root = np.uint64(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big"))
        accepted: dict[str, None] = {}
        rejected: list[tuple[str, str]] = []
        for round_ in range(2):
            seeds = [int(rng.bits(root, round_, candidate)) for candidate in range(CANDIDATES)]
            completions = engine.generate([prompt] * CANDIDATES, seeds=seeds, logprobs=True, **SAMPLING)
            texts = [c.text if c.finish_reason == "stop" else f"{c.text} ..." for c in completions]
            likely = [sum(c.logprobs) / len(c.logprobs) if c.logprobs else 0.0 for c in completions]
            for text, verdict in zip(texts, self._guard.check(texts, part, tone, likely), strict=True):
                if verdict.wording and verdict.wording not in accepted:
                    accepted[verdict.wording] = None
                else:
                    rejected.append((text.strip(), verdict.reason or "said before"))
            if len(accepted) >= ENOUGH:
                break
        return Bank(tuple(accepted), tuple(rejected))

    def _key(self, prompt: str, engine: Engine) -> str:
        guard = [GUARD_VERSION, data_digest(self.scenario)]
        parts = [VERSION, guard, self.scenario.sentences_digest, engine.identity, prompt, CANDIDATES, SAMPLING]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sentences(scenario: Scenario, part: str, tone: str) -> list[str]:
    tones: dict[str, list[str]] = scenario.sentences["partner"][part]
    return tones.get(tone) or tones["calm"]
