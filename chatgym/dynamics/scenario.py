"""What a scenario is: acts, state, five compiled functions and sentences.

A scenario is content. It says what one conversation does, as plain scalar functions that numba compiles;
`chatgym.dynamics.room` runs them over a batch, and everything else (observations, words, replay) is made from what
is declared here.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.dynamics.identity import code_digest

TONES = ("calm", "annoyed", "angry")

NO_ACT = -1
"""Stands for the act of an agent that took no turn; no scenario sees it."""
UNCLEAR_ACT = -2
"""The act of an agent whose words weren't understood: it costs the turn, and the partner asks what was meant."""
ABOUT = 256
"""An act that is about slot s is ``act + ABOUT * (s + 1)``, where its words say so (``confirm/date``)."""


@dataclass(frozen=True)
class Meaning:
    """What an utterance means, before it has words.

    Attributes:
        act: The dialogue act.
        parts: Keys into the scenario's sentences, one sentence each, said in this order. The first is the
            act's own (``"state_problem/refund"``), further ones are volunteered (``"inform/reference"``).
        slots: Placeholder name to the surface form of its value (``{"reference": "482913"}``).
        tone: One of `TONES`; how it is said.
    """

    act: str
    parts: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)
    tone: str = "calm"

    @functools.cached_property
    def banks(self) -> tuple[str, ...]:
        """Names of the banks of wordings that its parts are drawn from (`chatgym.words.nlg`)."""
        return tuple(f"{part}|{self.tone}" for part in self.parts)


@dataclass(frozen=True)
class LLMPartner:
    """What a scenario tells a language model that plays its partner (`chatgym.envs.llm_simulator`), and takes from its
    words.

    The dynamics go on behind its words, as always: the agent's acts decide how the partner fares. Words change two
    things only: true facts that they name count as told, and the partner may leave. `hidden` and `belief` are records.

    Attributes:
        brief: ``brief(hidden) -> str``: who it is, what it wants and knows; "You ...".
        now: ``now(hidden, belief) -> str``: how it feels by now, and what it makes of what the agent did.
        take: ``take(hidden, belief, said) -> bool``: take in the facts of ``said`` that are so; whether all are.
        leave: ``leave(hidden, belief, terms) -> int``: end the conversation because the partner goes, as the case then
            stands: the outcome, never that the agent succeeded without having done so. ``terms`` is float64[T].
    """

    brief: Callable[[Any], str]
    now: Callable[[Any, Any], str]
    take: Callable[[Any, Any, Any], bool]
    leave: Callable[[Any, Any, Any], int]


@dataclass(frozen=True, eq=False)
class Scenario:
    """One kind of conversation.

    The state of a conversation is two records. `hidden` belongs to the partner (goal, mood, agenda);
    `belief` is what the agent understood of what was said. Observations and the expert are functions of
    `belief` alone, so they can't leak the goal. `said` is the partner's last utterance as it was meant.

    The compiled functions (numba ``njit``) see one conversation each; ``key`` is its uint64 key:

    - ``start(key, hidden, belief, said, error_rate)`` begins it;
    - ``respond(key, turn, act, hidden, belief, said, terms, error_rate, last) -> int`` answers an agent act (an
      index, perhaps with `ABOUT` a slot, or `UNCLEAR_ACT`), fills ``terms`` (one float per reward term) and returns
      an index into `outcomes` (0: goes on; the last one is truncation, returned when ``last`` is true and nothing
      else ended it);
    - ``index(belief) -> int`` is the discrete observation; ``0`` means the conversation has ended;
    - ``embed(belief, out)`` fills the embedding observation, float32[`embedding_size`] in [-1, 1];
    - ``mask(belief, out)`` says which agent acts make sense, bool[len(agent_acts)];
    - ``expert(belief) -> int`` is the scripted expert's act;
    - ``note(belief, act, turn)`` writes the agent's own act into its belief (`respond` does it, too);
    - ``hear(belief, said)`` takes in an utterance that was understood exactly as it is in ``said``.

    And plain ones, for people and language models: ``partner_meaning(said) -> Meaning``,
    ``agent_meaning(act, belief) -> Meaning``, ``describe_belief(belief) -> str``, ``describe_goal(hidden) -> str`` and
    ``instructions() -> str``, what an agent has to know before it begins. ``find_slots(text)`` finds the
    slot values that a text names, and returns them and the text with `examples` (slot name to a surface form) in
    their place; ``parse(act, part, slots, said)`` writes an understood utterance into ``said`` (the inverse of
    ``partner_meaning``).

    ``choices`` are the words that may stand for a slot without a pattern (``{topic}``). ``agent_codes`` maps those
    parts of the agent's sentences that are about a slot to their acts. ``folder`` holds ``sentences.json`` and what
    commands write beside it (references, NLU head); `code` are the files that decide the course of a conversation.

    ``audit(conversation)`` finds the partner's contradictions, see `chatgym.scenarios.contradictions`; None: only those
    that any partner can have are looked for. ``llm_partner`` lets a language model be the partner
    (``simulator="llm"``);
    None: it can't.
    """

    name: str
    version: int
    description: str
    agent_acts: tuple[str, ...]
    user_acts: tuple[str, ...]
    outcomes: tuple[str, ...]
    success: str
    reward_terms: Mapping[str, float]
    max_turns: int
    hidden: np.dtype[np.void]
    belief: np.dtype[np.void]
    said: np.dtype[np.void]
    n_beliefs: int
    embedding_size: int
    start: Callable[..., None]
    respond: Callable[..., int]
    index: Callable[..., int]
    embed: Callable[..., None]
    mask: Callable[..., None]
    expert: Callable[..., int]
    note: Callable[..., None]
    hear: Callable[..., None]
    partner_meaning: Callable[[Any], Meaning]
    agent_meaning: Callable[[int, Any], Meaning]
    describe_belief: Callable[[Any], str]
    describe_goal: Callable[[Any], str]
    instructions: Callable[[], str]
    parse: Callable[[str, str, Mapping[str, Any], Any], None]
    find_slots: Callable[[str], tuple[Mapping[str, Any], str]]
    examples: Mapping[str, str]
    folder: Path
    code: tuple[Path, ...]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    agent_codes: Mapping[str, int] = field(default_factory=dict)
    audit: Callable[[Sequence[Any]], Iterable[Any]] | None = None
    llm_partner: LLMPartner | None = None
    partner_role: str = "customer"
    agent_role: str = "agent"

    def agent_code(self, part: str) -> int:
        """Return the act of a part of the agent's sentences, as `respond` takes it."""
        return self.agent_codes.get(part, self.agent_acts.index(part.partition("/")[0]))

    @functools.cached_property
    def sentences(self) -> dict[str, Any]:
        """What is said and how, read from ``sentences.json``: see there for its form."""
        data: dict[str, Any] = json.loads((self.folder / "sentences.json").read_text(encoding="utf-8"))
        return data

    @functools.cached_property
    def sentences_digest(self) -> str:
        """SHA-256 of the sentences, whatever the file's layout."""
        return hashlib.sha256(json.dumps(self.sentences, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the scenario's `code` (see `code_digest`): another digest, another simulator."""
        return code_digest(*self.sources)

    @property
    def sources(self) -> tuple[str, ...]:
        """The text of the files in `code`."""
        return tuple(path.read_text(encoding="utf-8") for path in self.code)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Put surface forms in the place of ``{name}``; a sentence that begins with one begins with a capital."""
    for name, surface in slots.items():
        template = template.replace("{" + name + "}", surface)
    return template[:1].upper() + template[1:]
