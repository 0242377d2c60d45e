"""Action codecs: from what an agent does, an act, a choice, a text or a token, to its dialogue act.

One dynamics stands behind all of them: whatever the level, `ChatRoom` sees an act.
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
"""A turn of tokens ends by itself after so many."""


@dataclass
class Decoded:
    """What a batch of actions means.

    Attributes:
        acts: int64[B], see `chatgym.scenarios.Scenario.respond`; `NO_ACT` where no turn was taken.
        rows: bool[B], where a turn was taken; None: everywhere.
        texts: The agent's own words by row, where it chose them.
    """

    acts: Acts
    rows: Rows | None
    texts: dict[int, str] | None = None


class Codec:
    """Reads the actions of B conversations in one interface.

    Attributes:
        room: The conversations.
        space: The action space of one of them.
    """

    room: ChatRoom
    space: spaces.Space[Any]

    def begin(self, rows: Rows) -> None:
        """Take note that conversations begin in the rows of a bool[B] mask."""

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Read a batch of actions, those of the rows of a bool[B] mask (all, if None).

        Raises:
            InvalidValue: They aren't of the space.
        """
        raise NotImplementedError

    def masks(self) -> Rows | None:
        """Tell which actions make sense, bool[B, n]; None where there are not finitely many."""

    def dump(self) -> Snapshot:
        """Copy the state; only a codec whose turns take several actions has one."""
        return {}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `dump` returned."""


class ActCodec(Codec):
    """``action="act"``: the index of a dialogue act."""

    def __init__(self, room: ChatRoom) -> None:
        """Read acts for a room."""
        self.room, self._names = room, room.scenario.agent_acts
        self._count = len(self._names)
        self.space = spaces.Discrete(self._count)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Check the acts and take them as they are."""
        return Decoded(check_integers(actions, self.room.size, self._count, "agent act", self._names), rows)

    def masks(self) -> Rows:
        """Return the acts that make sense."""
        return self.room.action_masks()


class CandidateCodec(Codec):
    """``action="candidate"``: one of K replies, each for another act that makes sense, in a shuffled order.

    The order is a draw of the conversation's key and turn. There are as many places as acts; those left over are
    padding, and who chooses one says nothing that could be understood.
    """

    def __init__(self, room: ChatRoom) -> None:
        """Offer replies in a room."""
        self.room = room
        self._count = len(room.scenario.agent_acts)
        self.space = spaces.Discrete(self._count)

    @property
    def acts(self) -> Acts:
        """The act of each reply, int64[B, K]; `NO_ACT`: padding. A function of the room's state, so never stale."""
        sensible = self.room.action_masks()
        purposes = CANDIDATES + np.arange(self._count)
        draws = rng.uniform(self.room.keys[:, None], self.room.turns[:, None], purposes)
        order = np.where(sensible, draws, 2.0).argsort(1)
        return np.where(np.take_along_axis(sensible, order, 1), order, NO_ACT)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Look up the acts of the replies chosen."""
        chosen = check_integers(actions, self.room.size, self._count, "candidate")
        acts = np.take_along_axis(self.acts, chosen[:, None], 1)[:, 0]
        return Decoded(np.where(acts == NO_ACT, UNCLEAR_ACT, acts), rows)

    def masks(self) -> Rows:
        """Return which places hold a reply."""
        masks: Rows = self.acts != NO_ACT
        return masks


class Spoken(str):
    """An action of ``action="text"`` whose act is known, such as a tool that a model called: NLU isn't asked.

    Attributes:
        act: Index of a dialogue act, or `UNCLEAR_ACT`.
    """

    act: int

    def __new__(cls, text: str, act: int) -> Spoken:
        """Say an act in these words, or in the scenario's own where `text` is empty."""
        made = super().__new__(cls, text)
        made.act = act
        return made

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.act


class TextCodec(Codec):
    """``action="text"``: what the agent says, understood by NLU; what isn't understood costs a turn."""

    def __init__(self, room: ChatRoom) -> None:
        """Understand texts in a room."""
        self.room = room
        self.space = spaces.Text(MAX_CHARS, min_length=0, charset=CHARSET)

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Understand B texts, any characters in them, cut off after `MAX_CHARS`; those that are `Spoken` say their act.

        Raises:
            InvalidValue: They aren't B strings, or one is `Spoken` with an act that isn't there.
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
                    f"there is no act {act} to be spoken; they are 0 to {len(room.scenario.agent_acts) - 1}"
                )
            acts[i] = act
            if not said[i]:
                del said[i]  # it is said in the scenario's own words
        return Decoded(acts, rows, said)


class TokenCodec(Codec):
    """``action="token"``: one token of the agent's turn; the last one ends it, and the text is then understood.

    Attributes:
        tokens: The tokens of each row's turn so far.
    """

    def __init__(self, room: ChatRoom, tokenizer: ChatTokenizer, on_token: Callable[[int, int], None] | None) -> None:
        """Collect tokens in a room; `on_token` is told of each (row, token) that doesn't end a turn."""
        self.room, self.tokenizer, self._on_token = room, tokenizer, on_token
        self.space = spaces.Discrete(tokenizer.size)
        self.tokens: list[list[int]] = [[] for _ in range(room.size)]

    def begin(self, rows: Rows) -> None:
        """Forget the turns of conversations that just began."""
        for row in np.flatnonzero(rows).tolist():
            self.tokens[row] = []

    def step(self, actions: Any, rows: Rows | None) -> Decoded:
        """Take a token in each row; a turn that ends with it is read as `TextCodec` reads it."""
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
                done[row] = clean(self.tokenizer.decode(tokens))[:MAX_CHARS]
                self.tokens[row] = []
        ready = np.zeros(self.room.size, bool)
        ready[list(done)] = True
        return Decoded(understood_acts(self.room.scenario, done, self.room.size), ready, done)

    def masks(self) -> Rows:
        """Allow every token."""
        return np.broadcast_to(np.ones(self.tokenizer.size, bool), (self.room.size, self.tokenizer.size))

    def dump(self) -> Snapshot:
        """Return ``tokens``, str[B]: the tokens of each unfinished turn as JSON."""
        return {"tokens": encode_rows(self.tokens)}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go back to the unfinished turns of `dump`."""
        self.tokens = decode_rows(state["tokens"])


def understood_acts(scenario: Scenario, texts: dict[int, str], size: int) -> Acts:
    """Return the acts of texts by row, int64[B]; `NO_ACT` in other rows, `UNCLEAR_ACT` where none was understood."""
    from chatgym.words.nlu import nlu_of

    acts = np.full(size, NO_ACT)
    if texts:
        for row, heard in zip(texts, nlu_of(scenario).understand(list(texts.values()), "agent"), strict=True):
            acts[row] = scenario.agent_code(heard.part) if heard.part else UNCLEAR_ACT
    return acts


def _check_texts(actions: Any, size: int) -> Sequence[str]:
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
        float32[B, N] for ``"embedding"``, int64[B] for ``"discrete"``, uint8[B, itemsize] for
        ``"belief"``, a tuple of B strings for ``"text"``, a dict of ``ids`` and ``mask`` for ``"token"``.
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
    """Return one conversation's observation from a batch of them."""
    return (
        {name: array[i] for name, array in observations.items()} if isinstance(observations, dict) else observations[i]
    )
