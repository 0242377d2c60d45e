"""Read recorded conversations, turn by turn, from traces and from the transcripts of runs and evaluations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatgym.dynamics.hearing import GARBLED, POLICY
from chatgym.dynamics.trace import check_seal, read
from chatgym.envs.replay import replayed
from chatgym.errors import ChatGymError, Corrupted, InvalidValue, ReplayMismatch
from chatgym.scenarios import find_scenario, recorded_name
from chatgym.storage.paths import given
from chatgym.storage.utf8 import parsed, read_json, read_text

TRANSCRIPTS = "transcripts.jsonl"
TOLD = 2
"""Most misheard utterances that `Recording.why` tells in full."""
_HEARD = ("heard_act", "garbled", "belief", "heard_right")


@dataclass(frozen=True)
class Turn:
    """An agent's turn and the partner's answer; number 0 is the partner's opening. None is what wasn't recorded.

    Attributes:
        number: Number of the agent's turn.
        agent_act, agent_text: What the agent said, empty in the opening.
        understood: How the agent's own words were understood, in the scenario's words.
        expert_act: What the expert would have done in its place.
        reward: The reward of the turn.
        reward_terms: Reward term to its unweighted value.
        user_act, text: What the partner answered.
        heard_act: The act that the agent heard.
        garbled: Whether it misheard the act or a fact.
        belief: What it believes now.
        heard_right: What it would believe had it heard this answer right, if that is something else.
    """

    number: int
    agent_act: str
    agent_text: str
    understood: str | None
    expert_act: str | None
    reward: float | None
    reward_terms: Mapping[str, float] | None
    user_act: str
    text: str
    heard_act: str | None
    garbled: bool | None
    belief: str | None
    heard_right: str | None


@dataclass(frozen=True)
class Recording:
    """A recorded conversation.

    Attributes:
        number: Its number in the file, from 1 on.
        seed: Its seed, if it is known.
        key: Its key, in hexadecimal, if it is known.
        trained_for: Turns of training of the agent that held it; None where that doesn't apply.
        outcome: Its outcome; empty if it isn't over.
        goal: The partner's hidden goal; None where it wasn't recorded.
        failure: Why it failed, one of `chatgym.dynamics.hearing.CAUSES`; empty if it didn't, None where that wasn't
            recorded.
        misheard: The turns in which the agent misheard what misled it, if it failed by that.
        turns: The opening and the agent's turns.
    """

    number: int
    seed: int | None
    key: str | None
    trained_for: int | None
    outcome: str
    goal: str | None
    failure: str | None
    misheard: tuple[int, ...]
    turns: tuple[Turn, ...]

    @property
    def length(self) -> int:
        """Number of the agent's turns."""
        return len(self.turns) - 1

    @property
    def total(self) -> float:
        """The return: the sum of rewards."""
        return sum(turn.reward or 0.0 for turn in self.turns)

    @property
    def garbled(self) -> int | None:
        """Number of utterances that the agent misheard; None where that wasn't recorded."""
        heard = [turn.garbled for turn in self.turns]
        return None if None in heard else sum(map(bool, heard))

    @property
    def own_ways(self) -> list[int] | None:
        """Turns in which the agent didn't do what the expert would have done; None where that wasn't recorded."""
        if any(turn.expert_act is None for turn in self.turns[1:]):
            return None
        return [turn.number for turn in self.turns[1:] if turn.agent_act != turn.expert_act]

    def why(self, partner: str) -> str:
        """Return in a sentence or two why the conversation failed, empty if it didn't or that isn't known.

        Args:
            partner: The partner's role, such as ``"customer"``.
        """
        if not self.failure:
            return ""
        last = self.turns[-1]
        if self.failure == GARBLED and not self.misheard:
            return "The agent was misled: it was unsure of what it had heard right."
        if self.failure == GARBLED:
            heard = [self._misheard(self.turns[number]) for number in self.misheard[-TOLD:]]
            more = f"; also in turn {', '.join(map(str, self.misheard[:-TOLD]))}" if self.misheard[TOLD:] else ""
            return f"The agent was misled by what it had misheard {'; '.join(heard)}{more}."
        if self.failure == POLICY:
            start = f"The agent ended it by {last.agent_act}, and not because of what it had misheard"
        elif self.outcome == "truncated":
            start = f"The turns ran out: it had {self.length}"
        else:
            start = f"The {partner} left after {_times(self.length, 'turn')}"
        return f"{start}. {self._against_expert()}"

    def _misheard(self, turn: Turn) -> str:
        """Return what the agent misheard in a turn."""
        heard = []
        if turn.heard_act != turn.user_act:
            heard.append(f"it heard {turn.heard_act} instead of {turn.user_act}")
        if turn.heard_right is not None:
            heard.append(f'it believed "{turn.belief}" instead of "{turn.heard_right}"')
        return f"in turn {turn.number}: {' and '.join(heard) or 'a fact'}"

    def _against_expert(self) -> str:
        """Return where the agent did something else than the expert would have done."""
        own = self.own_ways
        if own is None:
            return ""
        if not own:
            return "It did what the expert does in every turn: the partner said something wrong, or it was bad luck."
        turn = self.turns[own[-1]]
        return (
            f"It did something else than the expert in {_times(len(own), 'turn')}, last in turn {turn.number}: "
            f"{turn.agent_act} instead of {turn.expert_act}."
        )


@dataclass(frozen=True)
class Recordings:
    """The conversations of a trace or of transcripts.

    Attributes:
        path: The file.
        scenario: Name of the scenario; empty if it isn't known.
        error_rate: How often the agent misheard, if that is known.
        weights: Reward term to weight; empty if they aren't known.
        conversations: The conversations.
        lacks: Why beliefs are missing, and the remedy; empty if they aren't.
    """

    path: Path
    scenario: str
    error_rate: float | None
    weights: Mapping[str, float]
    conversations: tuple[Recording, ...]
    lacks: str = ""

    @property
    def roles(self) -> tuple[str, str]:
        """The roles of agent and partner."""
        try:
            scenario = find_scenario(self.scenario)
        except ChatGymError:  # of a plugin that isn't installed here
            return "agent", "partner"
        return scenario.agent_role, scenario.partner_role

    def __getitem__(self, number: int) -> Recording:
        """Return a conversation by its number.

        Raises:
            InvalidValue: There is none of that number.
        """
        if not 1 <= number <= len(self.conversations):
            raise InvalidValue(
                f"there is no conversation {number} in {self.path}; they are numbered from 1 to "
                f"{len(self.conversations)}, and `chatgym show {self.path}` lists them"
            )
        return self.conversations[number - 1]


def open_recordings(path: str | Path) -> Recordings:
    """Read a trace, a file of transcripts, or the transcripts in the folder of a run or an evaluation.

    Raises:
        InvalidValue: It is none of them.
        Corrupted, ReplayMismatch: The file was changed, or is unfinished.
    """
    path = given(path)
    if not path.exists():
        raise InvalidValue(f"there is no {path}; `chatgym evaluate ... --trace FILE` writes the trace of conversations")
    if path.is_dir():
        if not (path / TRANSCRIPTS).is_file():
            raise InvalidValue(
                f"{path} has no {TRANSCRIPTS}; a training writes one at its end, and so does `chatgym evaluate ... "
                "--out FOLDER`"
            )
        path = path / TRANSCRIPTS
    try:
        first = read_text(path).partition("\n")[0]
        one = parsed(first) if first.startswith("{") else None
    except (UnicodeDecodeError, ValueError):
        one = None
    if isinstance(one, dict) and isinstance(one.get("turns"), list):
        return _transcripts(path)
    return _trace(path)


def _trace(path: Path) -> Recordings:
    """Read a trace."""
    records, lacks = read(path), ""
    check_seal(path, records)
    identity, lines = records[0]["identity"], records[1:-1]
    if records[0]["version"] == 1:
        try:
            lines = list(replayed(path, records))  # which says what was heard and believed
        except (ReplayMismatch, InvalidValue) as error:
            lacks = f"the trace is of version 1, without beliefs, and can't be replayed here: {error}"
    try:
        held = tuple(_of_lines(number, part) for number, part in enumerate(_conversations(lines), 1))
        return Recordings(
            path, recorded_name(identity), identity["error_model"]["rate"], identity["reward"]["weights"], held, lacks
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise Corrupted(f"{path} lacks a field of a trace ({error!r}); record it again") from error


def _conversations(lines: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the lines of each conversation, its start first."""
    part: list[Mapping[str, Any]] = []
    for line in lines:
        if line["type"] == "start" and part:
            yield part
            part = []
        if line["type"] != "words":
            part.append(line)
    if part:
        yield part


def _of_lines(number: int, lines: Sequence[Mapping[str, Any]]) -> Recording:
    """Return the conversation in some lines of a trace."""
    start, last, turns, part = lines[0], lines[-1], [], 0.0
    turns.append(Turn(0, "", "", None, None, None, None, start["user_act"], start["text"], *_heard(start)))
    for line in lines[1:]:
        part += line["reward"]
        if line["agent_act"]:  # else a token within a turn
            turns.append(Turn(
                len(turns), line["agent_act"], line["agent_text"], line.get("understood"), line.get("expert_act"), part,
                line["reward_terms"], line["user_act"], line["text"], *_heard(line),
            ))  # fmt: skip
            part = 0.0
    failure = last.get("failure", "" if "goal" in last else None)
    return Recording(
        number, start.get("seed"), start["key"], None, last.get("outcome", ""), last.get("goal"), failure,
        tuple(last.get("misheard", ())), tuple(turns),
    )  # fmt: skip


def _heard(turn: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the agent heard and believed, as a line of a trace or a turn of a transcript has it."""
    return tuple(turn.get(name) for name in _HEARD)


def _transcripts(path: Path) -> Recordings:
    """Read transcripts, and the scenario from the files beside them."""
    identity: Mapping[str, Any] = {}
    lines = [line for line in read_text(path).split("\n") if line]
    held = []
    for number, line in enumerate(lines, 1):
        try:
            held.append(_of_transcript(number, json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Corrupted(f"{path}, line {number} is no conversation ({error!r}); make the file again") from error
    for name in ("config.json", "result.json"):
        if (path.parent / name).is_file():
            try:
                identity = read_json(path.parent / name)["identity"]
                break
            except (ValueError, KeyError, TypeError):
                continue
    scenario = recorded_name(identity) if "scenario" in identity else ""
    weights = identity.get("reward", {}).get("weights", {})
    known = all(turn.belief is not None for one in held for turn in one.turns)
    lacks = "" if known else f"{path} was written before beliefs were recorded; make it again"
    return Recordings(path, scenario, identity.get("error_model", {}).get("rate"), weights, tuple(held), lacks)


def _of_transcript(number: int, line: Mapping[str, Any]) -> Recording:
    """Return the conversation in a line of transcripts."""
    *said, goal = line["turns"]
    opening = said[0]
    turns = [Turn(0, "", "", None, None, None, None, opening["act"], opening["text"], *_heard(opening))]
    for own, answer in zip(said[1::2], said[2::2], strict=True):
        turns.append(Turn(
            len(turns), own["act"], own["text"], own.get("heard"), own.get("expert_act"), own["reward"],
            own.get("reward_terms"), answer["act"], answer["text"], *_heard(answer),
        ))  # fmt: skip
    failure = goal.get("failure", "" if opening.get("belief") is not None else None)
    return Recording(
        number, line.get("seed"), line.get("key"), line.get("trained_for"), line["outcome"], goal["text"], failure,
        tuple(goal.get("misheard", ())), tuple(turns),
    )  # fmt: skip


def to_json(held: Recording, partner: str) -> dict[str, Any]:
    """Return a conversation as JSON values; `partner` is the partner's role."""
    return {**dataclasses.asdict(held), "return": held.total, "why": held.why(partner)}


def _times(count: int, what: str) -> str:
    """Write a count of things."""
    return f"{count} {what}{'' if count == 1 else 's'}"
