"""Wordings of the partner that people wrote, from a scenario's ``voice.json``: the training data of a voice.

The file holds ``wordings`` (part -> tone -> wordings), ``answers`` (part -> agent's act -> tone -> wordings that fit
only after that act) and ``agent`` (agent's act -> its words in a voice's prompt, if not the act's first sentence).
Slots in wordings are ``{name}``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatgym.errors import Corrupted
from chatgym.scenarios import Scenario
from chatgym.storage.utf8 import read_json

FILE = "voice.json"

Asked = tuple[str, str, str]
"""Part, tone, and the agent's act, which is empty if it makes no difference."""


@dataclass(frozen=True)
class Wordings:
    """Wordings of one part in one tone; if `act` isn't empty, they answer that act of the agent."""

    part: str
    tone: str
    act: str
    texts: tuple[str, ...]


def wordings(scenario: Scenario) -> Iterator[Wordings]:
    """Yield a scenario's wordings; none if it has no ``voice.json``.

    Raises:
        Corrupted: The file can't be read.
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
    """Return the parts whose wordings depend on the agent's last act, with the acts that make a difference."""
    return {part: tuple(acts) for part, acts in _read(scenario).get("answers", {}).items()}


def askable(scenario: Scenario, answering: Iterable[tuple[str, str]]) -> list[Asked]:
    """Return everything that a partner can say: part, tone, and the agent's act where it makes a difference.

    Args:
        scenario: The scenario.
        answering: Pairs of a part and an act that its wordings depend on.
    """
    partner = scenario.sentences["partner"]
    plain = [(part, tone, "") for part, tones in partner.items() for tone in tones]
    return plain + [(part, tone, act) for part, act in answering for tone in partner[part]]


def banks_of(scenario: Scenario) -> list[Asked]:
    """Return everything that the voice of a scenario can be asked for."""
    return askable(scenario, [(part, act) for part, acts in answers(scenario).items() for act in acts])


def said_by_agent(scenario: Scenario, act: str) -> str:
    """Return the agent's words for an act in a voice's prompt."""
    known: str | None = _read(scenario).get("agent", {}).get(act)
    sentences: Mapping[str, list[str]] = scenario.sentences["agent"]
    return known or sentences[act][0]


@functools.cache
def _read(scenario: Scenario) -> dict[str, Any]:
    """Return the content of a scenario's ``voice.json``; empty if there is none."""
    path = scenario.folder / FILE
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); restore it, or delete it to do without a voice") from error
