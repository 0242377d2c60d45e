"""The account of one conversation for people: what was heard and believed at each turn, and why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chatgym.dynamics.hearing import GARBLED, Listener, facts, led_astray, opening
from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import NO_ACT

Entry = dict[str, Any]


class Account:
    """Keeps the states of the one conversation in a room, and describes them when somebody asks.

    To keep a state costs a microsecond, to describe one a hundred, so that a step stays fast.
    """

    def __init__(self, room: ChatRoom) -> None:
        """Begin an account of row 0 of a room."""
        self._room = room
        self._bytes = room.belief.view(np.uint8), room.said.view(np.uint8)  # views: faster to copy than records
        self._states: list[tuple[int, bytes, bytes]] = []  # act, then belief and utterance after it
        self._entries: list[Entry] = []  # those of the states that were described
        self._clear: Any = None  # records[1], the clear belief after them
        self._since: dict[str, int] = {}  # fact to the turn in which it was garbled last
        self._astray: list[int] = []  # turns in which the agent's act was led astray
        self._listener: Listener | None = None
        self._facts = set(facts(room.scenario))

    def begin(self) -> None:
        """Keep the state at the conversation's beginning."""
        self._states, self._entries = [], []
        self.take(NO_ACT)

    def take(self, act: int) -> None:
        """Keep the state after an agent's act, as `ChatRoom.step` takes it, and the partner's answer."""
        belief, said = self._bytes
        self._states.append((act, belief.tobytes(), said.tobytes()))

    def dump(self) -> list[list[Any]]:
        """Return the states as JSON values."""
        return [[act, belief.hex(), said.hex()] for act, belief, said in self._states]

    def load(self, states: Sequence[Sequence[Any]]) -> None:
        """Restore what `dump` returned."""
        self._states = [(act, bytes.fromhex(belief), bytes.fromhex(said)) for act, belief, said in states]
        self._entries = []

    def entries(self) -> list[Entry]:
        """Describe each state, the beginning first.

        Returns:
            Dicts with ``heard_act`` (the act that the agent understood), ``garbled`` (whether it misheard the act or a
            fact), ``belief`` (in words) and, where the garbling changed it, ``heard_right`` (the belief, had the agent
            heard this utterance right). From the second on also ``expert_act``, the expert's choice in the agent's
            place. The last one of a conversation that failed has ``failure``, see
            `chatgym.dynamics.hearing.Listener.causes`, and, if that is garbled, ``misheard``: the turns in question.
        """
        for turn in range(len(self._entries), len(self._states)):
            self._entries.append(self._describe(turn))
        return self._entries

    def goal(self) -> str:
        """Return the partner's goal in words, as it is now."""
        room = self._room
        return room.scenario.describe_goal(room.hidden[0])

    def _belief(self, turn: int) -> Any:
        """Return the belief after a turn, records[1]."""
        return np.frombuffer(bytearray(self._states[turn][1]), self._room.scenario.belief)

    def _describe(self, turn: int) -> Entry:
        """Describe the state after a turn; those before it are described."""
        room, scenario, belief = self._room, self._room.scenario, self._belief(turn)
        said = np.frombuffer(self._states[turn][2], scenario.said)
        over = turn == len(self._states) - 1 and room.outcomes[0] > 0
        final = over and bool(room.terminations[0])  # whose last word nobody mishears
        right = belief  # had this utterance been heard right
        if room.error_rate > 0.0 and turn == 0:
            right, self._since, self._astray = opening(room), {}, []
            self._clear = right.copy()
        elif room.error_rate > 0.0:
            right = self._hear_right(turn, said, belief if final else None)
        apart = _apart(belief, right)
        words, heard = scenario.describe_belief(belief[0]), self._heard(belief, said, final)
        garbled = bool(apart & self._facts) or heard != self._heard(right, said, final)
        self._since.update(dict.fromkeys(apart & self._facts, turn))
        entry: Entry = {"heard_act": heard, "garbled": garbled, "belief": words}
        if garbled and (heard_right := scenario.describe_belief(right[0])) != words:
            entry["heard_right"] = heard_right
        if turn:
            entry["expert_act"] = scenario.agent_acts[int(room.expert_acts(self._belief(turn - 1))[0])]
            if over:
                entry.update(self._failure(turn))
        return entry

    def _heard(self, belief: Any, said: Any, final: bool) -> str:
        """Return the user act that the agent understood, given belief and utterance, records[1]."""
        scenario = self._room.scenario
        known = "heard" in (scenario.belief.names or ()) and not final
        return (*scenario.user_acts, "unclear")[int(belief["heard"][0] if known else said["act"][0])]

    def _hear_right(self, turn: int, said: Any, final: Any) -> Any:
        """Follow an act and the utterance `said`, records[1], without the error channel.

        Returns:
            records[1], the belief had the utterance been heard right; `final` if that is given.
        """
        acts, before = np.array([self._states[turn][0]]), self._belief(turn - 1)
        if led_astray(self._room, acts, before, self._clear)[0]:
            self._astray.append(turn)
        if final is not None:
            return final
        for belief in (before, self._clear):
            self._ears().follow(belief, acts, np.array([turn]), said, np.ones(1, bool))
        return before

    def _failure(self, turn: int) -> Entry:
        """Return why the conversation that ended in a turn failed; empty if it didn't."""
        room, acts, belief = self._room, np.array([self._states[turn][0]]), self._belief(turn - 1)
        clear = belief if room.error_rate == 0.0 else self._clear
        astray = np.array([len(self._astray)])
        cause = str(self._ears().causes(room.outcomes, acts, belief, clear, room.hidden, astray)[0])
        if cause != GARBLED:
            return {"failure": cause} if cause else {}
        garbled = [number for number, entry in enumerate(self._entries) if entry["garbled"]]
        still = {self._since[name] for name in _apart(belief, clear) & self._since.keys()}
        led = {max((each for each in garbled if each < number), default=-1) for number in self._astray} - {-1}
        return {"failure": cause, "misheard": sorted(still or led or garbled)}

    def _ears(self) -> Listener:
        """Return the scenario's listener, made at the first use."""
        self._listener = self._listener or Listener(self._room.scenario)
        return self._listener


def _apart(one: Any, other: Any) -> set[str]:
    """Return the fields in which two records, [1], differ."""
    if one.tobytes() == other.tobytes():  # nearly always, and much faster than field by field
        return set()
    return {name for name in one.dtype.names if not np.array_equal(one[name], other[name])}


def with_entries(turns: Sequence[Entry], entries: Sequence[Entry]) -> list[Entry]:
    """Add to the turns of a transcript what `Account.entries` says of them, and return them as new dicts.

    The partner's turns get what was heard and believed, the agent's ``expert_act``.
    """
    if len(turns) != 2 * len(entries) - 1:  # restored from a snapshot that has no account
        return list(turns)
    told: list[Entry] = []
    for number, turn in enumerate(turns):
        entry = entries[(number + 1) // 2]
        names = ("expert_act",) if number % 2 else ("heard_act", "garbled", "belief", "heard_right")
        told.append({**turn, **{name: entry[name] for name in names if name in entry}})
    return told
