"""Find contradictions of a simulated partner in the record of a conversation.

`repeats` and `never_ends` apply to every scenario. Whether an answer fits goal, mood and question is up to each
scenario: `Scenario.audit` checks it by the specification, independent of the code that chooses the answers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatgym.scenarios import ABOUT, NO_ACT, TONES, UNCLEAR_ACT, Meaning, Scenario

KINDS = {
    "denies": "contradicts its goal or mood",
    "unasked": "answers another question than the one asked",
    "repeats": "repeats itself without being asked",
    "early": "leaves although it would stay",
    "stays": "stays although it would leave",
}
"""Kind of contradiction to its description."""
WORDING = "wording"
"""Kind of finding for words that NLU understands as something else than they mean."""
REPEATS = 2
"""Number of times in a row at which the same utterance, not asked for again, is a repetition."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """One agent act and the partner's answer.

    Attributes:
        scenario: The scenario.
        turn: Turn number; 0 is the partner's opening.
        act: The agent's act as `Scenario.respond` takes it; `NO_ACT` in the opening.
        belief: The agent's belief when it acted, a record.
        before: The partner's `hidden` when the agent acted, field to plain value.
        after: The same after the partner's answer.
        said: The partner's answer, field to plain value.
        outcome: The outcome that the conversation ended with, empty if it goes on.
    """

    scenario: Scenario
    turn: int
    act: int
    belief: Any
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    said: Mapping[str, Any]
    outcome: str

    @functools.cached_property
    def asked(self) -> Meaning:
        """Meaning of the agent's words; empty in the opening and for words that weren't understood."""
        if self.act < 0:
            return Meaning({NO_ACT: "", UNCLEAR_ACT: "unclear"}[self.act], ())
        return self.scenario.agent_meaning(self.act % ABOUT, self.belief)

    def named(self, names: Sequence[str]) -> dict[int, int]:
        """Return the slots in the partner's answer, as indices into `names`, with their values."""
        said = self.said
        return {slot: int(said[name]) for slot, name in enumerate(names) if said["slots"] & (1 << slot)}

    @functools.cached_property
    def meaning(self) -> Meaning:
        """Meaning of the partner's answer."""
        return self.scenario.partner_meaning(self.said)


@dataclass(frozen=True)
class Finding:
    """A contradiction: the turn, one of `KINDS` or `WORDING`, and a description."""

    turn: int
    kind: str
    what: str


Conversation = Sequence[Exchange]


def unasked(exchange: Exchange) -> Finding:
    """Return the finding that the partner's answer doesn't fit the agent's act."""
    act = exchange.scenario.agent_acts[exchange.act % ABOUT] if exchange.act >= 0 else exchange.asked.act or "nothing"
    return Finding(exchange.turn, "unasked", f"{'+'.join(exchange.meaning.parts)} after {act}")


def asked_again(exchange: Exchange, before: Exchange) -> bool:
    """Tell whether the agent asked the same as the turn before, or whether a mere yes may be repeated."""
    names = exchange.meaning.slots or any("/" in part for part in exchange.meaning.parts)
    return not names or exchange.asked.parts == before.asked.parts


def repeats(conversation: Conversation, asked: Callable[[Exchange, Exchange], bool] = asked_again) -> Iterator[Finding]:
    """Yield what the partner said `REPEATS` times in a row, tone aside, without being asked (again).

    Args:
        conversation: The exchanges from the opening on.
        asked: Tells whether the agent asked for an answer, given the exchange and the one before it.
    """
    run = 1
    for before, exchange in itertools.pairwise(conversation):
        one, other = before.meaning, exchange.meaning
        same = (one.act, one.parts, one.slots) == (other.act, other.parts, other.slots)
        run = run + 1 if same and not asked(exchange, before) else 1
        if run == REPEATS:
            what = " + ".join(exchange.meaning.parts)
            yield Finding(exchange.turn, "repeats", f"{what}, {run} times in a row")


def never_ends(conversation: Conversation, max_turns: int) -> Iterator[Finding]:
    """Yield a finding if a conversation goes on past its last turn."""
    last = conversation[-1]
    if not last.outcome and last.turn >= max_turns:
        yield Finding(last.turn, "stays", f"goes on after {last.turn} turns; the last one is {max_turns}")


def out_of_tone(tone: int, sounds: int) -> str:
    """Return what is wrong with a tone (index into `TONES`), empty if it is at most one step from the expected one."""
    return f"sounds {TONES[tone]}, feels {TONES[sounds]}" if abs(tone - sounds) > 1 else ""
