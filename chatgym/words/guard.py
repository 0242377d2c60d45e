"""The wording guard: it rejects a language model's wordings that don't say what was meant.

A weak model swaps roles, drops numbers and makes things up. A wording passes if a person wrote it for the part and the
tone. Any other wording passes if the model finds it likely; it is plain English in the scenario's vocabulary; it denies
nothing that the part's own sentences don't deny; it doesn't answer another act of the agent; it names exactly the
part's slots; and NLU recognises the part, the role and the tone.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgym.scenarios import Scenario, fill
from chatgym.words.charset import CHARSET
from chatgym.words.encoder import WIDTH
from chatgym.words.nlu import NLU, OUT_OF_DOMAIN, labelled
from chatgym.words.voice.wordings import wordings

VERSION = 5
MAX_CHARS = 120
MIN_LOGPROB = -1.1
"""Least mean log-probability of a wording's tokens, under the distribution they were sampled from."""
MIN_CONFIDENCE = 0.45
"""Least probability of the parts about the intended value, in sum."""
MIN_ACT = 0.2
"""Least probability of the intended part: informing of a value and correcting it sound much alike."""

MAX_OTHER_ROLE = 0.5
MIN_TONE = 0.2
MIN_SIMILARITY = 0.5
"""Least cosine similarity to the nearest of the part's own sentences in the tone."""
TOGETHER = 16
"""Sentences that are encoded at once; it decides their last bits."""
TELLING = 2
"""A word is typical of answers to an act of the agent if so many wordings that answer it use the word."""
COMMON = 0.25
"""A word is typical of no part if at least this share of a scenario's parts use it."""
DENYING = 0.4
"""If at least this share of a part's sentences deny something, wordings may deny anything, and NLU decides."""

_MARKS = re.compile(r"^(?:[\s\-*•(\"'“”‘’]|\d+[.)]\s)+(?=\S)|[\s\"“”]+$")
_STRANGE = re.compile(r"[\[\]{}<>|_#*=\\/@:;\"()]|\.\.|…|https?|www", re.I)
_NAME = re.compile(r"(?<=[a-z,] )(?!I\b|I')[A-Z]\w*")
_SPAN = re.compile(r"\b(?:days|weeks|months|years|hours|minutes|dollars?|euros?|pounds?|percent)\b", re.I)
_DENIAL = re.compile(r"\b(?:\w+n't|not|never|nothing|nobody|none|cannot|without|hardly)\b(?: [\w']+){0,2}", re.I)
_HARMLESS = re.compile(r"not (?:sure|happy|okay|fair|right|working|possible)\b", re.I)
_LINKS = frozenset(("is", "it's", "said", "that's", "was"))
"""Words that can precede any value; so can any word with a comma."""
_CLAUSE = re.compile(r"\b(?:how|what|where|who|why) (?:it|that|this) (?:is|was)[.!?]+$", re.I)
_UNFINISHED = re.compile(r"\b(?:of|to|for|with|at|from|the|an?|and|or|but|my|your|is|was|it's|i'm)[.!?]+$", re.I)
_POLITE = re.compile(r"\b(?:sorry|please|thank\w*|appreciate|glad|afraid)\b", re.I)
_HABITS = re.compile(  # what weak models often write: it says little, or belongs to the other role
    r"\bgoing to\b|\byou're\b|\bI'm here\b|\btell you\b|\bwhat do you mean\b|\bsaid sorry\b|\bwe\b|\bour\b|"
    r"\bhelp you\b|\bto help\b|\bcan i do\b|\bmay i help\b|\bi can help\b|\bfor you\b|\byou an?\b|\byou said\b|"
    r"\bi should be\b|\bmeant no\b", re.I,
)  # fmt: skip
_OPENING = re.compile(r"(?:no|yes)\b|you(?:'re)? \w+\b")  # the first words decide the meaning of the rest
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Verdict:
    """The guard's verdict: the `wording` with ``{name}`` for slot values, or None and the `reason` it was rejected."""

    wording: str | None
    reason: str = ""


@dataclass(frozen=True)
class _Part:
    """What the guard takes from a part's own sentences, for a tone and an act of the agent.

    Attributes:
        known: Sentences in the tone that fit after the act: in the form of `_plain`, to that with ``{name}``.
        in_tone: Sentences in the tone.
        text: Sentences in all tones, in lower case.
        words: Words that a wording may use.
        last_words: Words that sentences end with.
        denials: Denials in the sentences, such as "not working".
        denying: Whether wordings may deny anything, see `DENYING`.
        slots: Names of the slots in the sentences.
        elsewhere: Words that are typical of answers to other acts of the agent.
    """

    known: dict[str, str]
    in_tone: tuple[str, ...]
    text: str
    words: frozenset[str]
    last_words: frozenset[str]
    denials: frozenset[str]
    denying: bool
    slots: frozenset[str]
    elsewhere: frozenset[str]


class Guard:
    """Checks wordings of the partner in one scenario."""

    def __init__(self, scenario: Scenario, nlu: NLU, *, margin: float = 0.0) -> None:
        """Make a guard that uses `nlu`; `margin` is added to the probabilities that a wording needs."""
        self.scenario, self.nlu, self.margin = scenario, nlu, margin
        self._sentences: dict[str, list[str]] = {}
        for head, label, text in labelled(scenario, contrasts=False):
            if head == "partner" and label != OUT_OF_DOMAIN:
                self._sentences.setdefault(label, []).append(text)
        texts = [text for texts in self._sentences.values() for text in texts]
        self._vocabulary = {*scenario.sentences["vocabulary"], *_WORD.findall(" ".join(texts).lower())}
        used = Counter(word for label in self._sentences for word in _words(self._sentences[label]))
        self._common = frozenset(word for word, parts in used.items() if parts >= COMMON * len(self._sentences))

    def check(
        self, texts: Sequence[str], part: str, tone: str, logprobs: Sequence[float] | None = None, act: str = ""
    ) -> list[Verdict]:
        """Check wordings.

        Args:
            texts: N wordings, with `Scenario.examples` as the values of slots.
            part: The part that they should say.
            tone: The tone that they should have.
            logprobs: N mean log-probabilities of the wordings' tokens, or None.
            act: The agent's act that they answer, or empty.

        Returns:
            N verdicts.
        """
        own = self._part(part, tone, act)
        verdicts = [self._form(tidy(text), own, tone) for text in texts]
        for i, logprob in enumerate(logprobs or ()):
            if logprob < MIN_LOGPROB:
                verdicts[i] = Verdict(None, f"unlikely ({logprob:.2f})")
        known = [own.known.get(_plain(tidy(text))) for text in texts]
        passed = [i for i, verdict in enumerate(verdicts) if verdict.wording is not None and not known[i]]
        readable = [fill(str(verdicts[i].wording), self.scenario.examples) for i in passed]
        for i, reason in zip(passed, self._meaning(readable, part, tone, own), strict=True):
            if reason:
                verdicts[i] = Verdict(None, reason)
        return [Verdict(wording) if wording else verdict for wording, verdict in zip(known, verdicts, strict=True)]

    @functools.cache  # noqa: B019 (as many as there are parts, tones and acts)
    def _part(self, part: str, tone: str, act: str) -> _Part:
        scenario = self.scenario
        tones = scenario.sentences["partner"][part]
        templates: list[str] = list(tones.get(tone) or tones["calm"])
        fitting = list(templates)
        mine: list[str] = [text for texts in tones.values() for text in texts]
        others: dict[str, list[str]] = {}
        for bank in (bank for bank in wordings(scenario) if bank.part == part):
            (mine if bank.act in ("", act) else others.setdefault(bank.act, [])).extend(bank.texts)
            if bank.tone == tone:
                templates += bank.texts
                fitting += bank.texts if bank.act in ("", act) else ()
        text = " \n ".join(self._sentences[part]).lower()
        slots = frozenset(name for name in scenario.examples if "{" + name + "}" in templates[0])
        if slots:  # around a value, only words that some part uses around it
            same = [" ".join(texts) for label, texts in self._sentences.items() if _same_value(label, part)]
            words = frozenset(_WORD.findall(" ".join(same).lower())) | self._common
        else:
            words = frozenset(self._vocabulary)
        return _Part(
            known={_plain(tidy(fill(wording, scenario.examples))): wording for wording in fitting},
            in_tone=tuple(fill(template, scenario.examples) for template in templates),
            text=text, words=words, last_words=frozenset(re.findall(r"([a-z']+)[.!?]+\s*(?:\n|$)", text)),
            denials=frozenset(_DENIAL.findall(text)), slots=slots,
            denying=not slots and _share_that_denies(self._sentences[part]) >= DENYING,
            elsewhere=frozenset(word for texts in others.values() for word in _telling(texts))
            - _words(mine) - self._common,
        )  # fmt: skip

    def _form(self, text: str, own: _Part, tone: str) -> Verdict:
        """Check the form of a wording, without NLU."""
        low = text.lower()
        strange = not 2 <= len(text) <= MAX_CHARS or not set(text) <= CHARSET or _STRANGE.search(text)
        unfinished = (
            (end := _UNFINISHED.search(low)) and end[0].rstrip(".!?") not in own.last_words and not _CLAUSE.search(low)
        )
        if strange or unfinished or _NAME.search(text) or self.scenario.partner_role in low:
            return Verdict(None, "not a plain sentence")
        if told := sorted(own.elsewhere.intersection(_WORD.findall(low))):
            return Verdict(None, f"{told[0]!r} answers another act")
        if unheard := sorted(set(_WORD.findall(low)) - own.words):
            return Verdict(None, f"the word {unheard[0]!r}")
        denied = [] if own.denying else _DENIAL.findall(low)
        if foreign := [found for found in denied if found not in own.denials and not _HARMLESS.match(found)]:
            return Verdict(None, f"denies {foreign[0]!r}")
        habits = _HABITS.findall(low) + (_POLITE.findall(low) if tone == "angry" else [])
        if foreign := [found for found in habits if found not in own.text]:
            return Verdict(None, f"says {foreign[0]!r}")
        opening = _OPENING.match(low)
        if "yes, no" in low or (opening and not re.search(rf"^\s*{opening[0]}\b", own.text, re.M)):
            return Verdict(None, f"opens with {low.split()[0]!r}")
        return self._slots(text, own)

    def _slots(self, text: str, own: _Part) -> Verdict:
        """Check that a text names exactly the part's slots, and replace the values by ``{name}``."""
        named, _ = self.scenario.find_slots(text)
        if set(named) != own.slots:
            return Verdict(None, f"names {', '.join(sorted(named)) or 'no value'}")
        for slot in own.slots:
            surface = self.scenario.examples[slot]
            before, *after = re.split(re.escape(surface), text, flags=re.I)
            if len(after) != 1:
                return Verdict(None, f"another {slot}")
            word = (before.lower().split() or ["-"])[-1]
            free = word == "-" or word.endswith(",") or word in _LINKS
            if not free and f"{word} {surface}" not in own.text:
                return Verdict(None, f"{word!r} before a {slot}")
            text = f"{before}{{{slot}}}{after[0]}"
        if re.search(r"\d", text) or _SPAN.search(text):
            return Verdict(None, "a number or a time that was not meant")
        return Verdict(text)

    def _meaning(self, texts: list[str], part: str, tone: str, own: _Part) -> list[str]:
        """Check part, role and tone by NLU; returns a reason for each text, empty if it passes."""
        if not texts:
            return []
        heads = self.nlu.heads
        features = self.nlu.encoder.features(texts, TOGETHER)  # most of the guard's time goes here
        similarity = (features[:, :WIDTH] @ self.nlu.examples(own.in_tone).T).max(1)
        parts, roles, tones = (heads[name].probabilities(features) for name in ("partner", "role", "tone"))
        labels = heads["partner"].labels
        same = [i for i, label in enumerate(labels) if _same_value(label, part)]
        meant, other, sounds = labels.index(part), heads["role"].labels.index("agent"), heads["tone"].labels.index(tone)
        reasons, margin = [], self.margin
        for i in range(len(texts)):
            heard, sure = int(parts[i].argmax()), parts[i, same].sum() >= MIN_CONFIDENCE + margin
            if heard not in same or not sure or parts[i, meant] < MIN_ACT + margin:
                reasons.append(f"sounds like {labels[heard]} ({parts[i, heard]:.2f})")
            elif roles[i, other] > MAX_OTHER_ROLE - margin:
                reasons.append(f"sounds like the other role ({roles[i, other]:.2f})")
            elif tones[i, sounds] < MIN_TONE + margin:
                reasons.append(f"another tone ({tones[i, sounds]:.2f})")
            elif similarity[i] < MIN_SIMILARITY:
                reasons.append(f"unlike all examples ({similarity[i]:.2f})")
            else:
                reasons.append("")
        return reasons


def _same_value(one: str, other: str) -> bool:
    """Return whether two parts are equal, or about the same value (``inform/date``, ``correct/date``)."""
    return one == other or ("/" in one and one.partition("/")[2] == other.partition("/")[2])


def _plain(text: str) -> str:
    """Return a sentence in lower case without the punctuation at its end, for comparing."""
    return text.lower().rstrip(".!? ")


def _share_that_denies(texts: Sequence[str]) -> float:
    """Return the share of texts that deny something."""
    return sum(bool(_DENIAL.search(text)) for text in texts) / len(texts)


def _words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of texts, in lower case."""
    return frozenset(_WORD.findall(" ".join(texts).lower()))


def _telling(texts: Sequence[str]) -> list[str]:
    """Return the words that at least `TELLING` of some wordings use."""
    counts = Counter(word for text in texts for word in _words([text]))
    return [word for word, count in counts.items() if count >= TELLING]


def tidy(text: str) -> str:
    """Return a model's line without list marks and quotes, with a capital letter and punctuation at the end."""
    text = _MARKS.sub("", text.strip()).strip().replace("’", "'").replace("‘", "'")
    text = re.sub(r"!{2,}", "!", re.sub(r"\s+", " ", text))
    if text and text[-1] not in ".!?":
        text += "."
    return text[:1].upper() + text[1:]
