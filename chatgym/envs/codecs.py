"""Action codecs and observations: actions of every interface become dialogue acts, the state becomes observations.

All interfaces share one dynamics: `ChatRoom` sees acts only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.dynamics import rng
from chatgym.dynamics.room import ChatRoom, Snapshot
from chatgym.engines.spoken import without_thoughts
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.state import decode_rows, encode_rows
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue
from chatgym.scenarios import NO_ACT, UNCLEAR_ACT, Scenario
from chatgym.words.charset import CHARSET, MAX_CHARS, clean

Rows = npt.NDArray[np.bool_]
Acts = npt.NDArray[np.int64]

CANDIDATES = rng.WORDING + 200
"""First purpose of the draws that shuffle candidates."""
MAX_TURN_TOKENS = 64
"""Greatest number of tokens in an agent turn."""


@dataclass
class Decoded:
    """The dialogue acts in a batch of actions.

    Attributes:
        acts: int64[B], see `chatgym.scenarios.Scenario.respond`; `NO_ACT` where no turn was taken.
        rows: bool[B], where a turn was taken; None: everywhere.
        texts: Row to the agent's words, where the agent chose them.
    """

    acts: Acts
    rows: Rows | None
    texts: dict[int, str] | None = None


class Codec:
    """Reads the actions of B conversations in one interface.

    Attributes:
        room: The conversations.
        space: The action space of one conversation.
    """

    room: ChatRoom
    space: spaces.Space[Any]

    def begin(self, rows: Rows) -> None:
        """Prepare for conversations that begin in `rows`, bool[B]."""

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Read B actions of `space`, in `rows`, bool[B] (None: all).

        Raises:
            InvalidValue: The actions aren't of the space.
        """
        raise NotImplementedError

    def masks(self) -> Rows | None:
        """Return the actions that make sense, bool[B, n]; None where the space isn't Discrete."""

    def dump(self) -> Snapshot:
        """Copy the state, arrays with a leading axis B; only a codec whose turns take several actions has one."""
        return {}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore a state that `dump` returned, arrays with a leading axis B."""


class ActCodec(Codec):
    """``action="act"``: the index of a dialogue act."""

    def __init__(self, room: ChatRoom) -> None:
        """Make a codec for a room."""
        self.room, self._names = room, room.scenario.agent_acts
        self._count = len(self._names)
        self.space = spaces.Discrete(self._count)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Check the acts, int[B]."""
        return Decoded(check_integers(actions, self.room.size, self._count, "agent act", self._names), rows)

    def masks(self) -> Rows:
        """Return the acts that make sense, bool[B, n]."""
        return self.room.action_masks()


class CandidateCodec(Codec):
    """``action="candidate"``: one of K replies, each for another act that makes sense, in shuffled order.

    The order is drawn from the conversation's key and turn. There are as many places as acts; the last ones are
    padding, and an agent that chooses padding isn't understood.
    """

    def __init__(self, room: ChatRoom) -> None:
        """Make a codec for a room."""
        self.room = room
        self._count = len(room.scenario.agent_acts)
        self.space = spaces.Discrete(self._count)

    @property
    def acts(self) -> Acts:
        """The act of each reply, int64[B, K], `NO_ACT` for padding; computed from the room's state at each access."""
        sensible = self.room.action_masks()
        purposes = CANDIDATES + np.arange(self._count)
        draws = rng.uniform(self.room.keys[:, None], self.room.turns[:, None], purposes)
        order = np.where(sensible, draws, 2.0).argsort(1)
        return np.where(np.take_along_axis(sensible, order, 1), order, NO_ACT)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Look up the acts of the chosen replies, int[B]."""
        chosen = check_integers(actions, self.room.size, self._count, "candidate")
        acts = np.take_along_axis(self.acts, chosen[:, None], 1)[:, 0]
        return Decoded(np.where(acts == NO_ACT, UNCLEAR_ACT, acts), rows)

    def masks(self) -> Rows:
        """Return the places that hold a reply, bool[B, K]."""
        masks: Rows = self.acts != NO_ACT
        return masks


class Spoken(str):
    """An action of ``action="text"`` with a known act, such as a tool call of a model; NLU is skipped.

    Attributes:
        act: Index of a dialogue act, or `UNCLEAR_ACT`.
    """

    act: int

    def __new__(cls, text: str, act: int) -> Spoken:
        """Make an utterance of an act; an empty `text` means the scenario's own words."""
        made = super().__new__(cls, text)
        made.act = act
        return made

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.act


class TextCodec(Codec):
    """``action="text"``: the agent's words, understood by NLU; words that aren't understood cost a turn."""

    def __init__(self, room: ChatRoom) -> None:
        """Make a codec for a room."""
        self.room = room
        self.space = spaces.Text(MAX_CHARS, min_length=0, charset=CHARSET)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Understand B texts, cut off after `MAX_CHARS` characters, in `rows`, bool[B]; a `Spoken` one brings its act.

        Raises:
            InvalidValue: They aren't B strings, or one is `Spoken` with an unknown act.
        """
        room = self.room
        texts = _check_texts(actions, room.size)
        wanted = np.arange(room.size) if rows is None else np.flatnonzero(rows)
        said = {i: texts[i] for i in wanted.tolist()}
        known = {i: actions[i].act for i in said if isinstance(actions[i], Spoken)}
        acts = understood_acts(room.scenario, {i: text for i, text in said.items() if i not in known}, room.size)
        for i, act in known.items():
            if not (act == UNCLEAR_ACT or 0 <= act < len(room.scenario.agent_acts)):
                raise InvalidValue(
                    f"there is no agent act {act} for a Spoken text; acts are 0 to {len(room.scenario.agent_acts) - 1}"
                )
            acts[i] = act
            if not said[i]:
                del said[i]  # it is said in the scenario's own words
        return Decoded(acts, rows, said)


class TokenCodec(Codec):
    """``action="token"``: one token of the agent's turn; at the turn's end its text is understood by NLU.

    Attributes:
        tokens: Tokens of each row's unfinished turn.
    """

    def __init__(self, room: ChatRoom, tokenizer: ChatTokenizer, on_token: Callable[[int, int], None] | None) -> None:
        """Make a codec for a room; `on_token` is called with each (row, token) that doesn't end a turn."""
        self.room, self.tokenizer, self._on_token = room, tokenizer, on_token
        self.space = spaces.Discrete(tokenizer.size)
        self.tokens: list[list[int]] = [[] for _ in range(room.size)]

    def begin(self, rows: Rows) -> None:
        """Drop the unfinished turns in `rows`, bool[B]."""
        for row in np.flatnonzero(rows).tolist():
            self.tokens[row] = []

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Take a token, int[B], in each of `rows`, bool[B]; NLU reads the turns that end with it."""
        chosen = check_integers(actions, self.room.size, self.tokenizer.size, "token").tolist()
        where = np.ones(self.room.size, bool) if rows is None else rows
        done: dict[int, str] = {}
        for row in np.flatnonzero(where).tolist():
            tokens, token = self.tokens[row], chosen[row]
            if token != self.tokenizer.end:
                tokens.append(token)
                if self._on_token is not None:
                    self._on_token(row, token)
            if token == self.tokenizer.end or len(tokens) >= MAX_TURN_TOKENS:
                done[row] = clean(without_thoughts(self.tokenizer.decode(tokens))[0])[:MAX_CHARS]
                self.tokens[row] = []
        ready = np.zeros(self.room.size, bool)
        ready[list(done)] = True
        return Decoded(understood_acts(self.room.scenario, done, self.room.size), ready, done)

    def masks(self) -> Rows:
        """Return bool[B, n] with every token allowed."""
        return np.broadcast_to(np.ones(self.tokenizer.size, bool), (self.room.size, self.tokenizer.size))

    def dump(self) -> Snapshot:
        """Return ``tokens``, str[B]: each unfinished turn's tokens as JSON."""
        return {"tokens": encode_rows(self.tokens)}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore the unfinished turns that `dump` returned, str[B]."""
        self.tokens = decode_rows(state["tokens"])


def understood_acts(scenario: Scenario, texts: dict[int, str], size: int) -> Acts:
    """Return the acts of texts by row, int64[B]: `NO_ACT` in other rows, `UNCLEAR_ACT` where NLU understood none."""
    from chatgym.words.nlu import nlu_of

    acts = np.full(size, NO_ACT)
    if texts:
        for row, heard in zip(texts, nlu_of(scenario).understand(list(texts.values()), "agent"), strict=True):
            acts[row] = scenario.agent_code(heard.part) if heard.part else UNCLEAR_ACT
    return acts


def _check_texts(actions: Any, size: int) -> Sequence[str]:
    """Return B texts, cleaned and cut off after `MAX_CHARS` characters.

    Raises:
        InvalidValue: They aren't B strings.
    """
    if isinstance(actions, str) or len(actions) != size or not all(isinstance(text, str) for text in actions):
        raise InvalidValue(
            f'action="text" takes {size} strings, one for each conversation, not {type(actions).__name__}'
        )
    return [clean(text)[:MAX_CHARS] for text in actions]


def check_integers(
    actions: npt.ArrayLike, size: int, count: int, what: str, names: Sequence[str] = ()
) -> npt.NDArray[np.int64]:
    """Return a batch of actions, int[B], as int64[B].

    Args:
        actions: int[B], each 0 … `count` - 1.
        size: B.
        count: Number of actions.
        what: The word for an action in messages.
        names: The actions' names, which a message lists.

    Raises:
        InvalidValue: The shape or dtype is another, or a number is out of range.
    """
    array = np.asarray(actions)
    listing = f": {', '.join(names)}" if names else ""
    if array.shape != (size,) or array.dtype.kind not in "iu":
        raise InvalidValue(
            f"expected {size} {what}s as an integer array of shape ({size},), got {array.dtype} {array.shape}{listing}"
        )
    array = array.astype(np.int64, copy=False)
    unsigned = array.view(np.uint64)  # negative numbers become large ones: one comparison instead of two
    if (unsigned[0] if size == 1 else unsigned.max()) >= count:
        bad = array[(array < 0) | (array >= count)][0]
        raise InvalidValue(f"there is no {what} {bad}; they are 0 to {count - 1}{listing}")
    return array


def observe(room: ChatRoom, observation: str, texts: Sequence[str] = (), history: TokenHistory | None = None) -> Any:
    """Return the batch's observations.

    Returns:
        float32[B, N] for ``"embedding"``, int64[B] for ``"discrete"``, uint8[B, itemsize] for ``"belief"``, a tuple
        of B strings for ``"text"``, ``{"ids": int64[B, 512], "mask": int8[B, 512]}`` for ``"token"``.
    """
    if observation == "discrete":
        return room.discrete()
    if observation == "embedding":
        return room.embedding()
    if observation == "belief":
        return room.belief.view(np.uint8).reshape(room.size, -1).copy()
    if history is not None:
        return history.observe()
    return tuple(texts)


def row_of(observations: Any, i: int) -> Any:
    """Return row i of a batch of observations."""
    return (
        {name: array[i] for name, array in observations.items()} if isinstance(observations, dict) else observations[i]
    )
