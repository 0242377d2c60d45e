"""NLG: from an utterance's meaning to its words.

Each part of an utterance (``"inform/reference"``) in each tone has a bank of wordings. Without a model, a bank holds
the scenario's own sentences. A plain model fills it by continuing a list of those sentences, several times; a voice
(`chatgym.words.voice`) by listing wordings itself, for some parts as answers to the agent's last act. The bank keeps
the wordings that pass the wording guard (`chatgym.words.guard`). Slots are filled in afterwards, so all conversations
share the banks, and a filled bank needs no model. The conversation's key determines which wording is said.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import rng
from chatgym.engines import Completion, Engine
from chatgym.engines.protocol import generated
from chatgym.errors import Corrupted
from chatgym.scenarios import Meaning, Scenario, fill
from chatgym.storage.cache import Cache, default_path
from chatgym.words.banks import Bank, shipped
from chatgym.words.guard import VERSION as GUARD_VERSION
from chatgym.words.guard import Guard, tidy
from chatgym.words.nlu import DOUBT, data_digest
from chatgym.words.voice import is_voice, prompts
from chatgym.words.voice.wordings import answers, askable, banks_of

VERSION = 2
CANDIDATES = 16
"""Continuations sampled at once for a bank, as a batch of their own, so that a bank depends only on its prompt."""
ENOUGH = 2
"""If fewer wordings are accepted, as many candidates are sampled once more."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.7, "top_p": 0.9, "stop": ("\n",)}
LISTS = 2
"""Lists that a voice generates for a bank."""
LIST_SAMPLING: dict[str, Any] = {"max_new_tokens": 160, "temperature": 0.6, "top_p": 0.95}
TOGETHER = 8
"""Banks that are filled in one call of a voice; they don't depend on each other."""

JUDGED = 128
"""Wordings of a model after which the speaker warns if nearly none was accepted."""
FEW = 0.05
"""Share of accepted wordings below which it warns; of SmolLM2 without adapter the guard accepts 24 to 29 %."""
NOT_NEW = ("an example", "said before")
"""Reasons of the speaker, not of the guard, to leave a wording out."""

INAUDIBLE = "(inaudible)"
"""Words of an utterance of which nothing was understood."""
AGENT = 100
"""Purposes of the draws of the agent's wordings are those of the partner's plus this."""


@dataclass(frozen=True)
class WordingReport:
    """Statistics of a speaker's utterances of the partner.

    Attributes:
        utterances: Number of utterances.
        by_model: Share of utterances that the model wrote wholly.
        without_call: Share of utterances for which the model wasn't called.
        candidates: Number of wordings sampled for the banks in use, in this run or earlier.
        accepted: Share of the candidates that passed the guard.
        distinct: Dialogue act to its number of distinct wordings.
    """

    utterances: int
    by_model: float
    without_call: float
    candidates: int
    accepted: float
    distinct: Mapping[str, int]


class Speaker:
    """Turns the utterances of one scenario into words.

    Attributes:
        voice: Whether the engine's model is a voice, see `chatgym.words.voice`.
        answers: Pairs (part, agent's act) that have banks of their own.
        used: Name to wordings of the banks that a model filled and that were drawn from; a replay needs them.
        progress: Called after each bank with the number of banks that the model has filled; a bank takes seconds.
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
        self._warned = False

    def say(
        self, meanings: Sequence[Meaning], keys: npt.NDArray[np.uint64], turns: npt.NDArray[np.int64],
        role: str = "partner", acts: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """Return utterances' words.

        Args:
            meanings: B meanings.
            keys: uint64[B], the conversations' keys.
            turns: int64[B], their turns.
            role: ``"partner"``, or ``"agent"``, whose words are always the scenario's own sentences.
            acts: B acts of the agent that the utterances answer, or empty.

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
                if part in meaning.unsure:
                    said[-1] = doubted(said[-1])
            texts.append(said[0] if len(said) == 1 else " ".join(said) or INAUDIBLE)
        if role == "partner":
            self._utterances += len(texts)
            if self.engine is not None:
                self._by_model += sum(all(self.banks[name].accepted for name in names) for names in banks)
                self._with_call += sum(not called.isdisjoint(names) for names in banks)
        return texts

    def prepare(self, names: Sequence[str] | None = None) -> set[str]:
        """Fill banks by the engine before they are used.

        Args:
            names: Names of banks; None for all that the partner can use.

        Returns:
            Names of the banks for which the model was called; the others were known or stored.
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
        if new and not self._warned:
            self._warn(self.engine)
        return set(missing)

    def _warn(self, engine: Engine) -> None:
        """Warn once if the guard refuses nearly all of the model's wordings."""
        candidates = sum(bank.candidates for bank in self.banks.values())
        refused = [one for bank in self.banks.values() for one in bank.rejected if one[1] not in NOT_NEW]
        if candidates < JUDGED or len(refused) <= (1 - FEW) * candidates:
            return
        self._warned = True
        text, reason = refused[0]
        warnings.warn(
            f"the wording guard refuses {len(refused) / candidates:.0%} of what {engine.identity} writes "
            f"({candidates:,} wordings so far, such as {text[:60]!r}: {reason}), so the partner speaks in the "
            "scenario's own sentences; take another model, such as smollm2-135m-partner or one that `chatgym voice` "
            "trained, or let the model play the partner (simulator='llm')",
            RuntimeWarning,
            stacklevel=2,
        )

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
        """Use banks from elsewhere, such as a trace, in place of the speaker's own."""
        for name, wordings in banks.items():
            self.banks[name] = Bank(tuple(wordings))
            part, _, act = _named(name)
            if act:
                self.answers.add((part, act))
            self._in_use.pop(("partner", name), None)

    def identity(self) -> dict[str, Any]:
        """Return what determines the words: versions and digests."""
        model = {"engine": self.engine.identity, "guard": GUARD_VERSION} if self.engine else {"engine": "template"}
        return {"version": VERSION, "sentences_sha256": self.scenario.sentences_digest, **model}

    def report(self) -> WordingReport:
        """Return statistics of the utterances so far."""
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
        """Return the prompt that fills a bank, with slots replaced by their examples."""
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
        """Return the names of an utterance's banks; its first part is the one that answers the agent's act."""
        if not meaning.parts or (meaning.parts[0], act) not in self.answers:
            return meaning.banks
        first, *more = meaning.banks
        return (f"{first}|{act}", *more)

    def _wordings(self, role: str, part: str, tone: str, name: str) -> Sequence[str]:
        """Return the wordings to draw from, and remember them."""
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
        """The scenario's wording guard."""
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
        return self._cache or Cache(default_path(), lasting=False)

    def _stored(self, name: str, engine: Engine) -> Bank | None:
        """Return a stored bank, or None."""
        key = self._key(self.prompt(name), engine)
        try:
            return None if (stored := self._store.get(key)) is None else Bank.from_json(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupted(f"the cache {str(self._store.path)!r} holds no bank under {key[:12]} ({error}); "
                            "delete the file: its words are made again") from error  # fmt: skip

    def _make(self, names: Sequence[str], engine: Engine) -> dict[str, Bank]:
        """Fill banks by one or two calls of the model, and store them."""
        made = {name: _Making(self.prompt(name)) for name in names}
        for round_ in range(2):
            asked = [name for name in names if len(made[name].accepted) < ENOUGH]
            rows = LISTS if self.voice else CANDIDATES
            given = [made[name].prompt for name in asked for _ in range(rows)]
            seeds = [int(rng.bits(made[name].root, round_, row)) for name in asked for row in range(rows)]
            sampling = LIST_SAMPLING if self.voice else SAMPLING
            completions = generated(engine, given, seeds=seeds, logprobs=not self.voice, **sampling) if given else []
            for i, name in enumerate(asked):
                self._judge(name, completions[i * rows : (i + 1) * rows], made[name])
        banks = {name: Bank(tuple(found.accepted), tuple(found.rejected)) for name, found in made.items()}
        for name, bank in banks.items():
            self._store.put(self._key(made[name].prompt, engine), bank.to_json())
        return banks

    def _judge(self, name: str, completions: Sequence[Completion], found: _Making) -> None:
        """Let the guard check a model's completions for a bank, and add the verdicts to `found`."""
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
                found.rejected.append((text.strip(), NOT_NEW[0]))
            elif verdict.wording and verdict.wording not in found.accepted:
                found.accepted[verdict.wording] = None
            else:
                found.rejected.append((text.strip(), verdict.reason or NOT_NEW[1]))

    def _key(self, prompt: str, engine: Engine) -> str:
        """Return the key of a bank in the store: a SHA-256 of everything that determines it."""
        guard = [GUARD_VERSION, data_digest(self.scenario)]
        parts: list[Any] = [VERSION, guard, self.scenario.sentences_digest, engine.identity, prompt]
        parts += [LISTS, LIST_SAMPLING] if self.voice else [CANDIDATES, SAMPLING]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def doubted(sentence: str) -> str:
    """Return a sentence with the mark of low confidence, `DOUBT`, before its last punctuation."""
    words = sentence.rstrip(".!?…")
    return f"{words}{DOUBT}{sentence[len(words) :]}"


class _Making:
    """A bank while it is filled.

    Attributes:
        prompt: The model's prompt.
        root: Root of the seeds.
        accepted, rejected: See `Bank`.
    """

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.root = np.uint64(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big"))
        self.accepted: dict[str, None] = {}
        self.rejected: list[tuple[str, str]] = []


def _named(name: str) -> tuple[str, str, str]:
    """Return the part, the tone and the agent's act in a bank's name; the act is empty if there is none."""
    part, tone, *act = name.split("|")
    return part, tone, act[0] if act else ""


def list_lines(completion: Completion) -> list[str]:
    """Return the wordings in a completion, one a line, without a last one that was cut off."""
    lines = completion.text.split("\n")
    return [line for line in (lines[:-1] if completion.finish_reason == "length" else lines) if line.strip()]


def _sentences(scenario: Scenario, part: str, tone: str) -> list[str]:
    """Return the partner's own sentences of a part in a tone, or in the calm one if there are none."""
    tones: dict[str, list[str]] = scenario.sentences["partner"][part]
    return tones.get(tone) or tones["calm"]
