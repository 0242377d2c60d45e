"""How people word the partner: what a voice learns from, read from a scenario's ``voice.json``.

The file holds, written by hand, ``wordings`` (part -> tone -> wordings), ``answers`` (part -> agent act -> tone ->
wordings that fit after that act only) and ``agent`` (agent act -> what a voice is told that the agent said, where the
act's first sentence won't do). Slots stand in wordings as ``{name}``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatgym.errors import Corrupted
from chatgym.scenarios import Scenario

FILE = "voice.json"

Asked = tuple[str, str, str]
"""What a voice is asked for: part, tone, and the agent's act, empty where it makes no difference."""


@dataclass(frozen=True)
class Wordings:
    """Wordings of one part in one tone; those with an `act` of the agent's answer it."""

    part: str
    tone: str
    act: str
    texts: tuple[str, ...]


def wordings(scenario: Scenario) -> Iterator[Wordings]:
    """Yield a scenario's wordings, none when it has no ``voice.json``.

    Raises:
        Corrupted: The file isn't as the module says.
    """
    said = _read(scenario)
    for part, tones in said.get("wordings", {}).items():
        for tone, texts in tones.items():
            yield Wordings(part, tone, "", tuple(texts))
    for part, acts in said.get("answers", {}).items():
        for act, tones in acts.items():
            for tone, texts in tones.items():
                yield Wordings(part, tone, act, tuple(texts))


def answers(scenario: Scenario) -> dict[str, tuple[str, ...]]:
    """Return the parts whose wordings hang on the agent's last act, each with the acts that make a difference."""
    return {part: tuple(acts) for part, acts in _read(scenario).get("answers", {}).items()}


def askable(scenario: Scenario, answering: Iterable[tuple[str, str]]) -> list[Asked]:
    """Return all that a partner can be asked to word: part, tone, and the agent's act where it makes a difference.

    Args:
        scenario: Whose partner.
        answering: Pairs of a part and an act that its wordings hang on.
    """
    partner = scenario.sentences["partner"]
    plain = [(part, tone, "") for part, tones in partner.items() for tone in tones]
    return plain + [(part, tone, act) for part, act in answering for tone in partner[part]]


def banks_of(scenario: Scenario) -> list[Asked]:
    """Return all that a scenario's voice may be asked for."""
    return askable(scenario, [(part, act) for part, acts in answers(scenario).items() for act in acts])


def said_by_agent(scenario: Scenario, act: str) -> str:
    """Return what a voice is told that the agent said, when it took an act."""
    known: str | None = _read(scenario).get("agent", {}).get(act)
    sentences: Mapping[str, list[str]] = scenario.sentences["agent"]
    return known or sentences[act][0]


@functools.cache
def _read(scenario: Scenario) -> dict[str, Any]:
    path = scenario.folder / FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); restore it, or delete it to do without a voice") from error
