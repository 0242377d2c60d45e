"""The `Scenario` type: acts, state, compiled functions and sentences of one kind of conversation.

A scenario is content: scalar functions that numba compiles and data. `chatgym.dynamics.room` runs the functions over a
batch; observations, words and replay are made from what the scenario declares.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from chatgym.dynamics.content import bytecode_digest, source_digest
from chatgym.storage.utf8 import read_json

TONES = ("calm", "annoyed", "angry")

NO_ACT = -1
"""In the place of an act: the agent took no turn. No scenario sees it."""
UNCLEAR_ACT = -2
"""The act for words that NLU didn't understand: it costs a turn, and the partner asks what was meant."""
ABOUT = 256
"""An act about slot s, named by the agent's words (``confirm/date``), is ``act + ABOUT * (s + 1)``."""


@dataclass(frozen=True)
class Meaning:
    """What an utterance means, before it is put into words.

    Attributes:
        act: The dialogue act.
        parts: Keys into the scenario's sentences, one sentence each, in the order of speaking. The first is the
            act's own (``"state_problem/refund"``), further ones are volunteered (``"inform/reference"``).
        slots: Placeholder name to the words for its value (``{"reference": "482913"}``).
        tone: One of `TONES`: how the utterance sounds.
        unsure: The parts that were heard with low confidence; see `Scenario.heard_meaning`.
    """

    act: str
    parts: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)
    tone: str = "calm"
    unsure: tuple[str, ...] = ()

    @functools.cached_property
    def banks(self) -> tuple[str, ...]:
        """Names of the banks of wordings for its parts (`chatgym.words.nlg`)."""
        return tuple(f"{part}|{self.tone}" for part in self.parts)


@dataclass(frozen=True)
class LLMPartner:
    """Prompts and effects of a language model that plays a scenario's partner (`chatgym.envs.llm_simulator`).

    The dynamics stay in charge: the agent's acts decide the partner's state. The model's words have two effects only:
    true facts in them count as told, and the partner may leave. `hidden`, `belief` and `said` are records.

    Attributes:
        brief: ``brief(hidden) -> str``: who the partner is, what it wants and knows; "You ...".
        now: ``now(hidden, belief) -> str``: the partner's feelings and its view of the agent's acts by now.
        take: ``take(hidden, belief, said) -> bool``: mark the true facts of ``said`` as told; whether all are true.
        leave: ``leave(hidden, belief) -> (outcome, terms)``: end the conversation because the partner leaves. The
            outcome is success only if the agent reached it; ``terms`` maps measured terms to values that change.
    """

    brief: Callable[[Any], str]
    now: Callable[[Any, Any], str]
    take: Callable[[Any, Any, Any], bool]
    leave: Callable[[Any, Any], tuple[int, Mapping[str, float]]]


@dataclass(frozen=True, eq=False)
class Scenario:
    """One kind of conversation.

    The state of a conversation consists of records: `hidden` belongs to the partner (goal, mood, agenda), `belief` is
    what the agent understood, `said` is the meaning of the partner's last utterance. Observations and the expert are
    functions of `belief` alone, so they can't leak the goal.

    The compiled functions (numba ``njit``) see one conversation; ``hidden``, ``belief`` and ``said`` are records,
    ``key`` is the conversation's uint64 key:

    - ``start(key, hidden, belief, said, error_rate)`` begins the conversation.
    - ``respond(key, turn, act, hidden, belief, said, terms, error_rate, last) -> int`` answers an agent act (an index,
      perhaps with `ABOUT` a slot, or `UNCLEAR_ACT`), fills ``terms``, float64[K], one for each of `measured`, and
      returns an index into `outcomes`: 0 while the conversation goes on; the last one, truncation, if ``last`` is true
      and nothing else ended it.
    - ``index(belief) -> int`` is the discrete observation; 0 means that the conversation has ended.
    - ``embed(belief, out)`` fills the embedding observation, float32[`embedding_size`] in [-1, 1].
    - ``mask(belief, out)`` marks the agent acts that make sense, bool[len(agent_acts)].
    - ``expert(belief) -> int`` is the scripted expert's act.
    - ``note(belief, act, turn)`` writes the agent's own act into its belief (`respond` does so, too).
    - ``hear(belief, said)`` updates the belief by an utterance, without the error channel.

    The plain functions are for words: ``partner_meaning(said) -> Meaning`` and ``agent_meaning(act, belief) ->
    Meaning`` for NLG; ``find_slots(text)`` returns the slot values in a text, and the text with `examples` (slot name
    to the words for a value) in their place; ``parse(act, part, slots, said)`` writes an understood utterance into
    ``said``, as the inverse of ``partner_meaning``. ``describe_belief(belief) -> str`` and ``describe_goal(hidden) ->
    str`` are for people, ``instructions() -> str`` are the rules that an agent must know.

    ``heard_meaning(said, belief) -> Meaning`` is what the agent heard of an utterance, which the error channel has just
    written into `belief`: what is put into words where the agent observes words. Nothing else may change its belief, so
    the meaning holds the act and each value that it heard, and which values with low confidence (`Meaning.unsure`);
    without parts it understood nothing. None: words can't be garbled, and an environment of words takes no error rate.

    `choices` are the words for the values of slots without a pattern (``{topic}``). `agent_codes` maps the parts of the
    agent's sentences that are about a slot to their acts. `folder` holds ``sentences.json`` and the files that commands
    write (references, NLU head).

    ``understand(key, turn, belief, said, error_rate)`` is the error channel, which `start` and `respond` call: it
    updates the belief by an utterance, some of which it mishears. It is a field to have a hash of its own. None: the
    scenario has no such function, and `start` and `respond` count as the error channel.

    The reward is the sum of `reward_terms` (name to weight). `measured` names all that ``respond`` writes, in its
    order, if that is more. With `outcome_values` (outcome to worth; 0 for those left out) the term ``"outcome"`` is the
    worth of how the conversation ended; ``respond`` leaves it alone. Giving up must be worth less than an honest
    attempt that fails, or learners give up. `earlier` are former versions of the scenario, such as one with other
    values; they are found as ``"NAME-vVERSION"``.

    A field ``max_turns`` of `belief` is filled by the room, so that an expert can end in time; ``start`` leaves it.

    `leaving` names the outcomes by which the partner leaves, before the agent has ended the conversation. The compiled
    ``misled(act, belief, clear, hidden, astray) -> bool`` tells whether a conversation that the agent ended with `act`
    failed because of what it had misheard: `belief` is what it believed then, `clear` what it would have believed had
    it heard everything right, `hidden` the partner at the end, `astray` how many acts were the expert's for the former
    and not for the latter. None: whether the two hold different facts, see `chatgym.dynamics.hearing`. A field
    ``heard`` of `belief` is the user act that the agent understood last, or ``len(user_acts)`` if it understood
    nothing; without that field acts count as heard right.

    ``audit(conversation)`` finds the partner's contradictions, see `chatgym.scenarios.contradictions`; None: only
    general ones are looked for. `llm_partner` lets a language model play the partner (``simulator="llm"``); None: it
    can't. ``picture(caption)`` returns the PNG of a picture that words share as ``[picture: CAPTION]``, or None if
    there is none.
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
    measured: tuple[str, ...] = ()
    outcome_values: Mapping[str, float] = field(default_factory=dict)
    earlier: tuple[Scenario, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    agent_codes: Mapping[str, int] = field(default_factory=dict)
    leaving: tuple[str, ...] = ()
    misled: Callable[..., bool] | None = None
    heard_meaning: Callable[[Any, Any], Meaning] | None = None
    audit: Callable[[Sequence[Any]], Iterable[Any]] | None = None
    llm_partner: LLMPartner | None = None
    picture: Callable[[str], bytes | None] | None = None
    understand: Callable[..., None] | None = None
    partner_role: str = "customer"
    agent_role: str = "agent"

    @classmethod
    def of_modules(cls, *modules: ModuleType, **fields: Any) -> Scenario:
        """Make a scenario from its package's modules.

        Args:
            modules: Where to find the fields that aren't given: `start` as the function ``start``, `agent_acts` as the
                constant ``AGENT_ACTS``. The first module that has one counts.
            fields: The other fields.
        """
        for each in dataclasses.fields(cls):
            names = (each.name, each.name.upper())
            found = [vars(module)[name] for module in modules for name in names if name in vars(module)]
            if found:
                fields.setdefault(each.name, found[0])
        return cls(**fields)

    def __post_init__(self) -> None:
        """Let `measured` be the names of `reward_terms` unless it is given."""
        if not self.measured:
            object.__setattr__(self, "measured", tuple(self.reward_terms))

    def with_earlier(self, **fields: Any) -> Scenario:
        """Return the scenario with an earlier version of itself beside it, in which `fields` are others."""
        return dataclasses.replace(self, earlier=(*self.earlier, dataclasses.replace(self, earlier=(), **fields)))

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, for pickle: what is computed from them is computed anew."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scenario:
        """Return the scenario itself: it is immutable."""
        return self

    def agent_code(self, part: str) -> int:
        """Return the act of a part of the agent's sentences, in the form that `respond` takes."""
        return self.agent_codes.get(part, self.agent_acts.index(part.partition("/")[0]))

    @property
    def quits(self) -> tuple[str, ...]:
        """Outcomes by which an agent itself ends a conversation without success."""
        return tuple(name for name in self.outcomes[1:-1] if name != self.success and name not in self.leaving)

    @functools.cached_property
    def sentences(self) -> dict[str, Any]:
        """Sentences, situations and NLU data, read from ``sentences.json``."""
        data: dict[str, Any] = read_json(self.folder / "sentences.json")
        return data

    @functools.cached_property
    def sentences_digest(self) -> str:
        """SHA-256 of the sentences, independent of the file's layout."""
        return hashlib.sha256(json.dumps(self.sentences, sort_keys=True).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of `content` as it is now (see `source_digest`): another digest, another simulator."""
        return self._digest_of(self.content)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each part of an identity: ``"scenario"``, ``"error_model"`` and ``"reward"``.

        The reward is what is declared: outcomes, which of them is success, and the terms with their weights. All code
        of `respond` is the scenario's, that of the error channel and of the terms' values included.
        """
        content = self.content
        return {
            "scenario": self._digest_of({name: thing for name, thing in content.items() if name not in _WORTH}),
            "error_model": self._digest_of(self.understand or (self.start, self.respond)),
            "reward": self._digest_of({name: content[name] for name in ("outcomes", *_WORTH) if name in content}),
        }

    def _digest_of(self, things: Any) -> str:
        """Return the `source_digest` of parts of the scenario, computed once for what they are now."""
        content, digests = bytecode_digest(things), self._digests
        if content not in digests:
            digests[content] = source_digest(things)
        return digests[content]

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        """`bytecode_digest` of a content, which is fast, to its `source_digest`."""
        return {}

    @property
    def content(self) -> dict[str, Any]:
        """The compiled functions, and what else decides the course and the outcome of a conversation, by name."""
        return {name: getattr(self, name) for name in _DECIDING}


_WORTH = ("success", "reward_terms", "outcome_values")
"""What of `Scenario.content` decides what outcomes and turns are worth, and no conversation."""

_DECIDING = (
    "agent_acts",
    "user_acts",
    "outcomes",
    "success",
    "reward_terms",
    "measured",
    "outcome_values",
    "hidden",
    "belief",
    "said",
    "n_beliefs",
    "embedding_size",
    "agent_codes",
    "start",
    "respond",
    "index",
    "embed",
    "mask",
    "expert",
    "note",
    "hear",
)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Replace ``{name}`` in a template by the words for its value, and capitalise the first letter."""
    for name, surface in slots.items():
        template = template.replace("{" + name + "}", surface)
    return template[:1].upper() + template[1:]
