"""The default reward model: encoder features (`chatgym.rewards.features`) and Bradley–Terry heads over them."""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.errors import Corrupted, InvalidValue
from chatgym.rewards.features import RANK, SIGNALS, SIZE, Doubles, Floats, Reader, Space, Turn, turns, weights
from chatgym.rewards.protocol import Conversation
from chatgym.storage import model_store

FORMAT = "chatgym-reward-encoder"
VERSION = 1
FILE = "reward.npz"
_CUTS = tuple(np.cumsum([384, RANK, 3 * RANK * RANK, len(SIGNALS)]).tolist())


class EncoderRewardModel:
    """Scores conversations by a linear head over their features; several heads (an ensemble) are averaged.

    A score is ``2 P - 1``, where P is the probability that the conversation is preferred to a typical better
    conversation of the training pairs: 0 if it is as good as those, towards -1 if it is worse, towards 1 if better.

    Attributes:
        space: The space of the features.
        heads: float32[K, `SIZE`], weights of K heads.
        typical: float32[K], mean margin of the better conversations in the training pairs, by head.
        made_from: SHA-256 of the training pairs.
    """

    def __init__(self, space: Space, heads: Floats, typical: Floats, made_from: str = "") -> None:
        """Make a model of float32[K, `SIZE`] and float32[K]; use `load`, or `chatgym.rewards.training.train`."""
        self.space, self.heads, self.typical, self.made_from = space, heads, typical, made_from
        self.reader = Reader(space)
        parts = np.split(heads, _CUTS[:-1], axis=1)
        self._vector, self._square = parts[0], parts[1]
        self._products = parts[2].reshape(len(heads), 3, RANK, RANK)
        self._signals = parts[3]
        self._known: dict[tuple[str, ...], Floats] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments: copies of the views above would be laid out, and sum up, otherwise."""
        return EncoderRewardModel, (self.space, self.heads, self.typical, self.made_from)

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Score B conversations: float32[B] from -1 to 1; 0 if the agent has said nothing.

        A score depends only on its conversation, to the last bit, and of that on the last
        `chatgym.rewards.features.WINDOW` turns of the agent.
        """
        return np.array([_bounded(self._margins(one)).mean() for one in conversations], np.float32)

    def disagreement(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Return the standard deviation over the heads of B scores, float32[B]; 0 for one head."""
        return np.array([_bounded(self._margins(one)).std() for one in conversations], np.float32)

    def margins(self, conversations: Sequence[Conversation]) -> Doubles:
        """Return B unbounded scores, float64[B], mean over the heads; differences are log-odds of a preference."""
        return np.array([self._margins(one).mean() for one in conversations], np.float64)

    def _margins(self, conversation: Conversation) -> Doubles:
        """Return the unbounded scores by head, float64[K], relative to `typical`."""
        found = [self._turn(turn) for turn in turns(conversation, self.reader)]
        if not found:
            return np.zeros(len(self.heads))
        result: Doubles = (weights(len(found)) @ np.stack(found)).astype(np.float64) - self.typical
        return result

    def _turn(self, turn: Turn) -> Floats:
        """Return a turn's scores by head, float32[K]; those of the last turns are in memory."""
        key = (turn.reply.masked, *sorted(turn.reply.numbers), "<",
               *(text for said in (*turn.partner, None, *turn.agent)
                 for text in (("|",) if said is None else (said.masked, *sorted(said.numbers)))))  # fmt: skip
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= 65_536:
                self._known.clear()
            known = self._known[key] = self._judge(turn)
        return known

    def _judge(self, turn: Turn) -> Floats:
        """Compute a turn's scores by head, float32[K]."""
        place = turn.reply.place
        # As `Turn.features` @ heads, without making the products: (K, 3, RANK, RANK) . (RANK) . (3, RANK)
        products = ((self._products @ place) * turn.contexts).sum((1, 2))
        found: Floats = (
            self._vector @ turn.reply.vector + self._square @ (place * place) + products + self._signals @ turn.signals
        )
        return found

    @property
    def members(self) -> int:
        """K, the number of heads."""
        return len(self.heads)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What identifies the model: a digest of its content."""
        digest = hashlib.sha256()
        for array in (self.space.mean, self.space.basis, self.space.scale, self.heads, self.typical):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {"name": "encoder", "version": VERSION, "sha256": digest.hexdigest()}

    def save(self, path: Path) -> None:
        """Write the model as an npz file; the same model gives the same bytes.

        Raises:
            OSError: The file can't be written.
        """
        from chatgym.storage import atomic

        arrays = {
            "format": np.array(FORMAT), "version": np.array(VERSION), "encoder": np.array(_encoder_sha256()),
            "made_from": np.array(self.made_from), "mean": self.space.mean, "basis": self.space.basis,
            "scale": self.space.scale, "heads": self.heads, "typical": self.typical,
        }  # fmt: skip
        atomic.write_file(path, lambda temporary: np.savez(temporary, **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> EncoderRewardModel:
        """Read a file that `save` wrote.

        Raises:
            Corrupted: The file is damaged.
            InvalidValue: The file is of another version or encoder.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            form, version, encoder = (str(found[name]) for name in ("format", "version", "encoder"))
            space = Space(found["mean"], found["basis"], found["scale"])
            heads, typical, made_from = found["heads"], found["typical"], str(found["made_from"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise Corrupted(f"{path} can't be read as a reward model ({error}); train it again") from error
        if form != FORMAT or version != str(VERSION) or encoder != _encoder_sha256():
            raise InvalidValue(f"{path} is a reward model of another version or encoder; train it again with this one")
        shapes = (space.mean.shape, space.basis.shape, space.scale.shape, heads.shape[1:], typical.shape)
        arrays = (space.mean, space.basis, space.scale, heads, typical)
        right = shapes == ((384,), (RANK, 384), (RANK,), (SIZE,), heads.shape[:1]) and len(heads) > 0
        if not right or not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays):
            raise Corrupted(f"{path} holds arrays of other shapes or numbers than a reward model's; train it again")
        return cls(space, heads, typical, made_from)


def _bounded(margins: Doubles) -> Doubles:
    """Return 2 P - 1, float64[K], with P = sigmoid(margins), float64[K]."""
    result: Doubles = np.tanh(margins / 2)
    return result


def _encoder_sha256() -> str:
    """Return the SHA-256 of the encoder's wheel."""
    from chatgym.words.encoder import ENCODER

    return model_store.MODELS[ENCODER].sha256
