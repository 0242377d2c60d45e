"""What a simulated partner may not do: contradictions, looked for in the record of a conversation.

Some are seen in any conversation, from what was said alone: `repeats` and `never_ends`. Whether an answer fits the
goal, the mood and what was asked is a scenario's knowledge: its `Scenario.audit` says so, from the specification and
not from the code that chooses the answers, so that the two check each other.
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
"""Kind of contradiction to what the partner does."""
WORDING = "wording"
"""The kind of finding that is none of these: the words aren't understood as they were meant."""
REPEATS = 2
"""The same thing said so many times in a row is a repetition, where the agent didn't ask for it again."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """What an agent did and what the partner answered.

    Attributes:
        scenario: Whose partner it is.
        turn: 0 is the partner's opening.
        act: The agent's act as `Scenario.respond` takes it; `NO_ACT` in the opening.
        belief: The agent's belief when it acted, a record; its words say this.
        before: The partner's `hidden` when the agent acted, field to plain value.
        after: That when the partner had answered.
        said: The partner's answer, field to plain value.
        outcome: How the conversation ended with it, empty if it goes on.
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
        """What the agent's words mean; that of nothing in the opening, and of words that weren't understood."""
        if self.act < 0:
            return Meaning({NO_ACT: "", UNCLEAR_ACT: "unclear"}[self.act], ())
        return self.scenario.agent_meaning(self.act % ABOUT, self.belief)

    @functools.cached_property
    def meaning(self) -> Meaning:
        """What the partner's answer means."""
        return self.scenario.partner_meaning(self.said)


@dataclass(frozen=True)
class Finding:
    """A contradiction: the turn, one of `KINDS` or `WORDING`, and in words what is wrong."""

    turn: int
    kind: str
    what: str


Conversation = Sequence[Exchange]


def asked_again(exchange: Exchange, before: Exchange) -> bool:
    """Tell whether the agent's words were about the same as the turn before, or may be answered by a mere yes."""
    names = exchange.meaning.slots or any("/" in part for part in exchange.meaning.parts)
    return not names or exchange.asked.parts == before.asked.parts


def repeats(conversation: Conversation, asked: Callable[[Exchange, Exchange], bool] = asked_again) -> Iterator[Finding]:
    """Find what was said `REPEATS` times in a row, tone aside, though the agent didn't ask for it (again).

    Args:
        conversation: From the opening on.
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
    """Find that a conversation goes on past the turn that should be its last."""
    last = conversation[-1]
    if not last.outcome and last.turn >= max_turns:
        yield Finding(last.turn, "stays", f"goes on after {last.turn} turns; the last one is {max_turns}")


def out_of_tone(tone: int, sounds: int) -> str:
    """Say how a tone (index into `TONES`) isn't the one that a mood sounds like, nor one beside it; empty if it is."""
    return f"sounds {TONES[tone]}, feels {TONES[sounds]}" if abs(tone - sounds) > 1 else ""
