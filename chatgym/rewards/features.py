"""Features of conversations for the default reward model: those of each agent turn, from a sentence encoder.

The encoder is `chatgym.words.encoder`. Numbers are masked before encoding, so that the same sentence with another order
number has the same vector; which numbers were said are features of their own. The features of a turn are

- the reply's vector, and the squares of its coordinates in a small space that is fitted to the training texts;
- products of its coordinates with the mean coordinates of the partner's last turn, of all turns of the partner, and of
  all earlier turns of the agent, which show whether the reply fits there;
- `SIGNALS`, such as repetition, or numbers that the partner didn't say.

The length of a reply is no feature. A conversation's features are the weighted mean over its last `WINDOW` agent turns;
a turn has `RECENCY` of the weight of the next one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.forks import one_thread

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

WINDOW = 6
"""The last agent turns that are used, and before each as many of the partner and of the agent."""
RECENCY = 0.5
RANK = 24
"""Dimensions of the small space."""
READ_CHARS = 280
"""Characters of a text that are encoded, about the encoder's 64 tokens; a longer text has the signal `unread`."""
REMEMBERED = 16_384
"""Texts whose vectors are kept in memory (30 MB)."""

SIGNALS = ("repeats", "repeats_exactly", "echoes", "fits", "foreign", "stray_numbers", "shared_numbers", "empty",
           "unread", "babble", "glue")  # fmt: skip
"""Names of a turn's scalar features, from 0 to 1 (similarities from -1):

repeats, repeats_exactly: similarity to the most similar earlier turn of the agent, and whether one is equal.
echoes: similarity to the most similar turn of the partner. fits: similarity to the partner's last turn.
foreign: norm of the part of the reply's vector outside the small space.
stray_numbers, shared_numbers: share of the reply's numbers that the partner didn't say, and that it did.
empty, unread: whether the reply has no text, and whether it is longer than `READ_CHARS`.
babble: share of repeated words in the reply. glue: share of function words (the, is, you).
"""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_GLUE = frozenset(
    _WORD.findall(
        "a about all am an and any are as at be been but by can could did do does don't for from had has have he her "
        "here how i i'll i'm if in is it it's just like may me my no not of on one or our out please right shall she "
        "so some than that that's the them then there they this to too up us was we we'll were what when where which "
        "who why will with would you you're your"
    )
)
_NUMBER = re.compile(r"\d+(?:[.,/]\d+)*")


@dataclass(frozen=True, eq=False)
class Space:
    """The small space: whitened principal components of the training texts' vectors.

    Attributes:
        mean: float32[384].
        basis: float32[RANK, 384], rows divided by their component's standard deviation.
        scale: float32[RANK], the components' standard deviations.
    """

    mean: Floats
    basis: Floats
    scale: Floats

    @classmethod
    def fit(cls, vectors: Doubles) -> Space:
        """Fit the space to vectors float64[N, 384]. The sign of a component makes its largest entry positive."""
        import torch

        mean = vectors.mean(0)
        centred = torch.from_numpy(vectors - mean)
        with one_thread():
            found = torch.linalg.eigh(centred.T @ centred / len(centred))
        values, components = found.eigenvalues.numpy(), found.eigenvectors.numpy()
        components = components[:, ::-1][:, :RANK].T  # (RANK, 384), the largest first
        largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
        scale = np.sqrt(np.maximum(values[::-1][:RANK], 1e-6))
        basis = components * np.sign(largest) / scale[:, None]
        return cls(mean.astype(np.float32), basis.astype(np.float32), scale.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Text:
    """A text with its vector and signals.

    Attributes:
        masked: The text with masked numbers.
        vector: float32[384], of length 1.
        place: float32[RANK], its coordinates in the small space.
        numbers: Its numbers.
        foreign, empty, unread, babble, glue: See `SIGNALS`.
    """

    masked: str
    vector: Floats
    place: Floats
    foreign: float
    numbers: frozenset[str]
    empty: float
    unread: float
    babble: float
    glue: float


def masked(text: str) -> str:
    """Return the first `READ_CHARS` characters of a text, with long numbers replaced by 482913, short ones by 12."""
    return _NUMBER.sub(lambda found: "482913" if len(found[0]) > 4 else "12", text[:READ_CHARS])


class Reader:
    """Encodes texts, each once and alone, so that a vector depends on no other text, to the last bit."""

    def __init__(self, space: Space | None = None) -> None:
        """Make a reader; without a space, `Text.place` is empty."""
        from chatgym.words.encoder import encoder

        self._space = space
        self._encode = encoder().encode_alone
        self._vectors: dict[str, Floats] = {}
        self.read = functools.lru_cache(maxsize=REMEMBERED)(self._read)

    def __reduce__(self) -> tuple[type[Reader], tuple[Space | None]]:
        """Pickle the space; the encoder is opened again, and texts are read again."""
        return Reader, (self._space,)

    def preload(self, vectors: Mapping[str, Floats]) -> None:
        """Use known vectors, float32[384] each, by masked text."""
        self._vectors.update(vectors)

    def vector(self, seen: str) -> Floats:
        """Return a masked text's vector, float32[384]."""
        known = self._vectors.get(seen)
        return self._encode(seen) if known is None else known

    def _read(self, text: str) -> Text:
        """Return a text with its vector and signals."""
        seen = masked(text)
        vector = self.vector(seen)
        place, foreign = np.zeros(0, np.float32), 0.0
        if self._space is not None:
            centred = vector - self._space.mean
            place = self._space.basis @ centred
            outside = float(centred @ centred) - float(((place * self._space.scale) ** 2).sum())
            foreign = float(np.sqrt(max(outside, 0.0)))
        words = _WORD.findall(text[:READ_CHARS].lower().replace("’", "'"))
        count = max(len(words), 1)
        return Text(
            seen, vector, place, foreign, frozenset(_NUMBER.findall(text[:READ_CHARS])), float(not text.strip()),
            float(len(text) > READ_CHARS), 1 - len(set(words)) / count if words else 0.0,
            sum(word in _GLUE for word in words) / count,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Turn:
    """An agent turn: its reply, and the last `WINDOW` earlier turns of the partner and of the agent."""

    reply: Text
    partner: Sequence[Text]
    agent: Sequence[Text]

    @functools.cached_property
    def contexts(self) -> Floats:
        """Mean coordinates of the partner's last turn, its turns, and the agent's earlier ones, float32[3, RANK]."""
        none = np.zeros_like(self.reply.place)
        return np.stack([
            self.partner[-1].place if self.partner else none,
            np.mean([text.place for text in self.partner], 0) if self.partner else none,
            np.mean([text.place for text in self.agent], 0) if self.agent else none,
        ])  # fmt: skip

    @functools.cached_property
    def signals(self) -> Floats:
        """The `SIGNALS`, float32[len(SIGNALS)]."""
        reply = self.reply
        before = [_likeness(reply, text) for text in self.agent]
        theirs = [_likeness(reply, text) for text in self.partner]
        said = frozenset().union(*(text.numbers for text in self.partner))
        shared = len(reply.numbers & said) / max(len(reply.numbers), 1)
        stray = len(reply.numbers - said) / max(len(reply.numbers), 1)
        same = any(reply.masked == text.masked and reply.numbers == text.numbers for text in self.agent)
        values = (max(before, default=0.0), float(same), max(theirs, default=0.0), theirs[-1] if theirs else 0.0,
                  reply.foreign, stray, shared, reply.empty, reply.unread, reply.babble, reply.glue)  # fmt: skip
        return np.array(values, np.float32)

    def features(self) -> Floats:
        """Return all features, float32[`SIZE`]: vector, squares, products, signals."""
        place = self.reply.place
        products = self.contexts[:, :, None] * place  # (3, RANK, RANK)
        return np.concatenate([self.reply.vector, place * place, products.ravel(), self.signals])


def _likeness(a: Text, b: Text) -> float:
    """Return the cosine similarity of two texts."""
    return float(a.vector @ b.vector)


SIZE = 384 + RANK + 3 * RANK * RANK + len(SIGNALS)
"""Number of features of a turn."""


def turns(conversation: Sequence[Mapping[str, Any]], reader: Reader) -> list[Turn]:
    """Return the last `WINDOW` agent turns of a conversation (ChatML messages), in their order."""
    return [
        Turn(reader.read(reply), [reader.read(text) for text in partner], [reader.read(text) for text in agent])
        for reply, partner, agent in _replies(conversation)
    ]


def _replies(conversation: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (reply, partner's earlier texts, agent's earlier texts) for the last `WINDOW` agent turns."""
    said = [(message["role"], message["content"]) for message in conversation if message["role"] != "system"]
    mine = [i for i, (role, _) in enumerate(said) if role == "assistant"]
    for i in mine[-WINDOW:]:
        partner = [text for role, text in said[:i] if role != "assistant"]
        agent = [text for role, text in said[:i] if role == "assistant"]
        yield said[i][1], partner[-WINDOW:], agent[-WINDOW:]


def weights(count: int) -> Floats:
    """Return the weights of `count` agent turns, float32[count], whose sum is 1."""
    raw = RECENCY ** np.arange(count - 1, -1, -1, dtype=np.float64)
    result: Floats = (raw / raw.sum()).astype(np.float32)
    return result


def texts(conversations: Iterable[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the masked texts that the features of conversations are computed from, each once, sorted."""
    found = {
        masked(text)
        for conversation in conversations
        for reply, partner, agent in _replies(conversation)
        for text in (reply, *partner, *agent)
    }
    return sorted(found)
