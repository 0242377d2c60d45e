"""The wording guard: a language model's words are heard only if they say what was meant.

A weak model flips roles, drops numbers and makes things up. A wording passes when it is one plain sentence or two,
names exactly the slots that it should, and when NLU recognises the part, the role and the tone in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatgym.interfaces import CHARSET
from chatgym.nlu import NLU
from chatgym.scenarios import Scenario, fill

VERSION = 1
MAX_CHARS = 140
MIN_CONFIDENCE = 0.5
"""Least probability of the intended part."""
MAX_OTHER_ROLE = 0.5
MIN_TONE = 0.2
MIN_SIMILARITY = 0.5
"""Least cosine to the nearest of the part's own sentences."""

_FURNITURE = re.compile(r"^[\s\-*•\d.)(\"'“”‘’]+(?=\S)|[\s\"“”]+$")
_STRANGE = re.compile(r"[\[\]{}<>|_#*=\\/@:;]|\.\.|…|https?|www", re.I)
_NAME = re.compile(r"(?<=[a-z,] )(?!I\b|I')[A-Z]\w*")
_SPAN = re.compile(r"\b(?:days|weeks|months|years|hours|minutes|dollars?|euros?|pounds?|percent)\b", re.I)
_BEFORE_DATE = re.compile(r"\b(?:exactly|about|around|over|than|almost|nearly|only|just|least|most|until|for|since|in|on|"
                          r"the|last|past|within|every|at|from|to|by) \{date\}", re.I)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`wording` with ``{name}`` for slot values if it passed; else None and the `reason`."""

    wording: str | None
    reason: str = ""


class Guard:
    """Checks wordings of one scenario's partner."""

    def __init__(self, scenario: Scenario, nlu: NLU) -> None:
        """Make a guard that understands by `nlu`."""
        self.scenario, self.nlu = scenario, nlu

    def check(self, texts: Sequence[str], part: str, tone: str) -> list[Verdict]:
        """Judge wordings of a part in a tone, in which slots stand as `Scenario.examples`."""
        sentences = self.scenario.sentences["partner"][part]
        own = [fill(text, self.scenario.examples) for text in sentences.get(tone) or sentences["calm"]]
        slots = {name for name in self.scenario.examples if "{" + name + "}" in own_template(sentences, tone)}
        verdicts = [self._form(tidy(text), slots, own) for text in texts]
        passed = [i for i, verdict in enumerate(verdicts) if verdict.wording is not None]
        readable = [fill(str(verdicts[i].wording), self.scenario.examples) for i in passed]
        for i, reason in zip(passed, self._meaning(readable, part, tone, own), strict=True):
            if reason:
                verdicts[i] = Verdict(None, reason)
        return verdicts

    def _form(self, text: str, slots: set[str], own: Sequence[str]) -> Verdict:
        """Check what can be seen without understanding."""
        if not 2 <= len(text) <= MAX_CHARS:
            return Verdict(None, "too short or too long")
        if not set(text) <= CHARSET or _STRANGE.search(text):
            return Verdict(None, "strange characters or cut off")
        if text.lower() in (sentence.lower() for sentence in own):
            return Verdict(None, "an example")
        if _NAME.search(text):
            return Verdict(None, "a name")
        named, _ = self.scenario.find_slots(text)
        if set(named) != slots:
            return Verdict(None, f"names {sorted(named) or 'no slot'}")
        wording = text
        for slot in slots:
            wording = re.sub(re.escape(self.scenario.examples[slot]), "{" + slot + "}", wording, flags=re.I)
            if wording.count("{" + slot + "}") != 1:
                return Verdict(None, f"another {slot}")
        if re.search(r"\d", wording) or _SPAN.search(wording) or _BEFORE_DATE.search(wording):
            return Verdict(None, "a number or a time that was not meant")
        return Verdict(wording)

    def _meaning(self, texts: list[str], part: str, tone: str, own: list[str]) -> list[str]:
        """Check what NLU hears; returns a reason for each text, empty where it passes."""
        if not texts:
            return []
        nlu, reasons = self.nlu, []
        vectors = nlu.encoder.encode(texts)
        similarity = (vectors @ nlu.encoder.encode(own).T).max(1)
        parts, roles, tones = (nlu.heads[name].probabilities(vectors) for name in ("partner", "role", "tone"))
        meant = nlu.heads["partner"].labels.index(part)
        other, sounds = nlu.heads["role"].labels.index("agent"), nlu.heads["tone"].labels.index(tone)
        for i in range(len(texts)):
            heard = nlu.heads["partner"].labels[int(np.argmax(parts[i]))]
            if heard != part or parts[i, meant] < MIN_CONFIDENCE:
                reasons.append(f"sounds like {heard} ({parts[i].max():.2f})")
            elif roles[i, other] > MAX_OTHER_ROLE:
                reasons.append(f"the other role ({roles[i, other]:.2f})")
            elif tones[i, sounds] < MIN_TONE:
                reasons.append(f"another tone ({tones[i, sounds]:.2f})")
            elif similarity[i] < MIN_SIMILARITY:
                reasons.append(f"unlike all examples ({similarity[i]:.2f})")
            else:
                reasons.append("")
        return reasons


def own_template(sentences: dict[str, list[str]], tone: str) -> str:
    """Return a part's canonical sentence in a tone."""
    return (sentences.get(tone) or sentences["calm"])[0]


def tidy(text: str) -> str:
    """Take list marks and quotes off a model's line, and end it like a sentence."""
    text = _FURNITURE.sub("", text.strip()).strip()
    text = text.replace("’", "'").replace("‘", "'")
    if text and text[-1] not in ".!?":
        text += "."
    return text[:1].upper() + text[1:]
